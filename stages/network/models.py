"""Networks. Each takes raw pixels, uint8 or float in 0 … 255, (N, C, H, W), and gives logits float32 (N, K).

The normalization is the first layer, so that training and serving cannot disagree about it.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from stages.network import torchvision_models
from stages.network.options import map_sizes
from stages.network.random_layers import Dropout

Shape = tuple[int, int, int]  # of an image: (C, H, W)


class Normalize(nn.Module):
    """(pixel / 255 - mean) / std, a mean and std a channel, of pixels in 0 … 255."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # (C, 1, 1), in units of pixels, so that the division by 255 costs nothing.
        self.register_buffer("mean", torch.tensor([[[255 * value]] for value in mean], dtype=torch.float32))
        self.register_buffer("std", torch.tensor([[[255 * value]] for value in std], dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std  # uint8 minus float32 is float32


def mlp(shape: Shape, classes: int, hidden: int, depth: int, dropout: float) -> nn.Sequential:
    """`depth` hidden layers of `hidden` units with ReLU: 784-hidden-10 on MNIST with a depth of 1."""
    channels, height, width = shape
    layers: list[nn.Module] = [nn.Flatten()]  # (N, C * H * W)
    features = channels * height * width
    for _ in range(depth):
        layers += [nn.Linear(features, hidden), nn.ReLU()]
        if dropout > 0:
            layers += [Dropout(dropout)]
        features = hidden
    return nn.Sequential(*layers, nn.Linear(features, classes))


def cnn(
    shape: Shape,
    classes: int,
    channels: Sequence[int],
    kernel_sizes: Sequence[int],
    paddings: Sequence[int],
    pool_sizes: Sequence[int],
    hidden: int,
    dropout: float,
) -> nn.Sequential:
    """Blocks of convolution, max pooling, batch norm and ReLU; then one linear layer, or two with `hidden` between.

    channels, kernel_sizes, paddings (pixels), pool_sizes (1: no pooling): an entry a block. hidden: 0 for none.
    Pooling comes before batch norm and ReLU: the same function of the pooled values (up to the sign of the scale),
    at a quarter of the work.
    Raises ValueError if the blocks shrink the image to nothing.
    """
    features, height, width = shape
    height, width = map_sizes(height, width, kernel_sizes, paddings, pool_sizes)[-1]
    layers: list[nn.Module] = []
    blocks = zip(channels, kernel_sizes, paddings, pool_sizes, strict=True)
    for width_out, kernel_size, padding, pool_size in blocks:
        layers += [nn.Conv2d(features, width_out, kernel_size, padding=padding, bias=False)]  # batch norm has one
        if pool_size > 1:
            layers += [nn.MaxPool2d(pool_size)]
        layers += [nn.BatchNorm2d(width_out), nn.ReLU()]  # (N, width_out, ...)
        features = width_out
    layers += [nn.Flatten()]
    features *= height * width
    if hidden:
        layers += [nn.Linear(features, hidden), nn.ReLU()]
        features = hidden
    if dropout > 0:
        layers += [Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(features, classes))


MODELS: dict[str, Callable[..., nn.Sequential]] = {"mlp": mlp, "cnn": cnn, "torchvision": torchvision_models.build}


def build(
    name: str, options: dict[str, object], shape: Shape, classes: int, mean: Sequence[float], std: Sequence[float]
) -> nn.Sequential:
    """The network `name` behind its normalization. The weights are drawn from torch's CPU generator.

    shape: (C, H, W) of an image. mean, std: a number a channel, of pixels in 0 … 1.
    Raises ValueError if the options do not fit the images.
    """
    return fast_layout(nn.Sequential(Normalize(mean, std), MODELS[name](shape, classes, **options)))


def fast_layout(model: nn.Sequential) -> nn.Sequential:
    """Lay the weights of convolutions out as (N, H, W, C), and with them all that they compute.

    Pooling is slow in the other layout: 250 MNIST images take the default network 26 ms without, 12 ms with it, on two
    cores. A network must be in one layout for training and use alike, or the last bits of its outputs differ.
    """
    return model.to(memory_format=torch.channels_last)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], assign: bool = False) -> None:
    """Load tensors that `state_dict` of such a network gave, from whatever kept them by name. assign: as torch has it.

    Some networks (mnasnet) also read the version of their layout, which a state_dict carries beside the tensors.
    Raises RuntimeError if tensors are missing, in excess or of other shapes.
    """
    state = model.state_dict()
    if missing := sorted(state.keys() - weights.keys()):
        raise RuntimeError(f"missing tensors: {', '.join(missing)}")
    state.update(weights)
    model.load_state_dict(state, assign=assign)


def parameter_count(model: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
