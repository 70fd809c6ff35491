"""Train the recipe of params.yaml with several seeds: `python -m seeds N`, or `make seeds N=5`.

Seeds are 0 to N - 1, or more if more are up to date. Seeds that are up to date, cached or pulled are not trained again,
and a killed run continues where it was. The result is metrics/seeds.json, one row per seed, which Git keeps with
seeds/dvc.lock; DVC keeps the predictions of each seed.
"""

import argparse
import json
import sys
from pathlib import Path

from integrity import rebuild, revisions
from integrity.dvc_lock import parse_lock
from integrity.only_one import only_one
from seeds import record
from seeds.paths import CHOSEN, COLLECTED, LOCK, PIPELINE, PREDICTIONS, ROWS
from stages.common import children, errors, files, paths
from stages.common.errors import UserError
from stages.common.text import counted

MAX_SEEDS = 1000
COLLECT = "collect@all"  # the stage that writes metrics/seeds.json
RUNNING = paths.RUNS / "seeds" / "lock"  # held by a running `make seeds`


def main() -> None:
    """Choose the seeds, run their pipeline, and print the summary."""
    parser = argparse.ArgumentParser(prog="python -m seeds", description="Train the recipe with several seeds.")
    parser.add_argument(
        "n", metavar="N", type=number, help=f"number of seeds, from 1 to {MAX_SEEDS:,}: train.seed is 0 to N - 1"
    )
    parser.add_argument("--force", action="store_true", help="train all of them again, without DVC's run cache")
    arguments = parser.parse_args()
    if not PIPELINE.is_file():
        raise UserError(f"{PIPELINE}: no such file; run from the top of the repository, where params.yaml is")
    with only_one(RUNNING, "`make seeds` is already running in this folder"):
        seeds = range(max(arguments.n, up_to_date()))
        choose(list(seeds))
        targets = [*(f"{PIPELINE}:seed@{seed}" for seed in seeds), f"{PIPELINE}:{COLLECT}"]
        options = ["--force", "--no-run-cache", "--single-item", *targets] if arguments.force else [str(PIPELINE)]
        command = [sys.executable, "-m", "dvc", "repro", *options]
        if children.run(command, Path(), rebuild.dvc_environment()).returncode:
            raise UserError("`dvc repro` of the seeds failed; its message is above. Finished seeds are kept")
    print(f"\n{summary()}\nto keep them: git add seeds {COLLECTED}, commit, and `dvc push`", flush=True)


def number(text: str) -> int:
    """The number of seeds. Raises ArgumentTypeError."""
    if not (text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MAX_SEEDS):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}; allowed: 1 to {MAX_SEEDS:,}, as in `make seeds N=5`")
    return int(text)


def up_to_date() -> int:
    """The number of seeds that are trained and up to date. They are kept, even if fewer are requested."""
    try:
        with revisions.repository() as repo:
            return record.count_fresh(repo, revisions.read(repo, None))
    except UserError:  # nothing measured yet
        return 0


def choose(seeds: list[int]) -> None:
    """Make these the seeds of the pipeline. Remove all others from the work tree and seeds/dvc.lock."""
    from dvc.utils.serialize import dumps_yaml, load_yaml

    if LOCK.is_file():
        parse_lock(LOCK.read_bytes(), str(LOCK))  # UserError before anything is changed
    content = f"seeds: {seeds}\ncollect: [all]\n"
    if not CHOSEN.is_file() or CHOSEN.read_text(encoding="utf-8") != content:
        files.write_text(CHOSEN, content)
    for path in [*ROWS.glob("*.json"), *PREDICTIONS.glob("*.csv")]:
        if path.stem not in map(str, seeds):
            path.unlink()
    if not LOCK.is_file():
        return
    lock = load_yaml(str(LOCK))
    names = {COLLECT, *(f"seed@{seed}" for seed in seeds)}
    if lock.get("stages", {}).keys() - names:
        stages = {name: stage for name, stage in lock["stages"].items() if name in names}
        files.write_text(LOCK, dumps_yaml({**lock, "stages": stages}))


def summary() -> str:
    """The mean and standard deviation over all seeds, in one line."""
    collected = json.loads(COLLECTED.read_bytes())
    parts = [counted(len(collected["seeds"]), "seed")]
    for key, name, scale, decimals, unit in (
        ("accuracy", "test accuracy", 100, 2, " %"),
        ("validation_accuracy", "validation accuracy", 100, 2, " %"),
        ("r2", "test R2", 1, 4, ""),
        ("validation_r2", "validation R2", 1, 4, ""),
    ):
        if numbers := collected.get(key):
            part = f"{name} {scale * numbers['mean']:.{decimals}f}{unit}"
            deviation = numbers.get("standard_deviation")
            parts.append(part if deviation is None else f"{part} ± {scale * deviation:.{decimals}f}")
    return ", ".join(parts)


if __name__ == "__main__":
    errors.run_command(main, kept="finished seeds are kept, and `make seeds` continues from there")
