"""`python -m review.compare` in a real repository with DVC: branches, a tag, an experiment, the work tree, bad input.

The pipeline of the repository is that of tests/toy.py. All tests share it; each finds it as it was.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import dvc.api
import pandas as pd
import pytest

from integrity.dvc_lock import LockedFile
from integrity.revisions import Revision
from review import compare, comparison
from review.results import PredictionsLookup
from stages.common.errors import UserError
from stages.evaluate import predictions
from tests import servers
from tests.toy import TOY, Project, begun

# DVC leaves its session with an HTTP remote open; in which test Python finds that out is chance.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed client session:ResourceWarning")

Patch = pytest.MonkeyPatch
Out = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """main, tagged v1; branches worse (less skill), seed-1, fewer (images); an experiment, better; all pushed."""
    path = tmp_path_factory.mktemp("compare") / "project"
    project = begun(path, ignored="__pycache__/\n")
    (path / "data/processed").mkdir(parents=True)
    project.set()
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", "nothing measured yet")
    project.run("git", "tag", "empty")
    project.dvc("repro", "-q")
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", "measured")
    project.run("git", "tag", "-a", "v1", "-m", "annotated")
    project.branch("worse", train={"skill": 0.8}, models={"unread": {"units": 4}})
    project.branch("seed-1", train={"seed": 1})
    project.branch("fewer", data={"images": 500})
    project.run("git", "checkout", "-q", "main")
    project.dvc("checkout", "-q")
    project.dvc("exp", "run", "-q", "-n", "better", "-S", "train.skill=0.98")
    project.run("git", "checkout", "-qf", "main")
    project.dvc("checkout", "-q", "--force")
    project.dvc("push", "-q", "--all-branches")
    return project


@pytest.fixture(autouse=True)
def clean(project: Project, monkeypatch: Patch) -> Iterator[None]:
    """Each test is in the project's folder, and leaves work tree, cache and settings as they were."""
    for name in [name for name in os.environ if name.startswith(("GIT_", "DVC_"))]:
        monkeypatch.delenv(name)
    for name in ("DVC_SITE_CACHE_DIR", "GIT_CONFIG_GLOBAL"):
        monkeypatch.setenv(name, project.environment[name])
    monkeypatch.chdir(project.path)
    saved = project.path.parent / "saved"
    for folder in (".dvc/cache", "data"):
        shutil.copytree(project.path / folder, saved / folder)
    yield
    project.run("git", "checkout", "-qf", "main")
    (project.path / ".dvc/config.local").unlink(missing_ok=True)
    for folder in (".dvc/cache", "data"):
        shutil.rmtree(project.path / folder, ignore_errors=True)
        shutil.move(saved / folder, project.path / folder)
    shutil.rmtree(saved)


def table(label: str, prediction: str, classes: str = "ab") -> pd.DataFrame:
    """Predictions of as many images as there are letters, each a class."""
    kind = pd.CategoricalDtype(list(classes))
    return pd.DataFrame({"label": list(label), "prediction": list(prediction)}).astype(kind)


def document(monkeypatch: Patch, capsys: Out, *arguments: str) -> dict[str, Any]:
    """What `python -m review.compare … --format json` prints."""
    found: dict[str, Any] = json.loads(text(monkeypatch, capsys, *arguments, "--format", "json"))
    return found


def text(monkeypatch: Patch, capsys: Out, *arguments: str) -> str:
    """What `python -m review.compare …` prints."""
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    capsys.readouterr()
    compare.main()
    return capsys.readouterr().out


def refusal(monkeypatch: Patch, *arguments: str) -> str:
    """The one line with which `python -m review.compare …` ends."""
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    with pytest.raises(UserError) as error:
        compare.main()
    assert "\n" not in str(error.value)
    return str(error.value)


def as_program(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "review.compare", *arguments]
    return subprocess.run(
        command, cwd=project.path, env=project.environment, capture_output=True, text=True, timeout=600
    )


# What it finds


def test_a_worse_branch_fails_with_a_status_of_its_own(project: Project) -> None:
    done = as_program(project, "main", "worse", "--fail-if", "worse", "--single")
    assert done.returncode == 1
    verdict = "worse against main, one model against another; seeds not compared: worse: accuracy "
    assert verdict in " ".join(done.stdout.split())
    assert re.fullmatch(r"failed: worse is worse: accuracy .* p < 0.0001, level 0.05\n", done.stderr)
    unknown = as_program(project, "nobody")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert re.fullmatch(r"error: unknown revision 'nobody'.*\n", unknown.stderr)


@pytest.mark.parametrize(
    ("sides", "status", "encoding"),
    [
        (("worse", "main"), 0, "utf-16"),
        (("main", "worse"), 1, "ascii"),
        (("main", "worse"), 1, "latin-1"),
        (("main", "fewer"), 2, "ascii"),
    ],
)
def test_the_status_is_the_verdict_whatever_the_terminal(
    sides: tuple[str, str], status: int, encoding: str, project: Project
) -> None:
    # A list of more than ten images ended in "…", which latin-1 lacks: the traceback had the status of a verdict.
    environment = {**project.environment, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "review.compare", *sides, "--fail-if", "worse", "--single"]
    done = subprocess.run(command, cwd=project.path, env=environment, capture_output=True, timeout=600)
    assert done.returncode == status
    assert b"Traceback" not in done.stderr


def test_a_name_that_the_terminal_lacks_is_no_verdict(project: Project) -> None:
    project.set(train={"channels": ["ü", "→"]})
    environment = {**project.environment, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "review.compare", "main", "--fail-if", "worse"]
    done = subprocess.run(command, cwd=project.path, env=environment, capture_output=True, timeout=600)
    assert done.returncode == 0
    assert b"within noise" in done.stdout


@pytest.mark.parametrize("arguments", [["main", "--level", "7"], ["main", "--fail-if", "better"], [], ["a", "b", "c"]])
def test_a_wrong_command_line_has_the_status_of_an_error(arguments: list[str], monkeypatch: Patch) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    with pytest.raises(SystemExit, match="2"):
        compare.main()


def test_the_counts_are_those_of_the_predictions(monkeypatch: Patch, capsys: Out) -> None:
    found = document(monkeypatch, capsys, "main", "worse")
    rows = []
    for rev in ("main", "worse"):
        with dvc.api.open("data/predictions.csv", rev=rev) as file:
            rows.append(pd.read_csv(file, dtype=str, keep_default_na=False))
    a, b = rows
    right_a, right_b = a["label"] == a["prediction"], b["label"] == b["prediction"]
    images = found["images"]
    assert images["images"] == len(a) == 600
    assert images["fixed"] == (~right_a & right_b).sum()
    assert images["broken"] == (right_a & ~right_b).sum() > 30
    assert images["both_right"] == (right_a & right_b).sum()
    assert images["both_wrong"] == (~right_a & ~right_b).sum()
    assert images["changed"] == (a["prediction"] != b["prediction"]).sum()
    assert [row["index"] for row in images["broken_examples"]] == a.index[right_a & ~right_b].tolist()[:10]
    for row in images["broken_examples"]:
        here = row["index"]
        assert (row["label"], row["a"], row["b"]) == (a["label"][here], a["prediction"][here], b["prediction"][here])
    verdict = found["verdict"]
    assert verdict["word"] == "worse"
    assert verdict["difference"] == pytest.approx(right_b.mean() - right_a.mean())
    assert verdict["low"] < verdict["difference"] < verdict["high"] < 0
    metric = {row["metric"]: row for row in found["metrics"]}
    assert metric["accuracy"]["difference"] == pytest.approx(verdict["difference"], abs=1e-6)
    assert metric["errors"]["a"] == (~right_a).sum()
    assert metric["errors"]["difference"] == (~right_b).sum() - (~right_a).sum()


def test_parameters_that_differ_and_who_reads_them(monkeypatch: Patch, capsys: Out) -> None:
    assert document(monkeypatch, capsys, "main", "worse")["parameters"] == [
        {"key": "train.skill", "a": 0.9, "b": 0.8, "read_by": ["evaluate"]},
        {"key": "models.unread.units", "a": 3, "b": 4, "read_by": []},
    ]


def test_another_seed_is_noise_and_the_same_revision_is_the_same(monkeypatch: Patch, capsys: Out) -> None:
    found = document(monkeypatch, capsys, "main", "seed-1", "--fail-if", "worse")
    assert found["verdict"]["word"] == "within noise"
    assert found["images"]["changed"] > 0
    assert found["notes"] == []
    same = document(monkeypatch, capsys, "v1", "main")  # an annotated tag
    assert same["a"]["commit"] == same["b"]["commit"]
    assert (same["parameters"], same["images"]["changed"], same["verdict"]["p"]) == ([], 0, 1.0)


@pytest.mark.parametrize(("level", "word"), [(0.03, "within noise"), (0.04, "worse"), (0.1, "worse")])
def test_the_level_decides(level: float, word: str) -> None:
    right, spoiled = table("a" * 50, "b" + "a" * 49), table("a" * 50, "a" * 42 + "b" * 8)  # one fixed, eight broken
    images, verdict = comparison.paired(right, spoiled, level)
    assert (images["fixed"], images["broken"], images["both_right"], images["both_wrong"]) == (1, 8, 41, 0)
    assert verdict["p"] == pytest.approx(2 * (1 + 9) / 2**9)
    assert verdict["word"] == word


def test_an_experiment_by_its_name_and_the_work_tree(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    better = document(monkeypatch, capsys, "main", "better")
    assert better["verdict"]["word"] == "better"
    refs = project.run("git", "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines()
    assert [ref.split()[0] for ref in refs if ref.endswith("/better")] == [better["b"]["commit"]]
    project.dvc("exp", "apply", "-q", "better")
    applied = document(monkeypatch, capsys, "main")
    assert applied["b"] == {"name": "work tree", "commit": None}
    assert applied["notes"] == better["notes"]
    assert applied["images"] == better["images"]


def test_nothing_is_written(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    def state() -> list[tuple[str, int]]:
        return [(str(path), path.stat().st_mtime_ns) for path in sorted(project.path.rglob("*")) if path.is_file()]

    before = state()
    document(monkeypatch, capsys, "worse", "better")
    assert [entry for entry in state() if "/.dvc/tmp/" not in entry[0]] == [
        e for e in before if "/.dvc/tmp/" not in e[0]
    ]


def test_results_of_other_inputs_are_named(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    project.set(train={"skill": 0.5})
    project.write("toy.py", TOY + "# another line\n")
    found = document(monkeypatch, capsys, "main")
    changed = "changed since the run that dvc.lock records: train.skill, toy.py; `dvc repro` there"
    assert found["notes"] == [f"work tree: {changed}"]
    project.run("git", "checkout", "-q", "--detach")
    project.run("git", "commit", "-qam", "code without its results")
    found = document(monkeypatch, capsys, "main", "HEAD")
    assert found["notes"] == [f"HEAD: {changed}"]


def test_metrics_of_a_run_that_did_not_finish_are_named(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    project.write("metrics/train.json", json.dumps({"unfinished": "epoch 2 of 5", "validation_accuracy": 0.9}))
    (note,) = document(monkeypatch, capsys, "main")["notes"]
    (project.path / "metrics/train.json").unlink()
    assert note == "work tree: metrics/train.json: of a run that did not finish (epoch 2 of 5); `dvc repro` there"


# The three formats, of which tests/golden has examples


def test_the_markdown_is_well_formed_whatever_the_values(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    project.set(train={"channels": ["<img src=x>|@somebody", "`]("]}, data={"name": "a\u001b[31m\nb"})
    printed = text(monkeypatch, capsys, "main", "--format", "markdown")
    assert printed.startswith(
        "### `work tree` against `main`, one model against another; seeds not compared: within noise\n\nAcc"
    )
    blocks = [block.splitlines() for block in printed.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 2
    for block in blocks:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block}
        assert len(cells) == 1, block
        assert re.fullmatch(r"(\|:?-+:?)+\|", block[1])
    assert (
        r"`[\"<img src=x>\|@somebody\", \"'](\"]`".replace('\\"', '"') in printed
    )  # code: neither markup nor a mention
    assert "\u001b" not in printed
    table = text(monkeypatch, capsys, "main")
    assert "\u001b" not in table


def test_a_parameter_that_json_has_not(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    path = project.path / "params.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("skill: 0.9", "skill: .nan"), encoding="utf-8")
    (row,) = document(monkeypatch, capsys, "main")["parameters"]
    assert row == {"key": "train.skill", "a": 0.9, "b": "NaN", "read_by": ["evaluate"]}


# Predictions that are not to be had


def drop(project: Project, rev: str) -> None:
    project.cached(rev).chmod(0o644)
    project.cached(rev).unlink()


def flip(path: Path) -> None:
    """Flip a bit: an error more or less, in a file that is still a valid CSV of the same length."""
    content = path.read_text(encoding="utf-8")
    assert "\n10,None," in content or "\n10,a|b," in content or "\n10,`1`," in content
    path.chmod(0o644)
    path.write_text(content.replace("0.9,", "0.8,", 1), encoding="utf-8")


def test_predictions_come_from_the_remote(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    expected = document(monkeypatch, capsys, "main", "worse")
    shutil.rmtree(project.path / ".dvc/cache")
    (project.path / ".dvc/cache").mkdir()
    assert document(monkeypatch, capsys, "main", "worse") == expected


def remote(project: Project, **settings: str) -> None:
    lines = "".join(f"    {name} = {value}\n" for name, value in settings.items())
    project.write(".dvc/config.local", f"['remote \"beside\"']\n{lines}")


def test_without_predictions_the_counts_in_git_are_compared(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    expected = document(monkeypatch, capsys, "main", "worse")
    drop(project, "worse")
    remote(project, url=str(project.path / "nowhere"))
    found = document(monkeypatch, capsys, "main", "worse")
    assert found["images"] is None
    assert found["notes"] == [
        "worse: no predictions, so no comparison image by image: data/predictions.csv is not in the cache; remote "
        f"'beside': its folder {project.path / 'nowhere'} is missing"
    ]
    assert found["verdict"]["word"] == "worse"
    assert found["verdict"]["method"].startswith("Fisher's exact test (1922)")
    assert found["verdict"]["difference"] == pytest.approx(expected["verdict"]["difference"])
    assert found["verdict"]["p"] > expected["verdict"]["p"]
    assert (found["metrics"], found["parameters"]) == (expected["metrics"], expected["parameters"])


def counted(name: str, md5: str | None, ran_with: dict[str, Any] | None = None, **metrics: Any) -> Revision:
    """A revision with a test set of this MD5, a digit, and these counts."""
    outs = {path: LockedFile(path=path, md5=md5 * 32) for path in ["data/processed/test"] if md5}
    return Revision(name, None, {}, {}, {"metrics/evaluate.json": metrics}, outs, ran_with or {})


@pytest.mark.parametrize(
    ("a", "b", "word", "text", "note"),
    [
        # Metrics of an older version have no classes.
        (
            counted("x", "1", errors=9, images=99, classes=[{"class": "a", "images": 99}]),
            counted("y", None, errors=9, images=99),
            "within noise",
            "accuracy 90.91 % -> 90.91 %",
            None,
        ),
        (
            counted("x", "1", errors=9, images=99),
            counted("y", None, errors=9, images=98),
            "not comparable",
            "the test sets differ: 99 images in x, 98 in y",
            None,
        ),
        (
            counted("x", None, errors=9, images=99),
            counted("y", None),
            "not comparable",
            "y: metrics/evaluate.json has no counts",
            None,
        ),
        (
            counted("x", "1", errors=9, images=99),
            counted("y", "2", errors=9, images=99),
            "not comparable",
            "the test sets differ: data/processed/test of x and y has other pictures, or other code prepared them",
            None,
        ),
        (
            counted("x", "1", {"preprocess.image_size": [64, 64]}, errors=9, images=99),
            counted("y", "2", {"preprocess.image_size": [32, 32]}, errors=9, images=99),
            "within noise",
            "accuracy",
            "data/processed/test differs between the two sides: other images, or the same ones prepared in another way",
        ),
    ],
)
def test_the_counts_of_revisions_without_predictions(
    a: Revision, b: Revision, word: str, text: str, note: str | None
) -> None:
    lost = PredictionsLookup(None, "lost", [])
    found = comparison.compare(a, b, (lost, lost), 0.05, None)
    assert found["verdict"]["word"] == word
    assert found["verdict"]["text"].startswith(text)
    assert [line for line in found["notes"] if line.startswith("data/")] == ([note] if note else [])


def test_each_reason_is_one_line(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    drop(project, "worse")
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]  # nobody listens there after this block

    def reason() -> str:
        (note,) = document(monkeypatch, capsys, "main", "worse")["notes"]
        return str(note).removeprefix(
            "worse: no predictions, so no comparison image by image: data/predictions.csv is not in the cache; "
        )

    remote(project, url=f"ssh://127.0.0.1:{free}/x")
    assert re.fullmatch(r"remote 'beside': cannot be read: .*Connect call failed.*", reason())
    remote(project, url="gs://bucket/x")
    assert re.fullmatch(r"remote 'beside' cannot be used: .*dvc.gs.*", reason())
    (project.path / "empty").mkdir()
    remote(project, url=str(project.path / "empty"))
    assert reason() == "remote 'beside': not there; `dvc push` (or `dvc exp push`) where it was made"
    (project.path / "empty").rmdir()
    project.dvc("remote", "default", "-q", "--unset")
    assert reason() == "no remote is set: `dvc remote add --default NAME URL`"
    (project.path / ".dvc/config.local").unlink()
    project.run("git", "checkout", "-q", ".dvc/config")


def test_a_password_is_not_shown(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    drop(project, "worse")
    with servers.serving(lambda request: request.send_error(401)) as url:
        remote(project, url=url.replace("://", "://me:secret@"))
        printed = text(monkeypatch, capsys, "main", "worse")
    assert "remote 'beside': cannot be read: 401, message='Unauthorized'" in printed
    assert "secret" not in printed


def test_a_read_only_server_is_a_remote(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    expected = document(monkeypatch, capsys, "main", "worse")
    content, place = project.cached("worse").read_bytes(), project.cached("worse").parts[-2:]
    drop(project, "worse")

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path.endswith("/".join(("files", "md5", *place))):
            servers.body(request, content)
        else:
            request.send_error(404)

    with servers.serving(answer) as url:
        remote(project, url=f"{url}/store")
        assert document(monkeypatch, capsys, "main", "worse") == expected
        drop(project, "seed-1")
        (note,) = document(monkeypatch, capsys, "main", "seed-1")["notes"]
        assert note.endswith("remote 'beside': not there; `dvc push` (or `dvc exp push`) where it was made")


def test_a_flipped_bit_in_the_cache_is_seen(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    expected = document(monkeypatch, capsys, "main", "worse")
    flip(project.cached("worse"))
    found = document(monkeypatch, capsys, "main", "worse")
    assert (found["images"], found["verdict"]) == (expected["images"], expected["verdict"])  # the remote's copy
    place = project.cached("worse").relative_to(project.path)
    damaged = f"worse: data/predictions.csv is damaged in the cache (delete {place}, and `dvc fetch`)"
    assert found["notes"][-1] == f"{damaged}; the remote's copy is used"

    (project.path / "copy").mkdir()
    shutil.copytree(project.path.parent / "remote", project.path / "copy", dirs_exist_ok=True)
    remote(project, url=str(project.path / "copy"))
    flip(project.path / "copy" / project.cached("worse").relative_to(project.path / ".dvc/cache"))
    found = document(monkeypatch, capsys, "main", "worse")
    shutil.rmtree(project.path / "copy")
    assert found["images"] is None
    (note,) = found["notes"]
    assert note.endswith("remote 'beside': damaged: not the MD5 that dvc.lock records")


def test_predictions_changed_by_hand_are_not_those_of_the_run(
    project: Project, monkeypatch: Patch, capsys: Out
) -> None:
    expected = document(monkeypatch, capsys, "main", "worse")
    path = project.path / "data/predictions.csv"
    content = path.read_text(encoding="utf-8")
    path.unlink()  # not through a link into the cache
    path.write_text(content.replace("None", "a|b"), encoding="utf-8")
    found = document(monkeypatch, capsys, "worse")
    assert found["images"]["fixed"] == expected["images"]["broken"]


# What cannot be compared


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (table("aab", "aaa"), None),
        (table("aa", "aa"), "the test sets differ: 3 images in x, 2 in y"),
        (table("abb", "aab"), "the test sets differ: 1 of 3 images have another label in y than in x"),
        (table("aab", "aab", "abc"), "x has 2 classes, y has 3"),
        (table("aac", "aac", "ac"), "the classes differ: 'b' in x is 'c' in y"),
        (table("aab", "aab", "ba"), "the classes differ: 'a' in x is 'b' in y"),
    ],
)
def test_predictions_of_other_test_sets_are_not_paired(other: pd.DataFrame, why: str | None) -> None:
    assert comparison.different_images("x", "y", table("aab", "aab"), other) == why


@pytest.mark.parametrize(
    ("md5", "ran_with", "word"),
    [
        ("1", {}, "within noise"),
        ("2", {}, "not comparable"),
        ("2", {"preprocess.image_size": [32, 32]}, "within noise"),
        ("2", {"preprocess.image_size": [32, 32], "preprocess.seed": 1}, "not comparable"),
    ],
    ids=["the same", "other pictures", "other pixels", "another draw"],
)
def test_other_pictures_with_the_same_labels_are_not_paired(md5: str, ran_with: dict[str, Any], word: str) -> None:
    """As of two test sets that are sorted by class and have equally many pictures of each."""
    sides = counted("x", "1", errors=1, images=3), counted("y", md5, ran_with, errors=1, images=3)
    lookups = PredictionsLookup(table("aab", "aaa"), "", []), PredictionsLookup(table("aab", "bab"), "", [])
    found = comparison.compare(*sides, lookups, 0.05, None)
    assert found["verdict"]["word"] == word
    assert (found["images"] is None) == (word == "not comparable")


def test_another_test_set_has_no_verdict(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    why = "the test sets differ: 600 images in main, 500 in fewer"
    found = document(monkeypatch, capsys, "main", "fewer")
    assert found["verdict"] == {
        "word": "not comparable",
        "text": why,
        "basis": "one model",
        **dict.fromkeys(("method", "p", "difference", "low", "high")),
    }
    assert found["images"] is None
    assert found["notes"] == [f"{why}: metrics are shown side by side, but their differences do not judge the models"]
    assert [row["key"] for row in found["parameters"]] == ["data.images"]
    assert {row["metric"]: row["difference"] for row in found["metrics"]}["images"] == -100
    assert refusal(monkeypatch, "main", "fewer", "--fail-if", "worse") == f"cannot tell whether fewer is worse: {why}"
    drop(project, "fewer")  # nor is there one by the counts in Git
    remote(project, url=str(project.path / "nowhere"))
    found = document(monkeypatch, capsys, "main", "fewer")
    assert found["verdict"]["text"] == "the test sets differ: other classes, or another number of images per class"


def test_another_data_set_by_name(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    project.set(data={"name": "other", "seed": 5})
    project.dvc("repro", "-q")
    shutil.rmtree(project.path / ".dvc/cache")
    (project.path / "data/predictions.csv").unlink()
    remote(project, url=str(project.path / "nowhere"))
    found = document(monkeypatch, capsys, "main")
    assert found["verdict"]["text"] == "the data sets differ: toy in main, other in work tree"


# Bad input


@pytest.mark.parametrize(
    ("rev", "line"),
    [
        ("nobody", "unknown revision 'nobody'; allowed: a commit, branch, tag or experiment of this clone"),
        ("wurse", "unknown revision 'wurse' (did you mean worse?); allowed"),
        ("bettr", "unknown revision 'bettr' (did you mean better?); allowed"),
        ("f" * 40, f"unknown revision '{'f' * 40}'; allowed"),
        ("", "the revision is empty; allowed: a commit, branch, tag or experiment"),
        ("HEAD:toy.py", "revision 'HEAD:toy.py' is a file or a folder, not a commit"),
        ("empty", "empty: no metrics/*.json; run `dvc repro` there, and commit what it writes"),
    ],
)
def test_a_revision_that_cannot_be_read(rev: str, line: str, monkeypatch: Patch) -> None:
    assert refusal(monkeypatch, rev).startswith(line)
    assert refusal(monkeypatch, "main", rev).startswith(line)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("metrics/evaluate.json", '{"accuracy": ', "work tree: metrics/evaluate.json: not valid JSON: Expecting value"),
        (
            "metrics/evaluate.json",
            '{"loss": NaN}',
            "work tree: metrics/evaluate.json: not valid JSON: NaN is not a JSON num",
        ),
        (
            "metrics/evaluate.json",
            '{"loss": 1e999}',
            "work tree: metrics/evaluate.json: not valid JSON: the number 1e999",
        ),
        (
            "metrics/evaluate.json",
            f'{{"n": {10**400}}}',
            "work tree: metrics/evaluate.json: not valid JSON: the number 1000",
        ),
        ("metrics/evaluate.json", f'{{"n": {"9" * 9999}}}', "work tree: metrics/evaluate.json: not valid JSON: "),
        ("metrics/evaluate.json", "[1, 2]", "work tree: metrics/evaluate.json: not a mapping of names to metrics"),
        ("metrics/evaluate.json", "[" * 100_000, "work tree: metrics/evaluate.json: not valid JSON: "),
        ("metrics/evaluate.json", '{"a":' * 60 + "1" + "}" * 60, "metrics/evaluate.json: nested too deeply"),
        ("metrics/evaluate.json", "\udc80", "work tree: metrics/evaluate.json: not valid JSON: 'utf-8' codec"),
        ("params.yaml", "a: [1", "work tree: params.yaml:1:6: not valid YAML: "),
        ("params.yaml", "- 1", "work tree: params.yaml: contains no mapping of section: options"),
        (
            "params.yaml",
            "a: &x {b: 1}\nc: *x",
            "work tree: params.yaml:2:4: not valid YAML: aliases (*name) are not allowed",
        ),
    ],
)
def test_files_that_are_not_what_they_should_be(
    name: str, content: str, line: str, project: Project, monkeypatch: Patch
) -> None:
    (project.path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert refusal(monkeypatch, "main").startswith(line)


def test_what_is_missing_is_left_out_with_a_note(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    (project.path / "params.yaml").unlink()
    (project.path / "dvc.lock").write_text("stages: [1, 2", encoding="utf-8")
    project.write("metrics/evaluate.json", '{"accuracy": 0.9, "text": "no number", "sure": true}')
    found = document(monkeypatch, capsys, "main")
    assert found["notes"] == [
        "work tree: no params.yaml: parameters are not compared",
        "work tree: dvc.lock: not valid YAML: inputs and outputs of the run are unknown",
        "the data sets differ: toy in main, None in work tree: metrics are shown side by side, but their differences "
        "do not judge the models",
        "work tree: no predictions, so no comparison image by image: dvc.lock there does not name "
        "data/predictions.csv; run `dvc repro` there",
    ]
    assert [row["metric"] for row in found["metrics"] if row["b"] is not None] == ["accuracy"]


def test_a_lock_with_aliases_is_read(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    lock = (project.path / "dvc.lock").read_text(encoding="utf-8")
    shared = lock.replace("channels:\n          - 1\n          - 2", "channels: &id001\n          - 1\n          - 2")
    assert shared != lock
    project.write(
        "dvc.lock", shared + "  another:\n    cmd: 'true'\n    params:\n      params.yaml:\n        c: *id001\n"
    )
    notes = document(monkeypatch, capsys, "main")["notes"]
    assert notes == ["work tree: changed since the run that dvc.lock records: c; `dvc repro` there"]


def test_a_file_that_two_stages_wrote_counts_as_not_there(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    forged = "  another:\n    outs:\n    - path: data/predictions.csv\n      md5: " + "a" * 32 + "\n"
    project.write("dvc.lock", (project.path / "dvc.lock").read_text(encoding="utf-8") + forged)
    found = document(monkeypatch, capsys, "main")
    assert found["images"] is None
    assert (
        "work tree: in dvc.lock, evaluate and another wrote data/predictions.csv: it counts as missing"
        in found["notes"]
    )
    assert any(note.startswith("work tree: no predictions, so no comparison") for note in found["notes"])


def test_predictions_that_are_garbled_are_not_compared(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    content = b"index,label\n0,\xff\n"
    lock = (project.path / "dvc.lock").read_text(encoding="utf-8")
    old = project.cached("main")
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    project.write("dvc.lock", lock.replace(old.parent.name + old.name, md5))
    (project.path / "data/predictions.csv").unlink()
    (project.path / "data/predictions.csv").write_bytes(content)
    found = document(monkeypatch, capsys, "main")
    assert found["images"] is None
    assert (
        "work tree: no predictions, so no comparison image by image: data/predictions.csv: not a CSV"
        in found["notes"][0]
    )


GOOD = "index,label,prediction,probability,p_a,p_b\n0,a,b,0.9,0.1,0.9\n1,b,b,0.9,0.1,0.9\n"


def test_predictions_are_read() -> None:
    table = predictions.parse(GOOD.encode(), "x.csv")
    assert table["label"].tolist() == ["a", "b"]
    assert table["prediction"].cat.codes.tolist() == [1, 1]
    assert list(table["prediction"].cat.categories) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "x.csv: not a CSV file of predictions: No columns"),
        ("index,label,prediction,probability,p_a,p_b\n", "x.csv: holds no predictions"),
        (GOOD.replace("p_b", "b"), "x.csv: its columns are 'index, label, prediction, probability, p_a, b'"),
        (GOOD.replace("label", "truth"), "x.csv: its columns are 'index, truth,"),
        (GOOD.replace("\n1,", "\n2,"), "x.csv: its index does not count the images from 0 to 1"),
        (GOOD.replace("b,b", "c,b"), "x.csv: row 3: label is 'c'; allowed: the classes of its p_ columns"),
        (GOOD.replace("a,b,0.9", "a,,0.9"), "x.csv: row 2: prediction is ''; allowed"),
        (GOOD + "2,a,a,1,1,0,0,0,0\n", "x.csv: not a CSV file of predictions: "),
        (GOOD.replace("0.1,0.9\n1", "0.1,high\n1"), "x.csv: not a CSV file of predictions: "),
        (GOOD + '2,"a', "x.csv: not a CSV file of predictions: "),
        ("\0\x01PK" * 50, "x.csv: "),
    ],
)
def test_predictions_that_evaluate_did_not_write(content: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        predictions.parse(content.encode(), "x.csv")
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_outside_a_repository(tmp_path: Path, monkeypatch: Patch) -> None:
    line = "no commit of a DVC repository to read here: "
    monkeypatch.chdir(tmp_path)
    assert refusal(monkeypatch, "main").startswith(line)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core", encoding="utf-8")
    assert refusal(monkeypatch, "main").startswith(f"{line}config file error: ")
