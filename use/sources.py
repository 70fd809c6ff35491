"""Where pictures come from: files, folders, patterns, URLs, and the lines of standard input."""

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stages.common.errors import UserError
from stages.dataset import mirrors
from stages.dataset.folder import SUFFIXES

MAX_BYTES = 256_000_000  # of one picture file
SCHEMES = ("http", "https", "s3")


class UnreadablePictureError(Exception):
    """Why the bytes of a picture are not available."""


def expand(arguments: Iterable[str], lines: Iterable[str]) -> Iterator[str]:
    """The names of pictures, in an order that is the same in every run; of a folder those with a picture's suffix.

    lines: what "-" stands for, a name per line. What does not exist is given as it is: `read` says so. No more than the
    names of one folder are in memory. Raises UserError for a URL that is neither HTTP nor S3.
    """
    for argument in arguments:
        if argument == "-":
            for line in lines:
                if name := line.rstrip("\r\n"):
                    yield from _expand(name)
        else:
            yield from _expand(argument)


def _expand(name: str) -> Iterator[str]:
    if scheme := _scheme(name):
        if scheme not in SCHEMES:
            raise UserError(f"{mirrors.public(name)[:200]}: cannot read {scheme} URLs; allowed: {', '.join(SCHEMES)}")
        yield from _stored(name) if scheme == "s3" else [name]
    elif (path := Path(name)).is_dir():
        yield from _walk(path)
    elif not glob.has_magic(name) or path.exists():
        yield name
    else:
        found = [match for match in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if _visible(match, path)]
        found.sort()
        for match in found:
            if not match.is_dir():
                yield str(match)
            elif "**" not in path.parts:  # else what is in it has matched by itself
                yield from _walk(match)
        if not found:
            yield name


def _visible(match: Path, pattern: Path) -> bool:
    """Whether no hidden file or folder was matched, but for one that the pattern names."""
    return not any(part.startswith(".") for part in match.parts if part not in pattern.parts)


def _walk(folder: Path) -> Iterator[str]:
    """The picture files in a folder and below, each folder's sorted; hidden ones and links to folders left out."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in listing)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    for name, is_folder in entries:
        if name.startswith("."):
            continue
        if is_folder:
            yield from _walk(folder / name)
        elif name.lower().endswith(SUFFIXES):
            yield str(folder / name)


def _stored(url: str) -> Iterator[str]:
    """The objects of S3 that a URL names: one, those that match a pattern, or those below a prefix that ends in /."""
    if not (glob.has_magic(url) or url.endswith("/")):
        yield url
        return
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        found: Any = system.glob(path) if glob.has_magic(url) else system.find(path)
    except Exception as error:  # botocore's, aiohttp's, …
        raise UserError(f"{mirrors.public(url)}: cannot be listed: {_one_line(error)}") from None
    names = [f"s3://{name}" for name in sorted(found) if name.lower().endswith(SUFFIXES)]
    yield from names or [url]


def read(name: str) -> bytes:
    """The bytes of a picture file, at most MAX_BYTES of them. Raises UnreadablePictureError with the reason."""
    if _scheme(name):
        try:
            return mirrors.read(name, MAX_BYTES, mirrors.Limits())
        except FileNotFoundError:
            raise UnreadablePictureError("no such file") from None
        except mirrors.MirrorError as error:
            raise UnreadablePictureError(str(error)) from None
    try:
        path = Path(name)
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadablePictureError("not a file")  # but a folder, a pipe or a device: it may have no end
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UnreadablePictureError(getattr(error, "strerror", None) or str(error)) from None
    if len(content) > MAX_BYTES:
        raise UnreadablePictureError(f"larger than {MAX_BYTES:,} bytes")
    return content


def stamp(name: str) -> list[int] | None:
    """Size and time of the last change of a file, by which a change is noticed; None for a URL or a missing file."""
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
