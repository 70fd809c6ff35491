"""How review/ writes numbers, names and sentences: on a terminal, in Markdown, and on its pages."""

import argparse
import json
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

import pandas as pd

from stages.common.errors import printable

MISSING = "-"
FORMATS = ("table", "markdown", "json")
LONGEST_VALUE = 40  # characters of a parameter's value
LONGEST_NAME = 60  # characters of a name in a headline; tables have room for more


class Interval(Protocol):
    """A difference B - A and its confidence interval, such as `significance.Difference`."""

    @property
    def difference(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class Measure(NamedTuple):
    """How a measure of quality is written. unit, difference_unit: what follows a value, or a difference of two."""

    name: str
    scale: float
    decimals: int
    unit: str = ""
    difference_unit: str = ""

    def value(self, value: float | None) -> str:
        """A value, such as 99.650 %."""
        return MISSING if value is None else f"{self.number(value)}{self.unit}"

    def number(self, value: float) -> str:
        """A value without its unit."""
        return f"{self.scale * value:.{self.decimals}f}"

    def difference(self, difference: float) -> str:
        """A difference, such as -0.040 points."""
        return f"{self._signed(difference)}{self.difference_unit}"

    def interval(self, interval: Interval, level: float) -> str:
        """A difference and its confidence interval. level: the share of intervals that miss the true difference."""
        low, high = self._signed(interval.low), self._signed(interval.high)
        return f"{self.difference(interval.difference)} ({100 * (1 - level):g} % interval {low} to {high})"

    def _signed(self, value: float) -> str:
        return f"{round(self.scale * value, self.decimals) + 0.0:+.{self.decimals}f}"  # + 0.0: +0.00 for -0.0


R2 = Measure("R2", 1, 4)
LOSS = Measure("loss", 1, 4)
ACCURACY = Measure("accuracy", 100, 3, " %", " points")
MEASURES = {measure.name: measure for measure in (ACCURACY, R2)}


def accuracy_of(images: int) -> Measure:
    """Accuracy with as many decimals as show the difference of one image."""
    return ACCURACY._replace(decimals=max(2, math.ceil(math.log10(images)) - 2))


def measure_of(metric: str) -> Measure:
    """How a metric of metrics/train.json is written."""
    if metric.endswith("accuracy"):
        return ACCURACY
    return R2 if metric.endswith("r2") else LOSS


def p_value(p: float) -> str:
    """A p-value, such as p = 0.0091."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def percent(share: float, decimals: int = 2) -> str:
    """A share in percent."""
    return f"{100 * share:.{decimals}f} %"


def number(value: float | None, sign: str = "") -> str:
    """A metric of any kind; or, with sign "+", the difference of two."""
    if value is None:
        return MISSING
    if isinstance(value, int):
        return f"{value:{sign},}"
    return f"{value:{sign}.6g}" if abs(value) < 1e-4 else f"{value:{sign}.6f}".rstrip("0").removesuffix(".")


def parameter(value: Any) -> str:
    """The value of a parameter, shortened."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def short(name: str, longest: int = LONGEST_NAME) -> str:
    """A name, cut to so many characters."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def code(text: str) -> str:
    """Text as code in Markdown, also inside table cells."""
    return "`" + printable(text).replace("\n", " ").replace("`", "'").replace("|", "\\|") + "`"


def escaped(text: str) -> str:
    """A sentence in Markdown with its markup escaped; text between backticks stays code."""
    letters = {ord(letter): f"\\{letter}" for letter in "\\*_[]<>#|~"}
    parts = code_spans(text.replace("\n", " "))
    sentence = "`".join(part if is_code else part.translate(letters) for part, is_code in parts)
    return sentence.replace("@", "@\u200b")  # a zero-width space prevents mentions


def code_spans(text: str) -> list[tuple[str, bool]]:
    """A printable sentence cut at its backticks: each part, and whether it is code. Unpaired backticks become '."""
    parts = printable(text).split("`")
    if len(parts) % 2 == 0:
        parts = ["'".join(parts)]
    return [(part, position % 2 == 1) for position, part in enumerate(parts)]


def plain_table(frame: pd.DataFrame, left: Collection[str] = ()) -> list[str]:
    """The lines of a table of text. left: the columns that are aligned left."""
    if frame.empty:
        return ["none"]
    names, columns = [], []
    for position, name in enumerate(frame):  # by position, because a parameter may have the name of another column
        column = frame.iloc[:, position]
        width = max([len(str(name)), *map(len, column)]) if name in left else 0
        names.append(str(name).ljust(width))
        columns.append([cell.ljust(width) for cell in column])
    aligned = pd.DataFrame(list(zip(*columns, strict=True)), columns=names)
    return [line.rstrip() for line in aligned.to_string(index=False).splitlines()]


def markdown_table(frame: pd.DataFrame, left: Collection[str] = ()) -> str:
    """The same in GitHub's Markdown."""
    if frame.empty:
        return "none"
    sides = ["left" if name in left else "right" for name in frame]
    return str(frame.to_markdown(index=False, tablefmt="pipe", disable_numparse=True, colalign=sides))


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add the option --format."""
    parser.add_argument("--format", choices=FORMATS, default="table", help="default: table")


def print_document(
    document: dict[str, Any],
    form: str,
    table: Callable[[dict[str, Any]], str],
    markdown: Callable[[dict[str, Any]], str],
) -> None:
    """Print a document in a format of FORMATS."""
    match form:
        case "table":
            print(table(document), end="", flush=True)
        case "markdown":
            print(markdown(document), end="", flush=True)
        case "json":
            print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False), flush=True)
