"""torchrun's agent, but for two decisions: which name an attempt has, and which ends are not worth another attempt."""

import os
import signal
import uuid
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs

from stages.train.processes import ROUND


class Agent(LocalElasticAgent):
    """The workers of this machine. See torch.distributed.elastic, "Extending the Agent"."""

    def __init__(self, spec: WorkerSpec, logs: LogsSpecs, ended: Path, grace_seconds: int) -> None:
        """ended: the file that a worker writes that ends by itself. grace_seconds: between SIGTERM and SIGKILL."""
        super().__init__(spec, logs, shutdown_timeout=grace_seconds)
        self._ended = ended

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        # The agents of all machines agree on it in the store of this rendezvous.
        store: Any = worker_group.store
        os.environ[ROUND] = store.compare_set("round", "", uuid.uuid4().hex).decode()
        processes: dict[int, Any] = super()._start_workers(worker_group)
        return processes

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state is WorkerState.FAILED:
            if self._ended.exists():
                self._remaining_restarts = 0
            elif self._remaining_restarts:
                status = min(failure.exitcode for failure in result.failures.values())
                how = f" ({signal.Signals(-status).name})" if status < 0 else ""
                print(f"a process of training has ended{how}: going on from the last checkpoint", flush=True)
        return result
