"""The mean and standard deviation that a model subtracts and divides by, a number a channel, of pixels in 0 … 1."""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

Moments = tuple[list[float], list[float]]
Sums = npt.NDArray[np.int64]  # (3, C): of each channel the number of pixels, their sum, and the sum of their squares
Map = Callable[..., Iterable[Sums]]  # as the built-in map, but it may run several calls at once

PIXELS = 2**16  # of a channel that are added at once: the sum of so many squares, 255^2 each, fits in 32 bits


def dataset(blocks: Iterable[npt.NDArray[np.uint8]], channels: int, parallel: Map = map) -> Moments:
    """Mean and standard deviation of each channel, over all images and positions.

    blocks: uint8 images (n, C, H, W), which together are all. Summed in whole numbers, so no order of summation can
    change a bit. A channel that does not vary gets a standard deviation of 1: there is nothing to scale.
    """
    total = sum(parallel(sums, blocks), np.zeros((3, channels), dtype=np.int64))
    mean, std = [], []
    for pixels, values, squares in total.T.tolist():
        mean.append(values / pixels / 255)
        variance = (squares * pixels - values**2) / pixels**2 / 255**2
        std.append(variance**0.5 if variance > 0 else 1.0)
    return mean, std


def sums(images: npt.NDArray[np.uint8]) -> Sums:
    """The sums of uint8 images (n, C, H, W)."""
    count, channels, height, width = images.shape
    flat = images.reshape(count, channels, height * width)
    found = np.zeros((3, channels), dtype=np.int64)
    found[0] = count * height * width
    step = max(PIXELS // (height * width), 1)  # images
    for start in range(0, count, step):
        for first in range(0, height * width, PIXELS):
            part = flat[start : start + step, :, first : first + PIXELS].astype(np.uint32)
            found[1] += part.sum(axis=(0, 2)).astype(np.int64)
            found[2] += np.einsum("ncp,ncp->c", part, part).astype(np.int64)
    return found


def half(blocks: Iterable[npt.NDArray[np.uint8]], channels: int, parallel: Map = map) -> Moments:
    """0.5 and 0.5 for each channel: pixels end up in -1 … 1, whatever the images."""
    return [0.5] * channels, [0.5] * channels


def none(blocks: Iterable[npt.NDArray[np.uint8]], channels: int, parallel: Map = map) -> Moments:
    """0 and 1 for each channel: pixels stay in 0 … 1."""
    return [0.0] * channels, [1.0] * channels


NORMALIZATIONS: dict[str, Callable[..., Moments]] = {"dataset": dataset, "half": half, "none": none}
