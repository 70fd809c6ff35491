"""A trained network in one safetensors file: its weights, and in the header everything needed to build it.

It is not a pickle: reading a file that a colleague pulled runs no code. The same network gives the same bytes.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from stages.common import files
from stages.common.errors import UserError
from stages.common.params import Section
from stages.common.preparation import Preparation
from stages.network import models
from stages.network.calibration import Temperature
from stages.network.losses import Output
from stages.network.options import MODELS, Name
from stages.network.regression import Unscale

FORMAT: Literal[3] = 3  # the newest, which `write` writes
LAYERS = 2  # of `models.build`: the normalization and the network; the temperature follows
TEMPERATURE = f"{LAYERS}.temperature"
KEY = "spec"  # safetensors writes its metadata in no fixed order: one key, one JSON document


class Spec(Section):
    """A network without its weights.

    In format 3, the tensors include a temperature, or for regression the scale of the labels; regression has no classes
    and the output `value`. Formats 1 and 2, of earlier versions, have no temperature. Format 1 also lacks the
    preparation, which says how to prepare pictures for the network.
    """

    format: Literal[1, 2, 3]
    model: Name
    options: dict[str, Any]
    image_shape: list[Annotated[int, Field(ge=1, le=65536)]] = Field(min_length=3, max_length=3)  # (C, H, W)
    classes: list[str] = Field(max_length=65536)
    output: Output
    preparation: Preparation | None = None

    @model_validator(mode="after")
    def _preparation_of_format_2(self) -> Self:
        if self.format < 3 and (self.preparation is not None) != (self.format == 2):
            raise ValueError("a preparation is in format 2, and not in format 1")
        if self.preparation and list(self.preparation.shape) != self.image_shape:
            raise ValueError("preparation gives another shape than image_shape")
        return self

    @model_validator(mode="after")
    def _classes_or_a_value(self) -> Self:
        if len(self.classes) < 2 and (self.classes or self.output != "value" or self.format < 3):
            raise ValueError("a network has two classes or more, or in format 3 the output value and no class")
        if self.classes and self.output == "value":
            raise ValueError("a network with the output value has no classes")
        return self

    @property
    def outputs(self) -> int:
        """The number of outputs for an image."""
        return len(self.classes) or 1

    @model_validator(mode="after")
    def _options_of_the_model(self) -> Self:
        MODELS[self.model].model_validate(self.options)
        return self


def write(
    path: Path,
    model: nn.Sequential,
    spec: Spec,
    temperature: float = 1.0,
    scale: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Write weights, last layer and spec, atomically, in the newest format.

    model: as `models.build` or `read` gives it; its temperature or scale, if any, is replaced. temperature: for
    classification. scale: for regression, mean and standard deviation of the training labels.
    """
    last = Unscale(*scale) if spec.output == "value" else Temperature(temperature, spec.output)
    complete = nn.Sequential(*model[:LAYERS], last)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in complete.state_dict().items()}
    header = json.dumps({**spec.model_dump(exclude_none=True), "format": FORMAT}, sort_keys=True)
    files.write_bytes(path, save(tensors, metadata={KEY: header}))


def temperature(model: nn.Module) -> float:
    """The temperature of a classifier, as `read` gives it."""
    return float(model.get_buffer(TEMPERATURE))


def training_mean(model: nn.Module) -> float:
    """The mean of the training pixels, in 0 … 1, according to the normalization."""
    return float(model.get_buffer("0.mean").mean()) / 255


def read(path: Path) -> tuple[nn.Sequential, Spec]:
    """Build the network that a file describes, in evaluation mode, on the CPU.

    Its last layer is a temperature; for regression, it undoes the scaling of the labels.

    The network is first built on the meta device and compared with the tensors of the file, so that a forged header can
    neither run code nor allocate more memory than the size of the file.
    Raises UserError for any other file: another format; the spec of another project; missing or additional tensors,
    or tensors of another shape or type, or with NaN or infinite weights; a temperature of 0 or less.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        spec = Spec.model_validate(header)
        channels, height, width = spec.image_shape
        with torch.device("meta"):
            moments = [1.0] * channels  # replaced by those of the file
            model = models.build(spec.model, spec.options, (channels, height, width), spec.outputs, moments, moments)
            model.append(Unscale(0.0, 1.0) if spec.output == "value" else Temperature(1.0, spec.output))
        if spec.format < FORMAT:
            tensors.setdefault(TEMPERATURE, torch.tensor(1.0))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` makes it") from None
    except KeyError:
        raise UserError(f"{path}: a safetensors file without a {KEY!r}: not one of this pipeline's models") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: not one of this pipeline's models: {place}: {first['msg']}") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a model file ({error}); `dvc repro train` rebuilds it") from None
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            raise UserError(f"{path}: the tensor {name} is {'missing' if name in expected else 'not one of the model'}")
        if tensors[name].shape != expected[name].shape or tensors[name].dtype != expected[name].dtype:
            found, wanted = (f"{t.dtype} {tuple(t.shape)}" for t in (tensors[name], expected[name]))
            raise UserError(f"{path}: the tensor {name} is {found}; expected {wanted}")
        if not torch.isfinite(tensors[name]).all():
            raise UserError(f"{path}: the tensor {name} holds NaN or infinite weights")
    if spec.classes and tensors[TEMPERATURE] <= 0:
        raise UserError(f"{path}: the tensor {TEMPERATURE} is {tensors[TEMPERATURE].item():g}; expected more than 0")
    models.load_weights(model, tensors, assign=True)
    return models.fast_layout(model).eval(), spec
