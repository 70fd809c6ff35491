"""What Git and DVC hold of a revision: parameters, metrics, and the bytes of an output that dvc.lock names.

Git is read through DVC's own file system of a commit, so a revision is whatever DVC calls one: a commit, a branch (of a
remote, too), a tag, an experiment by name. Nothing is checked out, and the work tree is only read.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn

import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from pydantic import BaseModel, Field, ValidationError

from stages import params
from stages.errors import UserError

WORK_TREE = "work tree"
LOCK = "dvc.lock"
CHECK = "check"  # the stage that reads every parameter, and whose output is always the same
MAX_BYTES = 10_000_000  # of a file that Git keeps and that is parsed here


class LockedFile(BaseModel):
    """A dependency or an output in dvc.lock. md5: of the content; of a folder's list of files if it ends in .dir."""

    path: str
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")] | None = None
    size: Annotated[int, Field(ge=0)] | None = None  # bytes


class LockedStage(BaseModel):
    """A stage in dvc.lock: what it read and what it wrote when it last ran."""

    params: dict[str, dict[str, Any]] = {}  # file -> key -> value
    deps: list[LockedFile] = []
    outs: list[LockedFile] = []


class Lock(BaseModel):
    """dvc.lock."""

    stages: dict[str, LockedStage] = {}


@dataclass(frozen=True)
class Revision:
    """A commit, or the work tree, as Git has it."""

    name: str  # as the user calls it
    commit: str | None  # its full hash; None: the work tree
    params: dict[str, Any] | None  # dotted key -> value; None: no file of parameters
    read_by: dict[str, list[str]]  # dotted key -> the stages that read it, by dvc.lock
    metrics: dict[str, dict[str, Any]]  # file -> its content
    outs: dict[str, LockedFile]  # path -> output, by dvc.lock
    ran_with: dict[str, Any] = field(default_factory=dict)  # dotted key -> the value that a stage read, by dvc.lock
    notes: list[str] = field(default_factory=list)  # what the user must know to trust the rest, a line each


@contextmanager
def repository() -> Iterator[Any]:
    """The DVC repository of the current folder. Raises UserError if it is none, or none in Git."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import resolve_rev

    try:
        repo = Repo()
        resolve_rev(repo.scm, "HEAD")  # a repository without Git, or without a commit, has no revisions
    except (DvcException, AttributeError) as error:  # AttributeError: DVC without Git
        raise UserError(f"no commit of a DVC repository to read here: {one_line(error)}") from None
    with repo:
        yield repo


def resolve(repo: Any, name: str) -> str:
    """The full hash of the commit that DVC knows as `name`. Raises UserError."""
    from dvc.repo.experiments.utils import exp_refs
    from dvc.scm import RevError, resolve_rev

    if not name.strip():
        raise UserError(
            "the revision is empty; allowed: a commit, branch, tag or experiment, as in `make compare REV=main`"
        )
    try:
        found = resolve_rev(repo.scm, name)
    except RevError as error:
        if "ambiguous" in str(error):
            raise UserError(f"revision {name!r} is ambiguous: several have that name; give the commit") from None
        heads = {ref.removeprefix("refs/heads/").removeprefix("refs/tags/") for ref in repo.scm.iter_refs("refs")}
        near = params.nearest(name, [*sorted(heads), *(ref.name for ref in exp_refs(repo.scm))])
        raise UserError(
            f"unknown revision {name!r}{near}; allowed: a commit, branch, tag or experiment that is here "
            "(`git fetch` and `dvc exp pull` get others)"
        ) from None
    try:
        return str(resolve_rev(repo.scm, f"{found}^{{commit}}"))
    except RevError:
        raise UserError(f"revision {name!r} is a file or a folder, not a commit") from None


def read(repo: Any, name: str | None, params_path: str, metrics_pattern: str, label: str | None = None) -> Revision:
    """Read what Git has of a revision; None: the work tree. Raises UserError.

    params_path: the file of parameters. metrics_pattern: a glob of the files of metrics, such as metrics/*.json.
    label: what the revision is called, if not by its name.
    """
    commit = resolve(repo, name) if name is not None else None
    label = label or (name if name is not None else WORK_TREE)
    files = _files(repo, commit)
    notes = []

    metrics = {
        path: parse_json(_bytes(files, path, label), f"{label}: {path}") for path in sorted(files.glob(metrics_pattern))
    }
    if not metrics:
        raise UserError(f"{label}: no {metrics_pattern} there; run `dvc repro` there, and commit what it writes")
    values = None
    if files.isfile(params_path):
        values = flatten(_yaml(_bytes(files, params_path, label), f"{label}: {params_path}"), f"{label}: {params_path}")
    else:
        notes.append(f"{label}: no {params_path} there: parameters are not compared")
    try:
        lock = parse_lock(_bytes(files, LOCK, label), f"{label}: {LOCK}") if files.isfile(LOCK) else Lock()
    except UserError as error:
        lock = Lock()
        notes.append(f"{error}: what the run read and wrote is not known")
    read_by: dict[str, list[str]] = {}
    ran_with: dict[str, Any] = {}
    for stage, locked in lock.stages.items():
        if stage == CHECK:
            continue
        for key, value in flatten(locked.params.get(params_path, {}), f"{label}: {LOCK}").items():
            read_by.setdefault(key, []).append(stage)
            ran_with[key] = value
    # Git ignores what DVC keeps; in a commit it is not there at all.
    changed = stale(files, lock, params_path, values, (lambda _: False) if commit else repo.scm.is_ignored)
    if changed:
        shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        notes.append(
            f"{label}: not as {LOCK} has it: {shown}; the results may be of other inputs: `dvc repro` there renews them"
        )
    outs = {out.path: out for locked in lock.stages.values() for out in locked.outs}
    written = {path: place for place, path in enumerate(outs)}  # the pipeline's order
    metrics = dict(sorted(metrics.items(), key=lambda item: written.get(item[0], len(written))))
    return Revision(label, commit, values, read_by, metrics, outs, ran_with, notes)


def kept(repo: Any, side: Revision, path: str) -> bytes | None:
    """The bytes of a file that Git keeps, as a revision has it; None if it has none. Raises UserError if it is huge."""
    files = _files(repo, side.commit)
    return _bytes(files, path, side.name) if files.isfile(path) else None


def stale(files: Any, lock: Lock, params_path: str, values: dict[str, Any] | None, ignored: Any) -> list[str]:
    """The parameters and files in Git that are not those which dvc.lock was written for, each by name.

    files: a file system of the revision. ignored: a function that tells whether Git ignores a path.
    """
    changed = []
    for name, stage in lock.stages.items():
        for key, value in flatten(stage.params.get(params_path, {}) if name != CHECK else {}, LOCK).items():
            if values is not None and (key not in values or values[key] != value):
                changed.append(key)
        for file in [*stage.deps, *stage.outs]:
            if file.md5 is None or file.md5.endswith(".dir") or not files.isfile(file.path) or ignored(file.path):
                continue
            if _md5(files.cat_file(file.path)) != file.md5:
                changed.append(file.path)
    return list(dict.fromkeys(changed))


def fetch(repo: Any, out: LockedFile) -> tuple[bytes, list[str]]:
    """The bytes of an output as dvc.lock names it, from the work tree, the cache or the default remote, and notes.

    DVC trusts what its cache and remotes hold; here the MD5 is taken of the very bytes that are returned. A copy that
    has another one is passed over with a note. Raises UserError, with the reason, if there is no right copy.
    """
    if out.md5 is None or out.md5.endswith(".dir"):
        raise UserError(f"{LOCK} names no file {out.path} with an MD5")
    local = DirFileSystem(repo.root_dir, fsspec.filesystem("file"))
    if local.isfile(out.path):
        content: bytes = local.cat_file(out.path)
        if _md5(content) == out.md5:
            return content, []

    notes = []
    cache = repo.cache.local
    cached = cache.oid_to_path(out.md5)
    try:
        content = _read(cache.fs, cached, out)
        if _md5(content) == out.md5:
            return content, []
        here = f"damaged in the cache (delete {repo.fs.relpath(cached)}, and `dvc fetch`)"
        notes.append(f"{out.path} is {here}; the remote's copy is used")
    except FileNotFoundError:
        here = "not in the cache"
    except OSError as error:
        here = f"not readable in the cache ({error.strerror})"
    try:
        return _remote_copy(repo, out), notes
    except UserError as error:
        raise UserError(f"{out.path} is {here}, and {error}") from None


def _remote_copy(repo: Any, out: LockedFile) -> bytes:
    """The bytes of an output in the default remote. Raises UserError with the reason, the second half of a sentence."""
    from dvc.config import NoRemoteError
    from dvc.exceptions import DvcException

    name = f"the remote {repo.config['core'].get('remote')!r}"
    try:
        store = repo.cloud.get_remote_odb(hash_name="md5")
    except NoRemoteError:
        raise UserError("no remote is set (`dvc remote add --default`)") from None
    except (DvcException, ImportError, OSError, ValueError) as error:  # a wrong URL, a package that is missing, …
        raise UserError(f"{name} cannot be used: {one_line(error)}") from None
    try:
        content = _read(store.fs, store.oid_to_path(out.md5), out)
    except Exception as error:  # each kind of remote fails with errors of its own: botocore's, asyncssh's, aiohttp's, …
        cause = error.__cause__ or error  # HTTP says "no such file" of a server that is down, too: the cause tells
        if not isinstance(error, FileNotFoundError) or (cause is not error and getattr(cause, "status", None) != 404):
            raise UserError(f"{name} does not give it: {one_line(cause)}") from None
        if store.fs.protocol == "local" and not store.fs.isdir(repo.cloud.get_remote().path):
            raise UserError(f"the folder of {name} is not there") from None
        raise UserError(f"not in {name}; `dvc push` (or `dvc exp push`) where it was made") from None
    if _md5(content) != out.md5:
        raise UserError(f"damaged in {name}: not the MD5 that {LOCK} names")
    return content


def flatten(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; lists and empty mappings are values. name: whose, for messages."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, here: dict[Any, Any], depth: int) -> None:
        if depth > 20 or len(flat) > 10_000:  # an alias in YAML can hold itself, or grow without bound
            raise UserError(f"{name}: nested too deeply, or too large, to compare")
        for key, value in here.items():
            if isinstance(value, dict) and value:
                walk(f"{prefix}{key}.", value, depth + 1)
            else:
                flat[f"{prefix}{key}"] = value

    walk("", values, 0)
    return flat


def one_line(error: BaseException) -> str:
    """An error of a library as one short line, without the password of a URL in it."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return re.sub(r"://[^@/\s]+@", "://***@", text)[:200]


def _files(repo: Any, commit: str | None) -> Any:
    """A file system of a commit, or of the work tree (None), with paths from the repository's root."""
    return repo.scm.get_fs(commit) if commit else DirFileSystem(repo.root_dir, fsspec.filesystem("file"))


def _bytes(files: Any, path: str, label: str) -> bytes:
    content: bytes = files.cat_file(path)
    if len(content) > MAX_BYTES:
        raise UserError(f"{label}: {path}: larger than {MAX_BYTES:,} bytes")
    return content


def _read(files: Any, path: str, out: LockedFile) -> bytes:
    """A copy of an output; of one that is too long, one byte too many, which spoils its MD5."""
    with files.open(path, "rb") as file:
        content: bytes = file.read() if out.size is None else file.read(out.size + 1)
    return content


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()  # DVC's choice


def parse_json(content: bytes, name: str) -> dict[str, Any]:
    """A mapping of names to metrics or the like. name: the file, for messages. Raises UserError."""

    def number(text: str) -> float:
        value = float(text) if set(text) & set(".eE") else int(text)
        if abs(value) > 1e15:  # past what a float counts by ones; 1e999 would be infinity
            raise ValueError(f"the number {text[:20]} is too large for a metric")
        return value

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON number")

    try:
        values = json.loads(content.decode("utf-8"), parse_constant=refuse, parse_float=number, parse_int=number)
    except (ValueError, RecursionError) as error:  # ValueError: JSONDecodeError and UnicodeDecodeError are both one
        raise UserError(f"{name}: not valid JSON: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{name}: holds no mapping of names to metrics")
    return values


def _yaml(content: bytes, name: str) -> dict[str, Any]:
    """YAML as the stages read it. DVC writes dvc.lock with aliases at times, which this refuses: see parse_lock."""
    values = params.parse_mapping(content, name)
    # What JSON has not, .inf and .nan, as text: it differs from nothing but other text, and can be printed as JSON.
    try:
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str), parse_constant=str)
    except TypeError:
        raise UserError(f"{name}: a key that is not text") from None
    return plain


def parse_lock(content: bytes, name: str) -> Lock:
    """dvc.lock as DVC reads it."""
    from dvc.utils.serialize import ParseError, parse_yaml

    try:
        return Lock.model_validate(parse_yaml(content.decode("utf-8"), name))
    except ParseError:
        raise UserError(f"{name}: not valid YAML") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: {one_line(error)}") from None
