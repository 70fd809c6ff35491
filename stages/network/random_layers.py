"""Layers that draw random numbers in training, from a generator that each replica of the network has.

The layers of torch and torchvision draw from the global generator. The shards of a batch would share it, so their
random numbers would depend on the order of the threads.
"""

import torch
from torch import Tensor, nn


class RandomLayer(nn.Module):
    """A layer that draws from `generator`, which is on the network's device; None: the global generator."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def keep_mask(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """True with a probability of 1 - p, of this shape."""
        return torch.rand(shape, device=values.device, generator=self.generator) >= self.p


class Dropout(RandomLayer):
    """Like nn.Dropout: each value becomes 0 with probability p; the others are multiplied by 1 / (1 - p)."""

    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            return values
        return values * self.keep_mask(values, values.shape) / (1 - self.p)


class StochasticDepth(RandomLayer):
    """Like torchvision.ops.StochasticDepth in mode row (Huang et al. 2016): dropout of all values of an image."""

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return values
        return values * self.keep_mask(values, (len(values), *[1] * (values.ndim - 1))) / (1 - self.p)
