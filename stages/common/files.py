"""Write files atomically: a reader, or a run after a crash, finds the complete file or none."""

import errno
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stages.common.errors import UserError

# Errors of file systems without fsync (WSL's /mnt/c, CIFS, some FUSE); the bytes are written anyway.
NO_FSYNC = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
DESCRIPTORS = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))  # /dev/stdout may be a terminal, a pipe or a file


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically, as `write_parts` does."""
    write_parts(path, [content])


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write `parts` to `path` atomically: to a temporary file beside it, flushed to disk, then renamed.

    Follows a link, which remains. The umask determines the permissions. Raises OSError with the name of `path` (disk
    full, no permission), and leaves the old content then. Raises UserError if `path` is a folder, a disk or the like.
    """
    if _is_stream(path):
        with path.open("ab") as stream:
            stream.writelines(parts)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    place = _place(path)
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(8)}.tmp")
    try:
        with named_errors(path):
            with temporary.open("xb") as file:
                file.writelines(parts)
                file.flush()
                try:
                    os.fsync(file.fileno())
                except OSError as error:
                    if error.errno not in NO_FSYNC:
                        raise
            temporary.replace(place)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Have an error of the system, such as a full disk, name the file that it is about."""
    try:
        yield
    except OSError as error:
        if not error.errno:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def check_target(path: Path) -> None:
    """Raise UserError unless the file of --out can be written, in an existing folder. To be called before the work."""
    try:
        if _is_stream(path):
            return
    except UserError as error:
        raise UserError(f"--out {error}") from None
    try:
        with tempfile.TemporaryFile(dir=_place(path).parent):
            pass
    except OSError as error:
        raise UserError(f"--out {path}: {error.strerror}: {path.parent}; give a file in an existing folder") from None


def _is_stream(path: Path) -> bool:
    """Whether it is /dev/null, a terminal or /dev/stdout. Raises UserError if it is a folder, a disk or the like."""
    try:
        mode = path.stat().st_mode
    except OSError:  # missing or unreachable: writing raises the error
        return False
    if stat.S_ISCHR(mode) or (path.parent in DESCRIPTORS and not stat.S_ISBLK(mode) and not stat.S_ISDIR(mode)):
        return True
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a folder; give the name of a file in it")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: not a regular file, but a device, pipe or socket; give another name")
    return False


def _place(path: Path) -> Path:
    """The target of a link; the link itself if its target is write-protected, as files of DVC's cache are."""
    try:
        place = path.resolve() if path.is_symlink() else path
        protected = place != path and place.exists() and not place.stat().st_mode & 0o222
    except (OSError, RuntimeError):  # a circle of links, which the write replaces
        return path
    return path if protected else place


def write_text(path: Path, content: str) -> None:
    """Write text atomically, as UTF-8 with \\n line ends on every system."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any, significant: bool = False) -> None:
    """Write JSON atomically, in a form that diffs well: indented, floats to 6 decimals, a newline at the end.

    Six decimals are finer than 10,000 images can resolve, and keep noise out of `git diff`. significant: six digits
    instead, for numbers of any size.
    Raises ValueError for NaN and infinity, which JSON lacks.
    """
    write_text(path, json.dumps(_rounded(content, significant), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _rounded(value: Any, significant: bool) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if significant else round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item, significant) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item, significant) for item in value]
    return value
