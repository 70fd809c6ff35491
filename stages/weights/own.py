"""Weights of your own: a safetensors file with torchvision's names, or the model file of another run."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError
from safetensors import SafetensorError

from stages.common import paths
from stages.common.errors import UserError
from stages.common.params import Section
from stages.network import weights_file
from stages.network.options import Architecture
from stages.network.weights_file import Origin, Weights

MODEL_KEY = "spec"  # copied from stages/network/model_file.py, whose import would make all networks a dependency
NETWORK, MEAN, STD = "1.network.", "0.mean", "0.std"  # in a model file, whose first layer is the normalization


class _Options(Section):
    model_config = ConfigDict(extra="ignore")

    architecture: Architecture


class _Spec(Section):
    """The parts of a model file's header that this stage needs."""

    model_config = ConfigDict(extra="ignore")

    model: Literal["torchvision"]
    options: _Options
    classes: list[str]


def read(path: Path) -> Weights:
    """Read weights from a file. Raises UserError if it is missing, damaged, or not of a torchvision network."""
    try:
        tensors, metadata = weights_file.parse(path)
        with path.open("rb") as file:
            facts: dict[str, Any] = {
                "source": path.as_posix(),
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
        if MODEL_KEY in metadata:
            return of_a_model(tensors, json.loads(metadata[MODEL_KEY]), facts)
        if weights_file.KEY in metadata:  # an output of this stage, from another run
            origin = Origin.model_validate_json(metadata[weights_file.KEY])
            return Weights(tensors, origin.model_copy(update=facts))
        return Weights(tensors, Origin(**facts))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; put it there, or set another models.torchvision.weights in {paths.PARAMS}"
        ) from None
    except (SafetensorError, ValidationError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: {reason(error)}; allowed: a safetensors file with torchvision's names, or the model file "
            "of a run with model.name: torchvision"
        ) from None


def reason(error: Exception) -> str:
    """Why a file does not contain such weights, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"its header has {'.'.join(map(str, first['loc']))}: {first['msg']}"
    if isinstance(error, SafetensorError):
        return f"not a safetensors file, or damaged ({(str(error).splitlines() or [''])[0][:100]})"
    return f"its header cannot be read ({(str(error).splitlines() or [''])[0][:100]})"


def of_a_model(tensors: dict[str, Any], header: Any, facts: dict[str, Any]) -> Weights:
    """The weights of a model file of this pipeline. Raises ValidationError, KeyError."""
    spec = _Spec.model_validate(header)
    mean, std = ((tensors[name].double() / 255).flatten().tolist() for name in (MEAN, STD))  # there in units of 0 … 255
    network = {name.removeprefix(NETWORK): tensor for name, tensor in tensors.items() if name.startswith(NETWORK)}
    origin = Origin(**facts, architecture=spec.options.architecture, classes=spec.classes, mean=mean, std=std)
    return Weights(network, origin)
