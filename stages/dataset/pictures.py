"""Read the header of a picture, and decode it to a fixed shape by these rules.

- The formats are JPEG, PNG, WebP, BMP, TIFF and GIF; the content counts, not the name. Of several frames or pages, the
  first is used.
- The EXIF orientation is applied.
- 16-bit values keep their upper 8 bits. Other integers above 8 bits count as 16-bit values. Floating-point pixels are
  refused, since their range is unknown.
- Transparency (an alpha channel, a transparent colour, a transparent palette entry) is blended over `background`.
- CMYK becomes RGB as R = (255 - C) (255 - K) / 255 and so on.
- Embedded colour profiles are ignored: all values are read as sRGB.
- Grey is (299 R + 587 G + 114 B) / 1000, ITU-R 601.
- Resizing is Pillow's bicubic filter with antialiasing. crop: fill the shape, and cut the longer side evenly. pad: fit
  inside, and fill the rest with `background`. stretch: ignore the aspect ratio.
- A picture of at least four times its final size is first averaged over blocks of whole pixels, down to twice the final
  size or more; a JPEG by its decoder, which is several times faster. docs/own-images.md shows the effect.
"""

import io
import math
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.Image import Resampling, Transpose

from stages.common.errors import one_line
from stages.common.preparation import Preparation

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs
MIN_SIDE = 2  # pixels; a tracking pixel is not a picture
MIN_SCALE = 2  # averaging blocks leaves a picture at least so many times its final size
STRIP_PIXELS = 2**20  # a large picture is flattened in strips of about so many pixels
ORIENTATION = 0x0112  # the EXIF tag
TRANSPOSE = {  # orientation -> the operation that makes the picture upright
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
TURNED = (5, 6, 7, 8)  # orientations that swap width and height
# Pillow raises any of these for damaged content; they have no common base class.
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


class UnusablePictureError(Exception):
    """A picture cannot be decoded. reason: why, without the name of the picture."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Facts:
    """The header of a picture. width, height: in pixels, before `orientation` is applied."""

    format: str  # one of FORMATS
    mode: str  # Pillow's: 1, L, LA, P, RGB, RGBA, CMYK, I;16, …
    width: int
    height: int
    orientation: int  # of EXIF, 1 to 8; 1: upright


def facts(content: bytes) -> Facts:
    """Read the header, and decode no pixels. Raises UnusablePictureError."""
    with _opened(content) as image:
        form = "JPEG" if image.format == "MPO" else str(image.format)  # MPO: JPEG with further pictures
        return Facts(form, image.mode, image.width, image.height, _orientation(image))


def decode(content: bytes, preparation: Preparation) -> npt.NDArray[np.uint8]:
    """Decode a picture to uint8 (C, H, W), by the rules at the top of this file. Raises UnusablePictureError.

    The same content and preparation give the same array, in any process or thread.
    """
    with _opened(content) as image:
        orientation = _orientation(image)
        try:
            with warnings.catch_warnings(action="ignore"):  # about metadata, which is not used
                fitted = _fitted(image, preparation, turned=orientation in TURNED)
        except DAMAGED as error:
            raise UnusablePictureError(_reason(error)) from None
    if orientation in TRANSPOSE:
        fitted = fitted.transpose(TRANSPOSE[orientation])
    padded = _padded(fitted, preparation)
    bands = padded.getbands()
    # Faster than to transpose the array of Pillow's pixels. A bytearray, since the array is to be writable.
    pixels = bytearray().join([padded.tobytes("raw", band) for band in bands])
    return np.frombuffer(pixels, np.uint8).reshape(len(bands), padded.height, padded.width)


def _opened(content: bytes) -> Image.Image:
    """The picture, once its header is read and its size checked. Raises UnusablePictureError."""
    if not content:
        raise UnusablePictureError("an empty file")
    try:
        with warnings.catch_warnings(action="ignore"):
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        start = content.lstrip()[:15].lower()
        page = " but an HTML page" if start.startswith((b"<!doctype html", b"<html")) else ""
        raise UnusablePictureError(f"not a picture{page}; readable: {', '.join(FORMATS)}") from None
    except DAMAGED as error:
        raise UnusablePictureError(_reason(error)) from None
    if image.width * image.height > MAX_PIXELS:
        raise UnusablePictureError(f"{image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are decoded")
    if min(image.width, image.height) < MIN_SIDE:
        raise UnusablePictureError(
            f"{image.width} x {image.height} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed"
        )
    return image


def _orientation(image: Image.Image) -> int:
    """The orientation in the header, 1 to 8; 1 if there is none, or it cannot be read."""
    if image.format == "TIFF":
        return 1  # Pillow applies it: the picture and its size are upright
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole picture to look for EXIF after the pixels
    try:
        with warnings.catch_warnings(action="ignore"):
            orientation = image.getexif().get(ORIENTATION, 1)
    except DAMAGED:
        return 1
    return orientation if orientation in range(1, 9) else 1


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        pixels = "".join(character for character in str(error).partition(" pixels")[0] if character.isdigit())
        return f"{int(pixels):,} pixels; at most {MAX_PIXELS:,} are decoded"
    return f"damaged ({one_line(error)})"


def _fitted(image: Image.Image, preparation: Preparation, turned: bool) -> Image.Image:
    """Decode and resize, without applying the orientation. turned: it swaps width and height. Mode L or RGB."""
    height, width = reversed(preparation.image_size) if turned else preparation.image_size
    if preparation.resize == "pad":
        scale = min(width / image.width, height / image.height)
        width, height = max(1, round(scale * image.width)), max(1, round(scale * image.height))
    across, down = float(image.width), float(image.height)  # size of the part that is used, in pixels of the file
    if preparation.resize == "crop":
        scale = max(width / across, height / down)
        across, down = min(across, width / scale), min(down, height / scale)
    left, top = (image.width - across) / 2, (image.height - down) / 2

    shrink = 1.0  # factor by which the decoder and the averaging reduce the picture
    if image.format in ("JPEG", "MPO"):
        # Pillow uses the smallest scale that is not below this size, or else the full size.
        wanted = (
            math.ceil(MIN_SCALE * image.width * width / across),
            math.ceil(MIN_SCALE * image.height * height / down),
        )
        full = image.width
        if drafted := image.draft(None, wanted):
            shrink = full / drafted[1][2]
    image.load()
    block = int(min(across / width, down / height) / shrink / MIN_SCALE)
    flat = _averaged(image, preparation, block) if block > 1 else _flat(image, preparation)
    shrink *= max(block, 1)
    right, bottom = min(flat.width, (left + across) / shrink), min(flat.height, (top + down) / shrink)
    box = (left / shrink, top / shrink, right, bottom)
    return flat.resize((width, height), Resampling.BICUBIC, box=box)


def _averaged(image: Image.Image, preparation: Preparation, block: int) -> Image.Image:
    """`_flat`, then the mean of each block of pixels. Works in strips, so a large picture is in memory only once."""
    wanted = "L" if preparation.channels == "grey" else "RGB"
    small = Image.new(wanted, (math.ceil(image.width / block), math.ceil(image.height / block)))
    strip = block * max(1, STRIP_PIXELS // (block * image.width))
    for top in range(0, image.height, strip):
        rows = image.crop((0, top, image.width, min(top + strip, image.height)))
        small.paste(_flat(rows, preparation).reduce(block), (0, top // block))
    return small


def _flat(image: Image.Image, preparation: Preparation) -> Image.Image:
    """Mode L or RGB, as in `preparation.channels`: 8 bits per channel, no transparency."""
    if image.mode.startswith("I"):
        image = _upper_bits(image)
    if image.mode == "F":
        raise UnusablePictureError("floating-point pixels, whose range is unknown")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        flat = Image.new("RGB", image.size, _colour(preparation))
        flat.paste(image, mask=image.getchannel("A"))
        image = flat
    if image.mode == "P":
        image = image.convert("RGB")
    wanted = "L" if preparation.channels == "grey" else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _colour(preparation: Preparation) -> tuple[int, int, int]:
    red, green, blue = preparation.background
    return red, green, blue


def _upper_bits(image: Image.Image) -> Image.Image:
    """The upper 8 of 16 bits, mode L, as Pillow does for the 16-bit channels of an RGB file."""
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 0xFFFF):
        raise UnusablePictureError(f"values from {values.min()} to {values.max()}; at most 16 bits are supported")
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))


def _padded(image: Image.Image, preparation: Preparation) -> Image.Image:
    """The picture, centred on `background` if it is smaller than the shape."""
    height, width = preparation.image_size
    if image.size == (width, height):
        return image
    padded = Image.new("RGB", (width, height), _colour(preparation)).convert(image.mode)
    padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return padded
