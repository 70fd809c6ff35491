"""The head of several machines that decode pictures together: it sends batches to them, and writes the results.

Only the head lists and hashes the pictures (stages/preprocess/survey.py), and only the head writes. Another machine
(stages/preprocess/join.py) reads the pictures from its own copy of the folder, compares each with the head's digest,
decodes it and sends the pixels. The batches of a lost machine go to the other processes.
"""

import hashlib
import itertools
import platform
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from PIL import features

from stages.common import head
from stages.common.head import NODES, Place
from stages.common.machine_settings import Machine
from stages.common.preparation import Preparation
from stages.dataset.options import DataName
from stages.preprocess import decoding
from stages.preprocess.decoding import Task
from stages.preprocess.link import HEARTBEAT_SECONDS, Link, LostError
from stages.preprocess.options import Preprocess

CODE = ("common", "dataset", "preprocess")  # folders of stages/
LIBRARIES = ("libjpeg_turbo", "zlib", "webp", "libtiff")  # inside Pillow
POLL_SECONDS = 0.2
END_SECONDS = 5.0  # for the other machines to read that all is done

Submit = Callable[[list[Task]], Future[list[str]]]  # per picture, why it cannot be used; "" if it can


def facts(data: DataName, options: Preprocess) -> dict[str, str]:
    """What must be the same on all machines."""
    stages = head.ROOT / "stages"
    files = sorted(path for folder in CODE for path in (stages / folder).glob("*.py"))
    libraries = (f"{name} {features.version(name)}" for name in LIBRARIES)
    return {
        "commit": head.commit(),
        "code": head.digest(stages, files),
        "parameters": hashlib.sha256(f"{data!r} {options!r}".encode()).hexdigest()[:12],
        "packages": " ".join([f"Pillow {version('pillow')}", *libraries, f"numpy {version('numpy')}"]),
        "processor": platform.machine(),
    }


@dataclass(order=True)
class Batch:
    """Pictures that one process decodes. A batch with a lower number comes first, also after its machine was lost."""

    number: int
    tasks: list[Task] = field(compare=False)
    preparation: Preparation = field(compare=False)
    reasons: Future[list[str]] = field(compare=False, default_factory=Future)


class Machines:
    """The machines that have joined the head."""

    def __init__(self, place: Place, own: Mapping[str, str], timeout_seconds: float) -> None:
        """own: the head's facts."""
        self._place, self._facts, self._timeout = place, own, timeout_seconds
        self._batches: queue.PriorityQueue[Batch] = queue.PriorityQueue()
        self._count = 0
        self._links: dict[str, list[Link]] = {}  # by machine, the first one for messages about it
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def accept(self, listener: socket.socket) -> None:
        """Let machines join until the head ends."""
        listener.settimeout(POLL_SECONDS)
        while not self._ended.is_set():
            try:
                connection, (address, _) = listener.accept()
                link = Link(connection, address, self._timeout)
            except TimeoutError:
                continue
            except OSError:  # the head ends, the caller has gone, or too many files are open
                self._ended.wait(POLL_SECONDS)
                continue
            threading.Thread(target=self._serve, args=[link], daemon=True).start()

    def end(self, succeeded: bool) -> None:
        """Tell the other machines that there is no more to do, and close their connections."""
        self._ended.set()
        deadline = time.monotonic() + END_SECONDS
        machines = list(self._links.values())
        for links in machines if succeeded else []:
            with suppress(LostError):
                links[0].send({"end": True})
        while succeeded and self._links and time.monotonic() < deadline:  # until they have read it
            time.sleep(POLL_SECONDS)
        for link in itertools.chain(*machines):
            link.close()

    @contextmanager
    def sharing(self, preparation: Preparation, processes: int, submit_here: Submit) -> Iterator[Submit]:
        """Within the block, batches are decoded by the processes of this machine and by the other machines.

        submit_here: has a process of this machine decode a batch.
        """
        ended = threading.Event()

        def work_here() -> None:
            while not ended.is_set():
                with suppress(queue.Empty):
                    batch = self._batches.get(timeout=POLL_SECONDS)
                    try:
                        batch.reasons.set_result(submit_here(batch.tasks).result())
                    except BaseException as error:
                        batch.reasons.set_exception(error)

        def submit(tasks: list[Task]) -> Future[list[str]]:
            self._count += 1
            batch = Batch(self._count, tasks, preparation)
            self._batches.put(batch)
            return batch.reasons

        for _ in range(2 * processes):  # two batches per process: none waits for the next one
            threading.Thread(target=work_here, daemon=True).start()
        try:
            yield submit
        finally:
            ended.set()

    def _serve(self, link: Link) -> None:
        """Everything that happens on one connection."""
        machine = ""
        try:
            link.send({"stage": "preprocess", "facts": self._facts, "timeout_seconds": self._timeout})
            hello, _ = link.receive()
            machine = str(hello["machine"])
            if "processes" in hello:
                self._admit(machine, link, hello)
                link.receive()  # raises LostError when the machine leaves
            else:
                self._links[machine].append(link)  # KeyError: it is lost already
                self._hand_out(link)
        except (LostError, KeyError) as error:
            self._drop(machine, str(error))
        finally:
            link.close()

    def _admit(self, machine: str, link: Link, hello: Mapping[str, Any]) -> None:
        refusal = str(hello.get("refused", ""))
        with self._lock:
            if not refusal and len(self._links) >= self._place.maximum - 1:
                refusal = f"{NODES} allows {self._place.maximum} machines, and all have joined"
            if not refusal:
                self._links[machine] = [link]
        if refusal:
            head.print_message(head.refusal_line(link.address, refusal))
        else:
            head.print_message(head.joining_line(link.address, int(hello["processes"])))
        link.send({"refused": refusal} if refusal else {"admitted": True})

    def _hand_out(self, link: Link) -> None:
        """Give batches to a process of another machine. Raises LostError once it is lost."""
        while not self._ended.is_set():
            try:
                batch = self._batches.get(timeout=HEARTBEAT_SECONDS)
            except queue.Empty:
                link.heartbeat()
                continue
            try:
                reasons = self._decoded(link, batch)
            except LostError:
                self._batches.put(batch)
                raise
            except OSError as error:  # of the head's disk
                batch.reasons.set_exception(error)
            else:
                batch.reasons.set_result(reasons)

    def _decoded(self, link: Link, batch: Batch) -> list[str]:
        """Have the other machine decode a batch, and write the pixels. Raises LostError, and OSError of the disk."""
        pictures = [[task.name, task.digest.hex()] for task in batch.tasks]
        link.send({"preparation": batch.preparation.model_dump(), "pictures": pictures})
        channels, height, width = batch.preparation.shape
        reasons = []
        for task in batch.tasks:
            message, pixels = link.receive()
            reason = str(message.get("reason", ""))
            if not reason:
                if len(pixels) != channels * height * width or message.get("sha256") != _digest(pixels):
                    raise LostError("sends something else")
                decoding.write(task, pixels)
            reasons.append(reason)
        return reasons

    def _drop(self, machine: str, reason: str) -> None:
        """Close all connections of a machine, so that other processes get its batches."""
        with self._lock:
            links = self._links.pop(machine, [])
        if not links or self._ended.is_set():
            return
        head.print_message(f"{links[0].address} {reason}: its pictures go to the other processes")
        with suppress(LostError):
            links[0].send({"refused": f"this machine {reason}"})
        for link in links:
            link.close()


@contextmanager
def listening(
    environment: Mapping[str, str], data: DataName, options: Preprocess, settings: Machine
) -> Iterator[Machines | None]:
    """Let other machines join within the block, if TRAIN_NODES says so; else None. Raises UserError."""
    place = head.read_place(environment)
    if place is None or data.name != "images" or place.maximum == 1:
        yield None
        return
    with head.listening(place) as listener:
        machines = Machines(place, facts(data, options), settings.timeout_seconds)
        threading.Thread(target=machines.accept, args=[listener], daemon=True).start()
        head.print_invitation(place)
        try:
            yield machines
        except BaseException:
            machines.end(succeeded=False)
            raise
        machines.end(succeeded=True)


def _digest(pixels: bytes | bytearray | memoryview) -> str:
    return hashlib.sha256(pixels).hexdigest()
