"""Options of the weights stage."""

from typing import Annotated, Any, NamedTuple

from pydantic import ConfigDict, Field

from stages.common.params import Section, section
from stages.network.options import NO_WEIGHTS, Architecture, Model


class Weights(Section):
    """Section `weights`."""

    mirrors: list[Annotated[str, Field(min_length=1)]]


class Start(Section):
    """What this stage reads of `models.torchvision`; train checks all of it."""

    model_config = ConfigDict(extra="ignore")

    architecture: Architecture
    weights: str


class Chosen(NamedTuple):
    """All that the stage reads of params.yaml."""

    architecture: Architecture
    weights: str  # none, default, or a file in data/weights
    mirrors: list[str]


def read(values: dict[str, Any]) -> Chosen:
    """Read what the stage needs. Networks that are not torchvision's start with no weights. Raises UserError."""
    start = section(values, "models.torchvision", Start)
    used = section(values, "model", Model).name == "torchvision"
    return Chosen(
        start.architecture, start.weights if used else NO_WEIGHTS, section(values, "weights", Weights).mirrors
    )
