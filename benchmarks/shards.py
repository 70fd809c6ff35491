"""The cost of results that do not depend on the number of threads: shards against torch's own threads.

    PYTHONPATH=. .venv/bin/python -m benchmarks.shards

The same loop, network and images with portable numerics, in turn: a batch in shards, each computed on one thread, as
train does it; the batch in one part, each operation on all cores, torch's default; and the shards on one thread.
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
    rounds = []
    with device.in_parallel(target, 0) as parallel:
        for _ in range(REPEATS + 1):
            ours = seconds(lambda: train(shards, parallel))
            with operation_threads(all_cores):
                torchs = seconds(lambda: train(1, map))
            one_thread = seconds(lambda: train(shards, map))
            rounds.append((ours, torchs, one_thread))
    rounds = rounds[1:]  # the first is a warm-up
    result = {
        "cores": all_cores,
        "shards": shards,
        "torchs_threads_by_shards": spread([torchs / ours for ours, torchs, _ in rounds]),
        "one_thread_by_all_cores": spread([one_thread / ours for ours, _, one_thread in rounds]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
