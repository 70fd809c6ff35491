"""Processor time of `dvc repro` and `make repro` with nothing to do, compared with `dvc repro` of four empty stages.

    PYTHONPATH=. .venv/bin/python -m benchmarks.no_op

Works in a clone of HEAD, after a short training there; the three commands take turns. Each keeps one core busy from
start to end, and processor time hardly depends on what else runs on the machine.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.summary import processor_seconds, spread
from stages.common import paths

REPEATS = 15
SHORT = ("-S", "model.name=mlp", "-S", "train.epochs=1")
EMPTY_STAGES = "stages:\n" + "".join(
    f"  s{number}:\n    cmd: python -c pass\n    outs: [out{number}]\n" for number in range(4)
)


def run(folder: Path, *command: str) -> float:
    """Run a command with the programs of this Python; returns its seconds."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)  # the clone's own code
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def processor_time(folder: Path, *command: str) -> float:
    """Run a command as `run` does; returns the processor time of it and its children."""
    before = processor_seconds()
    run(folder, *command)
    return processor_seconds() - before


def clone_of_head(folder: Path) -> None:
    """Clone HEAD with the .venv and the downloads of this checkout, so that no stage uses the network."""
    run(Path.cwd(), "git", "clone", "--quiet", ".", str(folder))
    (folder / ".venv").symlink_to(Path(".venv").resolve())
    shutil.copytree(paths.RAW, folder / paths.RAW, dirs_exist_ok=True)
    run(folder, "dvc", "repro", "check")
    run(folder, "dvc", "commit", "--force", "download")


def empty_stages(folder: Path, config: Path) -> None:
    """Make a repository of four stages without dependencies, which have run. config: DVC's configuration."""
    folder.mkdir()
    run(folder, "git", "init", "--quiet")
    run(folder, "dvc", "init", "--quiet")
    shutil.copy(config, folder / ".dvc/config")
    (folder / "dvc.yaml").write_text(EMPTY_STAGES, encoding="utf-8")
    for number in range(4):
        (folder / f"out{number}").touch()
    run(folder, "dvc", "commit", "--force")


def main() -> None:
    """Print JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        clone, empty_repository = Path(scratch) / "clone", Path(scratch) / "empty"
        clone_of_head(clone)
        run(clone, "dvc", "exp", "run", *SHORT)
        empty_stages(empty_repository, clone / ".dvc/config")
        seconds: dict[str, list[float]] = {"empty": [], "dvc": [], "make": []}
        for repeat in range(REPEATS + 1):
            measured = {
                "empty": processor_time(empty_repository, "dvc", "repro"),
                "dvc": processor_time(clone, "dvc", "repro"),
                "make": processor_time(clone, "make", "repro"),
            }
            for name in seconds if repeat else ():  # the first round is a warm-up
                seconds[name].append(measured[name])
    result = {
        f"{name}_ratio": spread([ours / empty for ours, empty in zip(seconds[name], seconds["empty"], strict=True)])
        for name in ("dvc", "make")
    }
    print(json.dumps({"empty_seconds": spread(seconds["empty"]), **result}))


if __name__ == "__main__":
    main()
