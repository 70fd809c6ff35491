"""`make verify` on repositories that somebody has forged, and in every place that a repository can be in.

The pipeline has two stages that take a moment; the last test rebuilds the real one.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from integrity import git, hidden_code, rebuild, verify
from stages.common import paths
from stages.common.errors import UserError
from tests import in_process
from tests.clones import Clone
from tests.faults.lab import is_running, wait_for
from tests.forging import OTHER_MD5, entry, forge, relock
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
    """The pipeline, run and committed, in a folder that may lie below the top of a Git repository."""
    project = Project(path)
    project.environment["DVC_NO_ANALYTICS"] = "1"  # analytics would leave a file
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
    """The pipeline, run and committed; tests must not change it."""
    path = tmp_path_factory.mktemp("verify") / "project"
    path.mkdir()
    Project(path).run("git", "init", "-q", "-b", "main")
    return pipeline_in(path)


@pytest.fixture
def project(measured: Project, tmp_path: Path) -> Project:
    """A copy of it, with its cache, that tests may change."""
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
    """A function that runs verify in a folder; returns the exit status and the output, without DVC's lines."""

    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)

    def run(folder: Path) -> tuple[int, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["verify"])
        status = verify.main()
        assert list(temporary.iterdir()) == []
        output = capfd.readouterr().out
        return status, output[output.index("\nstage ") :]

    return run


Verified = Callable[[Path], tuple[int, str]]


def rows(output: str) -> dict[str, str]:
    """The rows of the table whose artifact is not identical: name -> problem."""
    table = output.strip().split("\n\n")[0].splitlines()[1:]
    split = [re.split(r"\s{2,}", line, maxsplit=2) for line in table]
    return {artifact: problem for _, artifact, problem in split if problem != "identical"}


def files(folder: Path) -> dict[str, tuple[bytes | None, int]]:
    """The content and time of every file and folder, including those of Git and DVC."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else None, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def test_the_same_bytes_and_nothing_written(project: Project, verified: Verified) -> None:
    before = files(project.path)
    status, output = verified(project.path)
    assert status == 0
    assert rows(output) == {}
    assert re.search(r"\nidentical: 5 artifacts of \w{12}, rebuilt from nothing in \d+ s\n$", output)
    assert files(project.path) == before  # on a read-only file system it works, then


def link(project: Project, path: str, target: str) -> None:
    """Replace a file in Git by a symbolic link."""
    (project.path / path).unlink()
    (project.path / path).symlink_to(target)


METRICS = "metrics/evaluate.json"
PERFECT = '{"accuracy": 1.0, "errors": 0}'

RESUME = """
checkpoint = Path("runs/resume/state")
if checkpoint.exists():
    Path("data/model/model.safetensors").write_text(checkpoint.read_text())
"""


def added(project: Project, path: str, content: str) -> None:
    """Commit a new file, even if Git ignores its path."""
    (project.path / path).parent.mkdir(parents=True, exist_ok=True)
    project.write(path, content)
    project.run("git", "add", "--force", path)


def resumed(project: Project) -> None:
    """Commit a checkpoint, from which train takes its model."""
    added(project, "runs/resume/state", "trained elsewhere")
    project.write("train.py", TRAIN + RESUME)
    project.dvc("repro", "-q")


FORGERIES: dict[str, tuple[Callable[[Project], object], dict[str, str]]] = {
    "model": (
        lambda project: forge(project, {"data/model/model.safetensors": "trained elsewhere"}),
        {"data/model/model.safetensors": "rebuilt differs"},
    ),
    "predictions": (
        lambda project: forge(project, {"data/predictions.csv": "all right"}),
        {"data/predictions.csv": "rebuilt differs"},
    ),
    "metrics by hand": (
        lambda project: project.write(METRICS, PERFECT),
        {METRICS: "committed file differs from dvc.lock"},
    ),
    "metrics and lock": (
        lambda project: forge(project, {METRICS: PERFECT}),
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
        lambda project: link(project, METRICS, "../evaluate.py"),
        {METRICS: "committed file differs from dvc.lock"},
    ),
    "lock of metrics": (
        lambda project: relock(project, lambda stages: entry(stages["evaluate"], METRICS).update(md5=OTHER_MD5)),
        {METRICS: "dvc.lock differs from the committed and the rebuilt file"},
    ),
    "lock of a folder": (
        lambda project: relock(
            project,
            lambda stages: [entry(stages[name], "data/folder").update(md5=f"{OTHER_MD5}.dir") for name in stages],
        ),
        {"data/folder": "rebuilt differs"},
    ),
    "lock of a file that the next stage reads": (
        lambda project: relock(
            project, lambda stages: entry(stages["evaluate"], "data/model/model.safetensors").update(md5=OTHER_MD5)
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
        {f"{path} (input)": "in dvc.lock, but not in dvc.yaml" for path in ("data/predictions.csv", METRICS)}
        | {"metrics/plots/curve.csv (input)": "in dvc.lock, but not in dvc.yaml"},
    ),
    "lock of other code": (
        lambda project: relock(project, lambda stages: entry(stages["train"], "train.py").update(md5=OTHER_MD5)),
        {"train.py (input)": "differs from dvc.lock"},
    ),
    "lock without code": (
        lambda project: relock(project, lambda stages: stages["train"]["deps"].pop(0)),
        {"train.py (input)": "missing in dvc.lock"},
    ),
    "lock of a file that no stage reads": (
        lambda project: relock(
            project, lambda stages: stages["train"]["deps"].append({"path": "x", "hash": "md5", "md5": OTHER_MD5})
        ),
        {"x (input)": "in dvc.lock, but not in dvc.yaml"},
    ),
    "lock of another command": (
        lambda project: relock(project, lambda stages: stages["train"].update(cmd="python other.py")),
        {"command (input)": "differs from dvc.lock"},
    ),
    "lock of other parameters": (
        lambda project: relock(project, lambda stages: stages["evaluate"]["params"]["params.yaml"].update(evaluate=5)),
        {"params.yaml: evaluate.bins (input)": "differs from dvc.lock"}
        | {"params.yaml: evaluate (input)": "differs from dvc.lock"},
    ),
    "code": (
        lambda project: project.write("evaluate.py", EVALUATE + "# appended\n"),
        {"evaluate.py (input)": "differs from dvc.lock"},
    ),
    "code, on record": (
        lambda project: forge(project, {"evaluate.py": EVALUATE.replace("0.9", "0.95")}),
        {METRICS: "rebuilt differs"},
    ),
    "metrics that no stage writes": (
        lambda project: added(project, "metrics/final.json", PERFECT),
        {"metrics/final.json": "no stage writes it"},
    ),
    "a checkpoint to resume from": (
        lambda project: resumed(project),
        {"data/model/model.safetensors": "rebuilt differs", "data/predictions.csv": "rebuilt differs"},
    ),
    "a stage that only claims to run": (
        lambda project: forge(project, {"evaluate.py": "print('Running')\n"}),
        {},
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_found(name: str, project: Project, verified: Verified, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "repro", in_process.repro)
    change, named = FORGERIES[name]
    change(project)
    project.run("git", "commit", "-qam", name)
    if not named:
        with pytest.raises(UserError, match=r"`dvc repro` failed"):
            verified(project.path)
        return
    status, output = verified(project.path)
    assert status == 1
    assert rows(output) == named
    last = output.splitlines()[-1]
    artifacts = [artifact for artifact in named if not artifact.endswith("(input)")]
    assert set(last.removeprefix("different: ").split(", ")) == set(artifacts or ["dvc.lock"])
    inputs = [artifact.removesuffix(" (input)") for artifact in named if artifact.endswith("(input)")]
    assert not inputs or "dvc.lock was made from other code or inputs than HEAD's: " in output
    assert all(name in output for name in inputs)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda project: project.write("dvc.lock", "schema: '2.0'\nstages: [\n"), "HEAD: dvc.lock: not valid YAML"),
        (lambda project: project.run("git", "rm", "-q", "dvc.lock"), "HEAD: dvc.lock has no stages; `dvc repro`"),
        (
            lambda project: relock(project, lambda stages: stages["train"]["outs"].append(stages["train"]["outs"][0])),
            "HEAD: dvc.lock lists data/folder twice",
        ),
        (
            lambda project: relock(project, lambda stages: stages["train"]["outs"][0].update(path="../../victim")),
            "HEAD: dvc.lock lists an output outside of the project: ../../victim",
        ),
        (
            lambda project: project.write("dvc.yaml", PIPELINE.replace("  evaluate:", "  evaluate:\n    frozen: true")),
            "HEAD: dvc.yaml: evaluate is frozen, so it would not run; remove `frozen: true`",
        ),
        (lambda project: added(project, "stages/__pycache__/a.cpython-311.pyc", ""), "compiled code, which Python may"),
        (lambda project: added(project, "tqdm/__init__.py", ""), "named like an installed package or a module of"),
    ],
    ids=["cut off", "deleted", "twice", "outside", "frozen", "compiled", "shadowing"],
)
def test_a_commit_that_cannot_be_verified(
    change: Callable[[Project], object], complaint: str, project: Project, verified: Verified, temporary: Path
) -> None:
    (temporary / "victim").touch()  # from the clone: ../../victim, or ../victim of its folder
    change(project)
    project.run("git", "commit", "-qam", "change")
    with pytest.raises(UserError, match="^" + re.escape(complaint)):
        verified(project.path)
    assert [path.name for path in temporary.iterdir()] == ["victim"]


@pytest.mark.parametrize(
    ("path", "in_git", "refused"),
    [
        ("__pycache__/train.cpython-311.pyc", True, "compiled code.*: __pycache__/train.cpython-311.pyc;"),
        ("review/a.pyo", True, r"compiled code.*: review/a.pyo;"),
        ("stages/train/batches.cpython-311-x86_64-linux-gnu.so", False, "compiled code.*: stages/train/batches"),
        ("tqdm.py", True, r"named like.*: tqdm\.py;"),
        ("tqdm.py", False, r"named like.*: tqdm\.py;"),
        ("numpy.cpython-311-x86_64-linux-gnu.so", False, r"named like.*: numpy\.cpython"),
        ("json/__init__.py", False, "named like.*: json;"),
        ("ruamel/yaml/__init__.py", False, "named like.*: ruamel;"),  # the installed ruamel has no __init__
        ("sitecustomize.py", False, "named like.*: sitecustomize.py;"),
        ("stages/__pycache__/a.cpython-311.pyc", False, ""),  # left by a run
        ("venv/lib/a.py", False, ""),  # named like a package of Python, which is found first
        ("tools/json.py", True, ""),
        ("tqdm.md", True, ""),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
def test_code_that_would_replace_other_code(path: str, in_git: bool, refused: str, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    project.run("git", "init", "-q")
    added(project, path, "")
    if not in_git:
        project.run("git", "rm", "-q", "--cached", path)
    if not refused:
        hidden_code.refuse(project.path)
        return
    with pytest.raises(UserError, match=f"^{refused}") as error:
        hidden_code.refuse(project.path)
    assert "\n" not in str(error.value)


def state(project: Project) -> str:
    """HEAD, the branches and the index."""
    return (
        project.run("git", "symbolic-ref", "HEAD")
        + project.run("git", "for-each-ref")
        + project.run("git", "ls-files", "--stage")
    )


HOOK = """#!/bin/sh
exec "{python}" -m integrity.verify > "{log}" 2>&1
"""


@pytest.mark.parametrize(
    "worktree", [pytest.param(False, id="clone", marks=pytest.mark.night), pytest.param(True, id="linked worktree")]
)
def test_git_hooks(worktree: bool, project: Project, tmp_path: Path) -> None:
    """Run by pre-commit and pre-push, verify changes nothing in the repository of the hook."""
    hooks, log = project.path / ".git/hooks", tmp_path / "log"
    project.run("git", "init", "-q", "--bare", str(tmp_path / "origin.git"))
    if worktree:
        project.run("git", "worktree", "add", "-q", "-b", "linked", str(tmp_path / "linked"))
        project = Project(tmp_path / "linked")
    project.environment["TMPDIR"] = str(tmp_path)
    for name in ("pre-commit", "pre-push"):
        (hooks / name).write_text(HOOK.format(python=sys.executable, log=log), encoding="utf-8")
        (hooks / name).chmod(0o755)
    project.write("note.txt", "new")
    project.run("git", "add", "note.txt")
    before = state(project)
    project.run("git", "commit", "-qm", "with a hook")
    assert "identical: 5 artifacts" in log.read_text(encoding="utf-8")
    assert "note: the work tree differs from HEAD" in log.read_text(encoding="utf-8")
    assert project.run("git", "diff", "--name-only", "HEAD~", "HEAD").split() == ["note.txt"]
    assert state(project).splitlines()[0] == before.splitlines()[0]
    assert project.run("git", "ls-files", "--stage") in before
    log.unlink()
    before = state(project)
    project.run("git", "push", "-q", str(tmp_path / "origin.git"), "HEAD")
    assert "identical: 5 artifacts" in log.read_text(encoding="utf-8")
    assert state(project) == before


def test_variables_of_another_repository(project: Project, verified: Verified, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no effect; Git's variables that hold configuration, such as safe.directory, have."""
    (project.path.parent / "other").mkdir()
    other = Project(project.path.parent / "other")
    other.run("git", "init", "-q", "-b", "main")
    other.run("git", "commit", "-q", "--allow-empty", "-m", "other")
    before = state(other)
    monkeypatch.setenv("GIT_DIR", str(other.path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other.path))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other.path / ".git/index"))
    monkeypatch.setenv("GIT_PREFIX", "sub/")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.quotePath")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "false")
    forge(project, {"data/predictions.csv": "all right"})  # this process reads the file, to compare the predictions
    monkeypatch.delenv("GIT_DIR")
    project.run("git", "commit", "-qam", "forged")
    monkeypatch.setenv("GIT_DIR", str(other.path / ".git"))
    status, output = verified(project.path)
    assert status == 1
    assert rows(output) == {"data/predictions.csv": "rebuilt differs"}
    assert state(other) == before


@pytest.mark.parametrize("name", [pytest.param("models/digits", marks=pytest.mark.night), "a[1]/*b ü'#"])
def test_a_subfolder_of_a_repository(name: str, tmp_path: Path, verified: Verified) -> None:
    top = tmp_path / "mono"
    (top / name).mkdir(parents=True)
    Project(top).run("git", "init", "-q", "-b", "main")
    project = pipeline_in(top / name)
    (top / "dvc.lock").write_text("not that of the project", encoding="utf-8")
    assert verified(project.path)[0] == 0
    project.write(METRICS, PERFECT)
    project.run("git", "commit", "-qam", "forged")
    status, output = verified(project.path)
    assert status == 1
    assert rows(output) == {METRICS: "committed file differs from dvc.lock"}


def test_a_submodule(measured: Project, tmp_path: Path, verified: Verified) -> None:
    (tmp_path / "super").mkdir()
    outer = Project(tmp_path / "super")
    outer.run("git", "init", "-q")
    outer.run("git", "-c", "protocol.file.allow=always", "submodule", "-q", "add", str(measured.path), "digits")
    assert verified(outer.path / "digits")[0] == 0


@pytest.mark.parametrize("option", ["--depth=1", "--filter=blob:none", "--no-single-branch"])
def test_clones_that_lack_objects(option: str, measured: Project, tmp_path: Path, verified: Verified) -> None:
    measured.run("git", "config", "uploadpack.allowFilter", "true")
    clone = Project(tmp_path / "clone")
    measured.run("git", "clone", "-q", option, f"file://{measured.path}", str(clone.path))
    assert verified(clone.path)[0] == 0


def test_a_clone_that_lacks_what_is_needed(measured: Project, tmp_path: Path) -> None:
    origin, partial, shallow = tmp_path / "origin", tmp_path / "partial", tmp_path / "shallow"
    measured.run("git", "clone", "-q", "--bare", str(measured.path), str(origin))
    measured.run("git", "-C", str(origin), "config", "uploadpack.allowFilter", "true")
    measured.run("git", "clone", "-q", "--no-checkout", "--filter=blob:none", f"file://{origin}", str(partial))
    measured.run("git", "clone", "-q", "--depth=1", f"file://{origin}", str(shallow))
    origin.rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"; this clone is partial, `git fetch --refetch --no-filter` completes it$"):
        git.clone(partial, "HEAD", tmp_path / "a")
    with pytest.raises(UserError, match=r"; this clone is shallow, `git fetch --unshallow` completes it$"):
        git.clone(shallow, 40 * "1", tmp_path / "b")
    (tmp_path / "away").rename(origin)
    assert (git.clone(partial, "HEAD", tmp_path / "c") / "dvc.lock").is_file()
    Project(partial).run("git", "fetch", "-q", "--refetch", "--no-filter")
    origin.rename(tmp_path / "away")
    assert (git.clone(partial, "HEAD", tmp_path / "d") / "dvc.lock").is_file()


def test_a_checkout_that_lacks_files(measured: Project, tmp_path: Path) -> None:
    """Git 2.39 exits with status 0 if it cannot read an object."""
    damaged = Project(tmp_path / "damaged")
    measured.run("git", "clone", "-q", "--no-hardlinks", str(measured.path), str(damaged.path))
    blob = damaged.run("git", "rev-parse", "HEAD:metrics/evaluate.json").strip()
    (damaged.path / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(UserError, match=r"^git checkout: "):
        git.clone(damaged.path, "HEAD", tmp_path / "clone")


def test_no_repository(project: Project, verified: Verified) -> None:
    shutil.rmtree(project.path / ".git")
    with pytest.raises(UserError, match=r"is in no Git repository \(a ZIP file, .*`git init && git add --all") as error:
        verified(project.path)
    assert "\n" not in str(error.value)
    project.run("git", "init", "-q")
    with pytest.raises(UserError, match=r"has no commit yet: `git add --all && git commit`"):
        verified(project.path)
    shutil.rmtree(project.path / ".dvc")
    with pytest.raises(UserError, match=r"is in no DVC repository: run this in the project's folder"):
        verified(project.path)


@pytest.mark.skipif(os.getuid() != 0, reason="gives the files to another user")
def test_a_clone_of_another_user(project: Project, verified: Verified, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in [project.path, *project.path.rglob("*")]:
        os.chown(path, 54321, 54321, follow_symlinks=False)
    config = project.path.parent / "gitconfig"
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    line = r"^git .*: .* belongs to another user; to trust it: (git config --global --add safe\.directory \S+)$"
    for _ in range(2):  # Git suggests one command for the folder, and then one for .git in it
        with pytest.raises(UserError, match=line) as error:
            verified(project.path)
        remedy = re.fullmatch(line, str(error.value))
        assert remedy
        subprocess.run(remedy[1].split(), check=True)
    assert verified(project.path)[0] == 0


@pytest.mark.parametrize(
    "signum",
    [signal.SIGHUP, *(pytest.param(each, marks=pytest.mark.night) for each in (signal.SIGTERM, signal.SIGINT))],
    ids=["HUP", "TERM", "INT"],
)
def test_a_signal_leaves_nothing_behind(signum: signal.Signals, project: Project, temporary: Path) -> None:
    """Neither files nor processes, although the stage ignores the signal."""
    project.write("train.py", STUBBORN)
    project.run("git", "commit", "-qam", "a stage that takes long")
    process = subprocess.Popen(
        [sys.executable, "-m", "integrity.verify"],
        cwd=project.path,
        env={**project.environment, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    stage = next(int(line.split()[1]) for line in process.stdout if line.startswith("pid"))
    process.send_signal(signum)
    output, _ = process.communicate(timeout=600)
    assert output.endswith("interrupted: nothing is left behind\n")
    assert process.returncode in (128 + signum, 130)
    assert list(temporary.iterdir()) == []
    wait_for(lambda: not is_running(stage), 30)


STUBBORN = """
import os, signal, time
for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(each, lambda *_: None)
print("pid", os.getpid(), flush=True)
time.sleep(300)
"""


def verify_the_real_stages(clone: Clone, temporary: Path) -> tuple[int, str]:
    """Exit status and output of `python -m integrity.verify`."""
    done = subprocess.run(
        [sys.executable, "-m", "integrity.verify"],
        cwd=clone.path,
        env={**clone.environment, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert list(temporary.iterdir()) == []
    return done.returncode, done.stdout


@pytest.mark.soak
def test_the_real_stages(clone: Clone, tmp_path: Path) -> None:
    before = files(clone.path)
    status, output = verify_the_real_stages(clone, tmp_path)
    assert status == 0, output
    assert re.search(r"\nidentical: \d+ artifacts of \w{12}, rebuilt from nothing in \d+ s\n$", output)
    assert "environment: as recorded with the commit" in output
    assert files(clone.path) == before


@pytest.mark.night
def test_the_real_stages_with_a_lock_of_other_parameters(clone: Clone, tmp_path: Path) -> None:
    clone.run("git", "checkout", "-qb", "other")
    clone.set("train.seed", "1")  # with the old dvc.lock
    recorded = clone.path / paths.ENVIRONMENT / "train.json"
    content = recorded.read_text(encoding="utf-8").replace('"device": "cpu"', '"device": "abacus"')
    recorded.write_text(content, encoding="utf-8")
    clone.commit("a lock of other parameters")
    status, output = verify_the_real_stages(clone, tmp_path)
    assert status == 1, output
    assert "dvc.lock was made from other code or inputs than HEAD's: params.yaml: train.seed\n" in output
    assert "diverged: train is the first stage whose rebuilt bytes differ from the record" in output
    assert re.search(r"preprocess +data/processed/train +identical", output)
    assert re.search(r"train +params.yaml: train.seed \(input\) +differs from dvc.lock", output)
    assert re.search(r"model.safetensors: [\d,]+ weights differ, 1\.\d\.weight by at most 0\.\d+", output)
    assert re.search(r"predictions.csv: \d+ of 10,000 predicted classes changed", output)
    assert re.search(r"metrics/evaluate.json: accuracy 0\.\d+ -> 0\.\d+ \([+-]0\.\d+\)", output)
    assert "environment of train: device abacus there, cpu here" in output
