"""Find and read pictures: files, folders, patterns, URLs, and names on standard input."""

import glob
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stages.common.errors import UserError
from stages.dataset import mirrors
from stages.dataset.folder import SUFFIXES

MAX_BYTES = 256_000_000  # per picture file
SCHEMES = ("http", "https", "s3")


class UnreadablePictureError(Exception):
    """The reason why a picture file cannot be read."""


def expand(arguments: Iterable[str], lines: Iterable[str]) -> Iterator[str]:
    """Yield the names of pictures, in the same order in every run; from a folder, only those with a picture's suffix.

    lines: names, one per line, that replace "-". A name that does not exist is yielded as well; `read` then raises. At
    most the names of one folder are in memory. Raises UserError for a URL that is neither HTTP nor S3.
    """
    for argument in arguments:
        if argument == "-":
            for line in lines:
                if name := line.rstrip("\r\n"):
                    yield from _expand(name)
        else:
            yield from _expand(argument)


def _expand(name: str) -> Iterator[str]:
    if not name:  # not the current folder: it may be a variable that is not set
        raise UserError("the name of a picture is empty; `.` is the current folder")
    if scheme := _scheme(name):
        if scheme not in SCHEMES:
            raise UserError(f"{mirrors.public(name)[:200]}: cannot read {scheme} URLs; allowed: {', '.join(SCHEMES)}")
        yield from _stored(name) if scheme == "s3" else [name]
    elif stat.S_ISDIR(mode := _mode(Path(name))):
        yield from _walk(Path(name))
    elif mode or not glob.has_magic(name):
        yield name
    else:
        matches = _matches(name)
        for match in matches:
            if not stat.S_ISDIR(_mode(match)):
                yield str(match)
            elif "**" not in Path(name).parts:  # otherwise its files match the pattern themselves
                yield from _walk(match)
        if not matches:
            yield name


def _mode(path: Path) -> int:
    """The type and permissions of a file; 0 if it is missing or unreachable, for which `read` gives the reason."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):  # ValueError: a null character in the name
        return 0


def _matches(pattern: str) -> list[Path]:
    """The matches of a pattern, sorted. None is in a hidden file or folder, unless the pattern names it."""
    path = Path(pattern)
    try:
        matches = list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    except (ValueError, RecursionError) as error:  # ** within a name; or 1,000 nested folders
        raise UserError(f"{pattern}: {error}") from None
    except OSError:  # a part is too long, say; `read` gives the reason
        return []
    return sorted(match for match in matches if _visible(match, path))


def _visible(match: Path, pattern: Path) -> bool:
    """Whether a match contains no hidden file or folder, except those that the pattern names."""
    return not any(part.startswith(".") for part in match.parts if part not in pattern.parts)


def _walk(folder: Path) -> Iterator[str]:
    """Yield the picture files in a folder and its subfolders, sorted, without hidden files and links to folders.

    A folder that cannot be listed is yielded itself; `read` then raises.
    """
    stack = [(folder, "", True)]  # recursion would fail at about 1,000 nested folders
    while stack:
        parent, name, is_folder = stack.pop()
        path = parent / name
        if not is_folder:
            yield str(path)
            continue
        try:
            with os.scandir(path) as listing:
                entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in listing)
        except OSError:
            yield str(path)
            continue
        stack += [
            (path, name, is_folder)
            for name, is_folder in reversed(entries)
            if not name.startswith(".") and (is_folder or name.lower().endswith(SUFFIXES))
        ]


def _stored(url: str) -> Iterator[str]:
    """Yield the S3 objects of a URL: one object, the matches of a pattern, or all below a prefix that ends in /."""
    if not (glob.has_magic(url) or url.endswith("/")):
        yield url
        return
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        objects: Any = system.glob(path) if glob.has_magic(url) else system.find(path)
    except Exception as error:  # botocore's, aiohttp's, …
        raise UserError(f"{mirrors.public(url)}: cannot be listed: {_one_line(error)}") from None
    names = [f"s3://{name}" for name in sorted(objects) if name.lower().endswith(SUFFIXES)]
    yield from names or [url]


def read(name: str, stop: threading.Event | None = None) -> bytes:
    """The bytes of a picture file, at most MAX_BYTES. Raises UnreadablePictureError with the reason.

    stop: ends a download when it is set.
    """
    if _scheme(name):
        try:
            return b"".join(_until(stop, mirrors.chunks(name, MAX_BYTES, mirrors.Limits())))
        except FileNotFoundError:
            raise UnreadablePictureError("no such file") from None
        except mirrors.MirrorError as error:
            raise UnreadablePictureError(str(error)) from None
    try:
        path = Path(name)
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            os.scandir(path).close()  # raises if it cannot be listed
        if not stat.S_ISREG(mode):
            raise UnreadablePictureError("not a file")  # a folder, or a pipe or device, which may have no end
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UnreadablePictureError(getattr(error, "strerror", None) or str(error)) from None
    if len(content) > MAX_BYTES:
        raise UnreadablePictureError(f"larger than {MAX_BYTES:,} bytes")
    return content


def _until(stop: threading.Event | None, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Pass chunks on until `stop` is set. Raises UnreadablePictureError then."""
    for chunk in chunks:
        if stop and stop.is_set():
            raise UnreadablePictureError("stopped")
        yield chunk


def stamp(name: str) -> list[int] | None:
    """Size and modification time of a file, to detect changes; None for a URL or a missing file."""
    if _scheme(name):
        return None
    try:
        status = Path(name).stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _scheme(name: str) -> str:
    """The scheme of a URL, in lower case; "" for a path."""
    match = re.match(r"([a-z][a-z0-9+.-]*)://", name, re.IGNORECASE)
    return match[1].lower() if match else ""


def _one_line(error: BaseException) -> str:
    return mirrors.public(" ".join(str(error).split()))[:200] or type(error).__name__
