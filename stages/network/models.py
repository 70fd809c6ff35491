"""Networks. Each takes raw pixels, uint8 or float in 0 … 255, (N, C, H, W), and returns logits float32 (N, K).

The normalization is the first layer, so that it is the same in training and in use.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from stages.network import torchvision_models
from stages.network.options import map_sizes
from stages.network.random_layers import Dropout

Shape = tuple[int, int, int]  # of an image: (C, H, W)


class Normalize(nn.Module):
    """(pixel / 255 - mean) / std of pixels in 0 … 255, with one mean and std per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # (C, 1, 1). They include the factor 255, so that the division costs nothing.
        self.register_buffer("mean", torch.tensor([[[255 * value]] for value in mean], dtype=torch.float32))
        self.register_buffer("std", torch.tensor([[[255 * value]] for value in std], dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std  # uint8 minus float32 is float32


def mlp(shape: Shape, classes: int, hidden: int, depth: int, dropout: float) -> nn.Sequential:
    """`depth` hidden layers of `hidden` units with ReLU, and a linear layer: 784-hidden-10 on MNIST with depth 1."""
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
    """Blocks of convolution, max pooling, batch norm and ReLU; then a linear layer, or two with `hidden` units between.

    channels, kernel_sizes, paddings (pixels), pool_sizes (1: no pooling): one entry per block. hidden: 0 for none.
    Pooling comes before batch norm and ReLU, which is the same function (if the scale is positive) in a quarter of the
    time. Raises ValueError if no pixels are left after a block.
    """
    features, height, width = shape
    height, width = map_sizes(height, width, kernel_sizes, paddings, pool_sizes)[-1]
    layers: list[nn.Module] = []
    blocks = zip(channels, kernel_sizes, paddings, pool_sizes, strict=True)
    for width_out, kernel_size, padding, pool_size in blocks:
        layers += [nn.Conv2d(features, width_out, kernel_size, padding=padding, bias=False)]  # batch norm adds one
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
    """The normalization and the network `name`. Its weights are drawn from torch's CPU generator.

    shape: (C, H, W) of an image. mean, std: one number per channel, for pixels in 0 … 1.
    Raises ValueError if the options do not fit the images.
    """
    return fast_layout(nn.Sequential(Normalize(mean, std), MODELS[name](shape, classes, **options)))


def fast_layout(model: nn.Sequential) -> nn.Sequential:
    """Store the weights of convolutions as (N, H, W, C); their outputs then have this layout, too.

    Pooling is slow in the default layout: the default network takes 26 ms for 250 MNIST images on two cores, and 12 ms
    in this one. Training and use must have the same layout, or the last bits of the outputs differ.
    """
    return model.to(memory_format=torch.channels_last)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], assign: bool = False) -> None:
    """Like `load_state_dict`, from a plain mapping of names to tensors. assign: as in torch.

    Some networks (mnasnet) also need the version that a state_dict has beside its tensors; this is the model's own.
    Raises RuntimeError for missing or additional tensors, or other shapes.
    """
    state = model.state_dict()
    if missing := sorted(state.keys() - weights.keys()):
        raise RuntimeError(f"missing tensors: {', '.join(missing)}")
    state.update(weights)
    model.load_state_dict(state, assign=assign)


def parameter_count(model: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
