"""False and true alarms of review.pull_request on real trainings: `python -m benchmarks.gate`.

It draws pairs of groups of seeds, and judges each pair as `review.pull_request` does: groups of the fast recipe without
a common seed (a branch that changes only the seed), and groups of which one is from a worse recipe. Different pairs may
share seeds, since the seeds have fewer disjoint groups than there are pairs.

benchmarks/gate.json has the trainings; `--pool N` adds those of N seeds of both recipes that it lacks: 10 s per seed
and core.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import studies
from benchmarks.scratch import Scratch
from review import significance
from stages.common import files, paths, record
from stages.evaluate.scores import Floats

RESULTS = Path(__file__).parent / "gate.json"
WORSE = ["-S", "train.label_smoothing=0"]  # 0.14 points
ONE_PROCESS = ["-S", "machine.threads=1", "-S", "evaluate.numerics=fast"]  # a process has one kind of numerics
LEVEL, PAIRS = 0.05, 20


def main() -> None:
    """Train the seeds that are missing, and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description="False and true alarms of the gate.")
    parser.add_argument(
        "--pool", type=int, default=0, metavar="N", help="train the seeds 0 to N - 1 that are not recorded"
    )
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, one thread each (2)")
    arguments = parser.parse_args()
    train_pools(arguments.pool, arguments.jobs)
    print(table())


def train_pools(pool_size: int, jobs: int) -> None:
    """Train the seeds of both recipes that RESULTS lacks."""
    results: dict[str, Any] = json.loads(RESULTS.read_bytes()) if RESULTS.is_file() else {"fast": [], "worse": []}
    fast = [*studies.recipe("fast"), *ONE_PROCESS]
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
    """Train and evaluate in a folder of Scratch.prepare; returns errors and images of the test set."""
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
    """The verdicts on PAIRS pairs of groups of `seeds` seeds each. Two groups of the same recipe share none."""
    result = []
    for _ in range(PAIRS):
        first = random.permutation(len(a))
        second = first[seeds:] if a is b else random.permutation(len(b))
        test = significance.welch(a[first[:seeds]], b[second[:seeds]], LEVEL)
        result.append(significance.verdict(test.difference, test.p, LEVEL) if test else "not comparable")
    return result


def table() -> str:
    """One row per number of seeds: alarms where only the seeds differ, and how often the worse recipe is found."""
    results = json.loads(RESULTS.read_bytes())
    fast, worse = accuracies(results["fast"]), accuracies(results["worse"])
    lines = [
        f"| seeds per side | alarms in {PAIRS} pairs that differ only in their seeds | found worse, of {PAIRS} |",
        "| --- | --- | --- |",
    ]
    for seeds in (3, 5, 7, 10):
        random = np.random.default_rng(seeds)
        alarms = sum(verdict != significance.NOISE for verdict in verdicts(fast, fast, seeds, random))
        detected = verdicts(fast, worse, seeds, random).count(significance.WORSE)
        lines.append(f"| {seeds} | {alarms} | {detected} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
