"""The data card, a file that describes a prepared data set: classes or values, image shape, normalization."""

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from stages.common import files
from stages.common.errors import UserError
from stages.common.params import Section
from stages.common.preparation import Preparation as Preparation  # a field of the card

Size = Annotated[int, Field(ge=1, le=65536)]


class Values(Section):
    """Mean and standard deviation of the labels of the training part, for regression."""

    mean: float
    std: Annotated[float, Field(gt=0)]


class DataCard(Section):
    """mean, std: one number per channel, of pixels scaled to 0 … 1; the network gets (pixel / 255 - mean) / std."""

    classes: list[str]  # two or more; empty for regression
    values: Values | None = None  # None: classification
    image_shape: list[Size] = Field(min_length=3, max_length=3)  # (C, H, W)
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]
    normalization: Literal["weights"] | None = None  # use mean and std of the pretrained weights instead
    preparation: Preparation | None = None  # how pictures are decoded; None: a published data set

    @model_validator(mode="after")
    def _classes_or_values(self) -> Self:
        if bool(self.classes) == (self.values is not None) or len(self.classes) == 1:
            raise ValueError("a card has two or more classes, or values and no classes")
        return self

    @model_validator(mode="after")
    def _one_number_per_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.image_shape[0]:
            raise ValueError("mean and std need one number per channel of image_shape")
        if self.preparation and self.preparation.shape != self.shape:
            raise ValueError("the shapes of preparation and image_shape differ")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an image, (C, H, W)."""
        channels, height, width = self.image_shape
        return channels, height, width


def write(path: Path, card: DataCard) -> None:
    """Write the card atomically, with all digits of the normalization."""
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
        raise UserError(f"{path}: {place}: {first['msg']}; `dvc repro` makes it again") from None
