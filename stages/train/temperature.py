"""Fit the temperature of a trained network on the validation part (Guo et al. 2017)."""

import torch
from torch import Tensor, nn

from stages.network.device import Map
from stages.network.inference import Images, predict
from stages.network.losses import Output

LOWEST, HIGHEST = 0.1, 10.0
DIGITS = 4  # significant: finer than any validation part determines, and coarser than rounding errors
ROWS = 65536  # computed at once


def fit(model: nn.Module, images: Images, labels: Tensor, output: Output, device: torch.device, parallel: Map) -> float:
    """The temperature of a network, fitted on validation images; 1.0 if there are none. Arguments: as in `predict`."""
    return minimize(predict(model, images, output, device, parallel), labels) if len(labels) else 1.0


def minimize(log_p: Tensor, labels: Tensor) -> float:
    """The temperature that minimizes the negative log-likelihood, in LOWEST … HIGHEST.

    log_p: log-probabilities float (N, K) at a temperature of 1. labels: int64 (N,). The negative log-likelihood of
    softmax(log_p / T) is convex in 1 / T, so its derivative, computed in float64, has at most one zero. If all
    predictions are correct, the likelihood only grows as T falls, and the temperature is 1.0.
    """
    from scipy.optimize import brentq  # 0.3 s

    predictions = log_p.argmax(dim=1)
    if bool((predictions == labels).all()):
        return 1.0

    def derivative(inverse: float) -> float:
        """The derivative with respect to 1 / T: the mean of log_p under the model, minus that of the true class."""
        total = 0.0
        for rows, targets in zip(log_p.split(ROWS), labels.split(ROWS), strict=True):
            rows = rows.double()
            expected = (torch.softmax(rows * inverse, dim=1) * rows).sum(dim=1)
            total += float((expected - rows.gather(1, targets[:, None])[:, 0]).sum())
        return total

    low, high = 1 / HIGHEST, 1 / LOWEST
    if derivative(low) >= 0:
        return HIGHEST
    if derivative(high) <= 0:
        return LOWEST
    return float(f"{1 / brentq(derivative, low, high, xtol=1e-10):.{DIGITS}g}")
