"""The training loop: epochs, steps, validation, checkpoints, and when it stops."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from stages.common import paths
from stages.common.errors import Interrupted, UserError
from stages.network.device import Map
from stages.network.inference import predict
from stages.network.losses import Output
from stages.train import shards
from stages.train.batches import Batch, EpochBatches
from stages.train.checkpoint import Checkpoints, Progress
from stages.train.shards import Replica

LEARNS_WITHIN = 3  # epochs, after which a run that is no better than chance is told


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    sampler: EpochBatches,
    validation: Batch,
    *,
    objective: Callable[[Tensor, Tensor], Tensor],
    output: Output,
    optimizer: torch.optim.Optimizer,
    lr_factor: Callable[[int], float],
    augment: Callable[[Tensor, torch.Generator], Tensor],
    precision: str,
    epochs: int,
    patience_epochs: int,
    seed: int,
    shard_count: int,
    parallel: Map,
    log_every_steps: int,
    checkpoints: Checkpoints,
    stop: Callable[[], int | None],
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Train `model` in place; return the weights of the best epoch and a row an epoch of what was measured.

    batches: those of the epoch that `sampler` has, at each iteration, or fewer once told to stop.
    validation: images and labels; with none, no validation columns are measured, and the last epoch is the best.
    objective: (logits, labels) -> scalar. output: what turns logits into probabilities. lr_factor: of the step.
    augment: (images, generator) -> images. precision: float32 | bfloat16 | float16. patience_epochs: stop after so many
    epochs without a better validation accuracy; 0: never. shard_count: parts of a batch (stages/train/shards.py).
    parallel: as `map`; it may compute several of them at once.
    checkpoints: where a killed run is resumed from, to the same bytes. stop: gives a signal's number once one has come.
    Raises UserError when the loss is not finite, Interrupted (with a checkpoint written) when told to stop.
    """
    target = next(model.parameters()).device
    base_lr = [group["lr"] for group in optimizer.param_groups]
    low = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
    scaler = torch.amp.GradScaler(target.type, enabled=low is torch.float16)  # small float16 gradients would be 0
    terminal = sys.stderr.isatty()
    replicas = shards.replicas(model, shard_count)

    def forward_backward(replica: Replica, images: Tensor, labels: Tensor, share: float) -> Tensor:
        """Of one shard: leave its part of the gradients in the replica; return its part of the mean loss."""
        with torch.autocast(target.type, low, enabled=low is not None):
            logits = replica.model(augment(images, replica.generator))  # (N, K)
        loss = objective(logits.float(), labels) * share
        scaler.scale(loss).backward()
        return loss.detach()

    at = checkpoints.load(model, optimizer, scaler)
    if at:
        print(f"resuming after step {len(at.losses)}/{len(sampler)} of epoch {at.epoch}", flush=True)
    first, losses, sizes, history, weights = at or Progress(1, [], [], [], {})
    for epoch in range(first, epochs + 1):
        began, done = time.perf_counter(), sum(sizes)
        sampler.epoch, sampler.first = epoch, len(losses)
        for replica in replicas:
            replica.model.train()
        bar = tqdm(
            batches,
            f"epoch {epoch}/{epochs}",
            len(sampler),
            leave=False,
            unit="step",
            disable=not terminal,
            initial=len(losses),
        )
        for step, (images, labels) in enumerate(bar, start=len(losses) + 1):
            for group, lr in zip(optimizer.param_groups, base_lr, strict=True):
                group["lr"] = lr * lr_factor((epoch - 1) * len(sampler) + step - 1)
            images = images.to(target, non_blocking=True)  # (N, C, H, W)
            labels = labels.to(target, non_blocking=True)  # (N,)
            parts = shards.split(images, labels, shard_count, sampler.batch_size)
            used = replicas[: len(parts)]
            shards.scatter(used)
            for number, replica in enumerate(used):
                replica.seed(seed, epoch, step, number)
            optimizer.zero_grad(set_to_none=True)
            shares = [len(part[1]) / len(labels) for part in parts]
            loss = sum(
                parallel(forward_backward, used, *zip(*parts, strict=True), shares), torch.zeros((), device=target)
            )
            shards.gather(used)
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss)  # not read here: that would wait for the GPU at every step
            sizes.append(len(labels))
            if step % log_every_steps == 0 or step == len(sampler):
                check_finite(losses, epoch)
                speed = (sum(sizes) - done) / (time.perf_counter() - began)
                line = f"loss {loss.item():.4f} {speed:,.0f} images/s"
                bar.set_postfix_str(line)
                if not terminal and step < len(sampler):  # the epoch's own line says the rest
                    print(f"epoch {epoch}/{epochs} step {step}/{len(sampler)} {line}", flush=True)
            if stop():
                break
            if checkpoints.due():
                checkpoints.save(model, optimizer, scaler, Progress(epoch, losses, sizes, history, weights))
        if signum := stop():  # after a step, or while waiting for a batch
            checkpoints.save(model, optimizer, scaler, Progress(epoch, losses, sizes, history, weights))
            raise Interrupted(signum, f"`dvc repro` resumes after step {len(losses)} of epoch {epoch}")
        speed = (sum(sizes) - done) / (time.perf_counter() - began)
        train_loss = weighted_mean(losses, sizes)
        row = {"epoch": epoch, "lr": base_lr[0] * lr_factor(epoch * len(sampler) - 1), "train_loss": train_loss}
        line = f"epoch {epoch}/{epochs} loss {train_loss:.4f}"
        if len(validation[1]):
            log_p = predict(model, validation[0], output, target, parallel)  # (N, K)
            row["validation_loss"] = F.nll_loss(log_p.double(), validation[1]).item()
            row["validation_accuracy"] = (log_p.argmax(dim=1) == validation[1]).double().mean().item()
            if not math.isfinite(row["validation_loss"]):
                raise diverged("validation", row["validation_loss"], f"epoch {epoch}")
            line += f" validation loss {row['validation_loss']:.4f} accuracy {row['validation_accuracy']:.2%}"
        print(f"{line} {speed:,.0f} images/s", flush=True)
        history.append(row)
        if epoch == min(LEARNS_WITHIN, epochs) and len(validation[1]):
            warn_if_at_chance(max(row["validation_accuracy"] for row in history), validation[1])
        losses, sizes = [], []
        if best_epoch(history) == epoch:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        if patience_epochs and epochs_without_gain(history) >= patience_epochs:
            print(f"no better validation accuracy for {patience_epochs} epochs: stopped early", flush=True)
            break
    return weights, history


def best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """The epoch with the best validation accuracy, of equals the one with the lower loss, then the first.

    Without validation the last epoch.
    """
    if "validation_accuracy" not in history[-1]:
        return len(history)
    ranks = [(row["validation_accuracy"], -row["validation_loss"]) for row in history]
    return ranks.index(max(ranks)) + 1


def epochs_without_gain(history: Sequence[Mapping[str, float]]) -> int:
    """Epochs since the validation accuracy was last better than in all before; a lower loss alone is no gain.

    0 without validation.
    """
    accuracies = [row["validation_accuracy"] for row in history if "validation_accuracy" in row]
    return len(accuracies) - 1 - accuracies.index(max(accuracies)) if accuracies else 0


def warn_if_at_chance(accuracy: float, labels: Tensor) -> None:
    """Say so if an accuracy on these labels is no better than always naming their most frequent class."""
    chance = torch.bincount(labels).max().item() / len(labels)
    if accuracy <= chance + 3 * math.sqrt(chance * (1 - chance) / len(labels)):  # three standard errors
        print(
            f"warning: a validation accuracy of {accuracy:.2%}, and naming the most frequent class gives {chance:.2%}: "
            f"nothing is learnt; {paths.PARAMS}: try another lr of the optimizer",
            flush=True,
        )


def weighted_mean(losses: list[Tensor], sizes: list[int]) -> float:
    """The mean loss an image, of the mean losses of batches of these sizes."""
    return float(np.average(torch.stack(losses).cpu().numpy().astype(np.float64), weights=sizes))


def check_finite(losses: list[Tensor], epoch: int) -> None:
    """Raise UserError if a step's loss is NaN or infinite, naming the first such step."""
    broken = (~torch.isfinite(torch.stack(losses))).nonzero()
    if len(broken):
        step = int(broken[0]) + 1
        raise diverged("training", losses[step - 1].item(), f"epoch {epoch}, step {step}")


def diverged(which: str, value: float, where: str) -> UserError:
    """The error for a loss that is not finite."""
    mend = "set a smaller lr of the optimizer, or train.precision: float32"
    return UserError(f"the {which} loss is {value} at {where}: the run diverged; {paths.PARAMS}: {mend}")
