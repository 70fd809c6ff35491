"""Prepare your own pictures: from a folder of files to the shards of each part."""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from stages.common import paths, resume
from stages.common.errors import UserError
from stages.common.preparation import Preparation
from stages.common.text import shown
from stages.dataset import folder, packed
from stages.dataset.data_card import DataCard
from stages.dataset.folder import Part, Picture, Reader
from stages.dataset.options import Task
from stages.dataset.packed import Split
from stages.preprocess import audit, pack, selection, survey, values
from stages.preprocess.machines import Machines
from stages.preprocess.normalization import NORMALIZATIONS
from stages.preprocess.options import Preprocess
from stages.preprocess.selection import Selection

SHOWN = 1000  # pictures that a message names


@contextmanager
def resume_folder(root: Path, options: Preprocess) -> Iterator[Path]:
    """The folder with the state of a killed run. The state is deleted at the end of the block, but not after an error.

    It is runs/, where a run with other options reuses whatever is still valid. A temporary experiment may run at the
    same time as others, so it has a folder for its options in the repository that it belongs to.
    """
    if resume.in_experiment():
        inputs = f"{root.as_posix()} {options!r} {PIL.__version__}"
        key = f"preprocess-{hashlib.sha256(inputs.encode()).hexdigest()[:32]}"
        with resume.claimed(key) as folder:
            yield folder
            shutil.rmtree(folder, ignore_errors=True)
    else:
        yield paths.RUNS
        forget(paths.RUNS)


def prepare(
    root: Path,
    task: Task,
    options: Preprocess,
    targets: Mapping[Part, Path],
    processes: int,
    work: Path = paths.RUNS,
    machines: Machines | None = None,
) -> tuple[DataCard, Mapping[Part, Split], dict[str, Any]]:
    """Read the pictures below `root`, and write each part to its folder. Returns data card, parts and audit.

    work: the folder with the state of a killed run. machines: other machines that decode, too.
    Raises UserError if the options do not allow what is wrong with the pictures, and OSError (no permission, a full
    disk).
    """
    listing = folder.scan(root, task)
    print(f"{len(listing.pictures):,} pictures in {root}: {listing.layout}", flush=True)
    reader = Reader(root)
    surveyed = survey.survey(listing, reader, processes, work / survey.STATE.name)
    selected = selection.select(listing, surveyed, options)

    channels = options.channels
    if channels == "auto":
        channels = "grey" if survey.is_grey(surveyed) else "rgb"
    preparation = Preparation(
        channels=channels, image_size=options.image_size, resize=options.resize, background=options.background
    )
    contents = {
        targets[part]: (
            [listing.pictures[position].name for position in positions],
            [surveyed[position].digest for position in positions],
            labels([listing.pictures[position] for position in positions], selected, task),
        )
        for part, positions in selected.parts.items()
    }
    if selected.unusable and options.bad_images == "error":
        print(f"{len(selected.unusable):,} cannot be used; decoding the others to find all that cannot", flush=True)
    try:
        result = pack.pack(reader, preparation, contents, targets["train"], processes, work / pack.WORK.name, machines)
    except survey.ChangedError:
        survey.forget(work / survey.STATE.name)
        raise
    unusable = {listing.pictures[place].name: why for place, why in selected.unusable.items()} | result.unusable
    if unusable and options.bad_images == "error":
        raise UserError(f"{refusal(unusable)}\nremove these, or set preprocess.bad_images: skip")
    splits = {
        part: packed.open_split(place, preparation.shape, len(selected.classes)) for part, place in targets.items()
    }
    for part, split in splits.items():
        names, *_ = contents[targets[part]]
        if names and not len(split):
            raise UserError(
                f"no picture in the {part} part can be decoded, such as {shown(names[0])}: {unusable[names[0]]}; add "
                "pictures, or set another preprocess.seed"
            )
        if task == "classification":
            check_classes(part, split, selected)
        else:
            values.check(part, split.labels)

    mean, std = NORMALIZATIONS[options.normalization](result.sums)
    card = DataCard(
        classes=list(selected.classes),
        values=values.of_training(splits["train"].labels) if task == "regression" else None,
        image_shape=list(preparation.shape),
        mean=mean,
        std=std,
        normalization="weights" if options.normalization == "weights" else None,
        preparation=preparation,
    )
    seen = {part: result.fingerprints[target] for part, target in targets.items()}
    audited = audit.audit(listing, surveyed, selected, unusable, splits, seen)
    del surveyed, selected, contents  # as much memory as a second listing
    survey.check_unchanged(listing, folder.scan(root, task), reader, work / survey.STATE.name)
    return card, splits, audited


def forget(work: Path) -> None:
    """Delete the state from which a killed run would resume: after the stage has succeeded."""
    pack.forget(work / pack.WORK.name)
    survey.forget(work / survey.STATE.name)


def refusal(unusable: Mapping[str, str]) -> str:
    """The message about the pictures that cannot be used, with a line for each."""
    lines = [f"{shown(name)}: {unusable[name]}" for name in sorted(unusable)[:SHOWN]]
    more = [f"and {len(unusable) - SHOWN:,} more"] if len(unusable) > SHOWN else []
    return "\n".join([f"{len(unusable):,} pictures cannot be used:", *lines, *more])


def labels(pictures: Sequence[Picture], selected: Selection, task: Task) -> packed.Labels:
    """The labels of pictures, (N,): int64, positions in `selected.classes`; for regression float64."""
    if task == "regression":
        return np.array([picture.value for picture in pictures], dtype=np.float64)
    return np.array([selected.labels[picture.label] for picture in pictures], dtype=np.int64)


def check_classes(part: str, split: Split, selected: Selection) -> None:
    """Raise UserError if none of the pictures of a class in this part could be decoded."""
    counts = np.bincount(split.labels, minlength=len(selected.classes))
    if len(split) and not counts.all():
        name = selected.classes[int(np.flatnonzero(counts == 0)[0])]
        raise UserError(f"the class {shown(name)} has no usable picture in the {part} part; add pictures")
