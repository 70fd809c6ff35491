"""The head of several machines: where it listens, and whether another machine would compute the same.

The head asks for no password, so its network must be a trusted one.
"""

import hashlib
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stages.common import children, errors, paths
from stages.common.errors import UserError
from stages.common.text import counted

# Environment variables of the head: the minimum and maximum number of machines, such as 1:4, and where it listens
NODES, HOST, PORT = "TRAIN_NODES", "TRAIN_HOST", "TRAIN_PORT"
CONNECT_SECONDS = 10.0  # to wait for the answer of another machine
LOOPBACK, DEFAULT_PORT, MOST_MACHINES = "127.0.0.1", 29400, 1000
ROOT = Path(__file__).parents[2]  # of the repository
REMEDIES = {
    "commit": "`git checkout` the head's commit",
    "code": "undo or copy the changes to the code",
    "parameters": f"use the head's {paths.PARAMS}",
    "data": "`make pull`, or `dvc repro preprocess`, makes the same data/processed",
    "weights": f"`make pull`, or `dvc repro weights`, makes the same {paths.PRETRAINED}",
    "packages": "`make repro` installs the pinned versions",
    "processor": "train.numerics: portable gives the same bits on all x86-64 processors with AVX2",
}


@dataclass(frozen=True)
class Place:
    """Where the machines of a run meet: host and port of the head. address: of this machine."""

    host: str
    port: int
    address: str
    minimum: int = 1
    maximum: int = 1
    head: bool = True

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


LOCAL = Place(LOOPBACK, 0, LOOPBACK)  # for the processes of one machine: not reachable from others, any free port


def read_place(environment: Mapping[str, str]) -> Place | None:
    """Where this head listens, from TRAIN_NODES, TRAIN_HOST and TRAIN_PORT; None without TRAIN_NODES.

    Raises UserError.
    """
    if not (nodes := environment.get(NODES)):
        return None
    counts = [int(text) for text in nodes.split(":") if text.isascii() and text.isdigit()]
    if len(counts) != nodes.count(":") + 1 or len(counts) > 2 or not 1 <= counts[0] <= counts[-1] <= MOST_MACHINES:
        raise UserError(f"{NODES} is {nodes[:80]!r}; give the fewest and the most machines, such as 1:4, or one number")
    host, port = environment.get(HOST) or LOOPBACK, environment.get(PORT) or str(DEFAULT_PORT)
    address = resolved(host, HOST)
    return Place(address, port_number(port, PORT), address, counts[0], counts[-1])


def port_number(text: str, name: str) -> int:
    """A port number. name: its origin, for messages. Raises UserError."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise UserError(f"{name} is {text[:80]!r}; give a port from 1 to 65535")
    return int(text)


def resolved(host: str, name: str) -> str:
    """The IPv4 address of a host. name: its origin, for messages. Raises UserError."""
    try:
        return socket.gethostbyname(host)
    except (OSError, UnicodeError):
        raise UserError(f"{name} is {host[:80]!r}, which is not a known host; give an address") from None


def parse_address(head: str) -> tuple[str, int]:
    """Address and port of a head, from HOST:PORT. Raises UserError."""
    host, separator, port = head.rpartition(":")
    if not (separator and host):
        raise UserError(f"HEAD is {head[:80]!r}; give HOST:PORT, as printed by the head")
    return resolved(host, "HEAD"), port_number(port, "the port of HEAD")


def connect(head: str, timeout_seconds: float) -> socket.socket:
    """Connect to a head, HOST:PORT. Raises UserError after at most CONNECT_SECONDS or timeout_seconds."""
    place, seconds = parse_address(head), min(CONNECT_SECONDS, timeout_seconds)
    try:
        return socket.create_connection(place, seconds)
    except TimeoutError:
        raise UserError(
            f"{head} does not answer within {seconds:g} s; does a firewall block it, or is the machine off?"
        ) from None
    except OSError as error:
        raise UserError(
            f"{head}: {error.strerror or error}; no head listens there: start it with {NODES}, and with a {HOST} that "
            "all machines can reach"
        ) from None


@contextmanager
def listening(place: Place) -> Iterator[socket.socket]:
    """A socket that listens on the head's address and port. Raises UserError."""
    try:
        listener = socket.create_server((place.host, place.port))
    except OSError as error:
        raise UserError(
            f"cannot listen on {place}: {os.strerror(error.errno or 0)}; is another head there? {PORT} is the port, "
            f"and {HOST} an address of this machine"
        ) from None
    with listener:
        yield listener


def commit() -> str:
    """The commit of this clone; "none" without Git."""
    try:
        git = children.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], Path(), os.environ, capture=True)
    except OSError:  # no Git
        return "none"
    return git.stdout.strip()[:12] or "none"


def digest(root: Path, files: Iterable[Path]) -> str:
    """A digest of files and their paths below `root`; if a file is missing, a text with its name."""
    sha256 = hashlib.sha256()
    for path in files:
        if not path.is_file():
            return f"no {path}"
        sha256.update(f"\0{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return sha256.hexdigest()[:12]


def difference(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """How this machine's facts differ from the head's, in one line; "" if they are equal."""
    names = [name for name in ours if theirs.get(name) != ours[name]]
    if "commit" in names and "code" in names:
        names.remove("code")
    texts = [f"{name} (the head: {theirs.get(name)}, here: {ours[name]})" for name in names]
    return f"other {', '.join(texts)}: {REMEDIES[names[0]]}" if names else ""


# --- what the head and the other machines print


def print_invitation(place: Place) -> None:
    """Tell the user of the head how other machines join."""
    print(f"this machine is the head; run on each other machine: make join HEAD={place}", flush=True)


def print_message(text: str) -> None:
    """Print a text of another machine: on one line, without control characters."""
    print(errors.printable(errors.one_line(text)), flush=True)


def joining_line(address: str, processes: int) -> str:
    """The head's line about a machine that joins. address: of that machine."""
    return f"{address} joins with {counted(processes, 'process', 'processes')}"


def refusal_line(address: str, reason: str) -> str:
    """The head's line about a machine that may not join. address: of that machine."""
    return f"{address} may not join: {reason}"


def refusal_error(head: object, reason: str) -> UserError:
    """The error of a machine that may not join."""
    return UserError(f"this machine cannot join {head}: {reason}")


def lost_head_error(head: object) -> UserError:
    """The error of a machine whose head has gone."""
    return UserError(f"the head {head} has ended or cannot be reached; nothing runs here any more")
