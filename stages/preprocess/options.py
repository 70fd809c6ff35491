"""Options of the preprocess stage."""

from typing import Literal

from pydantic import Field

from stages.common.params import Section


class Preprocess(Section):
    """Section `preprocess`."""

    validation_fraction: float = Field(ge=0, le=0.9)
    seed: int = Field(ge=0, lt=2**32)
    normalization: Literal["dataset", "half", "none"]
