"""Positions of the lines and labels of charts. The templates draw them as SVG, so that they follow light and dark.

A chart is about 380 units wide, the width of a phone: at that size a unit is a pixel.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.ticker import MaxNLocator

from review.formatting import Interval, Measure

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 368, 10, 208  # of the area that holds the lines
DOTS = 30  # a line with more points has no dots

Point = tuple[float, float]
Tick = tuple[float, str]  # its position on the axis, and its label
Range = tuple[float, float]


class Line(NamedTuple):
    """A line. kind: a class of the page's style, which defines its colour and dashes."""

    name: str
    kind: str
    points: Sequence[Point]


class Axes(NamedTuple):
    """Two axes in the drawing's units. x, y: from values to positions. y_range: the values inside the chart."""

    x: Callable[[float], float]
    y: Callable[[float], float]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    y_range: Range

    def place(self, point: Point) -> Point:
        """The position of a point; a point outside y_range is moved to the edge."""
        return self.x(point[0]), min(max(self.y(point[1]), TOP), BOTTOM)


class Chart(NamedTuple):
    """Lines and ticks in the drawing's units. description: the chart in words, for screen readers."""

    name: str
    description: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def axes(x_range: Range, y_range: Range, percent: bool = False) -> Axes:
    """Axes for whole numbers, such as epochs, and values. percent: label the y axis in percent."""
    (x_low, x_high), (y_low, y_high) = x_range, y_range
    x_ticks, y_ticks = ticks(x_low, x_high, whole=True), ticks(y_low, y_high)
    if percent:  # no share is below 0 % or above 100 %
        y_ticks = [tick for tick in y_ticks if -1e-9 <= tick <= 1 + 1e-9]
    margin = 0.5 if x_low == x_high else 0.0
    y_low, y_high = min(y_ticks[0], y_low), max(y_ticks[-1], y_high)
    x, y = scale(x_low - margin, x_high + margin, LEFT, RIGHT), scale(y_low, y_high, BOTTOM, TOP)
    return Axes(
        x,
        y,
        [(x(tick), label) for tick, label in labelled(x_ticks) if x_low <= tick <= x_high],
        [(y(tick), label) for tick, label in labelled(y_ticks, percent)],
        (y_low, y_high),
    )


def chart(
    name: str, description: str, lines: Sequence[Line], percent: bool = False, y_range: Range | None = None
) -> Chart:
    """Lines over whole numbers, such as epochs. y_range: the values to show; default: all of them."""
    lines = [line._replace(points=[point for point in line.points if all(map(math.isfinite, point))]) for line in lines]
    x_values, y_values = zip(*[point for line in lines for point in line.points] or [(0, 0), (1, 1)], strict=True)
    frame = axes((min(x_values), max(x_values)), y_range or (min(y_values), max(y_values)), percent)
    placed = [line._replace(points=[frame.place(point) for point in line.points]) for line in lines]
    return Chart(name, description, placed, frame.x_ticks, frame.y_ticks)


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A function from values between low and high to positions between start and end, rounded to a tenth of a unit."""
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers, from below `low` to above `high`."""
    if low == high and not whole:
        low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05
    return [float(tick) for tick in MaxNLocator(nbins=5, integer=whole).tick_values(low, high)]


def labelled(values: Sequence[float], percent: bool = False) -> list[Tick]:
    """Ticks with their labels, with enough decimals to distinguish them."""
    factor, unit = (100, " %") if percent else (1, "")
    step = factor * (values[1] - values[0]) if len(values) > 1 else 1.0
    decimals = next((n for n in range(12) if math.isclose(round(step, n), step, rel_tol=1e-6)), 12)
    return [(value, f"{factor * value:.{decimals}f}{unit}") for value in values]


def interval(difference: Interval, measure: Measure) -> dict[str, Any]:
    """The positions of a difference and its interval on an axis around zero. ends: the labels of the axis's ends."""
    reach = 1.15 * max(abs(difference.low), abs(difference.high), 1e-9)
    x = scale(-reach, reach, 20, WIDTH - 20)
    low, middle, high = (
        measure.difference(value) for value in (difference.low, difference.difference, difference.high)
    )
    return {
        "low": x(difference.low),
        "middle": x(difference.difference),
        "high": x(difference.high),
        "ends": [measure.difference(-reach), measure.difference(reach)],
        "description": f"Difference of {measure.name} {middle}, interval {low} to {high}",
    }
