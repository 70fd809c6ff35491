"""MD5 digests as DVC computes them: dvc.lock and the cache name files and folders by these."""

import hashlib
from pathlib import Path
from typing import NamedTuple


class Digest(NamedTuple):
    """What dvc.lock records of a file or a folder."""

    md5: str  # of a folder: of the list of its files, followed by .dir
    size: int  # bytes; of a folder: of all its files


def md5(content: bytes) -> str:
    """The MD5 of bytes."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def file_md5(path: Path) -> str:
    """The MD5 of a file, which may be larger than memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def digest(root: Path, path: str) -> Digest | None:
    """The digest of a file or a folder, computed from its bytes; None if DVC can hash nothing there.

    root: the top of the DVC repository, whose .dvcignore applies to folders. DVC refuses a folder with a .dvcignore of
    its own. A pipe or a device would block its reader forever, so it has no digest either.
    """
    place = root / path
    if place.is_dir():
        return _folder_digest(root, place)
    return Digest(file_md5(place), place.stat().st_size) if place.is_file() else None


def path_md5(root: Path, path: str) -> str | None:
    """The MD5 of `digest`; None if there is none."""
    found = digest(root, path)
    return found.md5 if found else None


def _folder_digest(root: Path, place: Path) -> Digest | None:
    from dvc.fs import localfs  # importing DVC takes 0.3 s, which no stage should pay
    from dvc.ignore import DvcIgnoreFilter
    from dvc_data.hashfile.build import IgnoreInCollectedDirError, build
    from dvc_data.hashfile.db import HashFileDB

    ignore = DvcIgnoreFilter(localfs, str(root))
    if not all(Path(file).is_file() for file in ignore.find(localfs, str(place))):
        return None
    cache = HashFileDB(localfs, str(root))  # `build` requires one, and writes nothing to it in a dry run
    try:
        _, meta, tree = build(cache, str(place), localfs, "md5", dry_run=True, ignore=ignore)
    except IgnoreInCollectedDirError:
        return None
    return Digest(str(tree.hash_info.value), int(meta.size or 0))
