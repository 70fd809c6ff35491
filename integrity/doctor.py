"""Look for damage, and print the command that fixes it: `python -m integrity.doctor`, or `make doctor`.

DVC trusts its cache and the modification times of files: it misses a bit that a disk flipped, and pushes it to
colleagues. The doctor hashes every cached object and every output again, compares them with dvc.lock, and dvc.lock with
dvc.yaml and the code. It changes nothing. If dvc.lock itself was forged, only `make verify` can tell. Exit status: 0,
no damage; 1, something is damaged; 2, an error.
"""

import os
import posixpath
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from integrity import git, objects, pull, queue_tasks, repair, revisions
from integrity.dvc_lock import Lock, LockedStage, parse_lock
from integrity.findings import Finding
from integrity.lock_files import LOCK
from integrity.objects import BadObjectError
from stages.common import errors, params, paths
from stages.common.digests import Digest, digest, file_md5, md5
from stages.common.errors import UserError, one_line
from stages.common.text import listed

PIPELINE = "dvc.yaml"
OUTPUT_KEYS = ("outs", "metrics", "plots")  # of a stage in dvc.yaml
TRACKED = (".dvc", ".gitignore", "data")  # files that a run needs and Git has


@dataclass(frozen=True)
class Output:
    """An output of a stage, `dvc add`, `dvc import` or `dvc import-url`."""

    path: str
    md5: str
    size: int | None
    cached: bool  # kept by DVC; Git keeps the others
    stage: str  # its name, or the .dvc file
    record: str  # the file that records the MD5: a dvc.lock, or the .dvc file
    has_command: bool  # which makes the output; otherwise it is data that `dvc add`, say, recorded
    imported: bool  # from another repository, by `dvc import`

    @property
    def pull(self) -> str:
        """The command that fetches the output; `make pull` leaves an import to DVC."""
        path, stage = shlex.quote(self.path), shlex.quote(self.stage)
        return f"dvc pull {stage}" if self.imported else f"python -m integrity.pull {path}"

    def rerun(self, options: str = "") -> str:
        """The end of a command: what makes the output if nothing could be fetched."""
        return f" || dvc repro {options}{shlex.quote(self.stage)}" if self.has_command else ""


class Clone:
    """The repository under examination."""

    def __init__(self, repo: Any) -> None:
        self.repo = repo
        self.root = Path(repo.root_dir)
        self.digest = cache(self._digest)
        self.unreadable: dict[str, str] = {}  # file that DVC cannot read -> why; `index` fills it

    def _digest(self, path: str) -> Digest | None:
        return digest(self.root, path)

    @cached_property
    def index(self) -> Any:
        """What DVC reads of all dvc.yaml, dvc.lock and .dvc files, without those in `unreadable`."""

        def leave_out(path: str, error: Exception) -> None:
            name = getattr(error, "path", "") or path  # the error may name the dvc.lock beside a dvc.yaml
            self.unreadable[self.show(Path.cwd() / name)] = one_line(error)

        self.repo.stage_collection_error_handler = leave_out
        return self.repo.index

    @cached_property
    def stages(self) -> dict[str, dict[str, Any]]:
        """The stages of dvc.yaml with their templates filled in; empty if DVC cannot read it."""
        from dvc.dvcfile import ProjectFile
        from dvc.exceptions import DvcException

        try:
            return dict(ProjectFile(self.repo, str(self.root / PIPELINE)).resolver.resolve()["stages"])
        except DvcException:  # which `check_records` reports
            return {}

    @cached_property
    def loaded(self) -> dict[str, Any]:
        """The stages of dvc.yaml as DVC has them, by name. Raises DvcException."""
        return {stage.name: stage for stage in self.repo.stage.load_all(PIPELINE)}

    @cached_property
    def lock_content(self) -> bytes:
        """The bytes of dvc.lock; empty if it is missing."""
        return (self.root / LOCK).read_bytes() if (self.root / LOCK).is_file() else b""

    @cached_property
    def lock(self) -> Lock:
        """dvc.lock; empty if it cannot be read."""
        with suppress(UserError):  # which `check_texts` reports
            return parse_lock(self.lock_content, LOCK)
        return Lock()

    @cached_property
    def outputs(self) -> list[Output]:
        """The outputs whose MD5 is known."""
        outs = [out for out in self.index.outs if out.protocol == "local"]
        outs = [out for out in outs if out.hash_info.name == "md5" and out.hash_info.value]  # none: not in dvc.lock
        return [
            Output(
                Path(self.repo.fs.relpath(out.fs_path, self.repo.root_dir)).as_posix(),
                str(out.hash_info.value),
                out.meta.size if out.meta else None,
                bool(out.use_cache),
                str(out.stage.addressing),
                str(out.stage.path_in_repo).replace(PIPELINE, LOCK),
                not out.stage.is_data_source,
                bool(out.stage.is_repo_import),
            )
            for out in outs
        ]

    def cached(self, oid: str) -> Path:
        """The path of an object in the local cache."""
        return Path(self.repo.cache.local.oid_to_path(oid))

    def objects_of(self, out: Output) -> dict[str, Path]:
        """The objects of an output, each with its file in the work tree."""
        found = {out.md5: self.root / out.path}
        if out.md5.endswith(".dir"):
            with suppress(OSError, BadObjectError):
                listed = objects.folder_list(self.cached(out.md5).read_bytes(), out.md5)
                found |= {file.md5: self.root / out.path / file.path for file in listed}
        return found

    def committed(self, path: str) -> bytes | None:
        """The content of a file in HEAD; None if HEAD lacks it."""
        with suppress(UserError):
            return git.run(self.root, "show", f"HEAD:./{path}")
        return None

    def committed_md5(self, path: str) -> str | None:
        """The MD5 of a file in HEAD; None if HEAD lacks it."""
        content = self.committed(path)
        return None if content is None else md5(content)

    def show(self, path: Path) -> str:
        """A path relative to the repository, if it lies in it."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def quote(self, path: Path) -> str:
        """The same for a shell."""
        return shlex.quote(self.show(path))


def main() -> int:
    """Examine everything, and print the findings; returns the exit status."""
    errors.no_arguments()
    with revisions.repository() as repo:
        clone = Clone(repo)
        findings = check_texts(clone)
        findings += [*check_records(clone, findings), *check_tracked(clone)]
        findings += [*check_links(clone), *check_stage_names(clone)]
        object_count, damaged = check_cache(clone)
        findings += damaged
        for out in clone.outputs:
            findings += [*check_output(clone, out), *check_cached(clone, out)]
        findings += [*check_inputs(clone), *check_leftovers(clone), *queue_tasks.findings(repo)]
    for finding in dict.fromkeys(findings):
        print(f"{finding.problem}\n    fix: {finding.fix}")
    count = len(findings) or "nothing"
    print(f"hashed {object_count} objects in the cache and {len(clone.outputs)} outputs: {count} to fix")
    return 1 if findings else 0


def check_texts(clone: Clone) -> list[Finding]:
    """Check that params.yaml, dvc.yaml and dvc.lock can be read, and that dvc.lock is complete."""
    findings = []
    for name in (paths.PARAMS.as_posix(), PIPELINE, LOCK):
        if is_special(clone.root / name):  # DVC would wait forever for somebody to write to a pipe
            raise UserError(f"{name}: not a regular file; `rm -r {name} && git checkout HEAD -- {name}`")
    for name in (paths.PARAMS.as_posix(), PIPELINE):
        try:
            params.load(clone.root / name, pipeline=name == PIPELINE)
        except UserError as error:
            problem = one_line(error).replace(f"{clone.root}/", "")
            findings.append(Finding(problem, fix_of_text(clone.root / name, name, problem)))
    if not (clone.root / LOCK).exists():
        return [*findings, Finding(f"{LOCK}: missing", fix_of_lock(clone, {}))]
    stages = {} if findings else clone.stages
    return findings + [Finding(fault, fix_of_lock(clone, stages)) for fault in lock_faults(clone.lock_content, stages)]


def fix_of_lock(clone: Clone, stages: dict[str, dict[str, Any]]) -> str:
    """The command that replaces a bad dvc.lock: by that of HEAD if it is better, or by rerunning what it lacks."""
    can_be_read = clone.lock.stages or not clone.lock_content
    rerun = "dvc repro" if can_be_read else f"rm {LOCK} && dvc repro"
    if lock_faults(clone.committed(LOCK) or b"", stages):
        return rerun
    return f"git checkout HEAD -- {LOCK}, or {rerun}"


def check_records(clone: Clone, known: list[Finding]) -> Iterator[Finding]:
    """Report files that DVC cannot read, unless `known` explains them: until they are fixed, each dvc command fails."""
    _ = clone.index  # which fills `unreadable`
    for name, reason in clone.unreadable.items():
        is_known = any(finding.problem.startswith(f"{name}:") for finding in known)
        if not is_known and not (known and Path(name).name == PIPELINE):  # DVC fills params.yaml into each dvc.yaml
            yield Finding(f"{name}: {reason}", fix_of_record(clone, name))


def fix_of_record(clone: Clone, name: str) -> str:
    """How to fix a dvc.yaml, a dvc.lock or a .dvc file that DVC cannot read."""
    path, quoted = clone.root / name, shlex.quote(name)
    if path.name == LOCK:
        again = f"rm {quoted} && dvc repro {shlex.quote(str(Path(name).with_name(PIPELINE)))}"
    elif path.suffix == ".dvc":
        again = f"rm {quoted} && dvc add {shlex.quote(name.removesuffix('.dvc'))}"
    else:
        return fix_of_text(path, name, "")
    if clone.committed(name) in (None, path.read_bytes()):
        return again
    return f"git checkout HEAD -- {quoted}, or {again}"


def check_tracked(clone: Clone) -> Iterator[Finding]:
    """Report missing files that Git tracks: without .gitignore, `git add` adds the outputs, and stages read `data`."""
    with suppress(UserError):  # a clone without Git
        deleted = git.run(clone.root, "ls-files", "-z", "--deleted", "--", *TRACKED, ":(exclude)*.dvc")
        for name in sorted({os.fsdecode(name) for name in deleted.split(b"\0") if name}):
            yield Finding(f"{name}: missing, and Git tracks it", f"git checkout -- {shlex.quote(name)}")


def is_special(path: Path) -> bool:
    """Whether a path is a pipe, a device or a socket."""
    return path.exists() and not (path.is_file() or path.is_dir())


def fix_of_text(path: Path, name: str, problem: str) -> str:
    """How to fix an unreadable text file. People write these files, so the fix never discards their changes."""
    if not path.exists():
        return f"git checkout HEAD -- {name}"
    line = re.match(r":(\d+):", problem.removeprefix(name))
    return f"edit {f'line {line[1]}' if line else 'it'} (`git diff HEAD -- {name}` shows what changed)"


def lock_faults(content: bytes, stages: dict[str, dict[str, Any]]) -> list[str]:
    """What dvc.lock lacks although dvc.yaml declares it, wherever dvc.lock was truncated; one line per stage.

    Truncation within the last number leaves a smaller number; `check_output` compares that with the file.
    """
    try:
        lock = parse_lock(content, LOCK)
        if not lock.stages:
            raise UserError(f"{LOCK}: lists no stages; truncated?")
    except UserError as error:
        return [one_line(error)]
    faults = []
    for name, stage in stages.items():
        if missing := missing_entries(lock.stages[name], stage) if name in lock.stages else ["the stage"]:
            names = listed(missing, revisions.SHOWN)
            faults.append(f"{LOCK}: lacks {names} of {name}: truncated, or {PIPELINE} has changed since it ran")
    if not faults and not content.endswith(b"\n"):
        faults.append(f"{LOCK}: no newline at the end: truncated")
    return faults


def missing_entries(locked: LockedStage, stage: dict[str, Any]) -> list[str]:
    """What the entry of a stage in dvc.lock lacks of its declaration in dvc.yaml."""
    missing = [] if locked.cmd is not None or "cmd" not in stage else ["the command"]
    for declared, recorded in ((declared_paths(stage, "deps"), locked.deps), (declared_outputs(stage), locked.outs)):
        complete = {posixpath.normpath(file.path) for file in recorded if file.md5 and file.size is not None}
        missing += [path for path in declared if path not in complete]
    for entry in stage.get("params") or []:
        for file, keys in entry.items() if isinstance(entry, dict) else [(paths.PARAMS.as_posix(), [entry])]:
            missing += [key for key in keys or [] if key not in locked.params.get(file, {})]
    return missing


def declared_paths(stage: dict[str, Any], key: str) -> list[str]:
    """The paths in a list of dvc.yaml, whose entries are strings, or mappings of one path to its options."""
    entries: Iterable[str | dict[str, Any]] = stage.get(key) or []
    return [posixpath.normpath(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries]


def declared_outputs(stage: dict[str, Any]) -> list[str]:
    """The paths of all outputs of a stage in dvc.yaml."""
    return [path for key in OUTPUT_KEYS for path in declared_paths(stage, key)]


def check_links(clone: Clone) -> Iterator[Finding]:
    """Report parent folders of outputs that are links: DVC treats such outputs as outside of the repository."""
    outputs = {path for stage in clone.stages.values() for path in declared_outputs(stage)}
    folders = {parent for path in outputs for parent in Path(path).parents if (clone.root / parent).is_symlink()}
    for folder in sorted(folders, key=str):
        target = (clone.root / folder).resolve()
        name = shlex.quote(str(folder))
        problem = f"{folder}: a link to {target}, where DVC keeps no outputs; to move the data, use `dvc cache dir`"
        yield Finding(problem, f"rm {name} && mv {shlex.quote(str(target))} {name}")


def check_stage_names(clone: Clone) -> Iterator[Finding]:
    """Report a stage of dvc.lock that dvc.yaml lacks: DVC leaves it there, and its outputs count as results."""
    if not clone.stages:
        return
    lines = clone.lock_content.decode(errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines, 1) if re.match(" {0,2}[^ ]", line)] + [len(lines) + 1]
    for name in sorted(clone.lock.stages.keys() - clone.stages.keys()):
        found = [number for number in starts[:-1] if lines[number - 1].strip(" :'\"") == name]
        fix = f"rm {LOCK} && dvc repro"
        if len(found) == 1:
            last = next(number for number in starts if number > found[0]) - 1
            fix = f"sed -i.bak '{found[0]},{last}d' {LOCK} && rm {LOCK}.bak"
        yield Finding(f"{LOCK}: {name}: not a stage of {PIPELINE}; renamed, removed, or added by hand", fix)
        return  # the fix changes the line numbers of the next one


def check_cache(clone: Clone) -> tuple[int, list[Finding]]:
    """Hash the objects and check the run cache; returns the number of objects and the findings."""
    findings, count = [], 0
    owners = {oid: (out, path) for out in clone.outputs for oid, path in clone.objects_of(out).items()}
    for path in sorted(Path(clone.repo.cache.local.path).glob("[0-9a-f][0-9a-f]/*")):
        name = path.parent.name + path.name
        if not objects.MD5.fullmatch(name.removesuffix(".dir")):
            continue  # an unfinished copy, which DVC writes again
        count += 1
        if not has_md5(path, name.removesuffix(".dir")):
            problem = f"{clone.show(path)}: damaged: its content does not match its name"
            findings.append(Finding(problem, fix_of_object(clone, path, name, owners.get(name))))
        elif name.endswith(".dir"):
            try:
                objects.folder_list(path.read_bytes(), name)
            except BadObjectError as error:
                problem = f"{clone.show(path)}: a list of files that is unsafe to check out: {error}"
                findings.append(Finding(problem, f"rm -f {clone.quote(path)}"))
    for path, fault in pull.unusable_runs(Path(clone.repo.stage_cache.cache_dir)):
        is_last = len(list(path.parent.iterdir())) == 1  # DVC fails on a folder without an entry
        problem = f"{clone.show(path)}: an unusable entry of the run cache: {fault}"
        findings.append(Finding(problem, f"rm -rf {clone.quote(path.parent if is_last else path)}"))
    return count, findings


def has_md5(path: Path, expected: str) -> bool:
    """Whether a path is a regular file with this MD5. Reading a pipe would block."""
    return path.is_file() and file_md5(path) == expected


def fix_of_object(clone: Clone, path: Path, oid: str, owner: tuple[Output, Path] | None) -> str:
    """The command that restores a damaged object: from the work tree if it is intact there, a remote, or a run."""
    remove = f"rm -f {clone.quote(path)}"
    if owner is None:
        return remove  # from an older run: whatever needs it makes it or fetches it again
    out, source = owner
    if has_md5(source, oid):
        return f"{remove} && {copy_command(clone, source, path)}"
    return f"{remove} && {out.pull}{out.rerun('--force --no-run-cache ')}"


def copy_command(clone: Clone, source: Path, path: Path) -> str:
    """The command that copies a file of the work tree into the cache."""
    return f"cp {clone.quote(source)} {clone.quote(path)} && chmod 444 {clone.quote(path)}"


def check_output(clone: Clone, out: Output) -> Iterator[Finding]:
    """Compare an output in the work tree with its record in dvc.lock or a .dvc file."""
    place, name, found = clone.root / out.path, shlex.quote(out.path), clone.digest(out.path)
    problem = f"{out.path}: does not match {out.record}: damaged, or changed by hand"
    if not place.exists():
        problem = f"{out.path}: missing"
    elif is_special(place):
        problem = f"{out.path}: not a regular file, but a device, pipe or socket"
    if found and found.md5 == out.md5:
        if place.is_symlink() and not place.resolve().is_relative_to(Path(clone.repo.cache.local.path).resolve()):
            target = place.resolve()
            fix = f"rm {name} && cp -R {shlex.quote(str(target))} {name}"
            yield Finding(f"{out.path}: a link to {target}, which neither Git nor DVC keeps", fix)
        if out.size not in (None, found.size):
            problem = (
                f"{out.record}: gives {out.path} {out.size:,} bytes instead of {found.size:,}: truncated, or edited"
            )
            yield Finding(problem, fix_of_size(clone, out.record, out.stage))
    elif out.cached or not out.has_command:
        yield Finding(problem, fix_of_output(out, place.exists()))
    elif clone.committed_md5(out.path) == out.md5:
        yield Finding(problem, f"git checkout HEAD -- {name}")
    else:
        yield Finding(f"{problem}, also in HEAD", f"rm -f {name} && dvc repro {shlex.quote(out.stage)}")


def fix_of_output(out: Output, exists: bool) -> str:
    """The command that restores an output that DVC keeps. Data that no stage makes is never deleted: it may be new."""
    name, stage, aside = shlex.quote(out.path), shlex.quote(out.stage), shlex.quote(f"{out.path}.changed")
    if out.has_command:  # removed first: DVC compares time and size, and would miss a flipped bit
        return f"rm -rf {name} && {out.pull}{out.rerun()}"
    if not exists:
        return out.pull
    restore = f"mv -n {name} {aside} && {out.pull}"
    return restore if out.imported else f"dvc commit --force {stage}, or if you did not change it: {restore}"


def fix_of_size(clone: Clone, record: str, stage: str) -> str:
    """The command that corrects a size in a dvc.lock or a .dvc file."""
    command = "dvc repro --force --single-item" if record.endswith(LOCK) else "dvc commit --force"
    run = f"{command} {shlex.quote(stage)}"
    is_committed = clone.committed(record) == (clone.root / record).read_bytes()
    return run if is_committed else f"git checkout HEAD -- {shlex.quote(record)}, or {run}"


def check_cached(clone: Clone, out: Output) -> Iterator[Finding]:
    """Report objects of an intact output that the cache lacks: neither `dvc push` nor a checkout can use them."""
    found = clone.digest(out.path)
    if not out.cached or found is None or found.md5 != out.md5:
        return
    for oid, file in clone.objects_of(out).items():
        path = clone.cached(oid)
        if not path.exists():
            fix = f"mkdir -p {clone.quote(path.parent)} && {copy_command(clone, file, path)}"
            if oid.endswith(".dir"):
                fix = f"dvc commit --force {shlex.quote(out.stage)}"
            yield Finding(f"{clone.show(file)}: not in the cache, so `dvc push` and checkouts lack it", fix)


def check_inputs(clone: Clone) -> Iterator[Finding]:
    """Report code, parameters, commands and files that differ from what dvc.lock says the stages read."""
    for reader, dep, writer in clone.lock.contradictions:
        yield Finding(f"{LOCK}: {reader} read another {dep.path} than {writer} wrote", "dvc repro")
    for name, stage in clone.lock.stages.items():
        if stage.cmd is not None and name in clone.stages and stage.cmd != clone.stages[name].get("cmd"):
            yield Finding(f"{name}: ran with another command than {PIPELINE} has", f"dvc repro {shlex.quote(name)}")
        for file in stage.deps:
            found = clone.digest(file.path) if file.md5 else None
            if found and found.md5 == file.md5:
                if file.size not in (None, found.size):
                    problem = f"{LOCK}: {name} read {file.path} of {file.size:,} bytes, but it has {found.size:,}"
                    yield Finding(problem, fix_of_size(clone, LOCK, name))
            elif file.md5 is None or file.path in clone.lock.writers:
                continue  # `check_output` compares the outputs
            elif is_special(clone.root / file.path):
                problem = f"{file.path}: not a regular file, but a device, pipe or socket; {name} reads it"
                yield Finding(problem, f"rm {shlex.quote(file.path)} && git checkout HEAD -- {shlex.quote(file.path)}")
            else:
                yield Finding(f"{file.path}: changed since {name} ran, or {LOCK} was edited", "dvc repro")
        for key in changed_params(clone, name):
            yield Finding(f"{key}: changed since {name} ran, or {LOCK} was edited", "dvc repro")


def changed_params(clone: Clone, stage: str) -> list[str]:
    """The parameters that differ from those in dvc.lock, as FILE: KEY."""
    from dvc.dependency import ParamsDependency
    from dvc.exceptions import DvcException

    try:
        found = clone.loaded.get(stage)
        statuses = [dep.workspace_status() for dep in found.deps if isinstance(dep, ParamsDependency)] if found else []
    except DvcException:
        return []
    changes = [change for status in statuses for change in status.items()]
    return [f"{file}: {key}" for file, keys in changes if isinstance(keys, dict) for key in keys] + [
        file for file, keys in changes if not isinstance(keys, dict)
    ]


def check_leftovers(clone: Clone) -> Iterator[Finding]:
    """Report files that a killed program left behind and nothing reads."""
    unfinished = sorted(Path(clone.repo.cache.local.path).glob("[0-9a-f][0-9a-f]/.*.tmp"))
    for path in [*repair.unfinished(clone.root), *unfinished]:
        yield Finding(f"{clone.show(path)}: unfinished: its program was killed", f"rm -f {clone.quote(path)}")
    for path in sorted((clone.root / paths.RESUME).rglob("*.unreadable")):
        yield Finding(f"{clone.show(path)}: an unreadable checkpoint, set aside", f"rm -f {clone.quote(path)}")
    for path in repair.unfinished_entries(Path(clone.repo.stage_cache.cache_dir)):
        problem = f"{clone.show(path)}: an unfinished entry of the run cache, from a killed dvc; the next dvc may fail"
        yield Finding(problem, "python -m integrity.repair")
    locks = clone.root / repair.RWLOCK
    if locks.is_file() and (reason := repair.stale_reason(locks)):
        yield Finding(f"{repair.RWLOCK}: {reason}; dvc may refuse to run", f"rm -f {repair.RWLOCK}")


if __name__ == "__main__":
    errors.run_command(main)
