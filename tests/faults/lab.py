"""A clone in which a pipeline is run, killed and starved, and what tells whether it has survived."""

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
PROC = Path("/proc/self/stat").exists()  # where the stage's process is found; elsewhere dvc alone or both are killed
VICTIMS = ("stage", "dvc", "both") if PROC else ("dvc", "both")


class Run:
    """`dvc repro` as a process group of its own, and what it prints, line by line as it comes."""

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
        with self.process.stdout as output:
            for line in output:
                self.lines.put(line)
        self.lines.put(None)

    def line(self, timeout_seconds: float | None) -> str | None:
        """The next line; None when there will be no more. Raises queue.Empty if none has come in time."""
        line = self.lines.get(timeout=timeout_seconds)
        if line is not None:
            self.seen.append(line)
        return line

    @staticmethod
    def stage_of(line: str) -> str | None:
        """The stage, of those in STAGES, that begins with this line."""
        found = re.match(r"Running stage '(\w+)'", line)
        return found[1] if found and found[1] in STAGES else None

    def wait(self) -> int:
        """Read to the end; the exit status."""
        while self.line(None) is not None:
            pass
        return self.process.wait()

    def told(self) -> str:
        """All lines that were read."""
        return "".join(self.seen)

    def kill(self, victim: str) -> str:
        """SIGKILL the stage's process (with its own), dvc, or both; gives who it was.

        It is dvc if no stage's process is there, as between two stages.
        """
        if victim == "both":
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return victim
        if victim == "stage" and (processes := descendants(self.process.pid)):
            for process in processes:
                with suppress(ProcessLookupError):  # its parent may have ended it
                    os.kill(process, signal.SIGKILL)
            self.wait()
            return victim
        self.process.kill()  # the stage goes on until it notices
        self.process.wait()
        return "dvc"

    def end(self) -> None:
        """End whatever is left of the group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def descendants(process: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            parent = int((folder / "stat").read_text(errors="replace").rpartition(") ")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found = children.get(process, [])
    for child in found:  # grows as it goes
        found.extend(children.get(child, []))
    return found


def kill_tree(process: int) -> None:
    """SIGKILL for a process and all below it."""
    for number in [process, *descendants(process)]:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    """Wait until this is true. Fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Lab:
    """The clone, and the digests that an undisturbed run ends in."""

    MEND = (sys.executable, "-m", "integrity.repair")  # what `make repro` runs before dvc

    def __init__(self, clone: Clone) -> None:
        self.clone = clone
        self.runs: list[Run] = []
        self.digests: dict[str, str] = {}
        self.seconds: dict[str, float] = {}  # that a stage takes, once `measure` has run
        self.limit_bytes: int | None = None  # of any file that a run writes

    def start(self, *arguments: str) -> Run:
        self.runs.append(run := Run(self.clone, self.limit_bytes, *arguments))
        return run

    def measure(self) -> None:
        """Run everything undisturbed, and note the seconds of each stage."""
        self.forget()
        run = self.start()
        began: dict[str, float] = {}
        while (line := run.line(None)) is not None:
            if stage := run.stage_of(line):
                began[stage] = time.monotonic()
        assert run.process.wait() == 0, run.told()
        assert tuple(began) == STAGES
        ends = [*list(began.values())[1:], time.monotonic()]
        self.seconds = {stage: end - start for (stage, start), end in zip(began.items(), ends, strict=True)}

    def end_all(self) -> None:
        for run in self.runs:
            run.end()
        self.runs.clear()

    def doctor(self) -> str:
        """What `make doctor` says."""
        return self.clone.run(sys.executable, "-m", "integrity.doctor", check=False)

    def digest(self) -> dict[str, str]:
        """SHA-256 of dvc.lock and of every output; metrics/environment is none: the run cache cannot restore it."""
        path = self.clone.path
        files = [path / "dvc.lock", *sorted((path / "data").rglob("*")), *sorted((path / "metrics").rglob("*"))]
        files = [file for file in files if file.parent.name != "environment"]
        return {
            str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
            if file.is_file() and file.name != ".gitignore" and file.suffix != ".tmp"  # which a kill leaves, for `mend`
        }

    def locked(self) -> list[str]:
        """The stages, of those in STAGES, that dvc.lock names as done."""
        path = self.clone.path / "dvc.lock"
        done = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"] if path.exists() else []
        return [stage for stage in done if stage in STAGES]

    def forget(self) -> None:
        """As after a fresh `git clone` of a repository without results."""
        (self.clone.path / "dvc.lock").unlink(missing_ok=True)
        for name in ("data/raw", "data/processed", "data/model", "metrics", "runs", ".dvc/cache", ".dvc/tmp"):
            shutil.rmtree(self.clone.path / name, ignore_errors=True)
        (self.clone.path / "data/predictions.csv").unlink(missing_ok=True)
