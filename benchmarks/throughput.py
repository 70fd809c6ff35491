"""Images per second of the default network, and its FLOP/s as a share of those of a large matrix product.

    PYTHONPATH=. .venv/bin/python -m benchmarks.throughput

Training is the loop of stages/train, evaluation is `predict`, both on random images and all cores, in turn with the
matrix product. torch counts the FLOPs of convolutions and matrix products only (a multiply-add is two); batch norm,
pooling, augmentation and the optimizer take time and count as none.
"""

import json
from collections.abc import Callable
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.steps import MATRIX_PRODUCT_FLOPS, matrix_products, seconds, training
from benchmarks.summary import spread
from stages.network import device
from stages.network.inference import predict

REPEATS = 10


def main() -> None:
    """Print JSON."""
    all_cores = torch.get_num_threads()
    target = device.set_up("cpu", 0, "fast", "benchmark")
    model, images, shards, train_with = training()
    train = partial(train_with, shards)

    def evaluate(parallel: device.Map) -> None:
        predict(model, images, "softmax", target, parallel)

    with device.in_parallel(target, 0) as parallel:
        works: dict[str, Callable[[], object]] = {
            "training": partial(train, parallel),
            "evaluation": partial(evaluate, parallel),
            "matrix_product": matrix_products(all_cores),
        }
        took: dict[str, list[float]] = {name: [] for name in works}
        for repeat in range(REPEATS + 1):
            for name, work in works.items():
                measured = seconds(work)
                if repeat:  # the first is a warm-up
                    took[name].append(measured)
    flops = {"matrix_product": MATRIX_PRODUCT_FLOPS}
    for name, on in (("training", train), ("evaluation", evaluate)):
        with FlopCounterMode(display=False) as counter:  # counts in this thread only, hence map
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
