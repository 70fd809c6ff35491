"""Options of the evaluate stage."""

from typing import Literal

from pydantic import Field

from stages.common.params import Section


class Evaluate(Section):
    """Section `evaluate`."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    numerics: Literal["fast", "portable"]
    calibration_bins: int = Field(ge=2, le=1000)
    worst_images: int = Field(ge=1, le=400)
