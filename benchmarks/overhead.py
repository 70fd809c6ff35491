"""What a run costs beside training: imports, hashing, decoding, evaluation, plots, DVC.

    PYTHONPATH=. .venv/bin/python -m benchmarks.overhead

In a clone of HEAD: `dvc repro` of everything but the download, minus the seconds of the training loop.
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
        whole = run(clone, "dvc", "repro")
        facts: dict[str, dict[str, Any]] = {
            stage: json.loads((clone / paths.RUNS / f"{stage}.json").read_text(encoding="utf-8"))
            for stage in ("preprocess", "train", "evaluate")
        }
    loop = facts["train"]["loop_seconds"]
    result = {
        "repro_seconds": round(whole, 2),
        "loop_seconds": loop,
        "seconds_beside_the_loop": round(whole - loop, 2),
        "seconds_of_each_stage": {stage: of_stage["seconds"] for stage, of_stage in facts.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
