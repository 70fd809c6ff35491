"""Options of the preprocess stage."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from stages.common.params import Section
from stages.common.preparation import MAX_SIDE, Side

PATH = "path:"  # the prefix of a group_by that is a pattern for the path


def _both_sides(value: Any) -> Any:
    """Accept one number for a square."""
    return [value, value] if type(value) is int and 1 <= value <= MAX_SIDE else value


def _grouping(value: str) -> str:
    if not (value in ("none", "column") or value.startswith(PATH)):
        raise ValueError("no such grouping")
    try:
        re.compile(value.removeprefix(PATH))
    except re.error as error:
        raise ValueError(str(error)) from None
    return value


class Preprocess(Section):
    """Section `preprocess`. The options from `test_fraction` on apply only to `data.name: images`."""

    validation_fraction: float = Field(ge=0, le=0.9)
    seed: int = Field(ge=0, lt=2**32)
    normalization: Literal["dataset", "half", "none", "weights"]

    test_fraction: float = Field(ge=0, le=0.9)
    group_by: Annotated[str, AfterValidator(_grouping), Field(description="none | column | path:REGULAR_EXPRESSION")]
    channels: Literal["auto", "grey", "rgb"]
    image_size: Annotated[
        list[Side],
        Field(min_length=2, max_length=2),
        BeforeValidator(_both_sides),
        Field(description=f"[height, width] or one number, 1 to {MAX_SIDE} pixels"),
    ]
    resize: Literal["crop", "pad", "stretch"]
    background: list[Annotated[int, Field(ge=0, le=255)]] = Field(min_length=3, max_length=3)  # [R, G, B]
    bad_images: Literal["error", "skip"]
    on_conflict: Literal["error", "drop"]
    small_classes: Literal["error", "drop"]
