"""Which network, and the options of each. The model file carries them too, so evaluate needs no params of train."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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
    kernel_sizes: list[Annotated[int, Field(ge=1, le=31)]] = Field(min_length=1, max_length=10)
    hidden: Width
    dropout: float = Field(ge=0, lt=1)

    @model_validator(mode="after")
    def _an_odd_size_a_convolution(self) -> Self:
        if len(self.kernel_sizes) != len(self.channels) or not all(size % 2 for size in self.kernel_sizes):
            raise ValueError(
                f"kernel_sizes is {self.kernel_sizes} and channels is {self.channels}; allowed: odd kernel sizes, one "
                "for each entry of channels"
            )
        return self


MODELS: dict[Name, type[Mlp] | type[Cnn]] = {"mlp": Mlp, "cnn": Cnn}
