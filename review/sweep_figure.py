"""A sweep (of review/sweep.py) as a picture: one dot per run, and lines through the means."""

import math
import re
from collections.abc import Callable
from typing import Any

from review.formatting import MISSING, parameter
from stages.common.errors import UserError
from stages.common.text import shown
from stages.evaluate import figures

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito 2008
MARKERS = "osD^vPX"
LOGARITHMIC = 3.9  # ratio of the largest to the smallest value from which an axis is logarithmic
OFFSET = 0.012  # of the axis, between two lines, so that their dots do not hide each other


def draw(document: dict[str, Any]) -> bytes:
    """A PNG of a document of `sweep.summary`. Raises UserError for more lines than there are colours."""
    settings, varied = document["settings"], document["varied"]
    values = {key: [_parameter(setting, key) for setting in settings] for key in varied}
    # The x axis is the parameter that most resembles a scale: numbers before names, then the one with most values.
    x = max(varied, key=lambda key: (_numeric(values[key]), len(set(map(str, values[key])))), default=None)
    ticks = _places(values[x]) if x else {"": 0.0}
    others = [key for key in varied if key != x]
    lines: dict[str, list[dict[str, Any]]] = {}
    for setting in settings:
        label = ", ".join(f"{shown(key)} {_label(setting, key)}" for key in others)
        lines.setdefault(label, []).append(setting)
    if len(lines) > len(COLOURS):
        raise UserError(
            f"--plot draws {len(COLOURS)} lines at most, and these experiments have {len(lines)} settings of "
            f"{', '.join(others)}: select fewer experiments, or read the table"
        )

    share = document["metric"].endswith("accuracy")
    name = document["metric"].replace("_", " ")
    with figures.own_style():
        figure = figures.page(7.0, 4.2)
        axes = figure.subplots()
        for index, label in enumerate(sorted(lines, key=_natural)):
            shift = OFFSET * (index - (len(lines) - 1) / 2)
            dots, means = [], []
            for setting in lines[label]:
                place = ticks[_label(setting, x) if x else ""] + shift
                scale = 100 if share else 1
                dots += [(place, scale * value) for value in setting["values"]]
                means.append((place, scale * setting["mean"]))
            style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index]}
            axes.plot(*zip(*sorted(means), strict=True), color=COLOURS[index], linewidth=1.5)
            axes.plot(*zip(*dots, strict=True), linestyle="none", markersize=5, label=label, **style)
        axes.set_xticks(list(ticks.values()), list(ticks))
        axes.set(xlim=(-0.1, 1.1), xlabel=shown(x or ""), ylabel=f"{name}, %" if share else name)
        axes.set_title(f"{name}: one dot per seed, lines through the means", fontsize=11)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        if others:
            axes.legend(frameon=False)
        return figures.png(figure)


def _parameter(setting: dict[str, Any], key: str) -> Any:
    return setting["parameters"].get(key, MISSING)


def _label(setting: dict[str, Any], key: str) -> str:
    return parameter(_parameter(setting, key))


def _numeric(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _places(values: list[Any]) -> dict[str, float]:
    """The position of each different value on an axis from 0 to 1: numbers to scale, anything else evenly."""
    if not _numeric(values):
        names = sorted({parameter(value) for value in values}, key=_natural)
        return {name: index / max(len(names) - 1, 1) for index, name in enumerate(names)}
    low, high = min(values), max(values)
    scale: Callable[[float], float] = math.log if low > 0 and high / low >= LOGARITHMIC else float
    width = scale(high) - scale(low) or 1.0
    return {parameter(value): (scale(value) - scale(low)) / width for value in sorted(values)}


def _natural(label: str) -> list[tuple[float, str]]:
    """A key that sorts 64 before 128."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label)
    return [(float(part), "") if index % 2 else (math.inf, part) for index, part in enumerate(parts)]
