"""Own pictures: how fast they are packed and read, and that memory does not grow with their number.

    PYTHONPATH=. .venv/bin/python -m benchmarks.own_pictures

On JPEGs of 500 x 375 cut from photographs (benchmarks/photographs.py says where to get those). Rates are per second of
processor time, of all processes together: so they are of one core, and other programs on the machine matter little.

- preprocess, whole, against two loops over the same files with the same library, Pillow: one that only decodes, and one
  that decodes and resizes as preprocess does; in turn. What the processes take to start counts.
- Batches of 224 x 224 random crops: read as train reads them, 256 x 256 out of shards, and cut out of the batch here;
  against torchvision's ImageFolder, RandomResizedCrop and ToTensor in a DataLoader of as many workers; in turn.
- Memory of preprocess (all its processes) and of train, without the page cache (RssAnon), at 1, 4 and 16 times the
  pictures, and the seconds of a `dvc repro` that has nothing to do. Linux alone tells that memory.
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
NAMES = 6  # of each file, so that what the processes take to start weighs less
REPEATS = 2
CROP, SIZE = 224, 256
EPOCHS = 5  # of ours, since one takes less than a second
BATCH = 64
TIMES = (1, 4, 16)
BASE = 280  # pictures of TIMES
SAMPLE_SECONDS = 0.05


def main() -> None:
    """Print JSON."""
    torch.set_num_threads(1)  # on both sides: copies of a few hundred kilobytes are not worth more
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
        result["rows"] = [row(Path(scratch, f"times-{times}"), base, times, values) for times in TIMES]
    print(json.dumps(result))


def preprocess(folder: Path) -> dict[str, Any]:
    """Pictures a second of a core, of the stage and of the loops."""
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
            [mine / loop for mine, loop in zip(rates["stage"], rates[name], strict=True)]
        )
    return {"pictures": len(files), **result}


STAGE = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop()); runpy.run_module('stages.preprocess', run_name='__main__')"
)


def processor_seconds(work: Callable[[], object]) -> float:
    """Seconds of processor time that `work` takes in this process and in those that it starts and ends."""
    before = os.times()
    work()
    return sum(os.times()[:4]) - sum(before[:4])


def decode(files: list[Path], resize: bool) -> None:
    """Decode, and if wanted cut out the middle at 256 x 256 pixels as preprocess.resize: crop does."""
    width, height = photographs.WIDTH, photographs.HEIGHT
    middle = ((width - height) / 2, 0, (width + height) / 2, height)
    for path in files:
        with Image.open(path) as image:
            image.load()
            if resize:
                image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=middle)


def batches(folder: Path) -> list[dict[str, Any]]:
    """Images a second of a core both ways, without workers and with one a core."""
    card = data_card.read(folder / paths.DATA_CARD)
    split = packed.open_split(folder / paths.TRAIN, card.shape, len(card.classes))
    rows = []
    for num_workers in (0, machine.cores()):
        ours, theirs = [], []
        for _ in range(REPEATS):
            ours.append(rate(partial(cropped, split, num_workers)))
            theirs.append(rate(partial(torchvisions, folder.parent / "cut", num_workers)))
        ratio = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        rows.append(
            {"workers": num_workers, "ours": spread(ours), "torchvision": spread(theirs), "ratio": spread(ratio)}
        )
    return rows


def rate(read: Callable[[], int]) -> float:
    """Images a second of processor time. read: returns how many it has read."""
    count = 0

    def work() -> None:
        nonlocal count
        count = read()

    seconds = processor_seconds(work)
    return count / seconds


def cropped(split: packed.Split, num_workers: int) -> int:
    """Read batches as train does, and cut a random part out of each image; returns how many."""
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
                whole, parts = images.numpy(), np.empty((len(images), channels, CROP, CROP), dtype=np.uint8)
                corners = random.integers(0, (height - CROP + 1, width - CROP + 1), (len(images), 2))
                for place, (top, left) in enumerate(corners.tolist()):
                    parts[place] = whole[place, :, top : top + CROP, left : left + CROP]
                count += len(images)
    return count


def torchvisions(folder: Path, num_workers: int) -> int:
    """Read one epoch of torchvision's ImageFolder; returns how many images it has."""
    transform = transforms.Compose([transforms.RandomResizedCrop(CROP), transforms.ToTensor()])
    images = datasets.ImageFolder(str(folder), transform)
    return sum(len(batch) for batch, _ in DataLoader(images, BATCH, shuffle=True, num_workers=num_workers))


def row(folder: Path, base: Path, times: int, values: dict[str, Any]) -> dict[str, Any]:
    """The pipeline in a clone, with so many times the pictures."""
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
    shutil.rmtree(folder)  # the next one needs the disk
    return {
        "pictures": len(list(base.rglob("*.jpg"))) * times,
        "images_mb": round(sum(sizes) / 1e6),
        **{f"{stage}_mb": peaks[stage] for stage in ("preprocess", "train", "evaluate")},
        "no_op_seconds": no_op,
    }


def peaks_while(work: Callable[[], object], folder: Path) -> dict[str, int]:
    """Megabytes that all processes of a stage had at most, without the page cache, while `work` runs stages there."""
    peaks: Counter[str] = Counter()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        while not running.done():
            now: Counter[str] = Counter()
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError, KeyError):  # it has ended meanwhile
                    if (process / "cwd").readlink() == folder:
                        now[stage_of(process)] += anonymous_bytes(process)
            peaks |= now
            time.sleep(SAMPLE_SECONDS)
        running.result()
    return {stage: round(size / 1e6) for stage, size in peaks.items()}


def stage_of(process: Path) -> str:
    """The stage that a process belongs to: its own, or that of the process that started it."""
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
