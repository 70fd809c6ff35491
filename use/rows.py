"""Predictions as text: a table for people, CSV, JSON, or one JSON document per line."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from stages.common.errors import printable
from use.journal import Row
from use.model import Ranked
from use.prepare import Prepared

Format = Literal["table", "csv", "json", "jsonl"]


def predicted(name: str, ranking: list[Ranked], picture: Prepared, value: float | None = None) -> Row:
    """The row of a picture: its most probable classes in order, with probabilities of six decimals.

    value: the prediction of a regression, which has no classes.
    """
    classes = [{"class": rank.name, "probability": round(rank.probability, 6)} for rank in ranking]
    inversion = {"looks_inverted": picture.looks_inverted, "inverted": picture.inverted}
    return {"file": name, **inversion, **({"classes": classes} if value is None else {"value": value})}


def unreadable(name: str, reason: str) -> Row:
    """The row of a picture that could not be read."""
    return {"file": name, "error": " ".join(printable(reason).split())}


def text(rows: Iterable[Row], format: Format, top: int, classes: list[str]) -> Iterator[str]:
    """Yield the text in parts. top: the number of classes per row. classes: of the model; empty for regression."""
    formats: dict[Format, Callable[[Iterable[Row], int, list[str]], Iterator[str]]] = {
        "table": _table,
        "csv": _csv,
        "json": _json,
        "jsonl": _jsonl,
    }
    return formats[format](rows, top, classes)


def _table(rows: Iterable[Row], top: int, classes: list[str]) -> Iterator[str]:
    """The name of the picture comes last, so that the columns align."""
    width = max(map(len, classes), default=0)
    for row in rows:
        if "error" in row:
            columns = f"error: {row['error']}"
        elif "value" in row:
            columns = f"{row['value']:>12g}"
        else:
            columns = "  ".join(f"{rank['class']:{width}} {rank['probability']:7.2%}" for rank in row["classes"])
        remark = "  (inverted)" if row.get("inverted") else ""
        yield printable(f"{columns}  {row['file']}{remark}".replace("\n", "?")) + "\n"


def _csv(rows: Iterable[Row], top: int, classes: list[str]) -> Iterator[str]:
    """For a picture that could not be read, all columns except its name and the error are empty."""
    ranked = [f"{column}_{rank}" for rank in range(1, top + 1) for column in ("class", "probability")]
    ranked = ranked if classes else ["value"]
    buffer = io.StringIO()
    writer = csv.writer(buffer)  # it quotes the characters of its own line end, so \r as well as \n

    def line(values: list[str]) -> str:
        buffer.seek(0)
        buffer.truncate()
        writer.writerow(values)
        return buffer.getvalue().removesuffix("\r\n") + "\n"

    yield line(["file", *ranked, "inverted", "error"])
    for row in rows:
        values = [value for rank in row.get("classes", []) for value in (rank["class"], f"{rank['probability']:.6f}")]
        values += [f"{row['value']:g}"] if "value" in row else []
        inverted = str(row["inverted"]).lower() if "inverted" in row else ""
        yield line([row["file"], *(values or [""] * len(ranked)), inverted, row.get("error", "")])


def _json(rows: Iterable[Row], top: int, classes: list[str]) -> Iterator[str]:
    before = "[\n"
    for row in rows:
        yield before + json.dumps(row, ensure_ascii=False)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _jsonl(rows: Iterable[Row], top: int, classes: list[str]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(row, ensure_ascii=False) + "\n"
