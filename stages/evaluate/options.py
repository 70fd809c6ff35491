"""The parameters of the evaluate stage."""

from typing import Literal

from pydantic import Field

from stages.common.params import Section

# Identifiers of the Hugging Face hub. "": not stated.
License = Literal[
    "",
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "mpl-2.0",
    "gpl-3.0",
    "lgpl-3.0",
    "agpl-3.0",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "unlicense",
    "other",
]


class Evaluate(Section):
    """Section `evaluate`."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    numerics: Literal["fast", "portable"]
    calibration_bins: int = Field(ge=2, le=1000)
    worst_images: int = Field(ge=1, le=400)
    license: License
