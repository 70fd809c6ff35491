"""Seed studies: accuracy and seconds of a recipe over several seeds.

    PYTHONPATH=. .venv/bin/python -m benchmarks.studies                         prints the table of docs/performance.md
    PYTHONPATH=. .venv/bin/python -m benchmarks.studies fashion-best --seeds 3  measures recipes/fashion-best.txt first

The seeds train one after the other, each on all cores, in processes of their own, and each reads the test set once.
The result is benchmarks/studies/NAME.json. `-S` overrides a parameter, such as data.mirrors.
"""

import argparse
import json
import math
import shlex
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.scratch import CODE, Scratch
from benchmarks.summary import origin
from stages.common import files

FOLDER, RECIPES = CODE / "benchmarks/studies", CODE / "recipes"
DEFAULT = "default"
NAMES = {
    DEFAULT: "the default: `params.yaml` as it stands",
    "fast": "`recipes/fast.txt`: one epoch",
    "best": "`recipes/best.txt`: a wider network, 24 epochs",
    "tutorial": "`recipes/tutorial.txt`: 784-512-10, SGD",
    "fashion": "`recipes/fashion.txt`: the default network on Fashion-MNIST, 10 epochs",
    "fashion-best": "`recipes/fashion-best.txt`: a deeper and wider one, 10 epochs",
    "fashion-shufflenet": "`recipes/fashion-shufflenet.txt`: weights for `openclipart-finetuned`",
    "openclipart": "`recipes/openclipart.txt`: a small CNN on clip art",
    "openclipart-shufflenet": "`recipes/openclipart-shufflenet.txt`: shufflenet_v2_x0_5 on clip art, new weights",
    "openclipart-finetuned": "`recipes/openclipart-finetuned.txt`: the same, pretrained on Fashion-MNIST",
}
Study = dict[str, Any]


def main() -> None:
    """Measure the named recipe, if any, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies", description="Seed studies of the recipes.")
    parser.add_argument("name", nargs="?", choices=NAMES, help="recipe to measure; none: only print the table")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="train.seed 0 to N - 1 (%(default)s)")
    parser.add_argument("-S", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="a parameter")
    arguments = parser.parse_args()
    if arguments.name:
        study = measure(arguments.name, arguments.seeds, arguments.overrides)
        files.write_text(FOLDER / f"{arguments.name}.json", json.dumps(study, indent=2) + "\n")
    print(table(load()))


def measure(name: str, seeds: int, overrides: Sequence[str]) -> Study:
    """Train and evaluate a recipe with each seed."""
    arguments = [*recipe(name), *overrides]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Scratch(Path(folder) / "recipe", arguments)
        runs = [scratch.measure(seed) for seed in range(seeds)]
    return {
        "name": name,
        "overrides": [word for word in arguments if word != "-S"],
        "jobs": 1,
        **{key: summary([run[key] for run in runs]) for key in runs[0] if key not in ("seed", "images")},
        "runs": runs,
        **origin(),
    }


def recipe(name: str) -> list[str]:
    """The overrides of a recipe, as `dvc exp run` takes them: "-S", "train.epochs=3", …"""
    return [] if name == DEFAULT else shlex.split((RECIPES / f"{name}.txt").read_text(encoding="utf-8"))


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, range and number; of two values or more, standard deviation and 95 % interval of the mean (Student's t)."""
    result = {"mean": statistics.fmean(values), "min": min(values), "max": max(values), "n": len(values)}
    if len(values) > 1:
        deviation = statistics.stdev(values)
        half = stats.t.ppf(0.975, len(values) - 1) * deviation / math.sqrt(len(values))
        result |= {"standard_deviation": deviation, "low": result["mean"] - half, "high": result["mean"] + half}
    return {key: round(value, 6) for key, value in result.items()}


def table(studies: dict[str, Study]) -> str:
    """One row per study: seeds, test and validation accuracy, seconds, processor and commit."""
    columns = ("recipe", "seeds", "test accuracy", "95 % interval of the mean", "validation", "seconds", "measured on")
    rows = [columns, ("---",) * len(columns)]
    for name, text in NAMES.items():
        if not (study := studies.get(name)):
            continue
        test, validation = study["accuracy"], study.get("validation_accuracy")
        rows.append(
            (
                text,
                str(test["n"]),
                f"{test['mean']:.2%}" + (f" ± {100 * test['standard_deviation']:.2f}" if test["n"] > 1 else ""),
                f"{test['low']:.2%} to {test['high']:.2%}" if test["n"] > 1 else "",
                f"{validation['mean']:.2%}" if validation else "none",
                f"{study['processor_seconds' if 'processor_seconds' in study else 'loop_seconds']['mean']:.0f}",
                f"{study['machine']['processor'].partition('(')[0]}, {study['commit']}",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def load() -> dict[str, Study]:
    """The committed studies by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


if __name__ == "__main__":
    main()
