"""What a run recorded, read and checked: the files that Git keeps (metrics, curves, pictures), and the predictions.

K: classes. A missing or invalid file is None, and `missing` has the reason.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from integrity import revisions
from integrity.lock_files import LOCK
from integrity.revisions import Revision
from stages.common import paths, record
from stages.common.digests import md5
from stages.common.errors import UserError, one_line
from stages.evaluate import predictions, scores
from stages.evaluate.predictions import has_values
from stages.evaluate.scores import Ints

STAGES = ("train", "evaluate")  # that record their environment
PICTURES = (paths.OVERVIEW.as_posix(), paths.WORST.as_posix())
BINS = ["low", "high", "images", "confidence", "accuracy", "accuracy_low", "accuracy_high"]

T = TypeVar("T")


class PredictionsLookup(NamedTuple):
    """The predictions of a revision, as `predictions.parse` returns them, or None and the reason."""

    table: pd.DataFrame | None
    reason: str
    notes: list[str]  # on copies that were skipped


@dataclass(frozen=True)
class Confusion:
    """How many images of each class (row) were predicted as each class (column): int64 (K, K)."""

    classes: list[str]
    matrix: Ints


@dataclass(frozen=True)
class Results:
    """What a run recorded."""

    revision: Revision
    predictions: PredictionsLookup
    curves: pd.DataFrame | None  # one row per epoch: the epoch and its metrics
    confusion: Confusion | None
    reliability: pd.DataFrame | None  # as stages.evaluate.scores.reliability returns it
    environment: dict[str, dict[str, Any]]  # stage -> versions, device, machine
    pictures: dict[str, bytes] = field(default_factory=dict)  # path -> PNG, as evaluate drew it
    missing: list[str] = field(default_factory=list)  # one line each


def look_up_predictions(repo: Any, side: Revision) -> PredictionsLookup:
    """The predictions of a revision, from the work tree, the cache or the remote."""
    path, notes = paths.PREDICTIONS.as_posix(), list[str]()
    try:
        if (out := side.outs.get(path)) is None:
            raise UserError(f"{LOCK} there does not name {path}; run `dvc repro` there")
        content, notes = revisions.fetch(repo, out)
        return PredictionsLookup(predictions.parse(content, path), "", notes)
    except UserError as error:
        return PredictionsLookup(None, str(error), notes)


def read(repo: Any, name: str | None) -> Results:
    """Read a revision; None: the work tree. Raises UserError for an unknown revision, or one that measured nothing."""
    side = revisions.read(repo, name)
    missing: list[str] = []

    def read_file(path: str, parse: Callable[[bytes, str], T]) -> T | None:
        try:
            content = revisions.file(repo, side, path)
            if content is None:
                raise UserError(f"{side.name}: no {path} there")
            return parse(content, f"{side.name}: {path}")
        except UserError as error:
            missing.append(str(error))
            return None

    outs = {path: out.md5 for path, out in side.outs.items()}
    environment = {}
    for stage in STAGES:
        recorded = read_file((paths.ENVIRONMENT / f"{stage}.json").as_posix(), revisions.parse_json)
        if recorded is not None and record.describes(recorded, outs):
            environment[stage] = recorded
        elif recorded is not None:
            missing.append(f"{side.name}: the recorded environment of {stage} belongs to another run")
    pictures = {path: read_file(path, as_recorded(side, path)) for path in PICTURES}
    lookup = look_up_predictions(repo, side)
    matrix = read_file(paths.CONFUSION.as_posix(), confusion)
    if matrix is not None and lookup.table is not None and not counts(matrix, lookup.table):
        missing.append(f"{side.name}: {paths.CONFUSION} contradicts the predictions; `dvc repro` there")
    return Results(
        revision=side,
        predictions=lookup,
        curves=read_file(paths.TRAINING_CURVES.as_posix(), curves),
        confusion=matrix,
        reliability=read_file(paths.RELIABILITY.as_posix(), reliability),
        environment=environment,
        pictures={path: content for path, content in pictures.items() if content is not None},
        missing=missing,
    )


def as_recorded(side: Revision, path: str) -> Callable[[bytes, str], bytes]:
    """A parser that returns the bytes of an output if dvc.lock names them, and raises UserError otherwise."""

    def parse(content: bytes, name: str) -> bytes:
        out = side.outs.get(path)
        if out is None or out.md5 != md5(content):
            raise UserError(f"{name}: left out, because it is not the file that {LOCK} names; `dvc repro` there")
        return content

    return parse


def counts(matrix: Confusion, table: pd.DataFrame) -> bool:
    """Whether a confusion matrix counts the predictions of this table."""
    if has_values(table) or list(table["label"].cat.categories) != matrix.classes:
        return False
    codes = [table[name].cat.codes.to_numpy().astype(np.int64) for name in ("label", "prediction")]
    return np.array_equal(scores.confusion(codes[0], codes[1], len(matrix.classes)), matrix.matrix)


def curves(content: bytes, name: str) -> pd.DataFrame:
    """metrics/plots/training.csv: columns of numbers, the epoch first. Raises UserError."""
    table = _csv(content, name)
    if table.columns[:1].tolist() != ["epoch"] or table.empty:
        raise UserError(f"{name}: no table of epochs; `dvc repro` writes it")
    return _numbers(table, name)


def confusion(content: bytes, name: str) -> Confusion | None:
    """metrics/plots/confusion.csv: label, prediction, images; one row per pair of classes; no rows for regression.

    Raises UserError.
    """
    table = _csv(content, name)
    if table.columns.tolist() != ["label", "prediction", "images"]:
        raise UserError(f"{name}: no table of label, prediction and images; `dvc repro` writes it")
    if table.empty:
        return None
    classes = list(dict.fromkeys(table["label"]))
    pairs = [(label, prediction) for label in classes for prediction in classes]
    if list(zip(table["label"], table["prediction"], strict=True)) != pairs or len(classes) < 2:
        raise UserError(f"{name}: not one row per pair of classes; `dvc repro` writes it again")
    images = _numbers(table[["images"]], name)["images"].to_numpy()
    if images.min() < 0 or images.max() > 1e12:
        raise UserError(f"{name}: images are counts; `dvc repro` writes it again")
    return Confusion(classes, images.astype(np.int64).reshape(len(classes), len(classes)))


def reliability(content: bytes, name: str) -> pd.DataFrame | None:
    """metrics/plots/reliability.csv: one row per bin of confidence; no rows for regression. Raises UserError."""
    table = _csv(content, name)
    if table.columns.tolist() != BINS:
        raise UserError(f"{name}: its columns are not {', '.join(BINS)}; `dvc repro` writes it again")
    if table.empty:
        return None
    numbers = _numbers(table, name)
    if not numbers.drop(columns="images").apply(lambda column: column.between(0, 1)).all(axis=None):
        raise UserError(f"{name}: shares are from 0 to 1; `dvc repro` writes it again")
    return numbers.astype({"images": np.int64})


def _csv(content: bytes, name: str) -> pd.DataFrame:
    """A table of strings, because a class may be called 1, NA or None."""
    try:
        return pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, encoding="utf-8")
    except (ValueError, RecursionError) as error:  # ValueError: EmptyDataError, ParserError, UnicodeDecodeError
        raise UserError(f"{name}: not a CSV file: {one_line(error)}") from None


def _numbers(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Strings as numbers, which must be finite and below 1e15."""

    def number(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and abs(value) < 1e15):
            raise ValueError(f"{text[:20]!r} is not a finite number below 1e15")
        return value

    try:
        return pd.DataFrame({str(column): [number(text) for text in values] for column, values in table.items()})
    except ValueError as error:
        raise UserError(f"{name}: {one_line(error)}; `dvc repro` writes it again") from None


def most_confident(table: pd.DataFrame, places: Ints, most: int) -> Sequence[int]:
    """The `most` images at `places` with the most confident predictions, the most confident first."""
    order = np.argsort(-table["probability"].to_numpy()[places], kind="stable")[:most]
    return [int(place) for place in places[order]]
