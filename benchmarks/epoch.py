"""One epoch: a plain loop over torchvision's DataLoader against this pipeline's loop, with the same network and recipe.

    PYTHONPATH=. .venv/bin/python -m benchmarks.epoch mlp

Both sides train the same network with the same optimizer, loss and batch size (64) on the same 60,000 images. They take
turns in one process, after a warm-up of each, so that a machine that slows down slows both. Neither evaluates.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks import plain
from benchmarks.steps import operation_threads, seconds, train_epoch
from benchmarks.summary import spread
from stages.common import machine, paths
from stages.dataset import idx
from stages.network import device, models
from stages.network.losses import cross_entropy
from stages.train import schedules
from stages.train.augmentation import compose
from stages.train.batches import PackedImages
from stages.train.recipe import Recipe

BATCH, LR = 64, 0.01
NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": plain.mlp, "cnn": plain.Net}
SHARDS = {"mlp": 1, "cnn": machine.cores()}  # a step of the mlp takes 1 ms, too little to divide


def sgd(model: nn.Module, fused: bool) -> torch.optim.Optimizer:
    """The tutorial's optimizer."""
    return torch.optim.SGD(model.parameters(), lr=LR, fused=fused)


def plain_training(root: Path, network: str) -> Callable[[], float]:
    """A function that trains for one epoch as the tutorials do, and returns the seconds."""
    model = NETWORKS[network]()
    images = plain.batches(root, True, 0.5, 0.5, BATCH)
    optimizer = sgd(model, fused=False)
    return lambda: plain.epoch(model, images, optimizer)


def our_training(network: str, parallel: device.Map) -> Callable[[], float]:
    """A function that trains for one epoch in the loop of stages/train, and returns the seconds."""
    pixels = idx.decode((paths.RAW / "train-images-idx3-ubyte").read_bytes())[:, None]
    targets = idx.decode((paths.RAW / "train-labels-idx1-ubyte").read_bytes()).astype(np.int64)
    images, labels = torch.tensor(pixels), torch.tensor(targets)
    model = models.fast_layout(nn.Sequential(models.Normalize([0.5], [0.5]), NETWORKS[network]()))
    optimizer = sgd(model, fused=True)
    recipe = Recipe(
        objective=partial(cross_entropy, smoothing=0.0, reduction="mean"),
        output="softmax",
        lr_factor=schedules.constant(1),
        augment=compose({}, 10),
        clip_norm=0.0,
        epochs=1,
        select_by="accuracy",
        patience_epochs=0,
        batch_size=BATCH,
        seed=0,
        precision="float32",
        shards=SHARDS[network],
    )
    dataset = PackedImages(images, labels)
    return lambda: seconds(partial(train_epoch, model, optimizer, recipe, dataset, parallel))


def main() -> None:
    """Print JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.epoch", description="One epoch, plain loop against ours."
    )
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with plain.mnist() as root:
        plain_epoch = plain_training(root, arguments.network)  # before set_up, which changes settings of torch
        all_cores = torch.get_num_threads()
        target = device.set_up("cpu", 0, "fast", "benchmark")
        with device.in_parallel(target, 0) as parallel:
            our_epoch = our_training(arguments.network, parallel)

            def pair() -> tuple[float, float]:
                with operation_threads(all_cores):
                    plain_seconds = plain_epoch()
                return plain_seconds, our_epoch()

            pair()  # warm-up
            pairs = [pair() for _ in range(arguments.repeats)]
    result = {
        "plain_seconds": spread([plain for plain, _ in pairs]),
        "our_seconds": spread([ours for _, ours in pairs]),
        "ratio": spread([plain / ours for plain, ours in pairs]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
