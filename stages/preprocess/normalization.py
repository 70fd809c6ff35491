"""The mean and standard deviation that a model subtracts and divides by, a number a channel, of pixels in 0 … 1."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Moments = tuple[list[float], list[float]]
Sums = npt.NDArray[np.int64]  # (3, C): of each channel the number of pixels, their sum, and the sum of their squares

PIXELS = 2**16  # of a channel that are added at once: the sum of so many squares, 255^2 each, fits in 32 bits


def sums(images: npt.NDArray[np.uint8]) -> Sums:
    """The sums of uint8 images (n, C, H, W)."""
    count, channels, height, width = images.shape
    flat = images.reshape(count, channels, height * width)
    found = np.zeros((3, channels), dtype=np.int64)
    found[0] = count * height * width
    step = max(PIXELS // (height * width), 1)  # images
    for start in range(0, count, step):
        for first in range(0, height * width, PIXELS):
            part = flat[start : start + step, :, first : first + PIXELS]
            found[1] += part.sum(axis=(0, 2), dtype=np.uint32)
            found[2] += np.square(part, dtype=np.uint16).sum(axis=(0, 2), dtype=np.uint32)
    return found


def dataset(total: Sums) -> Moments:
    """Mean and standard deviation of each channel, over all images and positions, from their sums.

    Summed in whole numbers, so no order of summation can change a bit. A channel that does not vary gets a standard
    deviation of 1: there is nothing to scale.
    """
    mean, std = [], []
    for pixels, values, squares in total.T.tolist():
        mean.append(values / pixels / 255)
        variance = (squares * pixels - values**2) / pixels**2 / 255**2
        std.append(variance**0.5 if variance > 0 else 1.0)
    return mean, std


def half(total: Sums) -> Moments:
    """0.5 and 0.5 for each channel: pixels end up in -1 … 1, whatever the images."""
    return [0.5] * total.shape[1], [0.5] * total.shape[1]


def none(total: Sums) -> Moments:
    """0 and 1 for each channel: pixels stay in 0 … 1."""
    return [0.0] * total.shape[1], [1.0] * total.shape[1]


# `weights`: the weights are not known here. The card says so, and train puts what they were trained with in its place.
NORMALIZATIONS: dict[str, Callable[[Sums], Moments]] = {
    "dataset": dataset,
    "half": half,
    "none": none,
    "weights": dataset,
}
