"""`make verify` on repositories that somebody has forged, and in every place that a repository can be in.

The pipeline has two stages that take a moment; the last test rebuilds the real one.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dvc.cli
import pytest
import yaml

from stages import git, paths, rebuild, verify
from stages.errors import UserError
from tests.clones import Clone
from tests.imports import ROOT
from tests.toy import Project

PARAMS = "train:\n  seed: 0\nevaluate:\n  bins: 3\n"
TRAIN = """
from pathlib import Path
Path("data/model").mkdir(parents=True, exist_ok=True)
Path("data/folder").mkdir(parents=True, exist_ok=True)
Path("data/folder/a").write_text("a")
Path("data/model/model.safetensors").write_text(Path("params.yaml").read_text())
"""
EVALUATE = """
import json
from pathlib import Path
Path("metrics/plots").mkdir(parents=True, exist_ok=True)
Path("data/predictions.csv").write_text("predictions of " + Path("data/model/model.safetensors").read_text())
Path("metrics/plots/curve.csv").write_text("1\\n")
Path("metrics/evaluate.json").write_text(json.dumps({"accuracy": 0.9, "errors": 10}))
"""
PIPELINE = """
stages:
  train:
    cmd: python train.py
    deps: [train.py]
    params: [train]
    outs: [data/model/model.safetensors, data/folder]
  evaluate:
    cmd: python evaluate.py
    deps: [evaluate.py, data/model/model.safetensors, data/folder]
    params: [evaluate]
    outs: [data/predictions.csv]
    metrics:
      - metrics/evaluate.json:
          cache: false
    plots:
      - metrics/plots/curve.csv:
          cache: false
"""


def pipeline_in(path: Path) -> Project:
    """The pipeline in a folder that may be below a Git repository's top, run and committed."""
    project = Project(path)
    project.dvc("init", "-q", *([] if (path / ".git").exists() else ["--subdir"]))
    project.dvc("config", "core.analytics", "false")
    for name, content in (
        ("params.yaml", PARAMS),
        ("train.py", TRAIN),
        ("evaluate.py", EVALUATE),
        ("dvc.yaml", PIPELINE),
    ):
        project.write(name, content)
    project.dvc("repro", "-q")
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", "measured")
    return project


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The pipeline, run and committed; not to be changed."""
    path = tmp_path_factory.mktemp("verify") / "project"
    path.mkdir()
    Project(path).run("git", "init", "-q", "-b", "main")
    return pipeline_in(path)


@pytest.fixture
def project(measured: Project, tmp_path: Path) -> Project:
    """A copy of it, cache included, to forge."""
    shutil.copytree(measured.path, tmp_path / "work/project", symlinks=True)
    return Project(tmp_path / "work/project")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.fixture
def verified(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], temporary: Path
) -> Callable[[Path], tuple[int, str]]:
    """A function that runs verify in a folder: its exit status and what it prints, without DVC's part."""

    def run(folder: Path) -> tuple[int, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["verify"])
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        status = verify.main()
        assert list(temporary.iterdir()) == []
        told = capfd.readouterr().out
        return status, told[told.index("\nstage ") :]

    return run


Verified = Callable[[Path], tuple[int, str]]


def rows(told: str) -> dict[str, str]:
    """What the table says of each artifact that is not identical."""
    table = told.strip().split("\n\n")[0].splitlines()[1:]
    split = [re.split(r"\s{2,}", line, maxsplit=2) for line in table]
    return {artifact: problem for _, artifact, problem in split if problem != "identical"}


def files(folder: Path) -> dict[str, tuple[bytes | None, int]]:
    """Content and time of every file and folder, Git's and DVC's own included."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else None, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def test_the_same_bytes_and_nothing_written(project: Project, verified: Verified) -> None:
    before = files(project.path)
    status, told = verified(project.path)
    assert status == 0
    assert rows(told) == {}
    assert re.search(r"\nidentical: 5 artifacts of \w{12}, rebuilt from nothing in \d+ s\n$", told)
    assert files(project.path) == before  # on a read-only file system it works, then


def relock(project: Project, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the stages in dvc.lock by hand."""
    lock = yaml.safe_load((project.path / "dvc.lock").read_text(encoding="utf-8"))
    change(lock["stages"])
    project.write("dvc.lock", yaml.safe_dump(lock, sort_keys=False))


def out(stage: dict[str, Any], path: str) -> dict[str, Any]:
    """An output or a dependency of a stage in dvc.lock."""
    return next(entry for entry in [*stage["outs"], *stage["deps"]] if entry["path"] == path)


def forge(project: Project, path: str, content: str) -> None:
    """Another output than the stage gave, on record in dvc.lock, with its bytes in the cache."""
    (project.path / path).unlink()  # it may be linked to the cache
    project.write(path, content)
    project.dvc("commit", "--force", "-q")


OTHER = "0123456789abcdef0123456789abcdef"
METRICS = "metrics/evaluate.json"
PERFECT = '{"accuracy": 1.0, "errors": 0}'

FORGERIES: dict[str, tuple[Callable[[Project], object], dict[str, str]]] = {
    "model": (
        lambda project: forge(project, "data/model/model.safetensors", "trained elsewhere"),
        {"data/model/model.safetensors": "rebuilt differs"},
    ),
    "predictions": (
        lambda project: forge(project, "data/predictions.csv", "all right"),
        {"data/predictions.csv": "rebuilt differs"},
    ),
    "metrics by hand": (
        lambda project: project.write(METRICS, PERFECT),
        {METRICS: "committed file differs from dvc.lock"},
    ),
    "metrics and lock": (
        lambda project: forge(project, METRICS, PERFECT),
        {METRICS: "rebuilt differs"},
    ),
    "plots by hand": (
        lambda project: project.write("metrics/plots/curve.csv", "2\n"),
        {"metrics/plots/curve.csv": "committed file differs from dvc.lock"},
    ),
    "metrics deleted": (
        lambda project: project.run("git", "rm", "-q", METRICS),
        {METRICS: "missing in Git"},
    ),
    "metrics by link": (
        lambda project: [(project.path / METRICS).unlink(), (project.path / METRICS).symlink_to("../evaluate.py")],
        {METRICS: "committed file differs from dvc.lock"},
    ),
    "lock of metrics": (
        lambda project: relock(project, lambda stages: out(stages["evaluate"], METRICS).update(md5=OTHER)),
        {METRICS: "dvc.lock differs from the committed and the rebuilt file"},
    ),
    "lock of a folder": (
        lambda project: relock(
            project,
            lambda stages: [out(stages[name], "data/folder").update(md5=f"{OTHER}.dir") for name in stages],
        ),
        {"data/folder": "rebuilt differs"},
    ),
    "lock of a file that the next stage reads": (
        lambda project: relock(
            project, lambda stages: out(stages["evaluate"], "data/model/model.safetensors").update(md5=OTHER)
        ),
        {"data/model/model.safetensors (input)": "dvc.lock says that train wrote other bytes"},
    ),
    "lock without an output": (
        lambda project: relock(project, lambda stages: stages["evaluate"]["outs"].pop(0)),
        {"data/predictions.csv": "missing in dvc.lock"},
    ),
    "lock without a stage": (
        lambda project: relock(project, lambda stages: stages.pop("train")),
        {"data/model/model.safetensors": "missing in dvc.lock", "data/folder": "missing in dvc.lock"},
    ),
    "lock with another stage": (
        lambda project: relock(project, lambda stages: stages.update(later=stages["evaluate"])),
        {f"{path} (input)": "in dvc.lock, and not in dvc.yaml" for path in ("data/predictions.csv", METRICS)}
        | {"metrics/plots/curve.csv (input)": "in dvc.lock, and not in dvc.yaml"},
    ),
    "lock of other code": (
        lambda project: relock(project, lambda stages: out(stages["train"], "train.py").update(md5=OTHER)),
        {"train.py (input)": "other than in dvc.lock"},
    ),
    "lock without code": (
        lambda project: relock(project, lambda stages: stages["train"]["deps"].pop(0)),
        {"train.py (input)": "missing in dvc.lock"},
    ),
    "lock of a file that no stage reads": (
        lambda project: relock(
            project, lambda stages: stages["train"]["deps"].append({"path": "x", "hash": "md5", "md5": OTHER})
        ),
        {"x (input)": "in dvc.lock, and not in dvc.yaml"},
    ),
    "lock of another command": (
        lambda project: relock(project, lambda stages: stages["train"].update(cmd="python other.py")),
        {"command (input)": "other than in dvc.lock"},
    ),
    "lock of other parameters": (
        lambda project: relock(project, lambda stages: stages["evaluate"]["params"]["params.yaml"].update(evaluate=5)),
        {"params.yaml: evaluate.bins (input)": "other than in dvc.lock"}
        | {"params.yaml: evaluate (input)": "other than in dvc.lock"},
    ),
    "code": (
        lambda project: project.write("evaluate.py", EVALUATE + "# appended\n"),
        {"evaluate.py (input)": "other than in dvc.lock"},
    ),
    "code, on record": (
        lambda project: [
            project.write("evaluate.py", EVALUATE.replace("0.9", "0.95")),
            project.dvc("commit", "--force", "-q"),
        ],
        {METRICS: "rebuilt differs"},
    ),
    "a stage that only claims to run": (
        lambda project: [
            project.write("evaluate.py", "print('Running')\n"),
            project.dvc("commit", "--force", "-q"),
        ],
        {},
    ),
}


def quick_repro(folder: Path, options: Sequence[str], environment: dict[str, str]) -> list[str]:
    """rebuild.repro in this process: starting DVC takes most of the time of a test."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):  # DVC's own
        patch.chdir(folder)
        for name, value in environment.items():
            patch.setenv(name, value)
        if dvc.cli.main(["repro", *options]):
            raise UserError("`dvc repro` failed; what it says is above")
    return ["train", "evaluate"]


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_named(
    name: str, project: Project, verified: Verified, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "repro", quick_repro)
    change, named = FORGERIES[name]
    change(project)
    project.run("git", "commit", "-qam", name)
    if not named:
        with pytest.raises(UserError, match=r"`dvc repro` failed"):
            verified(project.path)
        return
    status, told = verified(project.path)
    assert status == 1
    assert rows(told) == named
    last = told.splitlines()[-1]
    artifacts = [artifact for artifact in named if not artifact.endswith("(input)")]
    assert last == f"not the same: {', '.join(artifacts) or 'dvc.lock'}"
    inputs = [artifact.removesuffix(" (input)") for artifact in named if artifact.endswith("(input)")]
    assert not inputs or "dvc.lock was made from other code or inputs than HEAD's: " in told
    assert all(name in told for name in inputs)
