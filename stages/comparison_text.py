"""A comparison as text: tables for a terminal, and Markdown for a pull request."""

import json
from typing import Any

import pandas as pd

MISSING = "-"


def table(document: dict[str, Any]) -> str:
    """Plain tables; the verdict comes last, where a terminal ends. Lines of notes and verdict are as long as they are."""
    blocks = [f"A: {_side(document['a'])}\nB: {_side(document['b'])}"]
    blocks += [
        f"{title}\n{frame.to_string(index=False)}{_lines(after)}" for title, frame, after in _tables(document, str)
    ]
    blocks += ["\n".join(f"note: {note}" for note in document["notes"])] if document["notes"] else []
    verdict = document["verdict"]
    blocks.append(f"B is {_capitals(verdict['word'])}: {verdict['text']}")
    return "\n\n".join(_printable(block) for block in blocks) + "\n"


def markdown(document: dict[str, Any]) -> str:
    """GitHub's Markdown: the verdict first. Names and values are set as code: they cannot become markup or mentions."""
    verdict = document["verdict"]
    blocks = [
        f"### {_code(document['b']['name'])} is {verdict['word']} than {_code(document['a']['name'])}"
        if verdict["word"] in ("better", "worse")
        else f"### {_code(document['b']['name'])} against {_code(document['a']['name'])}: {verdict['word']}",
        _escaped(verdict["text"][:1].upper() + verdict["text"][1:]) + ".",
    ]
    blocks += [f"> {_escaped(note)}" for note in document["notes"]]
    for title, frame, after in _tables(document, _code):
        rows = frame.to_markdown(index=False, tablefmt="pipe", disable_numparse=True)
        blocks.append(f"**{title}**\n\n{rows}{_lines(after)}")
    blocks.append(f"A: {_code(_side(document['a']))}, B: {_code(_side(document['b']))}")
    if verdict["method"]:
        blocks.append(f"Method: {verdict['method']}.")
    return "\n\n".join(blocks) + "\n"


def _tables(document: dict[str, Any], shown: Any) -> list[tuple[str, pd.DataFrame, str]]:
    """Title, table and a line below it. shown: how names and values that the user chose are set."""
    if "studies" in document:
        return [("Accuracy over seeds", _studies(document["studies"], shown), "")]
    found = []
    if document["parameters"]:
        found.append(("Parameters that differ", _parameters(document["parameters"], shown), ""))
    else:
        found.append(("Parameters that differ", pd.DataFrame({"key": ["none"]}), ""))
    differing = [row for row in document["metrics"] if row["difference"] != 0]
    same = len(document["metrics"]) - len(differing)
    if differing:
        found.append(("Metrics", _metrics(differing, shown), f"{same} more are the same" if same else ""))
    else:
        found.append(("Metrics", pd.DataFrame({"metric": [f"all {same} the same"]}), ""))
    if document["images"]:
        found.append(("Test images", *_images(document["images"], shown)))
    return found


def _parameters(rows: list[dict[str, Any]], shown: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "key": [shown(row["key"]) for row in rows],
            "A": [shown(_value(row["a"])) if "a" in row else MISSING for row in rows],
            "B": [shown(_value(row["b"])) if "b" in row else MISSING for row in rows],
            "read by": [", ".join(row["read_by"]) or "no stage" for row in rows],
        }
    )


def _metrics(rows: list[dict[str, Any]], shown: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "metric": [
                shown(f"{row['file'].removeprefix('metrics/').removesuffix('.json')}: {row['metric']}") for row in rows
            ],
            "A": [_number(row["a"]) for row in rows],
            "B": [_number(row["b"]) for row in rows],
            "B - A": [_number(row["difference"], sign="+") for row in rows],
        }
    )


def _images(images: dict[str, Any], shown: Any) -> tuple[pd.DataFrame, str]:
    """The counts as a table of two by two, and the first few images that were fixed and broken."""
    frame = pd.DataFrame(
        {
            "": ["A right", "A wrong"],
            "B right": [f"{images['both_right']:,}", f"{images['fixed']:,} fixed"],
            "B wrong": [f"{images['broken']:,} broken", f"{images['both_wrong']:,}"],
        }
    )
    lines = [f"{images['changed']:,} of {images['images']:,} predictions changed"]
    for name in ("fixed", "broken"):
        examples = ", ".join(str(row["index"]) for row in images[f"{name}_examples"])
        more = ", …" if images[name] > len(images[f"{name}_examples"]) else ""
        lines += [f"{name}: images {examples}{more}"] if examples else []
    return frame, "; ".join(lines)


def _studies(rows: list[dict[str, Any]], shown: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "": ["A", "B"],
            "study": [shown(row["name"]) for row in rows],
            "seeds": [row["seeds"] for row in rows],
            "mean": [f"{row['mean']:.4%}" for row in rows],
            "deviation": [f"{row['deviation']:.4%}" for row in rows],
            "lowest": [f"{row['low']:.2%}" for row in rows],
            "highest": [f"{row['high']:.2%}" for row in rows],
        }
    )


def _side(side: dict[str, Any]) -> str:
    return f"{side['name']} ({side['commit'][:7]})" if side["commit"] else str(side["name"])


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:39] + "…"


def _number(value: float | None, sign: str = "") -> str:
    if value is None:
        return MISSING
    if isinstance(value, int):
        return f"{value:{sign},}"
    return f"{value:{sign}.6g}" if value and abs(value) < 1e-4 else f"{value:{sign}.6f}".rstrip("0").removesuffix(".")


def _capitals(word: str) -> str:
    return word.upper()


def _lines(after: str) -> str:
    return f"\n{after}" if after else ""


def _printable(text: str) -> str:
    """Without the control characters that a name could send to a terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)


def _code(text: str) -> str:
    """Text as code in Markdown, in a table cell too."""
    return "`" + _printable(text).replace("\n", " ").replace("`", "'").replace("|", "\\|") + "`"


def _escaped(text: str) -> str:
    """Text as text in Markdown: what has a meaning there loses it; code between backticks stays."""
    return "".join(
        f"\\{letter}" if letter in "\\*_[]<>|#@" else letter for letter in _printable(text).replace("\n", " ")
    )
