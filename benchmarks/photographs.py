"""JPEGs of 500 x 375 cut from photographs, as own pictures for the benchmarks.

The photographs are those of a Debian package: `apt-get install gnome-backgrounds`; or, without installing it,
`apt-get download gnome-backgrounds && dpkg -x gnome-backgrounds_*.deb FOLDER` and then
BENCH_PHOTOGRAPHS=FOLDER/usr/share/backgrounds/gnome. Any other folder of large pictures also works.
"""

import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(os.environ.get("BENCH_PHOTOGRAPHS", "/usr/share/backgrounds/gnome"))
WIDTH, HEIGHT = 500, 375
QUALITY = 90


def cut(target: Path, count: int) -> None:
    """Write up to `count` JPEGs below `target`, one class per photograph. The same photographs give the same files."""
    sources = sorted(path for path in FOLDER.glob("*") if path.suffix.lower() in (".webp", ".jpg", ".png"))
    if len(sources) < 2:
        sys.exit(f"error: {FOLDER}: no photographs in this folder. {(__doc__ or '').partition(chr(10))[2].strip()}")
    random = np.random.default_rng(0)
    for number, source in enumerate(sources):
        with Image.open(source) as opened:
            photograph = opened.convert("RGB")
        photograph.thumbnail((1600, 1600))  # so that a part shows more than sky
        if photograph.width <= WIDTH or photograph.height <= HEIGHT:
            continue
        folder = target / source.stem
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(number, count, len(sources)):
            left = int(random.integers(0, photograph.width - WIDTH))
            top = int(random.integers(0, photograph.height - HEIGHT))
            part = photograph.crop((left, top, left + WIDTH, top + HEIGHT))
            part.save(folder / f"{index:06}.jpg", quality=QUALITY)


def repeat(source: Path, target: Path, times: int) -> None:
    """Link each picture of `source` `times` times below `target`, which takes no disk space."""
    for path in sorted(source.rglob("*.jpg")):
        folder = target / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(times):
            os.link(path, folder / f"{path.stem}-{number}.jpg")
