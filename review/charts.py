"""Where the lines and labels of a chart lie. report.html.j2 draws them as SVG, so that they follow light and dark.

A chart is some 380 units wide, which is a telephone's width: at that size a unit is a pixel.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 368, 10, 208  # of the area that holds the lines
DOTS = 30  # a line of more points has no dots

Point = tuple[float, float]
Tick = tuple[float, str]  # its place on the axis, and its label


class Line(NamedTuple):
    """A line. kind: a class of the page's style, which gives its colour and its dashes."""

    name: str
    kind: str
    points: Sequence[Point]


class Chart(NamedTuple):
    """Lines and ticks in the drawing's units. description: the chart in words, for screen readers."""

    name: str
    description: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def chart(name: str, description: str, lines: Sequence[Line], percent: bool = False) -> Chart:
    """Lines over whole numbers, such as epochs. percent: label the y axis in percent."""
    lines = [line._replace(points=[point for point in line.points if all(map(math.isfinite, point))]) for line in lines]
    x_values, y_values = zip(*[point for line in lines for point in line.points] or [(0, 0), (1, 1)], strict=True)
    x_ticks, y_ticks = ticks(min(x_values), max(x_values), whole=True), ticks(min(y_values), max(y_values))
    x_low, x_high = min(x_values), max(x_values)
    margin = 0.5 if x_low == x_high else 0.0
    x = scale(x_low - margin, x_high + margin, LEFT, RIGHT)
    y = scale(min(y_ticks[0], *y_values), max(y_ticks[-1], *y_values), BOTTOM, TOP)
    return Chart(
        name,
        description,
        [line._replace(points=[(x(px), y(py)) for px, py in line.points]) for line in lines],
        [(x(tick), label) for tick, label in labelled(x_ticks) if x_low <= tick <= x_high],
        [(y(tick), label) for tick, label in labelled(y_ticks, percent)],
    )


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From values between low and high to places between start and end, to a tenth of a unit."""
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers, from below `low` to above `high`."""
    if low == high and not whole:
        low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05
    return [float(tick) for tick in MaxNLocator(nbins=5, integer=whole).tick_values(low, high)]


def labelled(values: Sequence[float], percent: bool = False) -> list[Tick]:
    """Ticks with their labels, in as many decimals as tell them apart."""
    factor, unit = (100, " %") if percent else (1, "")
    step = factor * (values[1] - values[0]) if len(values) > 1 else 1.0
    decimals = next((n for n in range(12) if math.isclose(round(step, n), step, rel_tol=1e-6)), 12)
    return [(value, f"{factor * value:.{decimals}f}{unit}") for value in values]


def interval(
    low: float, middle: float, high: float, measure: str = "accuracy", unit: str = " points"
) -> dict[str, Any]:
    """The places of a difference of a measure and its interval beside zero; reach: what the ends of the axis mean."""
    reach = 1.15 * max(abs(low), abs(high), 1e-9)
    x = scale(-reach, reach, 20, WIDTH - 20)
    decimals = 2 if max(map(abs, (low, middle, high))) < 1 else 1
    more = 0 if unit else 2  # of a difference without a unit, which is no percentage
    description = (
        f"Difference of {measure} {middle:+.{2 + more}f}{unit}, interval {low:+.{2 + more}f} to {high:+.{2 + more}f}"
    )
    ends = [f"{value:+.{decimals + more}f}{unit}" for value in (-reach, reach)]
    return {"low": x(low), "middle": x(middle), "high": x(high), "ends": ends, "description": description}
