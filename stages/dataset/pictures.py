"""One picture: what its header says, and its pixels brought to a fixed shape by documented rules.

The rules, in this order:
- The first frame or page counts. JPEG, PNG, WebP, BMP, TIFF and GIF are read, told apart by content, not by name.
- A JPEG that is at least four times too large is decoded at 1/2, 1/4 or 1/8 of its size, never below twice the size it
  ends up with: its pixels are then averaged by the decoder. See docs/own-images.md for what that changes.
- The EXIF orientation is applied.
- 16-bit values keep their upper 8 bits. Other integers above 8 bits count as 16-bit values; floating-point pixels have
  no known range and are refused.
- Transparency (an alpha channel, a transparent colour, a transparent palette entry) is blended over `background`.
- CMYK becomes RGB as 255 - min(255, C + K) and so on. Embedded colour profiles are ignored: values count as sRGB.
- Grey is (299 R + 587 G + 114 B) / 1000, ITU-R 601.
- Resizing weighs all source pixels (Pillow's bicubic filter, antialiased). crop: fill the shape, cut the longer side
  evenly. pad: fit inside, fill the rest with `background`. stretch: ignore the aspect ratio.
"""

import io
import math
import struct
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.Image import Resampling

from stages.common.preparation import Preparation

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 89_478_485  # Pillow's own limit, above which it suspects a decompression bomb
MIN_SIDE = 2  # pixels: a tracking pixel is no picture
ORIENTATION = 0x0112  # the EXIF tag
# What Pillow raises for content that is damaged; it has no common class for it.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    RuntimeError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class UnusablePicture(Exception):  # noqa: N818 - it is the picture that is at fault
    """A picture that cannot be decoded. `reason` says why, without the picture's name."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Facts:
    """What the header of a picture says. width and height are in pixels, as stored: before `orientation` is applied."""

    format: str  # one of FORMATS
    mode: str  # Pillow's: 1, L, LA, P, RGB, RGBA, CMYK, I;16, …
    width: int
    height: int
    orientation: int  # of EXIF, 1 to 8; 1: upright


def facts(content: bytes) -> Facts:
    """Read the header, without decoding a pixel. Raises UnusablePicture."""
    with _opened(content) as image:
        try:
            orientation = image.getexif().get(ORIENTATION, 1)
        except DAMAGED:  # EXIF that cannot be read has no say
            orientation = 1
        form = "JPEG" if image.format == "MPO" else str(image.format)  # a JPEG with a second picture behind the first
        upright = orientation if orientation in range(1, 9) else 1
        return Facts(form, image.mode, image.width, image.height, upright)


def decode(content: bytes, preparation: Preparation) -> npt.NDArray[np.uint8]:
    """Decode a picture into uint8 (C, H, W), by the rules at the top of this file. Raises UnusablePicture.

    The same content and preparation give the same array, in whatever process or thread.
    """
    with _opened(content) as image:
        try:
            with warnings.catch_warnings(action="ignore"):  # about metadata, which is not used
                _load_upright(image, preparation)
                prepared = _resized(_flat(image, preparation), preparation)
        except DAMAGED as error:
            raise UnusablePicture(_reason(error)) from None
    pixels = np.asarray(prepared, dtype=np.uint8)  # (H, W) or (H, W, C)
    return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))  # (C, H, W)


def _opened(content: bytes) -> Image.Image:
    """The picture, its header read and its size found acceptable. Raises UnusablePicture."""
    if not content:
        raise UnusablePicture("an empty file")
    try:
        with warnings.catch_warnings(action="ignore"):
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        start = content.lstrip()[:15].lower()
        page = " but an HTML page" if start.startswith((b"<!doctype html", b"<html")) else ""
        raise UnusablePicture(f"not a picture{page}; readable: {', '.join(FORMATS)}") from None
    except DAMAGED as error:
        raise UnusablePicture(_reason(error)) from None
    if image.width * image.height > MAX_PIXELS:
        raise UnusablePicture(f"{image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are decoded")
    if min(image.width, image.height) < MIN_SIDE:
        raise UnusablePicture(f"{image.width} x {image.height} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed")
    return image


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        pixels = "".join(character for character in str(error).partition(" pixels")[0] if character.isdigit())
        return f"{int(pixels):,} pixels; at most {MAX_PIXELS:,} are decoded"
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return f"damaged ({text})"


def _load_upright(image: Image.Image, preparation: Preparation) -> None:
    """Decode, at a reduced scale where the format has one, and turn as EXIF says."""
    longest = max(preparation.image_size)  # of what is needed, whichever way the picture is turned
    scale = longest / (max(image.size) if preparation.resize == "pad" else min(image.size))
    if image.format in ("JPEG", "MPO"):
        # Pillow picks the smallest scale that is not below this size; where none is, the full one.
        image.draft(None, (math.ceil(2 * scale * image.width), math.ceil(2 * scale * image.height)))
    image.load()
    with suppress(*DAMAGED):  # EXIF that cannot be read has no say
        ImageOps.exif_transpose(image, in_place=True)


def _flat(image: Image.Image, preparation: Preparation) -> Image.Image:
    """Mode L or RGB, as `preparation.channels` says: 8 bits a channel, nothing transparent."""
    if image.mode.startswith("I"):
        image = _upper_bits(image)
    if image.mode == "F":
        raise UnusablePicture("floating-point pixels, whose range is not known")
    wanted = "L" if preparation.channels == "grey" else "RGB"
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        flat = Image.new("RGB", image.size, tuple(preparation.background))
        flat.paste(image, mask=image.getchannel("A"))
        image = flat
    if image.mode == "P":
        image = image.convert("RGB")
    return image if image.mode == wanted else image.convert(wanted)


def _upper_bits(image: Image.Image) -> Image.Image:
    """The upper 8 of 16 bits, mode L: what Pillow itself does with the 16-bit channels of an RGB file."""
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 0xFFFF):
        raise UnusablePicture(f"values from {values.min()} to {values.max()}; 16 bits are read at most")
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))


def _resized(image: Image.Image, preparation: Preparation) -> Image.Image:
    height, width = preparation.image_size
    if image.size == (width, height):
        return image
    if preparation.resize == "stretch":
        return image.resize((width, height), Resampling.BICUBIC)
    if preparation.resize == "crop":
        return ImageOps.fit(image, (width, height), Resampling.BICUBIC)
    scale = min(width / image.width, height / image.height)
    fitted = image.resize((max(1, round(scale * image.width)), max(1, round(scale * image.height))), Resampling.BICUBIC)
    colour = Image.new("RGB", (1, 1), tuple(preparation.background)).convert(image.mode).getpixel((0, 0))
    padded = Image.new(image.mode, (width, height), colour)
    padded.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))
    return padded
