"""Decode pictures, and write each to its place in a shard."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from stages.common import files
from stages.common.preparation import Preparation
from stages.dataset import pictures
from stages.dataset.folder import Reader
from stages.dataset.packed import Images
from stages.dataset.pictures import UnusablePictureError
from stages.preprocess import survey


@dataclass(frozen=True, slots=True)
class Task:
    """A picture, and the place of its pixels."""

    name: str
    digest: bytes  # SHA-256 of its content
    path: Path  # of the shard
    offset: int  # bytes


def decode(reader: Reader, preparation: Preparation, name: str, digest: bytes) -> Images:
    """The pixels of a picture, uint8 (C, H, W).

    Raises UnusablePictureError, ChangedError if its SHA-256 is not `digest`, and OSError.
    """
    try:
        content = reader.read(name)
    except UnusablePictureError:  # it was readable when its digest was taken
        raise survey.changed(name) from None
    if hashlib.sha256(content).digest() != digest:
        raise survey.changed(name)
    return pictures.decode(content, preparation)


def decode_into_shards(reader: Reader, preparation: Preparation, tasks: list[Task]) -> list[str]:
    """Write each picture to its place. Returns for each why it cannot be used; an empty text if it can.

    Raises ChangedError and OSError.
    """
    reasons = []
    for task in tasks:
        try:
            pixels = decode(reader, preparation, task.name, task.digest)
        except UnusablePictureError as error:
            reasons.append(error.reason)
            continue
        write(task, pixels.data)
        reasons.append("")
    return reasons


def write(task: Task, pixels: memoryview | bytes | bytearray) -> None:
    """Write the pixels of a picture to their place. Raises OSError, which names the shard."""
    with files.named_errors(task.path), task.path.open("rb+") as file:
        file.seek(task.offset)
        file.write(pixels)
