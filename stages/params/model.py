"""Which network, and the options of each. The model file carries them too, so evaluate needs no params of train."""

from typing import Annotated, Literal

from pydantic import Field

from stages.params import Section

Name = Literal["mlp", "cnn"]
Width = Annotated[int, Field(ge=1, le=65536)]


class Model(Section):
    """Section `model`."""

    name: Name


class Mlp(Section):
    """Section `models.mlp`."""

    hidden: Width
    depth: int = Field(ge=1, le=100)
    dropout: float = Field(ge=0, lt=1)


class Cnn(Section):
    """Section `models.cnn`."""

    channels: list[Width] = Field(min_length=1, max_length=10)
    kernel_size: int = Field(ge=1, le=31)
    hidden: Width
    dropout: float = Field(ge=0, lt=1)


MODELS: dict[Name, type[Mlp] | type[Cnn]] = {"mlp": Mlp, "cnn": Cnn}
