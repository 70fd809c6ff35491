"""Train and evaluate with another seed, a stage of seeds/dvc.yaml: `python -m seeds.run SEED`.

The unchanged stages run in runs/seeds/SEED, with a params.yaml that differs only in train.seed. They write the bytes
that `dvc repro` would write with that seed. A killed run leaves its checkpoint there, and the next run continues.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from seeds.paths import PREDICTIONS, ROWS
from stages.common import children, errors, files, inputs, params, paths
from stages.common.errors import UserError

CODE = Path(__file__).parents[1]
STAGES = ("train", "evaluate")
# Keys of metrics/train.json and metrics/evaluate.json; a run has those of its task.
VALIDATED = ("epochs_run", "best_epoch", "validation_accuracy", "validation_loss", "validation_r2")
TESTED = ("accuracy", "errors", "images", "loss", "calibration_error", "r2", "rmse", "mae")


def main() -> None:
    """data/processed, params.yaml -> data/seeds/metrics/SEED.json, data/seeds/predictions/SEED.csv."""
    parser = argparse.ArgumentParser(prog="python -m seeds.run", description="Train and evaluate with another seed.")
    parser.add_argument("seed", type=int)
    seed = parser.parse_args().seed
    inputs.remember()
    with errors.one_stage_at_a_time():
        folder = paths.RUNS / "seeds" / str(seed)
        prepare(folder, params.load(paths.PARAMS), seed, Path.cwd())
        for stage in STAGES:
            run(stage, seed, folder)
        inputs.check()
        files.write_bytes(PREDICTIONS / f"{seed}.csv", (folder / paths.PREDICTIONS).read_bytes())
        files.write_text(ROWS / f"{seed}.json", text(row(folder, seed)))
        shutil.rmtree(folder)


def prepare(folder: Path, values: dict[str, Any], seed: int, root: Path) -> None:
    """Make the folder in which the stages run: the parameters with this seed, and links to their inputs in `root`."""
    changed = {**values, "train": {**values["train"], "seed": seed}}
    files.write_text(folder / paths.PARAMS, yaml.safe_dump(changed, sort_keys=False))
    for path in (paths.PROCESSED, paths.PRETRAINED.parent, paths.DATA_METRICS):
        link = folder / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to((root / path).resolve(), target_is_directory=True)


def run(stage: str, seed: int, folder: Path) -> None:
    """Run a stage in a folder, with the code of this project. Raises UserError if it fails."""
    # Else Python would first look for modules in the folder, where a commit may have put others.
    environment = {**os.environ, "PYTHONPATH": str(CODE), "PYTHONSAFEPATH": "1"}
    status = children.run([sys.executable, "-m", f"stages.{stage}"], folder, environment).returncode
    if status:
        raise UserError(f"seed {seed}: {stage} ended with status {status}; its message is above")


def row(folder: Path, seed: int) -> dict[str, Any]:
    """The results of one seed: validation metrics of the epoch that was kept, and test metrics."""
    trained, tested = (json.loads((folder / path).read_bytes()) for path in (paths.TRAIN_METRICS, paths.TEST_METRICS))
    measured = {key: trained[key] for key in VALIDATED if key in trained}  # none without validation images
    return {"seed": seed, **measured, **{key: tested[key] for key in TESTED if key in tested}}


def text(measured: dict[str, Any]) -> str:
    """A row as the file that DVC keeps. Its numbers have the six decimals of the metrics."""
    return json.dumps(measured, indent=2) + "\n"


if __name__ == "__main__":
    errors.run(main, alone=False, kept="`make seeds` continues from its last checkpoint")
