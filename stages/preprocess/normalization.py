"""The mean and standard deviation per channel with which a model normalizes pixels in 0 … 1."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Moments = tuple[list[float], list[float]]
Sums = npt.NDArray[np.int64]  # (3, C): per channel the number of pixels, their sum, and the sum of their squares

PIXELS = 2**16  # per channel and addition: the sum of so many squares, of 255^2 at most, fits in 32 bits


def sums(images: npt.NDArray[np.uint8]) -> Sums:
    """The sums of uint8 images (n, C, H, W)."""
    count, channels, height, width = images.shape
    flat = images.reshape(count, channels, height * width)
    totals = np.zeros((3, channels), dtype=np.int64)
    totals[0] = count * height * width
    step = max(PIXELS // (height * width), 1)  # images
    for start in range(0, count, step):
        for first in range(0, height * width, PIXELS):
            part = flat[start : start + step, :, first : first + PIXELS]
            totals[1] += part.sum(axis=(0, 2), dtype=np.uint32)
            totals[2] += np.square(part, dtype=np.uint16).sum(axis=(0, 2), dtype=np.uint32)
    return totals


def dataset(total: Sums) -> Moments:
    """Mean and standard deviation of each channel, over all images and positions, from their sums.

    The sums are whole numbers, so the order of summation cannot change a bit. A constant channel gets a standard
    deviation of 1.
    """
    mean, std = [], []
    for pixels, values, squares in total.T.tolist():
        mean.append(values / pixels / 255)
        variance = (squares * pixels - values**2) / pixels**2 / 255**2
        std.append(variance**0.5 if variance > 0 else 1.0)
    return mean, std


def half(total: Sums) -> Moments:
    """0.5 and 0.5 for each channel: pixels are mapped to -1 … 1, whatever the images."""
    return [0.5] * total.shape[1], [0.5] * total.shape[1]


def none(total: Sums) -> Moments:
    """0 and 1 for each channel: pixels stay in 0 … 1."""
    return [0.0] * total.shape[1], [1.0] * total.shape[1]


# `weights`: this stage does not read the weights. The data card says so, and train uses their mean and std.
NORMALIZATIONS: dict[str, Callable[[Sums], Moments]] = {
    "dataset": dataset,
    "half": half,
    "none": none,
    "weights": dataset,
}
