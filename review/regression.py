"""Comparing two regressions: predictions of numbers for the same images. Used by review/comparison.py.

The difference is that of R2. On one test set it is the mean over the images of a paired difference: A's squared error
minus B's, divided by the variance of the labels.
"""

from typing import Any

import numpy as np
import pandas as pd

from integrity.revisions import Revision
from review import significance
from review.formatting import R2, p_value
from stages.common import paths
from stages.evaluate import values
from stages.evaluate.scores import Floats

METHOD = "paired t test and interval of the squared errors of each image"
TOLERANCE = 1e-5  # relative: metrics have six digits


def is_regression(revision: Revision) -> bool:
    """Whether a revision predicts numbers."""
    return "r2" in revision.metrics.get(paths.TEST_METRICS.as_posix(), {})


def paired(
    a: pd.DataFrame, b: pd.DataFrame, level: float, examples: int
) -> tuple[dict[str, Any], str, significance.Difference]:
    """`images` of a document, a sentence for its verdict, and the difference, from predictions of the same images."""
    labels, old, new = (column.to_numpy() for column in (a["label"], a["prediction"], b["prediction"]))
    old_measures, new_measures = values.measures(old, labels), values.measures(new, labels)
    difference = significance.paired_squares(labels, old, new, level)
    text = (
        f"R2 {R2.value(old_measures['r2'])} -> {R2.value(new_measures['r2'])}, {R2.interval(difference, level)}; root "
        f"mean squared error {old_measures['rmse']:.4g} -> {new_measures['rmse']:.4g}; paired t test of squared errors "
        f"{p_value(difference.p)}, level {level:g}"
    )
    gains = np.abs(old - labels) - np.abs(new - labels)
    images: dict[str, Any] = {
        "images": len(labels),
        "nearer": int((gains > 0).sum()),
        "farther": int((gains < 0).sum()),
        "changed": int((old != new).sum()),
    }
    for kind, places in (("nearer", largest(gains, examples)), ("farther", largest(-gains, examples))):
        images[f"{kind}_examples"] = [
            {"index": index, "label": float(labels[index]), "a": float(old[index]), "b": float(new[index])}
            for index in places
        ]
    return images, text, difference


def largest(gains: Floats, most: int) -> list[int]:
    """The positions of the largest gains above 0, the largest first."""
    order = np.argsort(-gains, kind="stable")[:most]
    return [int(place) for place in order if gains[place] > 0]


def contradiction(metrics: dict[str, Any], table: pd.DataFrame) -> str | None:
    """A measure of the predictions that the metrics of a revision contradict, such as "r2 0.91"; None if they agree."""
    predictions = table["prediction"].to_numpy().astype(np.float32)  # as evaluate had them: near 0, R2 depends on it
    for name, value in values.measures(predictions, table["label"].to_numpy()).items():
        recorded = metrics.get(name)
        if not isinstance(recorded, int | float) or abs(recorded - value) > TOLERANCE * max(abs(value), TOLERANCE):
            return f"{name} {value:.6g}"
    return None
