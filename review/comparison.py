"""Two revisions side by side: a document of plain values that becomes a table, Markdown or JSON.

A is the revision to compare with, B the one that is judged. A document has:
  a, b         name and commit of each side; the work tree has the commit None
  level        the share of false alarms that the verdict accepts
  measure      what is compared: accuracy, or R2 for regression
  verdict      the decision. word: better | worse | within noise | not comparable; after a test with several looks
               (review/sequential.py) also equivalent | undecided. text: a sentence. basis: seeds | one model. Then the
               method, the difference (of the measure, B - A), its interval low to high, and p. These are None if the
               sides are not comparable; p is also None after several looks.
  one_model    the same for the two trained models only; it is the verdict if no seeds are compared
  seeds        what the seeds measured, or None. sides: name, seeds, mean, standard deviation, low and high (the
               extremes). paired: difference, low, high and p of pairs with the same seed; None if the two sides have
               different seeds. needed: the seeds per side that show a difference of this size in 80 % of comparisons;
               None if unknown
  without_seeds why the seeds are not compared, one line each
  evidence     where the numbers come from, a sentence
  notes        what the reader must know to trust the rest, one line each
  parameters   those that differ: key, a, b (absent if a side lacks it), read_by: the stages that read it on either side
  metrics      each number: file, metric, a, b (None if a side lacks it), difference
  images       how many test images were fixed, broken, …, and some of them; for regression, how many predictions are
               nearer to the label and farther from it; None unless both sides have predictions
"""

from typing import Any, Literal

import numpy as np
import pandas as pd

from integrity import revisions
from integrity.revisions import Revision
from review import regression, results, significance
from review.formatting import ACCURACY, MEASURES, R2, Interval, accuracy_of, p_value
from review.results import PredictionsLookup
from review.significance import Difference
from seeds import record
from seeds.record import Record
from stages.common import params, paths
from stages.evaluate.predictions import has_values

NOT_COMPARABLE = "not comparable"
RECORDED = "recorded by dvc.lock, not rerun here; `make verify` reruns"
EXAMPLES = 10  # images of each kind that are listed
POWER = 0.8  # the share of comparisons that should find a difference, for the number of seeds needed
SEEDS, ONE_MODEL = "seeds", "one model"  # what a verdict is based on
REMEDY = (
    "run `make seeds` on both sides and commit, or let --seeds auto train them, or judge the two models by --single"
)
TEST_METRICS, TEST_SET = paths.TEST_METRICS.as_posix(), paths.TEST.as_posix()
# Parameters that change the pixels of a test picture, and those that change which pictures are in the test set.
PIXELS = {f"preprocess.{key}" for key in ("channels", "image_size", "resize", "background")}
SELECTION = {
    "data.name",
    "data.images",
    *(f"preprocess.{key}" for key in ("seed", "test_fraction", "group_by", "bad_images", "on_conflict")),
    "preprocess.small_classes",
}

Records = tuple[Record, Record]


def read(
    a: str,
    b: str | None,
    level: float,
    records: Records | Literal["recorded"] | None = "recorded",
    names: tuple[str | None, str | None] = (None, None),
) -> dict[str, Any]:
    """The document of two revisions, or of a revision and the work tree (b: None). Raises UserError.

    records: the seeds of both sides, if not the recorded ones; None: the two trained models decide. names: to print
    instead of `a` and `b`.
    """
    with revisions.repository() as repo:
        sides = revisions.read(repo, a, names[0]), revisions.read(repo, b, names[1])
        lookups = results.look_up_predictions(repo, sides[0]), results.look_up_predictions(repo, sides[1])
        if records == "recorded":
            records = record.read(repo, sides[0]), record.read(repo, sides[1])
        damaged = revisions.damaged(repo, sides, except_for=paths.PREDICTIONS.as_posix())
    document = compare(*sides, lookups, level, records)
    document["notes"] += damaged
    return document


def compare(
    a: Revision,
    b: Revision,
    lookups: tuple[PredictionsLookup, PredictionsLookup],
    level: float,
    records: Records | None,
) -> dict[str, Any]:
    """The document of two revisions. records: the seeds of both sides; None: the two trained models decide."""
    names = a.name, b.name
    notes = [*a.notes, *b.notes]
    images, one_model, doubts = compare_models(a, b, lookups, level)
    notes += doubts
    for name, lookup in zip(names, lookups, strict=True):
        notes += [f"{name}: {note}" for note in lookup.notes]
        if lookup.table is None:
            notes.append(f"{name}: no predictions, so no comparison image by image: {lookup.reason}")
    one_model["basis"] = ONE_MODEL
    verdict, over_seeds = one_model, None
    obstacles = obstacles_to_seeds(names, records) if records else []
    if records and not obstacles:
        over_seeds, verdict = compare_seeds(names, records, level)
        verdict["basis"] = SEEDS
    return {
        "a": {"name": a.name, "commit": a.commit},
        "b": {"name": b.name, "commit": b.commit},
        "level": level,
        "measure": (R2 if regression.is_regression(a) or regression.is_regression(b) else ACCURACY).name,
        "verdict": verdict,
        "one_model": one_model,
        "seeds": over_seeds,
        "without_seeds": obstacles,
        "evidence": RECORDED,
        "notes": notes,
        "parameters": parameter_rows(a, b),
        "metrics": metric_rows(a.metrics, b.metrics),
        "images": images,
    }


def parameter_rows(a: Revision, b: Revision) -> list[dict[str, Any]]:
    """One row per parameter that differs, in the order of the files."""
    if a.params is None or b.params is None:
        return []
    rows = []
    for key in dict.fromkeys([*a.params, *b.params]):
        values = {side: params[key] for side, params in (("a", a.params), ("b", b.params)) if key in params}
        if len(values) < 2 or values["a"] != values["b"]:
            stages = dict.fromkeys([*a.read_by.get(key, []), *b.read_by.get(key, [])])
            rows.append({"key": key, **values, "read_by": list(stages)})
    return rows


def metric_rows(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per number in the files of metrics, in their order; lists, such as one number per class, are left out."""
    rows = []
    for file in dict.fromkeys([*a, *b]):
        old_metrics, new_metrics = (
            {key: value for key, value in params.flatten(metrics.get(file, {}), file).items() if _is_number(value)}
            for metrics in (a, b)
        )
        for metric in dict.fromkeys([*old_metrics, *new_metrics]):
            old, new = old_metrics.get(metric), new_metrics.get(metric)
            difference: float | None = None
            if isinstance(old, int) and isinstance(new, int):
                difference = new - old
            elif old is not None and new is not None:
                # Nine digits are more than the files have; without rounding 0.9949 - 0.9946 is 0.000299999….
                difference = float(f"{new - old:.9g}")
            rows.append({"file": file, "metric": metric, "a": old, "b": new, "difference": difference})
    return rows


# The two trained models


def compare_models(
    a: Revision, b: Revision, lookups: tuple[PredictionsLookup, PredictionsLookup], level: float
) -> tuple[dict[str, Any] | None, dict[str, Any], list[str]]:
    """`images` and `one_model` of a document, and notes: by predictions if both sides have them, else by counts."""
    old, new = lookups[0].table, lookups[1].table
    tables = (old, new) if old is not None and new is not None else None
    reason = different_images(a.name, b.name, *tables) if tables else different_test_sets(a, b)
    reason = reason or different_pictures(a, b)
    if reason:
        note = f"{reason}: metrics are shown side by side, but their differences do not judge the models"
        return None, verdict_without_difference(reason), [note]
    test_sets = {_md5(a, TEST_SET), _md5(b, TEST_SET)}
    if not tables:
        maybe = f"{TEST_SET} differs between the two sides: other images, or the same ones prepared in another way"
        return None, unpaired(a, b, level), [maybe] if len(test_sets - {None}) == 2 else []
    notes = []
    if len(test_sets) == 2:
        notes.append(f"{TEST_SET} differs between the two sides, but the labels are the same image by image")
    notes += contradictions(a, tables[0]) + contradictions(b, tables[1])
    return *paired(*tables, level), notes


def different_images(name_a: str, name_b: str, a: pd.DataFrame, b: pd.DataFrame) -> str | None:
    """Why two tables of predictions belong to different test sets; None if they belong to the same one."""
    if has_values(a) != has_values(b):
        return _different_tasks(*((name_a, name_b) if has_values(a) else (name_b, name_a)))
    if not has_values(a):
        classes_a, classes_b = list(a["label"].cat.categories), list(b["label"].cat.categories)
        if len(classes_a) != len(classes_b):
            return f"{name_a} has {len(classes_a)} classes, {name_b} has {len(classes_b)}"
        for old, new in zip(classes_a, classes_b, strict=True):
            if old != new:
                return f"the classes differ: {old[:40]!r} in {name_a} is {new[:40]!r} in {name_b}"
    if has_values(a) and not np.ptp(a["label"]):
        return f"all test images of {name_a} have the same label, so R2 is undefined"
    if len(a) != len(b):
        return f"the test sets differ: {len(a):,} images in {name_a}, {len(b):,} in {name_b}"
    if count := int((a["label"].to_numpy() != b["label"].to_numpy()).sum()):
        return f"the test sets differ: {count:,} of {len(a):,} images have another label in {name_b} than in {name_a}"
    return None


def different_test_sets(a: Revision, b: Revision) -> str | None:
    """Why the metrics of two revisions belong to different test sets, as far as Git knows; None if they seem equal."""
    if _md5(a, TEST_SET) is not None and _md5(a, TEST_SET) == _md5(b, TEST_SET):
        return None
    if regression.is_regression(a) != regression.is_regression(b):
        return _different_tasks(*((a.name, b.name) if regression.is_regression(a) else (b.name, a.name)))
    data_a, data_b = ((side.params or {}).get("data.name") for side in (a, b))
    if data_a != data_b:
        return f"the data sets differ: {data_a} in {a.name}, {data_b} in {b.name}"
    classes_a, classes_b = _images_by_class(a), _images_by_class(b)
    if not (classes_a and classes_b):  # metrics of an older version, or none
        images_a, images_b = (side.metrics.get(TEST_METRICS, {}).get("images") for side in (a, b))
        differ = None not in (images_a, images_b) and images_a != images_b
        return f"the test sets differ: {images_a} images in {a.name}, {images_b} in {b.name}" if differ else None
    if len(classes_a) != len(classes_b):
        return f"{a.name} has {len(classes_a)} classes, {b.name} has {len(classes_b)}"
    if classes_a != classes_b:
        return "the test sets differ: other classes, or another number of images per class"
    return None


def different_pictures(a: Revision, b: Revision) -> str | None:
    """Why the test pictures of two revisions differ, although their labels may be equal; None if they seem the same.

    The bytes of the test set may differ without that: the same pictures can be prepared with other parameters.
    """
    if len({_md5(a, TEST_SET), _md5(b, TEST_SET)} - {None}) < 2:
        return None
    changed = {key for key in PIXELS | SELECTION if a.ran_with.get(key) != b.ran_with.get(key)}
    if changed and changed <= PIXELS:
        return None
    return f"the test sets differ: {TEST_SET} of {a.name} and {b.name} has other pictures, or other code prepared them"


def _different_tasks(regression_name: str, classification_name: str) -> str:
    return f"{regression_name} predicts numbers (data.task: regression), {classification_name} classes"


def contradictions(side: Revision, table: pd.DataFrame) -> list[str]:
    """A note if the metrics of a revision do not match its predictions."""
    metrics = side.metrics.get(TEST_METRICS, {})
    if has_values(table):
        measured = regression.contradiction(metrics, table)
    else:
        errors, images = int((table["label"].to_numpy() != table["prediction"].to_numpy()).sum()), len(table)
        accuracy = metrics.get("accuracy")
        counts_match = _counts(metrics) in (None, (errors, images))
        accuracy_matches = not isinstance(accuracy, int | float) or abs(accuracy - (1 - errors / images)) < 1e-6
        measured = None if counts_match and accuracy_matches else f"{errors:,} errors in {images:,} images"
    if measured is None:
        return []
    return [f"{side.name}: {TEST_METRICS} contradicts the predictions, which have {measured}; `dvc repro` there"]


def paired(a: pd.DataFrame, b: pd.DataFrame, level: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """`images` and `verdict` of a document, from predictions of the same images."""
    if has_values(a):
        images, text, difference = regression.paired(a, b, level, EXAMPLES)
        return images, verdict_on(difference, level, text, regression.METHOD)
    codes = [column.cat.codes.to_numpy().astype(np.int64) for column in (a["label"], a["prediction"], b["prediction"])]
    masks = significance.paired(*codes)
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    total, fixed, broken = len(a), counts["fixed"], counts["broken"]
    both_right = total - fixed - broken - counts["both_wrong"]
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
    low, high = significance.paired_interval(fixed, broken, total, level)
    difference = Difference((fixed - broken) / total, low, high, significance.mcnemar(fixed, broken))
    accuracy = accuracy_of(total)
    text = (
        f"accuracy {accuracy.value((both_right + broken) / total)} -> {accuracy.value((both_right + fixed) / total)}, "
        f"{accuracy.interval(difference, level)}; {fixed:,} images fixed, {broken:,} broken; McNemar's exact test "
        f"{p_value(difference.p)}, level {level:g}"
    )
    method = "McNemar's exact test (1947); interval: Clopper and Pearson's (1934), combined as Newcombe (2011) does"
    images = {"images": total, "both_right": both_right, **counts, **examples}
    return images, verdict_on(difference, level, text, method)


def unpaired(a: Revision, b: Revision, level: float) -> dict[str, Any]:
    """`verdict` of a document, from the counts in the metrics alone."""
    if regression.is_regression(a):
        return verdict_without_difference(
            "regressions are compared image by image, and a side lacks its predictions; the notes say why"
        )
    counts = []
    for side in (a, b):
        if (pair := _counts(side.metrics.get(TEST_METRICS, {}))) is None:
            return verdict_without_difference(f"{side.name}: {TEST_METRICS} has no counts `errors` and `images`")
        counts.append(pair)
    (errors_a, images_a), (errors_b, images_b) = counts
    low, high = significance.newcombe(errors_a, images_a, errors_b, images_b, level)
    p = significance.fisher(errors_a, images_a, errors_b, images_b)
    difference = Difference(errors_a / images_a - errors_b / images_b, low, high, p)
    text = (
        f"accuracy {accuracy_of(images_a).value(1 - errors_a / images_a)} -> "
        f"{accuracy_of(images_b).value(1 - errors_b / images_b)}, {accuracy_of(images_b).interval(difference, level)}; "
        f"Fisher's exact test of {errors_a:,} and {errors_b:,} errors {p_value(p)}, level {level:g}: weaker than a "
        "comparison image by image"
    )
    method = "Fisher's exact test (1922) of unpaired shares, the weaker one; interval: Newcombe's (1998)"
    return verdict_on(difference, level, text, method)


# Several seeds


def obstacles_to_seeds(names: tuple[str, str], records: Records) -> list[str]:
    """Why the seeds of two sides cannot be compared, one line each; empty if they can be."""
    reasons: dict[str, list[str]] = {}
    for name, side in zip(names, records, strict=True):
        if len(side.rows) < 2:
            reason = "one seed shows no variation; `make seeds N=5` there" if side.rows else side.why
            reasons.setdefault(reason, []).append(name)
    if reasons:
        return [f"{' and '.join(dict.fromkeys(sides))}: {reason}" for reason, sides in reasons.items()]
    a, b = records
    if a.test_set is None or a.test_set != b.test_set:
        return [f"they were measured on different test sets: {paths.TEST} differs between {names[0]} and {names[1]}"]
    return []


def compare_seeds(names: tuple[str, str], records: Records, level: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """`seeds` and `verdict` of a document, from seeds without `obstacles_to_seeds`."""
    a, b = (side.scores for side in records)
    measure = records[0].measure
    table: dict[str, Any] = {
        "sides": [
            {
                "name": name,
                "seeds": len(scores),
                "mean": float(scores.mean()),
                "deviation": float(scores.std(ddof=1)) if np.ptp(scores) else 0.0,
                "low": float(scores.min()),
                "high": float(scores.max()),
            }
            for name, scores in zip(names, (a, b), strict=True)
        ],
        "paired": None,
        "needed": None,
    }
    means = seed_means(table, measure)
    difference = significance.welch(a, b, level)
    if difference is None:
        return table, verdict_without_difference(
            f"{means}; on each side all seeds have the same {measure}, so there is no variation to judge the "
            "difference by; use more seeds, or more images"
        )
    if records[0].seeds == records[1].seeds and (pairs := significance.paired_by_seed(a, b, level)):
        table["paired"] = pairs._asdict()
    if difference.difference:
        deviation_a, deviation_b = (side["deviation"] for side in table["sides"])
        table["needed"] = significance.seeds_needed(difference.difference, deviation_a, deviation_b, level, POWER)
    text = (
        f"{seed_difference(table, measure, difference, level)}; Welch's t test {p_value(difference.p)}, level {level:g}"
    )
    method = (
        "Welch's t test and interval (1947) with the degrees of freedom of the smaller side (Mickey and Brown 1966)"
    )
    return table, verdict_on(difference, level, text, method)


def seed_means(table: dict[str, Any], measure: str) -> str:
    """The means of both sides, as the beginning of a sentence. table: `seeds` of a document. measure: as there."""
    old, new = (f"{MEASURES[measure].value(side['mean'])} ({side['seeds']} seeds)" for side in table["sides"])
    return f"mean test {measure} {old} -> {new}"


def seed_difference(table: dict[str, Any], measure: str, difference: Interval, level: float) -> str:
    """The means of both sides, and their difference with its interval."""
    return f"{seed_means(table, measure)}, {MEASURES[measure].interval(difference, level)}"


# Verdicts


def verdict_on(difference: Difference, level: float, text: str, method: str) -> dict[str, Any]:
    """`verdict` of a document, from a difference and its test."""
    word = significance.verdict(difference.difference, difference.p, level)
    return {"word": word, "text": text, "method": method, **difference._asdict()}


def verdict_without_difference(reason: str) -> dict[str, Any]:
    """`verdict` of a document whose sides cannot be compared."""
    return {"word": NOT_COMPARABLE, "text": reason, "method": None, **dict.fromkeys(Difference._fields)}


def _md5(side: Revision, path: str) -> str | None:
    return side.outs[path].md5 if path in side.outs else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _counts(metrics: dict[str, Any]) -> tuple[int, int] | None:
    """Errors and images of a file of test metrics, if it has them and they are possible."""
    errors, images = metrics.get("errors"), metrics.get("images")
    if type(errors) is int and type(images) is int and 0 <= errors <= images and 0 < images < 10**9:
        return errors, images
    return None


def _images_by_class(side: Revision) -> list[tuple[Any, Any]]:
    rows = side.metrics.get(TEST_METRICS, {}).get("classes")
    rows = rows if isinstance(rows, list) else []
    return [(row.get("class"), row.get("images")) for row in rows if isinstance(row, dict)]
