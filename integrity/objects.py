"""Objects as DVC stores them, and whether each can be trusted: files, lists of folders, entries of the run cache.

DVC 3.67 hashes a file that it fetches (with `verify`), but neither the list of a folder's files (an object whose name
ends in .dir) nor an entry of the run cache. Whoever can write to a remote, or a bit that flips there, then decides
which files `dvc pull` and `dvc repro` write, and where.
"""

import copy
import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from stages.common.digests import md5

MD5 = re.compile(r"[0-9a-f]{32}")
SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_LIST_BYTES = 256_000_000  # some three million files
MAX_ENTRY_BYTES = 10_000_000
# Names that Windows gives to devices, whatever follows the first dot.
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


class BadObject(Exception):  # noqa: N818 - not one of ours
    """An object that must not be used. The text says what is wrong with it."""


@dataclass(frozen=True)
class ListedFile:
    """One file of a folder: its path below the folder, with "/", and the name of its object."""

    path: str
    md5: str


def folder_list(content: bytes, name: str) -> list[ListedFile]:
    """The files of a folder, from the object that lists them. name: the object's, 32 hexadecimal digits and .dir.

    Raises BadObject unless these are the bytes of that name and every path stays below the folder on every system.
    """
    if len(content) > MAX_LIST_BYTES:
        raise BadObject(f"a list of more than {MAX_LIST_BYTES:,} bytes")
    if f"{md5(content)}.dir" != name:
        raise BadObject("not the bytes of its name: damaged, or replaced")
    try:
        entries = json.loads(content)
        files = [ListedFile(str(entry["relpath"]), str(entry["md5"])) for entry in entries]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadObject("no list of files") from None
    folded: set[str] = set()
    folders: set[str] = set()
    for file in files:
        if reason := unsafe(file.path):
            raise BadObject(f"lists {file.path[:100]!r}: {reason}")
        if not MD5.fullmatch(file.md5):
            raise BadObject(f"lists {file.path[:100]!r} with {file.md5[:40]!r}, which is no MD5")
        path = fold(file.path)
        if path in folded:
            raise BadObject(f"lists {file.path[:100]!r} twice, or with another name that a file system takes for it")
        folded.add(path)
        while (path := path.rpartition("/")[0]) and path not in folders:
            folders.add(path)
    if both := folded & folders:
        raise BadObject(f"lists {min(both)[:100]!r} as a file and as a folder")
    return files


def unsafe(path: str) -> str:
    """Why a path of a list must not be written below a folder, or "" if it may."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
        return "control characters, or none that can be written"
    if "\\" in path:
        return "a backslash, which separates folders on Windows"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return "an absolute path, or one that leaves the folder"
        if re.match(r"[A-Za-z]:", part):
            return "a drive letter"
        if fold(part).rstrip(" .") in (".git", ".dvc"):
            return "a folder that steers Git or DVC"
        if fold(part).partition(".")[0].rstrip() in DEVICES:
            return "a device on Windows"
    return ""


def fold(path: str) -> str:
    """The same text for all names that some file system does not tell apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def run_cache_fault(key: str, value: str, content: bytes) -> str:
    """Why an entry of the run cache must not be used, or "" if it may.

    The key is the hash of what a stage reads, of its command and of the paths that it writes; the value that of the
    whole entry. DVC looks up a stage's own key and believes the entry that it finds there. With its true key an entry
    can only name the stage's own outputs; whether their bytes are what the stage makes is another question, which no
    hash answers.
    """
    from dvc.schema import COMPILED_LOCK_FILE_STAGE_SCHEMA
    from dvc.stage.cache import _get_cache_hash
    from dvc.utils.serialize import ParseError, parse_yaml
    from voluptuous import Invalid

    if len(content) > MAX_ENTRY_BYTES:
        return f"more than {MAX_ENTRY_BYTES:,} bytes"
    try:
        entry: dict[str, Any] = COMPILED_LOCK_FILE_STAGE_SCHEMA(parse_yaml(content.decode("utf-8"), value))
        names = [str(out.get("md5")) for out in entry.get("outs", [])]
        # With key=True it replaces the outputs in what it is given.
        hashes = _get_cache_hash(copy.deepcopy(entry), key=True), _get_cache_hash(copy.deepcopy(entry))
    except (ParseError, Invalid, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "no entry of a run cache"
    if hashes != (key, value):
        return "not the run of its name: damaged, or replaced"
    if not all(MD5.fullmatch(name.removesuffix(".dir")) for name in names):
        return "an output without an MD5"
    return ""
