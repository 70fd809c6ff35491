"""Checks before the first step of training. Each raises a UserError that says what to set instead."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from stages.common import machine, paths
from stages.common.errors import UserError, one_line
from stages.common.text import counted, listed
from stages.dataset.data_card import DataCard
from stages.network import device, models, pretrained
from stages.train import shards
from stages.train.batches import EpochBatches
from stages.train.optimizers import state_per_weight
from stages.train.options import Config, Train, misfits


def check_machine(train: Train, evaluate: object, target: torch.device) -> None:
    """Raise UserError if this machine lacks the precision or device of training or evaluation.

    evaluate: section of params.yaml; that stage runs only after training. Call it after `device.set_up`.
    """
    device.check_precision(train.precision, target.type, device.has_bfloat16(target))
    device.check_section(evaluate, "evaluate")


def check_task(train: Train, card: DataCard) -> None:
    """Raise UserError if options do not suit the task, classification or regression."""
    if lines := misfits(train, regression=card.values is not None):
        raise UserError("\n".join(f"{paths.PARAMS}: {line}" for line in lines))


def check_data(train: Train, training: Sequence[int], validation: int, card: DataCard) -> None:
    """Raise UserError if there are too few images. training: images of each class; empty for regression."""
    if train.early_stopping_patience_epochs and not validation:
        raise UserError(
            f"{paths.PARAMS}: train.early_stopping_patience_epochs is {train.early_stopping_patience_epochs}, and "
            "there is no validation part to stop on; allowed: 0, or a preprocess.validation_fraction above 0"
        )
    if card.classes and not sum(training):
        raise UserError(f"{paths.TRAIN}: no images to train on; set a smaller preprocess.validation_fraction")
    empty = [name for name, images in zip(card.classes, training, strict=True) if not images]
    if empty and train.class_weights != "none":
        raise UserError(
            f"{paths.PARAMS}: train.class_weights is {train.class_weights}, and the training part has no image of "
            f"{listed(map(repr, empty), 3)}; allowed: none, or a smaller preprocess.validation_fraction"
        )


def check_augmentation(options: Mapping[str, Mapping[str, Any]], channels: int) -> None:
    """Raise UserError for an augmentation that does not suit the number of channels."""
    jitter = options.get("colour_jitter", {})
    for key in ("saturation", "hue"):
        if channels == 1 and jitter.get(key):
            raise UserError(
                f"{paths.PARAMS}: augmentations.colour_jitter.{key} is {jitter[key]}, and the images are grey; "
                "allowed: 0, or preprocess.channels: rgb"
            )
    if coloured := [
        name for name in ("colour_jitter", "trivial_augment") if name in options and channels not in (1, 3)
    ]:
        raise UserError(
            f"{paths.PARAMS}: train.augmentation has {coloured[0]}, which takes images of 1 or 3 channels; these have "
            f"{channels}"
        )


def check_network(
    build: Callable[[], nn.Sequential],
    config: Config,
    card: DataCard,
    images: int,
    free: int | None,
    processes: int = 1,
) -> None:
    """Raise UserError if the network does not fit the images, the batches or the memory, or if it cannot be frozen.

    images: of the training part. free: bytes on the GPU; None on a CPU. processes: that train on this machine.
    """
    train = config.train
    try:
        with torch.device("meta"):  # shapes only, no memory
            outline = build()
    except ValueError as error:
        raise UserError(f"{paths.PARAMS}: models.{config.model}: {error}") from None
    if config.model == "torchvision":  # building the others has checked it
        check_image_size(outline, card.shape, config.model_options["architecture"])
    if config.fine_tuning:  # frozen layers need neither gradients nor the statistics of a batch
        pretrained.freeze(outline, config.fine_tuning.freeze)
    batch_sizes = EpochBatches(images, train.batch_size, train.shuffle, train.seed).batch_sizes()
    sizes = [shards.sizes(size, train.shards, train.batch_size) for size in batch_sizes]
    check_smallest_shard(outline, card.shape, min(map(min, sizes)), train.batch_size, config.model)
    own_shards = max(map(len, sizes)) if processes == 1 else 1  # at least
    gradients = (own_shards - 1).bit_length() + 1  # at least, during the last shard: see tree.Sums
    copies = 1 + gradients + state_per_weight(train.optimizer, config.optimizer_options)
    where, available = ("the GPU", free) if free is not None else ("this machine", machine.memory_bytes())
    check_memory(outline, copies, processes if free is None else 1, available, where, config.model)


def check_image_size(outline: nn.Module, shape: models.Shape, architecture: str) -> None:
    """Raise UserError if the architecture cannot take images of this shape. outline: the network on the meta device."""
    try:
        outline.eval()(torch.empty((1, *shape), dtype=torch.uint8, device="meta"))
    except RuntimeError as error:
        raise UserError(
            f"{paths.PARAMS}: models.torchvision.architecture is {architecture}, for which images of {shape[1]} x "
            f"{shape[2]} pixels are too small ({one_line(error)}): set another architecture, or use larger images"
        ) from None


def check_smallest_shard(outline: nn.Module, shape: models.Shape, images: int, batch: int, name: str) -> None:
    """Raise UserError if the network cannot train on the smallest shard: batch norm needs two values per channel.

    outline: the network on the meta device. images: of that shard.
    """
    try:
        outline.train()(torch.empty((images, *shape), dtype=torch.uint8, device="meta"))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"{paths.PARAMS}: train.batch_size is {batch}, and in a step of {counted(images, 'image')} batch "
            f"norm gets one value per channel, where it needs two: set a larger train.batch_size, or a models.{name} "
            "with less pooling"
        ) from None


def check_memory(outline: nn.Module, copies: int, processes: int, free: int | None, where: str, name: str) -> None:
    """Raise UserError if training the network takes more than `free` bytes, even without any activations.

    outline: the network on the meta device. copies: float32 numbers per trained weight: the weight, its gradients in
    some shards, the optimizer's state; a frozen weight has one. processes: that need these bytes each. free: None if
    unknown.
    """
    weights, trained = sum(weight.numel() for weight in outline.parameters()), models.parameter_count(outline)
    needed = 4 * processes * (weights + trained * (copies - 1))
    if free is not None and needed > free:
        them = "them" if trained == weights else f"{trained:,} of them"
        raise UserError(
            f"{paths.PARAMS}: models.{name} has {weights:,} weights, and training {them} takes at least "
            f"{machine.gigabytes(needed)} ({copies * processes} numbers per trained weight, by train.shards and "
            f"train.optimizer); {where} has {machine.gigabytes(free)} free: set a smaller models.{name}, or fewer "
            "train.shards"
        )
