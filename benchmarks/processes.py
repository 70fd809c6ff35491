"""Training in two processes of one thread each, against one process with two threads.

    PYTHONPATH=. .venv/bin/python -m benchmarks.processes

Both train the same steps in turn, with the network of the default recipe and with a larger one. The two processes send
each other gradients through the loopback interface, as in the train stage.
"""

import json
import multiprocessing
import os
import socket
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.steps import STEPS, seconds, training
from benchmarks.summary import spread
from stages.network import device
from stages.train import processes
from stages.train.processes import ROUND, STORE

NETWORKS = {"default": (None, None, 10), "resnet18_28": ("resnet18", 28, 4)}  # architecture, pixels, repetitions
TIMEOUT_SECONDS = 120


def work(pipe: Connection, rank: int, size: int, threads: int, store: str, network: str) -> None:
    """In one process: train for each True from the pipe, and send the seconds; end at False."""
    if size > 1:
        numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        os.environ |= {name: str(number) for name, number in numbers.items()} | {STORE: store, ROUND: network}
    target = device.set_up("cpu", threads, "portable", "benchmark", rank, size)
    with (
        processes.process_group(target, TIMEOUT_SECONDS) as group,
        device.in_parallel(target, threads) as parallel,
    ):
        _, _, shards, train = training(group, *NETWORKS[network][:2])
        while pipe.recv():
            pipe.send(seconds(lambda: train(shards, parallel)))


def main() -> None:
    """Print JSON."""
    print(json.dumps({network: measure(network) for network in NETWORKS}))


def measure(network: str) -> dict[str, Any]:
    """Seconds of the two processes by those of the two threads, and the milliseconds of a step on both sides."""
    context = multiprocessing.get_context("spawn")
    _store, address = serve()  # it ends with its last reference
    sides: dict[str, list[Connection]] = {"threads": [], "processes": []}
    for name, size, threads in (("threads", 1, 2), ("processes", 2, 1)):
        for rank in range(size):
            pipe, worker_pipe = context.Pipe()
            sides[name].append(pipe)
            arguments = (worker_pipe, rank, size, threads, address, network)
            context.Process(target=work, args=arguments, daemon=True).start()
    step_seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(NETWORKS[network][2] + 1):
        for name, pipes in sides.items():
            for pipe in pipes:
                pipe.send(True)
            slowest = max(pipe.recv() for pipe in pipes)
            if repeat:  # the first is a warm-up
                step_seconds[name].append(slowest / STEPS)
    for pipe in (*sides["threads"], *sides["processes"]):
        pipe.send(False)
    ratios = [several / one for one, several in zip(step_seconds["threads"], step_seconds["processes"], strict=True)]
    return {"two_processes_by_two_threads": spread(ratios)} | {
        f"{name}_milliseconds": spread([1000 * value for value in values]) for name, values in step_seconds.items()
    }


def serve() -> tuple[object, str]:
    """The store through which the processes find each other, and its address."""
    import torch.distributed as dist

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        store = dist.TCPStore(
            "127.0.0.1",
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=TIMEOUT_SECONDS),
            master_listen_fd=os.dup(listener.fileno()),
        )
    return store, f"127.0.0.1:{port}"


if __name__ == "__main__":
    main()
