"""Fetch a published file of a data set from a mirror, decompress it and check its digest."""

import hashlib
import zlib

from stages.dataset.mirrors import Limits, MirrorError, read
from stages.dataset.registry import PublishedFile

# For KMNIST, only digests of the original gzipped files are published.
UNKNOWN_CONTENT = "only the original .gz files can be checked: no digest of their content is published"
SLACK = 1 << 20  # bytes by which a gzipped file may be longer than its content


def fetch(mirror: str, file: PublishedFile, limits: Limits) -> bytes:
    """The content of a published file, decompressed and verified.

    Tries NAME.gz, then NAME, in the folder `mirror`. Raises MirrorError.
    """
    for name in (f"{file.name}.gz", file.name):
        try:
            return verified(read(f"{mirror.rstrip('/')}/{name}", file.size + SLACK, limits), file)
        except FileNotFoundError:
            continue
        except MirrorError as error:
            raise MirrorError(f"{name}: {error}") from None
    raise MirrorError(f"has neither {file.name}.gz nor {file.name}")


def verified(raw: bytes, file: PublishedFile) -> bytes:
    """Decompress a mirror's file if it is gzipped. Raises MirrorError unless it is the published file."""
    if raw[:2] == b"\x1f\x8b":
        if file.gzip_sha256:
            _compare(raw, file.gzip_sha256, f" of the .gz file; {UNKNOWN_CONTENT}")
        content = gunzip(raw, file.size)
    elif file.sha256 is None:
        raise MirrorError(f"is not gzipped; {UNKNOWN_CONTENT}")
    elif raw.lstrip()[:1] == b"<":
        raise MirrorError("is a web page, not the file")
    else:
        content = raw
    if file.sha256:
        _compare(content, file.sha256)
    if len(content) != file.size:
        raise MirrorError(f"has {len(content):,} bytes instead of {file.size:,}")
    return content


def _compare(content: bytes, expected: str, note: str = "") -> None:
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise MirrorError(f"has the wrong bytes (SHA-256 {actual[:12]}..., published {expected[:12]}...{note})")


def gunzip(raw: bytes, size: int) -> bytes:
    """Decompress a gzip file of `size` bytes, and never produce more. Raises MirrorError."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        content = unpacker.decompress(raw, size + 1)
    except zlib.error as error:
        raise MirrorError(f"is damaged ({error})") from None
    if len(content) > size:
        raise MirrorError(f"decompresses to more than the {size:,} bytes of the published file")
    if not unpacker.eof:
        raise MirrorError("is truncated")
    if unpacker.unused_data:
        raise MirrorError("has bytes after its end")
    return content
