"""Charts as SVG inside a page: text stays text, and colours come from the page's style, so they follow light and dark.

They are drawn some 380 units wide, which is a telephone's width: at that size a unit is a pixel.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.ticker import MaxNLocator

from review.markup import Markup, join, tag

WIDTH, HEIGHT = 380.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 54.0, 12.0, 10.0, 42.0  # of the drawing's borders, for the labels of the axes


class Series(NamedTuple):
    """A line. kind: a class of the page's style, which has its colour and its dashes."""

    name: str
    kind: str
    x: Sequence[float]
    y: Sequence[float]


class Axes:
    """Two axes, their ticks, and where a point is."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], whole_x: bool = False) -> None:
        """x, y: the least and the greatest value to be seen. whole_x: no fractions on the x axis."""
        self.x_ticks, self.y_ticks = ticks(*x, whole=whole_x), ticks(*y)
        self.low_x, self.high_x = x if x[0] < x[1] else (x[0] - 0.5, x[1] + 0.5)
        self.low_y, self.high_y = min(self.y_ticks[0], y[0]), max(self.y_ticks[-1], y[1])

    def x(self, value: float) -> float:
        """The place of a value on the x axis, in the drawing's units."""
        return LEFT + (value - self.low_x) / (self.high_x - self.low_x) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """The place of a value on the y axis, in the drawing's units."""
        return HEIGHT - BOTTOM - (value - self.low_y) / (self.high_y - self.low_y) * (HEIGHT - TOP - BOTTOM)

    def draw(self, x_label: str, percent: bool = False) -> Markup:
        """Grid, ticks and the label of x; the figure's caption names y. percent: show y in percent."""
        parts = []
        step = self.y_ticks[1] - self.y_ticks[0]
        for tick in self.y_ticks:
            at = self.y(tick)
            parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
            text = f"{100 * tick:.{decimals(100 * step)}f} %" if percent else f"{tick:.{decimals(step)}f}"
            parts.append(tag("text", text, x=LEFT - 6, y=at + 4, class_="tick end"))
        step = self.x_ticks[1] - self.x_ticks[0] if len(self.x_ticks) > 1 else 1.0
        for tick in self.x_ticks:
            if self.low_x <= tick <= self.high_x:
                parts.append(
                    tag("text", f"{tick:.{decimals(step)}f}", x=self.x(tick), y=HEIGHT - BOTTOM + 16, class_="tick mid")
                )
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(tag("text", x_label, x=middle, y=HEIGHT - 6, class_="axis mid"))
        return join(*parts)


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers, from below `low` to above `high`."""
    if low == high and not whole:
        low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05
    return [float(tick) for tick in MaxNLocator(nbins=5, integer=whole).tick_values(low, high)]


def decimals(step: float) -> int:
    """Decimals that tell ticks of this distance apart."""
    for places in range(12):
        if math.isclose(round(step, places), step, rel_tol=1e-6):
            return places
    return 12


def lines(series: Sequence[Series], x_label: str, what: str, percent: bool = False) -> Markup:
    """Lines over whole numbers, such as epochs, with their legend. what: the chart in words, for screen readers."""
    seen = [
        [(x, y) for x, y in zip(one.x, one.y, strict=True) if math.isfinite(x) and math.isfinite(y)] for one in series
    ]
    points = [point for each in seen for point in each]
    axes = Axes(_extent([x for x, _ in points]), _extent([y for _, y in points]), whole_x=True)
    parts = [axes.draw(x_label, percent)]
    for one, theirs in zip(series, seen, strict=True):
        places = [(axes.x(x), axes.y(y)) for x, y in theirs]
        parts.append(tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places), class_=f"line {one.kind}"))
        if len(places) <= 30:
            parts += [tag("circle", cx=x, cy=y, r=2.5, class_=f"dot {one.kind}") for x, y in places]
    return tag("div", legend([(one.name, _swatch(one.kind)) for one in series]), drawing(what, *parts), class_="chart")


def reliability(table: pd.DataFrame, what: str) -> Markup:
    """Accuracy by confidence; table: as `stages.evaluate.scores.reliability` gives it."""
    axes = Axes((0.0, 1.0), (0.0, 1.0))
    share = table["images"] / max(table["images"].sum(), 1)
    parts = [axes.draw("probability of the predicted class", percent=True)]
    floor = axes.y(0.0)
    for low, high, part in zip(table["low"], table["high"], share, strict=True):
        box = {"x": axes.x(low) + 0.5, "width": axes.x(high) - axes.x(low) - 1, "height": floor - axes.y(part)}
        parts.append(tag("rect", **box, y=axes.y(part), class_="bar"))
    ends = {"x1": axes.x(0), "y1": axes.y(0), "x2": axes.x(1), "y2": axes.y(1)}
    parts.append(tag("line", **ends, class_="line ideal"))
    columns = ("confidence", "accuracy", "accuracy_low", "accuracy_high")
    for confidence, accuracy, low, high in zip(*(table[name] for name in columns), strict=True):
        at = axes.x(confidence)
        parts.append(tag("line", x1=at, x2=at, y1=axes.y(low), y2=axes.y(high), class_="line whisker"))
        parts.append(tag("circle", cx=at, cy=axes.y(accuracy), r=3.5, class_="dot one"))
    marks = [
        ("accuracy, with its 95 % interval", _swatch("one")),
        ("perfectly calibrated", _swatch("ideal")),
        ("share of the images", _mark(tag("rect", x=0, y=1, width=18, height=10, class_="bar"))),
    ]
    return tag("div", legend(marks), drawing(what, *parts), class_="chart")


def interval(low: float, middle: float, high: float, kind: str, what: str, shown: Callable[[float], str]) -> Markup:
    """A value and its interval beside zero. kind: a class of the page's style."""
    reach = 1.15 * max(abs(low), abs(high), 1e-9)
    height, line = 62.0, 22.0

    def place(value: float) -> float:
        return 20 + (value + reach) / (2 * reach) * (WIDTH - 40)

    parts = [
        tag("line", x1=20, x2=WIDTH - 20, y1=line, y2=line, class_="grid"),
        tag("line", x1=place(0), x2=place(0), y1=6, y2=line + 16, class_="zero"),
        tag("text", "no difference", x=place(0), y=line + 34, class_="tick mid"),
        tag("line", x1=place(low), x2=place(high), y1=line, y2=line, class_=f"span {kind}"),
        tag("circle", cx=place(middle), cy=line, r=5.5, class_=f"point {kind}"),
    ]
    ends = [20.0, WIDTH - 20]
    for at, side, value in ((ends[0], "start", -reach), (ends[1], "end", reach)):
        parts.append(tag("text", shown(value), x=at, y=line + 34, class_=f"tick {side}"))
    return drawing(what, *parts, height=height)


def drawing(what: str, *parts: Markup, height: float = HEIGHT) -> Markup:
    """An SVG that is as wide as its place, up to a width at which its text is still of a page's size."""
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label=what)


def legend(entries: Sequence[tuple[str, Markup]]) -> Markup:
    """Names and their marks, as text of the page, which wraps where it must."""
    return tag("ul", *(tag("li", mark, name) for name, mark in entries), class_="legend")


def _swatch(kind: str) -> Markup:
    line = tag("line", x1=0, x2=22, y1=6, y2=6, class_=f"line {kind}")
    return _mark(line if kind == "ideal" else join(line, tag("circle", cx=11, cy=6, r=3, class_=f"dot {kind}")))


def _mark(content: Markup) -> Markup:
    return tag("svg", content, viewBox="0 0 22 12", width=22, height=12, aria_hidden="true")


def _extent(values: Sequence[float]) -> tuple[float, float]:
    return (min(values), max(values)) if values else (0.0, 1.0)
