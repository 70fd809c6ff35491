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
    context = multiprocessing.get_context("spawn")
    result = {}
    for network in NETWORKS:
        store, address = serve()
        if store:
            pipes = {}
            for name, size, threads in (("threads", 1, 2), ("processes", 2, 1)):
                for rank in range(size):
                    pipes[name, rank], worker_pipe = context.Pipe()
                    arguments = (worker_pipe, rank, size, threads, address, network)
                    context.Process(target=work, args=arguments, daemon=True).start()
            took: dict[str, list[float]] = {"threads": [], "processes": []}
            for _ in range(NETWORKS[network][2] + 1):
                for name in took:
                    group = [pipe for (side, _), pipe in pipes.items() if side == name]
                    for pipe in group:
                        pipe.send(True)
                    took[name].append(max(pipe.recv() for pipe in group) / STEPS)
            for pipe in pipes.values():
                pipe.send(False)
        ratios = [several / one for one, several in zip(took["threads"], took["processes"], strict=True)][1:]
        result[network] = {"two_processes_by_two_threads": spread(ratios)} | {
            f"{name}_milliseconds": spread([1000 * step_seconds for step_seconds in times[1:]])
            for name, times in took.items()
        }
    print(json.dumps(result))


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
