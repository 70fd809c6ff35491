"""Find killed experiments of `dvc queue`: DVC 3.67 lists them as Running forever, and never deletes their folders."""

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from integrity import revisions
from integrity.findings import Finding
from integrity.repair import command_line
from stages.common import paths

FOLDER = Path(".dvc/tmp/exps")


def findings(repo: Any) -> Iterator[Finding]:
    """Report tasks without a process and folders that no process works in."""
    root = Path(repo.root_dir)
    if not (root / FOLDER).is_dir() or not Path("/proc/self/cwd").exists():
        return  # no experiments, or a system that does not list its processes in /proc
    if (root / FOLDER / "celery/broker").is_dir():
        with revisions.repository(writes=True) as dvc_repo:  # the queue is not in the temporary folder of `repo`
            for entry in dvc_repo.experiments.celery_queue.iter_active():
                process, is_running = task_process(root, entry.stash_rev)
                if is_running or (process is None and worker_is_running(root)):
                    continue
                name = shlex.quote(entry.name or entry.stash_rev[:7])
                fix = f"dvc queue kill {name}"  # it finds no process, and records the task as failed
                if process is not None and command_line(process):  # empty for a zombie
                    # Another program has this number now, and the signal would reach its whole group.
                    fix = f"rm -r {shlex.quote(str(FOLDER / 'run' / entry.stash_rev))} && {fix}"
                yield Finding(f"experiment {name}: Running in `dvc queue status`, but without a process", fix)
    for path in sorted((root / FOLDER / "run").glob("*/*.run")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            info = json.loads(path.read_bytes())
            clone, name = Path(info["root_dir"]), str(info["name"])
            if clone.is_relative_to(root / paths.RUNS) and not has_process(clone):  # review/search/experiments.py
                copy = FOLDER / "standalone/run" / path.stem
                fix = f"rm -r {shlex.quote(str(path.parent.relative_to(root)))} {shlex.quote(str(copy))}"
                yield Finding(f"{name}: trial of a search that was killed (`make search` continues it)", fix)
    for folder in sorted([*(root / FOLDER).glob("tmp*"), *(root / FOLDER).glob("standalone/tmp*")]):
        if folder.is_dir() and not has_process(folder):
            size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
            name = str(folder.relative_to(root))
            problem = f"{name}: left by an experiment that was killed, {size / 1e6:,.1f} MB"
            yield Finding(problem, f"rm -rf {shlex.quote(name)}")


def task_process(root: Path, stash_rev: str) -> tuple[int | None, bool]:
    """The process number of a task, if it was started, and whether that process still runs it."""
    try:
        number = int(json.loads((root / FOLDER / "run" / stash_rev / f"{stash_rev}.json").read_bytes())["pid"])
        return number, stash_rev in command_line(number)
    except (OSError, ValueError, KeyError, TypeError):
        return None, False


def worker_is_running(root: Path) -> bool:
    """Whether a worker of the queue runs: it may be about to start a task."""
    for path in (root / FOLDER / "celery").glob("dvc-exp-worker-*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if "queue-worker" in command_line(int(json.loads(path.read_bytes())["pid"])):
                return True
    return False


def has_process(folder: Path) -> bool:
    """Whether a process has its working directory in a folder, or may have: the system hides those of other users."""
    owner = folder.stat().st_uid if folder.is_dir() else None
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended
            try:
                if (process / "cwd").readlink().is_relative_to(folder.resolve()):
                    return True
            except PermissionError:
                if owner != os.geteuid() and process.stat().st_uid == owner:  # the user who works in this folder
                    return True
    return False
