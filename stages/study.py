"""Train a recipe with several seeds, beside the tracked run, and say how far its accuracy moves from seed to seed.

    python -m stages.study --seeds 10
    python -m stages.study $(cat recipes/fast.txt) --seeds 20 --test --out benchmarks/studies/fast.json

Each seed runs the stages as they are, in a folder of its own: nothing that Git or DVC tracks is touched. Recipes are
chosen on validation; --test reads the test set, for a recipe that is final.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

import stages
from stages import errors, files, params, paths, record
from stages.errors import UserError

CONFIDENCE = 0.95
CODE = ("stages", "params.yaml", "requirements.txt")  # what decides on the numbers; the JSON of another study does not


def main() -> None:
    """params.yaml and overrides -> a run a seed, and a JSON of what they measured."""
    parser = argparse.ArgumentParser(prog="python -m stages.study", description="Train a recipe with several seeds.")
    parser.add_argument("-S", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="as in dvc exp")
    parser.add_argument("--seeds", type=int, default=5, help="how many: train.seed 0, 1, … (default 5)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; give each its share of train.threads")
    parser.add_argument("--test", action="store_true", help="evaluate on the test set too: for a recipe that is final")
    parser.add_argument("--name", help="of the recipe, in the JSON (default: that of --out)")
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: to the terminal)")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.jobs < 1:
        raise UserError("--seeds and --jobs: allowed: 1 and above")
    if not (paths.RAW).is_dir():
        raise UserError(f"{paths.RAW}: no data yet; `make repro` (or `dvc pull`) brings it")

    tracked = params.load(paths.PARAMS)
    values = copy.deepcopy(tracked)
    for override in arguments.overrides:
        change(values, override)

    with tempfile.TemporaryDirectory(prefix="study-") as scratch:
        base = Path(scratch) / "data"
        same = values["data"] == tracked["data"]
        prepare(base, values, {paths.RAW: paths.RAW.resolve()} if same else {})
        if not same:
            run("download", base)
        run("preprocess", base)
        one = partial(train, Path(scratch), values, base / paths.PROCESSED, arguments.test)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            runs = []
            for measured in pool.map(one, range(arguments.seeds)):
                runs.append(measured)
                print(line(measured), file=sys.stderr, flush=True)

    study = {
        "name": arguments.name or (arguments.out.stem if arguments.out else "study"),
        "overrides": arguments.overrides,
        "commit": commit(),
        "jobs": arguments.jobs,
        **summary(runs),
        "runs": runs,
        "machine": record.machine(),
    }
    text = json.dumps(study, indent=2, ensure_ascii=False) + "\n"
    if arguments.out:
        files.write_text(arguments.out, text)
    else:
        sys.stdout.write(text)


def change(values: dict[str, Any], override: str) -> None:
    """Set one key of the parameters, "train.epochs=3", in place; the value is YAML. Raises UserError."""
    key, found, text = override.partition("=")
    if not found:
        raise UserError(f"-S {override}: allowed: KEY=VALUE, for instance train.epochs=3")
    *parents, last = key.split(".")
    here: Any = values
    for part in (*parents, last):
        if not isinstance(here, dict) or part not in here:
            known = list(here) if isinstance(here, dict) else []
            raise UserError(f"-S {override}: {key}: not a key of {paths.PARAMS}{params.nearest(part, known)}")
        parent, here = here, here[part]
    parent[last] = params.parse(text, f"-S {override}")


def prepare(folder: Path, values: Mapping[str, Any], links: Mapping[Path, Path]) -> None:
    """Make a folder that stages can run in: the parameters, and links to what is there already."""
    folder.mkdir(parents=True)
    (folder / paths.PARAMS).write_text(yaml.safe_dump(dict(values), sort_keys=False), encoding="utf-8")
    for link, target in links.items():
        (folder / link).parent.mkdir(parents=True, exist_ok=True)
        (folder / link).symlink_to(target, target_is_directory=True)


def train(scratch: Path, values: Mapping[str, Any], processed: Path, test: bool, seed: int) -> dict[str, Any]:
    """Run train, and evaluate if `test`, with this seed; return what they measured."""
    folder = scratch / f"seed-{seed}"
    prepare(folder, {**values, "train": {**values["train"], "seed": seed}}, {paths.PROCESSED: processed})
    start = time.perf_counter()
    run("train", folder)
    process_seconds = round(time.perf_counter() - start, 3)
    kept = json.loads((folder / paths.TRAIN_METRICS).read_text(encoding="utf-8"))
    took = json.loads((folder / paths.RUNS / "train.json").read_text(encoding="utf-8"))
    measured = {"seed": seed, "loop_seconds": took["loop_seconds"], "process_seconds": process_seconds}
    measured |= {key: kept[key] for key in ("epochs_run", "validation_loss", "validation_accuracy") if key in kept}
    if test:
        run("evaluate", folder)
        tested = json.loads((folder / paths.TEST_METRICS).read_text(encoding="utf-8"))
        measured |= {key: tested[key] for key in ("accuracy", "loss", "errors")}
    return measured


def run(stage: str, folder: Path) -> None:
    """Run a stage in a folder, its code from here. Raises UserError with the last line it printed if it fails."""
    root = str(Path(stages.__file__).parents[1])
    command = [sys.executable, "-m", f"stages.{stage}"]
    ended = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        lines = (ended.stderr or ended.stdout).strip().splitlines() or ["no output"]
        raise UserError(f"{stage} ended with status {ended.returncode}: {lines[-1].removeprefix('error: ')}")


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each number that the runs measured: mean, standard deviation, and an interval of the mean (Student's t)."""
    result = {}
    for key in [key for key in runs[0] if key != "seed"]:
        values = [run[key] for run in runs]
        mean = statistics.fmean(values)
        numbers = {"mean": mean, "min": min(values), "max": max(values), "n": len(values)}
        if len(values) > 1:
            spread = statistics.stdev(values)
            reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * spread / len(values) ** 0.5
            numbers |= {"standard_deviation": spread, "low": mean - reach, "high": mean + reach}
        result[key] = {name: round(value, 6) for name, value in numbers.items()}
    return result


def line(measured: Mapping[str, Any]) -> str:
    """One run as a line of text."""
    words = [f"seed {measured['seed']}"]
    if "validation_accuracy" in measured:
        words.append(f"validation {measured['validation_accuracy']:.2%}")
    if "accuracy" in measured:
        words.append(f"test {measured['accuracy']:.2%}")
    return ", ".join([*words, f"{measured['loop_seconds']:.1f} s of training"])


def commit() -> str:
    """The commit that is checked out, with "-dirty" if the code or the parameters differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", *CODE)
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("-dirty" if changed else "")


if __name__ == "__main__":
    errors.run(main, alone=False)  # its stages run elsewhere
