"""Writing files so that a reader, or a run after a crash, finds the whole file or none."""

import errno
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.common.errors import UserError

# How a mount (WSL's /mnt/c, CIFS, some FUSE) says that it has no fsync; the bytes are written all the same.
REFUSED = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
DESCRIPTORS = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))  # /dev/stdout may be a terminal, a pipe or a file


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically, as `write_parts` does."""
    write_parts(path, [content])


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write `parts` to `path` atomically: a temporary file beside it, flushed to the disk, then renamed.

    Through a link, which stays. The umask decides who may read it. Raises OSError (disk full, no permission), which
    names `path`; that then still holds what it held. Raises UserError if `path` is a folder, a disk or the like.
    """
    if _is_stream(path):
        with path.open("ab") as stream:
            stream.writelines(parts)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    place = _place(path)
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.writelines(parts)
            file.flush()
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
        temporary.replace(place)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def check_target(path: Path) -> None:
    """Raise UserError unless what --out names can be written, in a folder that is there: before the work, not after."""
    try:
        if _is_stream(path):
            return
    except UserError as error:
        raise UserError(f"--out {error}") from None
    try:
        with tempfile.TemporaryFile(dir=_place(path).parent):
            pass
    except OSError as error:
        raise UserError(
            f"--out {path}: {error.strerror}: {path.parent}; give a file in a folder that is there"
        ) from None


def _is_stream(path: Path) -> bool:
    """Whether it is /dev/null, a terminal or /dev/stdout. Raises UserError if it is there, and no place for a file."""
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing there, or no way there: what is written says which
        return False
    if stat.S_ISCHR(mode) or (path.parent in DESCRIPTORS and not stat.S_ISBLK(mode) and not stat.S_ISDIR(mode)):
        return True
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a folder; give the name of a file in it")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: is no file, but a device, pipe or socket; give another name")
    return False


def _place(path: Path) -> Path:
    """The file that a link leads to; the link itself if that file is write-protected, as those of DVC's cache are."""
    try:
        place = path.resolve() if path.is_symlink() else path
        protected = place != path and place.exists() and not place.stat().st_mode & 0o222
    except (OSError, RuntimeError):  # links in a circle, which the write replaces
        return path
    return path if protected else place


def write_text(path: Path, content: str) -> None:
    """Write text as UTF-8 with \\n line ends on every system, atomically."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON that diffs well: indented, floats to 6 decimals, a new line at the end, atomically.

    Six decimals are past what 10,000 images can tell apart, and keep noise out of `git diff`.
    Raises ValueError on NaN and infinity, which JSON does not have.
    """
    write_text(path, json.dumps(_rounded(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
