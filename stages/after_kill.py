"""Mend what a dvc that was killed leaves, and stumbles over for ever: `make repro` does this before it calls dvc.

* An unfinished entry of the run cache. DVC 3.67 makes the entry's folder, writes the entry in it under a temporary
  name, and renames it (dvc.stage.cache.StageCache.save). A folder without an entry fails every later `dvc repro` that
  looks there: "join() argument must be str, bytes, or os.PathLike object, not 'NoneType'".
* A list of locked files, .dvc/tmp/rwlock, that is cut off: DVC writes it in place, and refuses to read half of it.
"""

import json
from pathlib import Path

from stages import errors

RUN_CACHE = Path(".dvc/cache/runs")
RWLOCK = Path(".dvc/tmp/rwlock")


def main() -> None:
    """Remove what is unfinished, unless a dvc is at work and writes it just now."""
    if not unfinished():
        return
    from dvc.exceptions import DvcException  # most of a second, for once in a blue moon
    from dvc.repo import Repo

    try:
        with Repo() as repo, repo.lock:  # which dvc holds whenever it writes these
            for path in unfinished():
                path.rmdir() if path.is_dir() else path.unlink()
                print(f"removed {path}: a dvc that was killed left it unfinished", flush=True)
    except DvcException:
        return  # another dvc is at work: the one that comes next says so


def unfinished(root: Path = Path()) -> list[Path]:
    """What is to be removed, in that order."""
    files = [path for path in sorted((root / RUN_CACHE).glob("*/*/*")) if path.name.endswith(".tmp")]
    folders = [path for path in sorted((root / RUN_CACHE).glob("*/*")) if path.is_dir()]
    empty = [folder for folder in folders if set(folder.iterdir()) <= set(files)]
    return files + empty + ([root / RWLOCK] if torn(root / RWLOCK) else [])


def torn(path: Path) -> bool:
    """Whether a file is there and is not JSON; DVC takes an empty one for an empty list."""
    try:
        json.loads(path.read_bytes() or b"{}")
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return False


if __name__ == "__main__":
    errors.run(main, alone=False)
