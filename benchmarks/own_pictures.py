"""Own pictures: the speed of packing and of reading, and memory as their number grows.

    PYTHONPATH=. .venv/bin/python -m benchmarks.own_pictures

The pictures are JPEGs of 500 x 375 cut from photographs (benchmarks/photographs.py says where to get those). Rates are
per second of processor time of all processes together: the rates of one core, which other programs hardly change.

- The preprocess stage, against two loops over the same files with the same library, Pillow: one only decodes, one
  decodes and resizes as preprocess does. They take turns. The start of processes counts.
- Batches of 224 x 224 random crops: images of 256 x 256 read from shards as train does, and cropped here; against
  torchvision's ImageFolder, RandomResizedCrop and ToTensor in a DataLoader with as many workers. They take turns.
- Memory of preprocess (all its processes) and of train, without the page cache (RssAnon, Linux only), with 1, 4 and 16
  times the pictures, and the seconds of a no-op `dvc repro`.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks import photographs
from benchmarks.no_op import run
from benchmarks.summary import spread
from stages.common import machine, params, paths
from stages.dataset import data_card, packed
from stages.train.batches import Batches, PackedImages, ending_workers
from stages.train.stopping import StopSignal

PICTURES = 1400
NAMES = 6  # links to each file, so that the start of processes weighs less
REPEATS = 2
CROP, SIZE = 224, 256
EPOCHS = 10  # of our batches: one takes less than a second
BATCH = 64
TIMES = (1, 4, 16)
BASE = 280  # pictures that TIMES multiplies
SAMPLE_SECONDS = 0.05


def main() -> None:
    """Print JSON."""
    torch.set_num_threads(1)  # on both sides: a copy of a few hundred kilobytes needs no more
    values = params.load(paths.PARAMS)
    values["data"].update(name="images", images="pictures")
    values["preprocess"].update(image_size=[SIZE, SIZE], validation_fraction=0.1, test_fraction=0.1)
    values["preprocess"]["small_classes"] = "drop"
    values["model"]["name"] = "mlp"
    values["models"]["mlp"]["hidden"] = 4
    values["train"].update(epochs=1, batch_size=BATCH, augmentation="none")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "speed")
        photographs.cut(Path(scratch, "cut"), PICTURES)
        photographs.repeat(Path(scratch, "cut"), folder / "pictures", NAMES)
        (folder / paths.PARAMS).write_text(yaml.safe_dump(values), encoding="utf-8")
        result: dict[str, Any] = {"preprocess": preprocess(folder), "batches": batches(folder)}
        base = Path(scratch, "base")
        photographs.cut(base, BASE)
        result["rows"] = [memory(Path(scratch, f"times-{times}"), base, times, values) for times in TIMES]
    print(json.dumps(result))


def preprocess(folder: Path) -> dict[str, Any]:
    """Pictures per second of processor time, of the stage and of the loops."""
    files = sorted((folder / "pictures").rglob("*.jpg"))
    works: dict[str, Callable[[], object]] = {
        "stage": partial(run, folder, sys.executable, "-c", STAGE, str(Path.cwd())),
        "decoding": partial(decode, files, resize=False),
        "decoding_and_resizing": partial(decode, files, resize=True),
    }
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS):
        for name, work in works.items():
            rates[name].append(len(files) / processor_seconds(work))
    result: dict[str, Any] = {name: spread(rates[name]) for name in works}
    for name in ("decoding", "decoding_and_resizing"):
        result[f"share_of_{name}"] = spread(
            [stage / loop for stage, loop in zip(rates["stage"], rates[name], strict=True)]
        )
    return {"pictures": len(files), **result}


STAGE = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop()); runpy.run_module('stages.preprocess', run_name='__main__')"
)


def processor_seconds(work: Callable[[], object]) -> float:
    """Processor seconds of `work`, in this process and in the processes that it starts and waits for."""
    before = os.times()
    work()
    return sum(os.times()[:4]) - sum(before[:4])


def decode(files: list[Path], resize: bool) -> None:
    """Decode each file; with `resize`, also resize its middle to 256 x 256 as preprocess.resize: crop does."""
    width, height = photographs.WIDTH, photographs.HEIGHT
    middle = ((width - height) / 2, 0, (width + height) / 2, height)
    for path in files:
        with Image.open(path) as image:
            image.load()
            if resize:
                image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=middle)


def batches(folder: Path) -> list[dict[str, Any]]:
    """Images per second of processor time on both sides, without workers and with one per core."""
    card = data_card.read(folder / paths.DATA_CARD)
    split = packed.open_split(folder / paths.TRAIN, card.shape, len(card.classes))
    rows = []
    for num_workers in (0, machine.cores()):
        ours, torchvision = [], []
        for _ in range(REPEATS):
            ours.append(rate(partial(read_shards, split, num_workers)))
            torchvision.append(rate(partial(read_image_folder, folder.parent / "cut", num_workers)))
        ratio = [our_rate / rate for our_rate, rate in zip(ours, torchvision, strict=True)]
        rows.append(
            {"workers": num_workers, "ours": spread(ours), "torchvision": spread(torchvision), "ratio": spread(ratio)}
        )
    return rows


def rate(read: Callable[[], int]) -> float:
    """Images per second of processor time. read: returns the number of images that it has read."""
    count = 0

    def work() -> None:
        nonlocal count
        count = read()

    seconds = processor_seconds(work)
    return count / seconds


def read_shards(split: packed.Split, num_workers: int) -> int:
    """Read batches as train does, and crop each image at random; returns the number of images."""
    channels, height, width = split.image_shape
    random, count = np.random.default_rng(0), 0
    with ending_workers(num_workers):
        loader = Batches(
            PackedImages(split, torch.from_numpy(split.labels)),
            batch_size=BATCH,
            shuffle=True,
            seed=0,
            num_workers=num_workers,
            pin_memory=False,
            stop=StopSignal(),
        )
        for epoch in range(EPOCHS):
            for images, _ in loader.iterate(epoch, skip=0):
                pixels, crops = images.numpy(), np.empty((len(images), channels, CROP, CROP), dtype=np.uint8)
                corners = random.integers(0, (height - CROP + 1, width - CROP + 1), (len(images), 2))
                for index, (top, left) in enumerate(corners.tolist()):
                    crops[index] = pixels[index, :, top : top + CROP, left : left + CROP]
                count += len(images)
    return count


def read_image_folder(folder: Path, num_workers: int) -> int:
    """Read one epoch of torchvision's ImageFolder; returns the number of images."""
    transform = transforms.Compose([transforms.RandomResizedCrop(CROP), transforms.ToTensor()])
    images = datasets.ImageFolder(str(folder), transform)
    return sum(len(batch) for batch, _ in DataLoader(images, BATCH, shuffle=True, num_workers=num_workers))


def memory(folder: Path, base: Path, times: int, values: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of the stages in a clone with `times` links to each picture, and the seconds of a no-op."""
    run(Path.cwd(), "git", "clone", "--quiet", ".", str(folder))
    photographs.repeat(base, folder / "pictures", times)
    (folder / paths.PARAMS).write_text(yaml.safe_dump(values), encoding="utf-8")
    peaks = peaks_while(partial(run, folder, "dvc", "repro", "--quiet"), folder)
    no_op = spread([run(folder, "dvc", "repro", "--quiet") for _ in range(REPEATS)])
    card = data_card.read(folder / paths.DATA_CARD)
    sizes = [
        packed.open_split(folder / path, card.shape, len(card.classes)).nbytes
        for path in (paths.TRAIN, paths.VALIDATION, paths.TEST)
    ]
    shutil.rmtree(folder)  # to free the disk for the next one
    return {
        "pictures": len(list(base.rglob("*.jpg"))) * times,
        "images_mb": round(sum(sizes) / 1e6),
        **{f"{stage}_mb": peaks[stage] for stage in ("preprocess", "train", "evaluate")},
        "no_op_seconds": no_op,
    }


def peaks_while(work: Callable[[], object], folder: Path) -> dict[str, int]:
    """Peak megabytes of all processes of each stage in `folder` while `work` runs, without the page cache."""
    peaks: Counter[str] = Counter()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        while not running.done():
            now: Counter[str] = Counter()
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError, KeyError):  # the process has ended
                    if (process / "cwd").readlink() == folder:
                        now[stage_of(process)] += anonymous_bytes(process)
            peaks |= now
            time.sleep(SAMPLE_SECONDS)
        running.result()
    return {stage: round(size / 1e6) for stage, size in peaks.items()}


def stage_of(process: Path) -> str:
    """The stage that a process runs, or its parent if it is a worker of multiprocessing."""
    command = (process / "cmdline").read_text(errors="replace")
    if "multiprocessing" in command:
        parent = (process / "stat").read_text(errors="replace").rpartition(") ")[2].split()[1]
        command = Path("/proc", parent, "cmdline").read_text(errors="replace")
    return command.rstrip("\0").rpartition("\0")[2].removeprefix("stages.")


def anonymous_bytes(process: Path) -> int:
    """RssAnon of proc(5)."""
    lines = (process / "status").read_text(errors="replace").splitlines()
    return 1024 * int(dict(line.split(":", 1) for line in lines)["RssAnon"].split()[0])


if __name__ == "__main__":
    main()
