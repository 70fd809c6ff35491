"""What it costs that the number of threads changes no bit: shards on all cores, against torch's own threads.

    PYTHONPATH=. .venv/bin/python -m benchmarks.shards

The same loop, network and images with portable numerics, in turn: a batch in shards, an operation one thread (what
train does); the batch whole, an operation on all cores (what torch does unless told); and the shards on one thread.
"""

import json

import torch

from benchmarks.steps import operation_threads, seconds, training
from benchmarks.summary import spread
from stages.network import device

REPEATS = 10


def main() -> None:
    """Print JSON."""
    all_cores = torch.get_num_threads()
    target = device.set_up("cpu", 0, "portable", "benchmark")
    _, _, shards, train = training()
    took = []
    with device.in_parallel(target, 0) as parallel:
        for _ in range(REPEATS + 1):
            ours = seconds(lambda: train(shards, parallel))
            with operation_threads(all_cores):
                torchs = seconds(lambda: train(1, map))
            alone = seconds(lambda: train(shards, map))
            took.append((ours, torchs, alone))
    took = took[1:]  # the first is a warm-up
    result = {
        "cores": all_cores,
        "shards": shards,
        "torchs_threads_by_shards": spread([torchs / ours for ours, torchs, _ in took]),
        "one_thread_by_all_cores": spread([alone / ours for ours, _, alone in took]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
