"""Training on several machines: who takes part, where they meet, and whether another machine would compute the same.

They meet in the store of torch.distributed, which the head opens. Whatever is in it is plain text or JSON: nothing that
comes from another machine is unpickled. The store asks for no password, so its network must be a trusted one.
"""

import fcntl
import hashlib
import json
import platform
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from stages.common import errors, paths
from stages.common import head as heads
from stages.common.errors import UserError
from stages.common.head import CONNECT_SECONDS, HOST, Place, parsed
from stages.dataset import packed
from stages.train import checkpoint
from stages.train.options import Chosen

POLL_SECONDS = 0.5
MOST_SKEW_SECONDS = 10.0  # between clocks: torch's rendezvous counts a machine as gone by its time stamps
PACKAGES = ("torch", "torchvision", "numpy", "safetensors")


def connected(head: str, timeout_seconds: float) -> tuple[TCPStore, Place]:
    """The store of a head, and the place. head: HOST:PORT. Raises UserError within the timeout."""
    address, number = parsed(head)
    seconds = min(CONNECT_SECONDS, timeout_seconds)
    with heads.connected(head, timeout_seconds) as probe:
        own = probe.getsockname()[0]
    store = _store_of_a_head(address, number, seconds)
    if store is None:
        raise UserError(f"{head} answers, but not as a head of training does; check the port")
    return store, Place(address, number, own, head=False)


def _store_of_a_head(host: str, port: int, seconds: float) -> TCPStore | None:
    """The store that a head has opened; None if something else listens there."""
    found: list[TCPStore] = []

    def connect() -> None:
        with suppress(RuntimeError):
            store = opened(host, port, seconds)
            store.wait(["facts"], timedelta(seconds=seconds))
            found.append(store)

    thread = threading.Thread(target=connect, daemon=True)  # torch would wait forever for a program that says nothing
    thread.start()
    thread.join(2 * seconds)
    return found[0] if found else None


def opened(host: str, port: int, seconds: float) -> TCPStore:
    """A connection to the store of a head. Raises RuntimeError."""
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))


def interface(address: str) -> str:
    """The name of the network interface that has an address. Raises UserError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no IPv4 address
                answer = fcntl.ioctl(any_socket, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    raise UserError(f"no network interface of this machine has the address {address}; set {HOST} to one that it has")


# --- what must be the same


def facts(chosen: Chosen, device: str) -> dict[str, str]:
    """All that decides on the bits of the result, by what it is. device: train.device as chosen here."""
    root = checkpoint.PACKAGE.parent
    capability = "" if chosen.train.numerics == "portable" else f" {torch.backends.cpu.get_cpu_capability()}"
    return {
        "commit": heads.commit(),
        "code": heads.digest(root, checkpoint.code("train", root)),
        "parameters": hashlib.sha256(repr(chosen).encode()).hexdigest()[:12],
        "data": heads.digest(Path(), [paths.TRAIN / packed.INDEX, paths.VALIDATION / packed.INDEX, paths.DATA_CARD]),
        "packages": " ".join(f"{name} {version(name)}" for name in PACKAGES),
        "processor": f"{platform.machine()} {device}{capability}",
    }


# --- the head's door, and the joiner's knock


@contextmanager
def door(place: Place, own: Mapping[str, str], run: str, timeout_seconds: float) -> Iterator[None]:
    """Publish what a machine must have to join, and print what those that come say."""
    store = opened(place.host, place.port, timeout_seconds)
    published = {"facts": dict(own), "run": run, "timeout_seconds": timeout_seconds, "maximum": place.maximum}
    store.set("clock", str(time.time()))
    store.set("facts", json.dumps(published))
    ended = threading.Event()

    def answer() -> None:
        told = 0
        with suppress(RuntimeError):  # the store is gone, as at the end of the run
            while not ended.wait(POLL_SECONDS):
                store.set("clock", str(time.time()))
                while told < store.add("messages", 0):
                    told += 1
                    message = store.get(f"message {told}").decode(errors="replace")
                    print(errors.printable(errors.one_line(message)), flush=True)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout_seconds)


def tell(store: TCPStore, message: str) -> None:
    """Have the head print a line."""
    number = store.add("messages", 1)
    store.set(f"message {number}", message)


def admitted(store: TCPStore, place: Place, own: Mapping[str, str]) -> dict[str, Any]:
    """What the head has published, if this machine may join. Raises UserError, of which the head prints a line too."""
    published: dict[str, Any] = json.loads(store.get("facts"))
    skew = time.time() - float(store.get("clock"))
    reason = heads.difference(published["facts"], own)
    if not reason and abs(skew) > MOST_SKEW_SECONDS:
        reason = f"clock ({abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the head's): set the clocks with NTP"
    if reason:
        tell(store, f"{place.address} may not join: other {reason}")
        raise UserError(f"this machine cannot join {place}: other {reason}")
    return published


@contextmanager
def watched(place: Place, timeout_seconds: float, lost: Callable[[], None]) -> Iterator[None]:
    """Call `lost` once the head has not answered for timeout_seconds, from another thread.

    torch's own calls notice that the head has ended, but not that the network is cut: they would wait forever.
    """
    ended, last = threading.Event(), [time.monotonic()]

    def ask() -> None:
        with suppress(RuntimeError):
            store = opened(place.host, place.port, timeout_seconds)
            while not ended.wait(POLL_SECONDS):
                store.add("messages", 0)
                last[0] = time.monotonic()

    def judge() -> None:
        while not ended.wait(POLL_SECONDS):
            if time.monotonic() - last[0] > timeout_seconds:
                lost()

    for target in (ask, judge):
        threading.Thread(target=target, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
