"""Options of the weights stage."""

from typing import Annotated, Any, NamedTuple

from pydantic import ConfigDict, Field

from stages.common.params import Section, section
from stages.network.options import NO_WEIGHTS, Architecture, Model


class Weights(Section):
    """Section `weights`."""

    mirrors: list[Annotated[str, Field(min_length=1)]]


class Start(Section):
    """The keys of `models.torchvision` that this stage reads; train checks all of them."""

    model_config = ConfigDict(extra="ignore")

    architecture: Architecture
    weights: str


class Chosen(NamedTuple):
    """Everything that the stage reads from params.yaml."""

    architecture: Architecture
    weights: str  # none, default, or a file in data/weights
    mirrors: list[str]


def read(values: dict[str, Any]) -> Chosen:
    """Read the options of the stage. Only torchvision's networks can start with weights. Raises UserError."""
    start = section(values, "models.torchvision", Start)
    used = section(values, "model", Model).name == "torchvision"
    return Chosen(
        start.architecture, start.weights if used else NO_WEIGHTS, section(values, "weights", Weights).mirrors
    )
