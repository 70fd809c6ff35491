"""Augmentation for photographs: torchvision's kernels, with random numbers from the generator of each shard.

torchvision's own transforms draw from the global generator, which parallel shards would share. Each function takes
uint8 images (N, C, H, W) on any device and returns uint8 images of the same shape. Random numbers are drawn for the
whole batch at once; torchvision's kernels then take one image at a time, since each image has its own parameters.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TRIES = 10  # boxes drawn for each image; the first one that fits is used, as in torchvision

Ints = npt.NDArray[np.int64]
Range = tuple[float, float]


class Boxes(NamedTuple):
    """One box per image, in pixels: int64 (N,) each."""

    top: Ints
    left: Ints
    height: Ints
    width: Ints


@cache
def kernels() -> Any:
    """torchvision's functions on images, imported only by runs that need them: the import takes 3 s."""
    from torchvision.transforms.v2 import functional

    return functional


def random_boxes(images: Tensor, generator: torch.Generator, scale: Range, ratio: Range) -> Boxes:
    """A box at a random position in each image.

    scale: of the box's area to the image's, drawn uniformly. ratio: of width to height, drawn uniformly on a log scale.
    If none of TRIES boxes fits, the box is the largest one in the middle of the image with an allowed ratio.
    """
    count, _, height, width = images.shape
    draws = torch.rand(4, count, TRIES, generator=generator)
    low, high = map(math.log, ratio)
    aspects = torch.exp(low + (high - low) * draws[1]).numpy().astype(np.float64)  # (N, TRIES)
    shares, _, down, right = draws.numpy().astype(np.float64)
    areas = (scale[0] + (scale[1] - scale[0]) * shares) * (height * width)
    # numpy's square roots: torch's depend on the processor (see RmsProp in optimizers.py).
    heights, widths = np.rint(np.sqrt(areas / aspects)), np.rint(np.sqrt(areas * aspects))
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    chosen = np.arange(count), fits.argmax(axis=1)  # the first that fits
    any_fits = fits[chosen]
    box_height = np.where(any_fits, heights[chosen], min(height, max(round(width / ratio[0]), 1)))
    box_width = np.where(any_fits, widths[chosen], min(width, max(round(height * ratio[1]), 1)))
    top = np.where(any_fits, np.floor(down[chosen] * (height - box_height + 1)), (height - box_height) // 2)
    left = np.where(any_fits, np.floor(right[chosen] * (width - box_width + 1)), (width - box_width) // 2)
    return Boxes(*(side.astype(np.int64) for side in (top, left, box_height, box_width)))


def inside(images: Tensor, boxes: Boxes) -> Tensor:
    """Which pixels lie in the box of their image: bool (N, 1, H, W), on the device of the images."""
    top, left, height, width = (torch.from_numpy(side)[:, None] for side in boxes)
    rows, columns = torch.arange(images.shape[2]), torch.arange(images.shape[3])
    in_rows = (rows >= top) & (rows < top + height)  # (N, H)
    in_columns = (columns >= left) & (columns < left + width)  # (N, W)
    return (in_rows[:, None, :, None] & in_columns[:, None, None, :]).to(images.device)


def drawn(images: Tensor, generator: torch.Generator, probability: float) -> Tensor:
    """Whether to change each image: bool (N, 1, 1, 1), on the device of the images."""
    return (torch.rand(len(images), 1, 1, 1, generator=generator) < probability).to(images.device)


def random_resized_crop(images: Tensor, generator: torch.Generator, scale: Range, ratio: Range) -> Tensor:
    """A random box of each image, resized to the image's size with antialiasing (Szegedy et al. 2015)."""
    size = list(images.shape[2:])
    boxes = random_boxes(images, generator, scale, ratio)
    resized_crop = kernels().resized_crop
    rows = zip(images, *(side.tolist() for side in boxes), strict=True)
    return torch.stack([resized_crop(image, *box, size=size, antialias=True) for image, *box in rows])


def flip(images: Tensor, generator: torch.Generator, probability: float) -> Tensor:
    """Mirror some images, left to right."""
    return torch.where(drawn(images, generator, probability), images.flip(3), images)


def random_erasing(
    images: Tensor, generator: torch.Generator, probability: float, scale: Range, ratio: Range
) -> Tensor:
    """Make a random box of some images black (Zhong et al. 2020; with a square, cutout: DeVries and Taylor 2017)."""
    erased = inside(images, random_boxes(images, generator, scale, ratio)) & drawn(images, generator, probability)
    return images.masked_fill(erased, 0)


def colour_jitter(
    images: Tensor, generator: torch.Generator, brightness: float, contrast: float, saturation: float, hue: float
) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image, in random order.

    brightness, contrast, saturation: the factor is in 1 - value … 1 + value. hue: the largest shift in both directions,
    as a share of the colour circle. Saturation and hue need images with three channels.
    """
    tv = kernels()
    adjustments: list[tuple[Callable[[Tensor, float], Tensor], float, float]] = [
        (tv.adjust_brightness, max(1 - brightness, 0), 1 + brightness),
        (tv.adjust_contrast, max(1 - contrast, 0), 1 + contrast),
        (tv.adjust_saturation, max(1 - saturation, 0), 1 + saturation),
        (tv.adjust_hue, -hue, hue),
    ]
    used = [(adjust, low, high) for adjust, low, high in adjustments if low < high]
    orders = torch.rand(len(images), len(used), generator=generator).argsort(dim=1).tolist()
    draws = torch.rand(len(images), len(used), generator=generator).tolist()

    def jittered(image: Tensor, order: list[int], draw: list[float]) -> Tensor:
        for index in order:
            adjust, low, high = used[index]
            image = adjust(image, low + (high - low) * draw[index])
        return image

    return torch.stack([jittered(*row) for row in zip(images, orders, draws, strict=True)])


MAGNITUDES = 31  # levels, from no change to the strongest, as in torchvision


@cache
def trivial_changes() -> list[Callable[[Tensor, float], Tensor]]:
    """The changes of TrivialAugmentWide with torchvision's ranges: functions of an image and a magnitude in -1 … 1."""
    tv = kernels()
    affine = partial(tv.affine, angle=0.0, scale=1.0)
    move, shear = partial(affine, shear=[0.0, 0.0]), partial(affine, translate=[0, 0], center=[0, 0])

    def degrees(magnitude: float) -> float:
        return math.degrees(math.atan(0.99 * magnitude))

    return [
        lambda image, _: image,
        lambda image, magnitude: shear(image, shear=[degrees(magnitude), 0.0]),
        lambda image, magnitude: shear(image, shear=[0.0, degrees(magnitude)]),
        lambda image, magnitude: move(image, translate=[int(32 * magnitude), 0]),
        lambda image, magnitude: move(image, translate=[0, int(32 * magnitude)]),
        lambda image, magnitude: tv.rotate(image, 135 * magnitude),
        lambda image, magnitude: tv.adjust_brightness(image, 1 + 0.99 * magnitude),
        lambda image, magnitude: tv.adjust_saturation(image, 1 + 0.99 * magnitude),
        lambda image, magnitude: tv.adjust_contrast(image, 1 + 0.99 * magnitude),
        lambda image, magnitude: tv.adjust_sharpness(image, 1 + 0.99 * magnitude),
        lambda image, magnitude: tv.posterize(image, 8 - round(6 * abs(magnitude))),
        lambda image, magnitude: tv.solarize(image, 255 * (1 - abs(magnitude))),
        lambda image, _: tv.autocontrast(image),
        lambda image, _: tv.equalize(image),
    ]


def trivial_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """One random change of random magnitude per image: TrivialAugmentWide (Müller and Hutter 2021).

    It has no parameters. A change of saturation leaves grey images as they are.
    """
    count, changes = len(images), trivial_changes()
    which = torch.randint(len(changes), (count,), generator=generator).tolist()
    signs = torch.randint(2, (count,), generator=generator) * 2 - 1
    magnitudes = (signs * torch.randint(MAGNITUDES, (count,), generator=generator)).tolist()
    rows = zip(images, which, magnitudes, strict=True)
    return torch.stack([changes[index](image, step / (MAGNITUDES - 1)) for image, index, step in rows])
