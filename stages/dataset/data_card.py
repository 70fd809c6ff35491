"""What a prepared data set is, in a file of its own: classes or values, shape of an image, normalization."""

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from stages.common import files
from stages.common.errors import UserError
from stages.common.params import Section
from stages.common.preparation import Preparation as Preparation  # part of what a card says

Size = Annotated[int, Field(ge=1, le=65536)]


class Values(Section):
    """Of the labels of the training part, for regression."""

    mean: float
    std: Annotated[float, Field(gt=0)]


class DataCard(Section):
    """`mean` and `std`, a number a channel, are of pixels scaled to 0 … 1: a model sees (pixel / 255 - mean) / std."""

    classes: list[str]  # two or more; none for regression
    values: Values | None = None  # what regression predicts; None: classification
    image_shape: list[Size] = Field(min_length=3, max_length=3)  # (C, H, W)
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]
    normalization: Literal["weights"] | None = None  # a network takes mean and std of its pretrained weights instead
    preparation: Preparation | None = None  # how the pictures were decoded; None: a published set, which needs none

    @model_validator(mode="after")
    def _classes_or_values(self) -> Self:
        if bool(self.classes) == (self.values is not None) or len(self.classes) == 1:
            raise ValueError("a card has two classes or more, or values and no class")
        return self

    @model_validator(mode="after")
    def _a_number_a_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.image_shape[0]:
            raise ValueError("mean and std need a number for each channel of image_shape")
        if self.preparation and self.preparation.shape != self.shape:
            raise ValueError("preparation gives another shape than image_shape")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an image, (C, H, W)."""
        channels, height, width = self.image_shape
        return channels, height, width


def write(path: Path, card: DataCard) -> None:
    """Write the card, every digit of the normalization included, atomically."""
    files.write_text(path, json.dumps(card.model_dump(exclude_none=True), indent=2, ensure_ascii=False) + "\n")


def read(path: Path) -> DataCard:
    """Read and check a card. Raises UserError."""
    try:
        return DataCard.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` makes it") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {place}: {first['msg']}; `dvc repro` makes it anew") from None
