"""Comparing two regressions: predictions of numbers for the same images. Used by review/comparison.py.

The difference is that of R2. On one test set it is the mean over the images of a paired difference: A's squared error
minus B's, divided by the variance of the labels.
"""

from typing import Any

import numpy as np
import pandas as pd

from integrity.revisions import Revision
from review import significance
from review.sequential import Look
from stages.common import paths
from stages.evaluate import values
from stages.evaluate.scores import Floats

MEASURE = "R2"  # what two regressions are compared by
METHOD = "paired t test and interval of the squared errors of each image"
NEAR = 1e-5  # relative: metrics have six digits


def is_regression(revision: Revision, test_metrics: str = paths.TEST_METRICS.as_posix()) -> bool:
    """Whether a revision predicts numbers."""
    return "r2" in revision.metrics.get(test_metrics, {})


def not_paired(name_a: str, name_b: str, a: pd.DataFrame, b: pd.DataFrame) -> str | None:
    """Why two tables of predicted numbers are not of the same test set, or None if they are."""
    if len(a) != len(b):
        return f"the test sets differ: {len(a):,} images in {name_a}, {len(b):,} in {name_b}"
    if other := int((a["label"] != b["label"]).sum()):
        return f"the test sets differ: {other:,} of {len(a):,} images have another label in {name_b} than in {name_a}"
    return None


def paired(a: pd.DataFrame, b: pd.DataFrame, level: float, examples: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """`images` of a document, and what its verdict rests on: sentence, word, p, difference, low, high."""
    labels, old, new = (column.to_numpy() for column in (a["label"], a["prediction"], b["prediction"]))
    sides = [values.measures(side, labels) for side in (old, new)]
    found = significance.paired_squares(labels, old, new, level)
    text = (
        f"R2 {sides[0]['r2']:.4f} -> {sides[1]['r2']:.4f}, {difference_text(found, level)}; root mean squared error "
        f"{sides[0]['rmse']:.4g} -> {sides[1]['rmse']:.4g}; paired t test of squared errors {p_text(found.p)}, "
        f"level {level:g}"
    )
    gains = np.abs(old - labels) - np.abs(new - labels)
    counts = {"nearer": int((gains > 0).sum()), "farther": int((gains < 0).sum()), "changed": int((old != new).sum())}
    places = {"nearer": largest(gains, examples), "farther": largest(-gains, examples)}
    lists = {
        f"{kind}_examples": [
            {"index": at, "label": float(labels[at]), "a": float(old[at]), "b": float(new[at])} for at in chosen
        ]
        for kind, chosen in places.items()
    }
    verdict = {"word": significance.verdict(found.difference, found.p, level), "text": text, **found._asdict()}
    return {"images": len(labels), **counts, **lists}, verdict


def largest(gains: Floats, most: int) -> list[int]:
    """The positions of the largest gains above 0, the largest first."""
    order = np.argsort(-gains, kind="stable")[:most]
    return [int(place) for place in order if gains[place] > 0]


def contradicts(metrics: dict[str, Any], table: pd.DataFrame) -> str | None:
    """What the predictions have instead, if the metrics of a revision are not theirs."""
    found = values.measures(table["prediction"].to_numpy(), table["label"].to_numpy())
    recorded = {name: metrics.get(name) for name in found}
    for name, value in found.items():
        there = recorded[name]
        if not isinstance(there, int | float) or abs(there - value) > NEAR * max(abs(value), NEAR):
            return f"{name} {value:.6g}"
    return None


def difference_text(found: significance.Difference | Look, level: float) -> str:
    """A difference of R2 and its interval."""
    rounded = (round(value, 4) + 0.0 for value in (found.difference, found.low, found.high))  # + 0.0: no -0.0000
    difference, low, high = (f"{value:+.4f}" for value in rounded)
    return f"{difference} ({100 * (1 - level):g} % interval {low} to {high})"


def p_text(p: float) -> str:
    """A p-value."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"
