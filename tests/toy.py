"""A Git repository with DVC and a pipeline of one stage that takes a second, for tests of what works on pipelines.

The stage draws labels and predictions, and writes them as evaluate does (tests/test_stages.py reads evaluate's own).
"""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import dvc.cli
import pytest
import yaml

from tests.imports import ROOT

TOY = """
import json
from pathlib import Path
import numpy as np, pandas as pd, yaml
from stages.common import files; from stages.evaluate import scores

options = yaml.safe_load(Path("params.yaml").read_text())
names, images = options["data"]["classes"], options["data"]["images"]
labels = np.random.default_rng(options["data"]["seed"]).integers(0, len(names), images)
files.write_bytes(Path("data/processed/test/labels.json"), json.dumps([names, labels.tolist()]).encode())
random = np.random.default_rng(options["train"]["seed"])
easy = np.random.default_rng(99).uniform(size=images) + random.normal(0, 0.05, images) < options["train"]["skill"]
taken_for = np.where(easy, labels, (labels + random.integers(1, len(names), images)) % len(names))
p = np.full((images, len(names)), 0.1 / (len(names) - 1))
p[np.arange(images), taken_for] = 0.9
table = {"index": range(images), "label": np.array(names)[labels], "prediction": np.array(names)[taken_for]}
table |= {"probability": 0.9, **{f"p_{name}": p[:, column] for column, name in enumerate(names)}}
files.write_text(Path("data/predictions.csv"), pd.DataFrame(table).to_csv(index=False, lineterminator="\\n"))
files.write_json(Path("metrics/evaluate.json"), scores.summary(np.log(p), labels, names, 15))
"""
PIPELINE = """
stages:
  evaluate:
    cmd: python toy.py
    deps: [toy.py]
    params: [data, train]
    outs: [data/predictions.csv, data/processed/test]
    metrics:
      - metrics/evaluate.json:
          cache: false
"""
PARAMS: dict[str, Any] = {
    "data": {"name": "toy", "seed": 0, "images": 600, "classes": ["a|b", "None", "`1`"]},
    "train": {"seed": 0, "skill": 0.9, "lr": 1e-05, "channels": [1, 2]},
    "models": {"unread": {"units": 3}},
}


class Project:
    """A Git repository with DVC."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_"))},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "DVC_SITE_CACHE_DIR": str(path.parent / "site-cache"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            **{f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.path, env=self.environment, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def dvc(self, *arguments: str) -> None:
        """A command of DVC, in this process: starting Python for each would take most of the time."""
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):  # DVC's own
            patch.chdir(self.path)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            assert dvc.cli.main([*arguments]) == 0, arguments

    def write(self, name: str, content: str) -> None:
        (self.path / name).write_text(content, encoding="utf-8")

    def set(self, **values: dict[str, Any]) -> None:
        changed = {section: {**options, **values.get(section, {})} for section, options in PARAMS.items()}
        self.write("params.yaml", yaml.safe_dump(changed, sort_keys=False))

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "-qm", message)

    def copy(self, path: Path) -> "Project":
        """A copy of the repository, its cache included, at a path that does not exist yet."""
        shutil.copytree(self.path, path, symlinks=True)
        return Project(path)

    def branch(self, name: str, **values: dict[str, Any]) -> None:
        """A branch off main with other parameters, reproduced and committed."""
        self.run("git", "checkout", "-qb", name, "main")
        self.set(**values)
        self.dvc("repro", "-q")
        self.commit(name)

    def cached(self, rev: str) -> Path:
        """The file in the cache that holds the predictions of a revision."""
        lock = yaml.safe_load(self.run("git", "show", f"{rev}:dvc.lock"))
        md5 = lock["stages"]["evaluate"]["outs"][0]["md5"]
        return self.path / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}"


def begun(path: Path, ignored: str) -> Project:
    """A new repository at `path` with the toy pipeline, not run yet, and a remote beside it. ignored: .gitignore."""
    path.mkdir()
    project = Project(path)
    project.run("git", "init", "-q", "-b", "main")
    project.dvc("init", "-q")
    project.dvc("remote", "add", "-q", "--default", "beside", str(path.parent / "remote"))
    project.dvc("config", "core.analytics", "false")
    for name, content in (("toy.py", TOY), ("dvc.yaml", PIPELINE), (".gitignore", ignored)):
        project.write(name, content)
    return project
