"""`dvc pull` with checks: `python -m integrity.pull [TARGETS]`, or `make pull`.

DVC 3.67 hashes the files it fetches if the remote is configured with `verify`, but neither the list of a folder's files
nor an entry of the run cache. So a remote, or one flipped bit in it, decides which files `dvc pull` writes, and where.
This program hashes every object, including those already in the cache, and checks every list and every entry
(integrity/objects.py). Only then does DVC check out. Whatever fails a check reaches neither the cache nor the work
tree. An output of `dvc import` is not in the remote but in another repository, from which `dvc pull` fetches it. Exit
status: 0, everything else is there; 2, something is not.
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
from integrity.lock_files import LOCK
from integrity.objects import BadObjectError
from integrity.remotes import MissingObjectError, Remote, UnreadableObjectError, open_remote
from stages.common import errors, files
from stages.common.digests import file_md5
from stages.common.errors import UserError, one_line, printable
from stages.common.text import listed

MAX_JOBS = 1000
SHOWN = 3  # names in one message


@dataclass(frozen=True)
class Output:
    """An output of a stage or of `dvc add`, and its object as recorded in Git."""

    path: Path
    oid: str
    size: int | None  # bytes, of all files of a folder
    remote: str | None  # None: the default remote


def main() -> int:
    """Fetch, check, and check out; returns the exit status."""
    arguments = parser().parse_args()
    with revisions.repository(writes=True) as repo:
        cache, root = Cache(repo), Path(repo.root_dir)
        with at_revision(repo, arguments.rev):
            outputs, unknown, imports = select(repo, root, arguments)
        remotes = Remotes(repo)
        folders, absent = fetch_lists(cache, remotes, root, outputs, arguments.allow_missing)
        outputs = [out for out in outputs if out not in absent]
        fetched, incomplete = fetch_files(cache, remotes, outputs, folders, arguments.jobs, arguments.allow_missing)
        missing = [*absent, *incomplete]
        faults = remove_bad_runs(repo)
        runs, refusals = fetch_runs(repo, arguments.remote) if arguments.run_cache else (0, [])
        # Of an output that is left out, DVC would delete the files in the work tree, or refuse to.
        left_out = bool(missing or unknown or imports)
        targets = [str(root / out.path) for out in outputs if out not in missing] if left_out else arguments.targets
        if not arguments.rev and (targets or not left_out):
            check_out(repo, targets, arguments.force)
    summary = f"checked {len(outputs)} outputs and {len(folders)} lists of folders, fetched {fetched} objects"
    print(f"{summary}, {runs} runs" if arguments.run_cache else summary, flush=True)
    if missing:
        names = ", ".join(out.path.as_posix() for out in missing)
        print(f"in no remote, so `dvc repro` has to make them: {names}", flush=True)
    for file in imports:
        print(f"imported from another repository: `dvc pull {file}` fetches it, without these checks", flush=True)
    if unknown and not arguments.allow_missing:
        faults.append(f"{LOCK} records no MD5 for {', '.join(unknown)}; `dvc repro` makes them")
    for fault in [*faults, *refusals]:
        print(f"error: {printable(fault)}", file=sys.stderr)
    return 2 if faults or refusals else 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m integrity.pull", description="`dvc pull` with checks.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="outputs, stages or .dvc files (default: all)")
    parser.add_argument("--remote", metavar="NAME", help="another remote than the default one")
    parser.add_argument("--jobs", type=job_count, metavar="N", help=f"objects fetched at once, 1 to {MAX_JOBS}")
    parser.add_argument("--run-cache", action="store_true", help="also the runs that were pushed with --run-cache")
    parser.add_argument("--allow-missing", action="store_true", help="objects that the remote lacks are no error")
    parser.add_argument("--force", action="store_true", help="replace files of the work tree that the cache lacks")
    parser.add_argument(
        "--rev", metavar="REV", help="fetch the outputs of a commit, branch or experiment; check out nothing"
    )
    return parser


def job_count(text: str) -> int:
    """The value of --jobs. Raises ArgumentTypeError."""
    if not (text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MAX_JOBS):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}; allowed: 1 to {MAX_JOBS}")
    return int(text)


def at_revision(repo: Any, rev: str | None) -> AbstractContextManager[Any]:
    """A block in which `repo` is at a commit; None: the work tree. Raises UserError."""
    from dvc.repo.brancher import switch

    return switch(repo, revisions.resolve(repo, rev)) if rev is not None else nullcontext()


def select(repo: Any, root: Path, arguments: argparse.Namespace) -> tuple[list[Output], list[str], list[str]]:
    """The outputs to fetch, the paths of those without a recorded MD5, and the .dvc files of imports.

    Raises UserError, also if an import is named as a target.
    """
    from dvc.repo.index import index_from_targets

    outputs, unknown, imports = [], [], []
    with dvc_errors():
        found = [out for out in index_from_targets(repo, targets=arguments.targets or None).outs if out.use_cache]
    for out in sorted(found, key=str):
        path = Path(repo.fs.relpath(out.fs_path, repo.root_dir))
        oid = str(out.hash_info.value)
        if not out.is_in_repo or out.protocol != "local":
            raise UserError(f"{out}: lies outside of this repository; use `dvc pull {out}`, which does not check it")
        if out.stage.is_repo_import:
            if arguments.targets:
                raise UserError(f"{path}: imported; use `dvc pull {out.stage.relpath}`, which does not check it")
            imports.append(str(out.stage.relpath))
            continue
        if out.files or (out.hash_info and out.hash_info.name != "md5"):
            raise UserError(f"{path}: recorded by DVC 2; run `dvc cache migrate --dvc-files`")
        if not (root / path).parent.resolve().is_relative_to(root.resolve()):
            raise UserError(f"{path}: a parent folder is a link out of the repository; replace the link by a folder")
        if not out.hash_info:
            unknown.append(path.as_posix())
        elif not objects.MD5.fullmatch(oid.removesuffix(".dir")):
            raise UserError(f"{path}: {oid[:40]!r} is no MD5; `git checkout HEAD -- {LOCK}` if it was truncated")
        else:
            outputs.append(Output(path, oid, out.meta.size if out.meta else None, arguments.remote or out.remote))
    return outputs, unknown, imports


class Remotes(dict[str | None, Remote]):
    """The remotes by name. Each is opened on first use: none at all if the cache has everything."""

    def __init__(self, repo: Any) -> None:
        super().__init__()
        self.repo = repo

    def __missing__(self, name: str | None) -> Remote:
        self[name] = open_remote(self.repo, name)
        return self[name]


class Cache:
    """The objects of the local cache."""

    def __init__(self, repo: Any) -> None:
        self.odb = repo.cache.local

    def place(self, oid: str) -> Path:
        return Path(self.odb.oid_to_path(oid))

    def holds(self, oid: str) -> bool:
        """Whether the cache has an object, intact; a damaged one is removed.

        Always hashes: DVC records fetched objects as correct without hashing them.
        """
        place = self.place(oid)
        try:
            if file_md5(place) == oid.removesuffix(".dir"):
                return True
        except FileNotFoundError:
            return False
        place.unlink()
        print(f"removed {place} from the cache: its content does not match its name", flush=True)
        return False

    def fetch(self, oid: str, remote: Remote, limit: int | None) -> None:
        """Fetch an object of at most `limit` bytes, whole and correct, or not at all.

        Raises BadObjectError, MissingObjectError or UnreadableObjectError; OSError if the local disk fails.
        """
        place = self.place(oid)
        self.odb.makedirs(str(place.parent))
        digest, size = hashlib.md5(usedforsecurity=False), 0
        descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as target:
                for chunk in remote.read(remote.odb.oid_to_path(oid)):
                    digest.update(chunk)
                    size += len(chunk)
                    if limit is not None and size > limit:
                        raise BadObjectError(f"longer than its recorded size of {limit:,} bytes")
                    target.write(chunk)
            if digest.hexdigest() != oid.removesuffix(".dir"):
                raise BadObjectError(objects.WRONG_CONTENT)
            if oid.endswith(".dir"):
                objects.folder_list(Path(temporary).read_bytes(), oid)
            Path(temporary).replace(place)
            self.odb.protect(str(place))
        finally:
            Path(temporary).unlink(missing_ok=True)


def fetch_lists(
    cache: Cache, remotes: Remotes, root: Path, outputs: list[Output], allow_missing: bool
) -> tuple[dict[Output, list[objects.ListedFile]], list[Output]]:
    """The files of the outputs that are folders, and, with `allow_missing`, the folders whose list no remote has.

    Raises UserError if a list is unavailable or unsafe.
    """
    folders, absent = {}, []
    for out in outputs:
        if not out.oid.endswith(".dir"):
            continue
        try:
            if not cache.holds(out.oid):
                cache.fetch(out.oid, remotes[out.remote], objects.MAX_LIST_BYTES)
            folders[out] = checked_list(cache, root, out)
        except (BadObjectError, MissingObjectError, UnreadableObjectError) as error:
            if not (allow_missing and isinstance(error, MissingObjectError)):
                raise refusal(remotes[out.remote], {out.oid: error}, out.path) from None
            absent.append(out)
    return folders, absent


def checked_list(cache: Cache, root: Path, out: Output) -> list[objects.ListedFile]:
    """The files of an output that is a folder, from the cache. Raises UserError if its list is unsafe."""
    place = cache.place(out.oid)
    try:
        listed = objects.folder_list(place.read_bytes(), out.oid)
        refuse_links(root, out.path, listed)
    except BadObjectError as error:
        raise UserError(
            f"{out.path}: its list of files, {place}, {error}; nothing was checked out. Do not trust the commit that "
            f"records it (in {LOCK} or a .dvc file)"
        ) from None
    return listed


def refuse_links(root: Path, folder: Path, listed: list[objects.ListedFile]) -> None:
    """Raise BadObjectError if a link in the work tree leads a path out of the folder."""
    inside = (root / folder).resolve()
    for parent in {Path(file.path).parent for file in listed}:
        if not (root / folder / parent).resolve().is_relative_to(inside):
            raise BadObjectError(f"goes through the link {folder / parent} out of the folder; remove the link")


def fetch_files(
    cache: Cache,
    remotes: Remotes,
    outputs: list[Output],
    folders: dict[Output, list[objects.ListedFile]],
    jobs: int | None,
    allow_missing: bool,
) -> tuple[int, list[Output]]:
    """Fetch the files that the cache lacks; returns how many, and the outputs of which no remote has every file.

    Raises UserError for a damaged object and, unless `allow_missing`, for a missing one.
    """
    oids = {out: [file.md5 for file in folders[out]] if out in folders else [out.oid] for out in outputs}
    owners: dict[str, Output] = {}
    for out in outputs:
        for oid in oids[out]:
            owners.setdefault(oid, out)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lacking = [oid for oid, held in zip(owners, pool.map(cache.holds, owners), strict=True) if not held]
    used = [remotes[name] for name in dict.fromkeys(owners[oid].remote for oid in lacking)]

    def fetch(oid: str) -> Exception | None:
        try:
            cache.fetch(oid, remotes[owners[oid].remote], owners[oid].size)
        except (BadObjectError, MissingObjectError, UnreadableObjectError) as error:
            return error
        return None

    with ThreadPoolExecutor(jobs or max([1, *(remote.jobs for remote in used)])) as pool:
        faults = {oid: fault for oid, fault in zip(lacking, pool.map(fetch, lacking), strict=True) if fault}
    absent = {oid for oid, fault in faults.items() if allow_missing and isinstance(fault, MissingObjectError)}
    if refused := {oid: fault for oid, fault in faults.items() if oid not in absent}:
        first = owners[next(iter(refused))]
        raise refusal(remotes[first.remote], refused, first.path)
    return len(lacking) - len(absent), [out for out in outputs if not absent.isdisjoint(oids[out])]


def refusal(remote: Remote, faults: dict[str, Exception], path: Path) -> UserError:
    """The error for objects that a remote did not deliver; it names the first one and its output."""
    oid, fault = next(iter(faults.items()))
    more = f" ({len(faults) - 1} more likewise)" if len(faults) > 1 else ""
    fix = f"delete {remote.place(oid)} and `dvc push` from a clone that has the right one"
    end = f"; nothing of it was used. To fix the remote: {fix}" if isinstance(fault, BadObjectError) else ""
    return UserError(f"remote {remote.name!r}: object {oid} of {path}: {fault}{more}{end}")


def fetch_runs(repo: Any, name: str | None) -> tuple[int, list[str]]:
    """Fetch the missing entries of the run cache; returns how many, and a line for each that was refused."""
    remote = open_remote(repo, name, hash_name="md5-dos2unix")  # DVC keeps runs beside files/md5
    fs, here = remote.odb.fs, Path(repo.stage_cache.cache_dir)
    if fs.protocol in ("http", "https"):
        print("runs do not travel over HTTP", flush=True)
        return 0, []
    folder = fs.join(remote.odb.path, "runs")
    try:
        found = sorted(fs.find(folder)) if fs.exists(folder) else []
    except Exception as error:  # as in Remote.read
        raise UserError(f"remote {remote.name!r}: cannot list its runs: {one_line(error)}") from None
    count, refusals = 0, []
    for path in found:
        key, value = [*fs.parts(path)][-2:]
        if not (objects.SHA256.fullmatch(key) and objects.SHA256.fullmatch(value)):
            continue  # left by a push that was killed
        if any((here / key[:2] / key).glob("[!.]*")):
            continue  # a run made here takes precedence
        content = bytearray()
        try:
            for chunk in remote.read(path):
                content += chunk
                if len(content) > objects.MAX_ENTRY_BYTES:
                    break
            fault = objects.run_cache_fault(key, value, bytes(content))
        except (MissingObjectError, UnreadableObjectError) as error:
            fault = str(error)
        if fault:
            url = one_line(fs.unstrip_protocol(path))
            refusals.append(f"remote {remote.name!r}: run {url}: {fault}; it was not used. To fix: delete it there")
            continue
        files.write_bytes(here / key[:2] / key / value, bytes(content))
        count += 1
    return count, refusals


def remove_bad_runs(repo: Any) -> list[str]:
    """Remove the unusable entries of the local run cache; returns a line for each."""
    faults = []
    for place, fault in unusable_runs(Path(repo.stage_cache.cache_dir)):
        place.unlink()
        with suppress(OSError):  # not empty
            place.parent.rmdir()  # DVC fails on a folder without entries
        faults.append(f"{place}: {fault}; removed. `dvc pull --run-cache` fetched it, or it is damaged")
    return faults


def unusable_runs(folder: Path) -> Iterator[tuple[Path, str]]:
    """The unusable entries of a run cache, each with the reason."""
    for place in sorted(folder.glob("*/*/*")):
        if objects.SHA256.fullmatch(place.name) and place.is_file():
            fault = objects.run_cache_fault(place.parent.name, place.name, place.read_bytes())
            if fault:
                yield place, fault


def check_out(repo: Any, targets: list[str], force: bool) -> None:
    """Let DVC check out these targets; none: all. Raises UserError."""
    from dvc.exceptions import CheckoutError

    with dvc_errors():
        try:
            repo.checkout(targets=targets or None, force=force)
        except CheckoutError as error:  # DVC deletes an output that it cannot complete, and does not say why
            raise UserError(
                f"{listed(error.target_infos, SHOWN)}: could not be written, so DVC removed it; is the disk full? The "
                "cache has everything: run this again"
            ) from None


@contextmanager
def dvc_errors() -> Iterator[None]:
    """A block in which errors of DVC become UserErrors."""
    from dvc.exceptions import DvcException

    try:
        yield
    except DvcException as error:
        # DVC's message names the option of `dvc checkout`.
        message = one_line(error).replace("Use `--force` to force.", "`make pull ARGS=--force` replaces them:")
        raise UserError(message) from None


if __name__ == "__main__":
    errors.run_command(main)
