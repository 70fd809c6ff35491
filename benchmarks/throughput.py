"""Images a second of the default network, and what share that is of the fastest matrix product of this machine.

    PYTHONPATH=. .venv/bin/python -m benchmarks.throughput

Training is the loop of stages/train, evaluation its `predict`, both on random images and all cores, in turn with the
matrix product. FLOPs are counted by torch (a multiply-add is two), of convolutions and matrix products alone; batch
norm, pooling, augmentation and the optimizer take time and count for nothing.
"""

import json
from collections.abc import Callable
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.steps import seconds, torchs_threads, training
from benchmarks.summary import spread
from stages.network import device
from stages.network.inference import predict

REPEATS = 10
PRODUCTS = 10  # a repeat
SIDE = 2048  # of the matrices


def main() -> None:
    """Print JSON."""
    all_cores = torch.get_num_threads()
    target = device.set_up("cpu", 0, "fast", "benchmark")
    model, images, shards, train_with = training()
    train = partial(train_with, shards)
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)

    def evaluate(parallel: device.Map) -> None:
        predict(model, images, "softmax", target, parallel)

    def products() -> None:
        with torchs_threads(all_cores):
            for _ in range(PRODUCTS):
                left @ right

    with device.in_parallel(target, 0) as parallel:
        works: dict[str, Callable[[], object]] = {
            "training": partial(train, parallel),
            "evaluation": partial(evaluate, parallel),
            "matrix_product": products,
        }
        took: dict[str, list[float]] = {name: [] for name in works}
        for repeat in range(REPEATS + 1):
            for name, work in works.items():
                measured = seconds(work)
                if repeat:  # the first is a warm-up
                    took[name].append(measured)
    flops = {"matrix_product": PRODUCTS * 2 * SIDE**3}
    for name, on in (("training", train), ("evaluation", evaluate)):
        with FlopCounterMode(display=False) as counter:  # which counts in its own thread
            on(map)
        flops[name] = counter.get_total_flops()
    rates = {name: flops[name] / spread(took[name])["median"] for name in works}
    result = {"matrix_product_gflops": round(rates["matrix_product"] / 1e9, 1)}
    for name in ("training", "evaluation"):
        result[f"{name}_images_a_second"] = round(len(images) / spread(took[name])["median"])
        result[f"{name}_mflop_an_image"] = round(flops[name] / len(images) / 1e6, 2)
        result[f"{name}_share_of_the_matrix_product"] = round(rates[name] / rates["matrix_product"], 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
