"""The file of weights that training starts with, which stage `weights` writes and train reads.

It is a safetensors file, whose tensors have torchvision's names, or one line that there are no pretrained weights.
torch is imported only if there are.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from stages.common import files
from stages.common.errors import UserError
from stages.common.params import Section
from stages.network.options import Architecture

if TYPE_CHECKING:
    from torch import Tensor

KEY = "weights"  # safetensors writes its metadata in no fixed order: one key, one JSON document
NOTHING = b"no pretrained weights are used\n"  # DVC warns of empty files


class Origin(Section):
    """Where weights come from, and what they were trained on, if known."""

    source: str  # for messages: a URL, or the file in data/weights
    sha256: str  # of that file
    architecture: Architecture | None = None
    classes: list[str] | None = None
    mean: list[float] | None = None  # one number per channel, of pixels in 0 … 1: the network saw (pixel - mean) / std
    std: list[Annotated[float, Field(gt=0)]] | None = None

    @model_validator(mode="after")
    def _mean_and_std_together(self) -> Self:
        if (self.mean is None) != (self.std is None) or len(self.mean or []) != len(self.std or []):
            raise ValueError("mean and std go together, one number each per channel")
        return self


class Weights(NamedTuple):
    """Pretrained weights."""

    tensors: "dict[str, Tensor]"  # by torchvision's names
    origin: Origin


def write(path: Path, weights: Weights) -> None:
    """Write weights, atomically."""
    from safetensors.torch import save

    document = json.dumps(weights.origin.model_dump(exclude_none=True), sort_keys=True)
    files.write_bytes(path, save(weights.tensors, metadata={KEY: document}))


def write_nothing(path: Path) -> None:
    """Write that there are no pretrained weights."""
    files.write_bytes(path, NOTHING)


def read(path: Path) -> Weights | None:
    """Read the file; None if there are no pretrained weights. Raises UserError."""
    try:
        if path.stat().st_size == len(NOTHING) and path.read_bytes() == NOTHING:
            return None
        tensors, metadata = parse(path)
        return Weights(tensors, Origin.model_validate_json(metadata[KEY]))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` makes it") from None
    except (SafetensorError, ValidationError, KeyError, ValueError):
        raise UserError(f"{path}: not a file of the stage weights; `dvc repro --force weights` rebuilds it") from None


def parse(path: Path) -> tuple["dict[str, Tensor]", dict[str, str]]:
    """The tensors and the metadata of a safetensors file. Raises SafetensorError, FileNotFoundError."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}, file.metadata() or {}
