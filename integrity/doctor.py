"""Is anything here damaged? `python -m integrity.doctor`, or `make doctor`: names it, and the command that mends it.

DVC trusts its cache and the times of files: a bit that a disk has flipped goes unnoticed, into the work tree and to
colleagues. Here every cached object and every output that dvc.yaml names is hashed again and compared with dvc.lock,
and dvc.lock with dvc.yaml and the code. What dvc.lock cannot tell, since it is forged as well, `make verify` finds. Not
a stage; changes nothing. Exit status: 0, all is well; 1, something is damaged; 2, it could not be told.
"""

import functools
import posixpath
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from integrity import git, objects, pull, queue_tasks, repair, revisions
from integrity.dvc_lock import LOCK, Lock, LockedStage, parse_lock
from integrity.objects import BadObject
from stages.common import digests, errors, params, paths
from stages.common.digests import md5
from stages.common.errors import UserError, one_line

PIPELINE = "dvc.yaml"


class Finding(NamedTuple):
    """What is wrong, and the command that mends it."""

    what: str
    mend: str


@dataclass(frozen=True)
class Output:
    """An output of a stage, or what was added with `dvc add`, as dvc.lock or the .dvc file names it."""

    path: str
    md5: str
    size: int | None
    cached: bool  # by DVC; the others Git keeps
    stage: str


def main() -> int:
    """Look at everything, print what is found; returns the exit status."""
    errors.no_arguments()
    with revisions.repository() as repo:
        findings = [*texts(repo), *links(repo), *strangers(repo)]
        outs = outputs(repo)
        broken, objects_hashed = cache(repo, outs)
        findings += broken
        for out in outs:
            findings += [*output(repo, out), *not_cached(repo, out)]
        findings += inputs(repo)
        findings += leftovers(repo)
        findings += queue_tasks.findings(repo, Finding)
    for finding in dict.fromkeys(findings):
        print(f"{finding.what}\n    mend: {finding.mend}")
    print(f"{objects_hashed} objects in the cache and {len(outs)} outputs hashed: {len(findings) or 'nothing'} to mend")
    return 1 if findings else 0


def texts(repo: Any) -> list[Finding]:
    """What is wrong with the files that DVC and the stages are told by."""
    root, found = Path(repo.root_dir), []
    for name in (paths.PARAMS.as_posix(), PIPELINE, LOCK):
        if (root / name).exists() and not (root / name).is_file():  # DVC would wait for a pipe to be written
            raise UserError(f"{name}: is no file; `rm -r {name} && git checkout HEAD -- {name}`")
    for name in (paths.PARAMS.as_posix(), PIPELINE):
        try:
            params.load(root / name)
        except UserError as error:
            found.append(Finding(one(error, root), restored(root / name, name, str(error))))
    mend_lock = f"git checkout HEAD -- {LOCK}"
    try:
        content = (root / LOCK).read_bytes()
    except FileNotFoundError:
        return [*found, Finding(f"{LOCK}: missing", mend_lock)]
    stages = {} if found else declared(repo)
    return found + [Finding(what, f"{mend_lock}, or dvc repro") for what in lock_faults(content, stages)]


def restored(place: Path, name: str, error: str) -> str:
    """What to do about a text that cannot be read: people write it, so nothing that would discard what they wrote."""
    if not place.exists():
        return f"git checkout HEAD -- {name}"
    line = re.match(r":(\d+):", error.removeprefix(str(place)))
    where = f"line {line[1]}" if line else "it"
    return f"fix {where} by hand (`git diff HEAD -- {name}` shows what changed)"


def declared(repo: Any) -> dict[str, dict[str, Any]]:
    """The stages of dvc.yaml as DVC expands them; none if DVC cannot, which `outputs` says."""
    from dvc.dvcfile import ProjectFile
    from dvc.exceptions import DvcException

    try:
        stages: dict[str, dict[str, Any]] = ProjectFile(repo, str(Path(repo.root_dir, PIPELINE))).resolver.resolve()[
            "stages"
        ]
    except DvcException:
        return {}
    return stages


def lock_faults(content: bytes, stages: dict[str, dict[str, Any]]) -> list[str]:
    """What dvc.lock lacks of that which dvc.yaml declares, wherever it was cut off; a line for each stage.

    A cut within its last number leaves a smaller number, which `output` compares with the file.
    """
    try:
        lock = parse_lock(content, LOCK)
        if not lock.stages:
            raise UserError(f"{LOCK}: names no stages: cut off?")
    except UserError as error:
        return [one_line(error)]
    faults = []
    for name, stage in stages.items():
        lacking = lacks(lock.stages[name], stage) if name in lock.stages else ["the stage"]
        if lacking:
            shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
            faults.append(f"{LOCK}: lacks {shown} of {name}: cut off, or {PIPELINE} has changed since it ran")
    if not faults and not content.endswith(b"\n"):
        faults.append(f"{LOCK}: its last line does not end: cut off")
    return faults


def lacks(locked: LockedStage, stage: dict[str, Any]) -> list[str]:
    """What the entry of a stage in dvc.lock lacks of its declaration in dvc.yaml."""
    lacking = [] if locked.cmd is not None or "cmd" not in stage else ["the command"]
    wanted = {"deps": named(stage.get("deps")), "outs": [path for kind in KINDS for path in named(stage.get(kind))]}
    for kind, there in (("deps", locked.deps), ("outs", locked.outs)):
        whole = {posixpath.normpath(file.path) for file in there if file.md5 is not None and file.size is not None}
        lacking += [path for path in wanted[kind] if path not in whole]
    for entry in stage.get("params") or []:
        for file, keys in entry.items() if isinstance(entry, dict) else [(paths.PARAMS.as_posix(), [entry])]:
            values = locked.params.get(file, {})
            lacking += [key for key in keys or [] if key not in values]
    return lacking


KINDS = ("outs", "metrics", "plots")


def named(entries: Iterable[str | dict[str, Any]] | None) -> list[str]:
    """The paths of a list in dvc.yaml: of strings, or of mappings of one path to its options."""
    return [posixpath.normpath(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries or []]


def one(error: UserError, root: Path) -> str:
    """An error as one line, with paths as they are seen from the repository."""
    return one_line(error).replace(f"{root}/", "")


def outputs(repo: Any) -> list[Output]:
    """The outputs of all stages and .dvc files whose MD5 is known. Raises UserError if DVC cannot read its files."""
    from dvc.exceptions import DvcException

    try:
        found = [out for out in repo.index.outs if out.protocol == "local" and out.hash_info]
    except DvcException:  # dvc.yaml or dvc.lock cannot be read, which `texts` names
        return []
    return [
        Output(
            Path(repo.fs.relpath(out.fs_path, repo.root_dir)).as_posix(),
            str(out.hash_info.value),
            out.meta.size if out.meta else None,
            bool(out.use_cache),
            str(out.stage.addressing),
        )
        for out in found
        if out.hash_info.name == "md5"
    ]


def links(repo: Any) -> Iterator[Finding]:
    """The folders on the way to an output that are links: DVC takes such an output for one outside the repository."""
    root = Path(repo.root_dir)
    ways = {parent for path in declared_outputs(repo) for parent in Path(path).parents if (root / parent).is_symlink()}
    for way in sorted(ways, key=str):
        target = (root / way).resolve()
        what = f"{way}: a link to {target}, where DVC keeps no outputs; to have the data elsewhere, `dvc cache dir`"
        yield Finding(what, f"rm {shlex.quote(str(way))} && mv {shlex.quote(str(target))} {shlex.quote(str(way))}")


def strangers(repo: Any) -> Iterator[Finding]:
    """The stages of dvc.lock that dvc.yaml has not: it leaves them there, and their outputs count as results."""
    content, stages = locked_text(repo), declared(repo)
    try:
        names = parse_lock(content, LOCK).stages.keys() - stages.keys() if stages else set()
    except UserError:  # which `texts` names
        return
    lines = content.decode().splitlines()
    starts = [number for number, line in enumerate(lines, 1) if re.match(" {0,2}[^ ]", line)] + [len(lines) + 1]
    for name in sorted(names):
        found = [number for number in starts[:-1] if lines[number - 1].strip(" :'\"") == name]
        mend = f"rm {LOCK} && dvc repro"
        if len(found) == 1:
            last = next(number for number in starts if number > found[0]) - 1
            mend = f"sed -i.bak '{found[0]},{last}d' {LOCK} && rm {LOCK}.bak"
        yield Finding(f"{LOCK}: {name}: a stage that {PIPELINE} has not; renamed or removed, or added by hand", mend)
        return  # the lines of the next have other numbers then


def locked_text(repo: Any) -> bytes:
    try:
        return Path(repo.root_dir, LOCK).read_bytes()
    except OSError:
        return b""


def declared_outputs(repo: Any) -> set[str]:
    return {path for stage in declared(repo).values() for kind in KINDS for path in named(stage.get(kind))}


def cache(repo: Any, outs: list[Output]) -> tuple[list[Finding], int]:
    """What is wrong with the objects and the runs in the local cache, and how many objects there are."""
    findings, count = [], 0
    folder = Path(repo.cache.local.path)
    owners = {oid: (out, path) for out in outs for oid, path in belonging(repo, out).items()}
    for path in sorted(folder.glob("[0-9a-f][0-9a-f]/*")):
        name = path.parent.name + path.name
        if not objects.MD5.fullmatch(name.removesuffix(".dir")):
            continue  # a copy that DVC has not finished; it writes it anew
        count += 1
        if file_md5(path) != name.removesuffix(".dir"):
            findings.append(
                Finding(f"{shown(repo, path)}: not the bytes of its name", remedy(repo, path, owners.get(name)))
            )
        elif name.endswith(".dir"):
            try:
                objects.folder_list(path.read_bytes(), name)
            except BadObject as error:
                what = f"{shown(repo, path)}: a list of a folder's files that is not safe to check out: {error}"
                findings.append(Finding(what, f"rm -f {quoted(repo, path)}"))
    for path, fault in pull.unusable_runs(Path(repo.stage_cache.cache_dir)):
        alone = len(list(path.parent.iterdir())) == 1  # DVC fails on a folder without an entry
        what = f"{shown(repo, path)}: an entry of the run cache that must not be used: {fault}"
        findings.append(Finding(what, f"rm -rf {quoted(repo, path.parent if alone else path)}"))
    return findings, count


def shown(repo: Any, path: Path) -> str:
    """A path as it is seen from the repository, if it is in it."""
    root = Path(repo.root_dir)
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def quoted(repo: Any, path: Path) -> str:
    return shlex.quote(shown(repo, path))


def belonging(repo: Any, out: Output) -> dict[str, Path]:
    """The objects of an output, each with the file of the work tree that it should be."""
    place = Path(repo.root_dir, out.path)
    if not out.md5.endswith(".dir"):
        return {out.md5: place}
    found = {out.md5: place}
    with suppress(OSError, BadObject):
        content = Path(repo.cache.local.oid_to_path(out.md5)).read_bytes()
        found |= {file.md5: place / file.path for file in objects.folder_list(content, out.md5)}
    return found


def remedy(repo: Any, path: Path, owner: tuple[Output, Path] | None) -> str:
    """The command that brings a damaged object back: from the work tree if it is right there, a remote, or by a run."""
    remove = f"rm -f {quoted(repo, path)}"
    if owner is None:
        return remove  # of an older run: the next one that needs it makes it or fetches it
    out, place = owner
    if file_md5(place) == path.parent.name + path.name:
        return f"{remove} && {copied(repo, place, path)}"
    again = f"{remove} && python -m integrity.pull {shlex.quote(out.path)}"
    return f"{again} || dvc repro --force --no-run-cache {shlex.quote(out.stage)}"


def copied(repo: Any, place: Path, path: Path) -> str:
    """The command that puts a file of the work tree into the cache."""
    return f"cp {quoted(repo, place)} {quoted(repo, path)} && chmod 444 {quoted(repo, path)}"


def not_cached(repo: Any, out: Output) -> Iterator[Finding]:
    """The objects of an output that are right in the work tree alone: no `dvc push` and no checkout has them."""
    found = digests.digest(Path(repo.root_dir), out.path)
    if not out.cached or found is None or found.md5 != out.md5:
        return
    for oid, file in belonging(repo, out).items():
        path = Path(repo.cache.local.oid_to_path(oid))
        if not path.exists():
            mend = f"mkdir -p {quoted(repo, path.parent)} && {copied(repo, file, path)}"
            if oid.endswith(".dir"):
                mend = f"dvc commit --force {shlex.quote(out.stage)}"
            yield Finding(f"{shown(repo, file)}: not in the cache, so that no `dvc push` or checkout has it", mend)


def output(repo: Any, out: Output) -> Iterator[Finding]:
    """What is wrong with an output in the work tree."""
    place, path = Path(repo.root_dir, out.path), shlex.quote(out.path)
    # Removed first: DVC goes by a file's time and size, and would take a flipped bit for what it wrote.
    again = f"rm -rf {path} && python -m integrity.pull {path} || dvc repro"
    what = f"{out.path}: not the bytes that {LOCK} names: damaged, or changed by hand"
    if place.exists() and not (place.is_file() or place.is_dir()):
        what = f"{out.path}: is no file, but a device, pipe or socket"
    found = digests.digest(Path(repo.root_dir), out.path)
    if found is not None and found.md5 == out.md5:
        if place.is_symlink() and not place.resolve().is_relative_to(Path(repo.cache.local.path).resolve()):
            target = place.resolve()
            instead = f"rm {path} && cp -R {shlex.quote(str(target))} {path}"
            yield Finding(f"{out.path}: a link to {target}, which neither Git nor DVC keeps", instead)
        if out.size not in (None, found.size):
            what = f"{LOCK}: {out.path} has {found.size:,} bytes there, and not {out.size:,}: "
            what += "cut off, or changed by hand"
            yield Finding(what, sized_anew(repo, out.stage))
    elif out.cached:
        yield Finding(what if place.exists() else f"{out.path}: missing", again)
    elif committed(repo, out.path) == out.md5:
        yield Finding(what if place.exists() else f"{out.path}: missing", f"git checkout HEAD -- {path}")
    else:  # the change is in HEAD as well
        yield Finding(f"{what}, in HEAD as well", f"rm -f {path} && dvc repro {shlex.quote(out.stage)}")


def sized_anew(repo: Any, stage: str) -> str:
    """The command that gets a size in dvc.lock right."""
    if committed(repo, LOCK) == md5(locked_text(repo)):
        return f"dvc repro --force --single-item {shlex.quote(stage)}"
    return f"git checkout HEAD -- {LOCK}, or dvc repro --force --single-item {shlex.quote(stage)}"


def file_md5(place: Path) -> str:
    """DVC's name for a file; "" for what is none: a pipe would keep its reader waiting."""
    return digests.file_md5(place) if place.is_file() else ""


def committed(repo: Any, path: str) -> str | None:
    """The MD5 of a file in HEAD; None if HEAD has none."""
    try:
        return md5(git.run(Path(repo.root_dir), "show", f"HEAD:./{path}"))
    except UserError:
        return None


def inputs(repo: Any) -> Iterator[Finding]:
    """What the stages would read now that is not what dvc.lock says they have read: code, parameters, other outputs."""
    root = Path(repo.root_dir)
    try:
        lock = parse_lock(locked_text(repo), LOCK)
    except UserError:
        lock = Lock()
    stages = declared(repo)

    now = functools.cache(functools.partial(digests.digest, root))
    for reader, dep, writer in lock.contradictions:
        yield Finding(f"{LOCK}: {reader} has read another {dep.path} than {writer} has written", "dvc repro")
    for name, stage in lock.stages.items():
        if stage.cmd is not None and name in stages and stage.cmd != stages[name].get("cmd"):
            yield Finding(f"{name}: ran with another command than {PIPELINE} has", f"dvc repro {shlex.quote(name)}")
        for file in stage.deps:
            place = root / file.path
            found = now(file.path)
            if not file.md5:
                continue
            if found is not None and found.md5 == file.md5:
                if file.size not in (None, found.size):
                    what = f"{LOCK}: {name} has read {file.path} of {file.size:,} bytes, and not of {found.size:,}"
                    yield Finding(what, sized_anew(repo, name))
            elif file.path in lock.writers:
                continue  # which `output` compares
            elif place.exists() and not (place.is_file() or place.is_dir()):
                what = f"{file.path}: is no file, but a device, pipe or socket; {name} reads it"
                yield Finding(what, f"rm {shlex.quote(file.path)} && git checkout HEAD -- {shlex.quote(file.path)}")
            else:
                yield Finding(f"{file.path}: not what {name} ran with: changed since, or {LOCK} was", "dvc repro")
        for key in changed_params(repo, name):
            yield Finding(f"{key}: not what {name} ran with: changed since, or {LOCK} was", "dvc repro")


def changed_params(repo: Any, stage: str) -> list[str]:
    """The parameters that are not those which dvc.lock names for a stage."""
    from dvc.dependency import ParamsDependency
    from dvc.exceptions import DvcException

    try:
        (found,) = repo.stage.collect(stage)
        status = [dep.workspace_status() for dep in found.deps if isinstance(dep, ParamsDependency)]
    except (DvcException, ValueError):  # ValueError: no such stage in dvc.yaml any more
        return []
    return [
        f"{file}: {key}" if isinstance(keys, dict) else file
        for files in status
        for file, keys in files.items()
        for key in (keys if isinstance(keys, dict) else [""])
    ]


def leftovers(repo: Any) -> Iterator[Finding]:
    """What a killed program left and nobody reads."""
    root = Path(repo.root_dir)
    for path in [*repair.unfinished(root), *sorted(Path(repo.cache.local.path).glob("[0-9a-f][0-9a-f]/.*.tmp"))]:
        what = f"{shown(repo, path)}: a file that was being written when its program was killed"
        yield Finding(what, f"rm -f {quoted(repo, path)}")
    for path in sorted((root / paths.RESUME).rglob("*.unreadable")):
        yield Finding(f"{shown(repo, path)}: a checkpoint that was set aside", f"rm -f {quoted(repo, path)}")
    for path in repair.unfinished_entries(Path(repo.stage_cache.cache_dir)):
        what = f"{shown(repo, path)}: an entry of the run cache that a killed dvc had not finished"
        yield Finding(f"{what}; the next may fail", "python -m integrity.repair")
    locks = root / repair.RWLOCK
    if locks.is_file() and (reason := repair.abandoned(locks)):
        yield Finding(f"{repair.RWLOCK}: {reason}; dvc may refuse to run", "rm -f .dvc/tmp/rwlock")


if __name__ == "__main__":
    errors.run_command(main)
