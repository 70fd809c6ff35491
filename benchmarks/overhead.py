"""What a run costs beside training: imports, hashing, decoding, evaluation, plots, DVC.

    PYTHONPATH=. .venv/bin/python -m benchmarks.overhead

In a clone of what is committed: `dvc repro` of all but the download, minus the seconds of the training loop; then
`dvc repro` with nothing to do, in turn with that of a pipeline of four stages that do nothing and name nothing.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.summary import spread
from stages.common import paths

REPEATS = 7
EMPTY = "stages:\n" + "".join(
    f"  s{number}:\n    cmd: python -c pass\n    outs: [out{number}]\n" for number in range(4)
)


def run(folder: Path, *command: str) -> float:
    """Run a command with this Python's programs; returns its seconds."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)  # the clone's own code
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Print JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        clone, empty = Path(scratch) / "clone", Path(scratch) / "empty"
        run(Path.cwd(), "git", "clone", "--quiet", ".", str(clone))
        shutil.copytree(paths.RAW, clone / paths.RAW)
        run(clone, "dvc", "repro", "check")
        run(clone, "dvc", "commit", "--force", "download")
        whole = run(clone, "dvc", "repro")
        loop = json.loads((clone / paths.RUNS / "train.json").read_text(encoding="utf-8"))["loop_seconds"]
        stages = {
            stage: json.loads((clone / paths.RUNS / f"{stage}.json").read_text(encoding="utf-8"))["seconds"]
            for stage in ("preprocess", "train", "evaluate")
        }

        empty.mkdir()
        run(empty, "git", "init", "--quiet")
        run(empty, "dvc", "init", "--quiet")
        shutil.copy(clone / ".dvc" / "config", empty / ".dvc" / "config")
        (empty / "dvc.yaml").write_text(EMPTY, encoding="utf-8")
        for number in range(4):
            (empty / f"out{number}").write_text("", encoding="utf-8")
        run(empty, "dvc", "commit", "--force")
        ours, theirs = [], []
        for _ in range(REPEATS):
            ours.append(run(clone, "dvc", "repro"))
            theirs.append(run(empty, "dvc", "repro"))
    result = {
        "repro_seconds": round(whole, 2),
        "loop_seconds": loop,
        "seconds_beside_the_loop": round(whole - loop, 2),
        "seconds_of_each_stage": stages,
        "no_op_seconds": spread(ours),
        "no_op_of_empty_stages_seconds": spread(theirs),
        "no_op_ratio": spread([mine / other for mine, other in zip(ours, theirs, strict=True)]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
