"""After a SIGKILL of a worker of `dvc queue`, doctor lists its task and its folder, and the fixes work."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from integrity import queue_tasks
from tests.clones import Clone
from tests.faults.lab import PROC, kill_tree, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.skipif(not PROC, reason="/proc lists the running processes")]
PIPELINE = """
stages:
  wait:
    cmd: sleep ${seconds} && echo done > out.txt
    params: [seconds]
    deps: [in.txt]
    outs: [out.txt]
"""
DEADLINE_SECONDS = 600
NOBODY = 65534


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Clone]:
    """A repository with a stage that sleeps for as many seconds as its parameter says."""
    clone = Clone(tmp_path / "clone")
    clone.environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    clone.path.mkdir()
    clone.run("git", "init", "-q", "-b", "main")
    clone.dvc_as_program("init", "-q")
    clone.dvc_as_program("config", "core.analytics", "false")
    for name, content in (("dvc.yaml", PIPELINE), ("params.yaml", "seconds: 0\n"), ("in.txt", "in\n")):
        (clone.path / name).write_text(content)
    clone.dvc_as_program("repro", "-q")
    clone.commit("run")
    yield clone
    for path in (clone.path / ".dvc/tmp/exps").glob("*/**/*.json"):
        kill_tree(json.loads(path.read_bytes())["pid"])


def start_queue(clone: Clone) -> None:
    """Start a worker of the queue. Its output is no pipe: the worker would keep it open."""
    command = [sys.executable, "-m", "dvc", "queue", "start"]
    subprocess.run(command, cwd=clone.path, env=clone.environment, stdout=subprocess.DEVNULL, check=True)


def doctor(clone: Clone) -> str:
    return clone.run(sys.executable, "-m", "integrity.doctor", check=False)


def test_a_killed_worker(clone: Clone) -> None:
    for name, seconds in (("long", "600"), ("short", "0.1")):
        clone.dvc_as_program("exp", "run", "--queue", "-n", name, "-S", f"seconds={seconds}")
    start_queue(clone)
    folder = clone.path / ".dvc/tmp/exps"

    def asleep() -> bool:
        return any(
            "sleep\x00600" in path.read_text(errors="replace")
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if path.exists() and str(folder) in cwd(path.parent)
        )

    def cwd(process: Path) -> str:
        with suppress(OSError):
            return str((process / "cwd").readlink())
        return ""

    wait_for(asleep, DEADLINE_SECONDS)
    assert "nothing to fix" in doctor(clone)  # while the worker runs

    worker = json.loads((folder / "celery/dvc-exp-worker-1.json").read_bytes())["pid"]
    kill_tree(worker)
    wait_for(lambda: not asleep(), DEADLINE_SECONDS)
    output = doctor(clone)
    assert (
        "experiment long: Running in `dvc queue status`, but without a process\n    fix: dvc queue kill long\n"
        in output
    )
    left = next(folder.glob("tmp*"))
    assert f"{left.relative_to(clone.path)}: left by an experiment that was killed, 0." in output
    assert "short" not in output

    # Another program has the number of the process now: the fix must not end it.
    (info,) = folder.glob("run/*/*.json")
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        info.write_text(json.dumps({**json.loads(info.read_bytes()), "pid": stranger.pid}))
        fixes = [line.removeprefix("    fix: ") for line in doctor(clone).splitlines() if line.startswith("    fix: ")]
        assert f"rm -r {info.parent.relative_to(clone.path)} && dvc queue kill long" in fixes
        for command in fixes:
            clone.run("sh", "-c", command)
        assert stranger.poll() is None
        stranger.kill()
    assert "nothing to fix" in doctor(clone)
    assert "Running" not in clone.dvc_as_program("queue", "status")

    start_queue(clone)
    wait_for(lambda: "Success" in clone.dvc_as_program("queue", "status"), DEADLINE_SECONDS)
    wait_for(lambda: "1 active" not in clone.dvc_as_program("queue", "status"), DEADLINE_SECONDS)
    assert "nothing to fix" in doctor(clone)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_folder_in_which_another_user_may_work() -> None:
    """The system does not show the working directories of other users' processes, such as those of root."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.seteuid(NOBODY)
        try:
            assert queue_tasks.has_process(folder)
            os.seteuid(0)
            os.chown(folder, NOBODY, -1)
            os.seteuid(NOBODY)
            assert not queue_tasks.has_process(folder)
        finally:
            os.seteuid(0)
