"""Weights of the classes in the loss, for data in which some are rare.

`balanced` and `effective` take the number of training images of each class, all above 0, and return as many weights,
which `scaled` makes comparable.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stages.network.losses import Loss, Objective


def balanced(images: Sequence[int]) -> list[float]:
    """Each class counts as much as every other one, however many images it has."""
    return [1 / count for count in images]


def effective(images: Sequence[int], beta: float) -> list[float]:
    """By the effective number of images (Cui et al. 2019): near 0, beta gives equal weights, near 1 `balanced` ones."""
    return [(1 - beta) / (1 - beta**count) for count in images]


CLASS_WEIGHTS: dict[str, Callable[..., list[float]]] = {"balanced": balanced, "effective": effective}


def objective_of(
    loss: Loss, smoothing: float, name: str, options: Mapping[str, Any], images: Sequence[int]
) -> Objective:
    """The mean loss with class weights of this name; "none": without. images: of each class, for training."""
    if name == "none":
        return partial(loss, smoothing=smoothing, reduction="mean")
    return weighted(loss, smoothing, scaled(CLASS_WEIGHTS[name](images, **options), images))


def scaled(raw: Sequence[float], images: Sequence[int]) -> Tensor:
    """Weights float32 (K,) whose mean over the training images is 1."""
    mean = sum(count * weight for count, weight in zip(images, raw, strict=True)) / sum(images)
    return torch.tensor([weight / mean for weight in raw], dtype=torch.float32)


def weighted(loss: Loss, smoothing: float, weights: Tensor) -> Objective:
    """The loss of each image times the weight of its class, as a mean over the images.

    It divides by the number of images, not by the sum of their weights, which would depend on the images that share a
    shard. The weight of a mixture of classes is the mean of theirs.
    """

    def objective(logits: Tensor, targets: Tensor) -> Tensor:
        by_class = weights.to(logits.device)
        by_image = by_class[targets] if targets.dim() == 1 else targets @ by_class
        return (loss(logits, targets, smoothing, "none") * by_image).mean()

    return objective
