"""Merging two branches with results: which conflicts `make repro` resolves, and which a person has to."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from integrity import repair
from review import compare, pull_request, report
from stages.common.errors import UserError
from tests.toy import Project, begun


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """main, and two branches from it with results: `images` (data.images) and `skill` (train.skill)."""
    project = begun(tmp_path / "project", ignored="__pycache__/\n/runs/\n")
    (project.path / "data/processed").mkdir(parents=True)
    project.set()
    project.dvc("repro", "-q")
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", "measured")
    project.branch("images", data={"images": 500})
    project.branch("skill", train={"skill": 0.8})
    return project


def merge(project: Project, branch: str) -> list[str]:
    """Start a merge; returns the files that conflict."""
    done = subprocess.run(
        ["git", "merge", "-q", branch], cwd=project.path, env=project.environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout
    return project.run("git", "diff", "--name-only", "--diff-filter=U").split()


def mend(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what `make repro` runs before dvc."""
    monkeypatch.chdir(project.path)
    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["repair"])
    repair.main()


def test_nothing_is_judged_in_the_middle_of_a_merge(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    merge(project, "images")
    monkeypatch.chdir(project.path)
    for arguments in (["compare", "skill"], ["report"]):
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(UserError, match=r"^work tree: \S+ has the conflicts of a merge; `make repro` resolves"):
            (compare if arguments[0] == "compare" else report).main()
    monkeypatch.setattr(sys, "argv", ["pull_request", "skill"])
    with pytest.raises(UserError, match=r"^a merge is in progress, with conflicts in dvc.lock, metrics/evaluate.json"):
        pull_request.main(pull_request.arguments())


def test_conflicting_results_are_computed(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge(project, "images") == ["dvc.lock", "metrics/evaluate.json"]
    mend(project, monkeypatch)
    output = capsys.readouterr().out
    assert output == (
        "merge: one side's dvc.lock, metrics/evaluate.json for now; after this: `git add dvc.lock metrics`, then "
        "`git commit`\n"
    )
    project.dvc("repro", "-q")
    metrics = (project.path / "metrics/evaluate.json").read_text(encoding="utf-8")
    assert '"images": 500' in metrics
    assert re.search(r'"accuracy": 0\.[78]\d', metrics)  # the result of the lower skill
    project.run("git", "add", "dvc.lock", "metrics")
    project.run("git", "commit", "-qm", "merged")
    assert project.run("git", "status", "--porcelain") == ""
    mend(project, monkeypatch)
    assert capsys.readouterr().out.replace("Use `dvc push` to send your updates to remote storage.\n", "") == ""


def test_a_result_of_one_branch_comes_from_the_run_cache(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.run("git", "checkout", "-q", "images")
    project.set(data={"images": 500}, train={"skill": 0.8})
    project.dvc("repro", "-q")  # with the merged parameters
    project.run("git", "reset", "-q", "--hard")
    project.run("git", "checkout", "-q", "skill")
    merge(project, "images")
    mend(project, monkeypatch)
    capsys.readouterr()
    project.dvc("repro")
    assert "Running stage" not in capsys.readouterr().out
    assert '"images": 500' in (project.path / "metrics/evaluate.json").read_text(encoding="utf-8")


def test_conflicting_parameters_are_left_to_a_person(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.branch("skill-2", train={"skill": 0.85})
    assert "params.yaml" in merge(project, "skill")
    before = (project.path / "dvc.lock").read_bytes()
    with pytest.raises(UserError) as error:
        mend(project, monkeypatch)
    assert str(error.value).startswith(
        "a merge is in progress, with conflicts in params.yaml: edit and `git add` them first; `make repro` then writes"
    )
    assert (project.path / "dvc.lock").read_bytes() == before
    project.set(train={"skill": 0.85})
    project.run("git", "add", "params.yaml")
    mend(project, monkeypatch)
    project.dvc("repro", "-q")
    project.run("git", "add", "dvc.lock", "metrics")
    project.run("git", "commit", "-qm", "merged")


def test_a_merge_without_conflicts_is_unchanged(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.run("git", "checkout", "-qb", "notes", "main")
    project.write("notes.md", "a\n")
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", "notes")
    project.run("git", "merge", "-q", "--no-commit", "skill")
    mend(project, monkeypatch)
    assert (project.path / ".git/MERGE_HEAD").is_file()
