"""What a revision's run left, read and checked: what Git keeps of it (metrics, curves, …), and its predictions.

K: classes. What is not there, or not what a stage writes, is None, and `missing` says why: a page shows the rest.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from stages import paths, predictions, revisions
from stages.errors import UserError
from stages.predictions import Found
from stages.revisions import Revision
from stages.scores import Ints

STAGES = ("train", "evaluate")  # that record where they ran
BINS = ["low", "high", "images", "confidence", "accuracy", "accuracy_low", "accuracy_high"]

T = TypeVar("T")


@dataclass(frozen=True)
class Confusion:
    """How many images of each class (row) were taken for each class (column): int64 (K, K)."""

    classes: list[str]
    matrix: Ints


@dataclass(frozen=True)
class Results:
    """A run."""

    revision: Revision
    predictions: Found
    curves: pd.DataFrame | None  # a row an epoch: epoch, and what was measured
    confusion: Confusion | None
    reliability: pd.DataFrame | None  # as stages.scores.reliability gives it
    environment: dict[str, dict[str, Any]]  # stage -> what it ran on
    missing: list[str] = field(default_factory=list)  # a line each


def read(repo: Any, name: str | None) -> Results:
    """Read a revision; None: the work tree. Raises UserError if there is no such revision, or nothing measured."""
    side = revisions.read(repo, name, paths.PARAMS.as_posix(), f"{paths.TEST_METRICS.parent.as_posix()}/*.json")
    missing: list[str] = []

    def kept(path: str, parse: Callable[[bytes, str], T]) -> T | None:
        try:
            content = revisions.kept(repo, side, path)
            if content is None:
                raise UserError(f"{side.name}: no {path} there")
            return parse(content, f"{side.name}: {path}")
        except UserError as error:
            missing.append(str(error))
            return None

    environment = {
        stage: kept((paths.ENVIRONMENT / f"{stage}.json").as_posix(), revisions.parse_json) for stage in STAGES
    }
    return Results(
        revision=side,
        predictions=predictions.of(repo, side, paths.PREDICTIONS.as_posix()),
        curves=kept(paths.TRAINING_CURVES.as_posix(), curves),
        confusion=kept(paths.CONFUSION.as_posix(), confusion),
        reliability=kept(paths.RELIABILITY.as_posix(), reliability),
        environment={stage: found for stage, found in environment.items() if found is not None},
        missing=missing,
    )


def curves(content: bytes, name: str) -> pd.DataFrame:
    """metrics/plots/training.csv: a number a column, the epoch first. Raises UserError."""
    table = _csv(content, name)
    if table.columns[:1].tolist() != ["epoch"] or table.empty:
        raise UserError(f"{name}: no table of epochs; `dvc repro` makes it")
    return _numbers(table, name)


def confusion(content: bytes, name: str) -> Confusion:
    """metrics/plots/confusion.csv: label, prediction, images, a row for each pair of classes. Raises UserError."""
    table = _csv(content, name)
    if table.columns.tolist() != ["label", "prediction", "images"]:
        raise UserError(f"{name}: no table of label, prediction and images; `dvc repro` makes it")
    classes = list(dict.fromkeys(table["label"]))
    pairs = [(label, prediction) for label in classes for prediction in classes]
    if list(zip(table["label"], table["prediction"], strict=True)) != pairs or len(classes) < 2:
        raise UserError(f"{name}: not a row for each pair of classes; `dvc repro` makes it anew")
    counts = _numbers(table[["images"]], name)["images"].to_numpy()
    if counts.min() < 0 or counts.max() > 1e12:
        raise UserError(f"{name}: images are counts; `dvc repro` makes it anew")
    return Confusion(classes, counts.astype(np.int64).reshape(len(classes), len(classes)))


def reliability(content: bytes, name: str) -> pd.DataFrame:
    """metrics/plots/reliability.csv: a row for each bin of confidence. Raises UserError."""
    table = _csv(content, name)
    if table.columns.tolist() != BINS:
        raise UserError(f"{name}: its columns are not {', '.join(BINS)}; `dvc repro` makes it anew")
    numbers = _numbers(table, name)
    if not numbers.drop(columns="images").apply(lambda column: column.between(0, 1)).all(axis=None):
        raise UserError(f"{name}: shares are from 0 to 1; `dvc repro` makes it anew")
    return numbers.astype({"images": np.int64})


def _csv(content: bytes, name: str) -> pd.DataFrame:
    """A table of text; a class may be called 1, NA or None."""
    try:
        return pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, encoding="utf-8")
    except (ValueError, RecursionError) as error:  # ValueError: EmptyDataError, ParserError, UnicodeDecodeError
        raise UserError(f"{name}: not a CSV file: {revisions.one_line(error)}") from None


def _numbers(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Text as numbers, all of them finite and none of them vast."""

    def number(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and abs(value) < 1e15):
            raise ValueError(f"{text[:20]!r} is no number of a run")
        return value

    try:
        return pd.DataFrame({str(column): [number(text) for text in values] for column, values in table.items()})
    except ValueError as error:
        raise UserError(f"{name}: {revisions.one_line(error)}; `dvc repro` makes it anew") from None


def surest(table: pd.DataFrame, places: Ints, most: int) -> Sequence[int]:
    """Of the images at `places`, the `most` with the highest probability of their prediction, the surest first."""
    order = np.argsort(-table["probability"].to_numpy()[places], kind="stable")[:most]
    return [int(place) for place in places[order]]
