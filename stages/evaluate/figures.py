"""Figures as PNG bytes. The same numbers give the same bytes, whatever the user's matplotlib settings are."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pandas as pd

# FreeType reads this variable when matplotlib is imported; it changes how letters are drawn.
os.environ.pop("FREETYPE_PROPERTIES", None)

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from stages.evaluate.scores import calibration_error

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"  # distinguishable for the colour-blind (Okabe and Ito 2008)
DPI = 100
MAX_INCHES = 200  # of the height of a sheet of images; a sheet of very tall ones could take gigabytes of memory


@contextmanager
def own_style() -> Iterator[None]:
    """Use matplotlib's defaults and its own font, not the machine's."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "svg.hashsalt": "0"})
        mpl.rcParams["text.parse_math"] = False  # a name with $ in it is a name
        yield


def page(width: float, height: float) -> Figure:
    """An empty figure with constrained layout. width, height: in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=DPI, metadata={"Software": None}
    )  # otherwise it would contain matplotlib's version
    return buffer.getvalue()


def overview(
    matrix: npt.NDArray[np.int64],
    classes: Sequence[str],
    reliability: pd.DataFrame,
    unscaled: pd.DataFrame | None,
    title: str,
) -> bytes:
    """Two panels: the confusion matrix and the reliability diagram.

    matrix: (K, K), with one row per true class. reliability: as `scores.reliability` gives it. unscaled: the same
    without the network's temperature; None if it has none. title: of the figure.
    """
    with own_style():
        side = min(max(5.0, 0.42 * len(classes) + 1), 14.0)  # inches
        figure = page(side + 4.6, side + 0.3)
        left, right = figure.subplots(1, 2, width_ratios=[side, 4.2])
        figure.suptitle(title, fontsize=12)
        _confusion(left, matrix, classes)
        _reliability(right, reliability, unscaled)
        return png(figure)


def scatter(labels: npt.NDArray[np.float64], predictions: npt.NDArray[np.float32], title: str) -> bytes:
    """Two panels for regression: predictions by labels, both (N,), and a histogram of the errors."""
    with own_style():
        figure = page(9.6, 5.0)
        left, right = figure.subplots(1, 2)
        figure.suptitle(title, fontsize=12)
        ends = [min(labels.min(), predictions.min()), max(labels.max(), predictions.max())]
        left.plot(ends, ends, color=GREY, linestyle="--", linewidth=1, label="perfect")
        faint = float(np.clip(300 / len(labels), 0.05, 0.6))  # so that dense regions stand out
        left.scatter(labels, predictions, s=9, color=BLUE, alpha=faint, linewidths=0)
        left.set(xlabel="label", ylabel="prediction", title="predictions by label")
        left.legend(frameon=False)
        right.hist(predictions - labels, bins=min(max(len(labels) // 20, 10), 60), color=BLUE)
        right.axvline(0, color=GREY, linestyle="--", linewidth=1)
        right.set(xlabel="prediction - label", ylabel="images", title="errors")
        return png(figure)


def _confusion(axes: Axes, matrix: npt.NDArray[np.int64], classes: Sequence[str]) -> None:
    # With a power of 0.3, a cell of 5 mistakes is visible beside a diagonal of 1,000.
    axes.imshow(matrix, cmap="Blues", norm=PowerNorm(0.3, vmin=0, vmax=max(int(matrix.max()), 1)))
    places = range(len(classes))
    slanted = 45 if max(map(len, classes)) > 3 else 0
    axes.set_xticks(places, classes, rotation=slanted, ha="right" if slanted else "center", rotation_mode="anchor")
    axes.set_yticks(places, classes)
    axes.set(xlabel="predicted", ylabel="true", title="images of each class by predicted class")
    if len(classes) <= 30:  # the numbers of more classes would not fit
        dark = 0.5 ** (1 / 0.3) * matrix.max()
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if count > dark else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)


def _reliability(axes: Axes, table: pd.DataFrame, unscaled: pd.DataFrame | None) -> None:
    width = table["high"] - table["low"]
    share = table["images"] / table["images"].sum()
    axes.bar(table["low"], share, width, align="edge", color="#dddddd", label="share of the images")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
    if unscaled is not None:
        error = calibration_error(unscaled)
        label = f"without temperature: calibration error {error:.4f}"
        axes.plot(unscaled["confidence"], unscaled["accuracy"], "s", color=ORANGE, markersize=3, label=label)
    # Most bins have few images; the interval shows how uncertain their accuracy is.
    interval = [table["accuracy"] - table["accuracy_low"], table["accuracy_high"] - table["accuracy"]]
    axes.errorbar(
        table["confidence"],
        table["accuracy"],
        yerr=interval,
        color=BLUE,
        fmt="o",
        markersize=4,
        linewidth=1,
        label="accuracy, 95 % interval",
    )
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1.02),
        xlabel="probability of the predicted class",
        ylabel="accuracy",
        title=f"calibration error {calibration_error(table):.4f}",
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=1, frameon=False)


def worst(images: npt.NDArray[np.uint8], titles: Sequence[str], heading: str) -> bytes:
    """A grid of images, each below a title of two lines. images: uint8 (n, C, H, W), 0 to 400, grey or colour."""
    count, channels, height, width = images.shape
    columns = 5 if count <= 25 else 10 if count <= 100 else 20
    rows = -(-count // columns) or 1
    # One large image instead of subplots, each of which would take 30 ms.
    above, beside = round(0.3 * height), round(0.06 * width) + 1  # pixels of the images, for the titles and the gaps
    sheet = np.full((rows * (height + above), columns * (width + beside), 3), 255, dtype=np.uint8)
    corners = [
        ((n // columns) * (height + above) + above, (n % columns) * (width + beside) + beside // 2)
        for n in range(count)
    ]
    for image, (top, left) in zip(images, corners, strict=True):
        colour = np.repeat(image, 3, axis=0) if channels == 1 else image  # (3, H, W)
        sheet[top : top + height, left : left + width] = colour.transpose(1, 2, 0)
    with own_style():
        inches = 1.45 * columns  # wide enough for titles of about 20 letters
        tall = min(inches / sheet.shape[1] * sheet.shape[0], MAX_INCHES)  # very tall images are drawn shorter
        figure = Figure(figsize=(inches, tall + 0.5))
        axes = figure.add_axes((0, 0, 1, tall / (tall + 0.5)))
        axes.axis("off")
        axes.imshow(sheet, interpolation="nearest", aspect="auto")
        figure.suptitle(heading, fontsize=11, y=1 - 0.1 / figure.get_figheight(), va="top")
        for title, (top, left) in zip(titles, corners, strict=True):
            axes.text(left + width / 2, top - 1, title, ha="center", va="bottom", fontsize=8)
        return png(figure)
