"""The table of predictions, one row per test image: writing it, and reading it with checks."""

import io
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stages.common.errors import UserError
from stages.evaluate import values
from stages.evaluate.scores import Floats, Ints

FIRST = ["index", "label", "prediction", "probability"]  # then a column p_<class> for each class


def parse(content: bytes, name: str) -> pd.DataFrame:
    """A table of label, prediction and its probability, with one row per image in the order of the test set.

    Label and prediction are categories of the same classes. For regression (`has_values`), they are float64, and there
    is no probability. name: of the file, for messages. Raises UserError if evaluate did not write the content.
    """
    try:
        columns = list(pd.read_csv(io.BytesIO(content), nrows=0, encoding="utf-8").columns)
        # Names are read as text: a class may be called 1, NA or None.
        dtypes = {column: str if index < 3 else "float32" for index, column in enumerate(columns)}
        table = pd.read_csv(io.BytesIO(content), dtype=dtypes, keep_default_na=False, encoding="utf-8")
    except (
        ValueError,
        pd.errors.ParserError,
        RecursionError,
    ) as error:  # ValueError: UnicodeDecodeError, EmptyDataError
        raise UserError(f"{name}: not a CSV file of predictions: {_first_line(error)}") from None
    if columns == values.COLUMNS:
        return _values(table, name)
    classes = [column.removeprefix("p_") for column in columns[len(FIRST) :]]
    if columns[: len(FIRST)] != FIRST or len(classes) < 2 or any(not c.startswith("p_") for c in columns[len(FIRST) :]):
        shown = ", ".join(map(str, columns[:6]))
        raise UserError(
            f"{name}: its columns are {shown[:80]!r} ...; allowed: {', '.join(FIRST)}, and p_<class> for each class"
        )
    _check_index(table, name)
    for column in ("label", "prediction"):
        unknown = table.loc[~table[column].isin(classes), column]
        if len(unknown):
            where = f"row {unknown.index[0] + 2:,}"
            raise UserError(
                f"{name}: {where}: {column} is {unknown.iloc[0][:40]!r}; allowed: the classes of its p_ columns"
            )
    kind = pd.CategoricalDtype(classes)
    return table[FIRST[1:]].astype({"label": kind, "prediction": kind})


def has_values(table: pd.DataFrame) -> bool:
    """Whether a table from `parse` is of a regression."""
    return not isinstance(table["label"].dtype, pd.CategoricalDtype)


def _values(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Label and prediction as float64. Raises UserError."""
    _check_index(table, name)
    columns = {column: pd.to_numeric(table[column], errors="coerce") for column in values.COLUMNS[1:]}
    numbers = pd.DataFrame(columns, dtype=np.float64)
    not_finite = np.flatnonzero(~np.isfinite(numbers.to_numpy()).all(axis=1))
    if len(not_finite):
        raise UserError(f"{name}: row {not_finite[0] + 2:,}: label or prediction is no finite number")
    return numbers


def _check_index(table: pd.DataFrame, name: str) -> None:
    """Raise UserError unless the rows are numbered from 0."""
    if table.empty:
        raise UserError(f"{name}: holds no predictions")
    if table["index"].tolist() != [str(index) for index in range(len(table))]:
        raise UserError(f"{name}: its index does not count the images from 0 to {len(table) - 1:,}")


def _first_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error))[:160]


def table(log_p: Floats, labels: Ints, classes: Sequence[str]) -> pd.DataFrame:
    """One row per image: label, prediction, probability of every class. log_p: log-probabilities float (N, K).

    index: position of the image in the published test file. The prediction is the class with the largest log_p: of two
    that are almost equal, the probabilities may be the same number.
    """
    probabilities = np.exp(log_p)
    return pd.DataFrame(
        {
            "index": np.arange(len(labels)),
            "label": np.array(classes)[labels],
            "prediction": np.array(classes)[log_p.argmax(axis=1)],
            "probability": probabilities.max(axis=1),
            **{f"p_{name}": probabilities[:, column] for column, name in enumerate(classes)},
        }
    )


def csv(table: pd.DataFrame) -> str:
    """A table as CSV text, with six decimals and Unix line ends."""
    return table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
