"""A signal that tells a program to stop: noted while it works, and obeyed where it can stop without a loss."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from stages.common.errors import SIGNALS, Stopped

T = TypeVar("T")


class StopSignal:
    """The signal that told this program to stop, once one has come."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._waiting = False

    def __call__(self) -> int | None:
        """The signal's number; None if none has come."""
        return self._number

    def note(self, number: int) -> None:
        """A signal has come. Called in the main thread, between any two of its instructions."""
        self._number = number
        if self._waiting:
            raise Stopped(number)

    def wait(self, call: Callable[[], T]) -> T | None:
        """Call something that may take long and can be given up; None if a signal has come, before or meanwhile."""
        try:
            try:
                self._waiting = True
                return call() if self._number is None else None
            finally:
                self._waiting = False
        except Stopped:
            return None


@contextmanager
def handle_stop_signals() -> Iterator[StopSignal]:
    """Within the block SIGTERM, Ctrl-C and a closed terminal (SIGHUP) do not end the program, but are noted.

    Only the first: the next one does what it always does, for a person who does not want to wait.
    """
    stop = StopSignal()
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        restore()
        stop.note(number)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP, and a script's `&` SIGINT
            before[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
