"""torchrun's agent, but for two decisions: which name an attempt has, and which ends are not worth another attempt."""

import os
import signal
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

from stages.common import resume
from stages.train.checkpoint import LATEST
from stages.train.processes import ROUND

FRUITLESS = 10  # ends in a row without a new checkpoint, after which further attempts would end in the same way


class Agent(LocalElasticAgent):
    """The workers of this machine. See torch.distributed.elastic, "Extending the Agent"."""

    def __init__(
        self, spec: WorkerSpec, logs: LogsSpecs, ended: Path, grace_seconds: int, timeout_seconds: float, head: bool
    ) -> None:
        """ended: the file that a worker writes that ends by itself. grace_seconds: between SIGTERM and SIGKILL.

        head: whether this is the head's agent, which waits timeout_seconds at the end for those of other machines.
        """
        super().__init__(
            spec, logs, exit_barrier_timeout=timeout_seconds if head else 1, shutdown_timeout=grace_seconds
        )
        self._ended, self._head, self._machines = ended, head, 1
        self._restarting = ended.with_name("restarting")
        self._attempts = Attempts()

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        super()._rendezvous(worker_group)
        if (worker_group.group_rank == 0) != self._head:  # the others met without the head, which alone has the results
            raise RendezvousConnectionError("a round without the head")
        if self._head:
            self._restarting.unlink(missing_ok=True)
            machines: Any = worker_group.group_world_size  # set by super()
            processes = worker_group.workers[0].world_size
            if machines != self._machines:
                print(f"{processes} processes on {machines} machine{'s' * (machines > 1)}", flush=True)
                self._machines = machines

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        # The head's workers get a SIGTERM, and stop with a checkpoint: not the end of the run.
        self._restarting.touch()
        super()._restart_workers(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        # The agents of all machines agree on it in the store of this rendezvous.
        store: Any = worker_group.store
        os.environ[ROUND] = store.compare_set("round", "", uuid.uuid4().hex).decode()
        processes: dict[int, Any] = super()._start_workers(worker_group)
        return processes

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state is WorkerState.FAILED:
            if self._ended.exists() or (self._head and self._attempts.in_vain()):
                self._remaining_restarts = 0
            elif self._remaining_restarts:
                status = next(iter(result.failures.values())).exitcode  # the agent has then ended the others
                how = f" ({signal.Signals(-status).name})" if status < 0 else ""
                if self._head:
                    print(f"a process of training has ended{how}: going on from the last checkpoint", flush=True)
        return result


class Attempts:
    """The attempts of the workers to get any further."""

    def __init__(self) -> None:
        self._checkpoint, self._fruitless = newest_checkpoint(), 0

    def in_vain(self) -> bool:
        """One more has ended: whether too many in a row have written no checkpoint."""
        before, self._checkpoint = self._checkpoint, newest_checkpoint()
        self._fruitless = 0 if self._checkpoint > before else self._fruitless + 1
        return self._fruitless >= FRUITLESS


def newest_checkpoint() -> int:
    """When the last checkpoint of any run was written, in nanoseconds; 0 if there is none."""
    newest = 0
    for path in resume.root().glob(f"*/{LATEST}"):
        with suppress(FileNotFoundError):  # replaced at this moment
            newest = max(newest, path.stat().st_mtime_ns)
    return newest
