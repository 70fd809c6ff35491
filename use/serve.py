"""Serve the model on a page and to programs: `python -m use.serve`, or `make serve`.

Listens on 127.0.0.1, and elsewhere only with a token in the environment variable SERVE_TOKEN, which requests then have
to give (Authorization: Bearer TOKEN; the page takes it as #token=TOKEN in its address). SIGTERM ends it once the
requests that have begun are answered. Not a stage.
"""

import argparse
import importlib.util
import ipaddress
import os
import socket

from stages.common import errors, machine, paths
from stages.common.errors import UserError

VARIABLE = "SERVE_TOKEN"
MIN_TOKEN = 16  # characters
OPEN_FILES = 4096


def main() -> None:
    """Listen until a signal comes."""
    arguments = parser().parse_args()
    if importlib.util.find_spec("uvicorn") is None:
        raise UserError("needs the packages of requirements-serve.txt: `make serve` installs them, and serves")
    token = os.environ.get(VARIABLE)
    address = checked_address(arguments.host, token)
    machine.allow_open_files(OPEN_FILES)  # each connection is one
    with listening(address, arguments.port) as listener:
        import uvicorn

        from use.app import application
        from use.classifier import Classifier
        from use.limits import configuration

        classifier = Classifier(arguments.model)
        host, port = listener.getsockname()[:2]
        config = configuration(application(classifier, token, local=_is_loopback(address)))
        shown = f"[{host}]" if ":" in host else host
        print(f"listening on http://{shown}:{port}{'/#token=…' if token else ''} (Ctrl-C ends it)", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m use.serve", description="Serve the model on a page.")
    parser.add_argument("--model", default=str(paths.MODEL), metavar="FILE|REV", help="as use.predict takes it")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=f"others need a token in {VARIABLE}")
    parser.add_argument("--port", type=_port, default=8000, metavar="N", help="8000; 0: any that is free")
    return parser


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text[:6]) < 65536):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}; allowed: 0 to 65535")
    return int(text)


def checked_address(host: str, token: str | None) -> str:
    """The address of a host. Raises UserError for one of other machines' reach without a good token."""
    if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable()):
        raise UserError(
            f"{VARIABLE}: allowed: {MIN_TOKEN} characters or more, of ASCII; `openssl rand -hex 16` makes one"
        )
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UserError(f"--host {host[:80]}: no address of this machine") from None
    address = str(found[0][4][0])
    if not _is_loopback(address) and token is None:
        raise UserError(
            f"--host {host}: other machines could reach it: set {VARIABLE} to what they have to give "
            "(`openssl rand -hex 16` makes one), or leave --host out"
        )
    return address


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def listening(address: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError, with the reason."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(f"cannot listen on {address}, port {port}: {error.strerror}; give another --port") from None
    # Connections inherit it. Without, the second part of an answer waits 40 ms for the client to confirm the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


if __name__ == "__main__":
    errors.run_command(main, kept="the requests that had begun were answered")
