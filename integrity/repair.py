"""Put away what a killed dvc has left and what the next one would refuse to start from: `python -m integrity.repair`.

DVC writes two of its files in place. A kill, or a full disk, in the middle of that leaves a torn dvc.lock or a torn
.dvc/tmp/rwlock, and `dvc repro` ends in an error until somebody acts. Here the last good dvc.lock, of HEAD, takes the
torn one's place: what has run since comes back from DVC's run cache, and runs again only where that has not got it.
An entry of the run cache, DVC 3.67 writes under a temporary name in a folder of its own, and renames it: killed before
that, it leaves a folder without an entry, which fails every later `dvc repro` that looks there ("join() argument must
be str, bytes, or os.PathLike object, not 'NoneType'"). Such a folder goes. A stage that is killed leaves the file that
it was writing, under another name, which nobody reads: that goes, too.
`make repro` runs this first. Not a stage; says a line for each thing it does, and nothing when all is well.
"""

import json
import re
from pathlib import Path
from typing import Any

from integrity import git, merging
from stages.common import errors, files, paths
from stages.common.errors import UserError

LOCKS = (Path("dvc.lock"), Path("seeds/dvc.lock"))  # DVC reads both, whatever it runs
TEMPORARY = Path(".dvc/tmp")
RWLOCK = TEMPORARY / "rwlock"


def main() -> None:
    """Mend the repository in the working directory, unless a dvc is at work in it. Raises UserError."""
    errors.no_arguments()
    merging.resolve()
    if not damaged():
        return
    from dvc.lock import Lock, LockError

    TEMPORARY.mkdir(exist_ok=True)  # a fresh clone has none
    try:  # DVC's own locks, so that nothing that is being written is taken for torn
        with Lock(str(TEMPORARY / "lock")), Lock(str(TEMPORARY / "rwlock.lock")):
            paths.RUNS.mkdir(exist_ok=True)
            mend()
    except LockError:
        print("a dvc is at work here already: nothing is mended", flush=True)


def damaged() -> bool:
    """Whether there is something to mend."""
    locks = any(lock.exists() and torn(lock.read_bytes()) for lock in LOCKS)
    return (
        locks
        or (RWLOCK.exists() and bool(abandoned(RWLOCK)))
        or bool(unfinished(Path()))
        or bool(unfinished_entries(run_cache(Path())))
    )


def mend() -> None:
    """Put the torn files away, a line for each."""
    for lock in LOCKS:
        if lock.exists() and torn(lock.read_bytes()):
            mend_lock(lock)
    if RWLOCK.exists() and (reason := abandoned(RWLOCK)):
        RWLOCK.unlink()
        print(f"removed {RWLOCK}: {reason}", flush=True)
    for path in unfinished_entries(run_cache(Path())):
        path.rmdir() if path.is_dir() else path.unlink()
        print(f"removed {path}: an entry of the run cache that a killed dvc had not finished", flush=True)
    with errors.one_stage_at_a_time(wait=False) as free:  # a stage may still be writing
        for path in unfinished(Path()) if free else []:
            path.unlink()
            print(f"removed {path}: its stage was killed while it wrote it", flush=True)


def mend_lock(lock: Path) -> None:
    """Set a torn dvc.lock aside, and put that of HEAD in its place."""
    good = committed_lock(lock)
    files.write_bytes(aside(lock), lock.read_bytes())
    if good is None:
        lock.unlink()
        instead = "HEAD has none: begun anew"
    else:
        files.write_bytes(lock, good)
        instead = "that of HEAD takes its place"
    print(f"{lock} was cut off while it was written: set aside as {aside(lock)}; {instead}", flush=True)


def aside(lock: Path) -> Path:
    """Where a torn dvc.lock is kept."""
    return paths.RUNS / f"{'-'.join(lock.parts)}.torn"


def unfinished(root: Path) -> list[Path]:
    """The temporary files of `files.write_bytes` that are there, in a repository."""
    folders = ("data", "metrics", paths.RUNS.as_posix())
    return [path for folder in folders for path in sorted((root / folder).rglob(".*.tmp"))]


def committed_lock(lock: Path) -> bytes | None:
    """A dvc.lock of HEAD; None if HEAD is there and has none. Raises UserError if that cannot be told."""
    try:
        if not git.run(Path(), "ls-tree", "-z", "HEAD", "--", f"./{lock}"):
            return None
        return git.run(Path(), "show", f"HEAD:./{lock}")
    except UserError as error:
        raise UserError(
            f"{lock} was cut off while it was written, and that of HEAD cannot be read: {error}; nothing was changed. "
            f"To begin anew: mv {lock} {aside(lock)}"
        ) from None


def run_cache(root: Path) -> Path:
    """The folder of DVC's run cache, of the repository at `root`.

    DVC says where its cache is, which takes half a second: it is asked only where a configuration speaks of a cache.
    """
    import dvc.dirs

    folders = (root / ".dvc", Path(dvc.dirs.global_config_dir()), Path(dvc.dirs.system_config_dir()))
    places = [root / ".dvc/config.local", *(folder / "config" for folder in folders)]
    if any(re.search(r"^\s*\[cache\]", path.read_text("utf-8"), re.MULTILINE) for path in places if path.is_file()):
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        try:
            with Repo(str(root)) as repo:
                return Path(repo.cache.local_cache_dir) / "runs"
        except DvcException as error:
            raise UserError(f"DVC cannot say where its cache is: {' '.join(str(error).split())}") from None
    return root / ".dvc/cache/runs"


def unfinished_entries(folder: Path) -> list[Path]:
    """Of a run cache: the files that are no entry, then the folders that without them hold none."""
    entries = [path for path in sorted(folder.glob("*/*/*")) if path.name.endswith(".tmp")]
    folders = [path for path in sorted(folder.glob("*/*")) if path.is_dir()]
    return entries + [folder for folder in folders if set(folder.iterdir()) <= set(entries)]


def torn(content: bytes) -> bool:
    """Whether DVC cannot read this dvc.lock, and no person has to decide about it, as in a merge conflict."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import ParseError, parse_yaml
    from voluptuous import Invalid

    if b"\n<<<<<<< " in content or content.startswith(b"<<<<<<< "):
        return False
    try:
        COMPILED_LOCKFILE_SCHEMA(parse_yaml(content.decode("utf-8"), "dvc.lock"))
    except (ParseError, Invalid, ValueError):  # ValueError: bytes that are no text
        return True
    return False


def abandoned(path: Path) -> str:
    """Why nobody can be at work under these locks of outputs, or "" if somebody may be.

    DVC itself forgets the locks of a process that is gone. But process numbers come again, soon so in containers, where
    they begin at 1 each time: then a stranger, or a zombie that nobody reaps, seems to hold them.
    """
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        readers = [info for infos in held.get("read", {}).values() for info in infos]
        holders = {int(info["pid"]): str(info["cmd"]) for info in [*held.get("write", {}).values(), *readers]}
    except (ValueError, TypeError, KeyError, AttributeError):
        return "cut off while it was written"
    if not holders or any(may_be(number, command) for number, command in holders.items()):
        return ""
    return f"of a dvc that is gone ({', '.join(f'process {number}' for number in sorted(holders))})"


def may_be(process: int, command: str) -> bool:
    """Whether a process is there that may be the one of a command, as DVC notes it: sys.argv, joined by spaces."""
    if not Path("/proc/self/cmdline").exists():  # another system: nothing is taken from a process that may be at work
        return True
    try:
        running = Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    # argv[0] is another one there than in the list of processes: of `python -m dvc`, a file
    last = command.split(" ")[-1]
    return last.endswith("__main__.py") or running.rstrip("\0").replace("\0", " ").endswith(last)


if __name__ == "__main__":
    errors.run_command(main, kept="what was mended is said above")
