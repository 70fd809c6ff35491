"""Serve the model on a web page and over HTTP: `python -m use.serve`, or `make serve`.

Listens on 127.0.0.1. Another address needs a token in the environment variable SERVE_TOKEN; requests must then contain
`Authorization: Bearer TOKEN`, and the address of the page ends in #token=TOKEN. On SIGTERM, the server finishes the
current requests and stops. Not a stage.
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
    """Serve until a signal arrives."""
    arguments = parser().parse_args()
    if importlib.util.find_spec("uvicorn") is None:
        raise UserError("needs the packages of requirements-serve.txt; `make serve` installs them")
    token = os.environ.get(VARIABLE)
    address = checked_address(arguments.host, token)
    machine.allow_open_files(OPEN_FILES)  # one per connection
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
    parser = argparse.ArgumentParser(
        prog="python -m use.serve", description="Serve the model on a web page and over HTTP."
    )
    parser.add_argument(
        "--model", default=str(paths.MODEL), metavar="FILE|REV", help="model file, or commit, branch, tag or experiment"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help=f"default: 127.0.0.1; an address that other machines can reach needs a token in {VARIABLE}",
    )
    parser.add_argument("--port", type=_port, default=8000, metavar="N", help="default: 8000; 0: any free port")
    return parser


def _port(text: str) -> int:
    if not (text.isdecimal() and len(text) < 6 and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}; allowed: 0 to 65535")
    return int(text)


def checked_address(host: str, token: str | None) -> str:
    """The IP address of a host. Raises UserError if other machines can reach it and there is no valid token."""
    if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable()):
        raise UserError(
            f"{VARIABLE}: allowed: {MIN_TOKEN} or more printable ASCII characters; `openssl rand -hex 16` makes a token"
        )
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UserError(f"--host {host[:80]}: not an address of this machine") from None
    address = str(found[0][4][0])
    if not _is_loopback(address) and token is None:
        raise UserError(
            f"--host {host}: other machines can reach this address, so set {VARIABLE} to a token "
            "(`openssl rand -hex 16` makes one), or leave out --host"
        )
    return address


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def listening(address: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError, with the reason."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, port), family=family, backlog=2048)
    except OSError as error:
        place = f"{address}, port {port}"
        raise UserError(f"cannot listen on {place}: {error.strerror}; give another --port or --host") from None
    # Connections inherit this option. Without it, the second packet of an answer waits up to 40 ms for the client's
    # acknowledgement of the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


if __name__ == "__main__":
    errors.run_command(main, kept="the current requests were answered, as far as they ended within 30 s")
