"""Running other programs so that none of them outlives the command that started it."""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

GRACE_SECONDS = 10  # between SIGTERM and SIGKILL: a stage writes a checkpoint meanwhile


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
    pipe = subprocess.PIPE if capture else None
    with subprocess.Popen(
        [str(word) for word in command],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if each_line else pipe,
        stderr=pipe,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            if each_line and process.stdout:
                for line in process.stdout:
                    each_line(line)
            output, errors = process.communicate(timeout=timeout_seconds)
        except BaseException:
            stop(process)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def stop(process: subprocess.Popen[str]) -> None:
    """End a program that `run` has started, and all that it has started in turn."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(GRACE_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
