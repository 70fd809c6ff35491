"""Images of a data set as data: URIs, for a page that loads nothing."""

import base64
import io
from typing import Any

import matplotlib.image
import numpy as np
import numpy.typing as npt

LARGEST = 64  # pixels a side; larger images are shrunk, so that a page of a hundred stays small


def data_uri(image: npt.NDArray[np.uint8]) -> str:
    """A PNG, base64. image: uint8 (C, H, W), C of 1 (grey) or more, of which the first three are red, green, blue."""
    colour = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)  # (3, H, W)
    pixels = shrunk(colour.transpose(1, 2, 0))  # (H, W, 3)
    buffer = io.BytesIO()
    nothing: dict[str, Any] = {"Software": None}  # else the version of matplotlib
    matplotlib.image.imsave(buffer, pixels, format="png", metadata=nothing)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shrunk(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(H, W, 3) with neither side above LARGEST: the mean of each square of pixels."""
    height, width, _ = pixels.shape
    factor = -(-max(height, width) // LARGEST)
    padded = np.pad(pixels, ((0, -height % factor), (0, -width % factor), (0, 0)), mode="edge")
    squares = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor, 3)
    return np.ascontiguousarray(squares.mean(axis=(1, 3)).round().astype(np.uint8))
