"""Losses for K classes, and the probabilities that belong to them.

Each loss takes logits float (N, K); targets, which are labels int64 (N,) or the share of each class float (N, K); a
label smoothing s; and a reduction: "mean" over the images, a scalar, or "none", (N,). With smoothing, the target of a
class is (1 - s) t + s / K, where t is its share, or 1 or 0 for a label (Szegedy et al. 2016).
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

# How a network's outputs become probabilities, as the model file states it. value: a number without probabilities.
Output = Literal["softmax", "sigmoid", "value"]
Reduction = Literal["mean", "none"]
Loss = Callable[..., Tensor]  # (logits, targets, smoothing, reduction)
Objective = Callable[[Tensor, Tensor], Tensor]  # (logits, targets) -> mean loss, a scalar


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float, reduction: Reduction) -> Tensor:
    """Softmax and negative log-likelihood in one function."""
    return F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction=reduction)


def nll(logits: Tensor, targets: Tensor, smoothing: float, reduction: Reduction) -> Tensor:
    """Negative log-likelihood of log-softmax outputs, for comparison with networks that end in LogSoftmax."""
    return _reduced(-_shares(logits, targets, smoothing) * F.log_softmax(logits, dim=1), reduction)


def mse(logits: Tensor, targets: Tensor, smoothing: float, reduction: Reduction) -> Tensor:
    """Squared error between softmax probabilities and targets, summed over the classes (Brier 1950)."""
    probabilities = F.softmax(logits, dim=1)
    shares = _shares(probabilities, targets, smoothing)
    return _reduced(F.mse_loss(probabilities, shares, reduction="none"), reduction)


def bce(logits: Tensor, targets: Tensor, smoothing: float, reduction: Reduction) -> Tensor:
    """Binary cross entropy of each class against the rest, summed over the classes."""
    shares = _shares(logits, targets, smoothing)
    return _reduced(F.binary_cross_entropy_with_logits(logits, shares, reduction="none"), reduction)


def _shares(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Smoothed targets as shares of classes (N, K), with the dtype of the logits."""
    classes = logits.shape[1]
    shares = F.one_hot(targets, classes) if targets.dim() == 1 else targets
    return (shares * (1 - smoothing) + smoothing / classes).to(logits.dtype)


def _reduced(terms: Tensor, reduction: Reduction) -> Tensor:
    """The sum of terms (N, K) over the classes, reduced over the images."""
    return terms.sum() / len(terms) if reduction == "mean" else terms.sum(dim=1)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "nll": nll,
    "mse": mse,
    "bce": bce,
}

OUTPUTS: dict[str, Output] = {"cross_entropy": "softmax", "nll": "softmax", "mse": "softmax", "bce": "sigmoid"}


def log_probabilities(logits: Tensor, output: Output) -> Tensor:
    """Log-probabilities float32 (N, K) of the classes; each row's probabilities add up to 1.

    output: "softmax", or "sigmoid" (each class against the rest, normalized to a sum of 1).
    """
    logits = logits.float()
    if output == "sigmoid":
        logits = F.logsigmoid(logits)  # log_softmax of log p is log (p / sum p)
    return F.log_softmax(logits, dim=1)
