"""The page of a search: the document of review/search/outcome.py as one HTML file that loads and runs nothing.

Pure: the same document gives the same text. page.html.j2 has the markup; this module computes the values and the
positions in the charts.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from review import charts, formatting, report_page
from review.charts import BOTTOM, TOP, Line, Tick
from review.formatting import measure_of, parameter, short
from review.search import outcome
from review.sweep import HIGHER_IS_BETTER
from review.sweep_figure import LOGARITHMIC

AXIS_DISTANCE = 105  # between two axes of the parallel coordinates, in the drawing's units
MOST_TICKS = 6  # of an axis with choices; the others have no label
LONGEST_LABEL = 12  # characters of a choice
MOST_LINES = 300  # trials in a picture, the best ones
REACH = 3  # quartile distances by which the history extends beyond the worse quartile
LINE_KINDS = {"best": "best", "finished": "good", "early": "other"}  # of a trial's curve, by the kind of its dot


class Dot(NamedTuple):
    """A trial. kind: best, finished or early. cut: its value lies outside, so it is drawn at the edge."""

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


def page(document: dict[str, Any]) -> str:
    """The whole page."""
    trials = outcome.ranked(document)
    finished = [trial for trial in trials if trial["value"] is not None]
    table = outcome.frame(document, str)
    return (
        report_page.environment()
        .get_template("search/page.html.j2")
        .render(
            commit=document["commit"],
            best=document["best"],
            metric=document["metric"].replace("_", " "),
            heading=heading(document),
            verdict=outcome.verdict(document),
            tiles=tiles(document, finished),
            history=history(document) if finished else None,
            importance=list(document["importance"].items()),
            parallel=parallel(document, finished[:MOST_LINES]) if finished else None,
            curves=curves(document, trials) if finished else None,
            columns=[(name, "text" if name == "state" else "num") for name in table],
            rows=table.to_numpy().tolist(),
            final=final_rows(document),
            failed=[trial for trial in trials if trial["reason"]],
            commands=outcome.commands(document),
        )
    )


def heading(document: dict[str, Any]) -> str:
    """The result in a few words."""
    if document["best"] is None:
        return "No trial finished"
    if document["best"] == document["recipe"]:
        return "No trial is better than params.yaml"
    verdict = f": {document['final']['word']} against params.yaml" if document["final"] else ""
    return f"Trial {document['best']} is the best{verdict}"


def tiles(document: dict[str, Any], finished: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The numbers at the top: name and value."""
    metric = document["metric"]
    best = [(f"best {metric.replace('_', ' ')}", measure_of(metric).value(trial["value"])) for trial in finished[:1]]
    return best + [(state, str(count)) for state, count in outcome.state_counts(document).items()]


def history(document: dict[str, Any]) -> dict[str, Any]:
    """Value by trial: dots, the best value so far as a line, and the failed trials above the axis."""
    trials, metric = document["trials"], document["metric"]
    higher = HIGHER_IS_BETTER[metric]
    values = {trial["number"]: last_value(trial) for trial in trials if trial["curve"] or trial["value"] is not None}
    frame = charts.axes((0, max(len(trials) - 1, 1)), limits(list(values.values()), higher), is_share(document))
    low, high = frame.y_range
    dots = [
        Dot(
            *frame.place((trial["number"], value)),
            kind(document, trial),
            f"trial {trial['number']}: {measure_of(metric).value(value)}, {outcome.label(document, trial)}",
            not low <= value <= high,
        )
        for trial in trials
        if (value := values.get(trial["number"])) is not None
    ]
    best_so_far: list[charts.Point] = []
    for trial in trials:
        previous = best_so_far[-1][1:] if best_so_far else ()
        if trial["value"] is not None:
            best_so_far.append((trial["number"], (max if higher else min)([*previous, trial["value"]])))
        elif previous:
            best_so_far.append((trial["number"], previous[0]))
    return {
        "dots": dots,
        "best": {"points": [frame.place(point) for point in best_so_far]},
        "failed": [
            (frame.x(trial["number"]), f"trial {trial['number']}: failed") for trial in trials if trial["reason"]
        ],
        "x_ticks": frame.x_ticks,
        "y_ticks": frame.y_ticks,
    }


def limits(values: Sequence[float], higher: bool) -> charts.Range:
    """The ends of an axis that shows the good values well: bad ones may lie outside. higher: whether it is better."""
    low, high = min(values), max(values)
    if len(values) < 4:
        return low, high
    quartile = statistics.quantiles(values, n=4)[0 if higher else 2]
    if higher:
        return max(low, quartile - REACH * (high - quartile)), high
    return low, min(high, quartile + REACH * (quartile - low))


def last_value(trial: dict[str, Any]) -> float:
    """The value of a trial; for one that was stopped early, the value of its last epoch."""
    return float(trial["curve"][-1][1] if trial["value"] is None else trial["value"])


def kind(document: dict[str, Any], trial: dict[str, Any]) -> str:
    """The kind of a trial's dot."""
    if trial["number"] == document["best"]:
        return "best"
    return "finished" if trial["value"] is not None else "early"


def is_share(document: dict[str, Any]) -> bool:
    """Whether the metric is a share, which is labelled in percent."""
    return measure_of(document["metric"]) is formatting.ACCURACY


def parallel(document: dict[str, Any], finished: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Parallel coordinates of the finished trials, the best first: one axis per parameter, and one for the value."""
    metric = document["metric"]
    columns = {key: [trial["parameters"][key] for trial in finished] for key in document["space"]}
    columns[metric] = [trial["value"] for trial in finished]
    axes, positions = [], []
    for number, (name, column) in enumerate(columns.items()):
        place, ticks = axis(column, percent=name == metric and is_share(document))
        axes.append(Axis(60 + AXIS_DISTANCE * number, short(name.rpartition(".")[2]), ticks))
        positions.append([place(value) for value in column])
    good = max(len(finished) // 4, 1)
    lines = [
        Line(
            f"trial {trial['number']}: {measure_of(metric).value(trial['value'])}",
            "best" if rank == 0 else "good" if rank < good else "other",
            [(axis.x, column[rank]) for axis, column in zip(axes, positions, strict=True)],
        )
        for rank, trial in enumerate(finished)
    ]
    return {"axes": axes, "lines": lines[::-1], "width": 120 + AXIS_DISTANCE * (len(axes) - 1)}  # the best ones on top


def axis(column: Sequence[Any], percent: bool) -> tuple[Callable[[Any], float], list[Tick]]:
    """A function from values to positions, and the ticks: numbers to scale, on a logarithmic axis if far apart."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in column):
        names = sorted({parameter(value) for value in column})
        steps = charts.scale(-0.5, len(names) - 0.5, BOTTOM, TOP)
        ticks = [(steps(index), short(name, LONGEST_LABEL)) for index, name in enumerate(names)]
        return (lambda value: steps(names.index(parameter(value)))), ticks[:MOST_TICKS]
    low, high = min(column), max(column)
    logarithmic = low > 0 and high / low >= LOGARITHMIC
    transform: Callable[[float], float] = math.log if logarithmic else float
    margin = 0.0 if low < high else 0.5
    scale = charts.scale(transform(low) - margin, transform(high) + margin, BOTTOM, TOP)
    if len(set(column)) <= MOST_TICKS:
        marks = sorted(set(column))
    elif logarithmic:
        marks = [float(f"{low * (high / low) ** (step / 4):.2g}") for step in range(5)]
    else:
        marks = [tick for tick in charts.ticks(low, high) if low <= tick <= high]
    labels = [formatting.percent(mark) if percent else f"{mark:.4g}" for mark in marks]
    ticks = [(scale(transform(mark)), label) for mark, label in zip(marks, labels, strict=True)]
    return (lambda value: scale(transform(value))), ticks


def curves(document: dict[str, Any], trials: Sequence[dict[str, Any]]) -> charts.Chart | None:
    """Value by epoch, one line per trial, the best on top; None if no trial has two epochs."""
    drawn = [trial for trial in trials if trial["curve"]][:MOST_LINES]
    if max((len(trial["curve"]) for trial in drawn), default=0) < 2:
        return None
    lines = [
        Line(f"trial {trial['number']}", LINE_KINDS[kind(document, trial)], trial["curve"]) for trial in reversed(drawn)
    ]
    y_range = limits([value for line in lines for _, value in line.points], HIGHER_IS_BETTER[document["metric"]])
    return charts.chart("", "", lines, is_share(document), y_range)


def final_rows(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    """One row per seed: seed, params.yaml, winner."""
    if not (final := document["final"]):
        return []
    recipe, winner = (map(measure_of(document["metric"]).value, final[side]) for side in ("recipe", "winner"))
    return list(zip(map(str, final["seeds"]), recipe, winner, strict=True))
