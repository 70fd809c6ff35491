"""Checks on DVC's objects: lists of folders, and entries of the run cache.

DVC 3.67 hashes the files it fetches (with `verify`), but neither the list of a folder's files (an object whose name
ends in .dir) nor an entry of the run cache. So anyone who can write to a remote, or a bit that flips there, decides
which files `dvc pull` and `dvc repro` write, and where.
"""

import copy
import json
import os
import platform
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from stages.common.digests import md5

MD5 = re.compile(r"[0-9a-f]{32}")
SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_LIST_BYTES = 256_000_000  # about three million files
WRONG_CONTENT = "its content does not match its name: damaged, or replaced"
MAX_ENTRY_BYTES = 10_000_000
WINDOWS = os.name == "nt"
FOLDS_NAMES = platform.system() in ("Windows", "Darwin")  # whose file systems usually take a.png and A.PNG for one file
# Device names on Windows, with any extension.
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


class BadObjectError(Exception):
    """An object is unusable. The text gives the reason."""


@dataclass(frozen=True)
class ListedFile:
    """A file of a folder: its path below the folder, with "/", and its MD5."""

    path: str
    md5: str


def folder_list(content: bytes, name: str) -> list[ListedFile]:
    """The files of a folder. content: of the object that lists them. name: of that object, an MD5 and ".dir".

    Raises BadObjectError if the content does not match the name, or if this system would write a path outside of the
    folder or over another one. Linux accepts names that Windows or macOS do not: `dvc add` records them.
    """
    if len(content) > MAX_LIST_BYTES:
        raise BadObjectError(f"a list of more than {MAX_LIST_BYTES:,} bytes")
    if f"{md5(content)}.dir" != name:
        raise BadObjectError(WRONG_CONTENT)
    try:
        entries = json.loads(content)
        files = [ListedFile(str(entry["relpath"]), str(entry["md5"])) for entry in entries]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadObjectError("not a list of files") from None
    folded: set[str] = set()
    folders: set[str] = set()
    for file in files:
        if reason := unsafe(file.path):
            raise BadObjectError(f"lists {file.path[:100]!r}: {reason}")
        if not MD5.fullmatch(file.md5):
            raise BadObjectError(f"lists {file.path[:100]!r} with {file.md5[:40]!r}, which is no MD5")
        path = fold(file.path) if FOLDS_NAMES else file.path
        if path in folded:
            raise BadObjectError(f"lists {file.path[:100]!r} twice, or under two names that are one file here")
        folded.add(path)
        while (path := path.rpartition("/")[0]) and path not in folders:
            folders.add(path)
    if both := folded & folders:
        raise BadObjectError(f"lists {min(both)[:100]!r} as a file and as a folder")
    return files


def unsafe(path: str) -> str:
    """Why it is unsafe to write a path below a folder; "" if it is safe."""
    if any(character == "\0" or unicodedata.category(character) == "Cs" for character in path):
        return "characters that no file name can have"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return "an absolute path, or a path out of the folder"
        if fold(part).rstrip(" .") in (".git", ".dvc"):
            return "a folder that configures Git or DVC"
    return unsafe_on_windows(path) if WINDOWS else ""


def unsafe_on_windows(path: str) -> str:
    """Why Windows would write a path elsewhere, or nowhere; "" if it would not."""
    if any(unicodedata.category(character) == "Cc" for character in path):
        return "control characters"
    if "\\" in path:
        return "a backslash, which separates folders on Windows"
    for part in path.split("/"):
        if re.match(r"[A-Za-z]:", part):
            return "a drive letter"
        if fold(part).partition(".")[0].rstrip() in DEVICES:
            return "a device on Windows"
    return ""


def fold(path: str) -> str:
    """The same text for all names that some file systems do not distinguish."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def run_cache_fault(key: str, value: str, content: bytes) -> str:
    """Why an entry of the run cache is unusable; "" if it is usable.

    key: the hash of what a stage reads, its command and the paths it writes. value: the hash of the whole entry. DVC
    looks up a stage's key and trusts the entry it finds. An entry with the right key can name only outputs of that
    stage. Whether the stage makes these bytes, no hash can tell.
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
        return "not an entry of a run cache"
    if hashes != (key, value):
        return WRONG_CONTENT
    if not all(MD5.fullmatch(name.removesuffix(".dir")) for name in names):
        return "an output without an MD5"
    return ""
