"""The time that a run spends outside the training loop: imports, hashing, decoding, evaluation, plots, DVC.

    PYTHONPATH=. .venv/bin/python -m benchmarks.overhead

It times `dvc repro` in a clone of HEAD that has the downloads, and subtracts the seconds of the training loop.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.no_op import clone_of_head, run
from stages.common import paths


def main() -> None:
    """Print JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / "clone"
        clone_of_head(clone)
        repro_seconds = run(clone, "dvc", "repro")
        runs: dict[str, dict[str, Any]] = {
            stage: json.loads((clone / paths.RUNS / f"{stage}.json").read_text(encoding="utf-8"))
            for stage in ("preprocess", "train", "evaluate")
        }
    loop = runs["train"]["loop_seconds"]
    result = {
        "repro_seconds": round(repro_seconds, 2),
        "loop_seconds": loop,
        "seconds_beside_the_loop": round(repro_seconds - loop, 2),
        "seconds_of_each_stage": {stage: run_of_stage["seconds"] for stage, run_of_stage in runs.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
