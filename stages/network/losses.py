"""Training objectives for K classes, and the probabilities that go with them.

Each objective takes logits float (N, K), labels int64 (N,) and a label smoothing s, and returns the mean over the
images as a scalar. With smoothing the target is 1 - s + s / K for the true class and s / K for the others
(Szegedy et al. 2016).
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

# What turns a network's outputs into probabilities; the model file carries the name.
Output = Literal["softmax", "sigmoid"]


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Softmax and negative log-likelihood in one."""
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def nll(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Negative log-likelihood of log-softmax outputs: what a network that ends in LogSoftmax is trained with."""
    log_probabilities = F.log_softmax(logits, dim=1)
    true = F.nll_loss(log_probabilities, labels)
    return true if smoothing == 0 else (1 - smoothing) * true - smoothing * log_probabilities.mean()


def mse(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Squared error between softmax probabilities and targets, summed over the classes (Brier 1950)."""
    probabilities = F.softmax(logits, dim=1)
    targets = _targets(logits, labels, smoothing).to(probabilities.dtype)
    return F.mse_loss(probabilities, targets, reduction="sum") / len(labels)


def bce(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Binary cross entropy of each class against the rest, summed over the classes."""
    targets = _targets(logits, labels, smoothing)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(labels)


def _targets(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    classes = logits.shape[1]
    return (F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes).to(logits.dtype)  # (N, K)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "nll": nll,
    "mse": mse,
    "bce": bce,
}

OUTPUTS: dict[str, Output] = {"cross_entropy": "softmax", "nll": "softmax", "mse": "softmax", "bce": "sigmoid"}


def log_probabilities(logits: Tensor, output: Output) -> Tensor:
    """Log-probabilities float32 (N, K) of the classes; each row's probabilities add up to 1.

    output: "softmax", or "sigmoid" (each class against the rest, made to add up to 1).
    """
    logits = logits.float()
    if output == "sigmoid":
        logits = F.logsigmoid(logits)  # log_softmax of log p is log (p / sum p)
    return F.log_softmax(logits, dim=1)
