"""The running and queued runs, here and in DVC's experiments: `python -m review.watch`, or `make watch`.

One row per run: epoch, validation accuracy or R2 of that epoch, time left at the current pace. A terminal shows the
table, which is updated; any other output gets one line per change. Ends when nothing is running, or with --once after
one table. Reads only.
"""

import argparse
import fcntl
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from integrity import queue_tasks, revisions
from review import formatting, search
from review.formatting import MISSING
from stages.common import errors, paths
from stages.common.errors import printable

WORK_TREE = "work tree"
RUNNING, STARTING, QUEUED, WAITING, DEAD = "running", "starting", "queued", "queued, no worker", "no process"
AT_WORK = (RUNNING, STARTING, QUEUED)
SUCCESS = 3  # an experiment with this status or a higher one has ended: dvc.repo.experiments.executor.base.TaskStatus
NOTHING = "nothing is running"
POLL_SECONDS = 1.0
ENDING_SECONDS = 3.0  # an experiment has no process for a moment while DVC sets it up or collects its results
COLUMNS = ("run", "state", "epoch", "validation", "left")
LONGEST_NAME = 40  # characters


class Run(NamedTuple):
    """One run. Numbers are None if not known yet; accuracy is of a classification, r2 of a regression."""

    name: str
    state: str
    epoch: int | None = None
    epochs: int | None = None
    accuracy: float | None = None
    seconds_left: float | None = None
    r2: float | None = None

    def cells(self) -> list[str]:
        """One text per column."""
        validation = MISSING if self.accuracy is None else formatting.percent(self.accuracy)
        if self.r2 is not None:
            validation = f"R2 {formatting.R2.value(self.r2)}"
        return [
            formatting.short(self.name, LONGEST_NAME),
            self.state,
            MISSING if self.epoch is None else f"{self.epoch}/{self.epochs}",
            validation,
            MISSING if self.seconds_left is None else duration(self.seconds_left),
        ]


def main() -> None:
    """Print the table once, or update it until nothing is running."""
    parser = argparse.ArgumentParser(prog="python -m review.watch", description="The running and queued runs.")
    parser.add_argument("--once", action="store_true", help="print the table once")
    once, terminal = parser.parse_args().once, sys.stdout.isatty()
    lines_on_screen, previous = 0, list[Run]()
    with revisions.repository(writes=True) as repo:  # a read-only one has a temporary folder, without the queue
        while True:
            runs, ended = settled(repo), ended_tasks(repo)
            if terminal or once:
                lines = table(runs, ended)
                if terminal:
                    lines = [line[: shutil.get_terminal_size().columns - 1] for line in lines]
                erase = f"\x1b[{lines_on_screen}F\x1b[J" if lines_on_screen else ""
                print(erase + "\n".join(map(printable, lines)), flush=True)
                lines_on_screen = len(lines)
            else:
                print_changes(runs, previous)
                previous = runs
            if once or not any(run.state in AT_WORK for run in runs):
                break
            time.sleep(POLL_SECONDS)
    if not once and (runs or not terminal):  # on a terminal the table already says that nothing is running
        print(printable(last_line(runs)))


def print_changes(runs: Sequence[Run], previous: Sequence[Run]) -> None:
    """Print one line for each run that started, ended, or changed its state or epoch."""
    before = {run.name: run for run in previous}
    for run in runs:
        old = before.pop(run.name, None)
        if old is None or (old.state, old.epoch) != (run.state, run.epoch):
            print(printable(log_line(run)), flush=True)
    for run in before.values():
        print(printable(f"{run.cells()[0]}: ended"), flush=True)


def log_line(run: Run) -> str:
    """A run in one line of a log."""
    name, state, epoch, validation, left = run.cells()
    details = (f"epoch {epoch}", f"validation accuracy {validation}", f"validation {validation}", f"{left} left")
    known = (run.epoch, run.accuracy, run.r2, run.seconds_left)
    return f"{name}: " + ", ".join(
        [state, *(text for text, value in zip(details, known, strict=True) if value is not None)]
    )


def table(runs: Sequence[Run], ended: dict[str, int]) -> list[str]:
    """The lines of the table. ended: the number of tasks that ended, by result."""
    rows = [COLUMNS, *(run.cells() for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    sides = [str.ljust, str.ljust, str.rjust, str.rjust, str.rjust]
    lines = [
        "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip()
        for row in rows
    ]
    counts = ", ".join(f"{count} {result}" for result, count in ended.items() if count)
    return [
        *(lines if runs else [NOTHING]),
        *([f"tasks of the queue that have ended: {counts}"] if counts else []),
    ]


def last_line(runs: Sequence[Run]) -> str:
    """The last line of the output: what to do about runs that are not at work."""
    states = [run.state for run in runs]
    if DEAD in states:
        return f"{states.count(DEAD)} without a process: `make doctor` prints the command that removes it"
    if WAITING in states:
        return f"{states.count(WAITING)} queued, but no worker: `dvc queue start` starts one"
    return NOTHING


def settled(repo: Any) -> list[Run]:
    """All runs. A run without a process counts as dead only if it has none ENDING_SECONDS later either."""
    runs = list(find_runs(repo))
    if dead := {run.name for run in runs if run.state == DEAD}:
        time.sleep(ENDING_SECONDS)
        runs = list(find_runs(repo))
    return [run._replace(state=RUNNING) if run.state == DEAD and run.name not in dead else run for run in runs]


def find_runs(repo: Any) -> Iterator[Run]:
    """The run in the work tree, then DVC's experiments: running, dead, queued."""
    root = Path(repo.root_dir)
    seeds = [folder for folder in (root / paths.RUNS / "seeds").glob("*") if is_locked(folder / paths.LOCK)]
    yield from (with_progress(f"seed {folder.name}", RUNNING, folder) for folder in seeds)
    if is_locked(root / paths.LOCK) and not seeds:  # a seed holds both locks
        yield with_progress(WORK_TREE, RUNNING, root)
    seen = set()
    for path in sorted((root / queue_tasks.FOLDER / "run").glob("*/*.run")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            info = json.loads(path.read_bytes())
            folder = Path(info["root_dir"])
            if info["status"] < SUCCESS and folder.is_dir():
                seen.add(path.stem)
                state = RUNNING if queue_tasks.has_process(folder) else DEAD
                yield with_progress(str(info["name"] or path.stem[:7]), state, folder / Path(info["dvc_dir"]).parent)
    if is_locked(root / search.LOCK):
        yield Run("search", RUNNING)  # also between two trials
    if (root / queue_tasks.FOLDER / "celery/broker").is_dir():
        queue = repo.experiments.celery_queue
        worker = queue_tasks.worker_is_running(root)
        for entry in queue.iter_active():
            if entry.stash_rev not in seen:
                yield Run(entry.name or entry.stash_rev[:7], STARTING if worker else DEAD)
        for entry in queue.iter_queued():
            yield Run(entry.name or entry.stash_rev[:7], QUEUED if worker else WAITING)


def ended_tasks(repo: Any) -> dict[str, int]:
    """The number of tasks of the queue that have ended, by result."""
    if not (Path(repo.root_dir) / queue_tasks.FOLDER / "celery/broker").is_dir():
        return {}
    from dvc.exceptions import DvcException

    try:
        results = [done.result is not None for done in repo.experiments.celery_queue.iter_done()]
    except DvcException:  # the record of a task is missing
        return {}
    return {"finished": results.count(True), "failed": results.count(False)}


def with_progress(name: str, state: str, folder: Path) -> Run:
    """A run whose stage train works in `folder`, with the progress that its runs/progress.json has."""
    try:
        progress = json.loads((folder / paths.PROGRESS).read_bytes())
        epoch, epochs = int(progress["epoch"]), int(progress["epochs"])
        since = max(time.time() - progress["time"], 0)
        left = max((epochs - epoch) * progress["seconds_per_epoch"] - since, 0)
        accuracy, r2 = (progress.get(f"validation_{name}") for name in ("accuracy", "r2"))
        return Run(name, state, epoch, epochs, accuracy, left if state == RUNNING else None, r2)
    except (OSError, ValueError, KeyError, TypeError):
        return Run(name, state)


def is_locked(path: Path) -> bool:
    """Whether another program, such as a stage, holds this lock. Takes the lock for a moment."""
    try:
        with path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:  # no lock file yet, or a file system without locks
        return False


def duration(seconds: float) -> str:
    """Minutes and seconds, such as 9:05, with hours if needed."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


if __name__ == "__main__":
    errors.run_command(main)
