"""Images of a data set as data: URIs, for a page that loads nothing."""

import base64
import io
from typing import Any

import matplotlib.image
import numpy as np
import numpy.typing as npt

LARGEST = 64  # pixels per side; larger images are shrunk, so that a page with a hundred of them stays small


def data_uri(image: npt.NDArray[np.uint8]) -> str:
    """A PNG in base64. image: uint8 (C, H, W); grey, or its first three channels are red, green, blue."""
    colour = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)  # (3, H, W)
    pixels = shrunk(colour.transpose(1, 2, 0))  # (H, W, 3)
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Software": None}  # without it, the version of matplotlib
    matplotlib.image.imsave(buffer, pixels, format="png", metadata=metadata)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shrunk(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The means of squares of pixels, so that no side is above LARGEST. pixels: (H, W, 3)."""
    height, width, _ = pixels.shape
    factor = -(-max(height, width) // LARGEST)
    padded = np.pad(pixels, ((0, -height % factor), (0, -width % factor), (0, 0)), mode="edge")
    squares = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor, 3)
    return np.ascontiguousarray(squares.mean(axis=(1, 3)).round().astype(np.uint8))
