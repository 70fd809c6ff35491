"""How often seeds raise an alarm, on real trainings: `python -m benchmarks.gate`.

Draws pairs of groups of seeds of the fast recipe that share no seed (a branch that changes only the seed), and pairs of
which one side is of a worse recipe, and judges each as `review.pull_request` does. Groups of different pairs may share
seeds, since there are more pairs than the seeds have disjoint groups.

The trainings are on record in benchmarks/gate.json; `--pool N` trains what N seeds of both recipes lack there: 10 s per
seed and core.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import shlex
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scratch import Scratch
from review import significance
from stages.common import files, paths, record
from stages.evaluate.scores import Floats

RESULTS = Path(__file__).parent / "gate.json"
FAST = Path("recipes/fast.txt")
WORSE = ["-S", "train.label_smoothing=0"]  # 0.14 points
ONE_PROCESS = ["-S", "machine.threads=1", "-S", "evaluate.numerics=fast"]  # a process has one kind of numerics
LEVEL, PAIRS = 0.05, 20


def main() -> None:
    """Train the pools, draw the pairs, write and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description="False and true alarms of the gate.")
    parser.add_argument(
        "--pool", type=int, default=0, help="train so many seeds of each recipe, if they are not on record"
    )
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, a thread each (2)")
    arguments = parser.parse_args()
    train_pools(arguments.pool, arguments.jobs)
    print(table())


def train_pools(pool_size: int, jobs: int) -> None:
    """Train so many seeds of both recipes, as far as they are not in RESULTS yet."""
    results: dict[str, Any] = json.loads(RESULTS.read_bytes()) if RESULTS.is_file() else {"fast": [], "worse": []}
    fast = [*shlex.split(FAST.read_text(encoding="utf-8")), *ONE_PROCESS]
    for name, overrides in (("fast", fast), ("worse", [*fast, *WORSE])):
        rows: list[dict[str, Any]] = results[name]
        missing = sorted(set(range(pool_size)) - {row["seed"] for row in rows})
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as folder, processes(jobs) as pool:
            scratch = Scratch(Path(folder) / "recipe", overrides)
            for seed, measured in zip(missing, pool.map(trained, map(scratch.prepare, missing)), strict=True):
                rows.append({"seed": seed, **measured})
                files.write_text(RESULTS, json.dumps({**results, "machine": record.machine()}, indent=1) + "\n")


def processes(jobs: int) -> ProcessPoolExecutor:
    """Processes that each import torch once, and train one seed after another."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))


def trained(folder: Path) -> dict[str, int]:
    """Train and evaluate in a folder that is prepared; returns errors and images of the test set."""
    from stages.evaluate.__main__ import main as evaluate
    from stages.train.__main__ import main as train

    with contextlib.chdir(folder), Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        train()
        evaluate()
        metrics = json.loads(paths.TEST_METRICS.read_bytes())
    return {"errors": metrics["errors"], "images": metrics["images"]}


def accuracies(rows: list[dict[str, Any]]) -> Floats:
    """Test accuracy of each seed, float64 (seeds,)."""
    return np.array([1 - row["errors"] / row["images"] for row in sorted(rows, key=lambda row: row["seed"])])


def verdicts(a: Floats, b: Floats, seeds: int, random: np.random.Generator) -> list[str]:
    """The verdicts on PAIRS pairs of groups of so many seeds. Two groups of the same pool share none."""
    words = []
    for _ in range(PAIRS):
        first = random.permutation(len(a))
        second = first[seeds:] if a is b else random.permutation(len(b))
        found = significance.welch(a[first[:seeds]], b[second[:seeds]], LEVEL)
        words.append(significance.verdict(found.difference, found.p, LEVEL) if found else "not comparable")
    return words


def table() -> str:
    """A row per number of seeds: alarms where only the seeds differ, and how often the worse recipe is found."""
    results = json.loads(RESULTS.read_bytes())
    fast, worse = accuracies(results["fast"]), accuracies(results["worse"])
    lines = [
        f"| seeds per side | alarms in {PAIRS} pairs that differ in their seeds alone | found worse, of {PAIRS} |",
        "| --- | --- | --- |",
    ]
    for seeds in (3, 5, 7, 10):
        random = np.random.default_rng(seeds)
        noise = verdicts(fast, fast, seeds, random)
        found = verdicts(fast, worse, seeds, random)
        alarms = sum(word != significance.NOISE for word in noise)
        lines.append(f"| {seeds} | {alarms} | {found.count(significance.WORSE)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
