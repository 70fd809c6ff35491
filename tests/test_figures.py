"""Figures: the same bytes for any settings of the user, and complete for any number of classes."""

import io
import os
import subprocess
import sys
from collections.abc import Callable

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pytest
from PIL import Image

from stages.evaluate import figures, scores
from tests.imports import ROOT


def overview(classes: int = 3, images: int = 500, unscaled: bool = True) -> bytes:
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, images)
    confidences = random.uniform(1 / classes, 1, images)
    predictions = np.where(random.uniform(size=images) < confidences, labels, random.integers(0, classes, images))
    table = scores.reliability(confidences, predictions == labels, 15)
    names = [f"T-shirt/top {number}" for number in range(classes)]
    matrix = scores.confusion(labels, predictions, classes)
    before = scores.reliability(confidences**0.5, predictions == labels, 15) if unscaled else None
    return figures.overview(matrix, names, table, before, "a title")


def worst(count: int = 7, channels: int = 1) -> bytes:
    images = np.random.default_rng(0).integers(0, 256, (count, channels, 9, 12), dtype=np.uint8)
    return figures.worst(images, [f"{number}, predicted 3\nat 99 %" for number in range(count)], "mistakes")


def picture(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content), formats=["PNG"])
    image.load()
    return image


@pytest.mark.parametrize("draw", [overview, worst])
def test_a_users_settings_change_no_byte(draw: Callable[[], bytes]) -> None:
    first = draw()
    with mpl.rc_context():
        mpl.style.use("dark_background")
        mpl.rcParams.update({"font.size": 30, "savefig.dpi": 17, "savefig.bbox": "tight"})
        assert draw() == first
        assert mpl.rcParams["font.size"] == 30  # the settings are restored
    assert b"Software" not in first


DRAW = """
import sys
from review import sweep_figure
from stages.evaluate import figures
import numpy as np
setting = {"parameters": {}, "values": [0.9], "mean": 0.9}
sys.stdout.buffer.write(figures.worst(np.zeros((1, 1, 9, 9), dtype=np.uint8), ["a, predicted g"], "mistakes"))
sys.stdout.buffer.write(sweep_figure.draw({"settings": [setting], "varied": [], "metric": "accuracy"}))
"""


def test_the_environment_changes_no_byte() -> None:
    def drawn(**environment: str) -> bytes:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        return subprocess.run([sys.executable, "-c", DRAW], env=environment, stdout=subprocess.PIPE, check=True).stdout

    others = {"SOURCE_DATE_EPOCH": "1", "MPLBACKEND": "svg", "TZ": "Asia/Tokyo"}
    assert drawn(FREETYPE_PROPERTIES="truetype:interpreter-version=35", **others) == drawn()


def test_both_calibrations_are_drawn() -> None:
    def orange_pixels(content: bytes) -> int:
        pixels = np.asarray(picture(content).convert("RGB")).astype(int)
        return int((np.abs(pixels - (0xD5, 0x5E, 0x00)).sum(axis=2) < 60).sum())

    assert orange_pixels(overview(unscaled=True)) > 100
    assert orange_pixels(overview(unscaled=False)) == 0


@pytest.mark.parametrize("classes", [2, 10, 50])
def test_any_number_of_classes(classes: int) -> None:
    content = overview(classes)
    assert picture(content).width >= 900
    assert len(content) < 300_000


def test_a_name_with_dollars_is_no_formula() -> None:
    names = ["$5-$10", "$#$"]  # the second is no valid formula
    table = scores.reliability(np.array([0.5, 0.9]), np.array([True, True]), 15)
    drawn = figures.overview(np.eye(2, dtype=np.int64), names, table, None, "a title")
    escaped = figures.overview(np.eye(2, dtype=np.int64), [r"\$5-\$10", r"\$#\$"], table, None, "a title")
    assert picture(drawn).size == picture(escaped).size
    assert drawn != escaped  # the backslashes are drawn
    assert picture(figures.worst(np.zeros((1, 1, 9, 9), dtype=np.uint8), ["$#$\n→ $5-$10"], "mistakes")).width >= 400


@pytest.mark.parametrize("count", [0, 1, 5, 26, 101, 400])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_number_of_mistakes(count: int, channels: int) -> None:
    image = picture(worst(count, channels)).convert("RGB")
    assert image.width >= 400
    assert image.getpixel((0, 0)) == (255, 255, 255)  # opaque, so readable on a dark page
    assert len(image.getcolors(maxcolors=10**6) or []) > 2  # not blank


def test_very_tall_images_are_drawn_shorter() -> None:
    image = picture(figures.worst(np.zeros((1, 1, 4096, 2), dtype=np.uint8), ["a\n→ b"], "mistakes"))
    assert image.height == 20_050
    assert (0, 0, 0) in [colour for _, colour in image.convert("RGB").getcolors(maxcolors=10**6) or []]


def test_colours_are_kept() -> None:
    red = np.zeros((1, 3, 9, 9), dtype=np.uint8)
    red[:, 0] = 255
    colours = picture(figures.worst(red, ["red"], "one")).convert("RGB").getcolors(maxcolors=10**6) or []
    assert (255, 0, 0) in [colour for _, colour in colours]
