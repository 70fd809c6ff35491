"""Run other programs so that none of them outlives the command that started it."""

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
    """A program was not started, since its group has ended."""


class Group:
    """Programs that end together, run by several threads. Leaving the block ends all of them, and no more can start.

    A thread that waits in `run` then continues as if its program had ended on its own.
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
        on_line: Callable[[str], None] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in `folder` and wait for it. The caller checks the exit status.

        capture: return its output instead of showing it. on_line: called with each line of its standard output as it
        comes; standard error is shown. Whatever ends the wait (Ctrl-C, SIGTERM, a time limit), the program and all that
        it started end first. Raises subprocess.TimeoutExpired; Ended if the group has ended.
        """
        pipe = subprocess.PIPE if capture else None
        process = None
        try:
            with errors.signals_deferred(), self._lock:
                if self._ended:
                    raise Ended
                process = subprocess.Popen(
                    [str(word) for word in command],
                    cwd=folder,
                    # A stage watches this process, and so ends even if this one is killed by SIGKILL.
                    env={**environment, errors.STARTED_BY: str(os.getpid())},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if on_line else pipe,
                    stderr=pipe,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
                self._running.add(process)
            if on_line and process.stdout:
                for line in process.stdout:
                    on_line(line)
            output, error_output = process.communicate(timeout=timeout_seconds)
        except BaseException:
            if process is not None:
                with process:  # closes its pipes
                    _end([process])
            raise
        finally:
            with self._lock:
                self._running.discard(process)
        return subprocess.CompletedProcess(process.args, process.returncode, output, error_output)


def end_with_the_parent() -> None:
    """In a worker process of multiprocessing: leave the terminal's signals to the parent, and end when it is gone.

    However the parent ended: after its SIGKILL a worker would wait forever, or for seconds.
    """
    import multiprocessing  # which programs that start no workers need not load

    for name in ("SIGINT", "SIGHUP"):  # which a terminal sends to all of its processes
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if parent := multiprocessing.parent_process():

        def watch() -> None:
            parent.join()  # waits for the end of a pipe: neither polls nor comes too late
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


run = Group().run  # for a program of its own: this group never ends


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """End programs and all that they started: SIGTERM, then SIGKILL after GRACE_SECONDS or at a second signal."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        while any(map(_is_alive, processes)) and time.monotonic() < deadline and not errors.second_signal_came():
            time.sleep(POLL_SECONDS)
    finally:
        for process in processes:
            if _is_alive(process):
                _signal(process, signal.SIGKILL)
        for process in processes:
            process.wait()


def _signal(process: subprocess.Popen[str], signum: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # PermissionError: on macOS, for a group of zombies
        os.killpg(process.pid, signum)


def _is_alive(process: subprocess.Popen[str]) -> bool:
    """Whether a program, or one that it started, still runs: dvc ends at once, its stage after a checkpoint."""
    if process.poll() is None:
        return True
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    # In a container without an init process zombies remain; they do not count.
    states = [_group_and_state(folder) for folder in Path("/proc").glob("[0-9]*")]
    return any(group == process.pid and state != "Z" for group, state in states) or not states


def _group_and_state(folder: Path) -> tuple[int, str]:
    try:
        state, _, group = (folder / "stat").read_text(errors="replace").rpartition(") ")[2].split()[:3]
    except (OSError, ValueError):  # the process has ended
        return 0, "Z"
    return int(group), state
