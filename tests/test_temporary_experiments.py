"""`dvc exp run --temp` and `dvc queue`, killed with -9: DVC deletes their folder, and the next run still resumes."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from stages.common import paths, resume
from stages.train.checkpoint import LATEST
from tests.clones import Clone
from tests.faults.lab import PROC, kill_tree, wait_for
from tests.imports import ROOT
from tests.test_resume import Stage

PIPELINE = """
stages:
  train:
    cmd: python -m stages.train > log.txt
    deps: [data/processed]
    params: [train, model, models]
    outs:
      - data/model/model.safetensors
      - log.txt
    metrics:
      - metrics/train.json: {cache: false}
    plots:
      - metrics/plots/training.csv: {cache: false}
"""
DEADLINE_SECONDS = 120


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clone]:
    """A repository with DVC whose one stage is this project's train stage, on a small data set."""
    clone = Clone(tmp_path / "clone")
    clone.path.mkdir()
    monkeypatch.chdir(clone.path)
    stage = Stage()
    stage.write_params()
    clone.environment["PYTHONPATH"] = str(ROOT)
    clone.run("git", "init", "-q", "-b", "main")
    clone.dvc("init", "-q")
    clone.dvc("config", "core.analytics", "false")
    (clone.path / "dvc.yaml").write_text(PIPELINE)
    (clone.path / ".gitignore").write_text("/runs/\n/log.txt\n/data/model\n")
    clone.commit("pipeline")
    yield clone
    for path in (clone.path / ".dvc/tmp/exps").glob("**/*.json"):
        with suppress(OSError, ValueError, KeyError):
            kill_tree(yaml.safe_load(path.read_bytes())["pid"])


def start(clone: Clone, name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "-n", name]
    return subprocess.Popen(
        command, cwd=clone.path, env=clone.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def checkpoints(clone: Clone) -> list[Path]:
    return list((clone.path / paths.RESUME).glob(f"*/{LATEST}"))


def of_experiment(clone: Clone, name: str) -> tuple[str, list[str]]:
    """The log of an experiment's training, and the digests of its results."""
    clone.dvc("exp", "apply", name)
    digests = [hashlib.sha256((clone.path / path).read_bytes()).hexdigest() for path in Stage.OUTPUTS]
    log = (clone.path / "log.txt").read_text()
    clone.run("git", "checkout", "-qf", "main")
    return log, digests


@pytest.mark.skipif(not PROC, reason="/proc lists the processes to kill")
@pytest.mark.parametrize(
    "way", [pytest.param("temp", marks=pytest.mark.soak), pytest.param("queue", marks=pytest.mark.night)]
)
def test_a_killed_experiment_is_resumed_by_the_next_one(way: str, clone: Clone) -> None:
    if way == "temp":
        process = start(clone, "first")
        wait_for(lambda: checkpoints(clone), DEADLINE_SECONDS)
        kill_tree(process.pid)
        process.wait()
    else:
        clone.dvc("exp", "run", "--queue", "-n", "first")
        command = [sys.executable, "-m", "dvc", "queue", "start"]
        subprocess.run(command, cwd=clone.path, env=clone.environment, stdout=subprocess.DEVNULL, check=True)
        wait_for(lambda: checkpoints(clone), DEADLINE_SECONDS)
        (info,) = (clone.path / ".dvc/tmp/exps/celery").glob("dvc-exp-worker-1.json")
        kill_tree(yaml.safe_load(info.read_bytes())["pid"])
    for folder in (clone.path / ".dvc/tmp/exps").glob("**/tmp*"):  # as DVC does after a failure, and doctor's fix
        shutil.rmtree(folder, ignore_errors=True)
    clone.dvc("exp", "run", "--temp", "-n", "second")
    log, digests = of_experiment(clone, "second")
    assert "resuming after step" in log
    assert not checkpoints(clone)
    clone.dvc("exp", "run", "--temp", "-f", "-n", "undisturbed")
    log, undisturbed = of_experiment(clone, "undisturbed")
    assert "resuming" not in log
    assert digests == undisturbed


@pytest.mark.night
def test_two_experiments_of_one_key_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for name in ("one", "other"):
        folder = tmp_path / ".dvc/tmp/exps/standalone" / name
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        stage = Stage()
        if name == "one":
            stopped = stage.start()
            wait_for(lambda: list((tmp_path / paths.RESUME).glob(f"*/{LATEST}")), DEADLINE_SECONDS)
            stopped.send_signal(signal.SIGSTOP)  # it keeps its key, for longer than the other one waits
        else:
            output = stage.run()
            assert "another run of the same code, parameters and data is running" in output
            assert "resuming" not in output
            results.append(stage.digests())
            stopped.send_signal(signal.SIGCONT)
            assert "best epoch" in stopped.communicate(timeout=DEADLINE_SECONDS)[0]
            monkeypatch.chdir(folder.with_name("one"))
            results.append(stage.digests())
    assert results[0] == results[1]
    assert not (tmp_path / paths.RESUME).exists()


# --- the folders of state, without a run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an experiment of the repository `tmp_path`, in which the test runs."""
    experiment = tmp_path / ".dvc/tmp/exps/standalone/tmpabc/sub"
    experiment.mkdir(parents=True)
    monkeypatch.chdir(experiment)
    return experiment


def test_the_state_of_an_experiment_is_in_the_repository(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with resume.claimed("key") as claimed:
        (claimed / LATEST).write_bytes(b"state")
    assert (tmp_path / paths.RESUME / "key" / LATEST).read_bytes() == b"state"
    assert not list(folder.iterdir())
    monkeypatch.chdir(tmp_path)
    assert not resume.in_experiment()
    with resume.claimed("key") as claimed:
        assert claimed == paths.RESUME / "key"
        assert (claimed / LATEST).read_bytes() == b"state"


def test_a_second_run_of_a_key_gets_a_folder_of_its_own_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "WAIT_SECONDS", 0.2)
    with resume.claimed("key") as first, resume.claimed("key") as second, resume.claimed("key") as third:
        assert [path.name for path in (first, second, third)] == ["key", "key-2", "key-3"]
        (first / LATEST).write_bytes(b"state")
        resume.prune()  # of another run, which leaves those at work alone
        assert second.exists()
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert out[0].startswith(
        "another run of the same code, parameters and data is running: it keeps its checkpoints in "
    )
    assert not third.exists()  # nothing is in it
    assert (first / LATEST).exists()


def test_state_is_deleted_by_age_and_by_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, hours in (("newest", 0), ("older", 2), ("oldest", 3), ("a week old", 8 * 24)):
        path = resume.root() / name / LATEST
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * 400)
        os.utime(path, (time.time() - hours * 3600,) * 2)
    resume.prune()
    assert sorted(path.name for path in resume.root().iterdir()) == ["newest", "older", "oldest"]
    monkeypatch.setattr(resume, "MAX_BYTES", 1000)
    resume.prune()
    assert sorted(path.name for path in resume.root().iterdir()) == ["newest", "older"]
