"""A lock file that lets only one process of a kind work in this folder at a time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.common import locks
from stages.common.errors import UserError

ATTEMPTS, POLL_SECONDS = 3, 0.1  # `make watch` holds the lock for a moment


@contextmanager
def only_one(lock: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file. The system releases it when the process ends, however it ends.

    Raises UserError with the text `refusal` if another process holds it. Does nothing on a file system without locks.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        for attempts_left in reversed(range(ATTEMPTS)):
            if locks.try_lock(file.fileno()):
                break
            if not attempts_left:
                raise UserError(refusal)
            time.sleep(POLL_SECONDS)
        yield
