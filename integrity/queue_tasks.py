"""Experiments of `dvc queue` that were killed: DVC 3.67 shows each as Running for ever, and leaves its folder."""

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from integrity import revisions

FOLDER = Path(".dvc/tmp/exps")
T = TypeVar("T")


def findings(repo: Any, finding: Callable[[str, str], T]) -> Iterator[T]:
    """The tasks that nobody works on, and the folders that nobody works in, each with the command that frees it."""
    root = Path(repo.root_dir)
    if not (root / FOLDER).is_dir() or not Path("/proc/self/cwd").exists():
        return  # no experiments; or a system on which nothing tells whether somebody is at work
    if (root / FOLDER / "celery/broker").is_dir():
        with revisions.repository(writes=True) as own:  # the queue is in the temporary folder of DVC itself
            for entry in own.experiments.celery_queue.iter_active():
                process, there = task_process(root, entry.stash_rev)
                if there or (process is None and worker_at_work(root)):
                    continue
                name = shlex.quote(entry.name or entry.stash_rev[:7])
                free = f"dvc queue kill {name}"  # it finds no process, and notes the task as failed
                if process is not None and command_line(process):  # a zombie has none
                    # Another program has the number now, and the signal would go to its whole group.
                    free = f"rm -r {shlex.quote(str(FOLDER / 'run' / entry.stash_rev))} && {free}"
                yield finding(f"experiment {name}: Running in `dvc queue status`, and no process works on it", free)
    for folder in sorted([*(root / FOLDER).glob("tmp*"), *(root / FOLDER).glob("standalone/tmp*")]):
        if folder.is_dir() and not worked_in(folder):
            size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
            shown = folder.relative_to(root)
            what = f"{shown}: left by an experiment that was killed, {size / 1e6:,.1f} MB"
            yield finding(what, f"rm -rf {shlex.quote(str(shown))}")


def task_process(root: Path, stash_rev: str) -> tuple[int | None, bool]:
    """The number of the process that runs a task, if it was started, and whether it is there still."""
    try:
        number = int(json.loads((root / FOLDER / "run" / stash_rev / f"{stash_rev}.json").read_bytes())["pid"])
        return number, stash_rev in command_line(number)
    except (OSError, ValueError, KeyError, TypeError):
        return None, False


def worker_at_work(root: Path) -> bool:
    """Whether a worker of the queue is there: it may be about to start a task."""
    for path in (root / FOLDER / "celery").glob("dvc-exp-worker-*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if "queue-worker" in command_line(int(json.loads(path.read_bytes())["pid"])):
                return True
    return False


def command_line(process: int) -> str:
    """How a process was started, "" if it is gone or a zombie, which nobody has reaped."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def worked_in(folder: Path) -> bool:
    """Whether the working directory of any process is in a folder."""
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # it has ended meanwhile, or belongs to somebody else
            if link.readlink().is_relative_to(folder.resolve()):
                return True
    return False
