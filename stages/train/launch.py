"""Start the processes of a run with torchrun's elastic agent, which watches them and restarts them.

If a worker is killed or hangs, the agent restarts all workers, which resume from the last checkpoint. A worker that
ends by itself, because of an error or a signal, has printed the reason, and ends the run. With several machines, one
agent runs on each; they meet in the store that the head opens (stages/train/hosts.py).
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
from stages.common.text import counted
from stages.train.options import Config
from stages.train.processes import ENDED, ENDED_FILE, RESTARTING, STORE, LostProcessError

if TYPE_CHECKING:  # a process that trains alone does not import torch.distributed
    from torch.distributed import TCPStore
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.multiprocessing import LogsSpecs
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

LAST_CALL_SECONDS = 2  # that a rendezvous waits for more machines
HEARTBEATS = 5  # that a machine may miss before it counts as gone
LOST = 75  # exit status of a worker that lost another worker; in sysexits.h, a temporary failure
MAX_RESTARTS = 100
GRACE_SECONDS = 10  # between SIGTERM and SIGKILL; in that time the head writes a checkpoint
REASON_SECONDS = 2  # after losing another worker, a worker waits for that one to print its reason


def run(config: Config, settings: Machine) -> int:
    """Train in machine.processes processes on this machine, and on machines that join. Returns the exit status.

    The head, the first process of this machine, prints and writes the results. Raises UserError.
    """
    import torch.distributed as dist

    from stages.train import hosts

    train, wanted = config.train, head.read_place(os.environ)
    warn(train.shards, settings.processes, machine.cores(), train.device)
    with (
        head.listening(wanted or head.LOCAL) as listener,
        tempfile.TemporaryDirectory() as folder,
        ExitStack() as stack,
    ):
        place = replace(wanted or head.LOCAL, port=listener.getsockname()[1])
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
            facts = hosts.facts(config)
            stack.enter_context(hosts.door(place, facts, run_id, settings.timeout_seconds))
            head.print_invitation(place)
        return _run_agent(settings, place, store, run_id, Path(folder))


def join(address: str, config: Config, settings: Machine) -> int:
    """Train with a head on another machine until it has finished. Returns the exit status.

    address: of the head, HOST:PORT. Raises UserError.
    """
    from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousTimeoutError

    from stages.train import hosts

    store, place = hosts.connect(address, settings.timeout_seconds)
    published = hosts.admission(store, place, hosts.facts(config))
    timeout = float(published["timeout_seconds"])
    os.environ[machine_settings.variable("timeout_seconds")] = str(timeout)  # for the workers on this machine
    settings = settings.model_copy(update={"timeout_seconds": timeout})
    # With another minimum than the head's, no machine would notice that it is reached.
    place = replace(place, minimum=published["minimum"], maximum=published["maximum"])
    processes = counted(settings.processes, "process", "processes")
    hosts.notify_head(store, head.joining_line(place.address, settings.processes))
    print(f"joining {place} with {processes}; the head prints and writes", flush=True)
    head_gone = head.lost_head_error(place)

    def end_program() -> None:
        errors.print_line(f"error: {head_gone}")
        os._exit(2)  # torch may be waiting for an answer; the workers end with this program

    with tempfile.TemporaryDirectory() as folder, hosts.watching_head(place, timeout, end_program):
        Path(folder, RESTARTING).touch()
        try:
            status = _run_agent(settings, place, store, published["run"], Path(folder))
        except RendezvousTimeoutError:
            raise UserError(
                f"the head {place} did not admit this machine within {timeout:g} s; TRAIN_NODES limits their number"
            ) from None
        except RendezvousError:
            raise head_gone from None
    if not status:
        print("training has ended; the head has the results", flush=True)
    return status


def warn(shards: int, processes: int, cores: int, device: str) -> None:
    """Print a warning if some of the processes cannot speed up training."""
    if processes > shards:
        print(
            f"warning: machine.processes is {processes}, and a batch has {counted(shards, 'part')} (train.shards): "
            f"only {counted(shards, 'process', 'processes')} can work",
            flush=True,
        )
    elif processes > cores and device == "cpu":
        print(
            f"warning: machine.processes is {processes}, and this machine has {counted(cores, 'core')}",
            flush=True,
        )


def _run_agent(settings: Machine, place: Place, store: "TCPStore", run_id: str, folder: Path) -> int:
    """Run this machine's agent until training ends. folder: temporary. Returns the exit status. Raises UserError."""
    logging.disable(logging.CRITICAL)  # of torchrun, which would also log what is printed here
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.rendezvous import RendezvousTimeoutError

    from stages.train.agent import Agent

    ended, seconds = folder / ENDED_FILE, settings.timeout_seconds
    _set_environment(place, ended)
    handler = _rendezvous_handler(place, store, run_id, seconds)
    spec, logs = _workers(settings.processes, place, handler, folder)
    try:
        result = Agent(spec, logs, ended, GRACE_SECONDS, seconds, place.head).run()
    except SignalException as stop:
        if ended.exists():  # the head has printed where training resumes
            return 128 + int(stop.sigval)
        raise Interrupted(int(stop.sigval), "`dvc repro` resumes from the last checkpoint, if there is one") from None
    except RendezvousTimeoutError:
        if not place.head:
            raise
        raise UserError(
            f"fewer than {place.minimum} machines (TRAIN_NODES) joined within {seconds:g} s (machine.timeout_seconds)"
        ) from None
    finally:
        handler._stop_heartbeats()  # when the program exits, its thread could try to join itself
    if not result.is_failed():
        return 0
    with suppress(FileNotFoundError):
        return int(ended.read_text())
    raise UserError(
        "the processes of training were killed again and again before a new checkpoint was written: is there too "
        f"little memory? Set fewer machine.processes; the last checkpoint stays in {paths.RESUME}"
    )


def _set_environment(place: Place, ended: Path) -> None:
    """Set the environment variables of this program and its workers. ended: file, see `as_worker`."""
    from stages.train import hosts

    interface = loopback_name() if place.address.startswith("127.") else hosts.interface(place.address)
    os.environ |= {
        STORE: str(place),
        ENDED: str(ended),
        errors.STARTED_BY: str(os.getpid()) if place.head else "",  # the head's workers end with this program
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # no second store, which would listen on all interfaces
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
        "TORCHELASTIC_SIGNALS_TO_HANDLE": ",".join(
            signum.name for signum in errors.SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN
        ),
    }


def _rendezvous_handler(place: Place, store: "TCPStore", run_id: str, seconds: float) -> "DynamicRendezvousHandler":
    """The rendezvous of the machines of a run. seconds: machine.timeout_seconds."""
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

    from stages.train.rendezvous import PlainBackend

    parameters = RendezvousParameters(
        "c10d",
        str(place),
        run_id,
        min_nodes=place.minimum,
        max_nodes=place.maximum,
        # torch orders the ranks by these names, so that the head has rank 0.
        local_addr=f"{'head' if place.head else 'joined'}-{place.address}",
        join_timeout=math.ceil(seconds),
        last_call_timeout=LAST_CALL_SECONDS if place.maximum > 1 else 1,
        keep_alive_interval=max(int(seconds / 2 / HEARTBEATS), 1),  # a machine counts as gone after half of `seconds`
        keep_alive_max_attempt=HEARTBEATS,
    )
    return create_handler(store, PlainBackend(store, run_id), parameters)


def _workers(
    processes: int, place: Place, handler: "DynamicRendezvousHandler", folder: Path
) -> "tuple[WorkerSpec, LogsSpecs]":
    """The workers of this machine, and where their output goes: only the head's is shown."""
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std

    spec = WorkerSpec(
        role="train",
        local_world_size=processes,
        rdzv_handler=handler,
        entrypoint=sys.executable,
        args=("-m", "stages.train"),
        max_restarts=MAX_RESTARTS,
    )
    hidden = dict.fromkeys(range(1 if place.head else 0, processes), Std.OUT)
    logs = DefaultLogsSpecs(log_dir=str(folder), redirects=hidden) if hidden else DefaultLogsSpecs(log_dir=str(folder))
    return spec, logs


def loopback_name() -> str:
    """The name of the loopback interface: lo, or lo0 on macOS and BSD."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), "lo")


@contextmanager
def as_worker() -> Iterator[None]:
    """Run the block, which is all that a worker does, and end the worker as the agent expects.

    The first worker that ends by itself writes its exit status to the file ENDED and prints the reason. The others,
    which end for the same reason, print nothing.
    """
    ended = Path(os.environ[ENDED])
    for signum in errors.SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)  # outside of the training loop there is nothing to save or print
    if os.environ["RANK"] != "0":
        _end_with_the_agent()
    try:
        yield
    except Interrupted as stop:
        if ended.with_name(RESTARTING).exists():  # machines have joined or left: the agent restarts the workers
            sys.exit(LOST)
        _record_end(ended, stop.status)
        raise
    except LostProcessError:
        time.sleep(REASON_SECONDS)  # the agent ends this worker once it notices the lost one
        sys.exit(LOST)
    except Exception:
        _record_end(ended, 2)
        raise


def _record_end(ended: Path, status: int) -> None:
    """Write the exit status of this worker to a file; exit silently if another worker has done so."""
    try:
        with ended.open("x") as file:
            file.write(str(status))
    except FileExistsError:
        sys.exit(status)


def _end_with_the_agent() -> None:
    """End this worker once the program that started it is gone, even during a wait in torch.

    On the head's machine, it ends later: to write a checkpoint, the head needs this worker for the current step. This
    worker loses the head, and ends by itself, when the head has ended.
    """
    agent, on_head_machine = os.getppid(), bool(os.environ.get(errors.STARTED_BY))

    def watch() -> None:
        while os.getppid() == agent:
            time.sleep(errors.WATCH_SECONDS)
        if on_head_machine:
            time.sleep(GRACE_SECONDS)
        os._exit(LOST)

    threading.Thread(target=watch, daemon=True).start()
