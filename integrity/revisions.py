"""Read a revision from Git and DVC: its parameters, metrics, and the outputs that dvc.lock records.

A revision is a commit, a branch (also of a remote), a tag, or the name of an experiment. Nothing is checked out or
written. The records of dvc.lock are not verified by a rerun; `make verify` does that.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from integrity import git, merging, objects
from integrity.dvc_lock import Lock, LockedFile, parse_lock
from integrity.lock_files import LOCK
from integrity.objects import BadObjectError
from integrity.remotes import MissingObjectError, UnreadableObjectError, open_remote
from integrity.snapshots import MAX_HASHED_BYTES, Commit, WorkTree
from stages.common import machine_settings, params, paths
from stages.common.digests import md5, path_md5
from stages.common.errors import UserError, one_line, printable
from stages.common.paths import UNFINISHED
from stages.common.text import listed, nearest

WORK_TREE = "work tree"
CHECK = "check"  # the stage that reads every parameter; its output never changes
METRICS = f"{paths.TEST_METRICS.parent.as_posix()}/*.json"
SHOWN = 3  # names in one message
MAX_BYTES = 10_000_000  # of a file in Git that is parsed here
EXPERIMENT = re.compile("refs/exps/([0-9a-f]{2})/([0-9a-f]{38,})/(.+)")  # baseline commit, in two parts, and name


@dataclass(frozen=True)
class Revision:
    """A commit, or the work tree."""

    name: str  # as given by the user
    commit: str | None  # its full hash; None: the work tree
    params: dict[str, Any] | None  # dotted key -> value, without `machine`; None: no params.yaml
    read_by: dict[str, list[str]]  # dotted key -> the stages that read it, from dvc.lock
    metrics: dict[str, dict[str, Any]]  # file -> its content
    outs: dict[str, LockedFile]  # path -> output, from dvc.lock
    ran_with: dict[str, Any] = field(default_factory=dict)  # dotted key -> the value that a stage read, from dvc.lock
    notes: list[str] = field(default_factory=list)  # problems with this record, one line each


@contextmanager
def repository(writes: bool = False) -> Iterator[Any]:
    """The DVC repository of the current folder. Raises UserError if there is none, or Git has no commit.

    Unless the caller `writes`, DVC's locks and state go to a temporary folder: the checkout may be read-only, and the
    user number may have no name, which DVC needs for the folder of its state.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with tempfile.TemporaryDirectory(prefix="dvc-") as scratch:
        places = {"tmp_dir": scratch, "site_cache_dir": scratch, "data_index": None, "_ignore": lambda _: None}
        try:
            repo = Repo() if writes else type("ReadOnlyRepo", (Repo,), places)()
        except (DvcException, OSError, KeyError) as error:
            remedy = "; run this in a clone of the project (`cd`), where .dvc is" if not Path(".dvc").is_dir() else ""
            raise UserError(f"no commit of a DVC repository to read here: {one_line(error)}{remedy}") from None
        try:
            _has_a_commit(Path(repo.root_dir))
            yield repo
        finally:
            if "scm" in vars(repo):  # else close() would open it: an error where there is no Git
                repo.close()
            repo.state.close()


def _has_a_commit(root: Path) -> None:
    """Raise UserError if Git has no commit in this folder, or may not read it."""
    if not git.run(root, "rev-list", "--all", "--max-count=1"):
        raise UserError(f"{root}: no commit yet: `git add --all && git commit`, or work in a clone (`git clone URL`)")


def resolve(repo: Any, name: str) -> str:
    """The full hash of the commit that DVC calls `name`. Raises UserError."""
    if not name.strip():
        raise UserError(
            "the revision is empty; allowed: a commit, branch, tag or experiment, as in `make compare REV=main`"
        )
    root, shown = Path(repo.root_dir), repr(name if len(name) <= 100 else f"{name[:100]}...")
    if commit := _commit(root, name):
        return commit
    listed = os.fsdecode(git.run(root, "for-each-ref", "--format=%(objectname) %(refname)")).splitlines()
    refs = {ref: commit for commit, _, ref in (line.partition(" ") for line in listed)}
    remote = {commit for ref, commit in refs.items() if re.fullmatch(f"refs/remotes/[^/]+/{re.escape(name)}", ref)}
    parts = [(match, commit) for ref, commit in refs.items() if (match := EXPERIMENT.fullmatch(ref))]
    experiments = {match[1] + match[2]: commit for match, commit in parts if match[3] == name}  # baseline -> commit
    found = remote or {experiments.get(_commit(root, "HEAD") or "")} - {None} or set(experiments.values())
    if len(found) > 1:
        raise UserError(f"revision {shown} is ambiguous: several have that name; give the commit")
    if found:
        return str(found.pop())
    try:
        git.run(root, "cat-file", "-e", name)
    except (UserError, ValueError):  # ValueError: a null byte in the name
        names = {ref.removeprefix("refs/heads/").removeprefix("refs/tags/") for ref in refs}
        near = nearest(name, [*sorted(names), *(match[3] for match, _ in parts)]) if len(name) < 100 else ""
        raise UserError(
            f"unknown revision {shown}{near}; allowed: a commit, branch, tag or experiment of this clone (get others "
            f"by `{_fetch_command(root)}` or `dvc exp pull`)"
        ) from None
    raise UserError(f"revision {shown} is a file or a folder, not a commit")


def _fetch_command(root: Path) -> str:
    """The command that completes a clone, which may be shallow, and restricted to one branch as CI's are."""
    shallow = git.run(root, "rev-parse", "--is-shallow-repository") == b"true\n"
    configured = git.run(root, "config", "--local", "--list").decode(errors="replace").splitlines()
    branches = [line for line in configured if line.startswith("remote.origin.fetch=")]
    one_branch = branches and not any(line.endswith("/*") for line in branches)
    return "git remote set-branches origin '*' && " * bool(one_branch) + "git fetch" + " --unshallow" * shallow


def _commit(root: Path, name: str) -> str | None:
    """The full hash of the commit that Git calls `name`; None if there is none."""
    try:
        found = git.run(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").decode()
    except (UserError, ValueError, OSError):  # OSError: too long for a command line
        return None
    return found.strip() if re.fullmatch("[0-9a-f]{40,64}\n", found) else None  # ^main is a hash with a ^


def read(repo: Any, name: str | None, label: str | None = None, metrics_pattern: str = METRICS) -> Revision:
    """Read a revision from Git; None: the work tree. Raises UserError.

    label: the name to print instead of `name`. metrics_pattern: a glob of the files of metrics.
    """
    params_path = paths.PARAMS.as_posix()
    commit = resolve(repo, name) if name is not None else None
    label = printable(label or (name if name is not None else WORK_TREE))
    files = snapshot(repo, commit)
    names = files.glob(metrics_pattern)
    contents = files.read(*names, params_path, LOCK)
    for path, content in contents.items():
        if len(content) > MAX_BYTES:
            raise UserError(f"{label}: {path}: larger than {MAX_BYTES:,} bytes")
        if commit is None and merging.conflicts(content):
            raise UserError(f"{label}: {path} has the conflicts of a merge; `make repro` resolves those in results")
    notes = []

    metrics = {path: parse_json(contents[path], f"{label}: {path}") for path in names}
    if not metrics:
        raise UserError(f"{label}: no {metrics_pattern}; run `dvc repro` there, and commit what it writes")
    notes += [
        f"{label}: {path}: of a run that did not finish ({metrics[path][UNFINISHED]}); `dvc repro` there"
        for path in metrics
        if UNFINISHED in metrics[path]
    ]
    values = None
    if params_path in contents:
        values = params.flatten(_yaml(contents[params_path], f"{label}: {params_path}"), f"{label}: {params_path}")
        values = {key: value for key, value in values.items() if key.partition(".")[0] != machine_settings.SECTION}
    else:
        notes.append(f"{label}: no {params_path}: parameters are not compared")
    try:
        lock = parse_lock(contents[LOCK], f"{label}: {LOCK}") if LOCK in contents else Lock()
    except UserError as error:
        lock = Lock()
        notes.append(f"{error}: inputs and outputs of the run are unknown")
    read_by: dict[str, list[str]] = {}
    ran_with: dict[str, Any] = {}
    inputs = []  # changed since the run
    for stage, locked in lock.stages.items():
        if stage == CHECK:
            continue
        for key, value in params.flatten(locked.params.get(params_path, {}), f"{label}: {LOCK}").items():
            read_by.setdefault(key, []).append(stage)
            ran_with[key] = value
            if values is not None and (key not in values or values[key] != value):
                inputs.append(key)
    changed = stale(Path(repo.root_dir), files, lock)
    if inputs := list(dict.fromkeys([*inputs, *(path for path in changed if path not in lock.writers)])):
        notes.append(f"{label}: changed since the run that {LOCK} records: {listed(inputs, SHOWN)}; `dvc repro` there")
    if outputs := [path for path in changed if path in lock.writers]:
        notes.append(f"{label}: does not match {LOCK}: {listed(outputs, SHOWN)}; edited by hand, or damaged")
    notes += [
        f"{label}: in {LOCK}, {stage} read another {dep.path} than {writer} wrote: edited by hand, or not all stages "
        "ran; `dvc repro` there"
        for stage, dep, writer in lock.contradictions
    ]
    notes += [
        f"{label}: in {LOCK}, {' and '.join(stages)} wrote {path}: it counts as missing"
        for path, stages in lock.writers.items()
        if len(stages) > 1
    ]
    positions = {path: position for position, path in enumerate(lock.outs)}  # the pipeline's order
    metrics = dict(sorted(metrics.items(), key=lambda item: positions.get(item[0], len(positions))))
    return Revision(label, commit, values, read_by, metrics, lock.outs, ran_with, notes)


def file(repo: Any, side: Revision, path: str) -> bytes | None:
    """The bytes of a file at a revision; None if it is missing. Raises UserError if it is too large."""
    content: bytes | None = snapshot(repo, side.commit).read(path).get(path)
    if content is not None and len(content) > MAX_BYTES:
        raise UserError(f"{side.name}: {path}: larger than {MAX_BYTES:,} bytes")
    return content


def stale(root: Path, files: Commit | WorkTree, lock: Lock) -> list[str]:
    """The dependencies and outputs that do not match dvc.lock, or are missing although they should be there.

    In a commit, only files in Git count; in the work tree, all files.
    """
    outputs = lock.writers
    deps = [dep for stage in lock.stages.values() for dep in stage.deps if dep.path not in outputs]
    locked = [*deps, *(out for stage in lock.stages.values() for out in stage.outs)]
    inside = [file for file in locked if file.md5 and not re.match(r"/|\w+:|\.\.(/|$)", file.path)]
    hashes = files.hashes(dict.fromkeys(file.path for file in inside))

    def missing(path: str) -> bool:
        if any(path == out or path.startswith(f"{out}/") for out in outputs):  # pulled, or made by a run
            return False
        try:
            git.run(root, "check-ignore", "--quiet", "--no-index", path)
        except UserError:  # not ignored, so Git should have it
            return not files.exists(path)
        return False

    changed = [
        file.path for file in inside if (hashes[file.path] != file.md5 if file.path in hashes else missing(file.path))
    ]
    return list(dict.fromkeys(changed))


def damaged(repo: Any, sides: Sequence[Revision], except_for: str) -> list[str]:
    """A line for each output whose copy in the cache does not match dvc.lock.

    except_for: an output that `fetch` checks anyway. The smallest first, up to snapshots.MAX_HASHED_BYTES in total.
    """
    cache = repo.cache.local
    outs = {out.md5: (side.name, out) for side in sides for out in _with_files(repo, side) if out.path != except_for}
    places = {Path(cache.oid_to_path(oid)): oid for oid in outs if oid is not None}
    folder = Path(cache.path)
    try:
        hashes = WorkTree(folder).hashes([place.relative_to(folder).as_posix() for place in places])
    except OSError as error:
        return [f"the cache cannot be read: {error.filename}: {error.strerror}"]
    lines = []
    for place, oid in places.items():
        side, out = outs[oid]
        name = oid.removesuffix(".dir")
        if hashes.get(place.relative_to(folder).as_posix(), name) != name:
            shown = repo.fs.relpath(str(place))
            lines.append(f"{side}: {out.path} is damaged in the cache (delete {shown}, and `dvc fetch`)")
    return lines


def _with_files(repo: Any, side: Revision) -> Iterator[LockedFile]:
    """The outputs of a revision, and the files of its folders if the cache has their list."""
    for out in side.outs.values():
        yield out
        if out.md5 is not None and out.md5.endswith(".dir"):
            with suppress(OSError, BadObjectError):
                listed = objects.folder_list(Path(repo.cache.local.oid_to_path(out.md5)).read_bytes(), out.md5)
                yield from (LockedFile(path=f"{out.path}/{file.path}", md5=file.md5) for file in listed)


def fetch(repo: Any, out: LockedFile) -> tuple[bytes, list[str]]:
    """The bytes of an output as recorded in dvc.lock, from the work tree, the cache or the default remote, and notes.

    DVC trusts its cache and its remotes. This function hashes the bytes it returns; a copy with another MD5 is skipped
    with a note. Raises UserError with the reasons if there is no intact copy.
    """
    if out.md5 is None or out.md5.endswith(".dir"):
        raise UserError(f"{LOCK} records no MD5 of a file {out.path}")
    local = Path(repo.root_dir, out.path)
    if local.is_file() and md5(content := local.read_bytes()) == out.md5:
        return content, []
    return _stored_copy(repo, out)


def fetch_folder(repo: Any, out: LockedFile, scratch: Path) -> Path:
    """A folder with the files of an output that is a folder, as recorded in dvc.lock: the work tree's, or `scratch`.

    Checks every file as `fetch` does. Raises UserError also for a folder larger than snapshots.MAX_HASHED_BYTES.
    """
    if out.md5 is None or not out.md5.endswith(".dir"):
        raise UserError(f"{LOCK} records no MD5 of a folder {out.path}")
    if out.size is None or out.size > MAX_HASHED_BYTES:
        raise UserError(f"{out.path}: larger than {MAX_HASHED_BYTES:,} bytes")
    local = Path(repo.root_dir, out.path)
    if local.is_dir() and path_md5(Path(repo.root_dir), out.path) == out.md5:
        return local
    try:
        listed = objects.folder_list(_stored_copy(repo, LockedFile(path=out.path, md5=out.md5))[0], out.md5)
    except BadObjectError as error:
        raise UserError(f"{out.path}: its list of files: {error}") from None
    for file in listed:
        content, _ = fetch(repo, LockedFile(path=f"{out.path}/{file.path}", md5=file.md5, size=out.size))
        place = scratch / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return scratch


def _stored_copy(repo: Any, out: LockedFile) -> tuple[bytes, list[str]]:
    """The bytes of an object from the cache or the default remote, and notes, as `fetch` returns them."""
    name = str(out.md5).removesuffix(".dir")
    notes = []
    cache = repo.cache.local
    cached = Path(cache.oid_to_path(out.md5))
    try:
        with cached.open("rb") as file:
            content = file.read() if out.size is None else file.read(out.size + 1)
        if md5(content) == name:
            return content, []
        reason = f"damaged in the cache (delete {repo.fs.relpath(str(cached))}, and `dvc fetch`)"
        notes.append(f"{out.path} is {reason}; the remote's copy is used")
    except FileNotFoundError:
        reason = "not in the cache"
    except OSError as error:
        reason = f"not readable in the cache ({error.strerror})"
    try:
        return _remote_copy(repo, out), notes
    except UserError as error:
        raise UserError(f"{out.path} is {reason}; {error}") from None


def _remote_copy(repo: Any, out: LockedFile) -> bytes:
    """The bytes of an output in the default remote. Raises UserError with the reason."""
    remote = open_remote(repo, None)
    content = b""
    try:
        for chunk in remote.read(remote.odb.oid_to_path(out.md5)):
            content += chunk
            if out.size is not None and len(content) > out.size:
                break  # too long, so the MD5 will not match
    except (MissingObjectError, UnreadableObjectError) as error:
        raise UserError(f"remote {remote.name!r}: {error}") from None
    if md5(content) != str(out.md5).removesuffix(".dir"):
        raise UserError(f"remote {remote.name!r}: damaged: not the MD5 that {LOCK} records")
    return content


def snapshot(repo: Any, commit: str | None) -> Commit | WorkTree:
    """The files of a commit, or of the work tree (None)."""
    return Commit(Path(repo.root_dir), commit) if commit else WorkTree(Path(repo.root_dir))


def parse_json(content: bytes, name: str) -> dict[str, Any]:
    """Read a JSON mapping, such as metrics. name: the file, for messages. Raises UserError."""

    def number(text: str) -> float:
        value = float(text) if set(text) & set(".eE") else int(text)
        if abs(value) > 1e15:  # beyond the exact integers of a float; 1e999 would be infinity
            raise ValueError(f"the number {text[:20]} is too large for a metric")
        return value

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        values = json.loads(content.decode("utf-8"), parse_constant=refuse, parse_float=number, parse_int=number)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"{name}: not valid JSON: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{name}: not a mapping of names to metrics")
    return values


def _yaml(content: bytes, name: str) -> dict[str, Any]:
    """Read YAML as the stages do. It refuses aliases, which DVC may write to dvc.lock: see parse_lock."""
    values = params.parse_mapping(content, name)
    # .inf and .nan, which JSON lacks, become text: they still compare, and can be printed as JSON.
    try:
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str), parse_constant=str)
    except TypeError:
        raise UserError(f"{name}: a key is not text") from None
    return plain
