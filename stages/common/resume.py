"""Keep the state of a killed run, so that the next run of the same work resumes from it.

The state is in runs/resume/KEY. `dvc exp run --temp` and `dvc queue` run in a copy of the repository below
.dvc/tmp/exps. DVC deletes the copy if the run fails, so their state is in runs/resume of the repository itself.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stages.common import locks, paths

UNUSED_SECONDS = 7 * 24 * 3600  # state that is older is deleted
MAX_BYTES = 10_000_000_000  # of all runs that are not running; the oldest are deleted first
WAIT_SECONDS = 10.0  # for another run to end: a killed one needs up to a second to notice, and then writes a checkpoint
POLL_SECONDS = 0.1
EXPERIMENTS = (".dvc", "tmp", "exps")
LOCK = "lock"


def root() -> Path:
    """The folder of all state: runs/resume; in a temporary experiment, that of the repository it belongs to."""
    return (_repository() or Path()) / paths.RESUME


def in_experiment() -> bool:
    """Whether this program runs in the folder of a temporary experiment."""
    return _repository() is not None


def _repository() -> Path | None:
    """The repository of the temporary experiment in whose folder this program runs; None: not in an experiment."""
    for folder in Path.cwd().parents:
        if folder.parts[-len(EXPERIMENTS) :] == EXPERIMENTS:
            return folder.parents[len(EXPERIMENTS) - 1]
    return None


@contextmanager
def claimed(key: str) -> Iterator[Path]:
    """The folder of a run's state. Within the block, no other run gets it, and nothing deletes it.

    key: a digest of everything that determines the result. If another run with this key is still running after
    WAIT_SECONDS, this one prints that, and gets the folder KEY-2: it starts from the beginning, or resumes from there.
    """
    prune()
    folder, lock = _claim(key)
    _held.add(lock)
    try:
        yield folder
    finally:
        if lock in _held:  # not in a forked child
            _held.remove(lock)
            os.close(lock)
            prune()


def prune() -> None:
    """Delete the state of runs that are not running: older than a week, then the oldest beyond MAX_BYTES."""
    total, now = 0, time.time()
    for changed, size, folder in sorted(_contents(), reverse=True):  # the newest first
        total += size
        if now - changed > UNUSED_SECONDS or total > MAX_BYTES or not size:
            with suppress(OSError):  # another process has deleted it
                lock = _lock(folder)
                if lock is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(lock)
    with suppress(OSError):  # not empty, or missing
        root().rmdir()


def _contents() -> Iterator[tuple[float, int, Path]]:
    """Modification time and size in bytes of each folder that no run holds."""
    for folder in root().glob("*"):
        with suppress(OSError):
            lock = _lock(folder)
            if lock is not None:
                os.close(lock)
                facts = [path.stat() for path in folder.rglob("*") if path.name != LOCK]
                changed = max((fact.st_mtime for fact in facts), default=0.0)
                yield changed, sum(fact.st_size for fact in facts), folder


def _claim(key: str) -> tuple[Path, int]:
    """The first of KEY, KEY-2, … that no other run holds, and the descriptor of its lock."""
    first, deadline = root() / key, time.monotonic() + WAIT_SECONDS
    while (lock := _lock(first, create=True)) is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    folder, number = first, 1
    while lock is None:
        number += 1
        folder = first.with_name(f"{key}-{number}")
        lock = _lock(folder, create=True)
    if folder != first:
        print(
            f"another run of the same code, parameters and data is running: it keeps its checkpoints in {first}, "
            f"this one in {folder}",
            flush=True,
        )
    return folder, lock


def _lock(folder: Path, create: bool = False) -> int | None:
    """Lock a folder. Returns the descriptor that holds the lock until it is closed; None if another process holds it.

    Raises FileNotFoundError if the folder is missing, unless `create`.
    """
    while True:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # deleted between the two lines
            if create:
                continue
            raise
        try:
            locked = locks.try_lock(descriptor)  # train warns if there are no locks, when it takes its own
            current = locked and _is_at(descriptor, folder / LOCK)
        except OSError:
            os.close(descriptor)
            raise
        if current:
            return descriptor
        os.close(descriptor)
        if not locked:
            return None  # else the folder was deleted before the lock was taken


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


# --- forked children, such as loader workers: their copies would hold the lock after the run was killed

_held: set[int] = set()


def _release() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_release)
