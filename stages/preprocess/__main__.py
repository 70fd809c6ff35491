"""Decode the published files or your own pictures, check them, divide them into parts, and pack each part.

Needs neither torch nor torchvision.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.common import errors, files, inputs, machine, machine_settings, params, paths, record
from stages.common.errors import UserError
from stages.dataset import data_card, idx, packed
from stages.dataset.data_card import DataCard
from stages.dataset.folder import Part
from stages.dataset.options import DataName
from stages.dataset.packed import Images, Labels, Split
from stages.dataset.registry import DATA_SETS, DataSet
from stages.preprocess import own, values
from stages.preprocess.machines import listening
from stages.preprocess.normalization import NORMALIZATIONS, sums
from stages.preprocess.options import Preprocess
from stages.preprocess.split import stratified


def main() -> None:
    """data/raw or data.images -> data/processed, metrics/data.json."""
    inputs.remember()
    start = time.perf_counter()
    parameters = params.load(paths.PARAMS)
    data = params.section(parameters, "data", DataName)
    options = params.section(parameters, "preprocess", Preprocess)

    targets: dict[Part, Path] = {"train": paths.TRAIN, "validation": paths.VALIDATION, "test": paths.TEST}
    audit: dict[str, Any] = {}
    settings = machine_settings.read(parameters)
    with (
        own.resume_folder(Path(data.images), options) as work,
        listening(os.environ, data, options, settings) as machines,
    ):
        if data.name == "images":
            processes = settings.threads or machine.cores()
            root = Path(data.images)
            card, splits, audit["audit"] = own.prepare(root, data.task, options, targets, processes, work, machines)
        else:
            card, splits = published(DATA_SETS[data.name], options, targets)
        data_card.write(paths.DATA_CARD, card)
        labels = {part: split.labels for part, split in splits.items()}
        files.write_json(
            paths.DATA_METRICS,
            {
                "images": {part: len(part_labels) for part, part_labels in labels.items()},
                "mean": card.mean,
                "std": card.std,
                **(values.summary(labels) if card.values else by_class(labels, card.classes)),
                **audit,
            },
            significant=card.values is not None,
        )
        inputs.check()
    sizes = ", ".join(f"{len(part_labels):,} {part}" for part, part_labels in labels.items())
    print(f"{sizes} images of {' x '.join(map(str, card.shape))}; mean {card.mean}, std {card.std}")
    record.write("preprocess", {"seconds": round(time.perf_counter() - start, 3)})


def by_class(labels: Mapping[Part, Labels], classes: Sequence[str]) -> dict[str, Any]:
    """Images per class and part, as a list: DVC's tables leave lists out, so `dvc metrics diff` stays short."""
    counts = {part: np.bincount(part_labels, minlength=len(classes)) for part, part_labels in labels.items()}
    return {
        "classes": [
            {"class": name, **{part: int(count[label]) for part, count in counts.items()}}
            for label, name in enumerate(classes)
        ]
    }


def published(
    data_set: DataSet, options: Preprocess, targets: Mapping[Part, Path]
) -> tuple[DataCard, Mapping[Part, Split]]:
    """Decode, split and pack a published data set. Raises UserError."""
    images, labels = decode(data_set, "train", data_set.train_images)
    test_images, test_labels = decode(data_set, "t10k", data_set.test_images)
    training, validation = stratified(labels, options.validation_fraction, options.seed)
    if not len(training):
        raise UserError(
            f"{paths.PARAMS}: preprocess.validation_fraction is {options.validation_fraction}, which leaves no image "
            "for training; set a smaller one"
        )
    mean, std = NORMALIZATIONS[options.normalization](sums(images[training]))
    packed.write(targets["train"], images[training], labels[training])
    packed.write(targets["validation"], images[validation], labels[validation])
    packed.write(targets["test"], test_images, test_labels)
    card = DataCard(
        classes=list(data_set.classes),
        image_shape=list(data_set.image_shape),
        mean=mean,
        std=std,
        normalization="weights" if options.normalization == "weights" else None,
    )
    return card, {part: packed.open_split(path, card.shape, len(card.classes)) for part, path in targets.items()}


def decode(data_set: DataSet, prefix: str, count: int) -> tuple[Images, Labels]:
    """Read a part of the published files: images uint8 (N, C, H, W), labels int64 (N,), both checked.

    prefix: "train" or "t10k". count: the expected number of images. Raises UserError naming the file.
    """
    pixels, labels = read_idx(f"{prefix}-images-idx3-ubyte"), read_idx(f"{prefix}-labels-idx1-ubyte")
    _, height, width = data_set.image_shape
    if pixels.shape != (count, height, width):
        raise UserError(f"{paths.RAW}: {prefix} images are {pixels.shape}; expected {(count, height, width)}")
    if labels.shape != (count,):
        raise UserError(f"{paths.RAW}: {prefix} labels are {labels.shape}; expected {(count,)}, one per image")
    classes = len(data_set.classes)
    if labels.max() >= classes:
        where = int(np.flatnonzero(labels >= classes)[0])
        raise UserError(f"{paths.RAW}: {prefix} label {where} is {labels[where]}; expected 0 to {classes - 1}")
    return pixels.reshape(count, *data_set.image_shape), labels.astype(np.int64)


def read_idx(name: str) -> npt.NDArray[np.uint8]:
    """Read one file of data/raw. Raises UserError naming it."""
    path = paths.RAW / name
    try:
        return idx.decode(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` fetches it") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}; `dvc repro --force download` fetches it again") from None


if __name__ == "__main__":
    errors.run(main, memory="data.name")
