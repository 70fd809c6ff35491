"""A recipe trained in a folder of its own, beside the tracked run: for measurements.

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
from integrity.rules import check
from stages.common import files, params, paths

CODE = Path(__file__).parents[1]


def changed(overrides: Sequence[str]) -> dict[str, Any]:
    """params.yaml with overrides as `dvc exp run` takes them: "-S", "train.epochs=3", …"""
    values = copy.deepcopy(params.load(CODE / paths.PARAMS))
    for override in overrides:
        if override == "-S":
            continue
        key, _, text = override.partition("=")
        *sections, last = key.split(".")
        place = values
        for section in sections:
            place = place[section]
        assert last in place, f"{key} is no parameter"
        place[last] = params.parse(text, key)
    values["data"]["mirrors"] = [str((CODE / paths.RAW).resolve()), *values["data"]["mirrors"]]
    assert not (mistakes := check(values)), mistakes
    return values


class Scratch:
    """A recipe and its data, prepared in a folder."""

    def __init__(self, folder: Path, overrides: Sequence[str]) -> None:
        self.folder, self.values = folder, changed(overrides)
        (folder / self.values["data"]["images"]).mkdir(parents=True, exist_ok=True)
        files.write_text(folder / paths.PARAMS, yaml.safe_dump(self.values, sort_keys=False))
        for stage in ("download", "preprocess", "weights"):
            _run(stage, folder)

    def prepared(self, seed: int) -> Path:
        """A folder in which the stages train and evaluate with a seed."""
        place = self.folder / f"seed-{seed}"
        seeds.run.prepare(place, self.values, seed, self.folder)
        return place

    def train(self, seed: int) -> dict[str, float]:
        """Train with a seed in a process of its own; returns loop_seconds and process_seconds."""
        place = self.prepared(seed)
        start = time.perf_counter()
        _run("train", place)
        seconds = round(time.perf_counter() - start, 3)
        loop: float = json.loads((place / paths.RUNS / "train.json").read_bytes())["loop_seconds"]
        return {"loop_seconds": loop, "process_seconds": seconds}


def _run(stage: str, folder: Path) -> None:
    command = [sys.executable, "-m", f"stages.{stage}"]
    environment = {**os.environ, "PYTHONPATH": str(CODE)}
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
