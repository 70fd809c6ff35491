"""Run an exported network with onnxruntime. Nothing here imports torch or DVC."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from export.paths import RECORD
from stages.common.errors import UserError
from stages.common.params import Section
from stages.common.preparation import Preparation

KEY = "description"  # in the metadata of the file
INPUT = "images"
EXTERNAL_FILES = "session.model_external_initializers_file_folder_path"
# Images per call, and values in them, at most. The last bits of a result depend on both.
PART, PART_VALUES = 256, 2**24

Outputs = npt.NDArray[np.float32]  # log-probabilities (N, K), or for regression values (N, 1)
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # SHA-256


class Description(Section):
    """How to prepare pictures for an ONNX file, and what its outputs mean."""

    format: Literal[1]
    classes: list[str] = Field(max_length=65536)  # two or more; empty for regression
    image_shape: list[Annotated[int, Field(ge=1, le=65536)]] = Field(min_length=3, max_length=3)  # (C, H, W)
    training_mean: float  # of the training pixels, 0 to 1
    preparation: Preparation | None = None  # None: a published data set
    model_sha256: Digest  # of the model file that was exported

    @model_validator(mode="after")
    def _more_than_one_class(self) -> Self:
        if len(self.classes) == 1:
            raise ValueError("a network has two or more classes, or none for regression")
        return self

    @property
    def output(self) -> str:
        """The name of the output in the file."""
        return "log_probabilities" if self.classes else "values"


class Record(Section):
    """metrics/export.json: which file was exported, and how its outputs on the test set differ from torch.

    The differences are powers of ten, since the exact ones depend on the processor.
    """

    sha256: Digest  # of the ONNX file
    model_sha256: Digest  # of the model file
    images: int
    changed_predictions: int | None = None  # of a classifier
    log_probability_difference_below: float | None = None  # of a classifier
    scaled_difference_below: float | None = None  # of a regression, in standard deviations of the training labels

    @property
    def summary(self) -> str:
        """The comparison in one line."""
        if self.scaled_difference_below is not None:
            return f"{self.images:,} test images, values within {self.scaled_difference_below:g} standard deviations"
        return (
            f"{self.images:,} test images, {self.changed_predictions} changed predictions, "
            f"log-probabilities within {self.log_probability_difference_below:g}"
        )


class Network:
    """An exported network, on the CPU."""

    def __init__(self, content: bytes) -> None:
        """content: as returned by `read`; any other content may be forged. Raises UserError."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # The number of threads changes the last bits of a result; `outputs` runs several parts at once instead.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry(EXTERNAL_FILES, os.devnull)  # no folder, so that no other file is read
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            self.description = Description.model_validate_json(self.session.get_modelmeta().custom_metadata_map[KEY])
        except Exception as error:  # onnxruntime's exceptions have no common base
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise UserError(
                f"not a network that `make export` wrote: {reason[:200]}; `make export` writes it"
            ) from None

    def outputs(
        self, images: Any, parallel: Callable[..., Iterable[Any]] = map, part_size: int | None = None
    ) -> Outputs:
        """Outputs float32 (N, K) or (N, 1) for images uint8 (N, C, H, W): an array, or a split on the disk.

        A row depends only on its image: all parts have the same size, and the last one is padded with black images.
        parallel: like `map`; it may run several parts at once. part_size: None for PART (fewer if images are large).
        """
        shape = self.description.image_shape
        size = part_size or max(min(PART, PART_VALUES // math.prod(shape)), 1)

        def rows(start: int) -> Outputs:
            part = np.asarray(images[start : start + size])
            padded = np.zeros((size, *shape), dtype=np.uint8)
            padded[: len(part)] = part
            outputs: Outputs = self.session.run([self.description.output], {INPUT: padded})[0]
            return outputs[: len(part)]

        return np.concatenate(list(parallel(rows, range(0, len(images), size))))


def read(content: bytes, name: str, record: bytes | None) -> bytes:
    """Return the content of an ONNX file if `make export` wrote it.

    An ONNX file can name other files of the machine, which the runtime would read. So a file runs only if its SHA-256
    is in metrics/export.json, which Git keeps. name: of the file, for messages. record: the content of
    metrics/export.json; None if it does not exist. Raises UserError.
    """
    if record is None:
        raise UserError(f"{name}: cannot be checked, because {RECORD} does not exist; `make export` writes both")
    try:
        known = Record.model_validate_json(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{RECORD}: {place}: {first['msg']}; `make export` writes it again") from None
    if hashlib.sha256(content).hexdigest() != known.sha256:
        raise UserError(f"{name}: its SHA-256 is not the one in {RECORD}; `make export` writes both")
    return content


def read_file(path: Path) -> bytes:
    """Like `read`, for a file and the record of the work tree. Raises UserError."""
    if path.exists() and not path.is_file():  # opening a pipe would wait, and ignore signals
        raise UserError(f"{path}: not a file")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `make export` writes it") from None
    return read(content, str(path), RECORD.read_bytes() if RECORD.is_file() else None)
