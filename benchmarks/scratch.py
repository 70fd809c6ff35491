"""Run a recipe in a folder of its own, so that a measurement leaves the results of this checkout alone.

The stages run as they are, with the parameters of params.yaml and the overrides of a recipe (recipes/*.txt).
"""

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import seeds.run
from benchmarks.summary import processor_seconds
from integrity.rules import check
from stages.common import files, params, paths

CODE = Path(__file__).parents[1]


def changed(overrides: Sequence[str]) -> dict[str, Any]:
    """params.yaml with overrides as `dvc exp run` takes them: "-S", "train.epochs=3", … ("-S" may be left out)."""
    values = copy.deepcopy(params.load(CODE / paths.PARAMS))
    for override in overrides:
        if override == "-S":
            continue
        key, _, text = override.partition("=")
        *sections, last = key.split(".")
        block = values
        for section in sections:
            block = block[section]
        assert last in block, f"{key} is no parameter"
        block[last] = params.parse(text, key)
    values["data"]["mirrors"] = [str((CODE / paths.RAW).resolve()), *values["data"]["mirrors"]]
    assert not (mistakes := check(values)), mistakes
    return values


class Scratch:
    """A folder with the data of a recipe, in which the recipe is trained with any number of seeds."""

    def __init__(self, folder: Path, overrides: Sequence[str]) -> None:
        self.folder, self.values = folder, changed(overrides)
        (folder / self.values["data"]["images"]).mkdir(parents=True, exist_ok=True)
        files.write_text(folder / paths.PARAMS, yaml.safe_dump(self.values, sort_keys=False))
        (folder / paths.WEIGHTS).parent.mkdir(parents=True, exist_ok=True)
        (folder / paths.WEIGHTS).symlink_to(CODE / paths.WEIGHTS, target_is_directory=True)
        for stage in ("download", "preprocess", "weights"):
            _run(stage, folder)

    def prepare(self, seed: int) -> Path:
        """Make the folder in which train and evaluate run with a seed."""
        folder = self.folder / f"seed-{seed}"
        seeds.run.prepare(folder, self.values, seed, self.folder)
        return folder

    def train(self, seed: int) -> dict[str, float]:
        """Train with a seed in its own process; returns loop_seconds, process_seconds and processor_seconds."""
        folder = self.prepare(seed)
        start, used = time.perf_counter(), processor_seconds()
        _run("train", folder)
        seconds, processor = round(time.perf_counter() - start, 3), round(processor_seconds() - used, 3)
        loop: float = json.loads((folder / paths.RUNS / "train.json").read_bytes())["loop_seconds"]
        return {"loop_seconds": loop, "process_seconds": seconds, "processor_seconds": processor}

    def measure(self, seed: int) -> dict[str, Any]:
        """Train and evaluate with a seed; returns the seconds of `train`, and the validation and test metrics."""
        seconds = self.train(seed)
        folder = self.folder / f"seed-{seed}"
        _run("evaluate", folder)
        return {**seeds.run.row(folder, seed), **seconds}


def _run(stage: str, folder: Path) -> None:
    command = [sys.executable, "-m", f"stages.{stage}"]
    environment = {**os.environ, "PYTHONPATH": str(CODE)}
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
