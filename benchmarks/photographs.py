"""JPEGs of 500 x 375 cut from photographs, and the folder of own pictures that the benchmarks make of them.

The photographs are Debian's: `apt-get install gnome-backgrounds`, or without installing it
`apt-get download gnome-backgrounds && dpkg -x gnome-backgrounds_*.deb FOLDER` and then
BENCH_PHOTOGRAPHS=FOLDER/usr/share/backgrounds/gnome. Any other folder of large pictures does as well.
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
    """Write `count` JPEGs below `target`, a class for each photograph. The same photographs give the same files."""
    sources = sorted(path for path in FOLDER.glob("*") if path.suffix.lower() in (".webp", ".jpg", ".png"))
    if len(sources) < 2:
        sys.exit(f"error: {FOLDER}: no photographs there. {(__doc__ or '').partition(chr(10))[2].strip()}")
    random = np.random.default_rng(0)
    for number, source in enumerate(sources):
        with Image.open(source) as opened:
            photograph = opened.convert("RGB")
        photograph.thumbnail((1600, 1600))  # so that a cut shows more than sky
        if photograph.width <= WIDTH or photograph.height <= HEIGHT:
            continue
        folder = target / source.stem
        folder.mkdir(parents=True, exist_ok=True)
        for place in range(number, count, len(sources)):
            left = int(random.integers(0, photograph.width - WIDTH))
            top = int(random.integers(0, photograph.height - HEIGHT))
            part = photograph.crop((left, top, left + WIDTH, top + HEIGHT))
            part.save(folder / f"{place:06}.jpg", quality=QUALITY)


def repeat(source: Path, target: Path, times: int) -> None:
    """The pictures of `source`, each with `times` names below `target`: no disk is taken."""
    for path in sorted(source.rglob("*.jpg")):
        folder = target / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(times):
            os.link(path, folder / f"{path.stem}-{number}.jpg")
