"""The page of a search: the document of review/search/outcome.py as one HTML file that loads and runs nothing.

Pure: the same document gives the same text. page.html.j2 holds the markup and draws the charts, whose places this
module computes.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from review import charts, comparison_text, report_page, sweep
from review.charts import BOTTOM, LEFT, RIGHT, TOP, Tick
from review.report_page import short
from review.search import outcome
from review.search.space import HIGHER_IS_BETTER
from review.sweep_figure import LOGARITHMIC

AXIS = 105  # between two axes of the parallel coordinates, in the drawing's units
MOST_TICKS = 6  # of an axis with choices; the others stay without a label
MOST_LETTERS = 12  # of a choice
MOST_LINES = 300  # trials in a picture, the best ones
REACH = 3  # how far the picture of the history goes below the middle half of all values


class Dot(NamedTuple):
    """A trial. kind: best, finished or early. cut: it lies outside, and is drawn at the edge."""

    x: float
    y: float
    kind: str
    title: str
    cut: bool


class Axis(NamedTuple):
    """An axis of the parallel coordinates."""

    x: float
    name: str
    ticks: list[Tick]


class Polyline(NamedTuple):
    """A trial in the parallel coordinates. kind: best, good (among the best quarter) or other."""

    points: list[tuple[float, float]]
    kind: str
    title: str


def page(found: dict[str, Any]) -> str:
    """The whole document."""
    trials = outcome.ranked(found)
    finished = [trial for trial in trials if trial["value"] is not None]
    return (
        report_page.environment()
        .get_template("search/page.html.j2")
        .render(
            found=found,
            metric=found["metric"].replace("_", " "),
            heading=heading(found),
            verdict=outcome.verdict(found),
            tiles=tiles(found, finished),
            history=history(found) if finished else None,
            importance=list(found["importance"].items()),
            parallel=parallel(found, finished[:MOST_LINES]) if finished else None,
            curves=curves(found, trials) if finished else None,
            table=outcome.frame(found, str),
            final=final_rows(found),
            failed=[trial for trial in trials if trial["reason"]],
            commands=outcome.commands(found),
        )
    )


def heading(found: dict[str, Any]) -> str:
    """The result in a few words."""
    if found["best"] is None:
        return "No trial finished"
    word = found["final"]["word"] if found["final"] else ""
    if found["best"] == found["recipe"]:
        return "No trial is better than params.yaml"
    return f"Trial {found['best']} is the best" + (f": {word} against params.yaml" if word else "")


def tiles(found: dict[str, Any], finished: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The numbers at the top, each with what it is."""
    states = [trial["state"] for trial in found["trials"]]
    counts = [(state, str(states.count(state))) for state in outcome.STATES.values() if state in states]
    name = f"best {found['metric'].replace('_', ' ')}"
    return [(name, sweep.shown(trial["value"], found["metric"])) for trial in finished[:1]] + counts


def history(found: dict[str, Any]) -> dict[str, Any]:
    """Value by trial: dots, the best so far as a line, and the failed ones below the axis."""
    higher, percent = HIGHER_IS_BETTER[found["metric"]], found["metric"].endswith("accuracy")
    shown = [trial for trial in found["trials"] if trial["curve"] or trial["value"] is not None]
    values = [last(trial) for trial in shown]
    low, high = limits(values, higher)
    y_ticks = charts.ticks(low, high)
    x_ticks = charts.ticks(0, max(len(found["trials"]) - 1, 1), whole=True)
    x = charts.scale(-0.5, max(len(found["trials"]), 2) - 0.5, LEFT, RIGHT)
    y = charts.scale(y_ticks[0], y_ticks[-1], BOTTOM, TOP)
    failed = [trial for trial in found["trials"] if trial["reason"]]
    dots = [
        Dot(
            x(trial["number"]),
            min(max(y(value), TOP), BOTTOM),
            kind(found, trial),
            f"trial {trial['number']}: {sweep.shown(value, found['metric'])}, {outcome.label(found, trial)}",
            not y_ticks[0] <= value <= y_ticks[-1],
        )
        for trial, value in zip(shown, values, strict=True)
    ]
    steps: list[tuple[float, float]] = []
    best: float | None = None
    for trial in found["trials"]:
        if trial["value"] is not None and (best is None or (trial["value"] > best) == higher):
            best = trial["value"]
        if best is not None:
            steps.append((x(trial["number"]), min(max(y(best), TOP), BOTTOM)))
    return {
        "dots": dots,
        "steps": steps,
        "failed": [(x(trial["number"]), f"trial {trial['number']}: failed") for trial in failed],
        "x_ticks": [(x(tick), label) for tick, label in charts.labelled(x_ticks) if tick < len(found["trials"])],
        "y_ticks": [(y(tick), label) for tick, label in charts.labelled(y_ticks, percent)],
    }


def limits(values: Sequence[float], higher: bool) -> tuple[float, float]:
    """The ends of an axis that shows the good values well: bad ones may lie outside."""
    low, high = min(values), max(values)
    if len(values) < 4:
        return low, high
    quartile = statistics.quantiles(values, n=4)[0 if higher else 2]
    return (
        (max(low, quartile - REACH * (high - quartile)), high)
        if higher
        else (low, min(high, quartile + REACH * (quartile - low)))
    )


def last(trial: dict[str, Any]) -> float:
    """The value of a trial; of one that was stopped early that of its last epoch."""
    return float(trial["curve"][-1][1] if trial["value"] is None else trial["value"])


def kind(found: dict[str, Any], trial: dict[str, Any]) -> str:
    """How a dot looks."""
    if trial["number"] == found["best"]:
        return "best"
    return "finished" if trial["value"] is not None else "early"


def parallel(found: dict[str, Any], finished: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Parallel coordinates of the finished trials: an axis per parameter, and one for the value."""
    names = [*found["space"], found["metric"]]
    columns = [[trial["parameters"][key] for trial in finished] for key in found["space"]]
    percent = found["metric"].endswith("accuracy")
    axes, places = [], []
    for at, (name, column) in enumerate(zip(names, [*columns, [trial["value"] for trial in finished]], strict=True)):
        place, ticks = axis(column, percent and at == len(names) - 1)
        axes.append(Axis(60 + AXIS * at, short(name.rpartition(".")[2]), ticks))
        places.append([place(value) for value in column])
    good = max(len(finished) // 4, 1)
    lines = [
        Polyline(
            [(axes[at].x, column[rank]) for at, column in enumerate(places)],
            "best" if rank == 0 else "good" if rank < good else "other",
            f"trial {trial['number']}: {sweep.shown(trial['value'], found['metric'])}",
        )
        for rank, trial in enumerate(finished)
    ]
    return {"axes": axes, "lines": lines[::-1], "width": 120 + AXIS * (len(names) - 1)}  # the best ones on top


def axis(column: Sequence[Any], percent: bool) -> tuple[Callable[[Any], float], list[Tick]]:
    """Where a value lies on an axis, and the labels of the axis: numbers to scale, by their logarithm if far apart."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in column):
        names = sorted({comparison_text.value(value) for value in column})
        steps = charts.scale(-0.5, len(names) - 0.5, BOTTOM, TOP)
        ticks = [(steps(at), short(name, MOST_LETTERS)) for at, name in enumerate(names)]
        return (lambda value: steps(names.index(comparison_text.value(value)))), ticks[:MOST_TICKS]
    low, high = min(column), max(column)
    logarithmic = low > 0 and high / low >= LOGARITHMIC
    of: Callable[[float], float] = math.log if logarithmic else float
    margin = 0.0 if low < high else 0.5
    place = charts.scale(of(low) - margin, of(high) + margin, BOTTOM, TOP)
    if len(set(column)) <= MOST_TICKS:
        marks = sorted(set(column))
    elif logarithmic:
        marks = [float(f"{low * (high / low) ** (step / 4):.2g}") for step in range(5)]
    else:
        marks = [tick for tick in charts.ticks(low, high) if low <= tick <= high]
    labels = [f"{100 * mark:.2f} %" if percent else f"{mark:.4g}" for mark in marks]
    ticks = [(place(of(mark)), label) for mark, label in zip(marks, labels, strict=True)]
    return (lambda value: place(of(value))), ticks


def curves(found: dict[str, Any], trials: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Value by epoch, a line per trial, the best on top."""
    higher, percent = HIGHER_IS_BETTER[found["metric"]], found["metric"].endswith("accuracy")
    drawn = [trial for trial in trials if trial["curve"]][:MOST_LINES]
    epochs = max((trial["curve"][-1][0] for trial in drawn), default=0)
    if epochs < 2:
        return None
    low, high = limits([value for trial in drawn for _, value in trial["curve"]], higher)
    y_ticks = charts.ticks(low, high)
    x, y = charts.scale(1, epochs, LEFT, RIGHT), charts.scale(y_ticks[0], y_ticks[-1], BOTTOM, TOP)
    lines = [
        Polyline(
            [(x(epoch), min(max(y(value), TOP), BOTTOM)) for epoch, value in trial["curve"]],
            {"best": "best", "finished": "good", "early": "other"}[kind(found, trial)],
            f"trial {trial['number']}",
        )
        for trial in reversed(drawn)
    ]
    x_ticks = [tick for tick in charts.ticks(1, epochs, whole=True) if 1 <= tick <= epochs]
    return {
        "lines": lines,
        "x_ticks": [(x(tick), label) for tick, label in charts.labelled(x_ticks)],
        "y_ticks": [(y(tick), label) for tick, label in charts.labelled(y_ticks, percent)],
    }


def final_rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """One row per seed: seed, params.yaml, winner."""
    if not (final := found["final"]):
        return []
    shown = [[sweep.shown(value, found["metric"]) for value in final[side]] for side in ("recipe", "winner")]
    return list(zip(map(str, final["seeds"]), *shown, strict=True))
