"""Train the chosen network, and keep the weights of the epoch that is best on validation. Never reads the test set."""

import time
from functools import partial

import pandas as pd
import torch
from torch import nn

from stages.common import errors, files, params, paths, record
from stages.common.errors import UserError
from stages.dataset import data_card, packed
from stages.network import device, machine, model_file, models
from stages.network.losses import LOSSES, OUTPUTS
from stages.train import checkpoint, shards
from stages.train import options as train_params
from stages.train.augmentation import AUGMENTATIONS
from stages.train.batches import EpochBatches, Fetcher, PackedImages, ending_workers, loader
from stages.train.checkpoint import Checkpoints
from stages.train.loop import best_epoch, fit
from stages.train.optimizers import OPTIMIZERS, numbers_a_weight
from stages.train.schedules import SCHEDULES
from stages.train.seeds import WEIGHTS, seed_for
from stages.train.stopping import told_to_stop

# What changes no bit of the result, so that a killed run may be resumed with another. Which device it is counts itself.
ONLY_SPEED = {"device", "threads", "num_workers", "log_every_steps", "checkpoint_every_seconds"}


@device.enough_memory("a smaller train.batch_size, a smaller network (models), or fewer train.shards or train.threads")
def main() -> None:
    """data/processed (train, validation) -> data/model, metrics/train.json, metrics/plots/training.csv."""
    start = time.perf_counter()
    values = params.load(paths.PARAMS)
    chosen = train_params.read(values)
    options, seed = chosen.train, chosen.train.seed

    # Whatever can be known to fail is told before the first step: first what this machine cannot do, evaluate included.
    target = device.set_up(options.device, options.threads, options.numerics, "train.device")
    device.check_precision(options.precision, target.type, device.has_bfloat16(target))
    device.check_section(values.get("evaluate"), "evaluate")
    free = device.free_bytes(target, "train.device")

    card = data_card.read(paths.DATA_CARD)
    build = partial(
        models.build, chosen.model, chosen.model_options, card.shape, len(card.classes), card.mean, card.std
    )
    try:
        with torch.device("meta"):  # takes no memory
            outline = build()
    except ValueError as error:
        raise UserError(f"{paths.PARAMS}: models.{chosen.model}: {error}") from None
    validation = packed.read(paths.VALIDATION, card.shape, len(card.classes))
    validation_images, validation_labels = map(torch.from_numpy, validation)
    if options.early_stopping_patience_epochs and not len(validation_labels):
        raise UserError(
            f"{paths.PARAMS}: train.early_stopping_patience_epochs is {options.early_stopping_patience_epochs}, and "
            "there is no validation part to stop on; allowed: 0, or a preprocess.validation_fraction above 0"
        )
    images, labels = map(torch.from_numpy, packed.read(paths.TRAIN, card.shape, len(card.classes)))
    if not len(labels):
        raise UserError(f"{paths.TRAIN}: no images to train on; set a smaller preprocess.validation_fraction")
    sampler = EpochBatches(len(labels), options.batch_size, options.shuffle, seed)
    sizes = [shards.sizes(size, options.shards, options.batch_size) for size in sampler.batch_sizes()]
    check_smallest_shard(outline, card.shape, min(map(min, sizes)), options.batch_size, chosen.model)
    copies = 1 + max(map(len, sizes)) + numbers_a_weight(options.optimizer, chosen.optimizer_options)
    where, room = ("the GPU", free) if free is not None else ("this machine", machine.memory_bytes())
    check_memory(models.parameter_count(outline), copies, room, where, chosen.model)
    resident = device.keep_on_device(images.nbytes, free, options.num_workers)
    if resident:
        images, labels = images.to(target), labels.to(target)
        validation_images = validation_images.to(target)
    pin_memory = target.type == "cuda" and not resident  # pinned memory is what non_blocking copies need
    steps = options.epochs * len(sampler)

    decisive = chosen._asdict() | {"train": chosen.train.model_dump(exclude=ONLY_SPEED)}
    inputs = [paths.TRAIN, paths.VALIDATION, paths.DATA_CARD]
    run = checkpoint.key("train", decisive, inputs, device.place(target))
    checkpoints = Checkpoints(run, options.checkpoint_every_seconds)

    torch.manual_seed(seed_for(seed, WEIGHTS))
    model = build().to(target)
    optimizer = OPTIMIZERS[options.optimizer](model.parameters(), **chosen.optimizer_options)
    loop = time.perf_counter()
    with (
        told_to_stop() as stop,
        ending_workers(options.num_workers),
        device.in_parallel(target, options.threads) as parallel,
    ):
        weights, history = fit(
            model,
            Fetcher(loader(PackedImages(images, labels), sampler, options.num_workers, pin_memory), stop),
            sampler,
            (validation_images, validation_labels),
            objective=partial(LOSSES[options.loss], smoothing=options.label_smoothing),
            output=OUTPUTS[options.loss],
            optimizer=optimizer,
            lr_factor=SCHEDULES[options.schedule](steps, **chosen.schedule_options),
            augment=partial(AUGMENTATIONS[options.augmentation], **chosen.augmentation_options),
            precision=options.precision,
            epochs=options.epochs,
            patience_epochs=options.early_stopping_patience_epochs,
            seed=seed,
            shard_count=options.shards,
            parallel=parallel,
            log_every_steps=options.log_every_steps,
            checkpoints=checkpoints,
            stop=stop,
        )
    loop_seconds = round(time.perf_counter() - loop, 3)

    model.load_state_dict(weights)
    spec = model_file.Spec(
        format=1,
        model=chosen.model,
        options=chosen.model_options,
        image_shape=card.image_shape,
        classes=card.classes,
        output=OUTPUTS[options.loss],
    )
    model_file.write(paths.MODEL, model, spec)
    curves = pd.DataFrame(history)
    files.write_text(paths.TRAINING_CURVES, curves.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    kept = history[best_epoch(history) - 1]
    measured = {key: value for key, value in kept.items() if key not in ("epoch", "lr")}
    metrics = {"best_epoch": kept["epoch"], "epochs_run": len(history), "parameters": models.parameter_count(model)}
    files.write_json(paths.TRAIN_METRICS, {**metrics, **measured})
    checkpoints.delete()
    print(f"best epoch {kept['epoch']} of {len(history)}, kept in {paths.MODEL}")
    outputs = (paths.MODEL, paths.TRAIN_METRICS, paths.TRAINING_CURVES)
    record.environment("train", str(target), torch.backends.cpu.get_cpu_capability(), outputs)
    seconds = round(time.perf_counter() - start, 3)
    record.write("train", {"seconds": seconds, "loop_seconds": loop_seconds})


def check_smallest_shard(outline: nn.Module, shape: models.Shape, images: int, batch: int, name: str) -> None:
    """Raise UserError if the network cannot learn from the shard of a step with the fewest images.

    outline: the network, on the meta device. Batch norm needs two values a channel.
    """
    try:
        outline.train()(torch.empty((images, *shape), dtype=torch.uint8, device="meta"))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"{paths.PARAMS}: train.batch_size is {batch}, and in a step of {images} image{'s' * (images > 1)} batch "
            f"norm gets one value per channel, where it needs two: set a larger train.batch_size, or a models.{name} "
            "with less pooling"
        ) from None


def check_memory(weights: int, copies: int, free: int | None, where: str, name: str) -> None:
    """Raise UserError if a network of so many weights cannot be trained in `free` bytes, whatever the batch is.

    copies: of each weight, float32: itself, its gradient in each shard, and what the optimizer keeps of it. free: None
    if it is not known.
    """
    needed = 4 * weights * copies
    if free is not None and needed > free:
        raise UserError(
            f"{paths.PARAMS}: models.{name} has {weights:,} weights, and training them takes at least "
            f"{machine.gigabytes(needed)} ({copies} numbers per weight, by train.shards and train.optimizer); {where} "
            f"has {machine.gigabytes(free)} free: set a smaller models.{name}, or fewer train.shards"
        )


if __name__ == "__main__":
    errors.run(main, memory="train.batch_size, train.num_workers, train.shards, models")
