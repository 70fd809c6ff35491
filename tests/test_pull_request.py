"""`python -m stages.pull_request` in fresh clones, as CI has them: a bare origin, a folder as DVC's remote, or none.

The pipeline is that of tests/toy.py; the last test runs the real one.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages import pull_request
from stages.errors import UserError
from tests.clones import Clone
from tests.imports import ROOT
from tests.toy import Project, begun

HOSTILE = "$(touch${IFS}x);'a'&`touch${IFS}x`"  # a branch name that Git allows, and a shell would run


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone that pushed to a bare origin, and its results, but of the branches `stale` and `forgot`, to a folder.

    main; off it seed-1 (noise), worse (less skill), stale (worse, and not reproduced), forgot (metrics not committed).
    """
    path = tmp_path_factory.mktemp("pull-request") / "author"
    project = begun(path, ignored="__pycache__/\n/report.md\n")
    (path / "stages").symlink_to(ROOT / "stages")
    (path / "data/processed").mkdir(parents=True)
    project.set()
    project.dvc("repro", "-q")
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", "measured")
    project.branch("seed-1", train={"seed": 1})
    project.run("git", "branch", HOSTILE)
    project.branch("worse", train={"skill": 0.8})
    metrics = project.run("git", "show", "main:metrics/evaluate.json")
    project.run("git", "checkout", "-qb", "forgot", "seed-1")
    project.write("metrics/evaluate.json", metrics)
    project.run("git", "commit", "-qam", "the metrics of main, the lock of this branch")
    project.dvc("push", "-q", "--all-branches", "--run-cache")
    project.run("git", "checkout", "-qb", "stale", "main")
    project.set(train={"skill": 0.7})
    project.run("git", "commit", "-qam", "forgot to run it")
    project.run("git", "checkout", "-qf", "main")
    project.run("git", "clone", "-q", "--bare", ".", str(path.parent / "origin.git"))
    return project


def checkout(author: Project, path: Path, branch: str) -> Project:
    """A fresh clone of the origin, with this branch, and nothing of DVC's."""
    author.run("git", "clone", "-q", str(author.path.parent / "origin.git"), str(path))
    project = Project(path)
    project.environment["DVC_SITE_CACHE_DIR"] = str(path.parent / "site-cache")
    project.run("git", "checkout", "-q", branch, "--")
    return project


def judge(project: Project | Clone, *arguments: str) -> tuple[int, str]:
    """Exit status and all that `python -m stages.pull_request … --out report.md` printed."""
    command = [sys.executable, "-m", "stages.pull_request", "--out", "report.md", *arguments]
    environment = project.environment
    done = subprocess.run(
        command, cwd=project.path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout


def report(project: Project | Clone) -> str:
    return (project.path / "report.md").read_text(encoding="utf-8")


def test_noise_passes_and_nothing_runs(author: Project, tmp_path: Path) -> None:
    ci = checkout(author, tmp_path / "ci", HOSTILE)
    base = f"main{HOSTILE}"
    ci.run("git", "branch", base, "origin/main")
    status, told = judge(ci, base)
    assert status == 0, told
    assert "Running stage" not in told
    assert report(ci).startswith(f"### `work tree` against `{base.replace('`', chr(39))}`: within noise\n")
    assert "McNemar's exact test" in report(ci)
    assert "> dvc.lock and metrics of HEAD are what `dvc repro` gives\n" in report(ci)
    assert ci.run("git", "status", "--porcelain") == ""
    assert not [path for path in ci.path.iterdir() if path.name.startswith("x")]  # no shell ran a name


def test_a_lock_that_was_not_renewed_is_told_and_the_truth_compared(author: Project, tmp_path: Path) -> None:
    ci = checkout(author, tmp_path / "ci", "stale")
    status, told = judge(ci, "origin/main")
    assert "Running stage 'evaluate'" in told
    line = (
        "stale: dvc.lock of HEAD is of other inputs than HEAD has (params.yaml): commit dvc.lock and metrics/ after "
        "`dvc repro`, and `dvc push`"
    )
    assert f"note: {line}\n" in told
    assert f"> {line}\n" in report(ci).replace("\\", "")
    assert status == 1  # by what the branch gives, not by the metrics it came with
    assert told.splitlines()[-1].startswith("failed: the branch is worse: accuracy ")
    assert report(ci).startswith("### `work tree` is worse than `origin/main`\n")


@pytest.mark.parametrize("url", ["../../nowhere", "ssh://127.0.0.1:{free}/x"])
def test_without_a_remote_both_sides_are_run(url: str, author: Project, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]  # nobody listens there after this block
    ci = checkout(author, tmp_path / "ci", "seed-1")
    ci.write(".dvc/config.local", f"['remote \"beside\"']\n    url = {url.format(free=free)}\n")
    status, told = judge(ci, "origin/main")
    assert status == 0, told
    assert told.count("Running stage 'evaluate'") == 2
    assert "running origin/main again: data/predictions.csv is not in the cache, and the " in told
    assert "McNemar's exact test" in report(ci)
    assert "> dvc.lock and metrics of HEAD are what `dvc repro` gives\n" in report(ci)
    assert ("> nothing pulled, so run again: " in report(ci)) == url.startswith("ssh")


def test_a_base_that_went_on_and_metrics_of_another_lock(author: Project, tmp_path: Path) -> None:
    ci = checkout(author, tmp_path / "ci", "forgot")
    main = ci.run("git", "rev-parse", "origin/main").strip()
    ci.run("git", "branch", "base", ci.run("git", "commit-tree", f"{main}^{{tree}}", "-p", main, "-m", "on").strip())
    status, told = judge(ci, "base")
    assert status == 0
    assert report(ci).startswith(f"### `work tree` against `{main[:12]}`: within noise\n")  # where the branch left it
    assert "note: stale: not what dvc.lock of HEAD names: metrics/evaluate.json: commit dvc.lock and metrics/" in told


def test_a_base_that_cannot_be(author: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ci = checkout(author, tmp_path / "ci", "seed-1")
    empty_tree = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"  # Git knows it without having it
    ci.run("git", "branch", "alone", ci.run("git", "commit-tree", empty_tree, "-m", "nothing").strip())
    monkeypatch.chdir(ci.path)
    for base, line in (
        (["nobody"], "unknown revision 'nobody'; allowed: a commit, branch, tag or experiment that is here"),
        ([""], "the revision is empty"),
        (["--", "--upload-pack=touch x"], "unknown revision '--upload-pack=touch x'"),
        (["$(touch x)"], "unknown revision '$(touch x)'"),
        (["'; touch x; '"], "unknown revision "),
        (["alone"], "'alone' and HEAD have no commit in common here; of a shallow clone, `git fetch --unshallow`"),
    ):
        monkeypatch.setattr(sys, "argv", ["pull_request", "--out", "report.md", *base])
        with pytest.raises(UserError) as error:
            pull_request.main(pull_request.arguments())
        assert str(error.value).startswith(line)
        assert "\n" not in str(error.value)
        assert report(ci).startswith("### What this branch gives could not be told\n")
        (ci.path / "report.md").unlink()
    assert not (ci.path / "x").exists()


def test_a_stage_that_fails(author: Project, tmp_path: Path) -> None:
    ci = checkout(author, tmp_path / "ci", "seed-1")
    ci.write("toy.py", "raise SystemExit('error: no such toy')\n")
    status, told = judge(ci, "origin/main")
    assert status == 2
    assert "error: no such toy\n" in told
    assert told.splitlines()[-1] == "error: `dvc repro` failed; what it says is above"
    assert "`dvc repro` failed" in report(ci)


def test_a_base_that_has_measured_nothing(author: Project, tmp_path: Path) -> None:
    ci = checkout(author, tmp_path / "ci", "seed-1")
    for name in ("metrics/evaluate.json", "dvc.lock"):
        ci.run("git", "rm", "-q", name)
    ci.run("git", "commit", "-qm", "no results")
    ci.run("git", "branch", "before")
    status, told = judge(ci, "before")
    assert (status, told.splitlines()[-1]) == (
        2,
        "error: before: no metrics/*.json there; run `dvc repro` there, and commit what it writes",
    )


def test_told_to_stop_it_ends_what_it_started(author: Project, tmp_path: Path) -> None:
    ci = checkout(author, tmp_path / "ci", "stale")
    ci.write("toy.py", "import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(300)\n")
    command = [sys.executable, "-m", "stages.pull_request", "origin/main"]
    process = subprocess.Popen(command, cwd=ci.path, env=ci.environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    line = next(line for line in process.stdout if line.startswith("pid"))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    deadline = time.monotonic() + 30
    while running(int(line.split()[1])):  # the kernel takes a moment
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_real_stages(pipeline: Clone, tmp_path: Path) -> None:
    pipeline.run("git", "clone", "-q", str(pipeline.path), str(tmp_path / "work/ci"))
    ci = Clone(tmp_path / "work/ci")
    (tmp_path / "work/dvc-remote").symlink_to(pipeline.path.parent / "dvc-remote")
    ci.run("git", "checkout", "-qb", "sgd")
    ci.set("train.optimizer", "sgd")
    ci.commit("sgd, not run")
    status, told = judge(ci, "origin/main")
    assert status == 1, told
    assert re.findall(r"Running stage '(\w+)'", told) == ["train", "evaluate"]
    assert "McNemar's exact test" in report(ci)
    assert "stale: dvc.lock of HEAD is of other inputs than HEAD has (params.yaml)" in told
