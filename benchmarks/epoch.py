"""An epoch of the tutorial's recipe: a plain torchvision + DataLoader loop against this pipeline's, in one run.

    make repro && PYTHONPATH=. .venv/bin/python benchmarks/epoch.py

Both sides train the same network (784-512-10, ReLU) with the same optimizer (SGD, lr 0.01), loss and batch size (64) on
the same 60,000 images, in turn (A B A B …) in one process after a warm-up of each, so that a machine that slows down
slows both. The plain side is written as PyTorch's tutorials teach it. Neither evaluates.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from stages import idx, models, paths, schedules
from stages.augmentation import none
from stages.batches import EpochBatches, PackedImages, loader
from stages.checkpoint import Checkpoints
from stages.losses import cross_entropy
from stages.train import fit

BATCH, LR, HIDDEN = 64, 0.01, 512


def plain(root: Path) -> Callable[[], None]:
    """One epoch as the tutorials write it."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    images = datasets.MNIST(str(root), train=True, transform=transform)
    batches = DataLoader(images, batch_size=BATCH, shuffle=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def epoch() -> None:
        model.train()
        for inputs, labels in batches:
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()

    return epoch


def ours() -> Callable[[], None]:
    """One epoch of stages/train.py's loop with the same recipe."""
    pixels = idx.decode((paths.RAW / "train-images-idx3-ubyte").read_bytes())[:, None]
    targets = idx.decode((paths.RAW / "train-labels-idx1-ubyte").read_bytes()).astype(np.int64)
    images, labels = torch.tensor(pixels), torch.tensor(targets)
    model = models.build("mlp", {"hidden": HIDDEN, "depth": 1, "dropout": 0.0}, (1, 28, 28), 10, [0.5], [0.5])
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    sampler = EpochBatches(len(labels), BATCH, True, seed=0)
    batches = loader(PackedImages(images, labels), sampler, num_workers=0, pin_memory=False)
    checkpoints = Checkpoints("none", every_seconds=1e9)

    def epoch() -> None:
        fit(
            model,
            batches,
            sampler,
            (images[:0], labels[:0]),
            objective=partial(cross_entropy, smoothing=0.0),
            output="softmax",
            optimizer=optimizer,
            lr_factor=schedules.constant(1),
            augment=none,
            averaging_decay=0.0,
            precision="float32",
            epochs=1,
            patience_epochs=0,
            seed=0,
            log_every_steps=10**6,
            checkpoints=checkpoints,
            stop=lambda: None,
        )

    return epoch


def main() -> None:
    """Print a table and the same as JSON."""
    parser = argparse.ArgumentParser(description="An epoch of the tutorial's recipe, plain and here.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as root:
        link = Path(root) / "MNIST" / "raw"  # where torchvision looks
        link.parent.mkdir()
        link.symlink_to(paths.RAW.absolute())
        sides = {"plain": plain(Path(root)), "ours": ours()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(arguments.repeats + 1):
            for name, epoch in sides.items():
                start = time.perf_counter()
                epoch()
                if repeat:  # the first is the warm-up
                    seconds[name].append(time.perf_counter() - start)
    ratios = [slow / fast for slow, fast in zip(seconds["plain"], seconds["ours"], strict=True)]
    result = {
        **{f"{name}_seconds": round(statistics.median(values), 3) for name, values in seconds.items()},
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "repeats": arguments.repeats,
        "threads": arguments.threads,
        "torch": torch.__version__,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
