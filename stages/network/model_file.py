"""A trained network in one safetensors file: its weights, and in the header what is needed to build it again.

No pickle: a file that a colleague's pull brings runs no code when it is read. The same network gives the same bytes.
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
from stages.network.losses import Output
from stages.network.options import MODELS, Name

KEY = "spec"  # safetensors writes its metadata in no fixed order: one key, one JSON document


class Spec(Section):
    """What a network is, apart from its weights. Format 2 says how pictures are prepared for it; format 1 does not."""

    format: Literal[1, 2]
    model: Name
    options: dict[str, Any]
    image_shape: list[Annotated[int, Field(ge=1, le=65536)]] = Field(min_length=3, max_length=3)  # (C, H, W)
    classes: list[str] = Field(min_length=2, max_length=65536)
    output: Output
    preparation: Preparation | None = None

    @model_validator(mode="after")
    def _preparation_of_format_2(self) -> Self:
        if (self.preparation is not None) != (self.format == 2):
            raise ValueError("a preparation is in format 2, and only there")
        if self.preparation and list(self.preparation.shape) != self.image_shape:
            raise ValueError("preparation gives another shape than image_shape")
        return self

    @model_validator(mode="after")
    def _options_of_the_model(self) -> Self:
        MODELS[self.model].model_validate(self.options)
        return self


def write(path: Path, model: nn.Module, spec: Spec) -> None:
    """Write weights and spec, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    files.write_bytes(
        path, save(tensors, metadata={KEY: json.dumps(spec.model_dump(exclude_none=True), sort_keys=True)})
    )


def read(path: Path) -> tuple[nn.Sequential, Spec]:
    """Build the network that a file describes, in evaluation mode, on the CPU.

    The network is laid out without memory first and compared with the file's tensors, so that a forged header can
    neither run code nor ask for more memory than the file is long.
    Raises UserError for anything that is not such a file: another format, a spec of another project, tensors
    missing, in excess, of another shape or type, or with NaN or infinite weights.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        spec = Spec.model_validate(header)
        channels, height, width = spec.image_shape
        with torch.device("meta"):
            moments = [1.0] * channels  # the file's own take their place
            model = models.build(
                spec.model, spec.options, (channels, height, width), len(spec.classes), moments, moments
            )
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` makes it") from None
    except KeyError:
        raise UserError(f"{path}: a safetensors file without a {KEY!r}: not one of this pipeline's models") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: not one of this pipeline's models: {place}: {first['msg']}") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a model file ({error}); `dvc repro train` makes it anew") from None
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            raise UserError(f"{path}: the tensor {name} is {'missing' if name in expected else 'not one of the model'}")
        if tensors[name].shape != expected[name].shape or tensors[name].dtype != expected[name].dtype:
            found, wanted = (f"{t.dtype} {tuple(t.shape)}" for t in (tensors[name], expected[name]))
            raise UserError(f"{path}: the tensor {name} is {found}; expected {wanted}")
        if not torch.isfinite(tensors[name]).all():
            raise UserError(f"{path}: the tensor {name} holds NaN or infinite weights")
    models.load_weights(model, tensors, assign=True)
    return models.fast_layout(model).eval(), spec
