"""A real HTTP server on this machine with the faults that mirrors have."""

import gzip
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer, certificate: tuple[Path, Path] | None = None) -> Iterator[str]:
    """Serve every GET with `answer`; gives the URL of the root. Ends its stalled answers when it closes.

    certificate: with it, and its key, the server speaks HTTPS.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                answer(self)
            except (ConnectionError, TimeoutError):  # the client has given us up, as it should
                self.close_connection = True

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http{'s' * bool(certificate)}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def body(request: BaseHTTPRequestHandler, content: bytes, kind: str = "application/octet-stream") -> None:
    request.send_response(200)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


def good(files: dict[str, bytes]) -> Answer:
    """The files, gzipped; 404 for anything else."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        name = request.path.rsplit("/", 1)[-1].removesuffix(".gz")
        if request.path.endswith(".gz") and name in files:
            body(request, gzip.compress(files[name], mtime=0))
        else:
            request.send_error(404)

    return answer


def web_page(request: BaseHTTPRequestHandler) -> None:
    body(request, b"\n<!DOCTYPE html><html><body>Please log in</body></html>", "text/html")


def not_found(request: BaseHTTPRequestHandler) -> None:
    request.send_error(404)


def broken(request: BaseHTTPRequestHandler) -> None:
    request.send_error(500)


def silent(request: BaseHTTPRequestHandler) -> None:
    """Takes the connection and never answers."""
    time.sleep(30)


def stalling(request: BaseHTTPRequestHandler) -> None:
    """Sends the beginning and then nothing."""
    request.send_response(200)
    request.send_header("Content-Length", "100000")
    request.end_headers()
    request.wfile.write(b"\x1f\x8b" + b"x" * 1000)
    request.wfile.flush()
    time.sleep(30)


def dripping(request: BaseHTTPRequestHandler) -> None:
    """Sends a byte now and then, which no timeout between two bytes notices."""
    request.send_response(200)
    request.send_header("Content-Length", "100000")
    request.end_headers()
    for _ in range(600):
        request.wfile.write(b"x")
        request.wfile.flush()
        time.sleep(0.05)


def endless(request: BaseHTTPRequestHandler) -> None:
    """Never stops sending."""
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(b"x" * 65536)


def redirecting(request: BaseHTTPRequestHandler) -> None:
    """Sends the client round and round."""
    request.send_response(302)
    request.send_header("Location", request.path)
    request.end_headers()


def breaking_off(request: BaseHTTPRequestHandler) -> None:
    """Promises more than it sends, and closes."""
    request.send_response(200)
    request.send_header("Content-Length", "100000")
    request.end_headers()
    request.wfile.write(b"\x1f\x8b" + b"x" * 1000)


def sending(content: bytes) -> Answer:
    """The same bytes for every request."""
    return lambda request: body(request, content)
