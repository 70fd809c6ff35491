"""Two revisions side by side: a document of plain values that becomes a table, Markdown or JSON.

A is what is compared with, B what is judged. A document has:
  a, b         name and commit (None: the work tree) of each side
  level        the share of false alarms that the verdict accepts
  measure      what is compared: accuracy, or R2 for regression
  verdict      what decides. word: better | worse | within noise | not comparable, and of a test that looked several
               times (review/sequential.py) also equivalent | undecided; text: a sentence; basis: seeds | one model; and
               of the test: method, difference (of the measure, B - A), low, high (its interval), p. The last four are
               None if not comparable, p also where there were several looks.
  one_model    the same for the two trained models alone, which is the verdict where no seeds are compared
  seeds        what each seed measured, or None: sides (name, seeds, mean, standard deviation, low, high: the extremes),
               paired (difference, low, high, p of pairs with the same seed; None if the seeds are not the same on both
               sides), needed (how many per side would show a difference of the size observed, in 80 % of comparisons;
               None: unknown)
  without_seeds why the seeds are not compared, a line each
  evidence     what the numbers rest on, a sentence
  notes        what the user must know to trust the rest, a line each
  parameters   those that differ: key, a, b (left out where a side has none), read_by: stages that read it on each side
  metrics      each number: file, metric, a, b (None where a side has none), difference
  images       how many test images were fixed, broken, …, and some of them; for regression, how many predictions are
               nearer to the label and farther from it; None without both sides' predictions
"""

import math
from typing import Any, Literal

import numpy as np
import pandas as pd

from integrity import revisions as git_revisions
from integrity.revisions import Revision, flatten
from review import predictions, significance, values
from review.predictions import Found
from review.sequential import Look
from seeds import record
from seeds.record import Record
from stages.common import paths
from stages.evaluate.predictions import has_values

NOT_COMPARABLE = "not comparable"
RECORDED = "recorded by dvc.lock, not rerun here; `make verify` reruns"
EXAMPLES = 10  # images of each kind that are listed
POWER = 0.8  # the share of comparisons that should find a difference, in the number of seeds needed
SEEDS, ONE_MODEL = "seeds", "one model"  # what a verdict is based on
REMEDY = "`make seeds` on both sides and commit, or --seeds auto trains them, or --single judges the two models"
PRECISION = 100_000  # mean accuracies are shown as finely as those of so many images


def read(
    a: str, b: str | None, level: float, records: tuple[Record, Record] | Literal["recorded"] | None = "recorded"
) -> dict[str, Any]:
    """The document of two revisions, or of one and the work tree (b: None). Raises UserError.

    records: the seeds of both, if not those that are recorded; None: the two trained models decide.
    """
    with git_revisions.repository() as repo:
        sides = [git_revisions.read(repo, name) for name in (a, b)]
        found = [predictions.load(repo, side, paths.PREDICTIONS.as_posix()) for side in sides]
        if records == "recorded":
            records = record.read(repo, sides[0]), record.read(repo, sides[1])
        damaged = git_revisions.damaged(repo, sides, except_for=paths.PREDICTIONS.as_posix())
    document = revisions(
        sides[0],
        sides[1],
        (found[0], found[1]),
        paths.TEST_METRICS.as_posix(),
        paths.TEST.as_posix(),
        level,
        records,
    )
    document["notes"] += damaged
    return document


def revisions(
    a: Revision,
    b: Revision,
    found: tuple[Found, Found],
    test_metrics: str,
    test_set: str,
    level: float,
    records: tuple[Record, Record] | None,
) -> dict[str, Any]:
    """Compare two revisions.

    found: the predictions of both, as `review.predictions.load` gives them.
    test_metrics: the file of metrics with the counts `errors` and `images`. test_set: the output with the test set.
    records: the seeds of both, as `seeds.record.read` gives them; None: the two trained models decide.
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
    elif (why := other_test_set(a, b, test_metrics, test_set)) is not None:
        notes.append(f"{why}: metrics stand side by side, but their differences do not judge the models")
        verdict = not_comparable(why)
    else:
        verdict = unpaired(a, b, test_metrics, level)
    for side, theirs in zip((a, b), found, strict=True):
        notes += [f"{side.name}: {note}" for note in theirs.notes]
        if theirs.table is None:
            notes.append(f"{side.name}: no predictions, so no comparison image by image: {theirs.why}")
    one_model = {**verdict, "basis": ONE_MODEL}
    over_seeds = None
    obstacles = not_by_seeds((a.name, b.name), records) if records else []
    if records and not obstacles:
        over_seeds, verdict = by_seeds((a.name, b.name), records, level)
    return {
        "a": {"name": a.name, "commit": a.commit},
        "b": {"name": b.name, "commit": b.commit},
        "level": level,
        "measure": values.MEASURE if any(values.is_regression(side, test_metrics) for side in (a, b)) else "accuracy",
        "verdict": {**verdict, "basis": SEEDS if over_seeds else ONE_MODEL},
        "one_model": one_model,
        "seeds": over_seeds,
        "without_seeds": obstacles,
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
    if has_values(a) != has_values(b):
        return other_task(*((name_a, name_b) if has_values(a) else (name_b, name_a)))
    if has_values(a):
        return values.not_paired(name_a, name_b, a, b)
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


def other_task(regression: str, classification: str) -> str:
    """Why two revisions cannot be compared."""
    return f"{regression} predicts numbers (data.task: regression), {classification} classes"


def paired(a: pd.DataFrame, b: pd.DataFrame, level: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """`images` and `verdict` of a document, from predictions of the same images."""
    if has_values(a):
        images, verdict = values.paired(a, b, level, EXAMPLES)
        return images, {**verdict, "method": values.METHOD}
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
        f"{points_text(difference, low, high, total, level)}; {fixed:,} images fixed, {broken:,} broken; "
        f"McNemar's exact test {values.p_text(p)}, level {level:g}"
    )
    verdict = _verdict(word, text, "McNemar's exact test (1947); interval: percentile bootstrap over images", p)
    return (
        {"images": total, "both_right": total - fixed - broken - counts["both_wrong"], **counts, **examples},
        {**verdict, "difference": difference, "low": low, "high": high},
    )


def unpaired(a: Revision, b: Revision, test_metrics: str, level: float) -> dict[str, Any]:
    """`verdict` of a document, from the counts in the metrics alone."""
    if values.is_regression(a, test_metrics):
        return not_comparable("regressions are compared image by image, and not both sides have their predictions")
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
        f"{points_text(difference, low, high, images_b, level)}; Fisher's exact test of {errors_a:,} and "
        f"{errors_b:,} errors {values.p_text(p)}, level {level:g}: weaker than a comparison image by image"
    )
    method = "Fisher's exact test (1922) of unpaired shares, the weaker one; interval: Newcombe's (1998)"
    verdict = _verdict(significance.verdict(difference, p, level), text, method, p)
    return {**verdict, "difference": difference, "low": low, "high": high}


def other_test_set(a: Revision, b: Revision, test_metrics: str, test_set: str) -> str | None:
    """Why the metrics of two revisions are not of the same test set, as far as Git knows; None if they seem to be."""
    if _md5(a, test_set) is not None and _md5(a, test_set) == _md5(b, test_set):
        return None
    numeric = [side.name for side in (a, b) if values.is_regression(side, test_metrics)]
    if len(numeric) == 1:
        return other_task(numeric[0], b.name if numeric[0] == a.name else a.name)
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
    metrics = side.metrics.get(test_metrics, {})
    if has_values(table):
        found = values.contradicts(metrics, table)
        return (
            [f"{side.name}: {test_metrics} contradicts the predictions, which have {found}; `dvc repro` there"]
            if found
            else []
        )
    errors = int((table["label"].to_numpy() != table["prediction"].to_numpy()).sum())
    accuracy = metrics.get("accuracy")
    counts_fit = _counts(metrics) in (None, (errors, len(table)))
    accuracy_fits = not isinstance(accuracy, int | float) or abs(accuracy - (1 - errors / len(table))) < 1e-6
    if counts_fit and accuracy_fits:
        return []
    return [
        f"{side.name}: {test_metrics} contradicts the predictions, which have {errors:,} errors in {len(table):,} "
        "images; `dvc repro` there"
    ]


def not_by_seeds(names: tuple[str, str], records: tuple[Record, Record]) -> list[str]:
    """Why the seeds of two sides cannot be compared, a line each; empty if they can be."""
    reasons: dict[str, list[str]] = {}
    for name, side in zip(names, records, strict=True):
        if len(side.rows) < 2:
            why = "one seed has no spread; `make seeds N=5` there" if side.rows else side.why
            reasons.setdefault(why, []).append(name)
    obstacles = [f"{' and '.join(dict.fromkeys(sides))}: {why}" for why, sides in reasons.items()]
    a, b = records
    if not obstacles and (a.test_set is None or a.test_set != b.test_set):
        obstacles.append(
            f"they were measured on other test sets: not the same {paths.TEST} in {names[0]} and {names[1]}"
        )
    return obstacles


def by_seeds(
    names: tuple[str, str], records: tuple[Record, Record], level: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`seeds` and `verdict` of a document, from seeds that `not_by_seeds` has no objection to."""
    a, b = (side.scores for side in records)
    measure = records[0].measure
    table: dict[str, Any] = {
        "sides": [
            {
                "name": name,
                "seeds": len(values),
                "mean": float(values.mean()),
                "deviation": float(values.std(ddof=1)) if np.ptp(values) else 0.0,
                "low": float(values.min()),
                "high": float(values.max()),
            }
            for name, values in zip(names, (a, b), strict=True)
        ],
        "paired": None,
        "needed": None,
    }
    text = seed_means(table, measure)
    found = significance.welch(a, b, level)
    if found is None:
        return table, not_comparable(
            f"{text}; on each side all seeds have the same {measure}, so there is no variation to judge the difference "
            "by; use more seeds, or more images"
        )
    if records[0].seeds == records[1].seeds and (pairs := significance.paired_by_seed(a, b, level)):
        table["paired"] = pairs._asdict()
    text += f", {difference_text(found, measure, level)}; "
    text += f"Welch's t test {values.p_text(found.p)}, level {level:g}"
    if found.difference:
        deviations = [side["deviation"] for side in table["sides"]]
        table["needed"] = significance.seeds_needed(found.difference, deviations[0], deviations[1], level, POWER)
    verdict = _verdict(
        significance.verdict(found.difference, found.p, level),
        text,
        "Welch's t test and interval (1947) with the degrees of freedom of the smaller side (Mickey and Brown 1966)",
        found.p,
    )
    return table, {**verdict, "difference": found.difference, "low": found.low, "high": found.high}


def seed_means(table: dict[str, Any], measure: str) -> str:
    """The means of both sides, as the beginning of a sentence. table: `seeds` of a document. measure: as there."""
    means = [
        f"{side['mean']:.4f}" if measure == values.MEASURE else _share(side["mean"], PRECISION)
        for side in table["sides"]
    ]
    shown = [f"{mean} ({side['seeds']} seeds)" for mean, side in zip(means, table["sides"], strict=True)]
    return f"mean test {measure} {shown[0]} -> {shown[1]}"


def difference_text(found: significance.Difference | Look, measure: str, level: float) -> str:
    """The difference between the means of seeds, and its interval."""
    if measure == values.MEASURE:
        return values.difference_text(found, level)
    return points_text(found.difference, found.low, found.high, PRECISION, level)


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


def points_text(difference: float, low: float, high: float, images: int, level: float) -> str:
    digits = _digits(images)
    rounded = [round(100 * value, digits) + 0.0 for value in (difference, low, high)]  # + 0.0: without the sign of -0.0
    d, low_text, high_text = (f"{value:+.{digits}f}" for value in rounded)
    return f"{d} points ({100 * (1 - level):g} % interval {low_text} to {high_text})"
