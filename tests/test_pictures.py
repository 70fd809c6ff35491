"""One picture: every mode, orientation and format by its documented rule, and what cannot be used."""

import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from stages.common.preparation import Preparation
from stages.dataset import pictures
from stages.dataset.pictures import Facts, UnusablePictureError, decode, facts


def preparation(
    channels: Any = "rgb", size: tuple[int, int] = (4, 6), resize: Any = "stretch", background: Any = (10, 20, 30)
) -> Preparation:
    return Preparation(channels=channels, image_size=list(size), resize=resize, background=list(background))


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def constant(mode: str, colour: Any, form: str = "PNG", **options: Any) -> bytes:
    return saved(Image.new(mode, (9, 7), colour), form, **options)


def palette(**options: Any) -> bytes:
    image = Image.new("P", (9, 7), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return saved(image, **options)


SIXTEEN = np.full((7, 9), 0x8F12, dtype=np.uint16)


@pytest.mark.parametrize(
    ("content", "rgb", "grey"),
    [
        pytest.param(constant("RGB", (200, 100, 50)), (200, 100, 50), 124, id="RGB"),
        pytest.param(constant("L", 77), (77, 77, 77), 77, id="L"),
        pytest.param(constant("1", 1), (255, 255, 255), 255, id="1"),
        pytest.param(constant("1", 0, "TIFF"), (0, 0, 0), 0, id="1-tiff"),
        pytest.param(constant("RGBA", (200, 100, 50, 255)), (200, 100, 50), 124, id="RGBA"),
        pytest.param(constant("RGBA", (200, 100, 50, 0)), (10, 20, 30), 18, id="transparent"),
        pytest.param(constant("RGBA", (210, 120, 30, 51)), (50, 40, 30), 42, id="a fifth of it"),
        pytest.param(constant("LA", (77, 255)), (77, 77, 77), 77, id="LA"),
        pytest.param(constant("LA", (77, 0)), (10, 20, 30), 18, id="LA-transparent"),
        pytest.param(palette(), (200, 100, 50), 124, id="P"),
        pytest.param(palette(transparency=1), (10, 20, 30), 18, id="P-transparent"),
        pytest.param(palette(transparency=0), (200, 100, 50), 124, id="P-other-transparent"),
        pytest.param(constant("RGB", (1, 2, 3), transparency=(1, 2, 3)), (10, 20, 30), 18, id="RGB-colour-transparent"),
        pytest.param(constant("L", 5, transparency=5), (10, 20, 30), 18, id="L-value-transparent"),
        pytest.param(constant("CMYK", (50, 100, 150, 20), "TIFF"), (189, 143, 97), 152, id="CMYK"),
        pytest.param(saved(Image.fromarray(SIXTEEN)), (0x8F,) * 3, 0x8F, id="16 bits"),
        pytest.param(saved(Image.fromarray(SIXTEEN), "TIFF"), (0x8F,) * 3, 0x8F, id="16 bits-tiff"),
        pytest.param(saved(Image.fromarray(SIXTEEN.astype(np.int32)), "TIFF"), (0x8F,) * 3, 0x8F, id="32 bits"),
        pytest.param(constant("RGB", (200, 100, 50), "WEBP", lossless=True), (200, 100, 50), 124, id="WebP"),
        pytest.param(constant("RGB", (200, 100, 50), "BMP"), (200, 100, 50), 124, id="BMP"),
        pytest.param(constant("L", 77, "GIF"), (77, 77, 77), 77, id="GIF"),
        pytest.param(
            constant("L", 77, "GIF", save_all=True, append_images=[Image.new("L", (9, 7), 1)]),
            (77,) * 3,
            77,
            id="frames",
        ),
        pytest.param(
            constant("L", 77, "TIFF", save_all=True, append_images=[Image.new("L", (3, 3), 1)]),
            (77,) * 3,
            77,
            id="pages",
        ),
    ],
)
def test_every_mode_by_its_rule(content: bytes, rgb: tuple[int, int, int], grey: int) -> None:
    colours = decode(content, preparation())
    assert colours.shape == (3, 4, 6)
    assert colours.dtype == np.uint8
    assert np.array_equal(colours, np.broadcast_to(np.array(rgb, np.uint8)[:, None, None], (3, 4, 6)))
    assert np.array_equal(decode(content, preparation("grey")), np.full((1, 4, 6), grey, np.uint8))


PHOTO = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)


def test_nothing_is_changed_where_nothing_has_to_be() -> None:
    assert np.array_equal(decode(saved(Image.fromarray(PHOTO)), preparation(size=(32, 48))), PHOTO.transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_the_orientation_of_exif_is_applied(orientation: int, form: str, resize: str) -> None:
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    options = {"quality": 100} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    content = saved(Image.fromarray(PHOTO), form, exif=exif, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if form != "TIFF":  # which Pillow turns by itself
        assert facts(content) == Facts(form, "RGB", 48, 32, orientation)
    expected = decode(saved(upright), preparation(size=(16, 20), resize=resize))
    found = decode(content, preparation(size=(16, 20), resize=resize))
    assert np.abs(found.astype(int) - expected).mean() < 0.5  # Pillow rounds between its passes, across and down


@pytest.mark.parametrize("size", [(10, 10), (7, 30), (30, 7), (64, 64)])
def test_resizing_is_pillows_own_antialiased_bicubic(size: tuple[int, int]) -> None:
    image, (height, width) = Image.fromarray(PHOTO), size
    stretched = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    assert np.array_equal(decode(saved(image), preparation(size=size)).transpose(1, 2, 0), stretched)
    cropped = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)).astype(int)
    found = decode(saved(image), preparation(size=size, resize="crop")).transpose(1, 2, 0)
    assert np.abs(found - cropped).max() <= 1


def test_padding_is_even_and_of_the_background() -> None:
    padded = decode(constant("RGB", (200, 100, 50)), preparation(size=(18, 18), resize="pad"))  # 9 x 7 becomes 18 x 14
    assert np.array_equal(padded[:, :2], padded[:, -2:])
    assert padded[:, 0, 0].tolist() == [10, 20, 30]
    assert padded[:, 2:-2].reshape(3, -1).min(1).tolist() == [200, 100, 50]
    assert decode(constant("L", 3), preparation("grey", (18, 18), "pad"))[0, 0, 0] == 18


def test_a_line_is_padded_to_a_picture() -> None:
    assert decode(saved(Image.new("L", (5000, 2), 9)), preparation("grey", (8, 8), "pad"))[0, 3].tolist() == [9] * 8


def smooth(width: int, height: int) -> Image.Image:
    """Something like a photograph: noise of every scale."""
    draw = np.random.default_rng(1)
    layers = [
        Image.fromarray(draw.integers(0, 256, (height // step, width // step, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for step in (4, 16, 64)
    ]
    return Image.fromarray(np.mean([np.asarray(layer) for layer in layers], axis=0).astype(np.uint8))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_averaging_first_is_near_to_resizing_at_once(form: str, resize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(smooth(1000, 700), form)
    fast = decode(content, preparation(size=(64, 64), resize=resize))
    monkeypatch.setattr(pictures, "MIN_SCALE", 10**6)  # that is, never
    exact = decode(content, preparation(size=(64, 64), resize=resize))
    difference = np.abs(fast.astype(int) - exact)
    assert 0 < difference.mean() < 1.5
    assert difference.max() <= 12


def test_a_large_picture_is_averaged_in_strips_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(smooth(700, 900).convert("RGBA"))
    expected = decode(content, preparation(size=(20, 20)))
    monkeypatch.setattr(pictures, "STRIP_PIXELS", 1)
    assert np.array_equal(decode(content, preparation(size=(20, 20))), expected)


def test_a_jpeg_with_a_second_picture_is_a_jpeg() -> None:
    content = saved(Image.new("RGB", (40, 20)), "MPO", save_all=True, append_images=[Image.new("RGB", (40, 20))])
    assert facts(content) == Facts("JPEG", "RGB", 40, 20, 1)


def claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be so large."""
    content = constant("L", 0)
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


PNG = saved(Image.fromarray(PHOTO))
JPEG = saved(Image.fromarray(PHOTO), "JPEG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (
            b"<!DOCTYPE html><title>404</title>",
            "not a picture but an HTML page; readable: JPEG, PNG, WEBP, BMP, TIFF, GIF",
        ),
        (b"\n <html>", "not a picture but an HTML page"),
        (b"nonsense", "not a picture; readable"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a picture; readable"),
        (PNG[:100], "damaged (image file is truncated"),
        (JPEG[:-200], "damaged (image file is truncated"),
        (PNG[:20], "damaged|not a picture"),
        (PNG[:60] + b"xxxx" + PNG[64:], "damaged ("),
        (saved(Image.new("L", (1, 1))), "1 x 1 pixels; at least 2 x 2 are needed"),
        (saved(Image.new("L", (1, 50))), "1 x 50 pixels; at least 2 x 2"),
        (claims(10_000, 10_000), "100,000,000 pixels; at most 89,478,485 are decoded"),
        (claims(30_000, 20_000), "600,000,000 pixels; at most 89,478,485 are decoded"),
        (saved(Image.new("F", (9, 7), 0.5), "TIFF"), "floating-point pixels"),
        (
            saved(Image.fromarray(np.full((7, 9), 70_000, np.int32)), "TIFF"),
            "values from 70000 to 70000; at most 16 bits",
        ),
    ],
)
def test_what_cannot_be_used(content: bytes, reason: str) -> None:
    with pytest.raises(UnusablePictureError) as error:
        decode(content, preparation())
    assert any(choice in error.value.reason for choice in reason.split("|"))
    assert len(error.value.reason.splitlines()) == 1


SMALL = [saved(Image.fromarray(PHOTO[:8, :8]), form) for form in pictures.FORMATS] + [palette(transparency=1)]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SMALL), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8))
def test_no_damage_ends_in_a_traceback(content: bytes, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(content)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    for function in (facts, lambda content: decode(content, preparation())):
        with suppress(UnusablePictureError):
            function(bytes(damaged))
