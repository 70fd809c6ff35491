"""How a stage runs as a program: alone, and a mistake that a user can mend ends in one line and a status that is not 0.

A traceback means a bug of ours.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from stages import paths


class UserError(Exception):
    """Something the user can mend. The text says what is wrong, where, and how to mend it."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """The stage was told to stop (SIGTERM, Ctrl-C). The text says what is kept."""

    def __init__(self, signum: int, kept: str) -> None:
        super().__init__(kept)
        self.status = 128 + signum


def run(stage: Callable[[], None], alone: bool = True) -> None:
    """Run a stage as a program: exit 1 with a line on a UserError or an OSError, 128 + the signal if told to stop.

    alone: wait until no other stage is at work in this folder.
    """
    try:
        with _alone() if alone else nullcontext():
            stage()
    except UserError as error:
        sys.exit(f"error: {printable(str(error))}")
    except OSError as error:  # disk full, no permission, not a directory
        place = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {place}{error.strerror or error}")
    except Interrupted as stop:
        print(f"interrupted: {stop}", file=sys.stderr)
        sys.exit(stop.status)
    except KeyboardInterrupt:
        print("interrupted: nothing is kept of this stage; `dvc repro` begins it again", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def printable(text: str) -> str:
    """Without the control characters that a name in a file could send to a terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)


@contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other stage is at work in this folder.

    Killing dvc leaves its stage running, and a new `dvc repro` would write beside it. The lock goes with the process
    that holds it, however that ends.
    """
    paths.RUNS.mkdir(exist_ok=True)
    lock = FileLock(paths.LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("waiting for a stage that is at work in this folder already (left by a dvc that was killed?)", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def told_to_stop() -> Iterator[Callable[[], int | None]]:
    """Within the block SIGTERM and Ctrl-C do not end the program: the function that is given tells which one came.

    Only the first: the next one does what it always does, for whoever does not want to wait.
    """
    came: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def note(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        for each, handler in before.items():
            signal.signal(each, handler)

    for each in (signal.SIGTERM, signal.SIGINT):
        before[each] = signal.signal(each, note)
    try:
        yield lambda: came[0] if came else None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
