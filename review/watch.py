"""The runs that are at work or wait, here and in DVC's experiments: `python -m review.watch`, or `make watch`.

A row per run: epoch, validation accuracy of that epoch, time left at the pace so far. On a terminal the table is drawn
again as it changes; elsewhere a line is printed for each change. Ends when nothing runs any more, or after one table
with --once. Reads only.
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
from review import search
from stages.common import errors, paths
from stages.common.errors import printable

WORK_TREE = "work tree"
RUNNING, STARTING, QUEUED, WAITING, DEAD = "running", "starting", "queued", "queued, no worker", "no process"
AT_WORK = (RUNNING, STARTING, QUEUED)
SUCCESS = 3  # from this status on, an experiment is over: dvc.repo.experiments.executor.base.TaskStatus
POLL_SECONDS = 1.0
ENDING_SECONDS = 3.0  # an experiment has no process for a moment while DVC sets it up, or collects its results
COLUMNS = ("run", "state", "epoch", "validation", "left")
NAME = 40  # letters of a name


class Run(NamedTuple):
    """One run. epoch, epochs, accuracy, seconds_left: None where that is not known yet."""

    name: str
    state: str
    epoch: int | None = None
    epochs: int | None = None
    accuracy: float | None = None
    seconds_left: float | None = None

    def cells(self) -> list[str]:
        """One text per column."""
        return [
            self.name if len(self.name) <= NAME else f"{self.name[: NAME - 1]}…",
            self.state,
            "-" if self.epoch is None else f"{self.epoch}/{self.epochs}",
            "-" if self.accuracy is None else f"{self.accuracy:.2%}",
            "-" if self.seconds_left is None else duration(self.seconds_left),
        ]


def main() -> None:
    """Print the table, or draw it until nothing runs."""
    parser = argparse.ArgumentParser(prog="python -m review.watch", description="The runs that are at work or wait.")
    parser.add_argument("--once", action="store_true", help="print the table once")
    once, terminal = parser.parse_args().once, sys.stdout.isatty()
    drawn, before = 0, dict[str, str]()
    with revisions.repository(writes=True) as repo:  # the queue is not in the temporary folder of a read-only one
        while True:
            runs, finished = settled(repo), over(repo)
            ends = once or not any(run.state in AT_WORK for run in runs)
            if terminal or once:
                lines = table(runs, finished)
                width = shutil.get_terminal_size().columns
                shown = [line[: width - 1] for line in lines] if terminal else lines
                print(f"\x1b[{drawn}F\x1b[J" * bool(drawn) + "\n".join(map(printable, shown)), flush=True)
                drawn = len(shown)
            else:
                before = print_changes(runs, before)
            if ends:
                break
            time.sleep(POLL_SECONDS)
    if not once:
        print(printable(last_line(runs)))


def print_changes(runs: Sequence[Run], before: dict[str, str]) -> dict[str, str]:
    """Print a line for each run that changed, but for its time left; returns what is known of all of them."""
    now = {run.name: f"{run.state} {run.epoch}" for run in runs}
    for run in runs:
        if now[run.name] != before.get(run.name):
            print(printable(line(run)), flush=True)
    for name in before:
        if name not in now:
            print(printable(f"{name}: ended"), flush=True)
    return now


def line(run: Run) -> str:
    """A run in a line of a log."""
    name, state, epoch, accuracy, left = run.cells()
    return f"{name}: {state}" + (f", epoch {epoch}, validation accuracy {accuracy}, {left} left" if run.epoch else "")


def table(runs: Sequence[Run], finished: dict[str, int]) -> list[str]:
    """The lines of the table, names to the left and numbers to the right; finished: how many ended, by state."""
    rows = [COLUMNS, *(run.cells() for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    sides = [str.ljust, str.ljust, str.rjust, str.rjust, str.rjust]
    lines = [
        "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip()
        for row in rows
    ]
    counts = ", ".join(f"{count} {state}" for state, count in finished.items() if count)
    return [
        *(lines if runs else ["nothing runs"]),
        *([f"tasks of the queue that are over: {counts}"] if counts else []),
    ]


def last_line(runs: Sequence[Run]) -> str:
    """What is left to do once nothing runs."""
    states = [run.state for run in runs]
    if DEAD in states:
        return f"{states.count(DEAD)} without a process: `make doctor` says what to do"
    if WAITING in states:
        return f"{states.count(WAITING)} queued, and no worker: `dvc queue start` runs them"
    return "nothing runs any more"


def settled(repo: Any) -> list[Run]:
    """As `running`, but dead is only what stays so for a while."""
    runs = list(running(repo))
    if dead := {run.name for run in runs if run.state == DEAD}:
        time.sleep(ENDING_SECONDS)
        runs = list(running(repo))
    return [run._replace(state=RUNNING) if run.state == DEAD and run.name not in dead else run for run in runs]


def running(repo: Any) -> Iterator[Run]:
    """The run in the work tree, then DVC's experiments: at work, dead, queued."""
    root = Path(repo.root_dir)
    if is_locked(root / paths.LOCK):
        yield described(WORK_TREE, RUNNING, root)
    seen = set()
    for path in sorted((root / queue_tasks.FOLDER / "run").glob("*/*.run")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            info = json.loads(path.read_bytes())
            folder = Path(info["root_dir"])
            if info["status"] < SUCCESS and folder.is_dir():
                seen.add(path.stem)
                state = RUNNING if queue_tasks.has_process(folder) else DEAD
                yield described(str(info["name"] or path.stem[:7]), state, folder / Path(info["dvc_dir"]).parent)
    if is_locked(root / search.LOCK):
        yield Run("search", RUNNING)  # between two trials none of them runs
    if (root / queue_tasks.FOLDER / "celery/broker").is_dir():
        queue = repo.experiments.celery_queue
        worker = queue_tasks.worker_is_running(root)
        for entry in queue.iter_active():
            if entry.stash_rev not in seen:
                yield Run(entry.name or entry.stash_rev[:7], STARTING if worker else DEAD)
        for entry in queue.iter_queued():
            yield Run(entry.name or entry.stash_rev[:7], QUEUED if worker else WAITING)


def over(repo: Any) -> dict[str, int]:
    """How many tasks of the queue have ended, by what became of them."""
    if not (Path(repo.root_dir) / queue_tasks.FOLDER / "celery/broker").is_dir():
        return {}
    from dvc.exceptions import DvcException

    try:
        results = [done.result is not None for done in repo.experiments.celery_queue.iter_done()]
    except DvcException:  # the record of one of them is gone
        return {}
    return {"finished": results.count(True), "failed": results.count(False)}


def described(name: str, state: str, folder: Path) -> Run:
    """A run whose stage train works in `folder`, as its runs/progress.json describes it."""
    try:
        progress = json.loads((folder / paths.PROGRESS).read_bytes())
        epoch, epochs = int(progress["epoch"]), int(progress["epochs"])
        since = max(time.time() - progress["time"], 0)
        left = max((epochs - epoch) * progress["seconds_per_epoch"] - since, 0)
        return Run(name, state, epoch, epochs, progress.get("validation_accuracy"), left if state == RUNNING else None)
    except (OSError, ValueError, KeyError, TypeError):
        return Run(name, state)


def is_locked(path: Path) -> bool:
    """Whether another program, such as a stage, holds this lock. Takes it for an instant."""
    try:
        with path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:  # nothing has ever run here, or a file system without locks
        return False


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


if __name__ == "__main__":
    errors.run_command(main)
