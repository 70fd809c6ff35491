"""Mixup and cutmix: random mixtures of images and of their labels.

Each function takes images uint8 (N, C, H, W) and targets float (N, K), the share of each class in an image, and returns
both, mixed. Each image is mixed with the previous one of its shard, whose order is random if the data is shuffled.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.train.photographs import Boxes, inside

Mixed = tuple[Tensor, Tensor]


def shares_of(labels: Tensor, classes: int) -> Tensor:
    """One-hot targets float (N, K) from labels int64 (N,); targets are returned unchanged."""
    return F.one_hot(labels, classes).float() if labels.dim() == 1 else labels


def mixup(images: Tensor, targets: Tensor, generator: torch.Generator, alpha: float) -> Mixed:
    """The weighted mean of two images, with a weight from Beta(alpha, alpha) (Zhang et al. 2018). Returns float32."""
    own = torch.from_numpy(beta(len(images), alpha, generator)).float().to(images.device)
    weight = own[:, None, None, None]
    return images * weight + images.roll(1, 0) * (1 - weight), blended(targets, own)


def cutmix(images: Tensor, targets: Tensor, generator: torch.Generator, alpha: float) -> Mixed:
    """Paste a box of another image, with a share of the area from Beta(alpha, alpha) (Yun et al. 2019)."""
    count, _, height, width = images.shape
    side = np.sqrt(1 - beta(count, alpha, generator))  # sides of the box, as a share of the image's
    centre = torch.rand(2, count, generator=generator).numpy().astype(np.float64)
    middle_row, middle_column = np.floor(centre[0] * height), np.floor(centre[1] * width)
    half_height, half_width = np.floor(side * height / 2), np.floor(side * width / 2)
    top, bottom = np.maximum(middle_row - half_height, 0), np.minimum(middle_row + half_height, height)
    left, right = np.maximum(middle_column - half_width, 0), np.minimum(middle_column + half_width, width)
    boxes = Boxes(*(edge.astype(np.int64) for edge in (top, left, bottom - top, right - left)))
    pasted = torch.from_numpy((boxes.height * boxes.width) / (height * width)).float().to(images.device)
    return torch.where(inside(images, boxes), images.roll(1, 0), images), blended(targets, 1 - pasted)


def blended(targets: Tensor, own: Tensor) -> Tensor:
    """The weighted mean of each row and the previous one. own: weight of the row itself, (N,)."""
    return targets * own[:, None] + targets.roll(1, 0) * (1 - own[:, None])


def beta(count: int, alpha: float, generator: torch.Generator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Samples of Beta(alpha, alpha), float64 (N,). They are numpy's: torch's beta takes no generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return np.random.default_rng(seed).beta(alpha, alpha, count)
