"""Images a second of the default network, and what share that is of the fastest matrix product of this machine.

    PYTHONPATH=. .venv/bin/python -m benchmarks.throughput

Training is stages/train.py's loop, evaluation its `predict`, both on random images and all cores, in turn with the
matrix product. FLOPs are counted by torch (a multiply-add is two), of convolutions and matrix products alone; batch
norm, pooling, augmentation and the optimizer take time and count for nothing.
"""

import contextlib
import json
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.summary import spread
from stages import data_card, device, models, params, paths
from stages.augmentation import AUGMENTATIONS
from stages.batches import EpochBatches, PackedImages, loader
from stages.checkpoint import Checkpoints
from stages.inference import predict
from stages.losses import LOSSES, OUTPUTS
from stages.optimizers import OPTIMIZERS
from stages.params import train as train_params
from stages.schedules import SCHEDULES
from stages.train import fit

REPEATS = 10
STEPS = 10  # of training, and batches of evaluation, a repeat
PRODUCTS = 10
SIDE = 2048  # of the matrices


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print JSON."""
    all_cores = torch.get_num_threads()
    chosen = train_params.read(params.load(paths.PARAMS))
    options = chosen.train
    target = device.set_up("cpu", 0, "fast", "benchmark")
    card = data_card.read(paths.DATA_CARD)
    model = models.build(chosen.model, chosen.model_options, card.shape, len(card.classes), card.mean, card.std)
    optimizer = OPTIMIZERS[options.optimizer](model.parameters(), **chosen.optimizer_options)
    images = torch.randint(0, 256, (STEPS * options.batch_size, *card.shape), dtype=torch.uint8)
    labels = torch.randint(0, len(card.classes), (len(images),))
    sampler = EpochBatches(len(labels), options.batch_size, options.shuffle, options.seed)
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)

    def train(parallel: device.Map) -> None:
        with contextlib.redirect_stdout(None):
            fit(
                model,
                loader(PackedImages(images, labels), sampler, 0, pin_memory=False),
                sampler,
                (images[:0], labels[:0]),
                objective=partial(LOSSES[options.loss], smoothing=options.label_smoothing),
                output=OUTPUTS[options.loss],
                optimizer=optimizer,
                lr_factor=SCHEDULES[options.schedule](STEPS, **chosen.schedule_options),
                augment=partial(AUGMENTATIONS[options.augmentation], **chosen.augmentation_options),
                precision="float32",
                epochs=1,
                patience_epochs=0,
                seed=0,
                shard_count=options.shards,
                parallel=parallel,
                log_every_steps=STEPS,
                checkpoints=Checkpoints("none", every_seconds=1e9),
                stop=lambda: None,
            )

    def evaluate(parallel: device.Map) -> None:
        predict(model, images, OUTPUTS[options.loss], 250, target, parallel)

    def products() -> None:
        torch.set_num_threads(all_cores)
        for _ in range(PRODUCTS):
            left @ right
        torch.set_num_threads(1)

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
