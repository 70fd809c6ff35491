"""Metrics of a classifier's predictions: pure functions of numpy arrays.

N: images, K: classes. log_p: log-probabilities float (N, K). labels, predictions: int64 (N,), classes 0 … K - 1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]

RESAMPLES = 1000  # of the images, for a bootstrap interval
Z_95 = 1.959963984540054  # the 97.5 % point of the normal distribution: a two-sided interval of 95 %


def summary(log_p: Floats, labels: Ints, classes: Sequence[str], bins: int, temperature: float = 1.0) -> dict[str, Any]:
    """The content of metrics/evaluate.json. temperature: of the network that gave log_p.

    The metrics of the classes are a list of rows, which `dvc metrics diff` leaves out, and
    `pandas.DataFrame(metrics["classes"])` reads. Raises ValueError if there are no images.
    """
    if not len(labels):
        raise ValueError("no images to measure on")
    predictions = log_p.argmax(axis=1)
    correct = predictions == labels
    low, high = wilson(int(correct.sum()), len(labels))
    rows = by_class(confusion(labels, predictions, len(classes)))
    balanced, balanced_low, balanced_high = balanced_accuracy(rows[rows["images"] > 0])
    return {
        "accuracy": float(correct.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": balanced,
        "balanced_accuracy_low": balanced_low,
        "balanced_accuracy_high": balanced_high,
        "errors": int((~correct).sum()),
        "images": len(labels),
        **calibration(log_p, labels, bins),
        **(
            {"without_temperature": calibration(unscaled(log_p, temperature), labels, bins)} if temperature != 1 else {}
        ),
        "macro": {name: float(rows[name].mean()) for name in ("precision", "recall", "f1")},
        "classes": [{"class": name, **row} for name, row in zip(classes, rows.to_dict("records"), strict=True)],
    }


def calibration(log_p: Floats, labels: Ints, bins: int) -> dict[str, float]:
    """Negative log-likelihood, and calibration error with its 95 % interval from `bootstrap`."""
    confidences, correct = np.exp(log_p.max(axis=1)), log_p.argmax(axis=1) == labels
    error = calibration_error(reliability(confidences, correct, bins))
    low, high = bootstrap(confidences, correct, bins)
    return {
        "loss": float(-log_p[np.arange(len(labels)), labels].astype(np.float64).mean()),
        "calibration_error": error,
        "calibration_error_low": low,
        "calibration_error_high": high,
    }


def unscaled(log_p: Floats, temperature: float) -> Floats:
    """The log-probabilities float64 (N, K) of the network without its temperature."""
    logits = log_p.astype(np.float64) * temperature
    logits -= logits.max(axis=1, keepdims=True)
    normalized: Floats = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return normalized


def wilson(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """The confidence interval of a share (Wilson 1927), which is valid also near 0 and 1, unlike p ± 2 s.

    z: quantile of the normal distribution for the level, such as Z_95.
    """
    share, z2 = successes / trials, z**2 / trials
    centre = (share + z2 / 2) / (1 + z2)
    half = z / (1 + z2) * np.sqrt(share * (1 - share) / trials + z2 / trials / 4)
    # Without successes the lower end is exactly 0, not 3e-17 from rounding.
    return (float(centre - half) if successes else 0.0), (float(centre + half) if successes < trials else 1.0)


def confusion(labels: Ints, predictions: Ints, classes: int) -> Ints:
    """The number of images of each true class (row) and predicted class (column): int64 (K, K)."""
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def by_class(matrix: Ints) -> pd.DataFrame:
    """Images, precision, recall with its 95 % interval, and F1 of each class of a confusion matrix.

    Precision and recall are 0 for a class that was never predicted, or has no images. The interval of a class without
    images is 0 to 1.
    """
    true = matrix.diagonal().astype(np.float64)
    images, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    pairs = zip(matrix.diagonal().tolist(), images.tolist(), strict=True)
    intervals = [wilson(hits, count) if count else (0.0, 1.0) for hits, count in pairs]
    return pd.DataFrame(
        {
            "images": images,
            "precision": _share(true, predicted),
            "recall": _share(true, images),
            "recall_low": [low for low, _ in intervals],
            "recall_high": [high for _, high in intervals],
            "f1": _share(2 * true, images + predicted),
        }
    )


def balanced_accuracy(rows: pd.DataFrame) -> tuple[float, float, float]:
    """The mean recall of the classes, and its 95 % interval. rows: those of `by_class` that have images.

    The interval combines the intervals of the recalls as independent errors (Zou and Donner 2008).
    """
    mean = float(rows["recall"].mean())
    below, above = rows["recall"] - rows["recall_low"], rows["recall_high"] - rows["recall"]
    low, high = (float(np.sqrt((distance**2).sum()) / len(rows)) for distance in (below, above))
    return mean, max(mean - low, 0.0), min(mean + high, 1.0)


def _share(part: Floats, whole: Ints) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def reliability(confidences: Floats, correct: npt.NDArray[np.bool_], bins: int) -> pd.DataFrame:
    """The reliability diagram: accuracy by confidence, with one row per bin that has images.

    confidences: probability of the predicted class, (N,). bins: the number of bins of equal width in 0 … 1.
    Columns: low, high (the bin's bounds), images, confidence (its mean), accuracy, and its 95 % interval accuracy_low,
    accuracy_high.
    """
    confidences, bin_of = _binned(confidences, bins)
    images = np.bincount(bin_of, minlength=bins)
    filled = images > 0
    correct_in_bin = np.bincount(bin_of, correct, bins).astype(np.int64)
    intervals = [
        wilson(int(hits), int(count)) for hits, count in zip(correct_in_bin[filled], images[filled], strict=True)
    ]
    edges = np.arange(bins + 1) / bins
    return pd.DataFrame(
        {
            "low": edges[:-1][filled],
            "high": edges[1:][filled],
            "images": images[filled],
            "confidence": np.bincount(bin_of, confidences, bins)[filled] / images[filled],
            "accuracy": correct_in_bin[filled] / images[filled],
            "accuracy_low": [low for low, _ in intervals],
            "accuracy_high": [high for _, high in intervals],
        }
    )


def _binned(confidences: Floats, bins: int) -> tuple[Floats, Ints]:
    """Confidences float64 (N,), limited to 1, and the bin of each, int64 (N,)."""
    confidences = np.minimum(confidences.astype(np.float64), 1.0)  # exp(log p) may exceed 1 by rounding
    return confidences, np.minimum((confidences * bins).astype(np.int64), bins - 1)


def bootstrap(confidences: Floats, correct: npt.NDArray[np.bool_], bins: int) -> tuple[float, float]:
    """A 95 % interval of the calibration error: the basic bootstrap over images (Davison and Hinkley 1997).

    By chance, the accuracy of each bin differs from its confidence, and the sum of absolute differences grows. So the
    error of few images is biased upward, and that of a resample is biased once more. The basic interval subtracts this
    bias; its upper end may be below the measured error. In simulations of 300 to 5,000 images, 86 to 95 % of the
    intervals contain the true error (percentile intervals: 0 to 95 %), and 60 to 75 % if that is exactly 0.
    """
    confidences, bin_of = _binned(confidences, bins)
    differences, count = correct - confidences, len(correct)
    random = np.random.default_rng(0)

    def error(chosen: Ints) -> float:
        return float(np.abs(np.bincount(bin_of[chosen], differences[chosen], bins)).sum() / count)

    resampled = [error(random.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = 2 * error(np.arange(count)) - np.quantile(resampled, [0.975, 0.025])
    return max(float(low), 0.0), max(float(high), 0.0)


def calibration_error(table: pd.DataFrame) -> float:
    """Expected calibration error: the mean of |accuracy - confidence| over the images (Guo et al. 2017)."""
    return float(np.average((table["accuracy"] - table["confidence"]).abs(), weights=table["images"]))
