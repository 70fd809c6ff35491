"""Remove what a killed dvc left and the next one would refuse to start from: `python -m integrity.repair`.

`make repro` runs this first. It prints one line per repair, and nothing if there is nothing to do. It repairs:

- dvc.lock, which DVC writes in place: a kill, or a full disk, truncates it. HEAD's dvc.lock replaces it; the results of
  later runs come back from the run cache.
- .dvc/tmp/rwlock, likewise, or if it names processes that no longer exist.
- entries of the run cache: DVC 3.67 writes each under a temporary name in a folder of its own. A folder without an
  entry fails every later `dvc repro` that looks there ("join() argument must be str, bytes, or os.PathLike object").
- temporary files that a killed stage was writing.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import platformdirs

from integrity import git, merging
from integrity.lock_files import LOCKS as LOCK_FILES
from stages.common import errors, files, paths
from stages.common.errors import UserError, one_line

LOCKS = tuple(map(Path, LOCK_FILES))
TEMPORARY = Path(".dvc/tmp")
RWLOCK = TEMPORARY / "rwlock"
COMPLETE = re.compile(rb"\n +(size|nfiles): \d+\n\Z")  # the last line of a dvc.lock, and of any entry in it


def main() -> None:
    """Repair the repository in the working directory, unless a dvc is running there. Raises UserError."""
    errors.no_arguments()
    merging.resolve()
    if not needs_repair():
        return
    from dvc.lock import Lock, LockError

    TEMPORARY.mkdir(exist_ok=True)  # missing in a fresh clone
    try:  # DVC's own locks, so that a file that is just being written does not count as truncated
        with Lock(str(TEMPORARY / "lock")), Lock(str(TEMPORARY / "rwlock.lock")):
            paths.RUNS.mkdir(exist_ok=True)
            repair()
    except LockError:
        print("dvc is already running here: nothing is repaired", flush=True)


def needs_repair() -> bool:
    """Whether there is something to repair."""
    return (
        any(lock.exists() and truncated(lock.read_bytes()) for lock in LOCKS)
        or (RWLOCK.exists() and bool(stale_reason(RWLOCK)))
        or bool(unfinished(Path()))
        or bool(unfinished_entries(run_cache(Path())))
    )


def repair() -> None:
    """Repair everything, and print one line per repair."""
    for lock in LOCKS:
        if lock.exists() and truncated(lock.read_bytes()):
            repair_lock(lock)
    if RWLOCK.exists() and (reason := stale_reason(RWLOCK)):
        RWLOCK.unlink()
        print(f"removed {RWLOCK}: {reason}", flush=True)
    for path in unfinished_entries(run_cache(Path())):
        path.rmdir() if path.is_dir() else path.unlink()
        print(f"removed {path}: an unfinished entry of the run cache, from a killed dvc", flush=True)
    with errors.one_stage_at_a_time(wait=False) as free:  # a running stage may still be writing
        for path in unfinished(Path()) if free else []:
            path.unlink(missing_ok=True)
            print(f"removed {path}: unfinished, its stage was killed", flush=True)


def repair_lock(lock: Path) -> None:
    """Set a truncated dvc.lock aside, and replace it by HEAD's."""
    committed = committed_lock(lock)
    files.write_bytes(aside(lock), lock.read_bytes())
    if committed is None:
        lock.unlink()
    else:
        files.write_bytes(lock, committed)
    action = "deleted, since HEAD has none" if committed is None else "replaced by HEAD's"
    print(f"{lock} was truncated by a kill: moved to {aside(lock)}, and {action}", flush=True)


def aside(lock: Path) -> Path:
    """The path to keep a truncated dvc.lock at."""
    return paths.RUNS / f"{'-'.join(lock.parts)}.torn"


def unfinished(root: Path) -> list[Path]:
    """The temporary files of `files.write_bytes` in a repository, without those of a search, which may be running."""
    found = []
    for top in ("data", "metrics", paths.RUNS.as_posix()):
        for folder, folders, names in os.walk(root / top):
            folders[:] = [name for name in folders if Path(folder, name) != root / paths.SEARCH]
            found += [Path(folder, name) for name in names if name.startswith(".") and name.endswith(".tmp")]
    return sorted(found)


def committed_lock(lock: Path) -> bytes | None:
    """A dvc.lock of HEAD; None if HEAD has none. Raises UserError if HEAD cannot be read."""
    try:
        git.run(Path(), "rev-parse", "--verify", "HEAD")
        return git.file(Path(), "HEAD", str(lock))
    except UserError as error:
        raise UserError(
            f"{lock} was truncated by a kill, and HEAD's cannot be read: {error}; nothing was changed. "
            f"To start without it: mv {lock} {aside(lock)}"
        ) from None


def run_cache(root: Path) -> Path:
    """The folder of DVC's run cache, of the repository at `root`.

    DVC is asked, which takes half a second, only if a configuration file has a section about the cache.
    """
    folders = [  # as dvc.dirs has them; importing DVC takes 0.1 s
        os.getenv("DVC_GLOBAL_CONFIG_DIR") or platformdirs.user_config_dir("dvc", "iterative"),
        os.getenv("DVC_SYSTEM_CONFIG_DIR") or platformdirs.site_config_dir("dvc", "iterative"),
    ]
    configs = [root / ".dvc/config.local", root / ".dvc/config", *(Path(folder, "config") for folder in folders)]
    if any(re.search(r"^\s*\[cache\]", path.read_text("utf-8"), re.MULTILINE) for path in configs if path.is_file()):
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        try:
            with Repo(str(root)) as repo:
                return Path(repo.cache.local_cache_dir) / "runs"
        except DvcException as error:
            raise UserError(f"DVC cannot read the location of its cache: {one_line(error)}") from None
    return root / ".dvc/cache/runs"


def unfinished_entries(folder: Path) -> list[Path]:
    """The temporary files in a run cache, followed by the folders that hold nothing else."""
    temporary = [path for path in sorted(folder.glob("*/*/*")) if path.name.endswith(".tmp")]
    folders = [path for path in sorted(folder.glob("*/*")) if path.is_dir()]
    return temporary + [folder for folder in folders if set(folder.iterdir()) <= set(temporary)]


def truncated(content: bytes) -> bool:
    """Whether DVC cannot read this dvc.lock. A merge conflict does not count: a person has to resolve it."""
    if COMPLETE.search(content) and b"\0" not in content:
        return False  # without importing DVC, which takes 0.2 s
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import ParseError, parse_yaml
    from voluptuous import Invalid

    if merging.conflicts(content):
        return False
    try:
        COMPILED_LOCKFILE_SCHEMA(parse_yaml(content.decode("utf-8"), LOCKS[0].name))
    except (ParseError, Invalid, ValueError):  # ValueError: not UTF-8
        return True
    return False


def stale_reason(path: Path) -> str:
    """Why the locks in this rwlock file are stale, or "" if their owners may be running.

    DVC ignores locks of processes that no longer exist. But process numbers are reused, in containers after every
    start: then another process, or a zombie, seems to hold them.
    """
    try:
        locks: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        readers = [info for infos in locks.get("read", {}).values() for info in infos]
        owners = {int(info["pid"]): str(info["cmd"]) for info in [*locks.get("write", {}).values(), *readers]}
    except (ValueError, TypeError, KeyError, AttributeError):
        return "truncated by a kill"
    if not owners or any(may_run(number, command) for number, command in owners.items()):
        return ""
    return f"left by a dvc that has ended ({', '.join(f'process {number}' for number in sorted(owners))})"


def may_run(process: int, command: str) -> bool:
    """Whether a process may be the owner of a lock. command: sys.argv, joined by spaces, as DVC records it."""
    if not Path("/proc/self/cmdline").exists():  # another system: be careful, and keep the lock
        return True
    running = command_line(process)
    # argv[0] differs from the process list: for `python -m dvc` it is a file
    last = command.split(" ")[-1]
    return bool(running) and (last.endswith("__main__.py") or running.rstrip("\0").replace("\0", " ").endswith(last))


def command_line(process: int) -> str:
    """The command line of a process, as in /proc; "" if it has ended or is a zombie."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    errors.run_command(main, kept="the lines above list the repairs that were made")
