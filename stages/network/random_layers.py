"""Layers that draw random numbers while a network is trained, each from a generator of its own.

Those of torch and torchvision draw from the one generator of the process, which the shards of a batch would share: what
each of them got would depend on which thread came first.
"""

import torch
from torch import Tensor, nn


class RandomLayer(nn.Module):
    """A layer that draws from `generator`, which is on the network's device; None: from torch's own."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def keep_mask(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """True with a probability of 1 - p, of this shape."""
        return torch.rand(shape, device=values.device, generator=self.generator) >= self.p


class Dropout(RandomLayer):
    """As nn.Dropout: a value becomes 0 with probability p; the others grow by 1 / (1 - p)."""

    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            return values
        return values * self.keep_mask(values, values.shape) / (1 - self.p)


class StochasticDepth(RandomLayer):
    """As torchvision.ops.StochasticDepth by row (Huang et al. 2016): as Dropout, of all values of an image at once."""

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return values
        return values * self.keep_mask(values, (len(values), *[1] * (values.ndim - 1))) / (1 - self.p)
