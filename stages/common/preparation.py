"""How a picture becomes the input array of a network, in preprocess and wherever the model is used."""

from typing import Annotated, Literal

from pydantic import Field

from stages.common.params import Section

MAX_SIDE = 4096  # pixels
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class Preparation(Section):
    """How stages/dataset/pictures.py decodes a picture. The data card and the model file contain it."""

    channels: Literal["grey", "rgb"]
    image_size: list[Side] = Field(min_length=2, max_length=2)  # [height, width]
    resize: Literal["crop", "pad", "stretch"]
    background: list[Annotated[int, Field(ge=0, le=255)]] = Field(min_length=3, max_length=3)  # [R, G, B]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of a prepared picture, (C, H, W)."""
        height, width = self.image_size
        return (1 if self.channels == "grey" else 3), height, width
