"""The training loop: epochs, steps, log, checkpoints and the end."""

import sys
import time
from collections.abc import Callable

from torch import Tensor
from tqdm import tqdm

from stages.common import paths
from stages.common.errors import Interrupted
from stages.common.text import counted
from stages.network.inference import Images
from stages.train import tasks
from stages.train.batches import Batches
from stages.train.checkpoint import Checkpoints
from stages.train.trainer import Row, Trainer

WARN_AFTER_EPOCHS = 3  # if the network is no better than chance by then
FEW_STEPS = 15  # too few to learn anything, whatever the learning rate


def fit(
    trainer: Trainer,
    batches: Batches,
    validation: tuple[Images, Tensor],
    checkpoints: Checkpoints,
    log_every_steps: int,
    stop: Callable[[], int | None],
    on_epoch: Callable[[list[Row]], None],
) -> None:
    """Train until the trainer has finished. A run that was stopped or killed resumes from its last checkpoint.

    validation: images and labels; they may be empty. stop: returns the number of the signal that asks for a stop, or
    None. on_epoch: called with the trainer's history after each epoch.
    Raises UserError if the loss is not finite; Interrupted, after writing a checkpoint, if a signal asked for a stop;
    LostProcessError if another process of the trainer's group is lost.
    """
    task = tasks.for_output(trainer.recipe.output)
    epochs, steps = trainer.recipe.epochs, len(batches)
    show_bar = trainer.group.is_head and sys.stderr.isatty()
    if state := checkpoints.load():
        trainer.load_state_dict(state)
        print(f"resuming after step {len(trainer.losses)}/{steps} of epoch {trainer.epoch}", flush=True)
    while not trainer.finished:
        name = f"epoch {trainer.epoch}/{epochs}"
        done = len(trainer.losses)  # steps of this epoch before the run was resumed
        start, images_before = time.perf_counter(), sum(trainer.batch_sizes)
        epoch_batches, signum = batches.iterate(trainer.epoch, skip=done), None
        bar = tqdm(epoch_batches, name, steps, leave=False, unit="step", disable=not show_bar, initial=done)
        for step, (images, labels) in enumerate(bar, start=done + 1):
            signum = trainer.step(images, labels, batches.images_in(step), stop())
            if step % log_every_steps == 0 or step == steps:
                loss = trainer.last_loss()  # waits for a GPU
                speed = (sum(trainer.batch_sizes) - images_before) / (time.perf_counter() - start)
                line = f"loss {loss:.4f} {speed:,.0f} images/s"
                bar.set_postfix_str(line)
                if not show_bar and step < steps:  # the line of the epoch follows the last step
                    print(f"{name} step {step}/{steps} {line}", flush=True)
            if signum:
                break
            if checkpoints.due():
                checkpoints.save(trainer.state_dict())
        # The signal came in the last step, or during the wait for a batch. Other processes learn of it in a step only.
        if signum := signum or (stop() if trainer.group.size == 1 or len(trainer.losses) < steps else None):
            checkpoints.save(trainer.state_dict())
            raise Interrupted(signum, f"`dvc repro` resumes after step {len(trainer.losses)} of epoch {trainer.epoch}")
        speed = (sum(trainer.batch_sizes) - images_before) / (time.perf_counter() - start)
        row = trainer.end_epoch(*validation)
        line = f"{name} loss {row['train_loss']:.4f}"
        if "validation_loss" in row:
            line += f" {task.describe(row)}"
        on_epoch(trainer.history)
        print(f"{line} {speed:,.0f} images/s", flush=True)
        if "validation_loss" in row and row["epoch"] == min(WARN_AFTER_EPOCHS, epochs):
            warn_if_at_chance(task.explain_chance(trainer.history, validation[1]), steps * len(trainer.history))
    if trainer.out_of_patience:
        patience = trainer.recipe.patience_epochs
        selected = trainer.recipe.select_by.replace("_", " ")
        print(f"no better validation {selected} for {patience} epochs: stopped early", flush=True)


def warn_if_at_chance(reason: str, steps: int) -> None:
    """Print a warning if there is a reason, which `Task.explain_chance` gives. steps: of the run so far."""
    if reason:
        advice = "another lr of the optimizer"
        if steps < FEW_STEPS:
            advice = f"a smaller train.batch_size, or more train.epochs: so far, {counted(steps, 'step')}"
        print(f"warning: {reason}: nothing is learnt; {paths.PARAMS}: try {advice}", flush=True)
