"""The mean and standard deviation that a model subtracts and divides by, a number a channel, of pixels in 0 … 1."""

import numpy as np
import numpy.typing as npt

Moments = tuple[list[float], list[float]]


def dataset(images: npt.NDArray[np.uint8]) -> Moments:
    """Mean and standard deviation of each channel of uint8 images (N, C, H, W), over all images and positions.

    Counted in whole numbers (a histogram of the 256 values), so no order of summation can change a bit.
    A channel that does not vary gets a standard deviation of 1: there is nothing to scale.
    """
    values = np.arange(256)
    mean, std = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256, dtype=np.int64)
        for start in range(0, len(images), 4096):  # bincount widens its input to 64 bits: a part at a time
            counts += np.bincount(images[start : start + 4096, channel].ravel(), minlength=256)
        pixels, total, squares = int(counts.sum()), int(counts @ values), int(counts @ values**2)
        mean.append(total / pixels / 255)
        variance = (squares * pixels - total**2) / pixels**2 / 255**2
        std.append(variance**0.5 if variance > 0 else 1.0)
    return mean, std


def half(images: npt.NDArray[np.uint8]) -> Moments:
    """0.5 and 0.5 for each channel: pixels end up in -1 … 1, whatever the images."""
    return [0.5] * images.shape[1], [0.5] * images.shape[1]


def none(images: npt.NDArray[np.uint8]) -> Moments:
    """0 and 1 for each channel: pixels stay in 0 … 1."""
    return [0.0] * images.shape[1], [1.0] * images.shape[1]


NORMALIZATIONS = {"dataset": dataset, "half": half, "none": none}
