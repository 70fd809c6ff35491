"""What Git and DVC hold of a revision: parameters, metrics, and the bytes of an output that dvc.lock names.

A revision is whatever DVC calls one: a commit, a branch (of a remote, too), a tag, an experiment by name. Nothing is
checked out, and nothing is written. What dvc.lock says was recorded by a run and is not rerun here; `make verify` does.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, Field, ValidationError

from integrity import git, objects
from integrity.objects import BadObject
from integrity.snapshots import MAX_HASHED_BYTES, Commit, WorkTree, folder_md5, md5
from stages.common import machine_settings, params
from stages.common.errors import UserError, printable
from stages.common.text import nearest

WORK_TREE = "work tree"
LOCK = "dvc.lock"
SEEDS_LOCK = "seeds/dvc.lock"  # of the second pipeline, seeds/dvc.yaml
CHECK = "check"  # the stage that reads every parameter, and whose output is always the same
MAX_BYTES = 10_000_000  # of a file that Git keeps and that is parsed here
EXPERIMENT = re.compile("refs/exps/([0-9a-f]{2})/([0-9a-f]{38,})/(.+)")  # baseline commit, in two parts, and name


class LockedFile(BaseModel):
    """A dependency or an output in dvc.lock. md5: of the content; of a folder's list of files if it ends in .dir."""

    path: str
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")] | None = None
    size: Annotated[int, Field(ge=0)] | None = None  # bytes


class LockedStage(BaseModel):
    """A stage in dvc.lock: what it read and what it wrote when it last ran."""

    cmd: str | list[str] | None = None
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
    params: dict[str, Any] | None  # dotted key -> value, without `machine`, which changes no result; None: no file
    read_by: dict[str, list[str]]  # dotted key -> the stages that read it, by dvc.lock
    metrics: dict[str, dict[str, Any]]  # file -> its content
    outs: dict[str, LockedFile]  # path -> output, by dvc.lock
    ran_with: dict[str, Any] = field(default_factory=dict)  # dotted key -> the value that a stage read, by dvc.lock
    notes: list[str] = field(default_factory=list)  # what the user must know to trust the rest, a line each


@contextmanager
def repository(writes: bool = False) -> Iterator[Any]:
    """The DVC repository of the current folder. Raises UserError if it is none, or has no commit in Git.

    Unless the caller `writes`, DVC's locks and state lie in a temporary folder: the checkout may be read-only, and the
    user may have no name, which DVC asks for to name the folder of its state.
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
    """Raise UserError, with the remedy, if Git has none in this folder, or may not read it."""
    if not git.run(root, "rev-list", "--all", "--max-count=1"):
        raise UserError(
            f"{root}: no commit there yet: `git add --all && git commit`, or work in a clone (`git clone URL`)"
        )


def resolve(repo: Any, name: str) -> str:
    """The full hash of the commit that DVC knows as `name`. Raises UserError."""
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
    except (UserError, ValueError):  # ValueError: a name that no program can be given
        names = {ref.removeprefix("refs/heads/").removeprefix("refs/tags/") for ref in refs}
        near = nearest(name, [*sorted(names), *(match[3] for match, _ in parts)]) if len(name) < 100 else ""
        shallow = git.run(root, "rev-parse", "--is-shallow-repository") == b"true\n"
        rest = (
            "`git fetch --unshallow` gets the commits that this shallow clone lacks"
            if shallow
            else ("`git fetch` and `dvc exp pull` get others")
        )
        raise UserError(
            f"unknown revision {shown}{near}; allowed: a commit, branch, tag or experiment that is here ({rest})"
        ) from None
    raise UserError(f"revision {shown} is a file or a folder, not a commit")


def _commit(root: Path, name: str) -> str | None:
    """The full hash of the commit that git knows as `name`."""
    try:
        found = git.run(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").decode()
    except (UserError, ValueError, OSError):  # OSError: longer than a program can be given
        return None
    return found.strip() if re.fullmatch("[0-9a-f]{40,64}\n", found) else None  # ^main is a hash with a ^


def read(repo: Any, name: str | None, params_path: str, metrics_pattern: str, label: str | None = None) -> Revision:
    """Read what Git has of a revision; None: the work tree. Raises UserError.

    params_path: the file of parameters. metrics_pattern: a glob of the files of metrics, such as metrics/*.json.
    label: what the revision is called, if not by its name.
    """
    commit = resolve(repo, name) if name is not None else None
    label = printable(label or (name if name is not None else WORK_TREE))
    files = snapshot(repo, commit)
    paths = files.glob(metrics_pattern)
    contents = files.read(*paths, params_path, LOCK)
    for path, content in contents.items():
        if len(content) > MAX_BYTES:
            raise UserError(f"{label}: {path}: larger than {MAX_BYTES:,} bytes")
    notes = []

    metrics = {path: parse_json(contents[path], f"{label}: {path}") for path in paths}
    if not metrics:
        raise UserError(f"{label}: no {metrics_pattern} there; run `dvc repro` there, and commit what it writes")
    values = None
    if params_path in contents:
        values = flatten(_yaml(contents[params_path], f"{label}: {params_path}"), f"{label}: {params_path}")
        values = {key: value for key, value in values.items() if key.partition(".")[0] != machine_settings.SECTION}
    else:
        notes.append(f"{label}: no {params_path} there: parameters are not compared")
    try:
        lock = parse_lock(contents[LOCK], f"{label}: {LOCK}") if LOCK in contents else Lock()
    except UserError as error:
        lock = Lock()
        notes.append(f"{error}: what the run read and wrote is not known")
    read_by: dict[str, list[str]] = {}
    ran_with: dict[str, Any] = {}
    inputs = []  # that have changed since the run
    for stage, locked in lock.stages.items():
        if stage == CHECK:
            continue
        for key, value in flatten(locked.params.get(params_path, {}), f"{label}: {LOCK}").items():
            read_by.setdefault(key, []).append(stage)
            ran_with[key] = value
            if values is not None and (key not in values or values[key] != value):
                inputs.append(key)
    outs = {out.path: out for locked in lock.stages.values() for out in locked.outs}
    twice = written_twice(lock)
    changed = stale(Path(repo.root_dir), files, lock)
    if inputs := list(dict.fromkeys([*inputs, *(path for path in changed if path not in outs)])):
        notes.append(f"{label}: changed since the run that {LOCK} records: {shortened(inputs)}; `dvc repro` there")
    if outputs := [path for path in changed if path in outs]:
        notes.append(f"{label}: not the file that {LOCK} names: {shortened(outputs)}; edited by hand, or damaged")
    notes += [f"{label}: {line}" for line in contradictions(lock)]
    notes += [
        f"{label}: by {LOCK}, {' and '.join(stages)} wrote {path}: it counts as not there"
        for path, stages in twice.items()
    ]
    outs = {path: out for path, out in outs.items() if path not in twice}
    written = {path: place for place, path in enumerate(outs)}  # the pipeline's order
    metrics = dict(sorted(metrics.items(), key=lambda item: written.get(item[0], len(written))))
    return Revision(label, commit, values, read_by, metrics, outs, ran_with, notes)


def kept(repo: Any, side: Revision, path: str) -> bytes | None:
    """The bytes of a file that Git keeps, as a revision has it; None if it has none. Raises UserError if it is huge."""
    content: bytes | None = snapshot(repo, side.commit).read(path).get(path)
    if content is not None and len(content) > MAX_BYTES:
        raise UserError(f"{side.name}: {path}: larger than {MAX_BYTES:,} bytes")
    return content


def stale(root: Path, files: Commit | WorkTree, lock: Lock) -> list[str]:
    """The dependencies and outputs that are there, or should be, and are not those which dvc.lock was written for.

    Of a commit these are files and folders of files in Git; of the work tree, whatever lies there.
    """
    made = [out.path for stage in lock.stages.values() for out in stage.outs]
    deps = [dep for stage in lock.stages.values() for dep in stage.deps if dep.path not in made]
    locked = [*deps, *(out for stage in lock.stages.values() for out in stage.outs)]
    inside = [file for file in locked if file.md5 and not re.match(r"/|\w+:|\.\.(/|$)", file.path)]
    hashes = files.hashes(dict.fromkeys(file.path for file in inside))

    def missing(path: str) -> bool:
        if any(path == out or path.startswith(f"{out}/") for out in made):  # can be pulled, or made
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


def written_twice(lock: Lock) -> dict[str, list[str]]:
    """The outputs that dvc.lock names for several stages, and these: DVC writes no such file."""
    stages: dict[str, list[str]] = {}
    for stage, locked in lock.stages.items():
        for path in {out.path for out in locked.outs}:
            stages.setdefault(path, []).append(stage)
    return {path: names for path, names in stages.items() if len(names) > 1}


def contradictions(lock: Lock) -> list[str]:
    """Where dvc.lock names one file with two contents: what a stage wrote, and what another one read."""
    written = {out.path: (stage, out.md5) for stage, locked in lock.stages.items() for out in locked.outs}
    return [
        f"by {LOCK}, {stage} read another {dep.path} than {written[dep.path][0]} wrote: edited by hand, or not all of "
        "the stages ran; `dvc repro` there"
        for stage, locked in lock.stages.items()
        for dep in locked.deps
        if dep.path in written and dep.md5 != written[dep.path][1]
    ]


def damaged(repo: Any, sides: Sequence[Revision], besides: str) -> list[str]:
    """A line for each output whose copy in the cache is not the file that dvc.lock names.

    besides: the output that `fetch` looks at. The smallest first, up to snapshots.MAX_HASHED_BYTES in all.
    """
    cache = repo.cache.local
    outs = {out.md5: (side.name, out) for side in sides for out in _with_files(repo, side) if out.path != besides}
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
    """The outputs of a revision, and of those that are folders the files, where the cache has their list."""
    for out in side.outs.values():
        yield out
        if out.md5 is not None and out.md5.endswith(".dir"):
            with suppress(OSError, BadObject):
                listed = objects.folder_list(Path(repo.cache.local.oid_to_path(out.md5)).read_bytes(), out.md5)
                yield from (LockedFile(path=f"{out.path}/{file.path}", md5=file.md5) for file in listed)


def shortened(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def fetch(repo: Any, out: LockedFile) -> tuple[bytes, list[str]]:
    """The bytes of an output as dvc.lock names it, from the work tree, the cache or the default remote, and notes.

    DVC trusts what its cache and remotes hold; here the MD5 is taken of the very bytes that are returned. A copy that
    has another one is passed over with a note. Raises UserError, with the reason, if there is no right copy.
    """
    if out.md5 is None or out.md5.endswith(".dir"):
        raise UserError(f"{LOCK} names no file {out.path} with an MD5")
    local = Path(repo.root_dir, out.path)
    if local.is_file():
        content = local.read_bytes()
        if md5(content) == out.md5:
            return content, []
    return _stored_copy(repo, out)


def fetch_folder(repo: Any, out: LockedFile, scratch: Path) -> Path:
    """A folder with the files of an output that is a folder, as dvc.lock names it: the work tree's, or `scratch`.

    As `fetch`, which says what is trusted. Raises UserError as well if it is larger than snapshots.MAX_HASHED_BYTES.
    """
    if out.md5 is None or not out.md5.endswith(".dir"):
        raise UserError(f"{LOCK} names no folder {out.path} with an MD5")
    if out.size is None or out.size > MAX_HASHED_BYTES:
        raise UserError(f"{out.path}: larger than {MAX_HASHED_BYTES:,} bytes")
    local = Path(repo.root_dir, out.path)
    if local.is_dir() and folder_md5(Path(repo.root_dir), out.path) == out.md5:
        return local
    try:
        listed = objects.folder_list(_stored_copy(repo, LockedFile(path=out.path, md5=out.md5))[0], out.md5)
    except BadObject as error:
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
    cached = cache.oid_to_path(out.md5)
    try:
        content = _read(cache.fs, cached, out)
        if md5(content) == name:
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
    if md5(content) != str(out.md5).removesuffix(".dir"):
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


def snapshot(repo: Any, commit: str | None) -> Commit | WorkTree:
    """The files of a commit, or of the work tree (None)."""
    return Commit(Path(repo.root_dir), commit) if commit else WorkTree(Path(repo.root_dir))


def _read(files: Any, path: str, out: LockedFile) -> bytes:
    """A copy of an output; of one that is too long, one byte too many, which spoils its MD5."""
    with files.open(path, "rb") as file:
        content: bytes = file.read() if out.size is None else file.read(out.size + 1)
    return content


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
