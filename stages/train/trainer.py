"""The state of a training run: a step, the end of an epoch, saving and loading."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.common import paths
from stages.common.errors import UserError
from stages.network import models
from stages.network.device import Map
from stages.network.inference import Images, part_of, predict
from stages.train import tasks
from stages.train.processes import SINGLE, Group
from stages.train.recipe import Recipe
from stages.train.shards import Replicas, Shard
from stages.train.tasks import Row as Row


class Trainer:
    """A network, its optimizer, and everything else that changes during training.

    epoch: the current epoch, counted from 1. losses: of the steps of this epoch so far, scalars on the device.
    batch_sizes: images of each of these steps. history: one row per finished epoch. best_weights: those after the best
    epoch, on the CPU.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, parallel: Map, group: Group = SINGLE
    ) -> None:
        """Train `model` in place, in every process of a group. parallel: like `map`; it may use several threads."""
        self.model, self.optimizer, self.recipe, self.parallel, self.group = model, optimizer, recipe, parallel, group
        self.device = next(model.parameters()).device
        self.base_lr = [group["lr"] for group in optimizer.param_groups]
        self.low_precision = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(recipe.precision)
        # Without a scaler, small gradients would underflow to 0 in float16.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.low_precision is torch.float16)
        model.train()  # before the replicas copy it
        self.replicas = Replicas(model, recipe.shards, recipe.batch_size, recipe.seed, group)
        self.epoch, self.run_steps = 1, 0
        self.losses: list[Tensor] = []
        self.batch_sizes: list[int] = []
        self.history: list[Row] = []
        self.best_weights: dict[str, Tensor] = {}

    def step(
        self, images: Tensor, labels: Tensor, batch_size: int | None = None, stop: int | None = None
    ) -> int | None:
        """Learn from this process's images uint8 (N, C, H, W) and labels (N,) of a batch.

        batch_size: images of the batch in all processes; None: N. stop: the signal that asks this process to stop, if
        any. Returns the head's signal, so that all processes stop after the same step. Raises LostProcessError.
        """

        def forward_backward(shard: Shard) -> None:
            """Compute the gradients of one shard, and its share of the mean loss, in its replica."""
            replica, images, labels, share = shard
            # Not under autocast: in bfloat16, the coordinates in affine would be off by up to a pixel in 256.
            augmented, targets = self.recipe.augment(images, labels, replica.generator)
            with torch.autocast(self.device.type, self.low_precision, enabled=self.low_precision is not None):
                logits = replica.model(augmented)  # (N, K)
            loss = self.recipe.objective(logits.float(), targets) * share
            self.scaler.scale(loss).backward()
            replica.scalars[0] = loss.detach()
            replica.finish()

        for group, lr in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = lr * self.recipe.lr_factor(self.run_steps)
        # From memory that is not pinned, a copy must not be asynchronous: on MPS, it may read memory that was freed
        # (pytorch issue 189690).
        images, labels = (tensor.to(self.device, non_blocking=tensor.is_pinned()) for tensor in (images, labels))
        self.optimizer.zero_grad(set_to_none=True)
        batch_size = len(labels) if batch_size is None else batch_size
        with self.replicas.shards(images, labels, batch_size, self.epoch, len(self.losses) + 1, stop or 0) as shards:
            list(self.parallel(forward_backward, shards))
        if self.recipe.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.losses.append(self.replicas.loss)  # reading it here would wait for a GPU
        self.batch_sizes.append(batch_size)
        self.run_steps += 1
        return self.replicas.stop or None

    def last_loss(self) -> float:
        """The loss of the last step. Raises UserError if the loss of any step of this epoch is not finite."""
        not_finite = (~torch.isfinite(torch.stack(self.losses))).nonzero()
        if len(not_finite):
            step = int(not_finite[0]) + 1
            raise diverged("training", self.losses[step - 1].item(), f"epoch {self.epoch}, step {step}")
        return self.losses[-1].item()

    def end_epoch(self, images: Images, labels: Tensor) -> Row:
        """Validate, keep the weights if they are the best so far, and begin the next epoch. Returns this epoch's row.

        images, labels: of the validation part. If it is empty, the row has no validation columns. The images need not
        be in memory. Raises UserError if the validation loss is not finite.
        """
        row: Row = {"epoch": self.epoch, "lr": self.base_lr[0] * self.recipe.lr_factor(self.run_steps - 1)}
        losses = torch.stack(self.losses).cpu().numpy().astype(np.float64)
        row["train_loss"] = float(np.average(losses, weights=self.batch_sizes))  # the mean over images, not batches
        if len(labels):
            row |= self._validate(images, labels)
            if not math.isfinite(row["validation_loss"]):
                raise diverged("validation", row["validation_loss"], f"epoch {self.epoch}")
            self.model.train()
        self.history.append(row)
        if best_epoch(self.history, self.recipe.select_by) == self.epoch:
            self.best_weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        self.epoch += 1
        self.losses, self.batch_sizes = [], []
        return row

    def _validate(self, images: Images, labels: Tensor) -> Row:
        """The validation columns of an epoch's row. Each process computes some of the images."""
        bounds = [part_of(images, rank, self.group.size).start for rank in range(self.group.size)] + [len(images)]
        subset = slice(*bounds[self.group.rank : self.group.rank + 2])
        outputs = predict(self.model, images, self.recipe.output, self.device, self.parallel, subset=subset)  # (n, K)
        task = tasks.for_output(self.recipe.output)
        rows = self.group.gather(task.rows(outputs, labels[subset]), bounds).double()  # (N, …)
        return task.measure(rows, labels, self.recipe.objective, self.recipe.select_by)

    @property
    def out_of_patience(self) -> bool:
        """Whether early stopping ends the run."""
        patience = self.recipe.patience_epochs
        return patience > 0 and epochs_without_gain(self.history, self.recipe.select_by) >= patience

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to train."""
        return self.epoch > self.recipe.epochs or self.out_of_patience

    def state_dict(self) -> dict[str, Any]:
        """The state that `load_state_dict` restores: nested dicts and lists of tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "run_steps": self.run_steps,
            "losses": torch.stack(self.losses) if self.losses else None,
            "sizes": self.batch_sizes,
            "history": self.history,
            "best_weights": self.best_weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of another trainer with the same recipe."""
        models.load_weights(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.run_steps = state["epoch"], state["run_steps"]
        self.losses = [] if state["losses"] is None else list(state["losses"].to(self.device))
        self.batch_sizes, self.history, self.best_weights = state["sizes"], state["history"], state["best_weights"]


def best_epoch(history: Sequence[Mapping[str, float]], select_by: str) -> int:
    """The epoch with the best validation score. Ties go to the lower loss, then to the earlier epoch.

    select_by: accuracy | balanced_accuracy | loss. Without validation, it is the last epoch.
    """
    if "validation_loss" not in history[-1]:
        return len(history)
    ranks = [(score(row, select_by), -row["validation_loss"]) for row in history]
    return ranks.index(max(ranks)) + 1


def epochs_without_gain(history: Sequence[Mapping[str, float]], select_by: str) -> int:
    """Epochs since the validation score last improved; 0 without validation.

    A lower loss at the same accuracy is no improvement.
    """
    scores = [score(row, select_by) for row in history if "validation_loss" in row]
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def score(row: Mapping[str, float], select_by: str) -> float:
    """The validation score of an epoch; higher is better."""
    value = row[f"validation_{select_by}"]
    return -value if select_by == "loss" else value


def diverged(name: str, value: float, where: str) -> UserError:
    """The error for a loss that is not finite. name: training | validation."""
    remedy = "set a smaller lr of the optimizer, or train.precision: float32"
    return UserError(f"the {name} loss is {value} at {where}: the run diverged; {paths.PARAMS}: {remedy}")
