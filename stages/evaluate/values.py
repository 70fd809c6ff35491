"""Metrics of a regression's predictions: pure functions of numpy arrays.

N: images. predictions: float (N,). labels: float64 (N,), not all equal.
"""

from typing import Any

import numpy as np
import pandas as pd

from stages.evaluate.scores import RESAMPLES, Floats

COLUMNS = ["index", "label", "prediction"]  # of predictions.csv


def summary(predictions: Floats, labels: Floats) -> dict[str, Any]:
    """The content of metrics/evaluate.json: metrics with 95 % intervals. Raises ValueError if there are no images."""
    if not len(labels):
        raise ValueError("no images to measure on")
    metrics = {name: float(value) for name, value in measures(predictions, labels).items()}
    intervals = bootstrap(predictions, labels)
    rows = {name: (value, *intervals[name]) for name, value in metrics.items()}
    ends = ("", "_low", "_high")
    flat = {f"{name}{end}": value for name, row in rows.items() for end, value in zip(ends, row, strict=True)}
    return {**flat, "images": len(labels)}


def measures(predictions: Floats, labels: Floats) -> dict[str, Any]:
    """Metrics over the last axis: R2 (the share of the labels' variance that is predicted), mean squared error and its
    root, mean absolute error."""
    errors = predictions.astype(np.float64) - labels
    mse = (errors**2).mean(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):  # all labels of a resample may be equal
        r2 = 1 - mse / labels.var(axis=-1)
    return {"r2": r2, "rmse": np.sqrt(mse), "mae": np.abs(errors).mean(axis=-1), "mse": mse}


def bootstrap(predictions: Floats, labels: Floats) -> dict[str, tuple[float, float]]:
    """95 % intervals of the metrics: the percentile bootstrap over images (Efron 1979).

    The seed is fixed: the same predictions give the same intervals.
    """
    random, draws = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        chosen = random.integers(0, len(labels), len(labels))
        draws.append(measures(predictions[chosen], labels[chosen]))
    columns = {name: np.array([draw[name] for draw in draws]) for name in draws[0]}
    finite = {name: values[np.isfinite(values)] for name, values in columns.items()}
    ends = {name: np.quantile(values, [0.025, 0.975]) for name, values in finite.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def table(predictions: Floats, labels: Floats) -> pd.DataFrame:
    """The rows of predictions.csv. Nine digits distinguish all float32 numbers."""
    shown = [f"{value:.9g}" for value in predictions.tolist()]
    return pd.DataFrame({"index": np.arange(len(labels)), "label": map(repr, labels.tolist()), "prediction": shown})
