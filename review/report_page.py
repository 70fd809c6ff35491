"""The page of a run, alone or against another revision, as one HTML document that loads nothing.

Pure: the same values give the same text. report.html.j2 has the text and the markup; this module computes the values.
Names of classes, branches and parameters come from users: Jinja escapes every value, and characters that are not
printable become a ?.
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

from review import charts, comparison, comparison_text, formatting, regression, results, significance
from review.formatting import MEASURES, MISSING, R2, code_spans, parameter, percent, short
from review.results import Confusion, Results
from review.significance import Difference
from stages.common import paths
from stages.common.errors import printable
from stages.evaluate import scores
from stages.evaluate.predictions import has_values

MOST_PICTURES = 24  # of each kind
MOST_PAIRS = 10  # of classes that are confused
MOST_EPOCHS = 400  # points of a curve
MOST_ROWS = 100  # of a table of numbers

WORDS = {significance.BETTER: ("better", "▲"), significance.WORSE: ("worse", "▼"), significance.NOISE: ("noise", "≈")}

Picture = Callable[[int], str | None]  # the data: URI of a test image; None: unavailable


@dataclass(frozen=True)
class Against:
    """The other side: its results, and the comparison (review.comparison), in which it is A."""

    other: Results
    document: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the other side, short enough for a headline."""
        return short(str(self.document["a"]["name"]))


def page(
    run: Results,
    against: Against | None,
    picture: Picture,
    notes: Sequence[str],
    provenance: Sequence[tuple[str, str]],
    own: Mapping[str, Any] | None = None,
) -> str:
    """The whole document. notes: what the reader must know to trust it, one line each. provenance: names and values.

    own: the audit of own pictures (review/own_pictures.py); None for a published data set.
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
            regression=regression.is_regression(run.revision),
            change=change(run, against, picture) if against else None,
            training=training(run.curves, against) if run.curves is not None else None,
            pictures={
                path: f"data:image/png;base64,{base64.b64encode(run.pictures[path]).decode()}" for path in run.pictures
            },
            confusion=confusion(run.confusion) if run.confusion else None,
            reliability=reliability(run.reliability, metrics) if run.reliability is not None else None,
            mistakes=mistakes(run.predictions.table) if run.predictions.table is not None else None,
            metrics=[(f"{Path(file).stem}: {key}", formatting.number(n)) for (file, key), n in metrics.items()],
            parameters=parameters(run),
            provenance=provenance,
            **provenance_tables(run),
            evidence=comparison.RECORDED,
        )
    )


def environment() -> jinja2.Environment:
    """The templates' environment: every value is escaped, and an unknown name is an error."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["prose"] = prose
    templates.globals.update(zip=zip, charts=charts, paths=paths)
    return templates


def prose(text: str) -> Markup:
    """A sentence in which `this` is code."""
    parts = code_spans(text)
    return Markup().join(Markup("<code>{}</code>").format(part) if is_code else part for part, is_code in parts)


def sections(run: Results, against: Against | None, own: Mapping[str, Any] | None) -> dict[str, str]:
    """The sections of this page: key, which is its anchor, and title."""
    numeric = regression.is_regression(run.revision)
    measured = run.confusion is not None or run.reliability is not None or paths.OVERVIEW.as_posix() in run.pictures
    images = "Predictions nearer and farther" if numeric else "Images fixed and broken"
    every = [
        ("changes", f"What changed against {against.name}" if against else "", against is not None),
        ("images", images, against is not None and bool(against.document["images"])),
        ("own", "The pictures", own is not None),
        ("training", "Training", run.curves is not None),
        ("values", "Predictions and errors", numeric),
        ("confusion", "Confusion matrix and calibration", measured and not numeric),
        ("classes", "Precision and recall", run.confusion is not None),
        ("mistakes", "Largest errors" if numeric else "Worst mistakes", True),
        ("metrics", "All metrics", against is None),  # a comparison shows them beside the other side's
        ("parameters", "Parameters", True),
        ("provenance", "Provenance", True),
    ]
    return {key: title for key, title, present in every if present}


# The top


def numbers(run: Results) -> dict[tuple[str, str], float]:
    """Every number among the metrics: (file, dotted name) -> value."""
    rows = comparison.metric_rows({}, run.revision.metrics)
    return {(row["file"], row["metric"]): row["b"] for row in rows if row["b"] is not None}


def heading(metrics: dict[tuple[str, str], float]) -> str:
    """The result in one line."""
    test = paths.TEST_METRICS.as_posix()
    accuracy, images = metrics.get((test, "accuracy")), metrics.get((test, "images"))
    r2 = metrics.get((test, "r2"))
    if accuracy is None and r2 is None:
        return "Not measured on test images"
    result = f"Test accuracy {percent(accuracy)}" if accuracy is not None else f"Test R2 {R2.value(r2)}"
    return result + (f" ({images:,} images)" if images is not None else "")


def data_and_model(run: Results) -> str:
    """The names of the data set and of the network, if known."""
    ran_with = run.revision.ran_with or run.revision.params or {}
    names = [ran_with.get(key) for key in ("data.name", "model.name")]
    return " · ".join(short(str(name)) for name in names if isinstance(name, str))


def tiles(metrics: dict[tuple[str, str], float]) -> list[tuple[str, str]]:
    """The other important numbers: name and value."""
    test, train = paths.TEST_METRICS.as_posix(), paths.TRAIN_METRICS.as_posix()
    intervals = []
    for key, scale, decimals, unit in (("accuracy", 100, 2, " %"), ("r2", 1, 4, "")):
        low, high = metrics.get((test, f"{key}_low")), metrics.get((test, f"{key}_high"))
        if low is not None and high is not None:
            text = f"{scale * low:.{decimals}f} to {scale * high:.{decimals}f}{unit}"
            intervals.append(("95 % interval", text))
    forms: list[tuple[str, str, str, Callable[[float], str]]] = [
        ("root mean squared error", test, "rmse", "{:.4g}".format),
        ("mean absolute error", test, "mae", "{:.4g}".format),
        ("validation R2", train, "validation_r2", R2.value),
        ("misclassified images", test, "errors", "{:,}".format),
        ("test loss", test, "loss", "{:.4f}".format),
        ("calibration error", test, "calibration_error", "{:.4f}".format),
        ("validation accuracy", train, "validation_accuracy", percent),
        ("weights", train, "parameters", "{:,}".format),
    ]
    return intervals + [(name, form(metrics[file, key])) for name, file, key, form in forms if (file, key) in metrics]


# Against another revision


def change(run: Results, against: Against, picture: Picture) -> dict[str, Any]:
    """The verdict, and what changed: parameters, metrics, and the images on which the two sides differ."""
    document = against.document
    verdict = document["verdict"]
    kind, sign = WORDS.get(verdict["word"], ("none", "?"))
    # Not a text that begins with the name of a revision.
    text = re.sub("^(accuracy|mean) ", lambda start: start[0].capitalize(), verdict["text"])
    aside = comparison_text.one_model(document)
    if verdict["basis"] == comparison.ONE_MODEL:
        aside = "; ".join(["One model against another, seeds not compared", *document["without_seeds"]])
    interval = None
    if verdict["low"] is not None:
        difference = Difference(*(verdict[key] for key in Difference._fields))
        interval = charts.interval(difference, MEASURES[document["measure"]])
    differing, same = (
        [row for row in document["metrics"] if (row["difference"] == 0) == equal] for equal in (False, True)
    )
    return {
        "a": against.name,
        "b": short(str(document["b"]["name"])),
        "word": verdict["word"],
        "kind": kind,
        "sign": sign,
        "text": f"{text}.".replace(" -> ", " → "),
        "aside": f"{aside}.".replace(" -> ", " → "),
        "interval": interval,
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
        return galleries_of_values(counts, against.name, run.revision.name, picture)
    columns = (old["label"], old["prediction"], new["prediction"])
    masks = significance.paired(*(column.cat.codes.to_numpy().astype(np.int64) for column in columns))
    shown = []
    for kind, wrong, right in (("broken", new, against.name), ("fixed", old, run.revision.name)):
        places = results.most_confident(wrong, np.flatnonzero(masks[kind]), MOST_PICTURES)
        images = [
            {
                "index": index,
                "label": short(str(new["label"].iloc[index]), 24),
                "source": picture(index),
                "predictions": [prediction(old.iloc[index], "before"), prediction(new.iloc[index], "after")],
            }
            for index in places
        ]
        text = f"{kind}: only {short(right)} is correct; the most confident mistakes first."
        shown.append({"title": kind.capitalize(), "text": how_many(len(places), counts[kind], text), "images": images})
    return shown


def galleries_of_values(counts: dict[str, Any], old: str, new: str, picture: Picture) -> list[dict[str, Any]]:
    """The images whose predictions changed most in either direction. counts: `images` of the document."""
    shown = []
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
        shown.append({"title": kind.capitalize(), "text": how_many(len(images), counts[kind], text), "images": images})
    return shown


def prediction(row: pd.Series, when: str) -> tuple[str, bool]:
    """The prediction of one side for an image, and whether it is correct."""
    text = f"{when} {short(str(row['prediction']), 24)}, {percent(row['probability'], 0)}"
    return text, row["prediction"] == row["label"]


# The run


def training(curves: pd.DataFrame, against: Against | None) -> dict[str, Any]:
    """Loss and accuracy or R2 by epoch, with the other side's validation curves."""
    shown = thinned(curves)
    tables = [("train", "training", "two", shown), ("validation", "validation", "one", shown)]
    if against is not None and against.other.curves is not None:
        name = f"validation, {short(against.other.revision.name, 24)}"
        tables.append(("validation", name, "other", thinned(against.other.curves)))
    drawn = []
    for title, metric, form in (("Loss", "loss", R2.value), ("Accuracy", "accuracy", percent), ("R2", "r2", R2.value)):
        lines, last = [], []
        for part, name, kind, table in tables:
            if (column := f"{part}_{metric}") in table:
                lines.append(charts.Line(name, kind, list(zip(table["epoch"], table[column], strict=True))))
                last.append(f"{name} {form(table[column].iloc[-1])}")
        if lines:
            description = f"{title} by epoch; the last: {', '.join(last)}"
            drawn.append(charts.chart(title, description, lines, percent=title == "Accuracy"))
    return {
        "charts": drawn,
        "columns": [
            (str(name).replace("_", " "), "num" if index else "text") for index, name in enumerate(shown.columns)
        ],
        "rows": [[f"{epoch:g}", *(f"{value:.6g}" for value in rest)] for epoch, *rest in shown[:MOST_ROWS].to_numpy()],
    }


def thinned(curves: pd.DataFrame) -> pd.DataFrame:
    """At most MOST_EPOCHS epochs, including the last one."""
    step = -(-len(curves) // MOST_EPOCHS)
    return curves.iloc[(len(curves) - 1) % step :: step]


def confusion(counts: Confusion) -> dict[str, Any]:
    """The most frequent mistakes, and precision, recall and F1 of each class with intervals."""
    matrix, names = counts.matrix, [short(name, 24) for name in counts.classes]
    images, predicted, correct = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    wrong = matrix - np.diag(correct)
    order = np.argsort(-wrong.ravel(), kind="stable")[:MOST_PAIRS]
    pairs = [divmod(int(place), len(names)) for place in order if wrong.ravel()[place]]
    return {
        "frequent": [
            (names[true], names[other], f"{wrong[true, other]:,}", percent(wrong[true, other] / images[true]))
            for true, other in pairs
        ],
        "classes": [
            (
                short(name, 40),
                f"{images[row]:,}",
                *with_interval(int(correct[row]), int(predicted[row])),
                *with_interval(int(correct[row]), int(images[row])),
                f"{f1:.4f}",
            )
            for row, (name, f1) in enumerate(zip(counts.classes, scores.by_class(matrix)["f1"], strict=True))
        ],
    }


def with_interval(correct: int, images: int) -> tuple[str, str]:
    """A share and its Wilson interval."""
    if not images:
        return MISSING, MISSING
    low, high = scores.wilson(correct, images)
    return percent(correct / images), f"{100 * low:.1f} to {percent(high, 1)}"


def reliability(bins: pd.DataFrame, metrics: dict[tuple[str, str], float]) -> dict[str, Any]:
    """How well calibrated the probabilities are, also without the temperature, and accuracy by probability."""
    unscaled = metrics.get((paths.TEST_METRICS.as_posix(), "without_temperature.calibration_error"))
    error = scores.calibration_error(bins) if bins["images"].sum() else 0.0
    return {
        "confident": "under" if ((bins["accuracy"] - bins["confidence"]) * bins["images"]).sum() > 0 else "over",
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
            for row in bins[:MOST_ROWS].itertuples()
        ],
    }


def mistakes(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """The most confident wrong predictions; for regression, the largest errors."""
    if has_values(table):
        errors = (table["prediction"] - table["label"]).to_numpy()
        order = np.argsort(-np.abs(errors), kind="stable")[:MOST_PICTURES]
        return [
            (
                f"{index:,}",
                *(f"{table[key].iloc[index]:.6g}" for key in ("label", "prediction")),
                f"{errors[index]:+.4g}",
            )
            for index in order
        ]
    wrong = np.flatnonzero(table["label"].to_numpy() != table["prediction"].to_numpy())
    rows = [(index, table.iloc[index]) for index in results.most_confident(table, wrong, MOST_PICTURES)]
    return [
        (f"{index:,}", *(short(str(row[key]), 24) for key in ("label", "prediction")), percent(row["probability"], 1))
        for index, row in rows
    ]


def parameters(run: Results) -> dict[str, list[tuple[str, str]]]:
    """The parameters that the stages read, by block, without the options that were not chosen."""
    params, ran_with = run.revision.params or {}, run.revision.ran_with
    values = {key: ran_with[key] for key in [*params, *ran_with] if key in ran_with} or params  # as params.yaml orders
    blocks: dict[str, list[tuple[str, str]]] = {}
    for key, value in values.items():
        block, _, leaf = key.rpartition(".")
        blocks.setdefault(block, []).append((leaf, parameter(value)))
    return blocks


def provenance_tables(run: Results) -> dict[str, Any]:
    """The environment of each stage, and the outputs."""
    environments = {  # the outputs have a table of their own
        stage: {key: value for key, value in recorded.items() if key != "outputs"}
        for stage, recorded in run.environment.items()
    }
    first, *rest = environments.values() or [{}]
    if all(environment == first for environment in rest):
        environments = {" and ".join(environments): first}
    return {
        "stages": [("stage", "text"), *((stage, "text") for stage in environments)],
        "environment": [
            (key.replace("_", " "), *(str(values.get(key, MISSING)) for values in environments.values()))
            for key in dict.fromkeys(key for values in environments.values() for key in values)
        ],
        "outputs": [
            (path, out.md5 or MISSING, f"{out.size:,}" if out.size is not None else MISSING)
            for path, out in run.revision.outs.items()
        ],
    }


def how_many(shown: int, total: int, what: str) -> str:
    """`24 of 679 broken: …`, `All 17 broken: …` or `None broken: …`."""
    return f"{shown} of {total:,} {what}" if shown < total else f"All {total:,} {what}" if total else f"None {what}"
