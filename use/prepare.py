"""Prepare a picture file for the network, like the training pictures."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stages.common.preparation import Preparation
from stages.dataset import pictures

Map = Callable[..., Iterable[Any]]  # like the built-in map, but it may run several calls at once
Pixels = npt.NDArray[np.uint8]
Invert = Literal["auto", "yes", "no"]

DARK = 0.35  # training pictures are light on dark if the mean of their pixels (0 to 1) is below this


class Described(Protocol):
    """The classes of a model, and how its pictures are prepared."""

    @property
    def classes(self) -> list[str]:
        """The names of the classes."""

    @property
    def image_shape(self) -> list[int]:
        """The shape of a prepared picture, (C, H, W)."""

    @property
    def preparation(self) -> Preparation | None:
        """How training pictures were prepared; None: a published data set."""


class Prepared(NamedTuple):
    """A picture as the network sees it."""

    pixels: Pixels  # (C, H, W)
    looks_inverted: bool  # light and dark look swapped in the file, compared with the training pictures
    inverted: bool  # `prepare` swapped them


def prepare(content: bytes, spec: Described, training_mean: float, invert: Invert) -> Prepared:
    """Decode a picture file for a network. training_mean: of the training pixels, 0 to 1.

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
    """Prepare a picture like those of the published data sets, which are small, grey and square.

    The whole picture is converted to grey and resized with antialiasing, keeping its aspect ratio; the rest is filled
    with the median grey of its border. Transparent parts become black, or white if the picture would be all black. A
    grey picture of the right size is not changed.
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
    turned = facts.orientation >= 5  # EXIF: by 90 or 270 degrees
    picture_width, picture_height = (facts.height, facts.width) if turned else (facts.width, facts.height)
    if picture_width * height == picture_height * width:
        return stretched
    return decoded("pad", int(np.median(border(stretched))))


def looks_inverted(pixels: Pixels, training_mean: float) -> bool:
    """Whether a grey picture is dark on light and the training pictures are light on dark, or the reverse.

    True if both the whole picture and its border are closer to the inverted training mean than to the mean. Always
    False for colour, and for training pictures of medium brightness.
    """
    if pixels.shape[0] != 1 or DARK < training_mean < 1 - DARK:
        return False
    light = [float(values.mean()) / 255 > 0.5 for values in (pixels, border(pixels))]
    return all(light) if training_mean < DARK else not any(light)


def border(pixels: Pixels) -> Pixels:
    """The outermost pixels (C, 2 W + 2 (H - 2))."""
    sides = (pixels[:, 0], pixels[:, -1], pixels[:, 1:-1, 0], pixels[:, 1:-1, -1])
    return np.concatenate(sides, axis=1)
