"""Running stages again and comparing what they give with what is on record: for integrity.verify and
review.pull_request.

Three things are compared for each output: the file that Git keeps, the MD5 that dvc.lock names, and the bytes that a
run here gave. DVC compares the last two alone, and believes its own notes on what it hashed before; here bytes are
hashed.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from integrity import git, revisions
from integrity.revisions import Lock, LockedFile
from stages.common import children, paths
from stages.common.errors import UserError

PIPELINE = "dvc.yaml"
RUNNING = re.compile(r"Running stage '([^']+)'")  # DVC prints it for a stage that it neither skips nor finds in a cache


class Output(NamedTuple):
    """An output of a stage: three MD5s that should be the same."""

    stage: str
    path: str
    committed: str | None  # of the file that Git keeps; None: it keeps none
    locked: str | None  # that the committed dvc.lock names
    rebuilt: str | None  # of the bytes that a run here gave; None: it was not run here

    def problem(self) -> str:
        """What is wrong; empty if nothing is."""
        committed, locked, rebuilt = self.committed, self.locked, self.rebuilt
        if committed and committed == rebuilt and locked not in (None, committed):
            return f"{revisions.LOCK} differs from the committed and the rebuilt file"
        found = []
        if not locked:
            found.append(f"missing in {revisions.LOCK}")
        elif rebuilt and rebuilt != locked:
            found.append("rebuilt differs")
        if committed and locked and committed != locked:
            found.append(f"committed file differs from {revisions.LOCK}")
        elif committed and not locked and committed != rebuilt:
            found.append("committed file differs from the rebuilt one")
        return "; ".join(found)


class Input(NamedTuple):
    """Something that a stage reads, which is not what the committed dvc.lock says that it read."""

    stage: str
    name: str  # a path, `params.yaml: key`, or `command`
    problem: str


def project() -> Path:
    """The root of the DVC repository that the current folder is in, which is in Git too. Raises UserError."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        root = Path(Repo.find_root())
    except NotDvcRepoError:
        raise UserError(f"{Path.cwd()} is in no DVC repository: run this in the project's folder") from None
    git.top(root)
    return root


def lock(content: bytes | None, name: str) -> Lock:
    """A dvc.lock with something in it. Raises UserError, also if it names an output twice.

    name: whose it is, for messages.
    """
    found = revisions.parse_lock(content or b"", f"{name}: {revisions.LOCK}") if content else Lock()
    if not found.stages:
        raise UserError(f"{name}: {revisions.LOCK} has no stages; `dvc repro`, and commit what it writes")
    for stage in found.stages.values():
        names = [out.path for out in stage.outs]
        if len(set(names)) < len(names):
            twice = next(path for path in names if names.count(path) > 1)
            raise UserError(f"{name}: {revisions.LOCK} names {twice} twice; `dvc repro`, and commit what it writes")
    return found


def pipeline(repo: Any) -> dict[str, Any]:
    """The stages of dvc.yaml in the root that run something, by name, as DVC has them.

    Raises UserError if it cannot be read.
    """
    from dvc.exceptions import DvcException

    try:
        return {stage.addressing: stage for stage in repo.index.stages if stage.cmd and stage.path_in_repo == PIPELINE}
    except DvcException as error:
        raise UserError(f"dvc.yaml: {revisions.one_line(error)}") from None


def idle(names: Sequence[str], stages: dict[str, Any]) -> str:
    """Why stages do not run, which are not in dvc.yaml, or frozen there; empty if all of them do."""
    reasons = [
        f"{name} is frozen" if name in stages else f"{name} is not in dvc.yaml"
        for name in names
        if name not in stages or stages[name].frozen
    ]
    return "; ".join(reasons)


def dvc_environment() -> dict[str, str]:
    """The environment of a `dvc` that runs stages: `python` is this one, and what they print is there at once."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**git.environment(), "PATH": path, "PYTHONUNBUFFERED": "1"}


def environment(scratch: Path) -> dict[str, str]:
    """As `dvc_environment`, and compiled code that lies beside the sources, and may be of others, is not read.

    scratch: an empty folder, deleted later, for compiled code.
    """
    return {**dvc_environment(), "PYTHONPYCACHEPREFIX": str(scratch / "pycache")}


def delete(place: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it, if it is there."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def isolated(clone: Path, scratch: Path, cache: str) -> dict[str, str]:
    """Make a project in a clone one that DVC runs with this cache and nothing else of the user's; its environment.

    scratch: a folder for temporary files, which is deleted with the clone.
    """
    delete(clone / paths.RUNS)  # a committed checkpoint would be taken for the state of a killed run
    config = clone / ".dvc" / "config.local"
    config.write_text(f"[cache]\n    dir = {json.dumps(cache)}\n", encoding="utf-8")  # whatever a user set
    kept = {name: value for name, value in environment(scratch).items() if not name.startswith("DVC_")}
    kept.pop("PYTHONPATH", None)  # the clone's own code
    temporary = scratch / "tmp"
    temporary.mkdir()
    # torch leaves an empty folder for its compiler in TMPDIR
    return {**kept, "DVC_SITE_CACHE_DIR": str(scratch / "site-cache"), "TMPDIR": str(temporary)}


def repro(folder: Path, options: Sequence[str], environment: dict[str, str]) -> list[str]:
    """`dvc repro` in a project, shown; returns the stages that ran. Raises UserError if one fails."""
    ran: list[str] = []

    def show(line: str) -> None:
        print(line, end="", flush=True)
        ran.extend(RUNNING.findall(line))

    command = [sys.executable, "-m", "dvc", "repro", *options]
    if children.run(command, folder, environment, each_line=show).returncode:
        raise UserError("`dvc repro` failed; what it says is above")
    return list(dict.fromkeys(ran))


def md5(content: bytes) -> str:
    """The MD5 of a file's content, which is what DVC goes by."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def digest(root: Path, path: str) -> str | None:
    """The MD5 of a file or a folder, as dvc.lock names it, from the bytes that are there; None if there is nothing."""
    from dvc.fs import localfs
    from dvc.ignore import DvcIgnoreFilter
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import HashFileDB

    if not (root / path).exists():
        return None
    store = HashFileDB(localfs, str(root / ".dvc"))  # nothing is stored, and no hash of before is believed
    ignored = DvcIgnoreFilter(localfs, str(root))
    _, _, found = build(store, str(root / path), localfs, "md5", dry_run=True, ignore=ignored)
    return str(found.hash_info.value)


def outputs(root: Path, commit: str, committed: Lock, made: Lock, folder: Path, ran: Sequence[str]) -> list[Output]:
    """Every output of every stage in the order of the pipeline.

    root, commit: where Git keeps the files, and its dvc.lock, `committed`. made: dvc.lock as the run wrote it; its
    stages and outputs are those of dvc.yaml. folder: where the stages that `ran` have written.
    """
    rows = []
    for name, stage in made.stages.items():
        recorded = _by_path(committed.stages[name].outs) if name in committed.stages else {}
        for out in stage.outs:
            content = git.file(root, commit, out.path)
            kept = md5(content) if content is not None else None
            rebuilt = digest(folder, out.path) if name in ran else None
            rows.append(Output(name, out.path, kept, recorded.get(out.path), rebuilt))
    return rows


def undeclared(root: Path, commit: str, made: Lock) -> list[str]:
    """The files below metrics/ that Git keeps and no stage writes: they would be read as results.

    made: as for `outputs`.
    """
    wrote = [out.path for stage in made.stages.values() for out in stage.outs]
    seeds = git.file(root, commit, revisions.SEEDS_LOCK)
    for stage in revisions.parse_lock(seeds, revisions.SEEDS_LOCK).stages.values() if seeds else []:
        wrote += [out.path for out in stage.outs if md5(git.file(root, commit, out.path) or b"") == out.md5]
    listed = git.run(root, "ls-tree", "-r", "-z", "--name-only", commit, "--", paths.TEST_METRICS.parent.as_posix())
    return [
        path
        for path in os.fsdecode(listed).split("\0")[:-1]
        if not any(path == out or path.startswith(f"{out}/") for out in [*wrote, paths.ENVIRONMENT.as_posix()])
        and Path(path).name != ".gitignore"  # DVC's own
    ]


def inputs(committed: Lock, made: Lock) -> list[Input]:
    """What the committed dvc.lock was not made from: code, parameters, commands and files, by the dvc.lock of a run.

    A stage that the committed one does not name is left out: each of its outputs is missing there.
    """
    rows = []
    wrote = {out.path: (name, out.md5) for name, stage in committed.stages.items() for out in stage.outs}
    for name, stage in made.stages.items():
        recorded = committed.stages.get(name)
        if recorded is None:
            continue
        if recorded.cmd != stage.cmd:
            rows.append(Input(name, "command", f"other than in {revisions.LOCK}"))
        before, now = _by_path(recorded.deps), _by_path(stage.deps)
        for path in dict.fromkeys([*before, *now]):
            if path not in before:
                rows.append(Input(name, path, f"missing in {revisions.LOCK}"))
            elif path not in now:
                rows.append(Input(name, path, f"in {revisions.LOCK}, and not in dvc.yaml"))
            elif path in wrote:
                source, md5 = wrote[path]
                if before[path] != md5:
                    rows.append(Input(name, path, f"{revisions.LOCK} says that {source} wrote other bytes"))
            elif before[path] != now[path]:
                rows.append(Input(name, path, f"other than in {revisions.LOCK}"))
        for file in dict.fromkeys([*recorded.params, *stage.params]):
            old, new = (revisions.flatten(side.params.get(file, {}), revisions.LOCK) for side in (recorded, stage))
            changed = [key for key in old if key in new and old[key] != new[key]]
            keys = [*changed, *(key for key in [*old, *new] if (key in old) != (key in new))]
            rows += [Input(name, f"{file}: {key}", f"other than in {revisions.LOCK}") for key in keys]
    for name, stage in committed.stages.items():
        known = _by_path(made.stages[name].outs) if name in made.stages else {}
        rows += [
            Input(name, out.path, f"in {revisions.LOCK}, and not in dvc.yaml")
            for out in stage.outs
            if out.path not in known
        ]
    return rows


def _by_path(files: Sequence[LockedFile]) -> dict[str, str | None]:
    return {file.path: file.md5 for file in files}
