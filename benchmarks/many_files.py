"""Preprocess with a million small pictures: its time and memory, and the seconds of a no-op `dvc repro`.

    PYTHONPATH=. .venv/bin/python -m benchmarks.many_files --pictures 1000000

Writes so many JPEGs, all different, into a temporary folder (TMPDIR; 4 KB of disk for each), and works in a clone of
HEAD. Memory is that of all processes together, without the page cache (RssAnon, Linux only).
"""

import argparse
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from benchmarks.no_op import run
from benchmarks.own_pictures import peaks_while
from benchmarks.summary import origin
from stages.common import params, paths

CLASSES = 100
SIDE = 32  # pixels
POINTS = 5  # random colours per side; the picture is a smooth surface through them


def main() -> None:
    """Print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_files", description="Preprocess many pictures.")
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the pictures there; use those that are there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        pictures = arguments.keep or Path(scratch, "pictures")
        if not pictures.exists():
            write(pictures, arguments.pictures)
        print(json.dumps({"pictures": arguments.pictures, **measure(Path(scratch, "clone"), pictures), **origin()}))


def write(folder: Path, count: int) -> None:
    """Write JPEGs of 32 x 32 pixels, about the same number for each class."""
    random = np.random.default_rng(0)
    for label in range(CLASSES):
        place = folder / f"{label:02}"
        place.mkdir(parents=True)
        for number in range(label, count, CLASSES):
            points = random.integers(0, 256, (POINTS, POINTS, 3), dtype=np.uint8)
            content = io.BytesIO()
            Image.fromarray(points).resize((SIDE, SIDE)).save(content, "JPEG", quality=90)
            (place / f"{number:07}.jpg").write_bytes(content.getvalue())


def measure(folder: Path, pictures: Path) -> dict[str, Any]:
    """Run preprocess in a clone, `folder`, and then once more with nothing to do."""
    run(Path.cwd(), "git", "clone", "--quiet", ".", str(folder))
    values = params.load(paths.PARAMS)
    values["data"].update(name="images", images=str(pictures.resolve()))
    values["preprocess"].update(image_size=[SIDE, SIDE])
    (folder / paths.PARAMS).write_text(yaml.safe_dump(values), encoding="utf-8")
    command = ("dvc", "repro", "preprocess", "--quiet")
    seconds = 0.0

    def repro() -> None:
        nonlocal seconds
        seconds = run(folder, *command)

    peaks = peaks_while(repro, folder)
    preprocess = json.loads((folder / paths.RUNS / "preprocess.json").read_text(encoding="utf-8"))
    return {
        "preprocess_seconds": preprocess["seconds"],
        "preprocess_mb": peaks["preprocess"],
        "repro_seconds": round(seconds),
        "dvc_mb": peaks["--quiet"],
        "no_op_seconds": round(run(folder, *command), 1),
    }


if __name__ == "__main__":
    main()
