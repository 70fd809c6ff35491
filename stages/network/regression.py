"""Regression: its losses, and the layer that undoes the scaling of the labels.

A network is trained on labels that are scaled to mean 0 and standard deviation 1 over the training part.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.network.losses import Objective

# Each takes outputs and targets, both float (N,), and returns float (N,). huber: squared up to one standard deviation
# of the labels, and absolute above, so that outliers count less (Huber 1964).
LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda outputs, targets: F.mse_loss(outputs, targets, reduction="none"),
    "mae": lambda outputs, targets: F.l1_loss(outputs, targets, reduction="none"),
    "huber": lambda outputs, targets: F.huber_loss(outputs, targets, reduction="none"),
}


def objective(name: str) -> Objective:
    """The mean loss of outputs (N, 1) and targets (N,)."""
    loss = LOSSES[name]
    return lambda outputs, targets: loss(outputs[:, 0], targets).mean()


class Unscale(nn.Module):
    """The last layer of a model file: it turns scaled labels into labels, x std + mean."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs.float() * self.std + self.mean
