"""Is anything here damaged? `python -m stages.doctor`, or `make doctor`: names it, and the command that mends it.

DVC trusts its cache and the times of files: a bit that a disk has flipped goes unnoticed, into the work tree and to
colleagues. Here every cached object and every output is hashed again. Not a stage; changes nothing. Exit status: 0, all
is well; 1, something is damaged; 2, it could not be told.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stages import command, mend, params, paths, revisions
from stages.errors import UserError
from stages.revisions import Lock, LockedFile

HEX = set("0123456789abcdef")
PIPELINE = "dvc.yaml"


class Finding(NamedTuple):
    """What is wrong, and the command that mends it."""

    what: str
    mend: str


def main() -> int:
    """Look at everything, print what is found; returns the exit status."""
    command.no_arguments()
    with revisions.repository() as repo:
        root = Path(repo.root_dir)
        findings, lock = files(root)
        damaged, objects = cache(repo)
        findings += [Finding(f"{path}: not the bytes of its name", mend) for path, mend in mends(repo, damaged, lock)]
        outputs = 0
        for out in [out for stage in lock.stages.values() for out in stage.outs]:
            outputs += 1
            findings += output(repo, out)
        findings += list(leftovers(root))
    for finding in findings:
        print(f"{finding.what}\n    mend: {finding.mend}")
    print(f"{objects} objects in the cache and {outputs} outputs hashed: {len(findings) or 'nothing'} to mend")
    return 1 if findings else 0


def files(root: Path) -> tuple[list[Finding], Lock]:
    """What is wrong with the files that DVC and the stages are told by, and dvc.lock (empty if it cannot be read)."""
    found, read = [], {}
    for name in (paths.PARAMS.as_posix(), PIPELINE):
        try:
            read[name] = params.load(root / name)
        except UserError as error:
            found.append(Finding(one(error, root), f"git checkout HEAD -- {name}"))
    mend_lock = f"git checkout HEAD -- {revisions.LOCK}"
    try:
        content = (root / revisions.LOCK).read_bytes()
        lock = revisions.parse_lock(content, revisions.LOCK)
        if not lock.stages:
            raise UserError(f"{revisions.LOCK}: names no stages: cut off?")
    except FileNotFoundError:
        return [*found, Finding(f"{revisions.LOCK}: missing", mend_lock)], Lock()
    except UserError as error:
        return [*found, Finding(one(error, root), mend_lock)], Lock()
    # Cut off within a number it can still be read.
    lacking = [name for name in read.get(PIPELINE, {}).get("stages", {}) if name not in lock.stages]
    if lacking:
        what = f"{revisions.LOCK}: lacks {', '.join(lacking)}: cut off, or never run"
        found.append(Finding(what, f"{mend_lock}, or dvc repro"))
    return found, lock


def one(error: UserError, root: Path) -> str:
    """An error as one line, with paths as they are seen from the repository."""
    return revisions.one_line(error).replace(f"{root}/", "")


def cache(repo: Any) -> tuple[list[Path], int]:
    """The objects of the local cache that are not the bytes of their names, and how many there are."""
    damaged, count = [], 0
    folder = Path(repo.cache.local.path)
    for path in sorted(folder.glob("[0-9a-f][0-9a-f]/*")):
        digest = path.parent.name + path.name.removesuffix(".dir")
        if len(digest) != 32 or not set(digest) <= HEX:
            continue  # a copy that DVC has not finished; it writes it anew
        count += 1
        if md5(path) != digest:
            damaged.append(path)
    return damaged, count


def md5(path: Path) -> str:
    """DVC's digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def mends(repo: Any, damaged: list[Path], lock: Lock) -> Iterator[tuple[str, str]]:
    """Each damaged object with the command that brings it back: from the work tree if it is good there, or a remote."""
    root = Path(repo.root_dir)
    for path in damaged:
        shown = path.relative_to(root) if path.is_relative_to(root) else path
        remove = f"rm -f {shlex.quote(str(shown))}"
        digest = path.parent.name + path.name
        owner = next((out for stage in lock.stages.values() for out in stage.outs if holds(repo, out, digest)), None)
        if owner is None:
            yield str(shown), remove  # of an older run: the next one that needs it makes it or fetches it
        elif good(repo, owner):
            yield str(shown), f"{remove} && dvc commit --force {shlex.quote(owner.path)}"
        else:
            stage = next(name for name, locked in lock.stages.items() if owner in locked.outs)
            yield (
                str(shown),
                f"{remove} && dvc pull {shlex.quote(owner.path)} || dvc repro --force --no-run-cache {stage}",
            )


def listing(repo: Any, out: LockedFile) -> list[dict[str, str]] | None:
    """Of an output that is a folder: its files, {"relpath", "md5"}, as the cache has them; None if it has not."""
    path = Path(repo.cache.local.oid_to_path(out.md5))
    try:
        content = path.read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != str(out.md5).removesuffix(".dir"):
            return None
        entries: list[dict[str, str]] = json.loads(content)
        return entries
    except (OSError, ValueError):
        return None


def holds(repo: Any, out: LockedFile, digest: str) -> bool:
    """Whether an object belongs to an output."""
    if out.md5 == digest:
        return True
    if not str(out.md5).endswith(".dir"):
        return False
    return digest in {entry["md5"] for entry in listing(repo, out) or []}


def good(repo: Any, out: LockedFile) -> bool:
    """Whether the work tree has the bytes that dvc.lock names."""
    place = Path(repo.root_dir) / out.path
    if not str(out.md5).endswith(".dir"):
        return place.is_file() and md5(place) == out.md5
    entries = listing(repo, out)
    return bool(entries) and all(
        (place / entry["relpath"]).is_file() and md5(place / entry["relpath"]) == entry["md5"]
        for entry in entries or []
    )


def output(repo: Any, out: LockedFile) -> list[Finding]:
    """What is wrong with an output in the work tree."""
    place = Path(repo.root_dir) / out.path
    if not place.exists():
        return [Finding(f"{out.path}: missing", f"dvc checkout {shlex.quote(out.path)} || dvc repro")]
    if str(out.md5).endswith(".dir") and listing(repo, out) is None:
        return []  # the cache has no list to compare with: if it is damaged that is found above
    if good(repo, out):
        return []
    what = f"{out.path}: not the bytes that {revisions.LOCK} names: damaged, or changed by hand"
    if tracked(repo, out.path):
        return [Finding(what, f"git checkout HEAD -- {shlex.quote(out.path)}, or dvc repro")]
    # Removed first: DVC goes by a file's time and size, and would take a flipped bit for what it wrote.
    return [Finding(what, f"rm -rf {shlex.quote(out.path)} && dvc checkout {shlex.quote(out.path)} || dvc repro")]


def tracked(repo: Any, path: str) -> bool:
    """Whether Git has a file."""
    return not repo.scm.is_ignored(str(Path(repo.root_dir) / path))


def leftovers(root: Path) -> Iterator[Finding]:
    """What a killed program left and nobody reads."""
    for path in mend.unfinished(root):
        shown = path.relative_to(root)
        what = f"{shown}: a file that was being written when its program was killed"
        yield Finding(what, f"rm -f {shlex.quote(str(shown))}")
    for path in sorted((root / paths.RESUME).rglob("*.unreadable")):
        shown = path.relative_to(root)
        yield Finding(f"{shown}: a checkpoint that was set aside", f"rm -f {shlex.quote(str(shown))}")
    for path in mend.unfinished_entries(root):
        what = f"{path.relative_to(root)}: an entry of the run cache that a killed dvc had not finished"
        yield Finding(f"{what}; the next may fail", "python -m stages.mend")
    locks = root / mend.RWLOCK
    if locks.is_file() and (reason := mend.abandoned(locks)):
        yield Finding(f"{mend.RWLOCK}: {reason}; dvc may refuse to run", "rm -f .dvc/tmp/rwlock")


if __name__ == "__main__":
    command.run(main)
