"""The committed seed studies as a Markdown table, the one in docs/performance.md: `python -m benchmarks.studies`."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "studies"
NAMES = {
    "default": "the default: `params.yaml` as it stands",
    "fast": "`recipes/fast.txt`: one epoch",
    "best": "`recipes/best.txt`: a wider network, 24 epochs",
    "tutorial": "`recipes/tutorial.txt`: 784-512-10, SGD",
    "fashion": "`recipes/fashion.txt`: the default network on Fashion-MNIST, 10 epochs",
    "fashion-best": "`recipes/fashion-best.txt`: a wider one, 24 epochs",
}


def table(studies: dict[str, dict[str, Any]]) -> str:
    """A row a study: seeds, test accuracy and its spread, validation accuracy."""
    rows = [
        "| recipe | seeds | test accuracy | 95 % interval of the mean | validation |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, text in NAMES.items():
        if not (study := studies.get(name)):
            continue
        test, validation = study["accuracy"], study.get("validation_accuracy")
        known = f"{validation['mean']:.2%}" if validation else "none"
        rows.append(
            f"| {text} | {test['n']} | {test['mean']:.2%} ± {100 * test['standard_deviation']:.2f} "
            f"| {test['low']:.2%} to {test['high']:.2%} | {known} |"
        )
    return "\n".join(rows)


def load() -> dict[str, dict[str, Any]]:
    """The committed studies by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


if __name__ == "__main__":
    print(table(load()))
