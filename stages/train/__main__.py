"""Train the chosen network, and keep the weights of the epoch that is best on validation. Never reads the test set."""

import os
import time
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stages.common import errors, files, inputs, machine_settings, params, paths, record, resume
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
from stages.train.batches import Batches, PackedImages, ending_workers, load_into_memory
from stages.train.checkpoint import Checkpoints
from stages.train.live import Live, curves, metrics
from stages.train.loop import fit
from stages.train.optimizers import OPTIMIZERS
from stages.train.options import Config
from stages.train.recipe import Recipe
from stages.train.seeds import WEIGHTS, seed_for
from stages.train.stopping import StopSignal, handle_stop_signals
from stages.train.trainer import Row, Trainer, best_epoch

NOT_IN_RUN_KEY = {"device"}  # of section `train`: the key has the device itself, however it was chosen


class Data(NamedTuple):
    """The packed images to train and to validate on."""

    card: DataCard
    training: Split
    validation: Split
    class_counts: list[int]  # training images of each class; empty for regression


def main() -> int | None:
    """data/processed, data/pretrained -> data/model, metrics/train.json, metrics/plots/training.csv."""
    inputs.remember()
    values = params.load(paths.PARAMS)
    config, machine = options.read(values), machine_settings.read(values)
    if processes.is_worker():
        with launch.as_worker(), ExitStack() as claim:
            run(config, machine, values.get("evaluate"), claim)
        return None
    device.one_process(os.environ)
    if machine.processes > 1 or os.environ.get(NODES):
        return launch.run(config, machine)
    with ExitStack() as claim:
        return run(config, machine, values.get("evaluate"), claim)


@device.enough_memory(
    "a smaller train.batch_size, a smaller network (models), or fewer train.shards, machine.processes or .threads"
)
def run(config: Config, machine: Machine, evaluate: object, claim: ExitStack) -> None:
    """Train, as the only process or as one of a group, whose head writes the results.

    evaluate: section of params.yaml. claim: holds the folder of the checkpoints until after the last write.
    """
    start, train = time.perf_counter(), config.train
    local_rank, local_size = processes.local()
    threads = device.threads_of(machine.threads, local_size, cores())
    target = device.set_up(train.device, threads, train.numerics, "train.device", local_rank, local_size)
    checks.check_machine(train, evaluate, target)

    data = open_data(config)
    weights = fine_tuning.read_weights(config)
    free = device.free_bytes(target, "train.device")
    model = build_model(config, data, weights, free, local_size)
    parameters = fine_tuning.fine_tune(model, weights, config, data.card.classes)
    model.to(target)
    optimizer = OPTIMIZERS[train.optimizer](parameters, **config.optimizer_options)
    on_device = device.keep_on_device(data.training.nbytes + data.validation.nbytes, free, machine.num_workers)
    images, validation_images = (
        load_into_memory(split, target) if on_device else split for split in (data.training, data.validation)
    )
    targets, validation_targets = (targets_of(split, data.card) for split in (data.training, data.validation))
    live = Live(models.parameter_count(model), train.epochs, train.select_by)
    with (
        processes.process_group(target, machine.timeout_seconds) as group,
        handle_stop_signals() as stop,
        ending_workers(machine.num_workers),
        device.in_parallel(target, threads) as parallel,
    ):
        loop_start = time.perf_counter()
        key = run_key(config, target, weights)
        inputs.check()  # before the key of edited code names checkpoints of this code
        folder = claim.enter_context(resume.claimed(key)) if group.is_head else None
        checkpoints = Checkpoints(key, machine.checkpoint_every_seconds, group, folder)
        stop = stop if group.is_head else StopSignal()  # the head tells the other processes to stop
        batches = Batches(
            PackedImages(images, targets.to(target) if on_device else targets),
            batch_size=train.batch_size,
            shuffle=train.shuffle,
            seed=train.seed,
            num_workers=machine.num_workers,
            pin_memory=target.type == "cuda" and not on_device,  # non_blocking copies need it
            stop=stop,
            shards=train.shards,
            group=group,
        )
        recipe = Recipe.of(config, train.epochs * len(batches), data.class_counts)
        trainer = Trainer(model, optimizer, recipe, parallel, group)
        on_epoch = live if group.is_head else lambda history: None
        validation = validation_images, validation_targets
        fit(trainer, batches, validation, checkpoints, machine.log_every_steps, stop, on_epoch)
        if not group.is_head:
            return
        models.load_weights(model, trainer.best_weights)
        fitted = temperature.fit(model, *validation, recipe.output, target, parallel) if data.card.classes else None
        loop_seconds = round(time.perf_counter() - loop_start, 3)

    inputs.check("; with the old content, training resumes from its last checkpoint")
    write(model, fitted, trainer.history, config, data.card)
    live.end()
    checkpoints.delete()
    best = best_epoch(trainer.history, train.select_by)
    print(f"best epoch {best} of {len(trainer.history)}, kept in {paths.MODEL}")
    outputs = (paths.MODEL, paths.TRAIN_METRICS, paths.TRAINING_CURVES)
    record.environment("train", target.type, torch.backends.cpu.get_cpu_capability(), outputs)
    seconds = round(time.perf_counter() - start, 3)
    record.write("train", {"seconds": seconds, "loop_seconds": loop_seconds})


def open_data(config: Config) -> Data:
    """The data set, whose images are read later. Raises UserError if it does not fit the parameters."""
    card = data_card.read(paths.DATA_CARD)
    checks.check_task(config.train, card)
    training, validation = (
        packed.open_split(folder, card.shape, len(card.classes)) for folder in (paths.TRAIN, paths.VALIDATION)
    )
    class_counts = np.bincount(training.labels, minlength=len(card.classes)).tolist() if card.classes else []
    checks.check_data(config.train, class_counts, len(validation), card)
    checks.check_augmentation(config.augmentation_options, card.shape[0])
    return Data(card, training, validation, class_counts)


def build_model(
    config: Config, data: Data, weights: Weights | None, free: int | None, local_size: int
) -> nn.Sequential:
    """The network with new weights, on the CPU. Raises UserError if it does not fit the images or the memory.

    weights: pretrained; they may state the normalization. free: bytes on the GPU. local_size: processes here.
    """
    card = data.card
    mean, std = fine_tuning.normalization(card, weights)
    build = partial(models.build, config.model, config.model_options, card.shape, len(card.classes) or 1, mean, std)
    checks.check_network(build, config, card, len(data.training), free, local_size)
    torch.manual_seed(seed_for(config.train.seed, WEIGHTS))
    return build()


def targets_of(split: Split, card: DataCard) -> Tensor:
    """What the network learns: the classes, int64 (N,), or for regression the scaled labels, float32 (N,)."""
    if card.values is None:
        return torch.from_numpy(split.labels)
    return torch.from_numpy(((split.labels - card.values.mean) / card.values.std).astype(np.float32))


def run_key(config: Config, target: torch.device, weights: Weights | None) -> str:
    """The digest of everything that decides the result: a run resumes only from checkpoints with the same key."""
    values = config._asdict() | {"train": config.train.model_dump(exclude=NOT_IN_RUN_KEY)}
    indexes = (paths.TRAIN / packed.INDEX, paths.VALIDATION / packed.INDEX)  # they contain a digest of each shard
    data = [*indexes, paths.DATA_CARD, *([paths.PRETRAINED] if weights else [])]
    return checkpoint.key("train", values, data, device.place(target))


def write(model: nn.Sequential, fitted: float | None, history: list[Row], config: Config, card: DataCard) -> None:
    """Write the model, its metrics and the curves of the run. fitted: the temperature; None for regression."""
    spec = model_file.Spec(
        format=model_file.FORMAT,
        model=config.model,
        options=config.model_options,
        image_shape=card.image_shape,
        classes=card.classes,
        output="value" if card.values else OUTPUTS[config.train.loss],
        preparation=card.preparation,
    )
    scale = (card.values.mean, card.values.std) if card.values else (0.0, 1.0)
    model_file.write(paths.MODEL, model, spec, fitted or 1.0, scale)
    files.write_text(paths.TRAINING_CURVES, curves(history))
    measured = metrics(history, models.parameter_count(model), config.train.select_by)
    files.write_json(paths.TRAIN_METRICS, {**measured, **({"temperature": fitted} if fitted is not None else {})})


if __name__ == "__main__":
    errors.run(
        main, alone=not processes.is_worker(), memory="train.batch_size, machine.num_workers, train.shards, models"
    )
