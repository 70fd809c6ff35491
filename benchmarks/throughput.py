"""Images a second of the default network, and what share that is of the fastest matrix product of this machine.

    PYTHONPATH=. .venv/bin/python -m benchmarks.throughput

FLOPs are counted by torch (a multiply-add is two), of convolutions and matrix products alone; batch norm, pooling,
augmentation and the optimizer take time and count for nothing.
"""

import json
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.summary import spread
from stages import data_card, device, models, params, paths
from stages.augmentation import AUGMENTATIONS
from stages.optimizers import OPTIMIZERS
from stages.params import train as train_params

REPEATS = 30
SIDE = 2048  # of the matrices


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print JSON."""
    chosen = train_params.read(params.load(paths.PARAMS))
    device.set_up("cpu", chosen.train.threads, "fast", "benchmark")
    card = data_card.read(paths.DATA_CARD)
    model = models.build(chosen.model, chosen.model_options, card.shape, len(card.classes), card.mean, card.std)
    optimizer = OPTIMIZERS[chosen.train.optimizer](model.parameters(), **chosen.optimizer_options)
    images = torch.randint(0, 256, (chosen.train.batch_size, *card.shape), dtype=torch.uint8)
    labels = torch.randint(0, len(card.classes), (len(images),))
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)

    def step() -> None:
        model.train()
        loss = F.cross_entropy(
            model(AUGMENTATIONS[chosen.train.augmentation](images, **chosen.augmentation_options)), labels
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def evaluate() -> None:
        model.eval()
        with torch.inference_mode():
            model(images)

    works: dict[str, Callable[[], object]] = {
        "training": step,
        "evaluation": evaluate,
        "matrix_product": lambda: left @ right,
    }
    took: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(REPEATS + 3):
        for name, work in works.items():
            measured = seconds(work)
            if repeat >= 3:
                took[name].append(measured)
    flops = {"matrix_product": 2 * SIDE**3}
    for name in ("training", "evaluation"):
        with FlopCounterMode(display=False) as counter:
            works[name]()
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
