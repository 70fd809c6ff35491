"""An exported network, run by onnxruntime. Nothing here imports torch or DVC."""

import hashlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from export.paths import RECORD
from stages.common.errors import UserError
from stages.common.params import Section
from stages.common.preparation import Preparation

KEY = "description"  # of the file's metadata
INPUT, OUTPUT = "images", "log_probabilities"
# Images computed at once, and values in them, at most: the last bits of a result depend on both.
PART, PART_VALUES = 256, 2**24

Pixels = npt.NDArray[np.uint8]
Logs = npt.NDArray[np.float32]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # SHA-256


class Description(Section):
    """What an ONNX file says of its network: how to prepare pictures for it, and what its outputs mean."""

    format: Literal[1]
    classes: list[str] = Field(min_length=2, max_length=65536)
    image_shape: list[Annotated[int, Field(ge=1, le=65536)]] = Field(min_length=3, max_length=3)  # (C, H, W)
    training_mean: float  # of the training pixels, of 0 … 1
    preparation: Preparation | None = None  # None: a published data set
    model_sha256: Digest  # of the model file that it was exported from


class Record(Section):
    """metrics/export.json: which file was exported, and how it compares with the original on the test set."""

    sha256: Digest  # of the ONNX file
    model_sha256: Digest  # of the model file
    images: int
    changed_predictions: int
    log_probability_difference_below: float  # a power of ten: the exact one depends on the processor


class Network:
    """An exported network, on the CPU."""

    def __init__(self, content: bytes) -> None:
        """content: what `read` gave; anything else may be forged."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Another number of threads would end in other last bits; `log_probabilities` runs several parts at once.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.description = Description.model_validate_json(self.session.get_modelmeta().custom_metadata_map[KEY])

    def log_probabilities(
        self, images: Any, parallel: Callable[..., Iterable[Any]] = map, part_size: int | None = None
    ) -> Logs:
        """Log-probabilities float32 (N, K) of images uint8 (N, C, H, W): an array, or a split on the disk.

        A row depends on its image alone: parts are of one size, and the last is filled up with black images. parallel:
        as `map`; it may run several parts at once. part_size: None for PART (large images: fewer).
        """
        shape = self.description.image_shape
        size = part_size or max(min(PART, PART_VALUES // math.prod(shape)), 1)

        def rows(start: int) -> Logs:
            part = np.asarray(images[start : start + size])
            whole = np.zeros((size, *shape), dtype=np.uint8)
            whole[: len(part)] = part
            found: Logs = self.session.run([OUTPUT], {INPUT: whole})[0][: len(part)]
            return found

        return np.concatenate(list(parallel(rows, range(0, len(images), size))))


def read(content: bytes, name: str, record: bytes | None) -> bytes:
    """The content of an ONNX file, if it is the one that `make export` wrote.

    An ONNX file can name other files of this machine, which the runtime would read. So only those are run whose SHA-256
    is on record: in metrics/export.json, which Git keeps. name: of the file, for messages. record: the content of
    metrics/export.json, None if there is none. Raises UserError.
    """
    if record is None:
        raise UserError(f"{name}: {RECORD} does not exist, so it may be any file; `make export` writes both")
    try:
        known = Record.model_validate_json(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{RECORD}: {place}: {first['msg']}; `make export` writes it again") from None
    if hashlib.sha256(content).hexdigest() != known.sha256:
        raise UserError(f"{name}: not the file that {RECORD} records, by its SHA-256; `make export` writes both")
    return content


def read_file(path: Path) -> bytes:
    """As `read`, of a file, with the record of the work tree. Raises UserError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `make export` writes it") from None
    return read(content, str(path), RECORD.read_bytes() if RECORD.is_file() else None)
