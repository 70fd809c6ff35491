"""The page of a run: Results, and what they were compared with, as one HTML document that loads nothing.

Pure: the same values give the same text. report.html.j2 holds the text and the markup; this module computes the
values. Names of classes, branches and parameters come from users: Jinja escapes every value, and characters that are
not printable become a ?.
"""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from review import charts, comparison, comparison_text, results, significance, values
from review.comparison_text import MISSING
from review.results import Confusion, Results
from stages.common import paths
from stages.common.errors import printable
from stages.evaluate import scores
from stages.evaluate.predictions import has_values

MOST_PICTURES = 24  # of each kind
MOST_PAIRS = 10  # kinds of mistake that are listed
MOST_EPOCHS = 400  # points of a curve
MOST_ROWS = 100  # of a table of numbers
MOST_NAME = 60  # letters of a name in a headline; tables have more of it

WORDS = {significance.BETTER: ("better", "▲"), significance.WORSE: ("worse", "▼"), significance.NOISE: ("noise", "≈")}

Picture = Callable[[int], str | None]  # the data: URI of a test image; None: unavailable


@dataclass(frozen=True)
class Against:
    """The other side: its results, and the comparison (review.comparison), in which it is A."""

    other: Results
    document: dict[str, Any]


def page(
    run: Results,
    against: Against | None,
    picture: Picture,
    notes: Sequence[str],
    provenance: Sequence[tuple[str, str]],
    own: Mapping[str, Any] | None = None,
) -> str:
    """The whole document. notes: what the reader must know to trust it, one line each. provenance: names and values.

    own: what the audit says of own pictures (review/own_pictures.py); None: a published data set.
    """
    metrics = numbers(run)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            notes=notes,
            name=data_and_model(run),
            heading=heading(metrics),
            tiles=tiles(metrics),
            sections=sections(run, against, own),
            own=own,
            regression=is_regression(run),
            change=change(run, against, picture) if against else None,
            training=training(run.curves, against) if run.curves is not None else None,
            pictures={
                path: f"data:image/png;base64,{base64.b64encode(run.pictures[path]).decode()}" for path in run.pictures
            },
            confusion=confusion(run.confusion) if run.confusion else None,
            reliability=reliability(run.reliability, metrics) if run.reliability is not None else None,
            mistakes=mistakes(run.predictions.table) if run.predictions.table is not None else None,
            metrics=[(f"{Path(file).stem}: {key}", comparison_text.number(n)) for (file, key), n in metrics.items()],
            parameters=parameters(run),
            provenance=provenance,
            **recorded(run),
            evidence=comparison.RECORDED,
        )
    )


def environment() -> jinja2.Environment:
    """How templates are read: every value is escaped, and an unknown name is an error."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["prose"] = prose
    found.globals.update(zip=zip, charts=charts, paths=paths)
    return found


def prose(text: str) -> Markup:
    """A sentence in which `this` is code."""
    parts = printable(text).split("`")
    if len(parts) % 2 == 0:  # an unpaired backtick
        parts = ["'".join(parts)]
    return Markup().join(Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts))


def sections(run: Results, against: Against | None, own: Mapping[str, Any] | None) -> dict[str, str]:
    """The parts that this page has: key, of its address in the page, and title."""
    measured = run.confusion is not None or run.reliability is not None or paths.OVERVIEW.as_posix() in run.pictures
    every = [
        ("changes", f"What changed against {other_name(against)}" if against else "", against is not None),
        ("images", images_title(against) if against else "", against is not None and bool(against.document["images"])),
        ("own", "The pictures", own is not None),
        ("training", "Training", run.curves is not None),
        ("values", "Predictions and errors", is_regression(run)),
        ("confusion", "Confusion matrix and calibration", measured and not is_regression(run)),
        ("classes", "Precision and recall", run.confusion is not None),
        ("mistakes", "Largest errors" if is_regression(run) else "Worst mistakes", True),
        ("metrics", "All metrics", against is None),  # else they stand beside the other side's
        ("parameters", "Parameters", True),
        ("provenance", "Provenance", True),
    ]
    return {key: title for key, title, present in every if present}


def is_regression(run: Results) -> bool:
    """Whether a run predicts numbers."""
    return values.is_regression(run.revision)


def images_title(against: Against) -> str:
    """What the section on single images is called."""
    regression = against.document["measure"] == values.MEASURE
    return "Predictions nearer and farther" if regression else "Images fixed and broken"


# The top


def numbers(run: Results) -> dict[tuple[str, str], float]:
    """Every number among the metrics: (file, dotted name) -> value."""
    rows = comparison.metric_rows({}, run.revision.metrics)
    return {(row["file"], row["metric"]): row["b"] for row in rows if row["b"] is not None}


def heading(metrics: dict[tuple[str, str], float]) -> str:
    """The result in a line."""
    test = paths.TEST_METRICS.as_posix()
    accuracy, images = metrics.get((test, "accuracy")), metrics.get((test, "images"))
    r2 = metrics.get((test, "r2"))
    if accuracy is None and r2 is None:
        return "Not measured on test images"
    result = f"Test accuracy {percent(accuracy)}" if accuracy is not None else f"Test R2 {r2:.4f}"
    return result + (f" ({images:,} images)" if images is not None else "")


def data_and_model(run: Results) -> str:
    """The names of the data set and of the network, if they are known."""
    ran_with = run.revision.ran_with or run.revision.params or {}
    names = [ran_with.get(key) for key in ("data.name", "model.name")]
    return " · ".join(short(str(name)) for name in names if isinstance(name, str))


def tiles(metrics: dict[tuple[str, str], float]) -> list[tuple[str, str]]:
    """The other numbers that matter, each with what it is."""
    test, train = paths.TEST_METRICS.as_posix(), paths.TRAIN_METRICS.as_posix()
    low, high = metrics.get((test, "accuracy_low")), metrics.get((test, "accuracy_high"))
    found = [("95 % interval", f"{100 * low:.2f} to {percent(high)}")] if low is not None and high is not None else []
    low, high = metrics.get((test, "r2_low")), metrics.get((test, "r2_high"))
    found += [("95 % interval", f"{low:.4f} to {high:.4f}")] if low is not None and high is not None else []
    forms: list[tuple[str, str, str, Callable[[float], str]]] = [
        ("root mean squared error", test, "rmse", "{:.4g}".format),
        ("mean absolute error", test, "mae", "{:.4g}".format),
        ("validation R2", train, "validation_r2", "{:.4f}".format),
        ("misclassified images", test, "errors", "{:,}".format),
        ("test loss", test, "loss", "{:.4f}".format),
        ("calibration error", test, "calibration_error", "{:.4f}".format),
        ("validation accuracy", train, "validation_accuracy", percent),
        ("weights", train, "parameters", "{:,}".format),
    ]
    return found + [(name, form(metrics[file, key])) for name, file, key, form in forms if (file, key) in metrics]


# Against another revision


def other_name(against: Against) -> str:
    """What the other side is called, cut to what a headline holds."""
    return short(str(against.document["a"]["name"]))


def change(run: Results, against: Against, picture: Picture) -> dict[str, Any]:
    """The verdict, and what changed: parameters, metrics, and the images that tell the two sides apart."""
    document = against.document
    verdict = document["verdict"]
    kind, sign = WORDS.get(verdict["word"], ("none", "?"))
    # A text that begins with a name stays as it is.
    text = re.sub("^(accuracy|mean) ", lambda start: start[0].capitalize(), verdict["text"])
    aside = comparison_text.one_model(document)
    if verdict["basis"] == comparison.ONE_MODEL:
        aside = "; ".join(["One model against another, seeds not compared", *document["without_seeds"]])
    regression = document["measure"] == values.MEASURE
    factor = 1 if regression else 100
    points = [factor * verdict[key] for key in ("low", "difference", "high")] if verdict["low"] is not None else None
    differing, same = (
        [row for row in document["metrics"] if (row["difference"] == 0) == equal] for equal in (False, True)
    )
    return {
        "a": other_name(against),
        "b": short(str(document["b"]["name"])),
        "word": verdict["word"],
        "kind": kind,
        "sign": sign,
        "text": f"{text}.".replace(" -> ", " → "),
        "aside": f"{aside}.".replace(" -> ", " → "),
        "interval": charts.interval(*points, *((values.MEASURE, "") if regression else ())) if points else None,
        "parameters": comparison_text.parameters(document["parameters"], str).to_numpy().tolist(),
        "metrics": comparison_text.metrics(differing, str).to_numpy().tolist(),
        "same_metrics": comparison_text.metrics(same, str).to_numpy().tolist(),
        "images": document["images"],
        "galleries": galleries(run, against, picture),
    }


def galleries(run: Results, against: Against, picture: Picture) -> list[dict[str, Any]]:
    """The images that were broken and fixed, each with its label and both sides' predictions."""
    counts, old, new = against.document["images"], against.other.predictions.table, run.predictions.table
    if counts is None or old is None or new is None:
        return []
    if "nearer" in counts:
        return galleries_of_values(counts, other_name(against), run.revision.name, picture)
    columns = (old["label"], old["prediction"], new["prediction"])
    masks = significance.paired(*(column.cat.codes.to_numpy().astype(np.int64) for column in columns))
    found = []
    for kind, wrong, right in (("broken", new, other_name(against)), ("fixed", old, run.revision.name)):
        places = results.most_confident(wrong, np.flatnonzero(masks[kind]), MOST_PICTURES)
        images = [
            {
                "index": at,
                "label": short(str(new["label"].iloc[at]), 24),
                "source": picture(at),
                "predictions": [prediction(old.iloc[at], "before"), prediction(new.iloc[at], "after")],
            }
            for at in places
        ]
        text = f"{kind}: only {short(right)} is correct; the most confident mistakes first."
        found.append({"title": kind.capitalize(), "text": how_many(len(places), counts[kind], text), "images": images})
    return found


def galleries_of_values(counts: dict[str, Any], old: str, new: str, picture: Picture) -> list[dict[str, Any]]:
    """The images whose predictions changed most, for better and for worse. counts: `images` of the document."""
    found = []
    for kind, better in (("farther", old), ("nearer", new)):
        images = [
            {
                "index": row["index"],
                "label": f"{row['label']:.6g}",
                "source": picture(row["index"]),
                "predictions": [(f"before {row['a']:.6g}", better == old), (f"after {row['b']:.6g}", better == new)],
            }
            for row in counts[f"{kind}_examples"]
        ]
        text = f"{kind}: {short(better)} is nearer to the label; the largest changes first."
        found.append({"title": kind.capitalize(), "text": how_many(len(images), counts[kind], text), "images": images})
    return found


def prediction(row: pd.Series, when: str) -> tuple[str, bool]:
    """What one side predicted for an image, and whether that is correct."""
    text = f"{when} {short(str(row['prediction']), 24)}, {percent(row['probability'], 0)}"
    return text, row["prediction"] == row["label"]


# The run


def training(curves: pd.DataFrame, against: Against | None) -> dict[str, Any]:
    """Loss and accuracy by epoch, and the other side's on validation."""
    shown = thinned(curves)
    wanted = [
        ("Loss", "train_loss", "training", "two", shown),
        ("Loss", "validation_loss", "validation", "one", shown),
        ("Accuracy", "validation_accuracy", "validation", "one", shown),
        ("R2", "validation_r2", "validation", "one", shown),
    ]
    if against is not None and against.other.curves is not None:
        other, name = thinned(against.other.curves), f"validation, {short(against.other.revision.name, 24)}"
        wanted += [("Loss", "validation_loss", name, "other", other)]
        wanted += [("Accuracy", "validation_accuracy", name, "other", other)]
        wanted += [("R2", "validation_r2", name, "other", other)]
    drawn = []
    for title, form in (("Loss", "{:.4f}".format), ("Accuracy", percent), ("R2", "{:.4f}".format)):
        lines, last = [], []
        for chart, column, name, kind, table in wanted:
            if chart == title and column in table:
                lines.append(charts.Line(name, kind, list(zip(table["epoch"], table[column], strict=True))))
                last.append(f"{name} {form(table[column].iloc[-1])}")
        if lines:
            description = f"{title} by epoch; the last: {', '.join(last)}"
            drawn.append(charts.chart(title, description, lines, percent=title == "Accuracy"))
    return {
        "charts": drawn,
        "columns": [(str(name).replace("_", " "), "num" if at else "text") for at, name in enumerate(shown.columns)],
        "rows": [[f"{epoch:g}", *(f"{value:.6g}" for value in rest)] for epoch, *rest in shown[:MOST_ROWS].to_numpy()],
    }


def thinned(curves: pd.DataFrame) -> pd.DataFrame:
    """As many epochs as a chart can show, the last of them among these."""
    step = -(-len(curves) // MOST_EPOCHS)
    return curves.iloc[(len(curves) - 1) % step :: step]


def confusion(found: Confusion) -> dict[str, Any]:
    """The most frequent mistakes; and precision, recall and F1 of each class, the shares with their intervals."""
    matrix, names = found.matrix, [short(name, 24) for name in found.classes]
    images, predicted, correct = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    wrong = matrix - np.diag(correct)
    order = np.argsort(-wrong.ravel(), kind="stable")[:MOST_PAIRS]
    pairs = [(int(place) // len(names), int(place) % len(names)) for place in order if wrong.ravel()[place]]
    return {
        "frequent": [
            (names[true], names[taken], f"{wrong[true, taken]:,}", percent(wrong[true, taken] / images[true]))
            for true, taken in pairs
        ],
        "classes": [
            (
                short(name, 40),
                f"{images[at]:,}",
                *with_interval(int(correct[at]), int(predicted[at])),
                *with_interval(int(correct[at]), int(images[at])),
                f"{f1:.4f}",
            )
            for at, (name, f1) in enumerate(zip(found.classes, scores.by_class(matrix)["f1"], strict=True))
        ],
    }


def with_interval(correct: int, images: int) -> tuple[str, str]:
    """A share and its interval (Wilson)."""
    if not images:
        return MISSING, MISSING
    low, high = scores.wilson(correct, images)
    return percent(correct / images), f"{100 * low:.1f} to {percent(high, 1)}"


def reliability(found: pd.DataFrame, metrics: dict[tuple[str, str], float]) -> dict[str, Any]:
    """How well calibrated the probabilities are, also without the temperature, and accuracy by probability."""
    unscaled = metrics.get((paths.TEST_METRICS.as_posix(), "without_temperature.calibration_error"))
    error = scores.calibration_error(found) if found["images"].sum() else 0.0
    return {
        "confident": "under" if ((found["accuracy"] - found["confidence"]) * found["images"]).sum() > 0 else "over",
        "points": f"{100 * error:.2f}",
        "unscaled_points": f"{100 * unscaled:.2f}" if unscaled is not None else "",
        "rows": [
            (
                f"{row.low:.3f} to {row.high:.3f}",
                f"{row.images:,}",
                f"{row.confidence:.3f}",
                f"{row.accuracy:.3f}",
                f"{row.accuracy_low:.3f} to {row.accuracy_high:.3f}",
            )
            for row in found[:MOST_ROWS].itertuples()
        ],
    }


def mistakes(found: pd.DataFrame) -> list[tuple[str, ...]]:
    """The wrong predictions of the highest probability; of regression, the largest errors."""
    if has_values(found):
        errors = (found["prediction"] - found["label"]).to_numpy()
        order = np.argsort(-np.abs(errors), kind="stable")[:MOST_PICTURES]
        return [
            (f"{at:,}", *(f"{found[key].iloc[at]:.6g}" for key in ("label", "prediction")), f"{errors[at]:+.4g}")
            for at in order
        ]
    wrong = np.flatnonzero(found["label"].to_numpy() != found["prediction"].to_numpy())
    rows = [(at, found.iloc[at]) for at in results.most_confident(found, wrong, MOST_PICTURES)]
    return [
        (f"{at:,}", *(short(str(row[key]), 24) for key in ("label", "prediction")), percent(row["probability"], 1))
        for at, row in rows
    ]


def parameters(run: Results) -> dict[str, list[tuple[str, str]]]:
    """What the stages read, by block, without the options that were not chosen."""
    asked, read = run.revision.params or {}, run.revision.ran_with
    values = {key: read[key] for key in [*asked, *read] if key in read} or asked  # in the order of params.yaml
    blocks: dict[str, list[tuple[str, str]]] = {}
    for key, value in values.items():
        block, _, leaf = key.rpartition(".")
        blocks.setdefault(block, []).append((leaf, comparison_text.value(value)))
    return blocks


def recorded(run: Results) -> dict[str, Any]:
    """The environment of each stage, and the outputs."""
    environments = {  # without the outputs, which have a table of their own
        stage: {key: value for key, value in each.items() if key != "outputs"}
        for stage, each in run.environment.items()
    }
    first, *rest = environments.values() or [{}]
    if all(each == first for each in rest):
        environments = {" and ".join(environments): first}
    return {
        "stages": [("stage", "text"), *((stage, "text") for stage in environments)],
        "environment": [
            (key.replace("_", " "), *(str(each.get(key, MISSING)) for each in environments.values()))
            for key in dict.fromkeys(key for each in environments.values() for key in each)
        ],
        "outputs": [
            (path, out.md5 or MISSING, f"{out.size:,}" if out.size is not None else MISSING)
            for path, out in run.revision.outs.items()
        ],
    }


def how_many(shown: int, every: int, what: str) -> str:
    """`24 of 679 broken: …`, or `All 17 …`."""
    return f"{shown} of {every:,} {what}" if shown < every else f"All {every:,} {what}" if every else f"None {what}"


def percent(share: float, decimals: int = 2) -> str:
    """A share as people read it."""
    return f"{100 * share:.{decimals}f} %"


def short(name: str, most: int = MOST_NAME) -> str:
    """A name that fits."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
