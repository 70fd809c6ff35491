"""`python -m review.pull_request` in fresh clones, as CI has them: a bare origin, a folder as DVC's remote, or none.

The pipeline is that of tests/toy.py, or one of two stages where records are forged; the last test runs the real one.
"""

import importlib.util
import json
import py_compile
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from integrity import rebuild
from integrity.only_one import only_one
from review import pull_request, rounding
from seeds.__main__ import RUNNING
from stages.common.errors import UserError
from tests import in_process, inside
from tests.clones import Clone
from tests.faults.lab import is_running, wait_for
from tests.forging import OTHER_MD5, forge, relock
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
    for package in ("stages", "review", "integrity"):
        (path / package).symlink_to(ROOT / package)
    (path / "data/processed").mkdir(parents=True)
    project.set()
    project.dvc("repro", "-q")
    project.commit("measured")
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
    """Exit status and output of `python -m review.pull_request … --out report.md`; it and its dvc in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuild, "repro", in_process.repro)
        status, told = inside.module_says(
            project.path, project.environment, "review.pull_request", "--out", "report.md", *arguments
        )
    assert "Traceback" not in told, told
    return status, told


def judge_as_program(project: Project | Clone, *arguments: str) -> tuple[int, str]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "review.pull_request", "--out", "report.md", *arguments]
    environment = project.environment
    done = subprocess.run(
        command, cwd=project.path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout


def report(project: Project | Clone) -> str:
    return (project.path / "report.md").read_text(encoding="utf-8")


def test_noise_passes_and_evaluate_alone_runs(author: Project, tmp_path: Path) -> None:
    ci = checkout(author, tmp_path / "ci", HOSTILE)
    base = f"main{HOSTILE}"
    ci.run("git", "branch", base, "origin/main")
    status, told = judge_as_program(ci, base)
    assert status == 0, told
    assert re.findall(r"Running stage '(\w+)'", told) == ["evaluate"]
    assert report(ci).startswith(f"### `work tree` against `{base.replace('`', chr(39))}`, one model against another; ")
    assert "McNemar's exact test" in report(ci)
    assert "> ran here: evaluate\n" in report(ci)
    assert "> what ran here gave the bytes that HEAD records: evaluate\n" in report(ci)
    assert "its predictions are those that its dvc.lock names, taken on trust; none of its stages ran\n" in report(ci)
    assert ci.run("git", "status", "--porcelain") == ""
    assert not [path for path in ci.path.iterdir() if path.name.startswith("x")]  # no shell ran a name


def test_a_lock_that_was_not_renewed_is_told_and_the_truth_compared(author: Project, tmp_path: Path) -> None:
    ci = checkout(author, tmp_path / "ci", "stale")
    status, told = judge(ci, "origin/main", "--seeds", "0")
    assert "Running stage 'evaluate'" in told
    line = (
        "stale: dvc.lock of HEAD was made from other inputs than HEAD's (params.yaml: train.skill): "
        "commit dvc.lock and metrics/ after `dvc repro`, and `dvc push`"
    )
    assert f"note: {line}\n" in told
    assert f"> {line}\n" in report(ci).replace("\\", "")
    assert status == 1  # by what the branch gives, not by the metrics it came with
    assert told.splitlines()[-1].startswith("failed: the branch is worse: accuracy ")
    assert report(ci).startswith(
        "### `work tree` against `origin/main`, one model against another; seeds not compared: worse\n"
    )


@pytest.mark.parametrize("url", ["../../nowhere", pytest.param("ssh://127.0.0.1:{free}/x", marks=pytest.mark.soak)])
def test_without_a_remote_both_sides_are_run(url: str, author: Project, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]  # nobody listens there after this block
    ci = checkout(author, tmp_path / "ci", "seed-1")
    ci.write(".dvc/config.local", f"['remote \"beside\"']\n    url = {url.format(free=free)}\n")
    status, told = judge(ci, "origin/main")
    assert status == 0, told
    assert told.count("Running stage 'evaluate'") == 2
    assert "rerunning origin/main: data/predictions.csv is not in the cache; remote " in told
    assert "McNemar's exact test" in report(ci)
    assert "> what ran here gave the bytes that HEAD records: evaluate\n" in report(ci)
    assert "> origin/main: ran here: evaluate\n" in report(ci)
    assert ("> nothing pulled, so everything was rerun: " in report(ci)) == url.startswith("ssh")


def test_a_base_that_went_on_and_metrics_of_another_lock(author: Project, tmp_path: Path) -> None:
    ci = checkout(author, tmp_path / "ci", "forgot")
    main = ci.run("git", "rev-parse", "origin/main").strip()
    ci.run("git", "branch", "base", ci.run("git", "commit-tree", f"{main}^{{tree}}", "-p", main, "-m", "on").strip())
    status, told = judge(ci, "base")
    assert status == 2
    assert report(ci).startswith(
        f"### `work tree` against `{main[:12]}`, one model against another; seeds not compared: within noise\n"
    )  # where the branch left it
    assert "note: not reproduced: metrics/evaluate.json of HEAD: committed file differs from dvc.lock\n" in told
    assert told.splitlines()[-1].startswith(
        "error: the committed results differ from what the stages produce: metrics/evaluate.json; commit dvc.lock and "
    )


def test_a_base_that_cannot_be(author: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ci = checkout(author, tmp_path / "ci", "seed-1")
    empty_tree = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"  # Git knows it without having it
    ci.run("git", "branch", "alone", ci.run("git", "commit-tree", empty_tree, "-m", "nothing").strip())
    monkeypatch.chdir(ci.path)
    for base, line in (
        (["nobody"], "unknown revision 'nobody'; allowed: a commit, branch, tag or experiment of this clone"),
        ([""], "the revision is empty"),
        (["--", "--upload-pack=touch x"], "unknown revision '--upload-pack=touch x'"),
        (["$(touch x)"], "unknown revision '$(touch x)'"),
        (["'; touch x; '"], "unknown revision "),
        (["alone"], "'alone' and HEAD have no common commit here; in a shallow clone, run `git fetch --unshallow`"),
    ):
        monkeypatch.setattr(sys, "argv", ["pull_request", "--out", "report.md", *base])
        with pytest.raises(UserError) as error:
            pull_request.main(pull_request.arguments())
        assert str(error.value).startswith(line)
        assert "\n" not in str(error.value)
        assert report(ci).startswith("### This branch could not be checked\n")
        (ci.path / "report.md").unlink()
    assert not (ci.path / "x").exists()


def test_a_stage_that_fails(author: Project, tmp_path: Path) -> None:
    ci = checkout(author, tmp_path / "ci", "seed-1")
    ci.write("toy.py", "raise SystemExit('error: no such toy')\n")
    status, told = judge(ci, "origin/main")
    assert status == 2
    assert "error: no such toy\n" in told
    assert told.splitlines()[-1] == "error: `dvc repro` failed, see above"
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
        "error: before: no metrics/*.json; run `dvc repro` there, and commit what it writes",
    )


def test_told_to_stop_it_ends_what_it_started(author: Project, tmp_path: Path) -> None:
    ci = checkout(author, tmp_path / "ci", "stale")
    ci.write("toy.py", "import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(300)\n")
    command = [sys.executable, "-m", "review.pull_request", "origin/main"]
    process = subprocess.Popen(command, cwd=ci.path, env=ci.environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    line = next(line for line in process.stdout if line.startswith("pid"))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=600)
    assert process.returncode == 143
    wait_for(lambda: not is_running(int(line.split()[1])), 600)  # the kernel takes a moment


TRAIN = """
import json, random
from pathlib import Path
skill = json.loads(Path("params.yaml").read_text())["train"]["skill"]
Path("data/model").mkdir(parents=True, exist_ok=True)
Path("data/processed/test").mkdir(parents=True, exist_ok=True)
labels = [random.Random(f"label {image}").choice("ab") for image in range(400)]
Path("data/processed/test/labels.json").write_text(json.dumps(labels))
Path("data/model/model.safetensors").write_text(json.dumps({"skill": skill}))
"""
EVALUATE = """
import json, random
from pathlib import Path
skill = json.loads(Path("data/model/model.safetensors").read_text())["skill"]
labels = json.loads(Path("data/processed/test/labels.json").read_text())
lines, errors = ["index,label,prediction,probability,p_a,p_b"], 0
for image, label in enumerate(labels):
    guess = label if random.Random(f"difficulty {image}").random() < skill else "ab"[label == "a"]
    errors += guess != label
    lines.append(f"{image},{label},{guess},0.9,{'0.9,0.1' if guess == 'a' else '0.1,0.9'}")
Path("metrics").mkdir(exist_ok=True)
Path("data/predictions.csv").write_text("\\n".join([*lines, ""]))
metrics = {"accuracy": 1 - errors / len(labels), "loss": 0.25, "errors": errors, "images": len(labels)}
Path("metrics/evaluate.json").write_text(json.dumps(metrics))
"""
PIPELINE = """
stages:
  train:
    cmd: python train.py
    deps: [train.py]
    params: [train]
    outs: [data/model/model.safetensors, data/processed/test]
  evaluate:
    cmd: python evaluate.py
    deps: [evaluate.py, data/model/model.safetensors, data/processed/test]
    outs: [data/predictions.csv]
    metrics:
      - metrics/evaluate.json:
          cache: false
"""
METRICS, PREDICTIONS, MODEL = "metrics/evaluate.json", "data/predictions.csv", "data/model/model.safetensors"
TRUST = "train was not rerun here: that this code trained this model is taken on trust; `--rebuild train` checks it"


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A pipeline of two stages that take a moment, run, committed and pushed, on the branch `honest` off main."""
    path = tmp_path_factory.mktemp("forged") / "author"
    project = begun(path, ignored="__pycache__/\n/report.md\n")
    project.run("git", "rm", "-q", "--cached", "--ignore-unmatch", "toy.py")
    (path / "toy.py").unlink()
    for name, content in (("train.py", TRAIN), ("evaluate.py", EVALUATE), ("dvc.yaml", PIPELINE)):
        project.write(name, content)
    project.write("params.yaml", json.dumps({"train": {"skill": 0.9}}))
    project.dvc("repro", "-q")
    project.commit("measured")
    project.dvc("push", "-q")
    project.run("git", "checkout", "-qb", "honest")
    return project


@pytest.fixture
def branch(honest: Project, tmp_path: Path) -> Project:
    """A copy of it, cache included, to forge; the remote is the same."""
    return honest.copy(tmp_path / "work/author")


Gate = Callable[..., tuple[int | str, list[str], str]]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Gate:
    """A function that judges the model of a branch against main's: status, or the error; notes; all it printed."""

    def pull(root: Path, environment: dict[str, str]) -> list[str]:
        assert in_process.pull(root, ["--run-cache", "--allow-missing"], environment) == 0
        return []

    def run(project: Project, *options: str) -> tuple[int | str, list[str], str]:
        monkeypatch.setattr(rebuild, "repro", in_process.repro)
        monkeypatch.setattr(pull_request, "pull", pull)
        for name, value in project.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(project.path)
        monkeypatch.setattr(sys, "argv", ["pull_request", "--out", "report.md", "--seeds", "0", *options, "main"])
        status: int | str
        try:
            status = pull_request.main(pull_request.arguments())
        except UserError as error:
            status = str(error)
        told = capfd.readouterr().out
        return status, re.findall(r"^note: (.*)$", told, re.MULTILINE), told

    return run


def commit_forged(project: Project, **contents: str) -> None:
    """Replace files and their records, and commit. contents: of metrics, predictions, model, or the code of a stage."""
    names = {"metrics": METRICS, "predictions": PREDICTIONS, "model": MODEL}
    forge(project, {names.get(name, f"{name}.py"): content for name, content in contents.items()})
    project.run("git", "commit", "-qam", "forged")


def perfect(project: Project) -> dict[str, str]:
    """Predictions that are all right, and metrics that say so."""
    lines = (project.path / PREDICTIONS).read_text(encoding="utf-8").splitlines()
    rows = [line.split(",") for line in lines[1:]]
    right = [f"{row[0]},{row[1]},{row[1]},0.9,{'0.9,0.1' if row[1] == 'a' else '0.1,0.9'}" for row in rows]
    metrics = {"accuracy": 1.0, "loss": 0.1, "errors": 0, "images": len(rows)}
    return {"predictions": "\n".join([lines[0], *right, ""]), "metrics": json.dumps(metrics)}


def commit_relocked(project: Project, change: Callable[[dict[str, Any]], object]) -> None:
    relock(project, change)
    project.run("git", "commit", "-qam", "forged")


def refused(*paths: str) -> str:
    return f"the committed results differ from what the stages produce: {', '.join(paths)}; {pull_request.REMEDY}"


def test_an_honest_branch(branch: Project, gate: Gate) -> None:
    branch.run("git", "commit", "-qm", "nothing", "--allow-empty")
    status, notes, _ = gate(branch)
    assert status == 0
    assert notes[:4] == [
        "ran here: evaluate",
        "not run here, taken on trust from the record: train",
        TRUST,
        "what ran here gave the bytes that HEAD records: evaluate",
    ]
    assert branch.run("git", "status", "--porcelain") == ""
    for option, ran in (("train", "train, evaluate"), ("all", "train, evaluate")):
        status, notes, _ = gate(branch, "--rebuild", option)
        assert status == 0
        assert notes[:2] == [f"ran here: {ran}", f"what ran here gave the bytes that HEAD records: {ran}"]
        assert branch.run("git", "status", "--porcelain") == ""


def test_variables_of_another_repository(branch: Project, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a hook of another repository has set: neither Git nor DVC, in this process or another, looks there."""
    (branch.path.parent / "other").mkdir()
    other = Project(branch.path.parent / "other")
    other.run("git", "init", "-q", "-b", "main")
    other.run("git", "commit", "-q", "--allow-empty", "-m", "other")
    commit_forged(branch, **perfect(branch))
    shutil.rmtree(branch.path / ".dvc/cache")
    branch.write(".dvc/config.local", "['remote \"beside\"']\n    url = ../../empty\n")
    branch.write("params.yaml", json.dumps({"train": {"skill": 0.95}}))
    before = other.run("git", "symbolic-ref", "HEAD"), other.run("git", "for-each-ref"), files(other.path / ".git")
    monkeypatch.setenv("GIT_DIR", str(other.path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other.path))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other.path / ".git/index"))
    _, notes, _ = gate(branch)
    assert "ran here: train, evaluate" in notes
    assert "main: ran here: train, evaluate" in notes  # in a clone, at another commit
    monkeypatch.undo()
    assert (other.run("git", "symbolic-ref", "HEAD"), other.run("git", "for-each-ref")) == before[:2]
    assert files(other.path / ".git") == before[2]


def files(folder: Path) -> dict[Path, bytes]:
    """The content of every file."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_forged_predictions_and_metrics(branch: Project, gate: Gate) -> None:
    """All on record: every prediction its label, metrics to match, a line appended to the code."""
    commit_forged(branch, **perfect(branch), train=TRAIN + "# augmented\n")
    status, notes, told = gate(branch)
    assert status == refused(PREDICTIONS, METRICS)
    assert f"not reproduced: {PREDICTIONS} of HEAD: rebuilt differs" in notes
    assert f"not reproduced: {METRICS} of HEAD: rebuilt differs" in notes
    assert TRUST in notes
    assert "work tree against main, one model against another; seeds not compared: within noise" in " ".join(
        told.split()
    )  # the verdict is of what ran here
    assert "what `dvc repro` gives" not in told


@pytest.mark.parametrize("stage", ["predictions", "metrics"])
def test_one_forged_file(stage: str, branch: Project, gate: Gate) -> None:
    commit_forged(branch, **{stage: perfect(branch)[stage]})
    path = PREDICTIONS if stage == "predictions" else METRICS
    status, notes, _ = gate(branch)
    assert status == refused(path)
    assert f"not reproduced: {path} of HEAD: rebuilt differs" in notes


def test_metrics_by_hand(branch: Project, gate: Gate) -> None:
    branch.write(METRICS, perfect(branch)["metrics"])
    branch.run("git", "commit", "-qam", "forged")
    status, notes, _ = gate(branch)
    assert status == refused(METRICS)
    assert f"not reproduced: {METRICS} of HEAD: committed file differs from dvc.lock" in notes


def test_a_forged_lock(branch: Project, gate: Gate) -> None:
    commit_relocked(branch, lambda stages: stages["evaluate"]["outs"][0].update(md5=OTHER_MD5))
    status, notes, _ = gate(branch)
    assert status == refused(PREDICTIONS)
    assert f"not reproduced: {PREDICTIONS} of HEAD: rebuilt differs" in notes


def test_a_lock_without_a_stage(branch: Project, gate: Gate) -> None:
    commit_relocked(branch, lambda stages: stages.pop("evaluate"))
    status, notes, _ = gate(branch)
    assert status == 0
    assert f"stale: dvc.lock of HEAD does not name {PREDICTIONS}, {METRICS}: {pull_request.REMEDY}" in notes


def test_a_forged_model(branch: Project, gate: Gate) -> None:
    """One that was trained otherwise, and evaluated: what the default takes on trust, and says so."""
    commit_forged(branch, model='{"skill": 0.99}')
    branch.dvc("repro", "-q", "--force", "--single-item", "evaluate")
    branch.run("git", "commit", "-qam", "evaluated")
    status, notes, told = gate(branch)
    assert status == 0
    assert "seeds not compared: better: " in " ".join(told.split())
    assert TRUST in notes
    status, notes, told = gate(branch, "--rebuild", "train")
    assert status == refused(MODEL, PREDICTIONS, METRICS)
    assert f"not reproduced: {MODEL} of HEAD: rebuilt differs" in notes
    assert "seeds not compared: within noise: " in " ".join(told.split())
    assert TRUST not in notes


def test_forged_code(branch: Project, gate: Gate) -> None:
    """Other code on record for the model that the old code gave."""
    commit_forged(branch, train=TRAIN.replace('["skill"]', '["skill"] - 0.5'))
    assert gate(branch)[0] == 0
    status, notes, _ = gate(branch, "--rebuild", "train")
    assert status == 1  # what the code gives is worse, which decides
    assert f"not reproduced: {MODEL} of HEAD: rebuilt differs" in notes


def test_code_that_was_not_run(branch: Project, gate: Gate) -> None:
    branch.write("evaluate.py", EVALUATE.replace("< skill", "< skill - 0.5"))
    branch.run("git", "commit", "-qam", "not run")
    status, notes, _ = gate(branch)
    assert status == 1
    assert (
        f"stale: dvc.lock of HEAD was made from other inputs than HEAD's (evaluate.py): {pull_request.REMEDY}" in notes
    )
    assert not [note for note in notes if note.startswith("not reproduced")]


def test_a_model_that_is_not_what_the_lock_names(branch: Project, gate: Gate) -> None:
    """DVC goes by the name of an object in its cache, and by its own notes on files."""
    model = branch.path / MODEL
    md5 = yaml.safe_load((branch.path / "dvc.lock").read_text(encoding="utf-8"))["stages"]["train"]["outs"][0]["md5"]
    cached = branch.path / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}"
    cached.chmod(0o644)
    cached.write_text('{"skill": 0.99}', encoding="utf-8")
    cached.chmod(0o444)  # DVC takes that for a sign that it is whole
    model.unlink()
    branch.dvc("checkout", "-q")
    assert model.read_text(encoding="utf-8") == '{"skill": 0.99}'
    assert gate(branch)[0] == f"{MODEL} is not what dvc.lock names, but DVC would use it: `make doctor` prints the fix"


def test_rounding_is_no_forgery(branch: Project, gate: Gate) -> None:
    """Another processor gave other last digits; but not other classes, nor other counts."""
    predictions = (branch.path / PREDICTIONS).read_text(encoding="utf-8").replace("0.9", "0.900001")
    metrics = (branch.path / METRICS).read_text(encoding="utf-8")
    commit_forged(branch, predictions=predictions, metrics=metrics.replace("0.25", "0.250001"))
    status, notes, _ = gate(branch)
    assert status == 0
    assert (
        f"only last digits differ here, and no predicted class: {PREDICTIONS}, {METRICS}: made on another machine?"
        in notes
    )
    for digits in (
        {"predictions": predictions.replace("0.900001", "0.95")},
        {"metrics": metrics.replace("0.25", "0.1")},
    ):
        commit_forged(branch, **{"predictions": predictions, "metrics": metrics, **digits})
        assert str(gate(branch)[0]).startswith("the committed results differ from what the stages produce: ")
        branch.run("git", "checkout", "-qf", "HEAD")


PICTURED = """
Path("metrics/plots").mkdir(exist_ok=True)
Path("metrics/plots/confusion.csv").write_text("label,prediction,images\\na,a,200\\n")
Path("metrics/plots/reliability.csv").write_text("images,confidence\\n200,0.5\\n")
Path("metrics/plots/overview.png").write_text("a picture")
"""


@pytest.mark.parametrize(
    ("path", "old", "new", "false"),
    [
        ("metrics/plots/overview.png", "a picture", "another", False),
        ("metrics/plots/reliability.csv", "0.5", "0.5004", False),
        ("metrics/plots/reliability.csv", "0.5", "0.6", True),
        ("metrics/plots/reliability.csv", "200", "201", True),
        ("metrics/plots/confusion.csv", "200", "201", True),
        (METRICS, "0.25", "0.2504", False),
        (METRICS, '"accuracy": 0.', '"accuracy": 0.0', True),
        (METRICS, '"images": 400', '"images": 401', True),
    ],
    ids=["picture", "reliability", "other reliability", "bin", "confusion", "loss", "accuracy", "images"],
)
def test_what_rounding_excuses(path: str, old: str, new: str, false: bool, branch: Project, gate: Gate) -> None:
    """With a probability that is a little different, as on another machine."""
    branch.write("evaluate.py", EVALUATE + PICTURED)
    plots = [f"metrics/plots/{name}" for name in ("confusion.csv", "reliability.csv", "overview.png")]
    branch.write(
        "dvc.yaml", PIPELINE + "    plots:\n" + "".join(f"      - {name}: {{cache: false}}\n" for name in plots)
    )
    branch.dvc("repro", "-q")
    for name, before, after in ((PREDICTIONS, "0.9", "0.9004"), (path, old, new)):
        content = (branch.path / name).read_text(encoding="utf-8")
        (branch.path / name).unlink()
        assert before in content
        branch.write(name, content.replace(before, after))
    branch.dvc("commit", "--force", "-q")
    branch.commit("forged")
    status, notes, _ = gate(branch)
    assert status == (refused(*sorted([PREDICTIONS, path], key=[PREDICTIONS, METRICS, *plots].index)) if false else 0)
    shown = PREDICTIONS if path.endswith(".png") else f"{PREDICTIONS}, {path}"
    line = f"only last digits differ here, and no predicted class: {shown}: made on another machine?"
    assert (line in notes) == (not false)
    pictures = f"pictures differ here, which this check cannot judge: {path}"
    assert (pictures in notes) == path.endswith(".png")


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ({"accuracy": 0.9, "loss": 0.25}, {"accuracy": 0.9, "loss": 0.2509}, True),
        (
            {"calibration_error": 0.1, "validation_loss": 1},
            {"calibration_error": 0.1001, "validation_loss": 1.001},
            True,
        ),
        ({"loss": 0.25}, {"loss": 0.2511}, False),
        ({"loss": 0.25}, {"loss": "0.25"}, False),
        ({"loss": 0.25}, {}, False),
        ({"accuracy": 0.9}, {"accuracy": 0.9001}, False),
        ({"accuracy_low": 0.9}, {"accuracy_low": 0.9001}, False),
        ({"classes": [{"f1": 0.9}]}, {"classes": [{"f1": 0.9001}]}, False),
        ({"macro": {"loss": 0.9}}, {"macro": {"loss": 0.9001}}, False),
        ({"without_temperature": {"loss": 0.9}}, {"without_temperature": {"loss": 0.9001}}, True),
        ({"without_temperature": {"loss": 0.9}}, {"without_temperature": {"loss": 0.9021}}, False),
        ({"without_temperature": {"loss": 0.9}}, {"without_temperature": 0.9}, False),
    ],
    ids=["loss", "others", "too far", "text", "gone", "accuracy", "interval", "class", "inside", *["temperature"] * 3],
)
def test_metrics_that_rounding_explains(before: dict[str, Any], after: dict[str, Any], same: bool) -> None:
    assert rounding.near_metrics(before, after) == same


@pytest.mark.parametrize(
    ("after", "same"),
    [
        ("i,l,p,p_1\n0,1,1,0.9009\n", True),
        ("i,l,p,p_1\n0,1,1,0.902\n", False),
        ("i,l,p,p_1\n0,1,1.0001,0.9\n", False),
        ("i,l,p,p_2\n0,1,1,0.9\n", False),
        ("i,l,p,p_1\n0,1,1,nan\n", False),
        ("i,l,p,p_1\n0,1,1\n", False),
        ("i,l,p,p_1\n", False),
        ("i,l,p,p_1\n0,1,1,0.9\n0,1,1,0.9\n", False),
    ],
    ids=["near", "far", "class", "column", "nan", "short row", "no rows", "more rows"],
)
def test_tables_that_rounding_explains(after: str, same: bool) -> None:
    assert rounding.near_tables(b"i,l,p,p_1\n0,1,1,0.9\n", after.encode(), exact=3) == same


@pytest.mark.parametrize(
    ("after", "same"),
    [("error 0.0497, 30 wrong", True), ("error 0.0512, 30 wrong", False), ("error 0.0497, 31 wrong", False)],
    ids=["near", "far", "count"],
)
def test_texts_that_rounding_explains(after: str, same: bool) -> None:
    assert rounding.near_texts(b"error 0.0496, 30 wrong", after.encode()) == same


def frozen(project: Project) -> None:
    project.write("dvc.yaml", PIPELINE.replace("  evaluate:", "  evaluate:\n    frozen: true"))


def renamed(project: Project) -> None:
    project.write("dvc.yaml", PIPELINE.replace("  evaluate:", "  measure:"))
    lock = (project.path / "dvc.lock").read_text(encoding="utf-8")
    project.write("dvc.lock", lock.replace("  evaluate:", "  measure:"))


def frozen_and_not_in_the_lock(project: Project) -> None:
    frozen(project)
    lock = yaml.safe_load((project.path / "dvc.lock").read_text(encoding="utf-8"))
    lock["stages"].pop("evaluate")
    project.write("dvc.lock", yaml.safe_dump(lock, sort_keys=False))


def by_another_stage(project: Project) -> None:
    """A stage called evaluate that writes something else."""
    renamed(project)
    content = (project.path / "dvc.yaml").read_text(encoding="utf-8")
    project.write("dvc.yaml", content + "  evaluate:\n    cmd: echo > data/nothing\n    outs: [data/nothing]\n")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (frozen, "evaluate is frozen: without it, nothing here shows whether the results are true"),
        (frozen_and_not_in_the_lock, "evaluate is frozen: without it, nothing here shows whether the results are true"),
        (renamed, "evaluate is not in dvc.yaml: without it, nothing here shows whether the results are true"),
        (by_another_stage, f"dvc.yaml: measure writes {METRICS}; evaluate must write it, because evaluate is what"),
    ],
    ids=["frozen", "not in the lock", "renamed", "another stage"],
)
def test_predictions_that_nothing_here_makes(
    change: Callable[[Project], object], line: str, branch: Project, gate: Gate
) -> None:
    commit_forged(branch, **perfect(branch))
    change(branch)
    branch.run("git", "commit", "-qam", "not run")
    assert str(gate(branch)[0]).startswith(line)


def test_metrics_that_no_stage_writes(branch: Project, gate: Gate) -> None:
    branch.write("metrics/final.json", '{"accuracy": 0.9999}')
    branch.commit("final")
    status, notes, _ = gate(branch)
    assert status == refused("metrics/final.json")
    assert "not reproduced: metrics/final.json of HEAD: no stage writes it" in notes


def test_no_stage_resumes(branch: Project, gate: Gate) -> None:
    """From a checkpoint that lies there, or that Git keeps."""
    planted = branch.path / "runs/resume/state"
    of_a_seed = branch.path / "runs/seeds/0/stages/train/__main__.py"
    for state in (planted, of_a_seed):
        state.parent.mkdir(parents=True)
        state.write_text('{"skill": 0.99}', encoding="utf-8")
    (branch.path / MODEL).unlink()
    resume = (
        'state = Path("runs/resume/state")\nif state.exists():\n    Path("data/model/model.safetensors").write_text('
    )
    branch.write("train.py", TRAIN + resume + "state.read_text())\n")
    branch.dvc("repro", "-q")
    branch.commit("better training")
    status, _, told = gate(branch, "--rebuild", "train")
    assert status == refused(MODEL, PREDICTIONS, METRICS)
    assert "runs/resume moved to runs/resume-before-check: what runs here starts from scratch\n" in told
    for state in (planted, of_a_seed):
        assert not state.exists()
        _, kind, *inside = state.relative_to(branch.path).parts
        assert (branch.path / "runs" / f"{kind}-before-check" / Path(*inside)).is_file()


def test_seeds_that_are_being_trained_are_left_alone(branch: Project, gate: Gate) -> None:
    with only_one(branch.path / RUNNING, ""):
        assert gate(branch)[0] == "`make seeds` is running in this folder: wait until it ends"
    assert (branch.path / RUNNING).exists()


def test_compiled_code_beside_the_sources(branch: Project, gate: Gate) -> None:
    """Ignored by Git, and taken for that of the source, whatever that holds."""
    branch.write("helper.py", "MORE = 0\n")
    (branch.path / "forged.py").write_text("MORE = 1\n", encoding="utf-8")
    cached = Path(importlib.util.cache_from_source(str(branch.path / "helper.py")))
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(branch.path / "forged.py"), str(cached), doraise=True, invalidation_mode=mode)
    (branch.path / "forged.py").unlink()
    branch.write(
        "evaluate.py", EVALUATE.replace("< skill", "< skill + helper.MORE").replace("import", "import helper,", 1)
    )
    branch.dvc("repro", "-q")
    branch.commit("tuned")
    assert json.loads((branch.path / METRICS).read_text(encoding="utf-8"))["errors"] == 0
    assert gate(branch)[0] == refused(PREDICTIONS, METRICS)


def test_code_in_place_of_an_installed_package(branch: Project, gate: Gate) -> None:
    branch.write("tqdm.py", "")
    assert str(gate(branch)[0]).startswith(
        "named like an installed package or a module of Python, and would replace it: tqdm.py"
    )


def test_a_report_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes before anything else: there is no repository either."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pull_request", "--out", "nowhere/report.md", "main"])
    with pytest.raises(UserError, match="^--out nowhere/report.md: .*; give a file in an existing folder"):
        pull_request.main(pull_request.arguments())


def test_why_nothing_was_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a program that crashed, the last line says why."""
    stderr = "Traceback (most recent call last):\n  File 'a'\nRuntimeError: no such host\n"
    done = subprocess.CompletedProcess([], 2, "", stderr)
    monkeypatch.setattr("stages.common.children.run", lambda *_, **__: done)
    assert pull_request.pull(tmp_path, {}) == ["nothing pulled, so everything was rerun: RuntimeError: no such host"]


def test_a_subfolder_of_a_repository(honest: Project, tmp_path: Path, gate: Gate) -> None:
    top = tmp_path / "mono"
    folder = top / "a[1]/digits"
    shutil.copytree(honest.path, folder, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    project = Project(folder)
    Project(top).run("git", "init", "-q", "-b", "main")
    (top / "dvc.lock").write_text("not that of the project", encoding="utf-8")
    for command in (["add", "--all"], ["commit", "-qm", "measured"], ["checkout", "-qb", "honest"]):
        project.run("git", *command)
    (top / "elsewhere").touch()
    Project(top).run("git", "add", "elsewhere")
    status, notes, _ = gate(project)
    assert status == 0
    assert notes[0] == "ran here: evaluate"  # and not that `elsewhere` was part of what was reproduced
    commit_forged(project, **perfect(project))
    assert gate(project)[0] == refused(PREDICTIONS, METRICS)
    project.write("params.yaml", json.dumps({"train": {"skill": 0.95}}))
    shutil.rmtree(folder / ".dvc/cache")
    project.write(".dvc/config.local", "['remote \"beside\"']\n    url = ../../empty\n")
    _, notes, _ = gate(project)
    assert "main: ran here: train, evaluate" in notes


def test_a_forged_base(branch: Project, gate: Gate) -> None:
    """Named where its predictions are there; nothing to compare with where they are not and its stages fail."""
    branch.run("git", "checkout", "-qf", "main")
    branch.write(METRICS, perfect(branch)["metrics"])
    branch.run("git", "commit", "-qam", "forged")
    branch.run("git", "checkout", "-qb", "later")
    branch.write(METRICS, branch.run("git", "show", "main~:metrics/evaluate.json"))
    branch.write("evaluate.py", EVALUATE + "# later\n")
    branch.dvc("repro", "-q")
    branch.run("git", "commit", "-qam", "honest again")
    status, notes, _ = gate(branch)
    assert status == 0
    assert any(note.startswith(f"main: does not match dvc.lock: {METRICS}") for note in notes)


def test_a_forged_base_that_cannot_be_run(branch: Project, gate: Gate) -> None:
    branch.run("git", "checkout", "-qf", "main")
    branch.write("evaluate.py", "raise SystemExit('no such data')\n")
    branch.write(METRICS, perfect(branch)["metrics"])
    commit_relocked(branch, lambda stages: stages["evaluate"]["outs"][0].update(md5=OTHER_MD5))
    branch.run("git", "checkout", "-qb", "later")
    branch.run("git", "checkout", "honest", "--", "dvc.lock", METRICS, "evaluate.py")
    branch.run("git", "commit", "-qm", "honest again")
    assert gate(branch)[0] == f"main: no results: {METRICS} is not what its dvc.lock names, and its stages fail"


def test_the_attack_of_another_clone(honest: Project, tmp_path: Path) -> None:
    """As programs of their own, from a hook of Git: the results are pulled, and the caller's repository stays."""
    path = tmp_path / "work/author"
    author = honest.copy(path)
    commit_forged(author, **perfect(author))
    author.dvc("push", "-q")
    author.run("git", "clone", "-q", str(path), str(path.parent / "ci"))
    ci = Project(path.parent / "ci")
    (ci.path / "stages").symlink_to(ROOT / "stages")
    hook = ci.path / ".git/hooks/pre-push"
    log = tmp_path / "log"
    hook.write_text(
        f'#!/bin/sh\n"{sys.executable}" -m review.pull_request origin/main > "{log}" 2>&1\n[ $? = 2 ]\n',
        encoding="utf-8",
    )
    hook.chmod(0o755)
    shutil.rmtree(author.path / ".dvc/cache")
    before = ci.run("git", "symbolic-ref", "HEAD") + ci.run("git", "ls-files", "--stage")
    ci.run("git", "push", "-q", "origin", "HEAD:refs/heads/other")
    told = log.read_text(encoding="utf-8")
    assert "Stage 'train' didn't change, skipping" in told
    assert f"note: not reproduced: {PREDICTIONS} of HEAD: rebuilt differs\n" in told
    assert f"error: {refused(PREDICTIONS, METRICS)}\n" in told
    assert ci.run("git", "symbolic-ref", "HEAD") + ci.run("git", "ls-files", "--stage") == before


@pytest.mark.soak
def test_the_real_stages(pipeline: Clone, tmp_path: Path) -> None:
    pipeline.run("git", "clone", "-q", str(pipeline.path), str(tmp_path / "work/ci"))
    ci = Clone(tmp_path / "work/ci")
    (tmp_path / "work/dvc-remote").symlink_to(pipeline.path.parent / "dvc-remote")
    ci.run("git", "checkout", "-qb", "sgd")
    ci.set("train.optimizer", "sgd")
    ci.commit("sgd, not run")
    status, told = judge_as_program(ci, "--seeds", "0", "origin/main")
    assert status == 1, told
    assert re.findall(r"Running stage '(\w+)'", told) == ["check", "train", "evaluate"]
    assert "McNemar's exact test" in report(ci)
    assert "stale: dvc.lock of HEAD was made from other inputs than HEAD's (params.yaml: train.optimizer" in told
    assert re.search(r"\nnote: not run here, taken on trust from the record: .*download, preprocess, weights\n", told)
