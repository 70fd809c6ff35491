"""Classification networks of torchvision, by name; stages/network/pretrained.py fills in weights that are not new.

They are as torchvision builds them, with three differences: they end in as many classes as the data has, a grey image
is given to all three channels, and the layers that draw random numbers are ours (stages/network/random_layers.py).
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stages.network.random_layers import Dropout, StochasticDepth

COLOURS = 3  # channels that all of these networks take
NETWORK = "network"  # the name of torchvision's own module in what `build` returns
CONTAINERS = ("features", "trunk_output", "encoder", "layers", "blocks")  # children that hold most of a network


class Colour(nn.Module):
    """Repeat the one channel of grey images: (N, 1, H, W) -> (N, 3, H, W)."""

    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, COLOURS, -1, -1)


class Network(nn.Sequential):
    """A network of torchvision behind `Colour`, of which some modules may be frozen: always in evaluation mode.

    frozen: their dotted names. Their batch norm keeps its statistics, and their dropout is off.
    """

    frozen: tuple[str, ...] = ()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self


class Head(nn.Sequential):
    """A dropout that torchvision's network does not have, and the last layer."""


class NumbersOnCpu(TorchFunctionMode):
    """Make tensors of numbers on the CPU: a regnet reads its widths from them, and meta tensors have none."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        device = {"device": "cpu"} if func in (torch.arange, torch.tensor) else {}
        return func(*args, **{**(kwargs or {}), **device})


def build(shape: tuple[int, int, int], classes: int, architecture: str, dropout: float) -> Network:
    """A network of torchvision.models, for images of this shape (C, H, W), of one or three channels.

    dropout: the probability before the last layer; what the architecture has of dropout elsewhere, and of stochastic
    depth, stays as it is. Raises ValueError if the architecture cannot take images of this shape, as far as
    torchvision notices without running it.
    """
    from torchvision.models import get_model  # 3 s, which other networks need not wait for

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
    elif architecture in ("googlenet", "inception_v3"):  # without the second loss of their papers
        options |= {"aux_logits": False, "init_weights": True}
    try:
        with NumbersOnCpu() if architecture.startswith("regnet_") else nullcontext():
            network = get_model(architecture, weights=None, num_classes=classes, **options)
    except (AssertionError, ValueError) as error:  # of a vit and a maxvit, which take images in patches
        reason = " ".join(str(error).split())
        raise ValueError(f"{architecture} cannot take images of {height} x {width} pixels: {reason}") from None
    before_the_last_layer(network, dropout)
    replace_random_layers(network)
    colour = {"colour": Colour()} if channels == 1 else {}
    return Network(OrderedDict({**colour, NETWORK: network}))


def before_the_last_layer(network: nn.Module, dropout: float) -> None:
    """Set the probability of the dropout before the last layer, or put one there if there is none."""
    layers = leaves(network)
    last = last_layer(layers)
    (_, previous), (name, layer) = layers[last - 1], layers[last]
    if isinstance(previous, nn.Dropout):
        previous.p = dropout
    elif dropout:
        replace(network, name, Head(Dropout(dropout), layer))


def leaves(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that have no modules inside, by dotted name, in order."""
    return [(name, module) for name, module in network.named_modules() if not list(module.children())]


def last_layer(layers: list[tuple[str, nn.Module]]) -> int:
    """Which of the leaves turns features into classes."""
    return max(index for index, (_, module) in enumerate(layers) if isinstance(module, nn.Linear | nn.Conv2d))


def head(network: nn.Module) -> tuple[str, str]:
    """The dotted name of the last layer: in this network, and in torchvision's own."""
    layers = leaves(network)
    name = layers[last_layer(layers)][0]
    parent = name.rpartition(".")[0]
    return name, parent if isinstance(network.get_submodule(parent), Head) else name


def parts(module: nn.Module, prefix: str = "") -> list[str]:
    """The children of a network by dotted name, in order; a container of most of them counts as its children."""
    names = []
    for name, child in module.named_children():
        dotted = f"{prefix}{name}"
        names += parts(child, f"{dotted}.") if name in CONTAINERS else [dotted]
    return names


def freeze(model: Network, choice: int | str) -> None:
    """Keep a part of a network as it is: its weights, and the statistics of its batch norm.

    choice: "none"; "backbone", all but the last layer; or how many of its first `parts`. Raises ValueError if the last
    layer is among these.
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
        own = (head_name, name) if isinstance(module, Dropout) else (head_name,)  # whose dropout stays on
        frozen = [name for name, _ in network.named_modules() if not f"{head_name}.".startswith(f"{name}.")]
        frozen = [name for name in frozen if name and name not in own]
        trained = {head_name}
    for name, parameter in network.named_parameters():
        # A weight that is no layer's, such as the position embedding of a vit, belongs to the beginning.
        parameter.requires_grad_(any(name.startswith(f"{part}.") for part in trained))
    model.frozen = tuple(f"{NETWORK}.{name}" for name in frozen)
    model.train(model.training)


def replace_random_layers(network: nn.Module) -> None:
    """Put our layers in the place of those that draw from the one generator of the process."""
    import torchvision

    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Dropout):
            replace(network, name, Dropout(module.p) if module.p else nn.Identity())
        elif isinstance(module, torchvision.ops.StochasticDepth):
            if module.mode != "row":
                raise NotImplementedError(f"{name} has stochastic depth by {module.mode}")
            replace(network, name, StochasticDepth(module.p))


def replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one with this dotted name."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, layer)
