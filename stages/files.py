"""Writing files so that a reader, or a run after a crash, finds the whole file or none."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically: a temporary file beside it, flushed to the disk, then renamed.

    Raises OSError (disk full, no permission); `path` then still holds what it held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes 0600, which a shared cache could not read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
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
