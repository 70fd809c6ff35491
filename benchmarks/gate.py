"""How often seeds raise an alarm, on real trainings: `python -m benchmarks.gate`.

Trains a pool of seeds of the fast recipe, and one of the same recipe made worse. From these it draws pairs of groups of
seeds: two of the one pool that share no seed (a branch that changes only the seed), and one of each pool (a branch that
is worse). Each pair is judged as `review.pull_request` judges. Groups of different pairs may share seeds, since there
are more pairs than the pool has disjoint groups. Results: benchmarks/gate.json, which is continued if it is there.
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

RESULTS = Path("benchmarks/gate.json")
FAST = Path("recipes/fast.txt")
WORSE = ["-S", "train.label_smoothing=0"]  # about 0.2 points
ONE_PROCESS = ["-S", "machine.threads=1", "-S", "evaluate.numerics=fast"]  # a process has one kind of numerics
LEVEL, PAIRS = 0.05, 20


def main() -> None:
    """Train the pools, draw the pairs, write and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description="False and true alarms of the gate.")
    parser.add_argument("--pool", type=int, default=40, help="seeds of each recipe (40)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, a thread each (2)")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_bytes()) if RESULTS.is_file() else {"fast": [], "worse": []}
    fast = [*shlex.split(FAST.read_text(encoding="utf-8")), *ONE_PROCESS]
    for name, overrides in (("fast", fast), ("worse", [*fast, *WORSE])):
        rows: list[dict[str, Any]] = results[name]
        missing = sorted(set(range(arguments.pool)) - {row["seed"] for row in rows})
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as folder, processes(arguments.jobs) as pool:
            scratch = Scratch(Path(folder) / "recipe", overrides)
            for seed, measured in zip(missing, pool.map(trained, map(scratch.prepared, missing)), strict=True):
                rows.append({"seed": seed, **measured})
                files.write_text(RESULTS, json.dumps({**results, "machine": record.machine()}, indent=1) + "\n")
    for line in table(results):
        print(line)


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


def accuracies(rows: list[dict[str, Any]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Test accuracy of each seed, float64 (seeds,)."""
    return np.array([1 - row["errors"] / row["images"] for row in sorted(rows, key=lambda row: row["seed"])])


def verdicts(a: Any, b: Any, same: bool, seeds: int, random: np.random.Generator) -> list[str]:
    """The verdicts on PAIRS pairs of groups of so many seeds. same: both come from one pool, and share no seed."""
    words = []
    for _ in range(PAIRS):
        first = random.permutation(len(a))
        second = first[seeds:] if same else random.permutation(len(b))
        found = significance.welch(a[first[:seeds]], b[second[:seeds]], LEVEL)
        words.append(significance.verdict(found.difference, found.p, LEVEL) if found else "not comparable")
    return words


def table(results: dict[str, Any]) -> list[str]:
    """The lines of docs/review.md: alarms of 20 pairs by how many seeds each side has."""
    fast, worse = accuracies(results["fast"]), accuracies(results["worse"])
    lines = [
        f"fast: {len(fast)} seeds, {fast.mean():.3%} ± {100 * fast.std(ddof=1):.3f}; "
        f"worse: {len(worse)} seeds, {worse.mean():.3%} ± {100 * worse.std(ddof=1):.3f}",
        "",
        "| seeds per side | only the seed changed: alarms of 20 | worse: found in, of 20 |",
        "| --- | --- | --- |",
    ]
    for seeds in (3, 5, 7, 10):
        random = np.random.default_rng(seeds)
        noise = verdicts(fast, fast, True, seeds, random)
        found = verdicts(fast, worse, False, seeds, random)
        alarms = sum(word != significance.NOISE for word in noise)
        lines.append(f"| {seeds} | {alarms} | {found.count(significance.WORSE)} |")
    return lines


if __name__ == "__main__":
    main()
