"""DVC's experiments with the real stages: a queue with two workers, what is shared, and a sweep as a table and a plot.

The tests of this file share their experiments, and run in their order.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from stages.common import paths
from tests.clones import Clone
from tests.faults.lab import is_running

pytestmark = pytest.mark.soak

ALONE = ["models.mlp.hidden=48"]  # what each run of the sweep has
RATES = ["0.001", "0.01"]


@pytest.fixture(scope="module")
def swept(pipeline: Clone) -> Iterator[Clone]:
    """The clone, after two workers have emptied a queue of experiments, lr-1 and lr-2: two learning rates."""
    before = state(pipeline)
    sets = [option for setting in ALONE for option in ("-S", setting)]
    sweep = ["-S", f"optimizers.adam.lr={','.join(RATES)}"]
    pipeline.dvc_as_program("exp", "run", "--queue", "-n", "lr", *sets, *sweep)
    try:
        pipeline.dvc_as_program("queue", "start", "--jobs", "2")
        deadline = time.monotonic() + 600
        while "Queued" in (output := pipeline.dvc_as_program("queue", "status")) or "Running" in output:
            assert time.monotonic() < deadline, output
            time.sleep(1)
        assert output.count("Success") == 2, output + pipeline.dvc_as_program("queue", "logs", "lr-1", check=False)
    finally:
        stop_workers(pipeline)
    assert state(pipeline) == before
    yield pipeline
    pipeline.dvc_as_program("exp", "remove", "--all-commits")


def state(clone: Clone) -> tuple[str, str, dict[str, str]]:
    """What Git says of the work tree, and a digest of each file in it, those that Git ignores included."""
    ours = {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in clone.path.rglob("*")
        if path.is_file() and not {".git", ".dvc", "__pycache__"} & set(path.relative_to(clone.path).parts)
    }
    return clone.run("git", "rev-parse", "HEAD"), clone.run("git", "status", "--porcelain"), ours


def stop_workers(clone: Clone) -> None:
    """End the workers of the queue, which would wait ten seconds for more, and what they run."""
    clone.dvc_as_program("queue", "stop", "--kill", check=False)
    for file in (clone.path / ".dvc/tmp/exps/celery").glob("dvc-exp-worker-*.json"):
        pid = json.loads(file.read_text(encoding="utf-8"))["pid"]
        deadline = time.monotonic() + 20
        while is_running(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


def outputs(lock: str) -> dict[str, str]:
    """The MD5 of each output, by dvc.lock."""
    stages: dict[str, Any] = yaml.safe_load(lock)["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}


def commit(clone: Clone, name: str) -> str:
    """The commit of an experiment."""
    refs = clone.run("git", "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines()
    (found,) = [ref.split()[0] for ref in refs if ref.endswith(f"/{name}")]
    return found


def test_two_workers_end_in_the_bytes_of_a_run_alone(swept: Clone, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/dvc-remote").symlink_to(swept.path.parent / "dvc-remote")
    swept.run("git", "clone", "-q", str(swept.path), str(tmp_path / "work/alone"))
    alone = Clone(tmp_path / "work/alone")
    alone.dvc_as_program("pull")
    # On one thread, where each of the two had one a core.
    for setting in (*ALONE, f"optimizers.adam.lr={RATES[1]}", "machine.threads=1"):
        alone.set(*setting.split("=", 1))
    assert alone.repro() == ["train", "evaluate"]
    expected = outputs((alone.path / "dvc.lock").read_text(encoding="utf-8"))
    found = {name: outputs(swept.run("git", "show", f"{commit(swept, name)}:dvc.lock")) for name in ("lr-1", "lr-2")}
    assert found["lr-2"] == expected
    assert found["lr-1"][paths.MODEL.as_posix()] != expected[paths.MODEL.as_posix()]
    assert len(expected) == 22


def test_workers_leave_nothing_and_download_nothing(swept: Clone) -> None:
    assert not [path for path in (swept.path / ".dvc/tmp/exps").iterdir() if path.name.startswith("tmp")]
    for name in ("lr-1", "lr-2"):
        output = swept.dvc_as_program("queue", "logs", name)
        assert "Stage 'download' didn't change, skipping" in output
        assert "waiting for a stage" not in output  # each has a folder, and so a lock, of its own


def test_what_is_shown_fits_a_page(swept: Clone) -> None:
    keep = r"(?!Exp|acc|loss|\w+\.)|macro|images|without"  # the one in docs/experiments.md
    shown = swept.dvc_as_program("exp", "show", "--only-changed", "--hide-workspace", "--drop", keep, "--md")
    header = [cell.strip() for cell in shown.splitlines()[0].strip("|").split("|")]
    assert header[:5] == ["Experiment", "accuracy", "accuracy_low", "accuracy_high", "loss"]
    changed = {"models.mlp.hidden", "optimizers.adam.lr"}
    assert set(header[5:]) == changed
    assert shown.count("[lr-") == 2


def sweep(clone: Clone, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "review.sweep", *arguments]
    return subprocess.run(command, cwd=clone.path, env=clone.environment, capture_output=True, text=True, check=False)


def test_a_sweep_is_a_table_of_validation_and_a_plot(swept: Clone, tmp_path: Path) -> None:
    done = sweep(swept, "lr-*", "--format", "json", "--plot", str(tmp_path / "sweep.png"))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["varied"], document["notes"]) == (["optimizers.adam.lr"], [])
    by_rate = {str(row["parameters"]["optimizers.adam.lr"]): row for row in document["settings"]}
    assert set(by_rate) == set(RATES)
    for at, rate in enumerate(RATES):
        run = commit(swept, f"lr-{at + 1}")
        metrics = json.loads(swept.run("git", "show", f"{run}:metrics/train.json"))
        assert by_rate[rate]["seeds"] == [0]
        assert by_rate[rate]["values"] == [metrics["validation_accuracy"]]
    with Image.open(BytesIO((tmp_path / "sweep.png").read_bytes()), formats=["PNG"]) as picture:
        assert picture.size == (700, 420)
    unknown = sweep(swept, "nobody-*")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    there = "there are: lr-1, lr-2"
    assert unknown.stderr == f"error: no experiment of {document['commit'][:7]} is named 'nobody-*'; {there}\n"


def test_an_experiment_is_shared_applied_and_becomes_a_branch(swept: Clone, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    swept.run("git", "clone", "-q", "--bare", str(swept.path), str(shared / "origin.git"))
    swept.run("git", "remote", "add", "shared", str(shared / "origin.git"))
    try:
        swept.dvc_as_program(
            "exp", "push", "shared", "lr-2"
        )  # the commit there, its data to the directory beside the clone
        assert swept.dvc_as_program("exp", "list", "--name-only", "shared").split() == ["lr-2"]
    finally:
        swept.run("git", "remote", "remove", "shared")

    (shared / "dvc-remote").symlink_to(swept.path.parent / "dvc-remote")
    swept.run("git", "clone", "-q", str(shared / "origin.git"), str(shared / "colleague"))
    colleague = Clone(shared / "colleague")
    colleague.dvc_as_program("pull")
    colleague.dvc_as_program("exp", "pull", "origin", "lr-2")
    colleague.dvc_as_program("exp", "apply", "lr-2")
    assert colleague.repro() == []
    expected = json.loads(swept.run("git", "show", f"{commit(swept, 'lr-2')}:metrics/evaluate.json"))
    assert colleague.metrics("evaluate") == expected
    colleague.run("git", "checkout", "-qf", "main")
    colleague.dvc_as_program("exp", "branch", "lr-2", "faster")
    assert colleague.run("git", "show", "faster:metrics/evaluate.json") == swept.run(
        "git", "show", f"{commit(swept, 'lr-2')}:metrics/evaluate.json"
    )
    colleague.dvc_as_program("exp", "remove", "lr-2")
    assert "lr-2" not in colleague.dvc_as_program("exp", "list")
    assert colleague.run("git", "branch", "--list", "faster").strip() == "faster"
    colleague.dvc_as_program("exp", "remove", "--git-remote", "origin", "lr-2")
    assert colleague.dvc_as_program("exp", "list", "--name-only", "origin").strip() == ""
