"""What a server does not let its clients do: send too much, take too long, come from elsewhere."""

import asyncio
import hmac
import ipaddress
from typing import Any, cast
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_BODY = 32_000_000  # bytes of a request
MAX_HELD = 128_000_000  # bytes of all requests that are in memory
HEADER_SECONDS = 10  # from the first byte of a request, or the start of a connection, to the end of the headers
REQUEST_SECONDS = 60  # from there to the end of the answer
MAX_CONNECTIONS = 1000  # past which a request is refused
MAX_WAITING_CONNECTIONS = 1200  # past which a connection is closed at once
GRACE_SECONDS = 30  # for the requests that have begun, after SIGTERM

# A page of this server runs its own scripts and styles, asks this server, and is shown in no frame.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Around an application: who may ask, how much, and for how long; and the headers of every answer."""

    def __init__(self, app: ASGIApp, token: str | None, local: bool, open_paths: tuple[str, ...]) -> None:
        """token: what a request for other than the open paths has to give. local: whether only this machine may ask."""
        self.app, self.token, self.local, self.open_paths = app, token, local, open_paths
        self.held = 0  # bytes of bodies in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, held = False, 0

        async def counted() -> Message:
            nonlocal held
            message = await receive()
            size = len(message.get("body", b""))
            held += size
            self.held += size
            if held > MAX_BODY:
                raise HTTPException(413, f"more than {MAX_BODY:,} bytes")
            if self.held > MAX_HELD:
                raise HTTPException(503, "too much is being read at the moment; try again", {"Retry-After": "1"})
            return message

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if message["status"] >= 400:  # the rest of the body is not worth reading
                    headers["Connection"] = "close"
            await send(message)

        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                if refusal := self.refusal(scope):
                    await refusal(scope, receive, with_headers)
                else:
                    await self.app(scope, counted, with_headers)
        except TimeoutError:
            if not started:
                await _answer(408, f"took longer than {REQUEST_SECONDS} s")(scope, receive, with_headers)
        finally:
            self.held -= held

    def refusal(self, scope: Scope) -> JSONResponse | None:
        """The answer to a request that may not be made, or is too long; None for one that may."""
        headers = Headers(scope=scope)
        if self.local and not _names_this_machine(headers.get("host", "")):
            # A page from elsewhere whose name was made to lead here could read the answers (DNS rebinding).
            return _answer(421, "this server is for its own machine: ask 127.0.0.1")
        closed = scope["path"] not in self.open_paths
        if closed and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return _answer(403, "a page from elsewhere may not ask this server")
        if closed and self.token:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                return _answer(401, "needs the header Authorization: Bearer TOKEN")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > MAX_BODY:
            return _answer(413, f"more than {MAX_BODY:,} bytes")
        return None


def _names_this_machine(host: str) -> bool:
    """Whether a Host header, with or without a port, is one of this machine's own names."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Protocol(H11Protocol):
    """uvicorn's, which lets a client take any time to send its headers, and any number of clients wait."""

    waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        if len(self.connections) > MAX_WAITING_CONNECTIONS:
            self.transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.waiting:
            self.waiting.cancel()

    def _watch(self) -> None:
        """Give a client that is sending headers so many seconds, whatever it sends."""
        cycle: Any = self.cycle
        between_requests = cycle is None or cycle.response_complete
        if between_requests and self.waiting is None:
            self.waiting = self.loop.call_later(HEADER_SECONDS, self.transport.abort)
        elif not between_requests and self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None


def configuration(app: Starlette) -> uvicorn.Config:
    """How uvicorn serves the application: HTTP/1.1 alone, within the limits, and saying nothing of each request."""
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="error",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def _answer(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status)
