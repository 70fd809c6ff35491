"""What `make watch` shows: the work tree's run, experiments of DVC at work, dead, queued and over, and a search."""

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from integrity import queue_tasks
from review import search, watch
from review.watch import DEAD, QUEUED, RUNNING, STARTING, WAITING, Run
from stages.common import paths
from tests import search_toy
from tests.faults.lab import PROC
from tests.toy import Project

proc = pytest.mark.skipif(not PROC, reason="who is at work stands in /proc")


class Entry(NamedTuple):
    """A task of the queue."""

    stash_rev: str
    name: str


class Queue:
    """DVC's queue, as far as watch reads it."""

    def __init__(self) -> None:
        self.active: list[Entry] = []
        self.queued: list[Entry] = []

    def iter_active(self) -> list[Entry]:
        return self.active

    def iter_queued(self) -> list[Entry]:
        return self.queued

    def iter_done(self) -> list[Any]:
        return []


class Repository:
    """A folder, as far as watch reads a DVC repository."""

    def __init__(self, root: Path) -> None:
        self.root_dir = str(root)
        self.experiments = self
        self.celery_queue = Queue()

    def task(self, name: str, status: int = 2) -> Path:
        """The folder of an experiment at work."""
        folder = Path(self.root_dir) / queue_tasks.FOLDER / f"tmp{name}"
        folder.mkdir(parents=True)
        info = {"name": name, "status": status, "root_dir": str(folder), "dvc_dir": ".dvc"}
        record = Path(self.root_dir) / queue_tasks.FOLDER / "run" / name / f"{name}.run"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps(info), encoding="utf-8")
        return folder


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def progress(folder: Path, **values: Any) -> None:
    path = folder / paths.PROGRESS
    path.parent.mkdir(exist_ok=True)
    known = {
        "epoch": 2,
        "epochs": 10,
        "seconds_per_epoch": 60.0,
        "time": time.time() + 600,
        "validation_accuracy": 0.98,
    }
    path.write_text(json.dumps({**known, **values}), encoding="utf-8")


def test_nothing(repo: Repository) -> None:
    assert list(watch.find_runs(repo)) == []


def test_a_seed_is_shown_with_its_progress(repo: Repository) -> None:
    root = Path(repo.root_dir)
    seed = root / paths.RUNS / "seeds/3"
    for lock in (root / paths.LOCK, seed / paths.LOCK):
        lock.parent.mkdir(parents=True, exist_ok=True)
    progress(seed)
    with (root / paths.LOCK).open("w") as outer, (seed / paths.LOCK).open("w") as inner:
        for file in (outer, inner):
            fcntl.flock(file, fcntl.LOCK_EX)
        (run,) = watch.find_runs(repo)
    assert run.cells()[:3] == ["seed 3", RUNNING, "2/10"]


@proc
def test_doctor_finds_what_watch_calls_dead(repo: Repository) -> None:
    """The record of a trial whose search was killed, in a clone below runs/search."""
    root = Path(repo.root_dir)
    clone = root / paths.RUNS / "search/s/s-0001/clone"
    clone.mkdir(parents=True)
    for place in ("run", "standalone/run"):
        record = root / queue_tasks.FOLDER / place / "12ab/12ab.run"
        record.parent.mkdir(parents=True)
        info = {"name": "s-0001", "status": 2, "root_dir": str(clone), "dvc_dir": ".dvc"}
        record.write_text(json.dumps(info), encoding="utf-8")
    assert [run.state for run in watch.find_runs(repo)] == [DEAD]
    (finding,) = queue_tasks.findings(repo)
    assert finding.problem == "s-0001: trial of a search that was killed (`make search` continues it)"
    subprocess.run(["sh", "-c", finding.fix], cwd=root, check=True)
    assert list(watch.find_runs(repo)) == []
    assert list(queue_tasks.findings(repo)) == []


@pytest.mark.parametrize(("lock", "name"), [(paths.LOCK, "work tree"), (search.LOCK, "search")])
def test_a_lock_tells_what_is_at_work_here(repo: Repository, lock: Path, name: str) -> None:
    place = Path(repo.root_dir) / lock
    place.parent.mkdir(parents=True)
    progress(Path(repo.root_dir))
    with place.open("w") as file:
        assert list(watch.find_runs(repo)) == []  # what it left, and nobody is at work
        fcntl.flock(file, fcntl.LOCK_EX)
        (run,) = watch.find_runs(repo)
    assert (run.name, run.state) == (name, RUNNING)
    if name == "work tree":
        assert run.cells() == ["work tree", "running", "2/10", "98.00 %", "8:00"]


@proc
def test_experiments_at_work_dead_starting_and_queued(repo: Repository) -> None:
    alive, dead = repo.task("alive"), repo.task("dead")
    repo.task("over", status=6)
    progress(alive)
    progress(dead)
    (Path(repo.root_dir) / queue_tasks.FOLDER / "celery/broker").mkdir(parents=True)
    repo.celery_queue.active = [Entry("alive", "alive"), Entry("fresh", "fresh")]
    repo.celery_queue.queued = [Entry("later", "later")]
    (repo.task("torn").parent / "run/torn/torn.run").write_text('{"name": "to', encoding="utf-8")
    with subprocess.Popen(["sleep", "600"], cwd=alive) as process:
        try:
            states = {run.name: (run.state, run.epoch) for run in watch.find_runs(repo)}
            assert states == {"alive": (RUNNING, 2), "dead": (DEAD, 2), "fresh": (DEAD, None), "later": (WAITING, None)}
            worker = Path(repo.root_dir) / queue_tasks.FOLDER / "celery/dvc-exp-worker-1.json"
            with subprocess.Popen(["sh", "-c", "sleep 600; :", "queue-worker"]) as other:
                worker.write_text(json.dumps({"pid": other.pid}), encoding="utf-8")
                states = {run.name: (run.state, run.epoch) for run in watch.find_runs(repo)}
                assert states["fresh"] == (STARTING, None)
                assert states["later"] == (QUEUED, None)
                other.kill()
        finally:
            process.kill()


def test_dead_is_only_what_stays_so(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([[Run("a", DEAD), Run("b", DEAD)], [Run("b", DEAD), Run("c", DEAD)]])
    monkeypatch.setattr(watch, "find_runs", lambda repo: next(looks))
    monkeypatch.setattr(watch, "ENDING_SECONDS", 0.0)
    assert watch.settled(repo) == [Run("b", DEAD), Run("c", RUNNING)]


def test_a_progress_file_that_cannot_be_read_is_no_error(repo: Repository) -> None:
    root = Path(repo.root_dir)
    assert watch.with_progress("a", RUNNING, root) == Run("a", RUNNING)
    for content in ("", "[]", '{"epoch": "x"}'):
        progress(root)
        (root / paths.PROGRESS).write_text(content, encoding="utf-8")
        assert watch.with_progress("a", RUNNING, root) == Run("a", RUNNING)
    progress(root, time=time.time() - 10**6)  # far behind its pace
    assert watch.with_progress("a", RUNNING, root).seconds_left == 0


def test_a_regression_shows_its_r2(repo: Repository) -> None:
    root = Path(repo.root_dir)
    progress(root, validation_accuracy=None, validation_r2=0.75)
    run = watch.with_progress("a", RUNNING, root)
    assert run.cells()[3] == "R2 0.7500"
    assert "validation R2 0.7500" in watch.log_line(run)


@proc
@pytest.mark.soak
def test_real_experiments_live_in_dvc_and_on_a_terminal(tmp_path: Path) -> None:
    """A temporary and a queued experiment: `dvc exp show` has their epochs while they run; watch draws, and ends."""
    project: Project = search_toy.started(tmp_path / "project")
    gate = tmp_path / "gate"  # while it is there, the run waits after its first epoch
    gate.touch()
    project.environment["TOY_GATE"] = str(gate)
    dvc = [sys.executable, "-m", "dvc"]
    project.run(*dvc, "exp", "run", "--queue", "-n", "later", "-S", "optimizers.adam.lr=0.02")
    reader, writer = os.openpty()
    with (tmp_path / "log").open("w") as log:
        options: dict[str, Any] = {"cwd": project.path, "env": project.environment, "stderr": log}
        temporary = subprocess.Popen(
            [*dvc, "exp", "run", "--temp", "-n", "now", "-S", "optimizers.adam.lr=0.03", "train"], stdout=log, **options
        )
        deadline = time.monotonic() + 600
        while not list((project.path / queue_tasks.FOLDER).glob("standalone/tmp*/runs/progress.json")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        drawing = subprocess.Popen([sys.executable, "-m", "review.watch"], stdout=writer, **options)
        os.close(writer)
        shown = json.loads(project.run(*dvc, "exp", "show", "--json"))
        (now,) = [each for each in shown[1]["experiments"] if each["name"] == "now"]
        assert now["executor"]["state"] == "running"
        metrics = now["revs"][0]["data"]["metrics"]["metrics/train.json"]["data"]
        assert metrics["unfinished"] == "epoch 1 of 3"
        content = b""
        while chunk := read(reader):
            content += chunk
            if content.count(b"now ") == 2:
                gate.unlink(missing_ok=True)
        assert drawing.wait() == 0
        assert temporary.wait() == 0
    text = content.decode()
    assert re.search(r"now +running +1/3 +\d\d\.\d\d % +\d:\d\d", text)
    assert re.search("later +queued, no worker +- +- +-", text)
    assert "\x1b[3F\x1b[J" in text  # drawn again
    assert "1 queued, but no worker: `dvc queue start` starts one\r\n" in text


def read(descriptor: int) -> bytes:
    """What a terminal shows; nothing once all programs on it have ended."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""
