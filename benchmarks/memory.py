"""Peak memory of train and evaluate with 1, 2 and 4 times the images.

    PYTHONPATH=. .venv/bin/python -m benchmarks.memory

The stages run as they are, for one epoch of the default recipe.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

from stages.common import params, paths
from stages.dataset import data_card, packed

TIMES = (1, 2, 4)


def peak(stage: str, folder: Path) -> int:
    """Peak megabytes of a stage, the only child of a process that asks for the peak of its children."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    process = subprocess.run(
        [sys.executable, "-c", code, sys.executable, "-m", f"stages.{stage}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    unit = 1 if sys.platform == "darwin" else 1024  # macOS gives bytes, Linux kilobytes
    return round(int(process.stdout) * unit / 1e6)


def main() -> None:
    """Print JSON."""
    values = params.load(paths.PARAMS)
    values["train"] = {**values["train"], "epochs": 1}
    card = data_card.read(paths.DATA_CARD)
    rows = []
    for times in TIMES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / paths.PARAMS).write_text(yaml.safe_dump(values), encoding="utf-8")
            for path in (paths.DATA_CARD, paths.DATA_METRICS):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / path)
            size = 0
            for path in (paths.TRAIN, paths.VALIDATION, paths.TEST):
                split = packed.open_split(path, card.shape, len(card.classes))
                images, labels = np.tile(split[:], (times, 1, 1, 1)), np.tile(split.labels, times)
                packed.write(folder / path, images, labels)
                size += images.nbytes
            rows.append({"times": times, "images_mb": round(size / 1e6), "train_mb": peak("train", folder)})
            rows[-1]["evaluate_mb"] = peak("evaluate", folder)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
