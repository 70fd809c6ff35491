"""The choice of a network, and the options of each. They are also in the model file, which evaluate reads."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from stages.common.params import Section

Name = Literal["mlp", "cnn", "torchvision"]
# torchvision.models.list_models(module=torchvision.models). A test compares the two: the import takes 3 s.
# fmt: off
Architecture = Literal[
    "alexnet",
    "convnext_base", "convnext_large", "convnext_small", "convnext_tiny",
    "densenet121", "densenet161", "densenet169", "densenet201",
    "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4", "efficientnet_b5",
    "efficientnet_b6", "efficientnet_b7", "efficientnet_v2_l", "efficientnet_v2_m", "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3",
    "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small",
    "regnet_x_16gf", "regnet_x_1_6gf", "regnet_x_32gf", "regnet_x_3_2gf", "regnet_x_400mf", "regnet_x_800mf",
    "regnet_x_8gf", "regnet_y_128gf", "regnet_y_16gf", "regnet_y_1_6gf", "regnet_y_32gf", "regnet_y_3_2gf",
    "regnet_y_400mf", "regnet_y_800mf", "regnet_y_8gf",
    "resnet101", "resnet152", "resnet18", "resnet34", "resnet50",
    "resnext101_32x8d", "resnext101_64x4d", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0",
    "squeezenet1_0", "squeezenet1_1",
    "swin_b", "swin_s", "swin_t", "swin_v2_b", "swin_v2_s", "swin_v2_t",
    "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
    "vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32",
    "wide_resnet101_2", "wide_resnet50_2",
]
# fmt: on
NO_WEIGHTS, PUBLISHED = "none", "default"  # values of models.torchvision.weights, besides file names
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
    """Section `models.cnn`. The lists have one entry per block."""

    channels: list[Width] = Field(min_length=1, max_length=100)
    kernel_sizes: list[Annotated[int, Field(ge=1, le=31)]] = Field(min_length=1, max_length=100)
    paddings: list[Annotated[int, Field(ge=0, le=31)]] = Field(min_length=1, max_length=100)
    pool_sizes: list[Annotated[int, Field(ge=1, le=31)]] = Field(min_length=1, max_length=100)
    hidden: int = Field(ge=0, le=65536)
    dropout: float = Field(ge=0, lt=1)

    @model_validator(mode="after")
    def _one_entry_per_block(self) -> Self:
        lists = {"kernel_sizes": self.kernel_sizes, "paddings": self.paddings, "pool_sizes": self.pool_sizes}
        for name, entries in lists.items():
            if len(entries) != len(self.channels):
                raise ValueError(
                    f"{name} is {entries} and channels is {self.channels}; allowed: lists of the same length, one "
                    "entry per block"
                )
        return self

    def map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """The function `map_sizes` with these options."""
        return map_sizes(height, width, self.kernel_sizes, self.paddings, self.pool_sizes)


def _weights(value: str) -> str:
    """A file name must be relative to data/weights and normalized: DVC treats another path as another input."""
    path = PurePosixPath(value)
    if value not in (NO_WEIGHTS, PUBLISHED) and (
        path.suffix != ".safetensors" or path.is_absolute() or ".." in path.parts or str(path) != value
    ):
        raise ValueError("no such weights")
    return value


def _freeze(value: Any) -> Any:
    """A function instead of a union, whose message would list every type."""
    if value in ("none", "backbone") or (type(value) is int and 1 <= value <= 10_000):
        return value
    raise ValueError("no such choice")


class TorchvisionNetwork(Section):
    """The options of a torchvision network that a model file contains."""

    architecture: Architecture = Field(
        description="a classification network of torchvision.models, such as resnet18, mobilenet_v3_small, vit_b_16"
    )
    dropout: float = Field(ge=0, lt=1)


class FineTuning(Section):
    """The weights that training starts with, and which of them are trained."""

    weights: Annotated[
        str,
        AfterValidator(_weights),
        Field(description="none | default | a .safetensors file in data/weights, such as birds.safetensors"),
    ]
    freeze: Annotated[
        int | str,
        PlainValidator(_freeze),
        Field(description="none | backbone | the number of first parts that are not trained, at least 1"),
    ]
    lr_factor: float = Field(gt=0, le=1000)

    @model_validator(mode="after")
    def _something_to_fine_tune(self) -> Self:
        if self.weights == NO_WEIGHTS:
            for name, value, neutral in (("freeze", self.freeze, "none"), ("lr_factor", self.lr_factor, 1)):
                if value != neutral:
                    raise ValueError(
                        f"{name} is {value} and weights is {NO_WEIGHTS}, so there are no pretrained weights; allowed: "
                        f"{name}: {neutral}, or other weights"
                    )
        return self


class Torchvision(TorchvisionNetwork, FineTuning):
    """Section `models.torchvision`."""


def map_sizes(
    height: int, width: int, kernel_sizes: Sequence[int], paddings: Sequence[int], pool_sizes: Sequence[int]
) -> list[tuple[int, int]]:
    """Height and width after each block of a cnn, in pixels. Raises ValueError if a block leaves nothing."""
    sizes = []
    blocks = zip(kernel_sizes, paddings, pool_sizes, strict=True)
    for block, (kernel_size, padding, pool_size) in enumerate(blocks, start=1):
        input_size = f"{height} x {width}"
        height = (height + 2 * padding - kernel_size + 1) // pool_size
        width = (width + 2 * padding - kernel_size + 1) // pool_size
        if min(height, width) < 1:
            raise ValueError(
                f"block {block} leaves nothing of images of {input_size}; set fewer, smaller or padded blocks"
            )
        sizes.append((height, width))
    return sizes


# The blocks of `models` in params.yaml, and the part of each that a model file contains, which builds the network.
BLOCKS: dict[Name, type[Mlp] | type[Cnn] | type[Torchvision]] = {"mlp": Mlp, "cnn": Cnn, "torchvision": Torchvision}
MODELS: dict[Name, type[Mlp] | type[Cnn] | type[TorchvisionNetwork]] = {
    "mlp": Mlp,
    "cnn": Cnn,
    "torchvision": TorchvisionNetwork,
}
