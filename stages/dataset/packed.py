"""A split of a data set: a folder of shards, safetensors files of bounded size, and an index that lists them.

A shard contains images, uint8 (N, C, H, W), and labels (N,): int64 classes, or float64 values for regression. Images
are read through memory maps, so a data set may be larger than the memory. uint8 has a quarter of the bytes of float32
to cache, push and move to a GPU. Reading safetensors runs no code. Throughout this repository, N is the number of
images, C of channels, H the height and W the width.
"""

import hashlib
import json
import math
import mmap
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open

from stages.common import files, machine
from stages.common.errors import UserError
from stages.common.params import Section

Images = npt.NDArray[np.uint8]  # (N, C, H, W)
Labels = npt.NDArray[Any]  # (N,): int64 classes, or float64 values for regression
Shape = tuple[int, int, int]  # (C, H, W)

SHARD_BYTES = 256_000_000  # of images in a shard, at most, except for a single larger image
INDEX = "index.json"
OPEN_FILES = 128  # for everything except shards
MADE_BY = "`dvc repro --force preprocess` makes it again"


class Row(Section):
    """A shard in the index."""

    images: Annotated[int, Field(ge=1)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Index(Section):
    """The shards of a split, in order."""

    shards: list[Row]


def shard_name(number: int) -> str:
    """The file name of a shard. Names sort like numbers."""
    return f"{number:05}.safetensors"


def shard_ends(digests: Iterable[bytes], image_bytes: int) -> list[int]:
    """Cut a split into shards: the position after the last image of each.

    digests: of the images' content, in the split's order. Whether a shard ends after an image depends on its digest
    (content-defined chunking, as in LBFS; Muthitacharoen et al. 2001). So added or removed images change only the
    shards around them. A shard has between a quarter of the largest size and that size; the median is half of it.
    """
    largest = max(SHARD_BYTES // image_bytes, 1)
    smallest = max(largest // 4, 1)
    ends, start, count = [], 0, 0
    for count, digest in enumerate(digests, start=1):
        size = count - start
        if size == largest or (size >= smallest and int.from_bytes(digest[:8]) % smallest == 0):
            ends.append(count)
            start = count
    return ends if start == count else [*ends, count]


def header(count: int, image_shape: Shape, labels: np.dtype[Any]) -> bytes:
    """The safetensors header of a shard; labels and images follow in this order.

    labels: their type, int64 or float64. The library's own writer would need the whole shard in memory, twice.
    """
    ends = [0, 8 * count, 8 * count + count * math.prod(image_shape)]
    tensors = {
        "labels": {"dtype": _name(labels), "shape": [count], "data_offsets": ends[:2]},
        "images": {"dtype": "U8", "shape": [count, *image_shape], "data_offsets": ends[1:]},
    }
    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def little_endian(labels: Labels) -> bytes:
    """The bytes of labels in a shard."""
    return labels.astype(labels.dtype.newbyteorder("<")).tobytes()


def _name(labels: np.dtype[Any]) -> str:
    """The name of a type of labels in safetensors."""
    return {"i": "I64", "f": "F64"}[labels.kind]


def write(folder: Path, images: Images, labels: Labels) -> None:
    """Write a split from memory, and replace an existing one. The same arrays give the same bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    digests = (hashlib.sha256(image).digest() for image in images)
    rows, start = [], 0
    for number, end in enumerate(shard_ends(digests, math.prod(images.shape[1:]))):
        channels, height, width = images.shape[1:]
        parts: list[bytes | memoryview] = [
            header(end - start, (channels, height, width), labels.dtype),
            little_endian(labels[start:end]),
            np.ascontiguousarray(images[start:end]).data,
        ]
        path = folder / shard_name(number)
        files.write_parts(path, parts)
        rows.append(row(path, end - start))
        start = end
    write_index(folder, rows)


def row(path: Path, images: int) -> Row:
    """The row of a complete shard."""
    with path.open("rb") as file:
        return Row(images=images, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def write_index(folder: Path, rows: Sequence[Row]) -> None:
    """Write the index, which completes a split."""
    files.write_text(folder / INDEX, json.dumps(Index(shards=list(rows)).model_dump(), indent=1) + "\n")


class Split:
    """The images and labels of a split. Images stay on disk, and are read through memory maps.

    labels: (N,), in memory: int64, or float64 for regression. nbytes: of all images. Pickling sends no image: the other
    process opens the files again.
    """

    def __init__(self, folder: Path, image_shape: Shape, classes: int) -> None:
        """See `open_split`."""
        self._arguments = (folder, image_shape, classes)
        self.image_shape = image_shape
        rows = _index(folder).shards
        machine.allow_open_files(len(rows) + OPEN_FILES)  # each memory map keeps its file open
        kind = np.dtype(np.int64 if classes else np.float64)
        opened = [_open(folder / shard_name(number), row, image_shape, kind) for number, row in enumerate(rows)]
        self.shards: list[Images] = [images for images, _ in opened]  # read-only
        self.labels: Labels = np.concatenate([np.zeros(0, kind), *(labels for _, labels in opened)])
        if not np.isfinite(self.labels).all():
            raise UserError(f"{folder}: not all labels are finite numbers; {MADE_BY}")
        if classes and len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() < classes):
            labels = f"labels range from {self.labels.min()} to {self.labels.max()}"
            raise UserError(f"{folder}: {labels}; expected 0 to {classes - 1}; {MADE_BY}")
        self._starts = np.cumsum([0, *(row.images for row in rows)])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return len(self) * math.prod(self.image_shape)

    def gather(self, positions: npt.ArrayLike) -> Images:
        """Copies of the images at n positions, in their order: uint8 (n, C, H, W). positions: 0 … N - 1."""
        mapped = self._mapped(positions)
        images = np.empty((len(mapped), *self.image_shape), dtype=np.uint8)
        for place, image in enumerate(mapped):
            images[place] = image
        return images

    def read_ahead(self, positions: npt.ArrayLike) -> None:
        """Read the images at these positions from the disk into the page cache, for a later `gather`."""
        for image in self._mapped(positions):
            flat = image.reshape(-1)
            flat[:: mmap.PAGESIZE].max()  # touching a byte reads its page
            flat[-1].max()  # which the steps may miss, since images begin anywhere in a page

    def _mapped(self, positions: npt.ArrayLike) -> list[Images]:
        """The images at these positions, each (C, H, W), still on disk."""
        where = np.asarray(positions, dtype=np.int64)
        shards = np.searchsorted(self._starts, where, side="right") - 1
        rows = where - self._starts[shards]
        return [self.shards[shard][row] for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)]

    def __getitem__(self, part: slice) -> Images:
        """Copies of the images of a slice: uint8 (n, C, H, W)."""
        return self.gather(np.arange(len(self))[part])

    def __reduce__(self) -> tuple[Any, ...]:
        return Split, self._arguments


def open_split(folder: Path, image_shape: Shape, classes: int) -> Split:
    """Open a split, and check its files against its index and the values of the data card.

    classes: their number; 0: regression, whose labels are float64.
    Raises UserError if the folder is not such a split: a shard is missing, truncated or not in the index; has another
    format, other names, types or shapes, or different numbers of images and labels; labels are outside
    0 … classes - 1, or not finite.
    """
    return Split(folder, image_shape, classes)


def _index(folder: Path) -> Index:
    """The index of a split. Raises UserError if it does not list the shards in the folder."""
    path = folder / INDEX
    try:
        index = Index.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; `dvc repro` makes it") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {place}: {first['msg']}; {MADE_BY}") from None
    listed = {shard_name(number) for number in range(len(index.shards))}
    there = {file.name for file in folder.glob("*.safetensors")}
    if listed != there:
        name = min(listed ^ there)
        what = f"no such file, but {INDEX} lists it" if name in listed else f"a shard that {INDEX} does not list"
        raise UserError(f"{folder / name}: {what}; {MADE_BY}")
    return index


def _open(path: Path, row: Row, image_shape: Shape, kind: np.dtype[Any]) -> tuple[Images, Labels]:
    """The images of a shard, as a memory map, and its labels, of type `kind`, in memory. Raises UserError."""
    try:
        with safe_open(path, framework="np") as file:  # checks the header, and the length of the file
            names = sorted(file.keys())
            if names != ["images", "labels"]:
                raise UserError(
                    f"{path}: contains {', '.join(names) or 'nothing'}; expected images and labels; {MADE_BY}"
                )
            labelled = ("labels", (_name(kind), [row.images]))
            for name, expected in (labelled, ("images", ("U8", [row.images, *image_shape]))):
                part = file.get_slice(name)
                actual = part.get_dtype(), part.get_shape()
                if actual != expected:
                    texts = [f"{dtype} {tuple(shape)}" for dtype, shape in (actual, expected)]
                    raise UserError(f"{path}: {name} are {texts[0]}; expected {texts[1]}; {MADE_BY}")
            labels: Labels = file.get_tensor("labels")
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: not a safetensors file ({error}); {MADE_BY}") from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        begin = 8 + length + json.loads(file.read(length))["images"]["data_offsets"][0]
        images = np.memmap(file, np.uint8, "r", begin, (row.images, *image_shape))
    return images.view(np.ndarray), labels
