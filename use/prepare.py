"""A picture file as the network sees it: prepared as training prepared its pictures."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stages.common.preparation import Preparation
from stages.dataset import pictures

Map = Callable[..., Iterable[Any]]  # as the built-in map, but it may run several calls at once
Pixels = npt.NDArray[np.uint8]
Invert = Literal["auto", "yes", "no"]

DARK = 0.35  # mean of the training pixels, of 0 … 1, below which its pictures are light on dark


class Described(Protocol):
    """What a model file says of its pictures and classes."""

    @property
    def classes(self) -> list[str]:
        """Their names."""

    @property
    def image_shape(self) -> list[int]:
        """Of a prepared picture, (C, H, W)."""

    @property
    def preparation(self) -> Preparation | None:
        """How training pictures were prepared; None: a published data set."""


class Prepared(NamedTuple):
    """A picture as the network sees it."""

    pixels: Pixels  # (C, H, W)
    looks_inverted: bool  # against the training pictures, as the file has it
    inverted: bool  # whether it was inverted here


def prepare(content: bytes, spec: Described, training_mean: float, invert: Invert) -> Prepared:
    """Decode a picture file for a network. training_mean: of the training pixels, of 0 … 1.

    Raises pictures.UnusablePictureError with the reason.
    """
    if spec.preparation is None:
        pixels = like_published(content, spec.image_shape)
    else:
        pixels = pictures.decode(content, spec.preparation)
    looks = looks_inverted(pixels, training_mean)
    inverted = invert == "yes" or (invert == "auto" and looks)
    return Prepared(255 - pixels if inverted else pixels, looks, inverted)


def like_published(content: bytes, image_shape: list[int]) -> Pixels:
    """A picture like those of a published set, whose own preparation is not known: small, grey and square.

    The whole picture is made grey and shrunk with antialiasing; what its shape leaves free is filled with the grey of
    its border. Transparent parts count as black, or as white if all would be black. A grey picture of the right size is
    not changed.
    """
    channels, height, width = image_shape
    shape: dict[str, object] = {"channels": "grey" if channels == 1 else "rgb", "image_size": [height, width]}

    def decoded(resize: str, grey: int) -> Pixels:
        preparation = Preparation.model_validate({**shape, "resize": resize, "background": [grey] * 3})
        return pictures.decode(content, preparation)

    behind = 0
    stretched = decoded("stretch", behind)
    if stretched.max() == 0:
        behind = 255
        stretched = decoded("stretch", behind)
    facts = pictures.facts(content)
    wide, high = (facts.width, facts.height) if facts.orientation < 5 else (facts.height, facts.width)  # 5 to 8: turned
    if wide * height == high * width:
        return stretched
    return decoded("pad", int(np.median(border(stretched))))


def looks_inverted(pixels: Pixels, training_mean: float) -> bool:
    """Whether a grey picture is dark on light and the training pictures were light on dark, or the reverse.

    So it is if the picture as a whole and its border are both nearer to the inverted mean than to the mean. Where
    training pictures are of medium brightness, or in colour, this cannot be told: False.
    """
    if pixels.shape[0] != 1 or DARK < training_mean < 1 - DARK:
        return False
    light = [float(values.mean()) / 255 > 0.5 for values in (pixels, border(pixels))]
    return all(light) if training_mean < DARK else not any(light)


def border(pixels: Pixels) -> Pixels:
    """The outermost pixels (C, 2 W + 2 (H - 2))."""
    sides = (pixels[:, 0], pixels[:, -1], pixels[:, 1:-1, 0], pixels[:, 1:-1, -1])
    return np.concatenate(sides, axis=1)
