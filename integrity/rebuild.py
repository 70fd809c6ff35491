"""Rerun stages and compare the results with the record, for integrity.verify and review.pull_request.

Three things are compared for each output: the file in Git, the MD5 in dvc.lock, and the rebuilt bytes. DVC compares
only the last two, and trusts its record of earlier hashes; this module hashes the bytes.
"""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from integrity import git
from integrity.dvc_lock import Lock, LockedFile, parse_lock
from integrity.lock_files import EXPORT_LOCK, LOCK, SEEDS_LOCK
from stages.common import children, params, paths
from stages.common.digests import md5, path_md5
from stages.common.errors import UserError, one_line

PIPELINE = "dvc.yaml"
RUNNING = re.compile(r"Running stage '([^']+)'")  # printed unless DVC skips the stage or finds it in its cache


class Output(NamedTuple):
    """An output of a stage: three MD5s that should be equal."""

    stage: str
    path: str
    committed: str | None  # of the file in Git; None: Git does not keep it
    locked: str | None  # in the committed dvc.lock
    rebuilt: str | None  # of the rebuilt bytes; None: it was not rebuilt

    def problem(self) -> str:
        """The problem with this output; "" if there is none."""
        committed, locked, rebuilt = self.committed, self.locked, self.rebuilt
        if committed and committed == rebuilt and locked not in (None, committed):
            return f"{LOCK} differs from the committed and the rebuilt file"
        found = []
        if not locked:
            found.append(f"missing in {LOCK}")
        elif rebuilt and rebuilt != locked:
            found.append("rebuilt differs")
        if committed and locked and committed != locked:
            found.append(f"committed file differs from {LOCK}")
        elif committed and not locked and committed != rebuilt:
            found.append("committed file differs from the rebuilt one")
        return "; ".join(found)


class Input(NamedTuple):
    """An input of a stage that differs from the committed dvc.lock."""

    stage: str
    name: str  # a path, `params.yaml: key`, or `command`
    problem: str


def project() -> Path:
    """The root of the DVC and Git repository around the current folder. Raises UserError."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        root = Path(Repo.find_root())
    except NotDvcRepoError:
        raise UserError(f"{Path.cwd()} is in no DVC repository: run this in the project's folder") from None
    git.top(root)
    return root


def lock(content: bytes | None, name: str) -> Lock:
    """Read a dvc.lock. name: whose it is, for messages. Raises UserError, also for duplicate outputs."""
    found = parse_lock(content or b"", f"{name}: {LOCK}") if content else Lock()
    if not found.stages:
        raise UserError(f"{name}: {LOCK} has no stages; `dvc repro`, and commit what it writes")
    for stage in found.stages.values():
        names = [out.path for out in stage.outs]
        if twice := next((path for path in names if names.count(path) > 1), ""):
            raise UserError(f"{name}: {LOCK} lists {twice} twice; `dvc repro`, and commit what it writes")
    return found


def pipeline(repo: Any) -> dict[str, Any]:
    """The stages of the root's dvc.yaml with a command, by name, as DVC objects. Raises UserError."""
    from dvc.exceptions import DvcException

    try:
        return {stage.addressing: stage for stage in repo.index.stages if stage.cmd and stage.path_in_repo == PIPELINE}
    except DvcException as error:
        raise UserError(f"dvc.yaml: {one_line(error)}") from None


def idle(names: Sequence[str], stages: dict[str, Any]) -> str:
    """The stages that would not run, and why: missing in dvc.yaml, or frozen; "" if all would run."""
    reasons = [
        f"{name} is frozen" if name in stages else f"{name} is not in dvc.yaml"
        for name in names
        if name not in stages or stages[name].frozen
    ]
    return "; ".join(reasons)


def dvc_environment() -> dict[str, str]:
    """The environment for a `dvc` that runs stages: this Python, with unbuffered output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**git.environment(), "PATH": path, "PYTHONUNBUFFERED": "1"}


def environment(scratch: Path) -> dict[str, str]:
    """As `dvc_environment`, and Python ignores any __pycache__ beside the sources, which may be forged.

    scratch: an empty folder, deleted later, for compiled code.
    """
    return {**dvc_environment(), "PYTHONPYCACHEPREFIX": str(scratch / "pycache")}


def delete(place: Path) -> None:
    """Delete a file, a link, or a folder with its content, if it exists."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def isolated(clone: Path, scratch: Path, cache: str) -> dict[str, str]:
    """Configure a clone to use this cache and nothing else of the user's; returns the environment for DVC.

    scratch: a folder for temporary files, deleted with the clone.
    """
    delete(clone / paths.RUNS)  # train would resume from a committed checkpoint
    config = clone / ".dvc" / "config.local"  # overrides the user's configuration
    config.write_text(f'[cache]\n    dir = """{cache}"""\n', encoding="utf-8")  # triple: a path may contain a quote
    variables = {name: value for name, value in environment(scratch).items() if not name.startswith("DVC_")}
    variables.pop("PYTHONPATH", None)  # the clone's own code
    temporary = scratch / "tmp"
    temporary.mkdir()
    # torch leaves an empty folder for its compiler in TMPDIR
    return {**variables, "DVC_SITE_CACHE_DIR": str(scratch / "site-cache"), "TMPDIR": str(temporary)}


def repro(folder: Path, options: Sequence[str], environment: dict[str, str]) -> list[str]:
    """Run `dvc repro` and show its output; returns the stages that ran. Raises UserError if one fails."""
    ran: list[str] = []

    def show(line: str) -> None:
        print(line, end="", flush=True)
        ran.extend(RUNNING.findall(line))

    command = [sys.executable, "-m", "dvc", "repro", *options]
    if children.run(command, folder, environment, on_line=show).returncode:
        raise UserError("`dvc repro` failed, see above")
    return list(dict.fromkeys(ran))


def outputs(root: Path, commit: str, committed: Lock, made: Lock, folder: Path, ran: Sequence[str]) -> list[Output]:
    """Every output of every stage, in the order of the pipeline.

    root, commit: the Git repository and the commit, whose dvc.lock is `committed`. made: the dvc.lock that the rerun
    wrote. folder: where the stages in `ran` wrote their outputs.
    """
    rows = []
    for name, stage in made.stages.items():
        recorded = _by_path(committed.stages[name].outs) if name in committed.stages else {}
        for out in stage.outs:
            content = git.file(root, commit, out.path)
            in_git = md5(content) if content is not None else None
            rebuilt = path_md5(folder, out.path) if name in ran else None
            rows.append(Output(name, out.path, in_git, recorded.get(out.path), rebuilt))
    return rows


def undeclared(root: Path, commit: str, made: Lock) -> list[str]:
    """The files of metrics/ in Git that no stage writes, and that would count as results. made: as for `outputs`."""
    wrote = [*made.writers]
    for lock in (SEEDS_LOCK, EXPORT_LOCK):
        content = git.file(root, commit, lock)
        for out in parse_lock(content, lock).outs.values() if content else []:
            wrote += [out.path] * (md5(git.file(root, commit, out.path) or b"") == out.md5)
    listed = git.run(root, "ls-tree", "-r", "-z", "--name-only", commit, "--", paths.TEST_METRICS.parent.as_posix())
    return [
        path
        for path in os.fsdecode(listed).split("\0")[:-1]
        if not any(path == out or path.startswith(f"{out}/") for out in [*wrote, paths.ENVIRONMENT.as_posix()])
        and Path(path).name != ".gitignore"  # DVC's own
    ]


def inputs(committed: Lock, made: Lock) -> list[Input]:
    """The code, parameters, commands and files whose records in the committed dvc.lock differ from those of a rerun.

    Stages that the committed dvc.lock lacks are left out: each of their outputs is reported as missing.
    """
    rows = []
    for name, stage in made.stages.items():
        recorded = committed.stages.get(name)
        if recorded is None:
            continue
        if recorded.cmd != stage.cmd:
            rows.append(Input(name, "command", f"differs from {LOCK}"))
        before, now = _by_path(recorded.deps), _by_path(stage.deps)
        for path in dict.fromkeys([*before, *now]):
            if path not in before:
                rows.append(Input(name, path, f"missing in {LOCK}"))
            elif path not in now:
                rows.append(Input(name, path, f"in {LOCK}, but not in dvc.yaml"))
            elif path in committed.outs:
                if before[path] != committed.outs[path].md5:
                    rows.append(Input(name, path, f"{LOCK} says that {committed.writers[path][0]} wrote other bytes"))
            elif before[path] != now[path]:
                rows.append(Input(name, path, f"differs from {LOCK}"))
        for file in dict.fromkeys([*recorded.params, *stage.params]):
            old, new = (params.flatten(side.params.get(file, {}), LOCK) for side in (recorded, stage))
            changed = [key for key in old if key in new and old[key] != new[key]]
            keys = [*changed, *(key for key in [*old, *new] if (key in old) != (key in new))]
            rows += [Input(name, f"{file}: {key}", f"differs from {LOCK}") for key in keys]
    for name, stage in committed.stages.items():
        known = _by_path(made.stages[name].outs) if name in made.stages else {}
        rows += [
            Input(name, out.path, f"in {LOCK}, but not in dvc.yaml") for out in stage.outs if out.path not in known
        ]
    return rows


def _by_path(files: Sequence[LockedFile]) -> dict[str, str | None]:
    return {file.path: file.md5 for file in files}
