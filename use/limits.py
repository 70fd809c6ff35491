"""The limits of the server: size and duration of requests, number of connections, and who has access."""

import asyncio
import hmac
import ipaddress
import logging
from typing import Any, cast
from urllib.parse import urlsplit

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_BODY = 32_000_000  # bytes per request
MAX_HELD = 128_000_000  # bytes of all bodies in memory
HEADER_SECONDS = 10  # from the start of a connection or request to the end of the headers
REQUEST_SECONDS = 60  # from the end of the headers to the end of the answer
MAX_CONNECTIONS = 1000  # beyond this, requests are refused
MAX_WAITING_CONNECTIONS = 1200  # beyond this, connections are closed at once
GRACE_SECONDS = 30  # after SIGTERM, for the current requests

# The page loads scripts, styles and data only from this server, and cannot be shown in a frame.
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
    """Middleware that checks access, enforces the limits, and adds the security headers."""

    def __init__(self, app: ASGIApp, token: str | None, local: bool, open_paths: tuple[str, ...]) -> None:
        """token: required for all paths but the open ones; None: for none. local: only this machine has access."""
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
                raise HTTPException(503, "too many bytes of requests in memory; try again", {"Retry-After": "1"})
            return message

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if message["status"] >= 400:  # the rest of the body is not read
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
        except asyncio.CancelledError:  # the server stops, and GRACE_SECONDS have passed
            if not started:
                await _answer(503, "the server has stopped")(scope, receive, with_headers)
        finally:
            self.held -= held

    def refusal(self, scope: Scope) -> JSONResponse | None:
        """The answer to a request that is not allowed or announces too large a body; None for all others."""
        headers = Headers(scope=scope)
        if self.local and not _names_this_machine(headers.get("host", "")):
            # DNS rebinding: a site whose host name resolves to 127.0.0.1 could read the answers.
            return _answer(421, "this server serves only its own machine: use 127.0.0.1")
        restricted = scope["path"] not in self.open_paths
        if restricted and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return _answer(403, "pages of other sites have no access to this server")
        if restricted and self.token:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                return _answer(401, "the header Authorization: Bearer TOKEN is missing or wrong")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > MAX_BODY:
            return _answer(413, f"more than {MAX_BODY:,} bytes")
        return None


def _names_this_machine(host: str) -> bool:
    """Whether a Host header, with or without a port, is a loopback address or localhost."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Protocol(H11Protocol):
    """uvicorn's protocol, with limits on the time to send headers or read an answer, and on the connections."""

    waiting: asyncio.TimerHandle | None = None
    sending: asyncio.TimerHandle | None = None

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
        for timer in (self.waiting, self.sending):
            if timer:
                timer.cancel()

    def pause_writing(self) -> None:
        """Close the connection if the client does not read its answer in time."""
        super().pause_writing()
        self.sending = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.sending:
            self.sending.cancel()

    def _watch(self) -> None:
        """Close the connection if the client does not finish its headers in time."""
        cycle: Any = self.cycle
        between_requests = cycle is None or cycle.response_complete
        if between_requests and self.waiting is None:
            self.waiting = self.loop.call_later(HEADER_SECONDS, self.transport.abort)
        elif not between_requests and self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None


def configuration(app: ASGIApp) -> uvicorn.Config:
    """The configuration of uvicorn: only HTTP/1.1, within the limits, without a log of requests."""
    # It warns about every malformed form. The sender gets status 400.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
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
