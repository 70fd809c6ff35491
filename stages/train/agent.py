"""torchrun's agent, with three changes: it names each start of the workers, decides when not to restart them, and
begins again if a machine is lost while they start."""

import os
import signal
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.distributed import DistStoreError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

from stages.common import resume
from stages.common.text import counted
from stages.train.checkpoint import LATEST
from stages.train.processes import RESTARTING, ROUND

MAX_LOST_STARTS = 10  # in a row
MAX_FRUITLESS_ATTEMPTS = 10  # in a row that end without a new checkpoint: the next one would end the same way


class Agent(LocalElasticAgent):
    """Starts and watches the workers of this machine. See torch.distributed.elastic, "Extending the Agent"."""

    def __init__(
        self, spec: WorkerSpec, logs: LogsSpecs, ended: Path, grace_seconds: int, timeout_seconds: float, head: bool
    ) -> None:
        """ended: file that a worker writes if it ends by itself. grace_seconds: between SIGTERM and SIGKILL.

        head: whether this is the head's agent, which at the end waits up to timeout_seconds for the other agents.
        """
        super().__init__(
            spec, logs, exit_barrier_timeout=timeout_seconds if head else 1, shutdown_timeout=grace_seconds
        )
        self._ended, self._head, self._machines = ended, head, 1
        self._restarting = ended.with_name(RESTARTING)
        self._attempts = Attempts()

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        for _ in range(MAX_LOST_STARTS):
            try:
                super()._rendezvous(worker_group)
                break
            except DistStoreError:  # nothing for the seconds of the timeout from a machine that had joined
                if self._head:
                    print("a machine was lost while the processes started: starting again", flush=True)
        else:
            raise RendezvousConnectionError(f"{MAX_LOST_STARTS} starts in a row lost a machine")
        if (worker_group.group_rank == 0) != self._head:  # without the head, nobody would write the results
            raise RendezvousConnectionError("a rendezvous without the head")
        if self._head:
            self._restarting.unlink(missing_ok=True)
            machines: Any = worker_group.group_world_size  # set by super()
            processes = worker_group.workers[0].world_size
            if machines != self._machines:
                print(f"{processes} processes on {counted(machines, 'machine')}", flush=True)
                self._machines = machines

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        # The file tells the head's workers, which now get a SIGTERM, that this is not the end of the run.
        self._restarting.touch()
        super()._restart_workers(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        # All agents get the name that the first of them puts into the store of this rendezvous.
        store: Any = worker_group.store
        os.environ[ROUND] = store.compare_set("round", "", uuid.uuid4().hex).decode()
        processes: dict[int, Any] = super()._start_workers(worker_group)
        return processes

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state is WorkerState.FAILED:
            if self._ended.exists() or (self._head and self._attempts.give_up()):
                self._remaining_restarts = 0
            elif self._remaining_restarts:
                # The first failure is that of the lost worker; the agent has then ended the others.
                status = next(iter(result.failures.values())).exitcode
                cause = f" ({signal.Signals(-status).name})" if status < 0 else ""
                if self._head:
                    print(f"a process of training has ended{cause}: resuming from the last checkpoint", flush=True)
        return result


class Attempts:
    """Counts the attempts in a row that wrote no checkpoint."""

    def __init__(self) -> None:
        self._checkpoint, self._fruitless = newest_checkpoint(), 0

    def give_up(self) -> bool:
        """Count an attempt that has failed. Returns whether there were too many."""
        previous, self._checkpoint = self._checkpoint, newest_checkpoint()
        self._fruitless = 0 if self._checkpoint > previous else self._fruitless + 1
        return self._fruitless >= MAX_FRUITLESS_ATTEMPTS


def newest_checkpoint() -> int:
    """The time of the newest checkpoint of any run, in nanoseconds; 0 if there is none."""
    newest = 0
    for path in resume.root().glob(f"*/{LATEST}"):
        with suppress(FileNotFoundError):  # replaced at the same moment
            newest = max(newest, path.stat().st_mtime_ns)
    return newest
