"""A comparison (of review/comparison.py) as text: tables for a terminal, Markdown for a pull request."""

import json
import textwrap
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import pandas as pd

from review import values
from stages.common.errors import printable

MISSING = "-"
LEFT = ("key", "metric", "read by", "")  # columns of words, aligned left; numbers are aligned right
WIDTH = 100  # of wrapped lines on a terminal

Quote = Callable[[str], str]  # writes names and values that come from users
Titled = tuple[str, pd.DataFrame, list[str]]  # a title, a table, and lines below it


def table(document: dict[str, Any]) -> str:
    """Plain tables for a terminal. The verdict comes last, next to the prompt."""
    blocks = [f"A: {side(document['a'])}\nB: {side(document['b'])}"]
    for title, frame, lines in _tables(document, str):
        blocks.append("\n".join([title, *(f"  {line}" for line in [*_rows(frame), *lines])]))
    if document["notes"]:
        blocks.append("\n".join(f"note: {note}" for note in document["notes"]))
    lines = [f"Results: {document['evidence']}."]
    lines += [f"Seeds not compared: {why}" for why in document["without_seeds"]]
    if aside := one_model(document):
        lines.append(aside)
    lines.append(f"{heading(document, str)}: {document['verdict']['text']}")
    blocks.append("\n".join(textwrap.fill(line, WIDTH) for line in lines))
    return "\n\n".join(printable(block) for block in blocks) + "\n"


def _rows(frame: pd.DataFrame) -> list[str]:
    """The lines of a table, with words aligned left and numbers aligned right."""
    if frame.empty:
        return ["none"]
    aligned = {}
    for name, column in frame.items():
        width = max([len(str(name)), *column.str.len()])
        aligned[str(name).ljust(width) if name in LEFT else name] = column.str.ljust(width) if name in LEFT else column
    return [line.rstrip() for line in pd.DataFrame(aligned).to_string(index=False).splitlines()]


def markdown(document: dict[str, Any]) -> str:
    """GitHub's Markdown; the verdict comes first. Names and values are code, so they cannot be markup or mentions."""
    verdict = document["verdict"]
    text = verdict["text"]
    blocks = [f"### {heading(document, code)}", f"{escaped(text[:1].upper() + text[1:])}."]
    if aside := one_model(document):
        blocks.append(f"{escaped(aside)}.")
    blocks += [f"> Seeds not compared: {escaped(why)}" for why in document["without_seeds"]]
    blocks += [f"> {escaped(note)}" for note in document["notes"]]
    for title, frame, lines in _tables(document, code):
        sides = ["left" if name in LEFT else "right" for name in frame]
        rows = frame.to_markdown(index=False, tablefmt="pipe", disable_numparse=True, colalign=sides)
        blocks.append("\n\n".join([f"**{title}**", rows if len(frame) else "none", *lines]))
    method = f" Method: {verdict['method']}." if verdict["method"] else ""
    evidence = f" Results: {escaped(document['evidence'])}."
    blocks.append(f"A: {code(side(document['a']))}, B: {code(side(document['b']))}.{method}{evidence}")
    return "\n\n".join(blocks) + "\n"


def heading(document: dict[str, Any], quote: Quote) -> str:
    """The verdict in a few words."""
    a, b, verdict = quote(document["a"]["name"]), quote(document["b"]["name"]), document["verdict"]
    if verdict["basis"] == "one model" and verdict["word"] != "not comparable":
        return f"{b} against {a}, one model against another; seeds not compared: {verdict['word']}"
    return (
        f"{b} is {verdict['word']} than {a}"
        if verdict["word"] in ("better", "worse")
        else f"{b} against {a}: {verdict['word']}"
    )


def one_model(document: dict[str, Any]) -> str:
    """What the two trained models alone say, where seeds decide; else empty."""
    if document["verdict"]["basis"] == "one model":
        return ""
    alone = document["one_model"]
    return f"One model against another, which does not decide: {alone['word']}: {alone['text']}"


def _tables(document: dict[str, Any], quote: Quote) -> list[Titled]:
    differing = [row for row in document["metrics"] if row["difference"] != 0]
    same = len(document["metrics"]) - len(differing)
    rest = [f"({same} more are the same on both sides)"] if same else []
    tables: list[Titled] = [
        ("Parameters that differ", parameters(document["parameters"], quote), []),
        ("Metrics that differ", metrics(differing, quote), rest),
    ]
    if document["images"]:
        tables.append((_values if "nearer" in document["images"] else _images)(document["images"]))
    if document["seeds"]:
        tables.append(_seeds(document["seeds"], document["measure"], quote))
    return tables


def parameters(rows: list[dict[str, Any]], quote: Quote) -> pd.DataFrame:
    """One row per parameter that differs (`parameters` of a document)."""
    columns = {
        "key": [quote(row["key"]) for row in rows],
        "A": [quote(value(row["a"])) if "a" in row else MISSING for row in rows],
        "B": [quote(value(row["b"])) if "b" in row else MISSING for row in rows],
        "read by": [", ".join(map(quote, row["read_by"])) or "no stage" for row in rows],
    }
    return pd.DataFrame(columns)


def metrics(rows: list[dict[str, Any]], quote: Quote) -> pd.DataFrame:
    """One row per metric (`metrics` of a document)."""
    columns = {
        "metric": [quote(f"{PurePath(row['file']).stem}: {row['metric']}") for row in rows],
        "A": [number(row["a"]) for row in rows],
        "B": [number(row["b"]) for row in rows],
        "B - A": [number(row["difference"], sign="+") for row in rows],
    }
    return pd.DataFrame(columns)


def _images(images: dict[str, Any]) -> Titled:
    """The two-by-two table of counts, and the first few images that were fixed and broken."""
    columns = {
        "": ["A correct", "A wrong"],
        "B correct": [f"{images['both_right']:,}", f"{images['fixed']:,} fixed"],
        "B wrong": [f"{images['broken']:,} broken", f"{images['both_wrong']:,}"],
    }
    lines = [f"{images['changed']:,} of {images['images']:,} predictions changed"]
    for name in ("fixed", "broken"):
        examples = [str(row["index"]) for row in images[f"{name}_examples"]]
        more = ["..."] if images[name] > len(examples) else []
        lines += [f"{name}: {', '.join([*examples, *more])}"] if examples else []
    return "Test images", pd.DataFrame(columns), lines


def _values(images: dict[str, Any]) -> Titled:
    """How many predictions of a regression got better, and the images that changed most."""
    same = images["images"] - images["nearer"] - images["farther"]
    rows = [("nearer to the label", images["nearer"]), ("farther from it", images["farther"]), ("as near", same)]
    frame = pd.DataFrame({"": [name for name, _ in rows], "images": [f"{count:,}" for _, count in rows]})
    lines = [
        f"{kind} by most: {', '.join(str(row['index']) for row in examples)}"
        for kind in ("nearer", "farther")
        if (examples := images[f"{kind}_examples"])
    ]
    return "Predictions of the test images, B against A", frame, lines


def _seeds(table: dict[str, Any], measure: str, quote: Quote) -> Titled:
    """Mean and spread over the seeds of each side (`seeds` of a document). measure: as there."""
    if measure == values.MEASURE:
        unit, factor, points, decimals, ends = "", 1, "", 4, 4
    else:
        unit, factor, points, decimals, ends = " %", 100, " points", 3, 2
    columns = {
        "": [f"{letter} {quote(row['name'])}" for letter, row in zip("AB", table["sides"], strict=True)],
        "seeds": [f"{row['seeds']:,}" for row in table["sides"]],
        "mean": [f"{factor * row['mean']:.{decimals}f}{unit}" for row in table["sides"]],
        "deviation": [f"{factor * row['deviation']:.{decimals}f}" for row in table["sides"]],
        "lowest": [f"{factor * row['low']:.{ends}f}{unit}" for row in table["sides"]],
        "highest": [f"{factor * row['high']:.{ends}f}{unit}" for row in table["sides"]],
    }
    lines = []
    if pairs := table["paired"]:
        low, difference, high = (factor * pairs[key] for key in ("low", "difference", "high"))
        interval = f"{difference:+.{decimals}f}{points} ({low:+.{decimals}f} to {high:+.{decimals}f})"
        lines.append(f"paired by seed, which does not decide: {interval}, p = {pairs['p']:.2g}")
    if table["needed"]:
        lines.append(f"{table['needed']:,} seeds per side would show a difference of this size in 80 % of comparisons")
    return f"Test {measure} over seeds", pd.DataFrame(columns), lines


def side(document: dict[str, Any]) -> str:
    """The name and the commit of one side of a document."""
    name = str(document["name"])
    return f"{name} ({document['commit'][:7]})" if document["commit"] else name


def value(given: Any) -> str:
    """The value of a parameter, shortened."""
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def number(given: float | None, sign: str = "") -> str:
    """A metric; or, with sign "+", the difference of two."""
    if given is None:
        return MISSING
    if isinstance(given, int):
        return f"{given:{sign},}"
    return f"{given:{sign}.6g}" if abs(given) < 1e-4 else f"{given:{sign}.6f}".rstrip("0").removesuffix(".")


def code(text: str) -> str:
    """Text as code in Markdown, also inside table cells."""
    return "`" + printable(text).replace("\n", " ").replace("`", "'").replace("|", "\\|") + "`"


def escaped(text: str) -> str:
    """A sentence in Markdown with its markup escaped; text between backticks stays code."""
    parts = printable(text).replace("\n", " ").split("`")
    if len(parts) % 2 == 0:  # an unpaired backtick
        parts = ["'".join(parts)]
    escaped = "".join
    return "`".join(
        part if at % 2 else escaped(f"\\{letter}" if letter in "\\*_[]<>#|~" else letter for letter in part)
        for at, part in enumerate(parts)
    ).replace("@", "@\u200b")  # a zero-width space prevents mentions
