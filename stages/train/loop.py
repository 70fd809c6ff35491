"""The training loop: epochs, steps, log, checkpoints, and when it stops."""

import sys
import time
from collections.abc import Callable

from torch import Tensor
from tqdm import tqdm

from stages.common import paths
from stages.common.errors import Interrupted
from stages.network.inference import Images
from stages.train import tasks
from stages.train.batches import Batches
from stages.train.checkpoint import Checkpoints
from stages.train.trainer import Row, Trainer

LEARNS_WITHIN = 3  # epochs, after which a run that is no better than chance is told


def fit(
    trainer: Trainer,
    batches: Batches,
    validation: tuple[Images, Tensor],
    checkpoints: Checkpoints,
    log_every_steps: int,
    stop: Callable[[], int | None],
    on_epoch: Callable[[list[Row]], None],
) -> None:
    """Train until the trainer has finished. A run that was stopped or killed goes on from its last checkpoint.

    validation: images and labels; they may be empty. stop: returns the signal's number once one has come.
    on_epoch: called with the trainer's history after each epoch.
    Raises UserError if the loss is not finite, and Interrupted, after writing a checkpoint, if told to stop, and
    LostProcessError if another process of the trainer's group is gone.
    """
    task = tasks.of(trainer.recipe.output)
    epochs, steps, terminal = trainer.recipe.epochs, len(batches), trainer.group.head and sys.stderr.isatty()
    if state := checkpoints.load():
        trainer.load_state_dict(state)
        print(f"resuming after step {len(trainer.losses)}/{steps} of epoch {trainer.epoch}", flush=True)
    while not trainer.finished:
        name, first = f"epoch {trainer.epoch}/{epochs}", len(trainer.losses)
        began, images_before = time.perf_counter(), sum(trainer.sizes)
        epoch_batches, signum = batches.of_epoch(trainer.epoch, first), None
        bar = tqdm(epoch_batches, name, steps, leave=False, unit="step", disable=not terminal, initial=first)
        for step, (images, labels) in enumerate(bar, start=first + 1):
            signum = trainer.step(images, labels, batches.images_in(step), stop())
            if step % log_every_steps == 0 or step == steps:
                loss = trainer.last_loss()  # waits for a GPU
                speed = (sum(trainer.sizes) - images_before) / (time.perf_counter() - began)
                line = f"loss {loss:.4f} {speed:,.0f} images/s"
                bar.set_postfix_str(line)
                if not terminal and step < steps:  # the epoch's own line says the rest
                    print(f"{name} step {step}/{steps} {line}", flush=True)
            if signum:
                break
            if checkpoints.due():
                checkpoints.save(trainer.state_dict())
        # Told in the last step, or while waiting for a batch. The other processes learn of a signal in a step.
        if signum := signum or (stop() if trainer.group.size == 1 or len(trainer.losses) < steps else None):
            checkpoints.save(trainer.state_dict())
            raise Interrupted(signum, f"`dvc repro` resumes after step {len(trainer.losses)} of epoch {trainer.epoch}")
        speed = (sum(trainer.sizes) - images_before) / (time.perf_counter() - began)
        row = trainer.end_epoch(*validation)
        line = f"{name} loss {row['train_loss']:.4f}"
        if "validation_loss" in row:
            line += f" {task.describe(row)}"
        on_epoch(trainer.history)
        print(f"{line} {speed:,.0f} images/s", flush=True)
        if "validation_loss" in row and row["epoch"] == min(LEARNS_WITHIN, epochs):
            warn_if_nothing_is_learnt(task.warn(trainer.history, validation[1]))
    if trainer.out_of_patience:
        patience = trainer.recipe.patience_epochs
        selected = trainer.recipe.select_by.replace("_", " ")
        print(f"no better validation {selected} for {patience} epochs: stopped early", flush=True)


def warn_if_nothing_is_learnt(why: str) -> None:
    """Print a warning if there is a reason, as tasks.Task.warn gives it."""
    if why:
        print(
            f"warning: {why}: nothing is learnt; {paths.PARAMS}: try another lr of the optimizer",
            flush=True,
        )
