"""The SHA-256 of a training's results for many numbers of processes, threads and hosts: python -m benchmarks.hashes.

Trains the default network with dropout for two epochs on a small data set. Each hash covers the model, the metrics and
the curves. Hosts are network namespaces, which need root. Writes benchmarks/hashes.json, and prints a table; the exit
status is 1 if any two hashes differ.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.common import files, record
from stages.common.text import counted
from tests.clones import Clone
from tests.network_of_hosts import hosts
from tests.test_hosts import Cluster, clones_with_data
from tests.workers import OUTPUTS

RESULTS = Path("benchmarks/hashes.json")
PROCESSES, THREADS = range(1, 6), range(1, 4)  # on one host
HOSTS, PROCESSES_EACH = (2, 3), (1, 2)
Row = tuple[int, int, list[str]]  # hosts, processes on each, a hash for each number of threads


def small_recipe(values: dict[str, Any]) -> None:
    """Change the sections of params.yaml for a training of a few seconds."""
    values["train"].update(epochs=2, batch_size=250)
    values["models"]["cnn"].update(dropout=0.3)
    values["machine"].update(timeout_seconds=60)


def on_one_host(clone: Clone) -> Iterator[Row]:
    """Train in processes of this machine (tests/workers.py)."""
    for processes in PROCESSES:
        combinations = [f"{processes}x{threads}" for threads in THREADS]
        environment = {**os.environ, "PYTHONPATH": str(clone.path)}
        command = [sys.executable, "-m", "tests.workers", *combinations]
        done = subprocess.run(command, cwd=clone.path, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        ended = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ended "))
        yield 1, processes, [ended[combination] for combination in combinations]


def on_several_hosts(clones: list[Clone]) -> Iterator[Row]:
    """Train on hosts, each of which runs the commands of docs/several-machines.md."""
    for count in HOSTS:
        for processes in PROCESSES_EACH:
            yield count, processes, [on_hosts(clones[:count], processes, threads) for threads in THREADS]


def on_hosts(clones: list[Clone], processes: int, threads: int) -> str:
    """The hash of a training on one host for each clone."""
    machine = {"MACHINE_PROCESSES": str(processes), "MACHINE_THREADS": str(threads)}
    with hosts([clone.path for clone in clones]) as made:
        cluster = Cluster(made)
        cluster.start_head(TRAIN_NODES=str(len(clones)), **machine)
        cluster.wait(cluster.head_listens)
        for host in cluster.others:
            cluster.join(host, **machine)
        cluster.wait(lambda: cluster.status(cluster.head) is not None)
        assert cluster.status(cluster.head) == 0, cluster.outputs()
        assert f"{processes * len(clones)} processes on {len(clones)} machines" in cluster.head.output(), (
            cluster.outputs()
        )
    contents = [(clones[0].path / path).read_bytes() for path in OUTPUTS]
    cluster.forget()
    return hashlib.sha256(b"".join(contents)).hexdigest()


def measure() -> list[Row]:
    """The rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        clones = clones_with_data(Path(folder), small_recipe)
        return [*on_one_host(clones[0]), *on_several_hosts(clones)]


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table, with the first 12 digits of each hash."""
    lines = ["| hosts | processes on each | 1 thread | 2 threads | 3 threads |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {count} | {processes} | {' | '.join(text[:12] for text in row)} |" for count, processes, row in rows]
    return "\n".join(lines)


def main() -> int:
    """Measure, write RESULTS and print the table. Returns the exit status."""
    rows = measure()
    files.write_text(RESULTS, json.dumps({"machine": record.machine(), "rows": rows}, indent=2) + "\n")
    hashes = [text for _, _, row in rows for text in row]
    print(table(rows))
    print(f"{len(hashes)} trainings, {counted(len(set(hashes)), 'hash', 'hashes')}")
    return int(len(set(hashes)) > 1)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except pytest.skip.Exception as reason:
        sys.exit(f"error: {reason}")
