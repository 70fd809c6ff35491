"""Train one set of parameters as an experiment of DVC, up to the stage train: the test set is not read.

Each run has its own clone in runs/search, which shares DVC's cache. So the work tree does not change, however many runs
work at once and whatever is killed. A killed run leaves its checkpoint in its clone, and continues from it. The
experiment is recorded in the user's repository, like those of `dvc exp run`.
"""

import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from integrity import git, queue_tasks, rebuild, revisions
from integrity.lock_files import LOCK
from stages.common import children, files, paths
from stages.common.errors import UserError
from stages.common.paths import UNFINISHED

Rows = list[dict[str, float]]  # one per epoch, as in metrics/plots/training.csv
STAGE = "train"
RUNNING = 2  # dvc.repo.experiments.executor.base.TaskStatus
CLONE = "clone"
LOG = "log.txt"  # what DVC and the stage printed
ORPHAN_SECONDS = 60  # a stage whose search was killed ends within seconds, after a checkpoint
POLL_SECONDS = 0.2
LONGEST_REASON = 200  # characters


class EndedEarlyError(Exception):
    """Raised by `on_epochs` to end a run before its last epoch."""


class Result(NamedTuple):
    """The result of a run. metrics: metrics/train.json; None if it failed. reason: why it failed."""

    metrics: dict[str, Any] | None
    rows: Rows
    reason: str = ""


class Place(NamedTuple):
    """Where the runs of a search belong. root: the user's repository. folder: of the search. inputs: data of train."""

    root: Path
    commit: str
    cache: str
    folder: Path
    inputs: list[str]

    def run(
        self, name: str, parameters: dict[str, Any], on_epochs: Callable[[Rows], None], group: children.Group
    ) -> Result:
        """Train, or read the results that an experiment of this name has recorded.

        on_epochs: called with all rows so far after each epoch, and at the end; it may raise EndedEarlyError, which
        ends the run. Raises UserError if no run is possible here.
        """
        if (result := self._recorded(name)) is None:
            clone = self._clone(name)
            with self._shown(name, clone):
                reason = self._train(name, parameters, clone, on_epochs, group)
            if not reason:
                self._fetch(name, clone)
            result = self._recorded(name) or Result(None, [], reason or "DVC has recorded no experiment")
        on_epochs(result.rows)
        return result

    def recorded(
        self, name: str, parameters: dict[str, Any], on_epochs: Callable[[Rows], None], group: children.Group
    ) -> Result:
        """As `run`, but nothing is trained."""
        return self._recorded(name) or Result(None, [], "not trained yet")

    def forget(self, name: str) -> None:
        """Delete the clone of a run that has ended."""
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def _recorded(self, name: str) -> Result | None:
        """The results of the experiment of this name in the user's repository; None if there is none."""
        if (ref := _ref(self.root, name)) is None:
            return None
        measured, curves = (
            git.file(self.root, ref, str(path)) for path in (paths.TRAIN_METRICS, paths.TRAINING_CURVES)
        )
        if measured is None or curves is None:
            return None
        metrics = revisions.parse_json(measured, f"{name}: {paths.TRAIN_METRICS}")
        return None if UNFINISHED in metrics else Result(metrics, _rows(curves))

    def _clone(self, name: str) -> Path:
        """A checkout of the commit, with the checkpoints that a killed run of this name has left."""
        place, checkpoints, scratch = self.folder / name, self.folder / name / "runs", self.folder / name / "scratch"
        deadline = time.monotonic() + ORPHAN_SECONDS
        while place.is_dir() and queue_tasks.has_process(place) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        old = place / CLONE / git.prefix(self.root) / paths.RUNS
        if old.is_dir():
            rebuild.delete(checkpoints)
            old.rename(checkpoints)
        rebuild.delete(place / CLONE)
        rebuild.delete(scratch)
        scratch.mkdir(parents=True)
        clone = git.clone(self.root, self.commit, place / CLONE)
        for line in git.run(self.root, "config", "--local", "--list", "-z").decode(errors="replace").split("\0"):
            key, _, value = line.partition("\n")
            if key.startswith("user."):
                git.run(clone, "config", key, value)
        files.write_bytes(clone / LOCK, (self.root / LOCK).read_bytes())
        rebuild.isolated(clone, scratch, self.cache)
        if checkpoints.is_dir():
            checkpoints.rename(clone / paths.RUNS)
        return clone

    @contextmanager
    def _shown(self, name: str, clone: Path) -> Iterator[None]:
        """Show a run in `dvc exp show`, VS Code and `make watch`, with DVC's own record of a temporary experiment."""
        info = {"git_url": f"file://{git.top(clone)}", "baseline_rev": self.commit, "location": "tempdir", "name": name}
        info |= {"root_dir": str(git.top(clone)), "dvc_dir": f"{git.prefix(clone)}.dvc"}
        number = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()  # instead of a commit's hash
        places = [self.root / queue_tasks.FOLDER / kind / number for kind in ("run", "standalone/run")]
        try:
            for place in places:
                files.write_text(place / f"{number}.run", json.dumps({**info, "status": RUNNING}))
            yield
        finally:
            for place in places:
                shutil.rmtree(place, ignore_errors=True)
            (self.root / paths.EPOCH_SIGNAL).unlink(missing_ok=True)

    def _train(
        self,
        name: str,
        parameters: dict[str, Any],
        clone: Path,
        on_epochs: Callable[[Rows], None],
        group: children.Group,
    ) -> str:
        """Run the stage in its clone; returns why it failed, or an empty string."""
        scratch = self.folder / name / "scratch"
        environment = {key: value for key, value in rebuild.dvc_environment().items() if not key.startswith("DVC_")}
        environment |= {"DVC_SITE_CACHE_DIR": str(scratch / "site-cache"), "TMPDIR": str(scratch / "tmp")}
        settings = [word for key, value in parameters.items() for word in ("-S", f"{key}={json.dumps(value)}")]
        epochs, output = 0, []

        def on_line(line: str) -> None:
            nonlocal epochs
            output.append(line)
            log.write(line)
            log.flush()
            with suppress(OSError, ValueError):  # DVC has removed the files, and the stage has not written them yet
                rows = _rows((clone / paths.TRAINING_CURVES).read_bytes())
                if len(rows) > epochs and _is_live(clone):
                    epochs = len(rows)
                    signal = json.dumps({"pid": os.getpid(), "step": epochs})
                    files.write_text(self.root / paths.EPOCH_SIGNAL, signal)
                    on_epochs(rows)

        dvc = [sys.executable, "-m", "dvc"]
        with (self.folder / name / LOG).open("a", encoding="utf-8") as log:
            done = group.run([*dvc, "checkout", "--quiet", *self.inputs], clone, environment, capture=True)
            if done.returncode:
                raise UserError(f"dvc checkout: {_last_line(done.stderr) or 'failed'}")
            command = ["sh", "-c", 'exec "$@" 2>&1', "sh", *dvc, "exp", "run", "--single-item", "--name", name]
            status = group.run([*command, *settings, STAGE], clone, environment, on_line=on_line).returncode
        return _reason(output) if status else ""

    def _fetch(self, name: str, clone: Path) -> None:
        """Bring the experiment into the user's repository, if there is one. Raises UserError if Git cannot."""
        if (ref := _ref(clone, name)) is not None:
            options = ["--quiet", "--no-tags", "--no-auto-maintenance", "--no-write-fetch-head"]
            git.run(self.root, "fetch", *options, str(clone), f"+{ref}:{ref}")


def _ref(root: Path, name: str) -> str | None:
    """The reference of an experiment; None if there is none of this name."""
    refs = os.fsdecode(git.run(root, "for-each-ref", "--format=%(refname)", "refs/exps")).splitlines()
    return next((ref for ref in refs if (match := revisions.EXPERIMENT.fullmatch(ref)) and match[3] == name), None)


def _is_live(clone: Path) -> bool:
    """Whether the curves in the clone belong to this run, not to the commit."""
    return UNFINISHED in json.loads((clone / paths.TRAIN_METRICS).read_bytes())


def _rows(content: bytes) -> Rows:
    """The rows of metrics/plots/training.csv. Raises ValueError."""
    table = pd.read_csv(io.BytesIO(content))
    return [{str(key): float(value) for key, value in row.items()} for row in table.to_dict("records")]


def _reason(lines: list[str]) -> str:
    """The error message of a run: the first one in its output, which is the stage's and not DVC's."""
    errors = [line.strip() for line in lines if line.lower().startswith("error: ")]
    return (errors[0].partition(": ")[2] if errors else _last_line("".join(lines)) or "no reason given")[
        :LONGEST_REASON
    ]


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:LONGEST_REASON]
