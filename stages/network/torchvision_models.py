"""Classification networks of torchvision, by name, with new weights (pretrained: stages/network/pretrained.py).

They are as torchvision builds them, with these differences: the last layer has one output per class of the data, a grey
image is given to all three channels, random layers are those of stages/network/random_layers.py, pooling is repeatable
on GPUs, and for regression no ReLU follows the last layer.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stages.network.random_layers import Dropout, StochasticDepth

COLOURS = 3  # input channels of all these networks
NETWORK = "network"  # the name of torchvision's own module within `Network`
CONTAINERS = ("features", "trunk_output", "encoder", "layers", "blocks")  # children that contain most of a network


class Colour(nn.Module):
    """Repeat the channel of grey images: (N, 1, H, W) -> (N, 3, H, W)."""

    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, COLOURS, -1, -1)


class Network(nn.Sequential):
    """A network of torchvision, after `Colour` if images are grey. Some of its modules may be frozen.

    frozen: dotted names of modules that are always in evaluation mode: batch norm keeps its statistics, dropout is off.
    """

    frozen: tuple[str, ...] = ()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self


class Head(nn.Sequential):
    """An added dropout, and the last layer."""


class AdaptiveAveragePool(nn.Module):
    """nn.AdaptiveAvgPool2d, as matrix products on a GPU.

    torch's gradient of it is not repeatable on CUDA, where torch.use_deterministic_algorithms makes it an error, and on
    MPS the size of the images must be a multiple of the output's.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = height, width  # of the output

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, *size)."""
        if values.device.type in ("cuda", "mps"):
            return self.as_products(values)
        return F.adaptive_avg_pool2d(values, self.size)

    def as_products(self, values: Tensor) -> Tensor:
        """The same as `forward`, on any device."""
        rows, columns = (
            F.adaptive_avg_pool1d(torch.eye(before), after).to(values)  # (before, after)
            for before, after in zip(values.shape[2:], self.size, strict=True)
        )
        return rows.T @ values @ columns


class NumbersOnCpu(TorchFunctionMode):
    """Create tensors of numbers on the CPU: a regnet reads its widths from them, and meta tensors have no values."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        device = {"device": "cpu"} if func in (torch.arange, torch.tensor) else {}
        return func(*args, **{**(kwargs or {}), **device})


def build(shape: tuple[int, int, int], classes: int, architecture: str, dropout: float) -> Network:
    """A network of torchvision.models, for images of this shape (C, H, W), with one or three channels.

    dropout: probability before the last layer. Other dropout and stochastic depth of the architecture stay as they are.
    Raises ValueError if the architecture cannot take images of this shape, as far as torchvision can tell without
    running it.
    """
    from torchvision.models import get_model  # takes 3 s, so other networks do without

    channels, height, width = shape
    if channels not in (1, COLOURS):
        raise ValueError(f"{architecture} takes images of 1 or {COLOURS} channels; these have {channels}")
    options: dict[str, Any] = {}
    if architecture.startswith("vit_"):
        if height != width:
            raise ValueError(f"{architecture} takes square images; these are {height} x {width} pixels")
        options["image_size"] = height
    elif architecture.startswith("maxvit_"):
        options["input_size"] = (height, width)
    elif architecture in ("googlenet", "inception_v3"):  # without the auxiliary loss of their papers
        options |= {"aux_logits": False, "init_weights": True}
    try:
        with NumbersOnCpu() if architecture.startswith("regnet_") else nullcontext():
            network = get_model(architecture, weights=None, num_classes=classes, **options)
    except (AssertionError, ValueError) as error:  # by vit and maxvit, which divide images into patches
        reason = " ".join(str(error).split())
        raise ValueError(f"{architecture} cannot take images of {height} x {width} pixels: {reason}") from None
    before_the_last_layer(network, dropout)
    replace_random_layers(network)
    replace_pooling(network)
    if classes == 1:
        remove_last_relu(network)
    colour = {"colour": Colour()} if channels == 1 else {}
    return Network(OrderedDict({**colour, NETWORK: network}))


def before_the_last_layer(network: nn.Module, dropout: float) -> None:
    """Set the probability of the dropout before the last layer, and add one if there is none."""
    layers = leaves(network)
    last = last_layer(layers)
    (_, previous), (name, layer) = layers[last - 1], layers[last]
    if isinstance(previous, nn.Dropout):
        previous.p = dropout
    elif dropout:
        replace(network, name, Head(Dropout(dropout), layer))


def leaves(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules without children, with their dotted names, in order."""
    return [(name, module) for name, module in network.named_modules() if not list(module.children())]


def last_layer(layers: list[tuple[str, nn.Module]]) -> int:
    """The index of the leaf that turns features into classes."""
    return max(index for index, (_, module) in enumerate(layers) if isinstance(module, nn.Linear | nn.Conv2d))


def head(network: nn.Module) -> tuple[str, str]:
    """The dotted name of the last layer: in this network, and in torchvision's own."""
    layers = leaves(network)
    name = layers[last_layer(layers)][0]
    parent = name.rpartition(".")[0]
    return name, parent if isinstance(network.get_submodule(parent), Head) else name


def parts(module: nn.Module, prefix: str = "") -> list[str]:
    """The dotted names of the children of a network, in order. A container is replaced by its children."""
    names = []
    for name, child in module.named_children():
        dotted = f"{prefix}{name}"
        names += parts(child, f"{dotted}.") if name in CONTAINERS else [dotted]
    return names


def freeze(model: Network, choice: int | str) -> None:
    """Freeze a part of a network: its weights, and the statistics of its batch norm.

    choice: "none"; "backbone", everything except the last layer; or the number of first `parts`. Raises ValueError if
    the last layer is among them.
    """
    if choice == "none":
        return
    network = model.get_submodule(NETWORK)
    head_name, _ = head(network)
    if isinstance(choice, int):
        names = parts(network)
        most = next(index for index, name in enumerate(names) if f"{head_name}.".startswith(f"{name}."))
        if choice > most:
            raise ValueError(
                f"freeze is {choice}, and the network has {most} parts before the one with its last layer: "
                f"{', '.join(names[:most])}; allowed: 1 to {most}, none, or backbone"
            )
        frozen = names[:choice]
        trained = set(names[choice:])
    else:
        layers = leaves(network)
        last = last_layer(layers)
        name, module = layers[last - 1]
        own = (head_name, name) if isinstance(module, Dropout) else (head_name,)  # its dropout stays on
        frozen = [name for name, _ in network.named_modules() if not f"{head_name}.".startswith(f"{name}.")]
        frozen = [name for name in frozen if name and name not in own]
        trained = {head_name}
    for name, parameter in network.named_parameters():
        # Weights outside of layers, such as the position embedding of a vit, count as the first part.
        parameter.requires_grad_(any(name.startswith(f"{part}.") for part in trained))
    model.frozen = tuple(f"{NETWORK}.{name}" for name in frozen)
    model.train(model.training)


def replace_random_layers(network: nn.Module) -> None:
    """Replace the layers that draw from the global generator."""
    import torchvision

    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Dropout):
            replace(network, name, Dropout(module.p) if module.p else nn.Identity())
        elif isinstance(module, torchvision.ops.StochasticDepth):
            if module.mode != "row":
                raise NotImplementedError(f"{name} has stochastic depth by {module.mode}")
            replace(network, name, StochasticDepth(module.p))


def replace_pooling(network: nn.Module) -> None:
    """Replace adaptive pooling (alexnet, vgg), except to one pixel: that is a mean, whose gradient is repeatable."""
    for name, module in list(network.named_modules()):
        size: Any = module.output_size if isinstance(module, nn.AdaptiveAvgPool2d) else 1
        if size not in (1, (1, 1)):
            replace(network, name, AdaptiveAveragePool(*size))


def remove_last_relu(network: nn.Module) -> None:
    """Remove the ReLU after the last layer, if any (squeezenet): a scaled label may be negative."""
    layers = leaves(network)
    for name, module in layers[last_layer(layers) + 1 :]:
        if isinstance(module, nn.ReLU):
            replace(network, name, nn.Identity())


def replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace the layer with this dotted name."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, layer)
