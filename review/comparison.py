"""Two revisions, or two seed studies, side by side: a document of plain values that becomes a table, Markdown or JSON.

A is what is compared with, B what is judged. A document has:
  a, b         name and commit (None: the work tree) of each side
  level        the share of false alarms that the verdict accepts
  verdict      word: better | worse | within noise | not comparable; text: a sentence; and of the test: method,
               difference (of accuracy, B - A), low, high (its interval), p. The last four are None if not comparable.
  evidence     what the numbers rest on, a sentence
  notes        what the user must know to trust the rest, a line each
and of revisions:
  parameters   those that differ: key, a, b (left out where a side has none), read_by: stages that read it on each side
  metrics      each number: file, metric, a, b (None where a side has none), difference
  images       how many test images were fixed, broken, …, and some of them; None without both sides' predictions
or of studies:
  part         test | validation: what was measured
  studies      of each side: name, seeds, mean, deviation (standard, over seeds), low, high (the extremes)
  seeds_needed how many per side would show a difference of the size observed, in 80 % of studies; None: unknown
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from integrity.revisions import Revision, flatten
from review import significance
from review.predictions import Found
from review.study_file import Part, Study
from stages.common.errors import UserError
from stages.evaluate.scores import Floats

NOT_COMPARABLE = "not comparable"
RECORDED = "recorded by dvc.lock, not rerun here; `make verify` reruns"
EXAMPLES = 10  # images of each kind that are listed
POWER = 0.8  # the share of studies that should find a difference, in the number of seeds needed


def revisions(
    a: Revision,
    b: Revision,
    found: tuple[Found, Found],
    test_metrics: str,
    test_set: str,
    level: float,
) -> dict[str, Any]:
    """Compare two revisions.

    found: the predictions of both, as `review.predictions.load` gives them.
    test_metrics: the file of metrics with the counts `errors` and `images`. test_set: the output with the test set.
    """
    notes = [*a.notes, *b.notes]
    table_a, table_b = found[0].table, found[1].table
    tables = (table_a, table_b) if table_a is not None and table_b is not None else None
    metrics = metric_rows(a.metrics, b.metrics)
    images = None
    if tables is not None and (why := not_paired(a.name, b.name, *tables)) is not None:
        notes.append(f"{why}: metrics stand side by side, but their differences do not judge the models")
        verdict = not_comparable(why)
    elif tables is not None:
        if _md5(a, test_set) != _md5(b, test_set):
            notes.append(f"{test_set} is not the same on both sides; the labels are, image by image")
        notes += errors_elsewhere(a, tables[0], test_metrics) + errors_elsewhere(b, tables[1], test_metrics)
        images, verdict = paired(*tables, level)
        if verdict["word"] != significance.NOISE:
            notes.append("this compares two trained models only; use several seeds to judge the change")
    elif (why := other_test_set(a, b, test_metrics, test_set)) is not None:
        notes.append(f"{why}: metrics stand side by side, but their differences do not judge the models")
        verdict = not_comparable(why)
    else:
        verdict = unpaired(a, b, test_metrics, level)
    for side, theirs in zip((a, b), found, strict=True):
        notes += [f"{side.name}: {note}" for note in theirs.notes]
        if theirs.table is None:
            notes.append(f"{side.name}: no predictions, so no comparison image by image: {theirs.why}")
    return {
        "a": {"name": a.name, "commit": a.commit},
        "b": {"name": b.name, "commit": b.commit},
        "level": level,
        "verdict": verdict,
        "evidence": RECORDED,
        "notes": notes,
        "parameters": parameter_rows(a, b),
        "metrics": metrics,
        "images": images,
    }


def parameter_rows(a: Revision, b: Revision) -> list[dict[str, Any]]:
    """A row for each parameter that differs, in the order of the files."""
    if a.params is None or b.params is None:
        return []
    rows = []
    for key in dict.fromkeys([*a.params, *b.params]):
        sides = {side: values[key] for side, values in (("a", a.params), ("b", b.params)) if key in values}
        if len(sides) < 2 or sides["a"] != sides["b"]:
            stages = dict.fromkeys([*a.read_by.get(key, []), *b.read_by.get(key, [])])
            rows.append({"key": key, **sides, "read_by": list(stages)})
    return rows


def metric_rows(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each number in the files of metrics, in their order; lists, such as numbers a class, are left out."""
    rows = []
    for file in dict.fromkeys([*a, *b]):
        sides = [
            {key: value for key, value in flatten(side.get(file, {}), file).items() if _is_number(value)}
            for side in (a, b)
        ]
        for metric in dict.fromkeys([*sides[0], *sides[1]]):
            old, new = sides[0].get(metric), sides[1].get(metric)
            # Nine digits are more than the files hold; without rounding 0.9949 - 0.9946 is 0.000299999….
            difference = None if old is None or new is None else float(f"{new - old:.9g}")
            if isinstance(old, int) and isinstance(new, int):
                difference = new - old
            rows.append({"file": file, "metric": metric, "a": old, "b": new, "difference": difference})
    return rows


def not_paired(name_a: str, name_b: str, a: pd.DataFrame, b: pd.DataFrame) -> str | None:
    """Why two tables of predictions are not of the same test set, or None if they are."""
    classes_a, classes_b = list(a["label"].cat.categories), list(b["label"].cat.categories)
    if len(classes_a) != len(classes_b):
        return f"{name_a} has {len(classes_a)} classes, {name_b} has {len(classes_b)}"
    if classes_a != classes_b:
        at = next(at for at in range(len(classes_a)) if classes_a[at] != classes_b[at])
        return f"the classes differ: {classes_a[at][:40]!r} in {name_a} is {classes_b[at][:40]!r} in {name_b}"
    if len(a) != len(b):
        return f"the test sets differ: {len(a):,} images in {name_a}, {len(b):,} in {name_b}"
    other = int((a["label"].to_numpy() != b["label"].to_numpy()).sum())
    if other:
        return f"the test sets differ: {other:,} of {len(a):,} images have another label in {name_b} than in {name_a}"
    return None


def paired(a: pd.DataFrame, b: pd.DataFrame, level: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """`images` and `verdict` of a document, from predictions of the same images."""
    codes = [column.cat.codes.to_numpy().astype(np.int64) for column in (a["label"], a["prediction"], b["prediction"])]
    masks = significance.paired(*codes)
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    total, fixed, broken = len(a), counts["fixed"], counts["broken"]
    right_a = total - counts["both_wrong"] - fixed
    p = significance.mcnemar(fixed, broken)
    low, high = significance.bootstrap(fixed, broken, total, level)
    difference = (fixed - broken) / total
    word = significance.verdict(difference, p, level)
    examples = {
        f"{name}_examples": [
            {
                "index": int(index),
                "label": str(a["label"].iloc[index]),
                "a": str(a["prediction"].iloc[index]),
                "b": str(b["prediction"].iloc[index]),
            }
            for index in np.flatnonzero(masks[name])[:EXAMPLES]
        ]
        for name in ("fixed", "broken")
    }
    text = (
        f"accuracy {_share(right_a / total, total)} -> {_share((right_a + fixed - broken) / total, total)}, "
        f"{_points(difference, low, high, total, level)}; {fixed:,} images fixed, {broken:,} broken; "
        f"McNemar's exact test {_p(p)}, level {level:g}"
    )
    verdict = _verdict(word, text, "McNemar's exact test (1947); interval: percentile bootstrap over images", p)
    return (
        {"images": total, "both_right": total - fixed - broken - counts["both_wrong"], **counts, **examples},
        {**verdict, "difference": difference, "low": low, "high": high},
    )


def unpaired(a: Revision, b: Revision, test_metrics: str, level: float) -> dict[str, Any]:
    """`verdict` of a document, from the counts in the metrics alone."""
    counts = [_counts(side.metrics.get(test_metrics, {})) for side in (a, b)]
    for side, found in zip((a, b), counts, strict=True):
        if found is None:
            return not_comparable(f"{side.name}: {test_metrics} has no counts `errors` and `images`")
    (errors_a, images_a), (errors_b, images_b) = (found for found in counts if found is not None)
    difference = errors_a / images_a - errors_b / images_b
    p = significance.fisher(errors_a, images_a, errors_b, images_b)
    low, high = significance.newcombe(errors_a, images_a, errors_b, images_b, level)
    text = (
        f"accuracy {_share(1 - errors_a / images_a, images_a)} -> {_share(1 - errors_b / images_b, images_b)}, "
        f"{_points(difference, low, high, images_b, level)}; Fisher's exact test of {errors_a:,} and "
        f"{errors_b:,} errors {_p(p)}, level {level:g}: weaker than a comparison image by image"
    )
    method = "Fisher's exact test (1922) of unpaired shares, the weaker one; interval: Newcombe's (1998)"
    verdict = _verdict(significance.verdict(difference, p, level), text, method, p)
    return {**verdict, "difference": difference, "low": low, "high": high}


def other_test_set(a: Revision, b: Revision, test_metrics: str, test_set: str) -> str | None:
    """Why the metrics of two revisions are not of the same test set, as far as Git knows; None if they seem to be."""
    if _md5(a, test_set) is not None and _md5(a, test_set) == _md5(b, test_set):
        return None
    names = [(side.params or {}).get("data.name") for side in (a, b)]
    if names[0] != names[1]:
        return f"the data sets differ: {names[0]} in {a.name}, {names[1]} in {b.name}"
    classes = [_images_by_class(side.metrics.get(test_metrics, {})) for side in (a, b)]
    if len(classes[0]) != len(classes[1]):
        return f"{a.name} has {len(classes[0])} classes, {b.name} has {len(classes[1])}"
    if classes[0] != classes[1]:
        return "the test sets differ: not the same classes with as many images each"
    return None


def errors_elsewhere(side: Revision, table: pd.DataFrame, test_metrics: str) -> list[str]:
    """A note if the metrics of a revision are not those of its predictions: counts of errors and images, accuracy."""
    errors = int((table["label"].to_numpy() != table["prediction"].to_numpy()).sum())
    metrics = side.metrics.get(test_metrics, {})
    accuracy = metrics.get("accuracy")
    counts_fit = _counts(metrics) in (None, (errors, len(table)))
    accuracy_fits = not isinstance(accuracy, int | float) or abs(accuracy - (1 - errors / len(table))) < 1e-6
    if counts_fit and accuracy_fits:
        return []
    return [
        f"{side.name}: {test_metrics} contradicts the predictions, which have {errors:,} errors in {len(table):,} "
        "images; `dvc repro` there"
    ]


def studies(a: Study, b: Study, level: float) -> dict[str, Any]:
    """Compare two seed studies by the mean of their test accuracies, or else of their validation accuracies.

    There is no verdict if they tell that they measured other images. Raises UserError if
    not all seeds were measured on the same part.
    """
    part, values = measured(a, b)
    found = significance.welch(values[0], values[1], level)
    means = [float(each.mean()) for each in values]
    deviations = [float(each.std(ddof=1)) if np.ptp(each) else 0.0 for each in values]
    notes = [f"{study.name}: {study.seeds_missing} seeds did not finish" for study in (a, b) if study.seeds_missing]
    if part == "validation":
        notes.append("validation accuracies are compared: not all seeds were measured on the test set")
    notes += [f"{study.name}: which data it measured is not recorded" for study in (a, b) if study.data is None]
    text = (
        f"mean {part} accuracy {_share(means[0], 100_000)} ({len(a.runs)} seeds) -> "
        f"{_share(means[1], 100_000)} ({len(b.runs)} seeds)"
    )
    needed = None
    if (why := other_data(a, b, part)) is not None:
        verdict = not_comparable(why)
    elif found is None:
        verdict = not_comparable(
            f"{text}; on each side all seeds have the same accuracy, so there is no variation to judge the difference "
            "by; use more seeds, or more images"
        )
    else:
        difference, p = found["difference"], found["p"]
        text += f", {_points(difference, found['low'], found['high'], 100_000, level)}; "
        text += f"Welch's t test {_p(p)}, level {level:g}"
        if difference:
            needed = significance.seeds_needed(difference, deviations[0], deviations[1], level, POWER)
            seeds = f"{needed:,}" if needed else f"more than {significance.MOST_SEEDS:,}"
            text += f"; {seeds} seeds per side would show a difference of this size in {100 * POWER:g} % of studies"
        method = "Welch's t test and interval (1947); seeds needed: noncentral t (Cohen 1988)"
        verdict = _verdict(significance.verdict(difference, p, level), text, method, p)
        verdict |= {name: found[name] for name in ("difference", "low", "high")}
    return {
        "a": {"name": a.name, "commit": None},
        "b": {"name": b.name, "commit": None},
        "level": level,
        "verdict": verdict,
        "evidence": "recorded by each study, not rerun here",
        "notes": notes,
        "part": part,
        "studies": [
            {
                "name": study.name,
                "seeds": len(study.runs),
                "mean": mean,
                "deviation": deviation,
                "low": float(each.min()),
                "high": float(each.max()),
            }
            for study, each, mean, deviation in zip((a, b), values, means, deviations, strict=True)
        ],
        "seeds_needed": needed,
    }


def other_data(a: Study, b: Study, part: Part) -> str | None:
    """Why two studies did not measure the same images of a part, as far as they tell; None if they seem to."""
    name = "test sets" if part == "test" else "validation parts"
    if a.data and b.data:
        if a.data.name != b.data.name:
            return f"the data sets differ: {a.data.name} in {a.name}, {b.data.name} in {b.name}"
        if getattr(a.data, part) != getattr(b.data, part):
            return f"the {name} of {a.data.name} differ: not the same MD5 in {a.name} and {b.name}"
        return None
    chosen = a.chosen_data(part), b.chosen_data(part)
    for key in dict.fromkeys([*chosen[0], *chosen[1]]):
        values = [side.get(key, "not set") for side in chosen]
        if values[0] != values[1]:
            return f"the {name} differ: {key} is {values[0]} in {a.name}, {values[1]} in {b.name}"
    images = a.images(part), b.images(part)
    if images[0] is not None and images[1] is not None and images[0] != images[1]:
        return f"the {name} differ: {images[0]:,} images in {a.name}, {images[1]:,} in {b.name}"
    return None


def measured(a: Study, b: Study) -> tuple[Part, list[Floats]]:
    """The part that all seeds of both studies were measured on, the test set if it is both, and their accuracies."""
    parts: tuple[Part, ...] = ("test", "validation")
    for part in parts:
        sides = [accuracies(study, part) for study in (a, b)]
        values = [side for side in sides if side is not None]
        if len(values) == len(sides):
            return part, values
    raise UserError(
        f"{a.name} and {b.name} were not measured on the same part; `python -m review.study --test` measures on both"
    )


def accuracies(study: Study, part: Part) -> Floats | None:
    """Accuracy of each seed, float64 (runs,), from the counts where they are known; None unless each seed has one."""
    errors, images = study.errors(part), study.images(part)
    if errors is not None and images is not None:
        return 1 - errors / images
    found = [run.accuracy if part == "test" else run.validation_accuracy for run in study.runs]
    return None if None in found else np.array(found, dtype=np.float64)


def not_comparable(why: str) -> dict[str, Any]:
    """The verdict where there is none."""
    return {**_verdict(NOT_COMPARABLE, why, None, None), "difference": None, "low": None, "high": None}


def _verdict(word: str, text: str, method: str | None, p: float | None) -> dict[str, Any]:
    return {"word": word, "text": text, "method": method, "p": p}


def _md5(side: Revision, path: str) -> str | None:
    return side.outs[path].md5 if path in side.outs else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _counts(metrics: dict[str, Any]) -> tuple[int, int] | None:
    """Errors and images of a file of test metrics, if it has them and they can be."""
    errors, images = metrics.get("errors"), metrics.get("images")
    if type(errors) is int and type(images) is int and 0 <= errors <= images and 0 < images < 10**9:
        return errors, images
    return None


def _images_by_class(metrics: dict[str, Any]) -> list[tuple[Any, Any]]:
    rows = metrics.get("classes")
    return (
        [(row.get("class"), row.get("images")) for row in rows if isinstance(row, dict)]
        if isinstance(rows, list)
        else []
    )


def _digits(images: int) -> int:
    """Decimals of a percentage that tell one image from none."""
    return max(2, math.ceil(math.log10(images)) - 2)


def _share(value: float, images: int) -> str:
    return f"{100 * value:.{_digits(images)}f} %"


def _points(difference: float, low: float, high: float, images: int, level: float) -> str:
    digits = _digits(images)
    rounded = [round(100 * value, digits) + 0.0 for value in (difference, low, high)]  # + 0.0: without the sign of -0.0
    d, low_text, high_text = (f"{value:+.{digits}f}" for value in rounded)
    return f"{d} points ({100 * (1 - level):g} % interval {low_text} to {high_text})"


def _p(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"
