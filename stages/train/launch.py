"""Start the processes of a run, as torchrun does: its elastic agent starts them, watches them and starts them again.

A worker that is killed or hangs ends an attempt; the next one goes on from the last checkpoint. A worker that ends by
itself, for an error that the user can fix or a signal, has said why, and ends the run. With several machines, one agent
runs on each; they meet in the store that the head opens (stages/train/hosts.py).
"""

import logging
import math
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common import errors, head, machine, machine_settings, paths
from stages.common.errors import Interrupted, UserError
from stages.common.head import Place
from stages.common.machine_settings import Machine
from stages.train.options import Chosen
from stages.train.processes import STORE, LostProcessError

if TYPE_CHECKING:  # a process that trains alone does not load torch.distributed
    from torch.distributed import TCPStore

LAST_CALL_SECONDS = 2  # for which a round waits for further machines
HEARTBEATS = 5  # that a machine misses until it counts as gone
ENDED_FILE, RESTARTING = "ended", "restarting"
ENDED = "TRAIN_ENDED"  # environment variable of a worker: the file that the first one to end by itself writes
LOST = 75  # exit status of a worker that lost another one; sysexits.h calls it a temporary failure
RESTARTS = 100
GRACE_SECONDS = 10  # between SIGTERM and SIGKILL: the head writes a checkpoint meanwhile
REASON_SECONDS = 2  # a worker that lost another one lets that one, which may know why, end first


def run(chosen: Chosen, settings: Machine) -> int:
    """Train in machine.processes processes on this machine, and on those that join; return the exit status.

    The head, which is the first process of this machine, prints and writes.
    """
    import torch.distributed as dist

    from stages.train import hosts

    options, wanted = chosen.train, head.wanted(os.environ)
    warn(options.shards, settings.processes, machine.cores(), options.device)
    with (
        head.listening(wanted or head.ALONE) as listener,
        tempfile.TemporaryDirectory() as folder,
        ExitStack() as stack,
    ):
        place = replace(wanted or head.ALONE, port=listener.getsockname()[1])
        store = dist.TCPStore(
            place.host,
            place.port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=os.dup(listener.fileno()),
            timeout=timedelta(seconds=settings.timeout_seconds),
        )
        run_id = uuid.uuid4().hex
        if wanted:
            own = hosts.facts(chosen, options.device)
            stack.enter_context(hosts.door(place, own, run_id, settings.timeout_seconds))
            print(f"this machine is the head; on each other one: make join HEAD={place}", flush=True)
        return _run(settings, place, store, run_id, Path(folder))


def join(head: str, chosen: Chosen, settings: Machine) -> int:
    """Train with a head on another machine, HOST:PORT, until it has finished; return the exit status.

    Raises UserError.
    """
    from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousTimeoutError

    from stages.train import hosts

    store, place = hosts.connected(head, settings.timeout_seconds)
    published = hosts.admitted(store, place, hosts.facts(chosen, chosen.train.device))
    timeout = float(published["timeout_seconds"])
    os.environ[machine_settings.variable("timeout_seconds")] = str(timeout)  # the head's, for the workers here
    settings, place = (
        settings.model_copy(update={"timeout_seconds": timeout}),
        replace(place, maximum=published["maximum"]),
    )
    plural = "es" * (settings.processes > 1)
    hosts.tell(store, f"{place.address} joins with {settings.processes} process{plural}")
    print(f"joining {place} with {settings.processes} process{plural}; the head prints and writes", flush=True)
    gone = UserError(f"the head {place} has ended or cannot be reached; nothing runs here any more")

    def lost() -> None:
        errors.print_line(f"error: {gone}")
        os._exit(2)  # the workers end with this program, which may wait in torch for an answer

    with tempfile.TemporaryDirectory() as folder, hosts.watched(place, timeout, lost):
        Path(folder, RESTARTING).touch()
        try:
            status = _run(settings, place, store, published["run"], Path(folder))
        except RendezvousTimeoutError:
            raise UserError(f"{place} had no place for this machine for {timeout:g} s (TRAIN_NODES)") from None
        except RendezvousError:
            raise gone from None
    if not status:
        print("training has ended; the head has the results", flush=True)
    return status


def warn(shards: int, processes: int, cores: int, device: str) -> None:
    """Print what is odd about a number of processes."""
    if processes > shards:
        print(
            f"warning: machine.processes is {processes}, and a batch has {shards} parts (train.shards): {shards} "
            f"process{'es' * (shards > 1)} work, the others wait",
            flush=True,
        )
    elif processes > cores and device == "cpu":
        print(f"warning: machine.processes is {processes}, and this machine has {cores} cores", flush=True)


def _run(settings: Machine, place: Place, store: "TCPStore", run_id: str, folder: Path) -> int:
    logging.disable(logging.CRITICAL)  # torchrun's own account of what follows
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.rendezvous import RendezvousParameters, RendezvousTimeoutError
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

    from stages.train import hosts
    from stages.train.agent import Agent
    from stages.train.rendezvous import PlainBackend

    ended, seconds = folder / ENDED_FILE, settings.timeout_seconds
    interface = loopback_name() if place.address.startswith("127.") else hosts.interface(place.address)
    os.environ |= {
        STORE: str(place),
        ENDED: str(ended),
        errors.STARTED_BY: str(os.getpid()) if place.head else "",  # the head's workers end with this program
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # a second store, which would listen on all of the network
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
        "TORCHELASTIC_SIGNALS_TO_HANDLE": ",".join(
            each.name for each in errors.SIGNALS if signal.getsignal(each) is not signal.SIG_IGN
        ),
    }
    parameters = RendezvousParameters(
        "c10d",
        str(place),
        run_id,
        min_nodes=place.minimum,
        max_nodes=place.maximum,
        # Ranks go by the order of these names: the head is the first one.
        local_addr=f"{'head' if place.head else 'joined'}-{place.address}",
        join_timeout=math.ceil(seconds),
        last_call_timeout=LAST_CALL_SECONDS if place.maximum > 1 else 1,
        keep_alive_interval=max(int(seconds / 2 / HEARTBEATS), 1),
        keep_alive_max_attempt=HEARTBEATS,  # a machine without one for half of the timeout is gone
    )
    handler = create_handler(store, PlainBackend(store, run_id), parameters)
    spec = WorkerSpec(
        role="train",
        local_world_size=settings.processes,
        rdzv_handler=handler,
        entrypoint=sys.executable,
        args=("-m", "stages.train"),
        max_restarts=RESTARTS,
    )
    others = dict.fromkeys(range(1 if place.head else 0, settings.processes), Std.OUT)
    logs = DefaultLogsSpecs(log_dir=str(folder), redirects=others) if others else DefaultLogsSpecs(log_dir=str(folder))
    try:
        result = Agent(spec, logs, ended, GRACE_SECONDS, seconds, place.head).run()
    except SignalException as stop:
        if ended.exists():  # the head has said what it resumes from
            return 128 + int(stop.sigval)
        raise Interrupted(int(stop.sigval), "`dvc repro` goes on from the last checkpoint, if there is one") from None
    except RendezvousTimeoutError:
        if not place.head:
            raise
        raise UserError(
            f"fewer than {place.minimum} machines (TRAIN_NODES) are there after {seconds:g} s (machine.timeout_seconds)"
        ) from None
    finally:
        handler._stop_heartbeats()  # at the end of the program its thread may try to join itself
    if not result.is_failed():
        return 0
    with suppress(FileNotFoundError):
        return int(ended.read_text())
    raise UserError(
        "the processes of training were killed again and again, without a new checkpoint in between: is there too "
        f"little memory? Set fewer machine.processes; the last checkpoint stays in {paths.RESUME}"
    )


def loopback_name() -> str:
    """Of the interface: lo, or lo0 on macOS and BSD."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), "lo")


@contextmanager
def as_worker() -> Iterator[None]:
    """Within the block, which is all of a worker's work: end as the agent expects it.

    The first worker that ends by itself says why; the others, which end for the same reason, say nothing.
    """
    ended = Path(os.environ[ENDED])
    for number in errors.SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)  # outside of the loop there is nothing to save, nor to be said
    if os.environ["RANK"] != "0":
        _end_with_the_agent()
    try:
        yield
    except Interrupted as stop:
        if ended.with_name(RESTARTING).exists():  # for machines that join or have gone: the agent starts all again
            sys.exit(LOST)
        _first(ended, stop.status)
        raise
    except LostProcessError:
        time.sleep(REASON_SECONDS)  # the agent ends it, once it has noticed which one is gone
        sys.exit(LOST)
    except Exception:
        _first(ended, 2)
        raise


def _first(ended: Path, status: int) -> None:
    """Write down that this worker has ended by itself; end without a word if another one has done so."""
    try:
        with ended.open("x") as file:
            file.write(str(status))
    except FileExistsError:
        sys.exit(status)


def _end_with_the_agent() -> None:
    """End when the program that started this worker is gone, even while waiting in torch.

    On the head's machine, the head first writes a checkpoint: it needs this worker for the step that it is in, and this
    worker ends by itself once the head has ended.
    """
    agent, with_head = os.getppid(), bool(os.environ.get(errors.STARTED_BY))

    def watch() -> None:
        while os.getppid() == agent:
            time.sleep(errors.WATCH_SECONDS)
        if with_head:
            time.sleep(GRACE_SECONDS)
        os._exit(LOST)

    threading.Thread(target=watch, daemon=True).start()
