"""Class weights in the loss, for data with rare classes.

`balanced` and `effective` take the number of training images of each class, all above 0, and return one weight per
class. `scaled` then scales the weights to a mean of 1 over the images.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stages.network.losses import Loss, Objective


def balanced(images: Sequence[int]) -> list[float]:
    """All classes count the same, whatever their numbers of images."""
    return [1 / count for count in images]


def effective(images: Sequence[int], beta: float) -> list[float]:
    """By the effective number of images (Cui et al. 2019). beta near 0: equal weights; near 1: as `balanced`."""
    return [(1 - beta) / (1 - beta**count) for count in images]


CLASS_WEIGHTS: dict[str, Callable[..., list[float]]] = {"balanced": balanced, "effective": effective}


def objective_of(
    loss: Loss, smoothing: float, name: str, options: Mapping[str, Any], images: Sequence[int]
) -> Objective:
    """The mean loss with class weights. name: "none" for no weights. images: training images of each class."""
    if name == "none":
        return partial(loss, smoothing=smoothing, reduction="mean")
    return weighted(loss, smoothing, scaled(CLASS_WEIGHTS[name](images, **options), images))


def scaled(raw: Sequence[float], images: Sequence[int]) -> Tensor:
    """Weights float32 (K,) whose mean over the training images is 1."""
    mean = sum(count * weight for count, weight in zip(images, raw, strict=True)) / sum(images)
    return torch.tensor([weight / mean for weight in raw], dtype=torch.float32)


def weighted(loss: Loss, smoothing: float, weights: Tensor) -> Objective:
    """The mean over the images of their loss times the weight of their class.

    The sum is divided by the number of images, not by the sum of weights, which would depend on how the batch is
    divided into shards. The weight of a mixture of classes is the weighted mean of their weights.
    """

    def objective(logits: Tensor, targets: Tensor) -> Tensor:
        by_class = weights.to(logits.device)
        by_image = by_class[targets] if targets.dim() == 1 else targets @ by_class
        return (loss(logits, targets, smoothing, "none") * by_image).mean()

    return objective
