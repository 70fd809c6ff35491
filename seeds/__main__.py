"""Train the recipe of params.yaml with several seeds: `python -m seeds N`, or `make seeds N=5`.

Seeds are 0 to N - 1, or more if more are up to date. What is up to date, cached or pulled is not trained again; a
killed run goes on where it was. The result is metrics/seeds.json, a row per seed, which Git keeps with seeds/dvc.lock;
DVC keeps each seed's predictions.
"""

import argparse
import json
import sys
from pathlib import Path

from integrity import rebuild, revisions
from integrity.dvc_lock import parse_lock
from seeds import record
from seeds.paths import CHOSEN, COLLECTED, LOCK, PIPELINE, PREDICTIONS, ROWS
from stages.common import children, errors, files
from stages.common.errors import UserError

MAX_SEEDS = 1000
COLLECT = "collect@all"  # the stage that writes metrics/seeds.json


def main() -> None:
    """Choose the seeds, run their pipeline, print the summary."""
    parser = argparse.ArgumentParser(prog="python -m seeds", description="Train the recipe with several seeds.")
    parser.add_argument("n", metavar="N", type=number, help=f"how many: train.seed 0 to N - 1; 1 to {MAX_SEEDS:,}")
    parser.add_argument("--force", action="store_true", help="train all of them again, without DVC's run cache")
    arguments = parser.parse_args()
    if not PIPELINE.is_file():
        raise UserError(f"{PIPELINE}: no such file; run from the top of the repository, where params.yaml is")
    seeds = range(max(arguments.n, up_to_date()))
    choose(list(seeds))
    targets = [*(f"{PIPELINE}:seed@{seed}" for seed in seeds), f"{PIPELINE}:{COLLECT}"]
    options = ["--force", "--no-run-cache", "--single-item", *targets] if arguments.force else [str(PIPELINE)]
    command = [sys.executable, "-m", "dvc", "repro", *options]
    if children.run(command, Path(), rebuild.dvc_environment()).returncode:
        raise UserError("`dvc repro` of the seeds failed; what it says is above. Seeds that are done are kept")
    print(f"\n{summary()}\nto keep them: git add seeds {COLLECTED}, commit, and `dvc push`", flush=True)


def number(text: str) -> int:
    """The number of seeds. Raises ArgumentTypeError."""
    if not (text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MAX_SEEDS):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}; allowed: 1 to {MAX_SEEDS:,}, as in `make seeds N=5`")
    return int(text)


def up_to_date() -> int:
    """How many seeds are recorded and up to date: they stay, however few are requested."""
    try:
        with revisions.repository() as repo:
            return len(record.read(repo, revisions.read(repo, None)).rows)
    except UserError:  # nothing measured yet
        return 0


def choose(seeds: list[int]) -> None:
    """Make these the seeds of the pipeline; what stale others left leaves the work tree and seeds/dvc.lock."""
    from dvc.utils.serialize import dumps_yaml, load_yaml

    content = f"seeds: {seeds}\ncollect: [all]\n"
    if not CHOSEN.is_file() or CHOSEN.read_text(encoding="utf-8") != content:
        files.write_text(CHOSEN, content)
    for path in [*ROWS.glob("*.json"), *PREDICTIONS.glob("*.csv")]:
        if path.stem not in map(str, seeds):
            path.unlink()
    if not LOCK.is_file():
        return
    parse_lock(LOCK.read_bytes(), str(LOCK))  # one line, if it cannot be read
    lock = load_yaml(str(LOCK))
    names = {COLLECT, *(f"seed@{seed}" for seed in seeds)}
    if lock.get("stages", {}).keys() - names:
        kept = {name: stage for name, stage in lock["stages"].items() if name in names}
        files.write_text(LOCK, dumps_yaml({**lock, "stages": kept}))


def summary() -> str:
    """What all seeds measured, in a line."""
    collected = json.loads(COLLECTED.read_bytes())
    words = [f"{len(collected['seeds'])} seeds"]
    for key, name in (("accuracy", "test accuracy"), ("validation_accuracy", "validation accuracy")):
        if numbers := collected.get(key):
            spread = f" ± {100 * numbers['standard_deviation']:.2f}" if "standard_deviation" in numbers else ""
            words.append(f"{name} {numbers['mean']:.2%}{spread}")
    for key, name in (("r2", "test R2"), ("validation_r2", "validation R2")):
        if numbers := collected.get(key):
            spread = f" ± {numbers['standard_deviation']:.4f}" if "standard_deviation" in numbers else ""
            words.append(f"{name} {numbers['mean']:.4f}{spread}")
    return ", ".join(words)


if __name__ == "__main__":
    errors.run_command(main, kept="seeds that are done are kept, and `make seeds` goes on from there")
