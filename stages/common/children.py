"""Running other programs so that none of them outlives the command that started it."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from stages.common import errors

GRACE_SECONDS = 10  # between SIGTERM and SIGKILL: a stage writes a checkpoint meanwhile
POLL_SECONDS = 0.05


class Ended(Exception):  # noqa: N818 - not an error
    """A program was not started, since the group that it belongs to has ended."""


class Group:
    """Programs that end together, run by several threads: leaving the block ends all of them, and no more can start.

    A thread that waits in `run` then goes on as if its program had ended by itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._ended = True
            running = list(self._running)
        _end(running)

    def run(
        self,
        command: Sequence[str | Path],
        folder: Path,
        environment: Mapping[str, str],
        capture: bool = False,
        timeout_seconds: float | None = None,
        each_line: Callable[[str], None] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """As the function `run`. Raises Ended as well."""
        pipe = subprocess.PIPE if capture else None
        process = None
        try:
            with errors.signals_deferred(), self._lock:
                if self._ended:
                    raise Ended
                process = subprocess.Popen(
                    [str(word) for word in command],
                    cwd=folder,
                    # A stage watches the process that is named here: not even SIGKILL lets it go on alone.
                    env={**environment, errors.STARTED_BY: str(os.getpid())},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if each_line else pipe,
                    stderr=pipe,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
                self._running.add(process)
            if each_line and process.stdout:
                for line in process.stdout:
                    each_line(line)
            output, complaints = process.communicate(timeout=timeout_seconds)
        except BaseException:
            if process is not None:
                with process:  # closes its pipes
                    _end([process])
            raise
        finally:
            with self._lock:
                self._running.discard(process)
        return subprocess.CompletedProcess(process.args, process.returncode, output, complaints)


def run(
    command: Sequence[str | Path],
    folder: Path,
    environment: Mapping[str, str],
    capture: bool = False,
    timeout_seconds: float | None = None,
    each_line: Callable[[str], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program in `folder` and wait for it; a status other than 0 is the caller's to judge.

    capture: return what it prints instead of showing it. each_line: is given each line that it prints, with its end, as
    it comes; standard error is shown. Whatever ends the wait (Ctrl-C, SIGTERM, a time limit), the program and all that
    it has started end first. Raises subprocess.TimeoutExpired.
    """
    return Group().run(command, folder, environment, capture, timeout_seconds, each_line)


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """End programs and all that they have started: SIGTERM, then SIGKILL after GRACE_SECONDS or at a second signal."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        while any(map(_lives, processes)) and time.monotonic() < deadline and not errors.second_signal_came():
            time.sleep(POLL_SECONDS)
    finally:
        for process in processes:
            if _lives(process):
                _signal(process, signal.SIGKILL)
        for process in processes:
            process.wait()


def _signal(process: subprocess.Popen[str], signum: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS says so of a group of zombies
        os.killpg(process.pid, signum)


def _lives(process: subprocess.Popen[str]) -> bool:
    """Whether a program, or one that it has started, still runs: dvc ends at once, its stage after a checkpoint."""
    if process.poll() is None:
        return True
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    # In a container without an init process zombies stay: they do not count.
    states = [_group_and_state(folder) for folder in Path("/proc").glob("[0-9]*")]
    return any(group == process.pid and state != "Z" for group, state in states) or not states


def _group_and_state(folder: Path) -> tuple[int, str]:
    try:
        state, _, group = (folder / "stat").read_text(errors="replace").rpartition(") ")[2].split()[:3]
    except (OSError, ValueError):  # it has ended meanwhile
        return 0, "Z"
    return int(group), state
