"""A clone whose pipeline the tests run and disturb, and the checks that tell whether its results are the same."""

import hashlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import yaml

from tests.clones import Clone

STAGES = ("download", "preprocess", "train", "evaluate")
PROC = Path("/proc/self/stat").exists()  # lists the processes of a stage; without it, only dvc or both are killed
VICTIMS = ("stage", "dvc", "both") if PROC else ("dvc", "both")


class Run:
    """`dvc repro` as a process group of its own; its output is read line by line."""

    def __init__(self, clone: Clone, limit_bytes: int | None, *arguments: str) -> None:
        command = [sys.executable, "-m", "dvc", "repro", *arguments]
        if limit_bytes is not None:  # of a file; ulimit counts in blocks of 512 bytes
            command = ["sh", "-c", f'ulimit -f {limit_bytes // 512} && exec "$@"', "sh", *command]
        self.process = subprocess.Popen(
            command,
            cwd=clone.path,
            env=clone.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.seen: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                self.lines.put(line)
        self.lines.put(None)

    def line(self, timeout_seconds: float | None) -> str | None:
        """The next line of its output; None at the end. Raises queue.Empty after the timeout."""
        line = self.lines.get(timeout=timeout_seconds)
        if line is not None:
            self.seen.append(line)
        return line

    @staticmethod
    def stage_of(line: str) -> str | None:
        """The stage in STAGES that starts with this line; None for other lines."""
        found = re.match(r"Running stage '(\w+)'", line)
        return found[1] if found and found[1] in STAGES else None

    def wait(self) -> int:
        """Read the output to its end; returns the exit status."""
        while self.line(None) is not None:
            pass
        return self.process.wait()

    def output(self) -> str:
        """All lines read so far."""
        return "".join(self.seen)

    def kill(self, victim: str) -> str:
        """Send SIGKILL to the stage (with its children), to dvc, or to both; returns which one it was.

        Between two stages, there is no process of a stage: then it is dvc.
        """
        if victim == "both":
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return victim
        if victim == "stage" and (processes := descendants(self.process.pid)):
            for process in processes:
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    os.kill(process, signal.SIGKILL)
            self.wait()
            return victim
        self.process.kill()  # the stage runs until it notices
        self.process.wait()
        return "dvc"

    def end(self) -> None:
        """End whatever is left of the group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def descendants(process: int) -> list[int]:
    """The children of a process, and their children."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            parent = int((folder / "stat").read_text(errors="replace").rpartition(") ")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found = children.get(process, [])
    for child in found:  # the loop also visits the appended ones
        found.extend(children.get(child, []))
    return found


def kill_tree(process: int) -> None:
    """Send SIGKILL to a process and all its descendants."""
    for number in [process, *descendants(process)]:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def is_running(process: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        os.kill(process, 0)
        return not PROC or Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(") ")[2][0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    """Wait until a condition is true. Fails after this number of seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Lab:
    """A clone, and the digests of the results of an undisturbed run."""

    REPAIR = (sys.executable, "-m", "integrity.repair")  # as `make repro` does before it runs dvc

    def __init__(self, clone: Clone) -> None:
        self.clone = clone
        self.runs: list[Run] = []
        self.digests: dict[str, str] = {}
        self.seconds: dict[str, float] = {}  # per stage, set by `measure`
        self.limit_bytes: int | None = None  # the largest file that a run may write

    def start(self, *arguments: str) -> Run:
        self.runs.append(run := Run(self.clone, self.limit_bytes, *arguments))
        return run

    def measure(self) -> None:
        """Run all stages undisturbed, and record the seconds that each takes."""
        self.forget()
        run = self.start()
        began: dict[str, float] = {}
        while (line := run.line(None)) is not None:
            if stage := run.stage_of(line):
                began[stage] = time.monotonic()
        assert run.process.wait() == 0, run.output()
        assert tuple(began) == STAGES
        ends = [*list(began.values())[1:], time.monotonic()]
        self.seconds = {stage: end - start for (stage, start), end in zip(began.items(), ends, strict=True)}

    def end_all(self) -> None:
        for run in self.runs:
            run.end()
        self.runs.clear()

    def doctor(self) -> str:
        """The output of `make doctor`."""
        return self.clone.run(sys.executable, "-m", "integrity.doctor", check=False)

    def digest(self) -> dict[str, str]:
        """SHA-256 of dvc.lock and of every output. metrics/environment is not an output: the run cache lacks it."""
        path = self.clone.path
        files = [path / "dvc.lock", *sorted((path / "data").rglob("*")), *sorted((path / "metrics").rglob("*"))]
        files = [file for file in files if file.parent.name != "environment"]
        return {
            str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
            if file.is_file()
            and file.name != ".gitignore"
            and file.suffix != ".tmp"  # a kill leaves these; integrity.repair removes them
        }

    def locked(self) -> list[str]:
        """The stages in STAGES that dvc.lock records."""
        path = self.clone.path / "dvc.lock"
        done = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"] if path.exists() else []
        return [stage for stage in done if stage in STAGES]

    def forget(self) -> None:
        """Delete all results, as after `git clone` of a repository without any."""
        (self.clone.path / "dvc.lock").unlink(missing_ok=True)
        for name in ("data/raw", "data/processed", "data/model", "metrics", "runs", ".dvc/cache", ".dvc/tmp"):
            shutil.rmtree(self.clone.path / name, ignore_errors=True)
        (self.clone.path / "data/predictions.csv").unlink(missing_ok=True)
