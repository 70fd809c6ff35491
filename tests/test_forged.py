"""Results that somebody changed by hand, or that belong to other code: compare and report name what does not fit.

Where all files agree with each other nothing can be seen without running the stages; then the text claims no more.
"""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from dvc.repo import Repo

from integrity import revisions, snapshots
from review import compare, report
from stages.common.digests import file_md5
from tests.forging import OTHER_MD5, cached, entry, relock, replace
from tests.toy import PIPELINE, TOY, Project, begun

Patch = pytest.MonkeyPatch
Out = pytest.CaptureFixture[str]

MODEL, PREDICTIONS, METRICS = "data/model/model.safetensors", "data/predictions.csv", "metrics/evaluate.json"
STAGES = PIPELINE.replace("deps: [toy.py]", f"deps: [toy.py, code, {MODEL}]").replace(
    "stages:",
    "stages:\n  train:\n    cmd: mkdir -p data/model && cat code/*.py > "
    f"{MODEL}\n    deps: [code]\n    outs: [{MODEL}]",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A committed run of train and evaluate; their code is a folder."""
    project = begun(tmp_path_factory.mktemp("forged") / "project", ignored="__pycache__/\n")
    project.write("dvc.yaml", STAGES)
    project.write(".dvcignore", "__pycache__/\n")
    (project.path / "code/inner").mkdir(parents=True)
    for name in ("code/loop.py", "code/steps.py", "code/inner/layer.py"):
        project.write(name, f"# {name}\n")
    project.set()
    project.dvc("repro", "-q")
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", "measured")
    return project


@pytest.fixture
def project(trained: Project, monkeypatch: Patch) -> Iterator[Project]:
    """The run, restored after each test."""
    for name in [name for name in os.environ if name.startswith(("GIT_", "DVC_"))]:
        monkeypatch.delenv(name)
    for name in ("DVC_SITE_CACHE_DIR", "GIT_CONFIG_GLOBAL"):
        monkeypatch.setenv(name, trained.environment[name])
    monkeypatch.chdir(trained.path)
    saved = trained.path.parent / "saved"
    shutil.copytree(trained.path, saved, symlinks=True)
    yield trained
    monkeypatch.chdir(trained.path.parent)
    shutil.rmtree(trained.path)
    saved.rename(trained.path)


def notes(rev: str | None, monkeypatch: Patch, capsys: Out) -> list[str]:
    """The notes of `python -m review.compare main [REV]`."""
    monkeypatch.setattr(sys, "argv", ["compare", "main", *([rev] if rev else []), "--format", "json"])
    capsys.readouterr()
    compare.main()
    found: list[str] = json.loads(capsys.readouterr().out)["notes"]
    return found


def model(project: Project) -> None:
    replace(project.path / MODEL, "other weights")


def cached_model(project: Project) -> None:
    replace(cached(project, MODEL), "other weights")


def all_correct(project: Project) -> bytes:
    table = pd.read_csv(project.path / PREDICTIONS, keep_default_na=False)
    buffer = io.BytesIO()
    table.assign(prediction=table["label"]).to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def record(project: Project, path: str) -> None:
    """Put the MD5 of a changed output of evaluate into dvc.lock."""
    relock(project, lambda stages: entry(stages["evaluate"], path).update(md5=file_md5(project.path / path)))


def predictions(project: Project) -> None:
    replace(project.path / PREDICTIONS, all_correct(project))


def predictions_and_lock(project: Project) -> None:
    predictions(project)
    record(project, PREDICTIONS)


def metrics(project: Project, **values: Any) -> None:
    content = json.loads((project.path / METRICS).read_text(encoding="utf-8"))
    project.write(METRICS, json.dumps({**content, **(values or {"accuracy": 0.9999, "errors": 1})}, indent=2))


def metrics_and_lock(project: Project) -> None:
    metrics(project)
    record(project, METRICS)


def accuracy_and_lock(project: Project) -> None:
    metrics(project, accuracy=0.9999)
    record(project, METRICS)


def lock_of_the_model(project: Project) -> None:
    relock(project, lambda stages: entry(stages["train"], MODEL).update(md5=OTHER_MD5))


def code(project: Project) -> None:
    project.write("toy.py", TOY + "# another line\n")


def parameters(project: Project) -> None:
    project.set(train={"skill": 0.99})


STALE = "changed since the run that dvc.lock records: {}; `dvc repro` there"
EDITED = "does not match dvc.lock: {}; edited by hand, or damaged"
CONTRADICTS = f"{METRICS} contradicts the predictions, which have"
FORGERIES: dict[
    str, tuple[Callable[[Project], None], str, bool]
] = {  # the change, the note, and whether Git has the file
    "model": (model, EDITED.format(MODEL), False),
    "cached-model": (cached_model, f"{MODEL} is damaged in the cache (delete .dvc/cache/files/md5/", False),
    "predictions": (predictions, EDITED.format(PREDICTIONS), False),
    "predictions-and-lock": (predictions_and_lock, CONTRADICTS, False),
    "metrics": (metrics, EDITED.format(METRICS), True),
    "metrics-and-lock": (metrics_and_lock, CONTRADICTS, True),
    "accuracy-and-lock": (accuracy_and_lock, CONTRADICTS, True),
    "lock": (lock_of_the_model, f"in dvc.lock, evaluate read another {MODEL} than train wrote", True),
    "code": (code, STALE.format("toy.py"), True),
    "parameters": (parameters, STALE.format("train.skill"), True),
}


@pytest.mark.parametrize("kind", list(FORGERIES))
def test_what_is_forged_is_named(kind: str, project: Project, tmp_path: Path, monkeypatch: Patch, capsys: Out) -> None:
    assert notes(None, monkeypatch, capsys) == []
    forge, output, in_git = FORGERIES[kind]
    forge(project)
    assert [note for note in notes(None, monkeypatch, capsys) if output in note]
    monkeypatch.setattr(sys, "argv", ["report", "--out", str(tmp_path / "page.html")])
    report.main()
    page = (tmp_path / "page.html").read_text(encoding="utf-8").replace("<code>", "`").replace("</code>", "`")
    assert output in page
    if in_git:
        project.run("git", "checkout", "-q", "--detach")
        project.run("git", "commit", "-qam", "forged")
        assert [note for note in notes("HEAD", monkeypatch, capsys) if note.startswith("HEAD: ") and output in note]


def test_what_cannot_be_seen_is_not_claimed(project: Project, tmp_path: Path, monkeypatch: Patch, capsys: Out) -> None:
    predictions(project)
    metrics(project, accuracy=1.0, errors=0)
    project.dvc("commit", "-q", "--force")  # dvc.lock, the cache and the files agree; the model made none of this
    assert notes(None, monkeypatch, capsys) == []
    output = "recorded by dvc.lock, not rerun here; `make verify` reruns"
    for form in ("table", "markdown"):
        monkeypatch.setattr(sys, "argv", ["compare", "main", "--format", form])
        compare.main()
        assert f"Results: {output}." in capsys.readouterr().out.replace("\\_", "_")
    monkeypatch.setattr(sys, "argv", ["report", "--out", str(tmp_path / "page.html")])
    report.main()
    assert f"Results: {output}." in (tmp_path / "page.html").read_text(encoding="utf-8").replace("<code>", "`").replace(
        "</code>", "`"
    )


# Folders of code, as DVC hashes them


def nothing(project: Project) -> None:
    pass


def changed_line(project: Project) -> None:
    project.write("code/inner/layer.py", "# another line\n")


def added(project: Project) -> None:
    project.write("code/more.py", "")


def removed(project: Project) -> None:
    (project.path / "code/steps.py").unlink()


def renamed(project: Project) -> None:
    (project.path / "code/steps.py").rename(project.path / "code/inner/steps.py")


def ignored(project: Project) -> None:
    for folder in ("code", "code/inner"):
        (project.path / folder / "__pycache__").mkdir()
        project.write(f"{folder}/__pycache__/loop.pyc", "no source")


def newly_ignored(project: Project) -> None:
    project.write(".dvcignore", "__pycache__/\nsteps.py\n")


def all_removed(project: Project) -> None:
    shutil.rmtree(project.path / "code")


def a_file_instead(project: Project) -> None:
    shutil.rmtree(project.path / "code")
    project.write("code", "")


CHANGES: list[Callable[[Project], None]] = [
    nothing,
    changed_line,
    added,
    removed,
    renamed,
    ignored,
    newly_ignored,
    all_removed,
    a_file_instead,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: str(change.__name__))
def test_a_folder_of_code_is_stale_when_dvc_says_so(
    change: Callable[[Project], None], project: Project, monkeypatch: Patch, capsys: Out
) -> None:
    change(project)
    expected = change not in (nothing, ignored)
    with Repo() as repo:
        status = repo.status()
    assert any("code" in str(entry) for stage in status.values() for entry in stage) == expected
    output = [STALE.format("code")] * expected
    assert notes(None, monkeypatch, capsys) == [f"work tree: {line}" for line in output]
    project.run("git", "checkout", "-q", "--detach")
    project.run("git", "add", "--all")
    project.run("git", "commit", "-q", "--allow-empty", "-m", "other code, no run")
    assert notes("HEAD", monkeypatch, capsys) == [f"HEAD: {line}" for line in output]
    assert notes("main", monkeypatch, capsys) == []


def test_a_folder_that_dvc_refuses_is_stale(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    project.write("code/.dvcignore", "")  # DVC allows this file above a dependency, not in it
    assert notes(None, monkeypatch, capsys) == [f"work tree: {STALE.format('code')}"]


def test_a_large_work_tree_is_not_hashed_in_full(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    model(project)
    monkeypatch.setattr(snapshots, "MAX_HASHED_BYTES", 10)
    assert notes(None, monkeypatch, capsys) == []


def test_a_path_of_a_forged_tree_stays_in_its_folder(project: Project, tmp_path: Path) -> None:
    blob = project.run("git", "rev-parse", "HEAD:code/loop.py").strip()
    with revisions.repository() as repo:
        files = snapshots.Commit(Path(repo.root_dir), "HEAD")
        before = files.hashes(["code"])
        files.blobs["code/../../escaped.py"] = blob.encode()
        assert files.hashes(["code"]) == before
