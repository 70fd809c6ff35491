"""A clone of the work tree with a pipeline in it that has run, for the tests that need a real one."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import inside
from tests.imports import ROOT

# A small network for one epoch: seconds, and still well above chance.
SHORT = [
    "model.name=mlp",
    "models.mlp.hidden=64",
    "models.cnn.channels=[4, 4, 4, 4, 4]",
    "models.cnn.hidden=16",
    "train.epochs=1",
    "train.batch_size=1000",
    "train.augmentation=none",
]


class Clone:
    """A checkout of the work tree as it is now, with its own DVC cache."""

    def __init__(self, path: Path) -> None:
        self.path = path
        python = Path(sys.executable).parent
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_"))},
            "PATH": f"{python}:{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(path.parent / "site-cache"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            **{f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command, cwd=self.path, env=self.environment, capture_output=True, text=True, check=False, timeout=300
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout + done.stderr

    def dvc(self, *arguments: str, check: bool = True) -> str:
        """A command of DVC, in this process: starting Python for each takes most of the time of many."""
        status, output = inside.dvc_says(self.path, self.environment, *arguments)
        if check and status:
            pytest.fail(f"dvc {' '.join(arguments)} ended with {status}:\n{output}")
        return output

    def dvc_as_program(self, *arguments: str, check: bool = True) -> str:
        """The same in a process of its own: for what starts daemons, or talks to servers that come and go."""
        return self.run(sys.executable, "-m", "dvc", *arguments, check=check)

    def repro(self) -> list[str]:
        """Run what is out of date; return the stages that ran, without `check`, which runs if any parameter changed."""
        return [stage for stage in re.findall(r"Running stage '(\w+)'", self.dvc("repro")) if stage != "check"]

    def set(self, key: str, value: str) -> None:
        """Change one line of params.yaml, as a person would."""
        *parents, leaf = key.split(".")
        path = self.path / "params.yaml"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        at = 0
        for depth, name in enumerate([*parents, leaf]):
            at = next(i for i in range(at, len(lines)) if re.match(rf"{'  ' * depth}{re.escape(name)}:", lines[i]))
        lines[at] = re.sub(r":\s*(\[.*\]|[^\s#]*)", f": {value}", lines[at], count=1)
        path.write_text("".join(lines), encoding="utf-8")

    def metrics(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / f"metrics/{name}.json").read_text(encoding="utf-8"))
        return content

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "-qm", message)


def copy_of_the_work_tree(path: Path) -> Clone:
    """A new repository with the files that Git has or would add, and none of DVC's results."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file() and name != "dvc.lock" and not name.startswith("metrics/"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, path / name)
    clone = Clone(path)
    clone.run("git", "init", "-q", "-b", "main")
    return clone
