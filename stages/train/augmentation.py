"""Augmentation: random changes to training images, different for each image, on a whole batch at once.

Each function takes uint8 images (N, C, H, W) on any device and returns images of the same shape. Pixels from outside
of the image are black (0). Random numbers come from a CPU generator, which is seeded for every step, so they are the
same on every device.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.train import mixing, photographs

Augment = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]  # (images, labels, generator) -> both


def none(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images, unchanged."""
    return images


def shift(images: Tensor, generator: torch.Generator, pixels: int) -> Tensor:
    """Move each image by whole pixels, -pixels … pixels in each direction, drawn uniformly. Returns uint8."""
    count, _, height, width = images.shape
    padded = F.pad(images, (pixels, pixels, pixels, pixels))  # (N, C, H + 2 pixels, W + 2 pixels)
    starts = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator).to(images.device)
    rows = starts[0] + torch.arange(height, device=images.device)  # (N, H)
    columns = starts[1] + torch.arange(width, device=images.device)  # (N, W)
    index = torch.arange(count, device=images.device)[:, None, None]
    # Indexing the first, third and fourth dimension moves the second one to the end: (N, H, W, C).
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def affine(
    images: Tensor,
    generator: torch.Generator,
    degrees: float,
    translate: float,
    scale: float,
    shear_degrees: float,
    elastic_pixels: float,
    elastic_grid: int,
    flip: bool,
) -> Tensor:
    """Rotate, shear, scale, move and bend each image about its centre, with bilinear interpolation.

    degrees, shear_degrees: the largest angle, in both directions. translate: the largest share of height and width, in
    both directions. scale: the factor is in 1 - scale … 1 + scale. All are drawn uniformly. elastic_pixels: standard
    deviation of the displacement at each point of a grid of elastic_grid x elastic_grid, with smooth interpolation
    (after Simard et al. 2003); 0: none. flip: mirror half of the images, left to right. Returns float32 in 0 … 255.
    """
    count, _, height, width = images.shape
    angle, shear, down, right, size = torch.rand(5, count, generator=generator) * 2 - 1  # each (N,), in -1 … 1
    angle, shear = angle * math.radians(degrees), torch.tan(shear * math.radians(shear_degrees))
    size = 1 / (1 + size * scale)
    cos, sin = torch.cos(angle) * size, torch.sin(angle) * size
    aspect = height / width  # grid coordinates are -1 … 1 along both axes; a rotation needs equal units
    theta = torch.stack(
        [
            torch.stack([cos, (cos * shear - sin) * aspect, right * translate * 2], dim=1),
            torch.stack([sin / aspect, sin * shear + cos, down * translate * 2], dim=1),
        ],
        dim=1,
    )  # (N, 2, 3): from coordinates of the result to those of the source
    if flip:
        theta[:, :, 0] *= torch.randint(0, 2, (count, 1), generator=generator) * 2 - 1
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)  # (N, H, W, 2), x first
    if elastic_pixels > 0:
        unit = torch.tensor([2 / width, 2 / height])[:, None, None]  # a pixel, in grid coordinates
        bend = torch.randn(count, 2, elastic_grid, elastic_grid, generator=generator) * elastic_pixels * unit
        bend = (
            interpolation_matrix(elastic_grid, height) @ bend @ interpolation_matrix(elastic_grid, width).T
        )  # (N, 2, H, W)
        grid = grid + bend.to(images.device).permute(0, 2, 3, 1)  # (N, H, W, 2)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def interpolation_matrix(points: int, size: int) -> Tensor:
    """The matrix (size, points) of bicubic interpolation from `points` to `size` values.

    Two products with it give the result of F.interpolate, in a fifth of the time for a batch of small grids.
    """
    basis = torch.eye(points)[None, :, :, None]  # (1, points, points, 1)
    return F.interpolate(basis, (size, 1), mode="bicubic", align_corners=False)[0, :, :, 0].T


AUGMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "none": none,
    "shift": shift,
    "affine": affine,
    "random_resized_crop": photographs.random_resized_crop,
    "flip": photographs.flip,
    "colour_jitter": photographs.colour_jitter,
    "trivial_augment": photographs.trivial_augment,
    "random_erasing": photographs.random_erasing,
}
MIXTURES: dict[str, Callable[..., mixing.Mixed]] = {"mixup": mixing.mixup, "cutmix": mixing.cutmix}


def compose(options: Mapping[str, Mapping[str, Any]], classes: int) -> Augment:
    """A function that applies the named augmentations in order. options: of each, by name.

    It takes images uint8 (N, C, H, W) and labels int64 (N,), and returns images of the same shape, uint8 or float32 in
    0 … 255, and targets: the labels, or after mixup or cutmix the share of each class, float32 (N, K). Float32 images
    are rounded before the next augmentation.
    """

    def augment(images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        for name, block in options.items():
            if images.is_floating_point():
                images = images.round().clamp(0, 255).to(torch.uint8)
            if name in MIXTURES:
                images, targets = MIXTURES[name](images, mixing.shares_of(targets, classes), generator, **block)
            else:
                images = AUGMENTATIONS[name](images, generator, **block)
        return images, targets

    return augment
