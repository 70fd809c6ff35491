"""`dvc pull` that checks first: `python -m integrity.pull [TARGETS]`, or `make pull`.

DVC 3.67 hashes the files that it fetches, if the remote says `verify`, but neither the list of a folder's files nor an
entry of the run cache: a remote, or one flipped bit in it, decides which files `dvc pull` writes, and where. Here every
object is hashed, whatever the remote says and also if it is in the cache already; every list and every entry is checked
(integrity/objects.py); and only then DVC checks out. What is not right reaches neither the cache nor the work tree. Not
a stage. Exit status: 0, all is there; 2, something is not.
"""

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integrity import objects, revisions
from integrity.objects import BadObject
from stages.common import errors, files
from stages.common.errors import UserError, printable

CHUNK = 1 << 20  # bytes
MAX_JOBS = 1000
NOT_THERE = "not there"  # how the reason begins where a remote has no such object


@dataclass(frozen=True)
class Store:
    """A remote as DVC knows it."""

    name: str
    odb: Any
    jobs: int  # how many objects to fetch at once, by DVC's default for its kind or its configuration

    def place(self, oid: str) -> str:
        """Where the remote has an object, without the password of its URL."""
        return revisions.one_line(ValueError(self.odb.fs.unstrip_protocol(self.odb.oid_to_path(oid))))


@dataclass(frozen=True)
class Output:
    """An output, or what was added with `dvc add`, and the object that Git names for it."""

    path: Path
    oid: str
    size: int | None  # bytes, of all files of a folder
    remote: str | None  # None: the default one


def main() -> int:
    """Fetch, check, check out; returns the exit status."""
    arguments = parser().parse_args()
    with revisions.repository(writes=True) as repo:
        cache, root = Cache(repo), Path(repo.root_dir)
        with at_revision(repo, arguments.rev):
            outputs, unknown = named(repo, root, arguments)
        stores = Stores(repo)
        folders, absent = {}, []
        for out in outputs:
            if out.oid.endswith(".dir"):
                listed = checked_list(cache, stores, root, out, arguments.allow_missing)
                if listed is None:
                    absent.append(out)
                else:
                    folders[out] = listed
        there = [out for out in outputs if out not in absent]
        fetched, missing = fetch_files(cache, stores, there, folders, arguments.jobs, arguments.allow_missing)
        missing = [*(out.path.as_posix() for out in absent), *missing]
        faults = remove_bad_runs(repo)
        runs, refusals = fetch_runs(repo, arguments.remote) if arguments.run_cache else (0, [])
        if not arguments.rev:
            check_out(repo, arguments)
    told = f"{len(outputs)} outputs and {len(folders)} lists of folders checked, {fetched} objects fetched"
    print(f"{told}, {runs} runs" if arguments.run_cache else told, flush=True)
    if missing:
        print(f"in no remote, so to be made by `dvc repro`: {', '.join(missing)}", flush=True)
    if unknown and not arguments.allow_missing:
        faults.append(f"{revisions.LOCK} names no bytes of {', '.join(unknown)}: to make them, `dvc repro`")
    for fault in [*faults, *refusals]:
        print(f"error: {printable(fault)}", file=sys.stderr)
    return 2 if faults or refusals else 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m integrity.pull", description="`dvc pull` that checks first.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="outputs, stages or .dvc files; all if none")
    parser.add_argument("--remote", metavar="NAME", help="another remote than the default one")
    parser.add_argument("--jobs", type=some, metavar="N", help=f"objects fetched at the same time, 1 to {MAX_JOBS}")
    parser.add_argument("--run-cache", action="store_true", help="also the runs that were pushed with --run-cache")
    parser.add_argument("--allow-missing", action="store_true", help="objects that the remote lacks are no error")
    parser.add_argument("--force", action="store_true", help="replace files in the work tree that are not in the cache")
    parser.add_argument(
        "--rev",
        metavar="REV",
        help="what a commit, branch or experiment names, into the cache alone; checks out nothing",
    )
    return parser


def some(text: str) -> int:
    """The value of --jobs. Raises ArgumentTypeError."""
    if not (text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MAX_JOBS):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}; allowed: 1 to {MAX_JOBS}")
    return int(text)


def at_revision(repo: Any, rev: str | None) -> AbstractContextManager[Any]:
    """A block in which the repository is that of a commit; None: the work tree. Raises UserError."""
    from dvc.repo.brancher import switch

    return switch(repo, revisions.resolve(repo, rev)) if rev is not None else nullcontext()


def named(repo: Any, root: Path, arguments: argparse.Namespace) -> tuple[list[Output], list[str]]:
    """The outputs to fetch, and the paths of those whose bytes nothing names yet. Raises UserError."""
    from dvc.repo.index import index_from_targets

    outputs, unknown = [], []
    with dvc_errors():
        found = [out for out in index_from_targets(repo, targets=arguments.targets or None).outs if out.use_cache]
    for out in sorted(found, key=str):
        path = Path(repo.fs.relpath(out.fs_path, repo.root_dir))
        if not out.is_in_repo or out.protocol != "local":
            raise UserError(
                f"{out}: not a file of this repository; only `dvc pull {out}` gets it, and does not check it"
            )
        if out.stage.is_repo_import:
            raise UserError(f"{path}: of another repository; only `dvc update {out.stage.relpath}` gets it, unchecked")
        if out.files or (out.hash_info and out.hash_info.name != "md5"):
            raise UserError(f"{path}: has no MD5 as DVC 3 takes it; `dvc cache migrate --dvc-files` changes that")
        if not (root / path).parent.resolve().is_relative_to(root.resolve()):
            raise UserError(f"{path}: a link on the way leads out of the repository; replace the link by a folder")
        if not out.hash_info:
            unknown.append(path.as_posix())
            continue
        oid = str(out.hash_info.value)
        if not objects.MD5.fullmatch(oid.removesuffix(".dir")):
            raise UserError(
                f"{path}: {oid[:40]!r} is no MD5; `git checkout HEAD -- {revisions.LOCK}` if it was cut off"
            )
        outputs.append(Output(path, oid, out.meta.size if out.meta else None, arguments.remote or out.remote))
    return outputs, unknown


class Stores(dict[str | None, Store]):
    """The remotes by name, each opened when it is first asked for: not at all if the cache has everything."""

    def __init__(self, repo: Any) -> None:
        super().__init__()
        self.repo = repo

    def __missing__(self, remote: str | None) -> Store:
        self[remote] = store(self.repo, remote)
        return self[remote]


def store(repo: Any, remote: str | None, hash_name: str = "md5") -> Store:
    """A remote, the default one if it is None. Raises UserError."""
    from dvc.config import NoRemoteError
    from dvc.exceptions import DvcException

    name = remote or repo.config["core"].get("remote")
    try:
        odb = repo.cloud.get_remote_odb(remote, "pull", hash_name=hash_name)
    except NoRemoteError:
        raise UserError("no remote is set: `dvc remote add --default NAME URL`") from None
    except (DvcException, ImportError, OSError, ValueError) as error:  # a wrong URL, a package that is missing, …
        raise UserError(f"remote {name!r} cannot be used: {revisions.one_line(error)}") from None
    return Store(str(name), odb, odb.fs.jobs)


class Cache:
    """The objects of the local cache."""

    def __init__(self, repo: Any) -> None:
        self.odb = repo.cache.local

    def place(self, oid: str) -> Path:
        return Path(self.odb.oid_to_path(oid))

    def holds(self, oid: str) -> bool:
        """Whether an object is there, with the bytes of its name; one with others is removed.

        Each is hashed: DVC takes what it has fetched for right without a look, and notes so in its state.
        """
        place = self.place(oid)
        try:
            if objects.md5(place) == oid.removesuffix(".dir"):
                return True
        except FileNotFoundError:
            return False
        place.unlink()
        print(f"removed {place} from the cache: not the bytes of its name", flush=True)
        return False

    def fetch(self, oid: str, store: Store, limit: int | None) -> None:
        """Bring an object from a remote, whole and right, or not at all; no more than `limit` bytes.

        Raises BadObject with the reason, OSError if this disk is what fails.
        """
        place = self.place(oid)
        self.odb.makedirs(str(place.parent))
        digest, size = hashlib.md5(usedforsecurity=False), 0
        descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as target:
                for chunk in read(store, store.odb.oid_to_path(oid)):
                    digest.update(chunk)
                    size += len(chunk)
                    if limit is not None and size > limit:
                        raise BadObject(f"longer than the {limit:,} bytes that it has to have")
                    target.write(chunk)
            if digest.hexdigest() != oid.removesuffix(".dir"):
                raise BadObject("not the bytes of its name: damaged, or replaced")
            if oid.endswith(".dir"):
                objects.folder_list(Path(temporary).read_bytes(), oid)
            Path(temporary).replace(place)
            self.odb.protect(str(place))
        finally:
            Path(temporary).unlink(missing_ok=True)


def read(store: Store, path: str) -> Iterator[bytes]:
    """What a remote has at a path, in parts. Raises BadObject with the reason if it does not give it."""
    fs = store.odb.fs
    try:
        with fs.open(path, "rb") as source:
            while chunk := source.read(CHUNK):
                yield chunk
    except GeneratorExit:
        raise
    except Exception as error:  # each kind of remote fails with errors of its own: botocore's, asyncssh's, aiohttp's, …
        cause = error.__cause__ or error
        # HTTP says "no such file" of a server that is down or fails, too: the cause tells.
        down = cause is not error and (isinstance(cause, OSError) or getattr(cause, "status", 404) != 404)
        if isinstance(error, FileNotFoundError) and not down:
            raise BadObject("not there: `dvc push` where it was made") from None
        raise BadObject(f"cannot be fetched: {revisions.one_line(cause)}") from None


def checked_list(
    cache: Cache, stores: Stores, root: Path, out: Output, allow_missing: bool
) -> list[objects.ListedFile] | None:
    """The files of an output that is a folder. Raises UserError if its list cannot be fetched, or is not safe.

    None, with `allow_missing`, if no remote has the list.
    """
    place = cache.place(out.oid)
    if not cache.holds(out.oid):
        try:
            cache.fetch(out.oid, stores[out.remote], objects.MAX_LIST_BYTES)
        except BadObject as error:
            if allow_missing and str(error).startswith(NOT_THERE):
                return None
            raise refused(stores[out.remote], {out.oid: str(error)}, out.path) from None
    try:
        listed = objects.folder_list(place.read_bytes(), out.oid)
        through_links(root, out.path, listed)
    except BadObject as error:
        raise UserError(
            f"{out.path}: its list of files, {place}, {error}; nothing was checked out. The commit that names it "
            f"({revisions.LOCK} or a .dvc file) is not to be trusted: do not use it"
        ) from None
    return listed


def through_links(root: Path, folder: Path, listed: list[objects.ListedFile]) -> None:
    """Raise BadObject if a link in the work tree leads a path out of the folder."""
    inside = (root / folder).resolve()
    for parent in {Path(file.path).parent for file in listed}:
        if not (root / folder / parent).resolve().is_relative_to(inside):
            raise BadObject(f"goes through the link {folder / parent} out of the folder; remove the link")


def fetch_files(
    cache: Cache,
    stores: Stores,
    outputs: list[Output],
    folders: dict[Output, list[objects.ListedFile]],
    jobs: int | None,
    allow_missing: bool,
) -> tuple[int, list[str]]:
    """Bring the files that the cache lacks: how many objects came, and the outputs of those that no remote has.

    Raises UserError for an object that is damaged and, without `allow_missing`, for one that is missing.
    """
    wanted: dict[str, Output] = {}
    for out in outputs:
        for oid in [file.md5 for file in folders[out]] if out in folders else [out.oid]:
            wanted.setdefault(oid, out)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        here = dict(zip(wanted, pool.map(cache.holds, wanted), strict=True))
    missing = [oid for oid in wanted if not here[oid]]
    used = [stores[remote] for remote in dict.fromkeys(wanted[oid].remote for oid in missing)]

    def bring(oid: str) -> str:
        """Why an object did not come, or ""."""
        try:
            cache.fetch(oid, stores[wanted[oid].remote], wanted[oid].size)
        except BadObject as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(jobs or max([1, *(store.jobs for store in used)])) as pool:
        faults = {oid: reason for oid, reason in zip(missing, pool.map(bring, missing), strict=True) if reason}
    absent = [oid for oid, reason in faults.items() if reason.startswith(NOT_THERE)] if allow_missing else []
    if wrong := {oid: reason for oid, reason in faults.items() if oid not in absent}:
        first = wanted[next(iter(wrong))]
        raise refused(stores[first.remote], wrong, first.path)
    return len(missing) - len(absent), list(dict.fromkeys(wanted[oid].path.as_posix() for oid in absent))


def refused(store: Store, faults: dict[str, str], path: Path) -> UserError:
    """The error that names the first of some objects that a remote did not give, and of which output it is."""
    oid, reason = next(iter(faults.items()))
    more = f" ({len(faults) - 1} more likewise)" if len(faults) > 1 else ""
    mend = f"delete {store.place(oid)} and `dvc push` from a clone that has the right one"
    end = "" if reason.startswith((NOT_THERE, "cannot be")) else f"; none of it was taken. To mend the remote: {mend}"
    return UserError(f"remote {store.name!r}: object {oid} of {path}: {reason}{more}{end}")


def fetch_runs(repo: Any, remote: str | None) -> tuple[int, list[str]]:
    """Bring the entries of the run cache that are missing here: how many came, and a line for each that is refused."""
    legacy = store(repo, remote, hash_name="md5-dos2unix")  # DVC keeps runs beside files/md5
    fs, here = legacy.odb.fs, Path(repo.stage_cache.cache_dir)
    if fs.protocol in ("http", "https"):
        print("runs do not travel over HTTP", flush=True)
        return 0, []
    folder = fs.join(legacy.odb.path, "runs")
    try:
        found = sorted(fs.find(folder)) if fs.exists(folder) else []
    except Exception as error:  # as in `read`
        raise UserError(f"remote {legacy.name!r}: its runs cannot be listed: {revisions.one_line(error)}") from None
    count, refusals = 0, []
    for path in found:
        key, value = [*fs.parts(path)][-2:]
        if not (objects.SHA256.fullmatch(key) and objects.SHA256.fullmatch(value)):
            continue  # one that a killed push has left
        if any((here / key[:2] / key).glob("[!.]*")):
            continue  # what has run here is not replaced by what others say
        content = bytearray()
        try:
            for chunk in read(legacy, path):
                content += chunk
                if len(content) > objects.MAX_ENTRY_BYTES:
                    break
            fault = objects.run_cache_fault(key, value, bytes(content))
        except BadObject as error:
            fault = str(error)
        if fault:
            place = revisions.one_line(ValueError(fs.unstrip_protocol(path)))
            refusals.append(f"remote {legacy.name!r}: run {place}: {fault}; it was not taken. To mend: delete it there")
            continue
        files.write_bytes(here / key[:2] / key / value, bytes(content))
        count += 1
    return count, refusals


def remove_bad_runs(repo: Any) -> list[str]:
    """Remove the entries of the local run cache that must not be used; a line for each."""
    faults = []
    for place, fault in unusable_runs(Path(repo.stage_cache.cache_dir)):
        place.unlink()
        with suppress(OSError):  # not empty
            place.parent.rmdir()  # DVC fails on a folder without entries
        faults.append(f"{place}: {fault}; removed. `dvc pull --run-cache` had brought it, or it is damaged")
    return faults


def unusable_runs(folder: Path) -> Iterator[tuple[Path, str]]:
    """The entries of a run cache that must not be used, each with the reason."""
    for place in sorted(folder.glob("*/*/*")):
        if objects.SHA256.fullmatch(place.name) and place.is_file():
            fault = objects.run_cache_fault(place.parent.name, place.name, place.read_bytes())
            if fault:
                yield place, fault


def check_out(repo: Any, arguments: argparse.Namespace) -> None:
    """Have DVC put into the work tree what is in the cache. Raises UserError."""
    with dvc_errors():
        repo.checkout(targets=arguments.targets or None, force=arguments.force, allow_missing=True)


@contextmanager
def dvc_errors() -> Iterator[None]:
    """A block in which an error of DVC is the user's to read, in one line."""
    from dvc.exceptions import DvcException

    try:
        yield
    except DvcException as error:
        raise UserError(revisions.one_line(error)) from None


if __name__ == "__main__":
    errors.run_command(main)
