"""The workflows in .github: pinned actions, least permissions, and no code of a stranger runs with write access."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.imports import ROOT

FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
WORKFLOWS: dict[str, dict[Any, Any]] = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES}
COMMENT = "pull-request-comment.yml"
every = pytest.mark.parametrize("name", WORKFLOWS)


def triggers(name: str) -> set[str]:
    on = WORKFLOWS[name][True]  # YAML 1.1 reads the key `on` as true
    return {on} if isinstance(on, str) else set(on)


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in WORKFLOWS[name]["jobs"].values() for step in job["steps"]]


def test_there_are_workflows() -> None:
    assert set(WORKFLOWS) == {"ci.yml", "pull-request.yml", COMMENT}


@every
def test_actions_of_others_are_pinned_by_digest(name: str) -> None:
    for step in steps(name):
        assert ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step.get("uses", "actions/x@" + 40 * "0"))
    for line in (ROOT / ".github/workflows" / name).read_text(encoding="utf-8").splitlines():
        if "uses:" in line:
            assert re.search(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), "a comment must name the version"
    for job in WORKFLOWS[name]["jobs"].values():
        assert "uses" not in job  # a workflow of another repository
        assert re.search(r"@sha256:[0-9a-f]{64}$", job.get("container", "x@sha256:" + 64 * "0"))


@every
def test_permissions_are_minimal(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {}
    (job,) = WORKFLOWS[name]["jobs"].values()
    least = {"actions": "read", "pull-requests": "write"} if name == COMMENT else {"contents": "read"}
    assert job["permissions"] == least
    assert job["timeout-minutes"] <= 90


@every
def test_no_expression_is_pasted_into_a_shell(name: str) -> None:
    for step in steps(name):
        assert "${{" not in step.get("run", "")
        assert not step.get("uses", "").startswith("actions/github-script")
        if "run" in step:
            subprocess.run(["bash", "-n"], input=step["run"], text=True, check=True)


@every
def test_a_job_that_may_write_runs_no_code_of_the_branch(name: str) -> None:
    assert "pull_request_target" not in triggers(name)
    if name == COMMENT:
        assert triggers(name) == {"workflow_run"}
        assert not [step for step in steps(name) if "uses" in step]
    else:
        assert "workflow_run" not in triggers(name)
        checkouts = [step for step in steps(name) if step.get("uses", "").startswith("actions/checkout@")]
        assert [step["with"]["persist-credentials"] for step in checkouts] == [False]
        assert "secrets." not in str(WORKFLOWS[name])


def test_they_run_the_documented_commands() -> None:
    runs = {name: "\n".join(step.get("run", "") for step in steps(name)) for name in WORKFLOWS}
    assert runs["ci.yml"].splitlines()[-1] == ".ci/run"
    assert 'python -m review.pull_request --out "$RUNNER_TEMP/report.md" -- "$BASE"' in runs["pull-request.yml"]
    assert "NIGHT=1\\nFAULTS_KILLS=100\\nHOSTS_FAULTS=100" in runs["ci.yml"]
    assert {"push", "pull_request", "schedule"} == triggers("ci.yml")
    assert WORKFLOWS[COMMENT][True]["workflow_run"]["workflows"] == [WORKFLOWS["pull-request.yml"]["name"]]


GH = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$CALLS"
case "$*" in
  "run download"*) if [ -f "$REPORT" ]; then cp --no-dereference "$REPORT" report.md; else exit 1; fi ;;
  *repos/o/r/pulls*) echo "$NUMBER" ;;
  *--paginate*) printf "$IDS" ;;
  *body=@comment.md) cp comment.md "$POSTED" ;;
esac
"""


def comment(tmp_path: Path, report: str | None, number: str = "7", ids: str = "") -> tuple[str, str]:
    """Run the script that posts the comment, with a fake `gh`; returns the calls of `gh` and the comment."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gh").write_text(GH, encoding="utf-8")
    (tmp_path / "bin/gh").chmod(0o755)
    if report is not None:
        (tmp_path / "report.md").write_text(report, encoding="utf-8")
    (step,) = steps(COMMENT)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),
        "CALLS": str(tmp_path / "calls"),
        "POSTED": str(tmp_path / "posted"),
        "REPORT": str(tmp_path / "report.md"),
        "NUMBER": number,
        "IDS": ids,
        **{"REPOSITORY": "o/r", "RUN": "5", "RUN_URL": "https://x/5", "HEAD": "$(touch x):;`id`", "SHA": "abc"},
    }
    subprocess.run(  # as GitHub runs `shell: bash`
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env=environment,
        check=True,
        cwd=tmp_path,
    )
    assert not (tmp_path / "x").exists()
    posted = tmp_path / "posted"
    return (tmp_path / "calls").read_text(encoding="utf-8"), posted.read_text() if posted.exists() else ""


def test_a_comment_is_posted(tmp_path: Path) -> None:
    calls, posted = comment(tmp_path, "### `work tree` is better\n\n| a |\n|---|\n| 1 |\n")
    assert "-f head=$(touch x):;`id`" in calls
    assert "--method POST repos/o/r/issues/7/comments" in calls
    assert posted.startswith("<!-- results of dvc repro -->\n### `work tree` is better\n\n| a |\n|---|\n| 1 |\n")
    assert posted.endswith("\nWritten by the code of abc: [run](https://x/5)\n")


def test_a_second_push_updates_the_comment(tmp_path: Path) -> None:
    calls, posted = comment(tmp_path, "### again\n", ids="11\\n12\\n")
    assert "--method PATCH repos/o/r/issues/comments/11 " in calls
    assert "POST" not in calls
    assert "### again" in posted


def test_a_report_cannot_link_embed_or_mention(tmp_path: Path) -> None:
    evil = "@all ![x](https://e.org/p.png) <img src=//e.org> </details> www.e.org fixes #12 <!-- \\<b>"
    _, posted = comment(tmp_path, evil)
    text = posted.splitlines()[1]
    assert text.replace("\u200b", "") == evil
    for markup in ("@all", "](", "://", "<img", "</", "www.", "#12", "<!--", "<b>"):
        assert markup not in text
    assert len(comment_of_size(tmp_path, 200_000)) < 65_536


def comment_of_size(tmp_path: Path, size: int) -> str:
    (tmp_path / "large").mkdir()
    return comment(tmp_path / "large", "x" * size)[1]


@pytest.mark.parametrize(("report", "number"), [(None, "7"), ("### a\n", "")])
def test_without_a_report_or_a_pull_request_nothing_is_posted(report: str | None, number: str, tmp_path: Path) -> None:
    calls, posted = comment(tmp_path, report, number)
    assert posted == ""
    assert "PATCH" not in calls
    assert "POST" not in calls


def test_a_report_that_points_elsewhere_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret of the runner", encoding="utf-8")
    (tmp_path / "report.md").symlink_to(tmp_path / "secret")
    assert comment(tmp_path, None)[1] == ""
