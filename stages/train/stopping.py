"""Signals that ask the program to stop. Training notes them, and stops where it can write a checkpoint."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from stages.common.errors import SIGNALS, Stopped

T = TypeVar("T")


class StopSignal:
    """The signal that asked this program to stop, if any."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._waiting = False

    def __call__(self) -> int | None:
        """The number of the signal; None if there was none."""
        return self._number

    def note(self, number: int) -> None:
        """Note a signal. Python calls this in the main thread, between any two instructions."""
        self._number = number
        if self._waiting:
            raise Stopped(number)

    def wait(self, call: Callable[[], T]) -> T | None:
        """Call a function that may wait for a long time. Returns None if a signal has come before, or interrupts it."""
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
    """Within the block, SIGTERM, Ctrl-C and a closed terminal (SIGHUP) do not end the program, but are noted.

    Only the first signal is: a second one has its usual effect, for a user who does not want to wait.
    """
    stop = StopSignal()
    previous: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        restore()
        stop.note(number)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP, and a script's `&` SIGINT
            previous[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
