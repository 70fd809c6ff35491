"""Train the chosen network, and keep the weights of the epoch that is best on validation. Never reads the test set."""

import os
import time
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from stages.common import errors, files, machine_settings, params, paths, record, resume
from stages.common.head import NODES
from stages.common.machine import cores
from stages.common.machine_settings import Machine
from stages.dataset import data_card, packed
from stages.dataset.data_card import DataCard
from stages.dataset.packed import Split
from stages.network import device, model_file, models
from stages.network.losses import OUTPUTS
from stages.network.weights_file import Weights
from stages.train import checkpoint, checks, fine_tuning, launch, options, processes, temperature
from stages.train.batches import Batches, PackedImages, ending_workers, in_memory
from stages.train.checkpoint import Checkpoints
from stages.train.live import Live, curves, metrics
from stages.train.loop import fit
from stages.train.optimizers import OPTIMIZERS
from stages.train.options import Chosen
from stages.train.recipe import Recipe
from stages.train.seeds import WEIGHTS, seed_for
from stages.train.stopping import Stop, told_to_stop
from stages.train.trainer import Row, Trainer, best_epoch

ONLY_SPEED = {"device"}  # a killed run may be resumed with another value: the device itself counts, not who chose it


def main() -> int | None:
    """data/processed, data/pretrained -> data/model, metrics/train.json, metrics/plots/training.csv."""
    values = params.load(paths.PARAMS)
    chosen, machine = options.read(values), machine_settings.read(values)
    if processes.is_worker():
        with launch.as_worker(), ExitStack() as claim:
            run(chosen, machine, values.get("evaluate"), claim)
        return None
    device.one_process(os.environ)
    if machine.processes > 1 or os.environ.get(NODES):
        return launch.run(chosen, machine)
    with ExitStack() as claim:
        return run(chosen, machine, values.get("evaluate"), claim)


@device.enough_memory(
    "a smaller train.batch_size, a smaller network (models), or fewer train.shards, machine.processes or .threads"
)
def run(chosen: Chosen, machine: Machine, evaluate: object, claim: ExitStack) -> None:
    """Train, as the only process or as one of several, of which the first writes.

    evaluate: section of params.yaml. claim: closed after the last write; it holds what the run resumes from.
    """
    start = time.perf_counter()
    train = chosen.train
    local_rank, local_size = processes.local()
    threads = device.threads_of(machine.threads, local_size, cores())
    target = device.set_up(train.device, threads, train.numerics, "train.device", local_rank, local_size)
    checks.check_machine(train, evaluate, target)
    free = device.free_bytes(target, "train.device")

    card = data_card.read(paths.DATA_CARD)
    checks.check_task(train, card)
    weights = fine_tuning.read_weights(chosen)
    mean, std = fine_tuning.normalization(card, weights)
    build = partial(models.build, chosen.model, chosen.model_options, card.shape, len(card.classes) or 1, mean, std)
    training, validation = (
        packed.open_split(folder, card.shape, len(card.classes)) for folder in (paths.TRAIN, paths.VALIDATION)
    )
    by_class = np.bincount(training.labels, minlength=len(card.classes)).tolist() if card.classes else []
    checks.check_data(train, by_class, len(validation), card)
    checks.check_augmentation(chosen.augmentation_options, card.shape[0])
    checks.check_network(build, chosen, card, len(training), free, local_size)

    resident = device.keep_on_device(training.nbytes + validation.nbytes, free, machine.num_workers)
    images, validation_images = (in_memory(split, target) if resident else split for split in (training, validation))
    labels, validation_labels = (targets(split, card) for split in (training, validation))
    torch.manual_seed(seed_for(train.seed, WEIGHTS))
    model = build()
    parameters = fine_tuning.fine_tune(model, weights, chosen, card.classes)
    model.to(target)
    optimizer = OPTIMIZERS[train.optimizer](parameters, **chosen.optimizer_options)
    live = Live(models.parameter_count(model), train.epochs, train.select_by)
    with (
        processes.joined(target, machine.timeout_seconds) as group,
        told_to_stop() as stop,
        ending_workers(machine.num_workers),
        device.in_parallel(target, threads) as parallel,
    ):
        loop_start = time.perf_counter()
        key = run_key(chosen, target, weights)
        folder = claim.enter_context(resume.claimed(key)) if group.head else None
        checkpoints = Checkpoints(key, machine.checkpoint_every_seconds, group, folder)
        stop = stop if group.head else Stop()  # the others stop with the head, which tells them
        batches = Batches(
            PackedImages(images, labels.to(target) if resident else labels),
            batch_size=train.batch_size,
            shuffle=train.shuffle,
            seed=train.seed,
            num_workers=machine.num_workers,
            pin_memory=target.type == "cuda" and not resident,  # which non_blocking copies need
            stop=stop,
            parts=train.shards,
            group=group,
        )
        trainer = Trainer(model, optimizer, Recipe.of(chosen, train.epochs * len(batches), by_class), parallel, group)
        shown = live if group.head else lambda history: None
        fit(trainer, batches, (validation_images, validation_labels), checkpoints, machine.log_every_steps, stop, shown)
        if not group.head:
            return
        models.load_weights(model, trainer.best_weights)
        output = trainer.recipe.output
        fitted = None
        if card.classes:
            fitted = temperature.fit(model, validation_images, validation_labels, output, target, parallel)
        loop_seconds = round(time.perf_counter() - loop_start, 3)

    write(model, fitted, trainer.history, chosen, card)
    live.end()
    checkpoints.delete()
    best = best_epoch(trainer.history, train.select_by)
    print(f"best epoch {best} of {len(trainer.history)}, kept in {paths.MODEL}")
    outputs = (paths.MODEL, paths.TRAIN_METRICS, paths.TRAINING_CURVES)
    record.environment("train", target.type, torch.backends.cpu.get_cpu_capability(), outputs)
    seconds = round(time.perf_counter() - start, 3)
    record.write("train", {"seconds": seconds, "loop_seconds": loop_seconds})


def targets(split: Split, card: DataCard) -> Tensor:
    """What a network learns: the classes, int64 (N,), or for regression the scaled labels, float32 (N,)."""
    if card.values is None:
        return torch.from_numpy(split.labels)
    return torch.from_numpy(((split.labels - card.values.mean) / card.values.std).astype(np.float32))


def run_key(chosen: Chosen, target: torch.device, weights: Weights | None) -> str:
    """The digest of all that decides on the result: only a run of the same one is resumed."""
    decisive = chosen._asdict() | {"train": chosen.train.model_dump(exclude=ONLY_SPEED)}
    indexes = (paths.TRAIN / packed.INDEX, paths.VALIDATION / packed.INDEX)  # with a digest of each shard
    inputs = [*indexes, paths.DATA_CARD, *([paths.PRETRAINED] if weights else [])]
    return checkpoint.key("train", decisive, inputs, device.place(target))


def write(model: nn.Sequential, fitted: float | None, history: list[Row], chosen: Chosen, card: DataCard) -> None:
    """Write the model, its metrics and the curves of the run. fitted: the temperature; None: regression."""
    spec = model_file.Spec(
        format=model_file.FORMAT,
        model=chosen.model,
        options=chosen.model_options,
        image_shape=card.image_shape,
        classes=card.classes,
        output="value" if card.values else OUTPUTS[chosen.train.loss],
        preparation=card.preparation,
    )
    scale = (card.values.mean, card.values.std) if card.values else (0.0, 1.0)
    model_file.write(paths.MODEL, model, spec, fitted or 1.0, scale)
    files.write_text(paths.TRAINING_CURVES, curves(history))
    measured = metrics(history, models.parameter_count(model), chosen.train.select_by)
    files.write_json(paths.TRAIN_METRICS, {**measured, **({"temperature": fitted} if fitted is not None else {})})


if __name__ == "__main__":
    errors.run(
        main, alone=not processes.is_worker(), memory="train.batch_size, machine.num_workers, train.shards, models"
    )
