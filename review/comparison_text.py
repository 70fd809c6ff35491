"""A comparison (of review/comparison.py) as text: tables for a terminal, Markdown for a pull request."""

import textwrap
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import pandas as pd

from review import comparison, significance
from review.formatting import (
    MEASURES,
    MISSING,
    code,
    escaped,
    markdown_table,
    number,
    p_value,
    parameter,
    plain_table,
)
from stages.common.errors import printable

LEFT = ("key", "metric", "read by", "")  # columns of words; numbers are aligned right
WIDTH = 100  # of wrapped lines on a terminal

Quote = Callable[[str], str]  # writes names and values that come from users
Titled = tuple[str, pd.DataFrame, list[str]]  # a title, a table, and lines below it


def table(document: dict[str, Any]) -> str:
    """Plain tables for a terminal. The verdict comes last, next to the prompt."""
    blocks = [f"A: {side(document['a'])}\nB: {side(document['b'])}"]
    for title, frame, lines in _tables(document, str):
        blocks.append("\n".join([title, *(f"  {line}" for line in [*plain_table(frame, LEFT), *lines])]))
    if document["notes"]:
        blocks.append("\n".join(f"note: {note}" for note in document["notes"]))
    lines = [f"Results: {document['evidence']}."]
    lines += [f"Seeds not compared: {why}" for why in document["without_seeds"]]
    if aside := one_model(document):
        lines.append(aside)
    lines.append(f"{heading(document, str)}: {document['verdict']['text']}")
    blocks.append("\n".join(textwrap.fill(line, WIDTH) for line in lines))
    return "\n\n".join(printable(block) for block in blocks) + "\n"


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
        blocks.append("\n\n".join([f"**{title}**", markdown_table(frame, LEFT), *lines]))
    method = f" Method: {verdict['method']}." if verdict["method"] else ""
    evidence = f" Results: {escaped(document['evidence'])}."
    blocks.append(f"A: {code(side(document['a']))}, B: {code(side(document['b']))}.{method}{evidence}")
    return "\n\n".join(blocks) + "\n"


def heading(document: dict[str, Any], quote: Quote) -> str:
    """The verdict in a few words."""
    a, b, verdict = quote(document["a"]["name"]), quote(document["b"]["name"]), document["verdict"]
    word = verdict["word"]
    if verdict["basis"] == comparison.ONE_MODEL and word != comparison.NOT_COMPARABLE:
        return f"{b} against {a}, one model against another; seeds not compared: {word}"
    return f"{b} is {word} than {a}" if word in significance.DIFFERENT else f"{b} against {a}: {word}"


def one_model(document: dict[str, Any]) -> str:
    """The verdict on the two trained models, if seeds decide; else empty."""
    if document["verdict"]["basis"] == comparison.ONE_MODEL:
        return ""
    verdict = document["one_model"]
    return f"One model against another, which does not decide: {verdict['word']}: {verdict['text']}"


def _tables(document: dict[str, Any], quote: Quote) -> list[Titled]:
    differing = [row for row in document["metrics"] if row["difference"] != 0]
    same = len(document["metrics"]) - len(differing)
    rest = [f"({same} more are the same on both sides)"] if same else []
    tables: list[Titled] = [
        ("Parameters that differ", parameters(document["parameters"], quote), []),
        ("Metrics that differ", metrics(differing, quote), rest),
    ]
    if document["images"]:
        tables.append((_predicted_numbers if "nearer" in document["images"] else _images)(document["images"]))
    if document["seeds"]:
        tables.append(_seeds(document, quote))
    return tables


def parameters(rows: list[dict[str, Any]], quote: Quote) -> pd.DataFrame:
    """One row per parameter that differs (`parameters` of a document)."""
    columns = {
        "key": [quote(row["key"]) for row in rows],
        "A": [quote(parameter(row["a"])) if "a" in row else MISSING for row in rows],
        "B": [quote(parameter(row["b"])) if "b" in row else MISSING for row in rows],
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


def _predicted_numbers(images: dict[str, Any]) -> Titled:
    """How many predictions of a regression came nearer to the label, and the images that changed most."""
    same = images["images"] - images["nearer"] - images["farther"]
    rows = [("nearer to the label", images["nearer"]), ("farther from it", images["farther"]), ("as near", same)]
    frame = pd.DataFrame({"": [name for name, _ in rows], "images": [f"{count:,}" for _, count in rows]})
    lines = [
        f"{kind} by most: {', '.join(str(row['index']) for row in examples)}"
        for kind in ("nearer", "farther")
        if (examples := images[f"{kind}_examples"])
    ]
    return "Predictions of the test images, B against A", frame, lines


def _seeds(document: dict[str, Any], quote: Quote) -> Titled:
    """Mean and spread over the seeds of each side."""
    table, measure = document["seeds"], MEASURES[document["measure"]]
    sides = table["sides"]
    columns = {
        "": [f"{letter} {quote(side['name'])}" for letter, side in zip("AB", sides, strict=True)],
        "seeds": [f"{side['seeds']:,}" for side in sides],
        "mean": [measure.value(side["mean"]) for side in sides],
        "deviation": [measure.number(side["deviation"]) for side in sides],
        "lowest": [measure.value(side["low"]) for side in sides],
        "highest": [measure.value(side["high"]) for side in sides],
    }
    lines = []
    if table["paired"]:
        pairs = significance.Difference(**table["paired"])
        interval = measure.interval(pairs, document["level"])
        lines.append(f"paired by seed, which does not decide: {interval}, {p_value(pairs.p)}")
    if table["needed"]:
        lines.append(f"{table['needed']:,} seeds per side would show a difference of this size in 80 % of comparisons")
    return f"Test {measure.name} over seeds", pd.DataFrame(columns), lines


def side(document: dict[str, Any]) -> str:
    """The name and the commit of one side of a document."""
    name = str(document["name"])
    return f"{name} ({document['commit'][:7]})" if document["commit"] else name
