"""Which network, and the options of each. The model file carries them too, so evaluate needs no params of train."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.common.params import Section

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
    """Section `models.cnn`: of the lists an entry a block."""

    channels: list[Width] = Field(min_length=1, max_length=100)
    kernel_sizes: list[Annotated[int, Field(ge=1, le=31)]] = Field(min_length=1, max_length=100)
    paddings: list[Annotated[int, Field(ge=0, le=31)]] = Field(min_length=1, max_length=100)
    pool_sizes: list[Annotated[int, Field(ge=1, le=31)]] = Field(min_length=1, max_length=100)
    hidden: int = Field(ge=0, le=65536)
    dropout: float = Field(ge=0, lt=1)

    @model_validator(mode="after")
    def _an_entry_a_block(self) -> Self:
        lists = {"kernel_sizes": self.kernel_sizes, "paddings": self.paddings, "pool_sizes": self.pool_sizes}
        for name, here in lists.items():
            if len(here) != len(self.channels):
                raise ValueError(
                    f"{name} is {here} and channels is {self.channels}; allowed: lists of the same length, an entry a "
                    "block"
                )
        return self

    def map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """As the function of that name, of these options."""
        return map_sizes(height, width, self.kernel_sizes, self.paddings, self.pool_sizes)


def map_sizes(
    height: int, width: int, kernel_sizes: Sequence[int], paddings: Sequence[int], pool_sizes: Sequence[int]
) -> list[tuple[int, int]]:
    """Height and width that each block of a cnn makes of images of this size, in pixels.

    Raises ValueError if a block leaves nothing.
    """
    sizes = []
    blocks = zip(kernel_sizes, paddings, pool_sizes, strict=True)
    for block, (kernel_size, padding, pool_size) in enumerate(blocks, start=1):
        before = f"{height} x {width}"
        height = (height + 2 * padding - kernel_size + 1) // pool_size
        width = (width + 2 * padding - kernel_size + 1) // pool_size
        if min(height, width) < 1:
            raise ValueError(f"block {block} leaves nothing of images of {before}; set fewer, smaller or padded blocks")
        sizes.append((height, width))
    return sizes


MODELS: dict[Name, type[Mlp] | type[Cnn]] = {"mlp": Mlp, "cnn": Cnn}
