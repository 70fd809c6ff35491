"""Start the processes of a run, as torchrun does: its elastic agent starts them, watches them and starts them again.

A worker that is killed or hangs ends an attempt; the next one goes on from the last checkpoint. A worker that ends by
itself, for an error that the user can fix or a signal, has said why, and ends the run.
"""

import logging
import os
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from stages.common import errors, machine, paths
from stages.common.errors import Interrupted, UserError
from stages.common.machine_settings import Machine
from stages.train.options import Train
from stages.train.processes import STORE, LostProcess

LOOPBACK = "127.0.0.1"
ENDED = "TRAIN_ENDED"  # environment variable of a worker: the file that the first one to end by itself writes
LOST = 75  # exit status of a worker that lost another one; sysexits.h calls it a temporary failure
RESTARTS = 100
GRACE_SECONDS = 10  # between SIGTERM and SIGKILL: the head writes a checkpoint meanwhile
REASON_SECONDS = 2  # a worker that lost another one lets that one, which may know why, end first


def run(options: Train, settings: Machine) -> int:
    """Train in machine.processes processes on this machine; return the exit status. The head among them prints."""
    warn(options.shards, settings.processes, machine.cores(), options.device)
    with socket.create_server((LOOPBACK, 0)) as listener, tempfile.TemporaryDirectory() as folder:
        return _run(settings, listener, Path(folder))


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


def _run(settings: Machine, listener: socket.socket, folder: Path) -> int:
    logging.disable(logging.CRITICAL)  # torchrun's own account of what follows
    import torch.distributed as dist
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

    from stages.train.agent import Agent

    port = listener.getsockname()[1]
    store = dist.TCPStore(
        LOOPBACK,
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=os.dup(listener.fileno()),
        timeout=timedelta(seconds=settings.timeout_seconds),
    )
    ended = folder / "ended"
    os.environ |= {
        STORE: f"{LOOPBACK}:{port}",
        ENDED: str(ended),
        errors.STARTED_BY: str(os.getpid()),  # the workers end with this program
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # a second store, which would listen on all of the network
        "GLOO_SOCKET_IFNAME": loopback_name(),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TORCHELASTIC_SIGNALS_TO_HANDLE": ",".join(
            each.name for each in errors.SIGNALS if signal.getsignal(each) is not signal.SIG_IGN
        ),
    }
    run_id = uuid.uuid4().hex
    backend = C10dRendezvousBackend(store, run_id)
    parameters = RendezvousParameters(
        "c10d", f"{LOOPBACK}:{port}", run_id, min_nodes=1, max_nodes=1, local_addr=LOOPBACK, last_call_timeout=1
    )
    spec = WorkerSpec(
        role="train",
        local_world_size=settings.processes,
        rdzv_handler=create_handler(store, backend, parameters),
        entrypoint=sys.executable,
        args=("-m", "stages.train"),
        max_restarts=RESTARTS,
    )
    others = dict.fromkeys(range(1, settings.processes), Std.OUT)
    logs = DefaultLogsSpecs(log_dir=str(folder), redirects=others) if others else DefaultLogsSpecs(log_dir=str(folder))
    try:
        result = Agent(spec, logs, ended, GRACE_SECONDS).run()
    except SignalException as stop:
        if ended.exists():  # the head has said what it resumes from
            return 128 + int(stop.sigval)
        raise Interrupted(int(stop.sigval), "`dvc repro` goes on from the last checkpoint, if there is one") from None
    if not result.is_failed():
        return 0
    with suppress(FileNotFoundError):
        return int(ended.read_text())
    raise UserError(f"the processes of training ended {RESTARTS} times; the last checkpoint stays in {paths.RESUME}")


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
    try:
        yield
    except LostProcess:
        time.sleep(REASON_SECONDS)  # the agent ends it, once it has noticed which one is gone
        sys.exit(LOST)
    except Exception as error:
        status = error.status if isinstance(error, Interrupted) else 2
        try:
            with ended.open("x") as file:
                file.write(str(status))
        except FileExistsError:
            sys.exit(status)
        raise
