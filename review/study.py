"""Train a recipe with several seeds, beside the tracked run, and say how far its accuracy moves from seed to seed.

    python -m review.study --seeds 10
    python -m review.study $(cat recipes/fast.txt) --seeds 20 --test --out benchmarks/studies/fast.json

Each seed runs the stages as they are, in a folder of its own: nothing that Git or DVC tracks is touched. Recipes are
chosen on validation; --test reads the test set, for a recipe that is final.
"""

import argparse
import copy
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import Any

import yaml
from scipy import stats

import stages
from integrity import git
from integrity.rules import check
from stages.common import errors as common_errors
from stages.common import files, params, paths, record
from stages.common.children import Group
from stages.common.digests import path_md5
from stages.common.errors import Interrupted, Stopped, UserError

CONFIDENCE = 0.95
CODE = ("stages/*.py", paths.PARAMS.as_posix(), "requirements.txt")  # what decides on the numbers
SEED = "train.seed"
MAX_SEEDS, MAX_JOBS = 10_000, 1000


def main() -> None:
    """params.yaml and overrides -> a run a seed, and a JSON of what they measured."""
    parser = argparse.ArgumentParser(prog="python -m review.study", description="Train a recipe with several seeds.")
    parser.add_argument("-S", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="as in dvc exp")
    parser.add_argument("--seeds", type=int, default=5, help=f"how many: {SEED} 0, 1, … (default 5)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; give each its share of machine.threads")
    parser.add_argument("--test", action="store_true", help="evaluate on the test set too: for a recipe that is final")
    parser.add_argument("--name", help="of the recipe, in the JSON (default: that of --out)")
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: to the terminal)")
    arguments = parser.parse_args()
    for option, value, most in (("--seeds", arguments.seeds, MAX_SEEDS), ("--jobs", arguments.jobs, MAX_JOBS)):
        if not 1 <= value <= most:
            raise UserError(f"{option} is {shortened(value)}; allowed: 1 to {most:,}")
    out: Path | None = arguments.out
    if out:
        files.check_target(out)
    values = changed(params.load(paths.PARAMS), arguments.overrides)

    study: dict[str, Any] = {
        "name": arguments.name or (out.stem if out else "study"),
        "overrides": arguments.overrides,
        "commit": commit(),
        "jobs": arguments.jobs,
    }
    runs: list[dict[str, Any]] = []

    def document() -> str:
        """The JSON of the seeds that have ended."""
        missing = arguments.seeds - len(runs)
        unfinished = {"seeds_missing": missing} if missing else {}
        content = {**study, **unfinished, **summary(runs), "runs": runs, "machine": record.machine()}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def kept() -> str:
        """What there is of a study that does not come to its end."""
        if not runs:
            return "no seed had come to its end: nothing is kept"
        return f"{len(runs)} of {arguments.seeds} seeds are kept, in {out or 'the JSON on standard output'}"

    def describe(data: dict[str, Any]) -> None:
        study["data"] = data

    def keep(measured: dict[str, Any]) -> None:
        print(line(measured), file=sys.stderr, flush=True)
        runs.append(measured)
        runs.sort(key=lambda run: int(run["seed"]))
        if out:
            files.write_text(out, document())

    try:
        with tempfile.TemporaryDirectory(prefix="study-") as scratch:
            measure(Path(scratch), values, arguments.seeds, arguments.jobs, arguments.test, describe, keep)
    except UserError as error:
        raise UserError(f"{error}; {kept()}") from None
    except KeyboardInterrupt as stop:
        raise Interrupted(stop.signum if isinstance(stop, Stopped) else signal.SIGINT, kept()) from None
    finally:
        if runs and not out:
            sys.stdout.write(document())


def shortened(number: int) -> str:
    """A number as text, if need be without its end."""
    text = str(number)
    return text if len(text) <= 20 else f"{text[:20]}…"


def changed(tracked: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The parameters with some of them set to other values, all of them checked. Raises UserError."""
    values = copy.deepcopy(dict(tracked))
    for override in overrides:
        change(values, override)
    if mistakes := check(values):
        raise UserError("\n".join(mistakes))
    return values


def change(values: dict[str, Any], override: str) -> None:
    """Set one key of the parameters, "train.epochs=3", in place; the value is YAML. Raises UserError."""
    key, found, text = override.partition("=")
    if not found or not key:
        raise UserError(f"-S {override}: allowed: KEY=VALUE, for instance train.epochs=3")
    *parents, last = key.split(".")
    here: Any = values
    for part in (*parents, last):
        if not isinstance(here, dict) or part not in here:
            known = list(here) if isinstance(here, dict) else []
            raise UserError(f"-S {override}: {key}: not a key of {paths.PARAMS}{params.nearest(part, known)}")
        parent, here = here, here[part]
    if isinstance(here, dict):
        raise UserError(f"-S {override}: {key} is a section; allowed: one of its keys, {', '.join(map(str, here))}")
    if key == SEED:
        raise UserError(f"-S {override}: the study itself sets {SEED}: 0, 1, … up to --seeds")
    value = params.parse(text, f"-S {override}")
    if isinstance(value, str) and not isinstance(here, str) and re.search("[(,]", value):
        raise UserError(
            f"-S {override}: a study runs one recipe; allowed: one value, such as {key}={here} (several: "
            f"`dvc exp run --queue -S '{key}=…'`)"
        )
    parent[last] = value


def prepare(folder: Path, values: Mapping[str, Any], links: Mapping[Path, Path]) -> None:
    """Make a folder that stages can run in: the parameters, and links to what is there already."""
    folder.mkdir(parents=True)
    (folder / paths.PARAMS).write_text(yaml.safe_dump(dict(values), sort_keys=False), encoding="utf-8")
    for link, target in links.items():
        (folder / link).parent.mkdir(parents=True, exist_ok=True)
        (folder / link).symlink_to(target, target_is_directory=True)


def mirrors(configured: Sequence[str]) -> list[str]:
    """Where the study's own download looks: in data/raw first, whose files it believes by their SHA-256 alone.

    They may be those of another data set, if params.yaml names one that has not been run yet. The stage runs in another
    folder: what is relative to this one is made absolute.
    """
    here = [str(paths.RAW.resolve())] if paths.RAW.is_dir() else []
    return here + [text if "://" in text or text.startswith("~") else str(Path(text).absolute()) for text in configured]


def measure(
    scratch: Path,
    values: Mapping[str, Any],
    seeds: int,
    jobs: int,
    test: bool,
    describe: Callable[[dict[str, Any]], None],
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Get the data ready, which `describe` is told of, run each seed, and hand what it measured to `keep`.

    Raises UserError if a stage fails.
    """
    base, lock = scratch / "data", Lock()

    def one(seed: int) -> None:
        measured = train(group, scratch, base, values, test, seed)
        with lock:  # and not once the main thread comes to it: another seed may fail before
            keep(measured)

    with ThreadPoolExecutor(jobs) as pool, Group() as group:  # the group ends first, or the pool would wait for it
        try:
            data = {**values["data"], "mirrors": mirrors(values["data"]["mirrors"])}
            prepare(base, {**values, "data": data}, {})
            run(group, "download", base)
            run(group, "preprocess", base)
            describe(
                {
                    "name": values["data"]["name"],
                    "test": path_md5(base, paths.TEST.as_posix()),  # as dvc.lock has it
                    "validation": path_md5(base, paths.VALIDATION.as_posix()),
                    "images": _json(base / paths.DATA_METRICS)["images"],
                }
            )
            for ended in as_completed([pool.submit(one, seed) for seed in range(seeds)]):
                ended.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def train(group: Group, scratch: Path, base: Path, values: Mapping[str, Any], test: bool, seed: int) -> dict[str, Any]:
    """Run train, and evaluate if `test`, with this seed; return what they measured."""
    folder = scratch / f"seed-{seed}"
    prepare(folder, {**values, "train": {**values["train"], "seed": seed}}, {paths.PROCESSED: base / paths.PROCESSED})
    start = time.perf_counter()
    run(group, "train", folder)
    process_seconds = round(time.perf_counter() - start, 3)
    kept = _json(folder / paths.TRAIN_METRICS)
    took = _json(folder / paths.RUNS / "train.json")
    measured = {"seed": seed, "loop_seconds": took["loop_seconds"], "process_seconds": process_seconds}
    measured |= {key: kept[key] for key in ("epochs_run", "validation_loss", "validation_accuracy") if key in kept}
    if "validation_accuracy" in kept:
        images = _json(base / paths.DATA_METRICS)["images"]["validation"]
        measured |= {"validation_images": images, **whole_errors(kept["validation_accuracy"], images)}
    if test:
        run(group, "evaluate", folder)
        tested = _json(folder / paths.TEST_METRICS)
        measured |= {key: tested[key] for key in ("accuracy", "loss", "errors", "images")}
    return measured


def whole_errors(accuracy: float, images: int) -> dict[str, int]:
    """`validation_errors`, from an accuracy that was rounded to six decimals; nothing where that cannot tell it.

    Whole numbers compare exactly. Raises UserError for an accuracy that is no share of so many images.
    """
    if images >= 1_000_000:
        return {}
    errors = round((1 - accuracy) * images)
    if abs((1 - accuracy) * images - errors) > 0.6e-6 * images:
        raise UserError(f"{paths.TRAIN_METRICS}: {accuracy} is no share of {images:,} validation images")
    return {"validation_errors": errors}


def program(stage: str) -> list[str]:
    """The command that runs a stage."""
    return [sys.executable, "-m", f"stages.{stage}"]


def run(group: Group, stage: str, folder: Path) -> None:
    """Run a stage in a folder, its code from here. Raises UserError with what it complains of if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(Path(stages.__file__).parents[1])}
    ended = group.run(program(stage), folder, environment, capture=True)
    if ended.returncode:
        told = (ended.stderr or ended.stdout).strip() or "no output"
        _, found, complaint = f"\n{told}".rpartition("\nerror: ")
        raise UserError(
            f"{stage} ended with status {ended.returncode}: {complaint if found else told.splitlines()[-1]}"
        )


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each number that the runs measured: mean, standard deviation, and an interval of the mean (Student's t)."""
    result = {}
    for key in [key for key in runs[0] if key not in ("seed", "images", "validation_images")]:
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
    """The commit that is checked out, with "-dirty" if the code or the parameters differ from it, or "unknown"."""
    try:
        head = git.run(Path(), "rev-parse", "--short=12", "HEAD").decode().strip()
        return head + ("-dirty" if git.run(Path(), "status", "--porcelain", "--", *CODE) else "")
    except UserError as error:
        print(f"note: the study cannot name its commit: {error}", file=sys.stderr, flush=True)
        return "unknown"


if __name__ == "__main__":
    common_errors.run_command(main)
