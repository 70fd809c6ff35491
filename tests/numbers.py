"""Digests of the results of training and evaluation on this processor.

Run as `python -m tests.numbers NUMERICS THREADS [ARCHITECTURE…]`, the architectures being torchvision's.

A process of its own, since the libraries choose their instructions once; tests/test_numerics.py runs it on processors
that the environment, or an emulator, makes different.
"""

import hashlib
import json
import sys
from typing import Any

import torch

from stages.common import params
from stages.evaluate import predictions, scores
from stages.network import device, inference, models
from stages.network.inference import predict
from stages.network.losses import OUTPUTS
from stages.train import options as train_params
from stages.train.batches import Batches, PackedImages
from stages.train.checkpoint import Checkpoints
from stages.train.loop import fit
from stages.train.optimizers import OPTIMIZERS
from stages.train.recipe import Recipe
from stages.train.stopping import StopSignal
from stages.train.trainer import Trainer
from tests.imports import ROOT

IMAGES, BATCH, CLASSES = 80, 48, 10
# Each choice of params.yaml in one run at least; the first is the network of the committed one.
RUNS = [
    ("cnn", "cross_entropy", "adam", "affine", "one_cycle"),
    ("mlp", "mse", "sgd", "shift", "constant"),
    ("mlp", "bce", "rmsprop", "none", "cosine"),
    ("cnn", "nll", "adamw", ["flip", "random_erasing", "mixup", "cutmix"], "one_cycle"),
]


def main(numerics: str, threads: int, architectures: list[str]) -> None:
    """Print a line of JSON: the instruction set, and a digest for each run, of its weights and its predictions."""
    # The emulator of Debian 12 crashes in an instruction that grid_sample uses. So the digest has the coordinates that
    # it would sample, not its result.
    torch.nn.functional.grid_sample = lambda images, grid, **_: (images + grid.sum(3)[:, None]).clamp(0, 255)
    inference.PART = 64  # an emulator takes minutes for parts of the normal size
    target = device.set_up("cpu", threads, numerics, "train.device")
    values = params.load(ROOT / "params.yaml")
    numbers: dict[str, Any] = {"instructions": torch.backends.cpu.get_cpu_capability()}
    for architecture in architectures:
        values["model"]["name"] = "torchvision"
        values["models"]["torchvision"] |= {"architecture": architecture, "dropout": 0.2}
        values["train"]["augmentation"] = ["random_resized_crop", "trivial_augment"]
        numbers[architecture] = digest(train_params.read(values), target, threads, side=32)
    for network, loss, optimizer, augment, schedule in RUNS if not architectures else ():
        values["model"]["name"] = network
        values["train"] |= {
            "loss": loss,
            "clip_norm": float(loss == "nll"),
            "optimizer": optimizer,
            "augmentation": augment,
            "schedule": schedule,
        }
        values["models"]["cnn"] |= {"dropout": 0.2, "hidden": 32}
        numbers[f"{network}, {loss}"] = digest(train_params.read(values), target, threads)
    print(json.dumps(numbers))


def digest(config: train_params.Config, target: torch.device, threads: int, side: int = 28) -> str:
    """A digest of the weights after an epoch, and of the text that evaluate would write."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 1, side, side), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (IMAGES,))
    model = models.build(config.model, config.model_options, (1, side, side), CLASSES, [0.13], [0.31])
    options = config.train.model_copy(
        update={"label_smoothing": 0.1, "epochs": 1, "batch_size": BATCH, "shards": 4, "seed": 0}
    )
    config = config._replace(train=options)
    output, stop = OUTPUTS[options.loss], StopSignal()
    batches = Batches(
        PackedImages(images, labels),
        batch_size=BATCH,
        shuffle=True,
        seed=0,
        num_workers=0,
        pin_memory=False,
        stop=stop,
    )
    optimizer = OPTIMIZERS[options.optimizer](model.parameters(), **config.optimizer_options)
    with device.in_parallel(target, threads) as parallel:
        recipe = Recipe.of(config, len(batches), torch.bincount(labels, minlength=CLASSES).tolist())
        trainer = Trainer(model, optimizer, recipe, parallel)
        fit(
            trainer,
            batches,
            (images[:20], labels[:20]),
            Checkpoints("none", every_seconds=1e9),
            1,
            stop,
            lambda history: None,
        )
        weights, history = trainer.best_weights, trainer.history
        rows = predict(model, images, output, target, parallel)
    log_p = rows.numpy()
    names = [str(label) for label in range(CLASSES)]
    result = hashlib.sha256(repr((history, scores.summary(log_p, labels.numpy(), names, 15))).encode())
    result.update(predictions.csv(predictions.table(log_p, labels.numpy(), names)).encode())
    for tensor in weights.values():
        result.update(tensor.contiguous().numpy().tobytes())
    return result.hexdigest()[:16]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
