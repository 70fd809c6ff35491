"""Training on several machines: which machines may join, and how they find the head.

They meet in a store of torch.distributed, which the head opens. It contains text and JSON, and nothing that comes from
another machine is unpickled. The store asks for no password, so use it in a trusted network only.
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

from stages.common import head as heads
from stages.common import paths
from stages.common.errors import UserError
from stages.common.head import CONNECT_SECONDS, HOST, Place
from stages.dataset import packed
from stages.network import device
from stages.train import checkpoint
from stages.train.options import Config

POLL_SECONDS = 0.5
MAX_SKEW_SECONDS = 10.0  # between clocks: torch's rendezvous tells by time stamps whether a machine is gone
PACKAGES = ("torch", "torchvision", "numpy", "safetensors")


def connect(head: str, timeout_seconds: float) -> tuple[TCPStore, Place]:
    """Connect to the store of a head, HOST:PORT. Raises UserError within the timeout."""
    address, port = heads.parse_address(head)
    seconds = min(CONNECT_SECONDS, timeout_seconds)
    with heads.connect(head, timeout_seconds) as probe:
        own_address = probe.getsockname()[0]
    store = _open_head_store(address, port, seconds)
    if store is None:
        raise UserError(f"{head} answers, but not as a head of training does; check the port")
    return store, Place(address, port, own_address, head=False)


def _open_head_store(host: str, port: int, seconds: float) -> TCPStore | None:
    """A connection to the store of a head; None if something else listens there."""
    stores: list[TCPStore] = []

    def open_and_wait() -> None:
        with suppress(RuntimeError):
            store = open_store(host, port, seconds)
            store.wait(["facts"], timedelta(seconds=seconds))
            stores.append(store)

    # In a thread, since torch would wait forever for a program that accepts connections and sends nothing.
    thread = threading.Thread(target=open_and_wait, daemon=True)
    thread.start()
    thread.join(2 * seconds)
    return stores[0] if stores else None


def open_store(host: str, port: int, seconds: float) -> TCPStore:
    """A connection to a store. Raises RuntimeError."""
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))


def interface(address: str) -> str:
    """The name of the network interface that has this IPv4 address. Raises UserError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no IPv4 address
                answer = fcntl.ioctl(any_socket, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    raise UserError(f"no network interface of this machine has the address {address}; set {HOST} to one that it has")


# --- what must be equal on all machines


def facts(config: Config) -> dict[str, str]:
    """Everything that decides the bits of the result, by name. Raises UserError if this machine lacks the device."""
    kind = device.choose(config.train.device, device.available(), "train.device")
    root = checkpoint.PACKAGE.parent
    capability = "" if config.train.numerics == "portable" else f" {torch.backends.cpu.get_cpu_capability()}"
    return {
        "commit": heads.commit(),
        "code": heads.digest(root, checkpoint.code("train", root)),
        "parameters": hashlib.sha256(repr(config).encode()).hexdigest()[:12],
        "data": heads.digest(Path(), [paths.TRAIN / packed.INDEX, paths.VALIDATION / packed.INDEX, paths.DATA_CARD]),
        "weights": heads.digest(Path(), [paths.PRETRAINED]) if config.starts_pretrained else "none",
        "packages": " ".join(f"{name} {version(name)}" for name in PACKAGES),
        "processor": f"{platform.machine()} {kind}{capability}",
    }


# --- joining


@contextmanager
def door(place: Place, facts: Mapping[str, str], run_id: str, timeout_seconds: float) -> Iterator[None]:
    """On the head: publish the facts that another machine needs to join, and print the messages of other machines."""
    store = open_store(place.host, place.port, timeout_seconds)
    nodes = {"minimum": place.minimum, "maximum": place.maximum}
    published = {"facts": dict(facts), "run": run_id, "timeout_seconds": timeout_seconds, **nodes}
    store.set("clock", str(time.time()))
    store.set("facts", json.dumps(published))
    ended = threading.Event()

    def print_messages() -> None:
        printed = 0
        with suppress(RuntimeError):  # the store is closed at the end of the run
            while not ended.wait(POLL_SECONDS):
                store.set("clock", str(time.time()))
                while printed < store.add("messages", 0):
                    printed += 1
                    heads.print_message(store.get(f"message {printed}").decode(errors="replace"))

    thread = threading.Thread(target=print_messages, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout_seconds)


def notify_head(store: TCPStore, message: str) -> None:
    """Let the head print a line."""
    number = store.add("messages", 1)
    store.set(f"message {number}", message)


def admission(store: TCPStore, place: Place, facts: Mapping[str, str]) -> dict[str, Any]:
    """What the head has published. Raises UserError, and the head prints a line, if this machine may not join.

    facts: of this machine.
    """
    published: dict[str, Any] = json.loads(store.get("facts"))
    skew = time.time() - float(store.get("clock"))
    reason = heads.difference(published["facts"], facts)
    if not reason and abs(skew) > MAX_SKEW_SECONDS:
        side = "ahead of" if skew > 0 else "behind"
        reason = f"other clock ({abs(skew):.0f} s {side} the head's): set the clocks with NTP"
    if reason:
        notify_head(store, heads.refusal_line(place.address, reason))
        raise heads.refusal_error(place, reason)
    return published


@contextmanager
def watching_head(place: Place, timeout_seconds: float, on_loss: Callable[[], None]) -> Iterator[None]:
    """Call `on_loss`, from another thread, if the head does not answer for timeout_seconds.

    torch notices that the head has ended, but not that the network is cut: its calls would wait forever.
    """
    ended, last_answer = threading.Event(), [time.monotonic()]

    def poll() -> None:
        with suppress(RuntimeError):
            store = open_store(place.host, place.port, timeout_seconds)
            while not ended.wait(POLL_SECONDS):
                store.add("messages", 0)
                last_answer[0] = time.monotonic()

    def check() -> None:
        while not ended.wait(POLL_SECONDS):
            if time.monotonic() - last_answer[0] > timeout_seconds:
                on_loss()

    for target in (poll, check):
        threading.Thread(target=target, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
