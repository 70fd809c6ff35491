"""A network while it is trained, and all that changes meanwhile: one step, the end of an epoch, the whole state."""

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
from stages.train.processes import ALONE, Group
from stages.train.recipe import Recipe
from stages.train.shards import Replicas, Shard
from stages.train.tasks import Row as Row


class Trainer:
    """A network while it is trained.

    epoch: the current one, counted from 1. losses, sizes: of the steps of this epoch so far, scalars on the device, and
    the number of images of each. history: a row for each epoch that has ended. best_weights: those of the best of these
    epochs, on the CPU.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, parallel: Map, group: Group = ALONE
    ) -> None:
        """Train `model` in place, in each process of a group. parallel: as `map`; it may run several shards at once."""
        self.model, self.optimizer, self.recipe, self.parallel, self.group = model, optimizer, recipe, parallel, group
        self.device = next(model.parameters()).device
        self.base_lr = [group["lr"] for group in optimizer.param_groups]
        self.low_precision = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(recipe.precision)
        # Without a scaler, small gradients would be 0 in float16.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.low_precision is torch.float16)
        model.train()  # and its replicas, which are copies of it
        self.replicas = Replicas(model, recipe.shards, recipe.batch_size, recipe.seed, group)
        self.epoch, self.run_steps = 1, 0
        self.losses: list[Tensor] = []
        self.sizes: list[int] = []
        self.history: list[Row] = []
        self.best_weights: dict[str, Tensor] = {}

    def step(self, images: Tensor, labels: Tensor, of: int | None = None, stop: int | None = None) -> int | None:
        """Learn from a batch: this process's images uint8 (N, C, H, W) of it, labels (N,).

        of: images of the whole batch; None: N. stop: the signal that told this process to stop, if any. Returns the
        head's, after the step, so that all processes stop at the same step. Raises LostProcessError.
        """

        def forward_backward(shard: Shard) -> None:
            """Compute one shard: leave its part of the gradients and of the mean loss in its replica."""
            replica, images, labels, share = shard
            with torch.autocast(self.device.type, self.low_precision, enabled=self.low_precision is not None):
                augmented, targets = self.recipe.augment(images, labels, replica.generator)
                logits = replica.model(augmented)  # (N, K)
            loss = self.recipe.objective(logits.float(), targets) * share
            self.scaler.scale(loss).backward()
            replica.scalars[0] = loss.detach()
            replica.end()

        for group, lr in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = lr * self.recipe.lr_factor(self.run_steps)
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in (images, labels))
        self.optimizer.zero_grad(set_to_none=True)
        size = len(labels) if of is None else of
        with self.replicas.shards(images, labels, size, self.epoch, len(self.losses) + 1, stop or 0) as shards:
            list(self.parallel(forward_backward, shards))
        if self.recipe.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.losses.append(self.replicas.loss)  # reading it here would wait for a GPU
        self.sizes.append(size)
        self.run_steps += 1
        return self.replicas.stop or None

    def last_loss(self) -> float:
        """The loss of the last step. Raises UserError if one of the epoch's steps had a loss that is not finite."""
        broken = (~torch.isfinite(torch.stack(self.losses))).nonzero()
        if len(broken):
            step = int(broken[0]) + 1
            raise diverged("training", self.losses[step - 1].item(), f"epoch {self.epoch}, step {step}")
        return self.losses[-1].item()

    def end_epoch(self, images: Images, labels: Tensor) -> Row:
        """Validate, keep the weights if they are the best so far, and go to the next epoch; return this one's row.

        images, labels: of the validation part. The images need not be in memory. If it is empty, there are no
        validation columns. Raises UserError if the validation loss is not finite.
        """
        row: Row = {"epoch": self.epoch, "lr": self.base_lr[0] * self.recipe.lr_factor(self.run_steps - 1)}
        losses = torch.stack(self.losses).cpu().numpy().astype(np.float64)
        row["train_loss"] = float(np.average(losses, weights=self.sizes))  # the mean over images, not over batches
        if len(labels):
            row |= self._validate(images, labels)
            if not math.isfinite(row["validation_loss"]):
                raise diverged("validation", row["validation_loss"], f"epoch {self.epoch}")
            self.model.train()
        self.history.append(row)
        if best_epoch(self.history, self.recipe.select_by) == self.epoch:
            self.best_weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        self.epoch += 1
        self.losses, self.sizes = [], []
        return row

    def _validate(self, images: Images, labels: Tensor) -> Row:
        """The validation columns of an epoch's row; each process computes some of the images."""
        bounds = [part_of(images, rank, self.group.size).start for rank in range(self.group.size)] + [len(images)]
        own = slice(*bounds[self.group.rank : self.group.rank + 2])
        outputs = predict(self.model, images, self.recipe.output, self.device, self.parallel, own=own)  # (N own, K)
        task = tasks.of(self.recipe.output)
        rows = self.group.gather(task.rows(outputs, labels[own]), bounds).double()
        return task.measure(rows, labels, self.recipe.objective, self.recipe.select_by)

    @property
    def out_of_patience(self) -> bool:
        """Whether too many epochs have been no better on validation."""
        patience = self.recipe.patience_epochs
        return patience > 0 and epochs_without_gain(self.history, self.recipe.select_by) >= patience

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.epoch > self.recipe.epochs or self.out_of_patience

    def state_dict(self) -> dict[str, Any]:
        """All that a run which goes on from here needs: nested dicts and lists of tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "run_steps": self.run_steps,
            "losses": torch.stack(self.losses) if self.losses else None,
            "sizes": self.sizes,
            "history": self.history,
            "best_weights": self.best_weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where another trainer of the same recipe was."""
        models.load_weights(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.run_steps = state["epoch"], state["run_steps"]
        self.losses = [] if state["losses"] is None else list(state["losses"].to(self.device))
        self.sizes, self.history, self.best_weights = state["sizes"], state["history"], state["best_weights"]


def best_epoch(history: Sequence[Mapping[str, float]], select_by: str) -> int:
    """The epoch with the best validation score, of equals the one with the lower loss, then the first.

    select_by: accuracy | balanced_accuracy | loss. Without validation the last epoch.
    """
    if "validation_loss" not in history[-1]:
        return len(history)
    ranks = [(score(row, select_by), -row["validation_loss"]) for row in history]
    return ranks.index(max(ranks)) + 1


def epochs_without_gain(history: Sequence[Mapping[str, float]], select_by: str) -> int:
    """Epochs since the validation score was last better than in all before. With an accuracy, a lower loss is no gain.

    0 without validation.
    """
    scores = [score(row, select_by) for row in history if "validation_loss" in row]
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def score(row: Mapping[str, float], select_by: str) -> float:
    """What an epoch is selected by: the higher, the better."""
    value = row[f"validation_{select_by}"]
    return -value if select_by == "loss" else value


def diverged(which: str, value: float, where: str) -> UserError:
    """The error for a loss that is not finite."""
    remedy = "set a smaller lr of the optimizer, or train.precision: float32"
    return UserError(f"the {which} loss is {value} at {where}: the run diverged; {paths.PARAMS}: {remedy}")
