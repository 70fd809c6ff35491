"""Writing files so that a reader, or a run after a crash, finds the whole file or none."""

import errno
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

# How a mount (WSL's /mnt/c, CIFS, some FUSE) says that it has no fsync; the bytes are written all the same.
REFUSED = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically: a temporary file beside it, flushed to the disk, then renamed.

    The umask decides who may read it. Raises OSError (disk full, no permission), which names `path`; that then
    still holds what it held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


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
