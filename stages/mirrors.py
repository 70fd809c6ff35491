"""Fetching one published file from one mirror, and believing nothing of what comes until its digest is right.

A mirror is a folder: a plain directory, or any fsspec URL (https://…, s3://…, ssh://…, file://…).
"""

import hashlib
import queue
import re
import sys
import threading
import time
import zlib
from typing import Any, NamedTuple

import aiohttp
import fsspec
from tqdm import tqdm

from stages.datasets import PublishedFile

CHUNK = 1 << 16  # bytes
SLACK = 1 << 20  # bytes that a gzipped file may be longer than its content: no compressor adds more


class Limits(NamedTuple):
    """When a mirror is given up."""

    connect_seconds: float = 5  # for a connection to stand
    silence_seconds: float = 10  # without a byte, the first one included
    bytes_a_second: int = 10_000  # on average, once silence_seconds have passed


class MirrorError(Exception):
    """Why a mirror was no use, in a few words."""


def fetch(mirror: str, file: PublishedFile, limits: Limits) -> bytes:
    """The content of a published file, uncompressed, its digest verified.

    Tries NAME.gz, then NAME, in the folder that `mirror` names. Raises MirrorError.
    """
    for name in (f"{file.name}.gz", file.name):
        try:
            return verified(read(f"{mirror.rstrip('/')}/{name}", file.size + SLACK, limits), file)
        except FileNotFoundError:
            continue
        except MirrorError as error:
            raise MirrorError(f"{name}: {error}") from None
    raise MirrorError(f"has neither {file.name}.gz nor {file.name}")


def read(url: str, most: int, limits: Limits) -> bytes:
    """All bytes behind an fsspec URL or path, at most `most` of them.

    The work is done in a thread, so that the limits hold whatever the protocol is and however its library waits; a
    thread that is given up dies with the program. Raises MirrorError, or FileNotFoundError.
    """
    arrived: queue.Queue[bytes | Exception | None] = queue.Queue(maxsize=16)

    def work() -> None:
        try:
            with _open(url, limits) as stream:
                while chunk := stream.read(CHUNK):
                    arrived.put(chunk)
            arrived.put(None)
        except Exception as error:  # file systems of all kinds raise all kinds of things; `read` tells them apart
            arrived.put(error)

    threading.Thread(target=work, daemon=True).start()
    parts: list[bytes] = []
    start, size = time.monotonic(), 0
    with tqdm(desc=public(url), unit="B", unit_scale=True, leave=False, disable=not sys.stderr.isatty()) as bar:
        while True:
            try:
                item = arrived.get(timeout=limits.silence_seconds)
            except queue.Empty:
                raise MirrorError(f"nothing came for {limits.silence_seconds:g} s") from None
            if item is None:
                return b"".join(parts)
            if isinstance(item, FileNotFoundError):
                raise item
            if isinstance(item, Exception):
                raise MirrorError(_reason(item, limits)) from None
            parts.append(item)
            size += len(item)
            bar.update(len(item))
            seconds = time.monotonic() - start
            if size > most:
                raise MirrorError(f"is larger than {most:,} bytes, which the file is not")
            if seconds > limits.silence_seconds and size < limits.bytes_a_second * seconds:
                raise MirrorError(f"slower than {limits.bytes_a_second / 1000:g} kB/s")


def _open(url: str, limits: Limits) -> Any:
    """A readable stream. Imports the file system's library, and connects."""
    if re.match(r"https?://", url):
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=limits.connect_seconds, sock_read=limits.silence_seconds
        )
        client = {"timeout": timeout, "trust_env": True}  # trust_env: the proxy that HTTPS_PROXY names
        http = fsspec.filesystem("http", client_kwargs=client, max_redirects=5, skip_instance_cache=True)
        return http.open(url, block_size=0, size=1)  # a stream; any size keeps it from asking for the size first
    system, path = fsspec.core.url_to_fs(url)
    return system.open(path, "rb")


def _reason(error: Exception, limits: Limits) -> str:
    """What went wrong, in a line without credentials."""
    if isinstance(error, aiohttp.TooManyRedirects):
        return "redirects without end"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"HTTP {error.status} {error.message}".rstrip()
    if isinstance(error, aiohttp.ServerTimeoutError):
        return f"no answer within {limits.connect_seconds:g} s"
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        return "the connection broke off"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection ({error.os_error.strerror or error.os_error})"
    text = str(error).strip() or type(error).__name__
    return public(text.splitlines()[0])[:200]


def public(text: str) -> str:
    """A URL, or a text with URLs, without user names and passwords."""
    return re.sub(r"://[^/@\s]*@", "://", text)


def verified(raw: bytes, file: PublishedFile) -> bytes:
    """The content of what a mirror sent, gzipped or not. Raises MirrorError unless it is the published file."""
    if raw[:2] == b"\x1f\x8b":
        if file.gzip_sha256:
            _compare(raw, file.gzip_sha256)
        content = gunzip(raw, file.size)
    elif file.sha256 is None:
        raise MirrorError("is not gzipped, and only the digest of the gzipped file is known")
    elif raw.lstrip()[:1] == b"<":
        raise MirrorError("is a web page, not the file")
    else:
        content = raw
    if file.sha256:
        _compare(content, file.sha256)
    if len(content) != file.size:
        raise MirrorError(f"has {len(content):,} bytes instead of {file.size:,}")
    return content


def _compare(content: bytes, expected: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise MirrorError(f"has the wrong bytes (SHA-256 {found[:12]}…, published {expected[:12]}…)")


def gunzip(raw: bytes, size: int) -> bytes:
    """Unpack a gzip file that must hold `size` bytes, never making more. Raises MirrorError."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        content = unpacker.decompress(raw, size + 1)
    except zlib.error as error:
        raise MirrorError(f"is damaged ({error})") from None
    if len(content) > size:
        raise MirrorError(f"unpacks to more than {size:,} bytes, which the file does not")
    if not unpacker.eof:
        raise MirrorError("is cut off")
    if unpacker.unused_data:
        raise MirrorError("has bytes after its end")
    return content
