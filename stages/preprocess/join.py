"""Decode pictures for a head on another machine (stages/preprocess/machines.py) until it has finished."""

import hashlib
import multiprocessing
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection as pipes
from multiprocessing.connection import Connection
from pathlib import Path

from stages.common import children, head, machine
from stages.common.errors import UserError
from stages.common.machine_settings import Machine
from stages.common.preparation import Preparation
from stages.common.text import counted, shown
from stages.dataset.folder import Reader
from stages.dataset.options import DataName
from stages.dataset.pictures import UnusablePictureError
from stages.preprocess import decoding, machines
from stages.preprocess.link import HEARTBEAT_SECONDS, Link, LostError
from stages.preprocess.options import Preprocess
from stages.preprocess.survey import ChangedError

GREETING_SECONDS = 2.0  # in which a head of preprocess says what it is; one of train says nothing
END_SECONDS = 5.0  # between the end of a worker's connection and the head's message why
LINKS = 2  # per process: one sends while the other decodes


@dataclass(frozen=True)
class Work:
    """What a worker process needs to know. place: host and port of the head. machine: the name of this one."""

    place: tuple[str, int]
    machine: str
    root: Path
    timeout_seconds: float


def join(place: str, data: DataName, options: Preprocess, settings: Machine) -> bool:
    """Decode pictures for the head at `place`, HOST:PORT, until it has finished.

    Returns whether that head decodes pictures; one that trains waits for another program. Raises UserError.
    """
    address = head.parse_address(place)
    with head.connect(place, settings.timeout_seconds) as connection:
        link = Link(connection, address[0], GREETING_SECONDS)
        try:
            greeting, _ = link.receive()
        except LostError:
            return False
        if greeting.get("stage") != "preprocess":
            return False
        timeout = float(greeting["timeout_seconds"])
        link.set_timeout(timeout)
        work = Work(address, uuid.uuid4().hex, Path(data.images), timeout)
        processes = settings.threads or machine.cores()
        try:
            _enter(place, link, greeting["facts"], machines.facts(data, options), work.machine, processes)
            count = counted(processes, "process", "processes")
            print(f"joining {place} with {count}; the head writes", flush=True)
            with _workers(work, processes) as (sentinels, messages):
                _watch(place, link, sentinels, messages)
        except LostError:
            raise head.lost_head_error(place) from None
    print("preprocess has decoded all pictures; the head has them", flush=True)
    return True


def _enter(
    place: str, link: Link, theirs: Mapping[str, str], own: Mapping[str, str], machine_name: str, processes: int
) -> None:
    """Ask the head to admit this machine. Raises UserError, of which the head prints a line too, and LostError."""
    difference = head.difference(theirs, own)
    hello = {"machine": machine_name, "processes": processes}
    link.send({**hello, "refused": difference} if difference else hello)
    answer, _ = link.receive()
    if "refused" in answer:
        raise head.refusal_error(place, answer["refused"])


@contextmanager
def _workers(work: Work, processes: int) -> Iterator[tuple[list[int], list[Connection]]]:
    """Worker processes, which end with the block: what is ready when one has ended, and where it says why."""
    context = multiprocessing.get_context("spawn")
    messages, started = [], []
    try:
        for _ in range(processes):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=[work, sender], daemon=True)
            process.start()
            sender.close()
            messages.append(receiver)
            started.append(process)
        yield [process.sentinel for process in started], messages
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.join()


def _watch(place: str, link: Link, sentinels: list[int], messages: list[Connection]) -> None:
    """Wait until the head has finished. Raises UserError if a worker cannot go on, LostError if the head is lost."""
    while not pipes.wait([link.fileno(), *sentinels], HEARTBEAT_SECONDS):
        link.heartbeat()
    for receiver in messages:
        if receiver.poll():
            try:
                reason = receiver.recv()
            except EOFError:  # killed, or it lost the head, which says why
                continue
            raise UserError(f"this machine leaves {place}: {reason}")
    link.set_timeout(END_SECONDS)
    answer, _ = link.receive()
    if "refused" in answer:
        raise UserError(f"{place}: {answer['refused']}")


# --- a worker process


def _work(work: Work, messages: Connection) -> None:
    """Decode batches until the head is lost or has finished; send a message if this machine is the reason."""
    children.end_with_the_parent()
    links = []
    try:
        for _ in range(LINKS):
            link = Link(
                socket.create_connection(work.place, work.timeout_seconds), *work.place[:1], work.timeout_seconds
            )
            link.receive()  # the greeting
            link.send({"machine": work.machine})
            links.append(link)
        reasons: list[str] = []
        threads = [threading.Thread(target=_decode_batches, args=[work, link, reasons]) for link in links]
        for thread in threads:
            thread.start()
        while all(thread.is_alive() for thread in threads):
            threads[0].join(HEARTBEAT_SECONDS)
            for link in links:
                link.heartbeat()
        if reasons:
            messages.send(reasons[0])
    except (LostError, OSError):
        pass  # the parent waits for the head's message
    finally:
        for link in links:
            link.close()


def _decode_batches(work: Work, link: Link, reasons: list[str]) -> None:
    """Decode what the head sends until it is lost. reasons: gets why, if it is this machine that cannot go on."""
    reader, name = Reader(work.root), ""
    try:
        while True:
            batch, _ = link.receive()
            preparation = Preparation.model_validate(batch["preparation"])
            for name, digest in batch["pictures"]:
                try:
                    pixels = decoding.decode(reader, preparation, name, bytes.fromhex(digest)).data.cast("B")
                except UnusablePictureError as error:
                    link.send({"reason": error.reason})
                else:
                    link.send({"sha256": hashlib.sha256(pixels).hexdigest()}, pixels)
    except LostError:
        return
    except ChangedError:
        reasons.append(f"{work.root}: {shown(name)} is another picture than on the head")
    except (OSError, UserError) as error:
        reasons.append(str(error))
