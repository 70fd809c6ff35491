"""The seed study: overrides as DVC takes them, the statistics, and that nothing tracked is touched (test_pipeline)."""

import copy
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from review import study, study_file
from stages.common import params
from stages.common.digests import md5
from stages.common.errors import UserError
from tests.imports import ROOT
from tests.toy import Project

DEFAULTS = params.load(ROOT / "params.yaml")


def folder_md5(content: bytes) -> str:
    """DVC's name of a folder whose one file is index.json, with this content."""
    return md5(json.dumps([{"md5": md5(content), "relpath": "index.json"}]).encode()) + ".dir"


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.epochs=3", ("train", "epochs"), 3),
        ("optimizers.adam.lr=1e-3", ("optimizers", "adam", "lr"), 0.001),
        ("models.cnn.channels=[8,16]", ("models", "cnn", "channels"), [8, 16]),
        ("data.name=fashion-mnist", ("data", "name"), "fashion-mnist"),
        ("train.shuffle=false", ("train", "shuffle"), False),
        ("data.mirrors=[/a=b]", ("data", "mirrors"), ["/a=b"]),
    ],
)
def test_overrides_are_what_dvc_takes(override: str, path: tuple[str, ...], value: object) -> None:
    values = copy.deepcopy(DEFAULTS)
    study.change(values, override)
    here = values
    for part in path:
        here = here[part]
    assert here == value
    changed = [key for key in DEFAULTS if values[key] != DEFAULTS[key]]
    assert changed in ([path[0]], [])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs", "-S train.epochs: allowed: KEY=VALUE"),
        ("train.epoch=3", "-S train.epoch=3: train.epoch: not a key of params.yaml (did you mean epochs?)"),
        ("train.epochs.x=3", "-S train.epochs.x=3: train.epochs.x: not a key of params.yaml"),
        ("=3", "-S =3: allowed: KEY=VALUE, for instance train.epochs=3"),
        ("train.epochs=[", "-S train.epochs=[: not a YAML value: "),
        ("train.epochs=&a [*a]", "-S train.epochs=&a [*a]: not a YAML value: "),
    ],
)
def test_wrong_overrides_are_one_line(override: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        study.change(copy.deepcopy(DEFAULTS), override)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_the_interval_is_students() -> None:
    # n = 4, mean 5, s = 1.290994: t(0.975, 3) = 3.182446, so that the half width is 2.054257.
    summary = study.summary([{"seed": seed, "x": value} for seed, value in enumerate([3.5, 4.5, 5.5, 6.5])])["x"]
    assert summary["mean"] == 5
    assert summary["standard_deviation"] == pytest.approx(1.290994)
    assert (summary["low"], summary["high"]) == pytest.approx((5 - 2.054257, 5 + 2.054257), abs=1e-5)
    assert (summary["min"], summary["max"], summary["n"]) == (3.5, 6.5, 4)


def test_one_run_has_no_spread() -> None:
    assert study.summary([{"seed": 0, "x": 2.0}]) == {"x": {"mean": 2.0, "min": 2.0, "max": 2.0, "n": 1}}


def test_the_spread_is_the_samples() -> None:
    values = [0.991, 0.992, 0.994]
    summary = study.summary([{"seed": seed, "accuracy": value} for seed, value in enumerate(values)])["accuracy"]
    assert summary["standard_deviation"] == pytest.approx(statistics.stdev(values), abs=1e-6)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.epochs=range(3)"], "-S train.epochs=range(3): a study runs one recipe; allowed: one value, such as "),
        (["optimizers.adam.lr=0.1,0.2"], "-S optimizers.adam.lr=0.1,0.2: a study runs one recipe; allowed: one value"),
        (["train.seed=5"], "-S train.seed=5: the study itself sets train.seed: 0, 1, … up to --seeds"),
        (["train=5"], "-S train=5: train is a section; allowed: one of its keys, seed, epochs, "),
        (["models.cnn={}"], "-S models.cnn={}: models.cnn is a section; allowed: one of its keys, channels, "),
        (["evaluate.calibration_bins=many"], "params.yaml: evaluate.calibration_bins is 'many'; allowed: "),
        (["optimizers.sgd.nesterov=true"], "params.yaml: optimizers.sgd: nesterov is true and momentum is 0"),
    ],
)
def test_what_cannot_run_is_noticed_before_the_first_run(overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        study.changed(DEFAULTS, overrides)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("accuracy", "images", "errors"),
    [(0.996, 3000, {"validation_errors": 12}), (0.666667, 3, {"validation_errors": 1}), (0.5, 2_000_000, {})],
)
def test_counts_behind_a_rounded_accuracy(accuracy: float, images: int, errors: dict[str, int]) -> None:
    assert study.whole_errors(accuracy, images) == errors


def test_an_accuracy_of_no_count() -> None:
    with pytest.raises(UserError, match="0.9961 is no share of 3,000 validation images"):
        study.whole_errors(0.9961, 3000)


# --- the command, with stages that only pretend

STAGE = """
import json, os, sys, time
from pathlib import Path
import yaml

stage, log = sys.argv[1], Path(os.environ["LOG"])
values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
seed = values["train"]["seed"]
def write(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content), encoding="utf-8")
write(log / f"{stage}-{seed}-{os.getpid()}.json", values)
if stage == "preprocess":
    write("data/processed/data.json", {})
    write("data/processed/validation/index.json", "validation")
    write("data/processed/test/index.json", "test")
    write("metrics/data.json", {"images": {"validation": 3000, "test": 100}})
if stage == "train":
    if str(seed) == os.environ.get("FAILS"):
        while not list(log.glob("train-2-*")):  # which comes after seed 0, and what that measured is kept by then
            time.sleep(0.02)
        sys.exit("error: it diverged")
    while str(seed) == os.environ.get("HANGS"):
        time.sleep(0.1)
    assert Path("data/processed/data.json").is_file()
    write("metrics/train.json", {"epochs_run": 1, "validation_loss": 0.1, "validation_accuracy": 0.9 + seed / 100})
    write("runs/train.json", {"loop_seconds": 1.5})
if stage == "evaluate":
    write("metrics/evaluate.json", {"accuracy": 0.99, "loss": 0.1, "errors": 1, "images": 100})
"""
COMMAND = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from stages.common import errors; from review import study
study.program = lambda stage: [sys.executable, STAGE, stage]
errors.run_command(study.main)
"""


class Bench:
    """A folder with params.yaml, and studies of stages that only pretend."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.temporary = folder / "work", folder / "log", folder / "tmp"
        for path in (self.folder, self.log, self.temporary):
            path.mkdir()
        (folder / "stage.py").write_text(STAGE, encoding="utf-8")
        self.code = COMMAND.replace("STAGE", repr(str(folder / "stage.py")))
        self.write(DEFAULTS)

    def write(self, values: dict[str, Any]) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", self.code, *arguments],
            cwd=self.folder,
            env={**os.environ, "LOG": str(self.log), "TMPDIR": str(self.temporary), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **environment)
        output, complaints = process.communicate(timeout=120)
        assert list(self.temporary.iterdir()) == []
        return process.returncode, output, complaints

    def params(self, stage: str) -> list[dict[str, Any]]:
        """What each run of a stage was given."""
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.log.glob(f"{stage}-*"))]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_data_of_another_name_is_not_taken_for_the_data_set(bench: Bench) -> None:
    # As after `data.name` was changed and nothing has run: in data/raw lies another data set.
    (bench.folder / "data/raw").mkdir(parents=True)
    mirrors = ["near", "/far", "s3://bucket/mnist", "~/mnist"]
    bench.write({**DEFAULTS, "data": {**DEFAULTS["data"], "name": "fashion-mnist", "mirrors": mirrors}})
    status, output, complaints = bench.run("--seeds", "2", "--test")
    assert status == 0, complaints
    (given,) = bench.params("download")  # which checks every file by its SHA-256
    assert given["data"] == {
        **DEFAULTS["data"],
        "name": "fashion-mnist",
        "mirrors": [
            str(bench.folder / "data/raw"),
            str(bench.folder / "near"),
            "/far",
            "s3://bucket/mnist",
            "~/mnist",
        ],
    }
    assert len(bench.params("preprocess")) == 1
    document = json.loads(output)
    assert document["runs"][1] == {
        "seed": 1,
        "loop_seconds": 1.5,
        "process_seconds": document["runs"][1]["process_seconds"],
        "epochs_run": 1,
        "validation_loss": 0.1,
        "validation_accuracy": 0.91,
        "validation_images": 3000,
        "validation_errors": 270,
        "accuracy": 0.99,
        "loss": 0.1,
        "errors": 1,
        "images": 100,
    }
    assert document["data"] == {
        "name": "fashion-mnist",
        "test": folder_md5(b'"test"'),
        "validation": folder_md5(b'"validation"'),
        "images": {"validation": 3000, "test": 100},
    }
    assert "seeds_missing" not in document
    assert document["commit"] == "unknown"
    assert complaints.startswith("note: the study cannot name its commit: git rev-parse: ")


@pytest.mark.parametrize(
    ("option", "number", "complaint"),
    [
        ("--seeds", "0", "--seeds is 0; allowed: 1 to 10,000"),
        ("--seeds", str(10**22), "--seeds is 10000000000000000000…; allowed: 1 to 10,000"),
        ("--jobs", "1001", "--jobs is 1001; allowed: 1 to 1,000"),
    ],
    ids=["no seed", "too many seeds", "too many jobs"],
)
def test_numbers_that_no_study_can_have(
    option: str, number: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["study", option, number])
    with pytest.raises(UserError) as caught:
        study.main()
    assert str(caught.value) == complaint


@pytest.mark.parametrize(("out", "reason"), [("a-folder", "is a folder"), ("gone/a.json", "No such file or directory")])
def test_where_nothing_can_be_written_nothing_runs(out: str, reason: str, bench: Bench) -> None:
    (bench.folder / "a-folder").mkdir()
    status, _, complaints = bench.run("--out", out)
    assert (status, complaints.startswith(f"error: --out {out}: {reason}"), complaints.count("\n")) == (2, True, 1)
    assert list(bench.log.iterdir()) == []


@pytest.mark.parametrize("out", [True, False], ids=["file", "output"])
def test_a_seed_that_fails_loses_none_of_the_others(out: bool, bench: Bench) -> None:
    path = bench.folder / "a.json"
    status, output, complaints = bench.run(
        *("--seeds", "5", "--jobs", "2", *(["--out", str(path)] if out else [])), FAILS="1"
    )
    document = json.loads(path.read_text(encoding="utf-8") if out else output)
    seeds = [run["seed"] for run in document["runs"]]
    assert seeds[:1] == [0]
    assert 1 not in seeds
    assert document["seeds_missing"] == 5 - len(seeds)
    where = str(path) if out else "the JSON on standard output"
    assert complaints.endswith(
        f"\nerror: train ended with status 1: it diverged; {len(seeds)} of 5 seeds are kept, in {where}\n"
    )
    assert status == 2


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=["TERM", "INT", "HUP"])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_told_to_stop_it_ends_its_stages_and_keeps_what_it_has(signum: int, twice: bool, bench: Bench) -> None:
    process = bench.start("--seeds", "4", "--jobs", "2", "--out", "a.json", HANGS="1")
    path = bench.folder / "a.json"
    deadline = time.monotonic() + 60
    while not path.exists() or len(json.loads(path.read_text(encoding="utf-8"))["runs"]) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (hanging,) = [int(name.stem.rpartition("-")[2]) for name in bench.log.glob("train-1-*")]
    process.send_signal(signum)
    if twice:
        process.send_signal(signum)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert complaints.endswith("\ninterrupted: 3 of 4 seeds are kept, in a.json\n")
    assert not Path(f"/proc/{hanging}").exists()
    assert list(bench.temporary.iterdir()) == []


def test_its_own_output_does_not_make_a_commit_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path)
    project.run("git", "init", "-q")
    for name in ("params.yaml", "requirements.txt", "stages/train/__main__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        project.write(name, "a")
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", "all")
    monkeypatch.chdir(tmp_path)
    head = project.run("git", "rev-parse", "--short=12", "HEAD").strip()
    for name in ("a.json", "stages/a.json", "dvc.lock"):
        project.write(name, "of another study")
    assert study.commit() == head
    project.write("stages/train/__main__.py", "b")
    assert study.commit() == f"{head}-dirty"


# --- the file


def read(folder: Path, *runs: dict[str, Any]) -> study_file.Study:
    path = folder / "a.json"
    path.write_text(json.dumps({"name": "a", "runs": [{"seed": at, **run} for at, run in enumerate(runs)]}))
    return study_file.read(path)


@pytest.mark.parametrize(
    ("run", "test", "validation"),
    [
        ({"accuracy": 0.9961, "errors": 39, "images": 10_000}, (39, 10_000), None),
        ({"accuracy": 0.9961}, (39, 10_000), None),  # of an old file
        ({"accuracy": 0.9961, "errors": 39}, (39, 10_000), None),
        ({"accuracy": 0.99, "images": 200}, (2, 200), None),
        ({"accuracy": 0.99615}, None, None),
        ({"accuracy": 0.9961, "errors": 40}, None, None),
        ({"validation_accuracy": 0.996, "validation_errors": 12, "validation_images": 3000}, None, (12, 3000)),
        ({"validation_accuracy": 0.666667, "validation_images": 3}, None, (1, 3)),
        ({"accuracy": 0.9961, "validation_accuracy": 0.996}, (39, 10_000), None),
    ],
    ids=["whole", "old", "errors", "images", "no count", "another", "validation", "thirds", "both"],
)
def test_errors_are_whole_numbers(run: Any, test: Any, validation: Any, tmp_path: Path) -> None:
    found = read(tmp_path, run, run)
    parts: list[tuple[study_file.Part, Any]] = [("test", test), ("validation", validation)]
    for part, expected in parts:
        errors, images = found.errors(part), found.images(part)
        assert (errors is None, images is None) == (expected is None, expected is None)
        if expected:
            assert errors is not None
            assert errors.dtype == np.int64
            assert (errors.tolist(), images) == ([expected[0]] * 2, expected[1])


@pytest.mark.parametrize("prefix", ["", "validation_"], ids=["test", "validation"])
@pytest.mark.parametrize(
    ("errors", "images", "reason"),
    [
        (40, 10_000, "PREFIXerrors 40 of PREFIXimages 10,000 contradict PREFIXaccuracy 0.9961"),
        (40, 39, "PREFIXerrors 40 are more than PREFIXimages 39"),
        (0, 0, "Input should be greater than or equal to 1"),
    ],
    ids=["other accuracy", "too many", "no images"],
)
def test_counts_that_contradict_are_one_line(
    prefix: str, errors: int, images: int, reason: str, tmp_path: Path
) -> None:
    run = {f"{prefix}accuracy": 0.9961, f"{prefix}errors": errors, f"{prefix}images": images}
    with pytest.raises(UserError) as raised:
        read(tmp_path, {"accuracy": 0.9961}, run)
    assert str(raised.value).startswith(f"{tmp_path / 'a.json'}: runs.1")
    assert str(raised.value).endswith(f": {reason.replace('PREFIX', prefix)}")


def test_errors_of_other_numbers_of_images_are_not_comparable(tmp_path: Path) -> None:
    found = read(tmp_path, {"accuracy": 0.99, "images": 100}, {"accuracy": 0.99, "images": 200})
    assert (found.errors("test"), found.images("test")) == (None, None)
    assert found.accuracies.tolist() == [0.99, 0.99]


def test_a_study_without_the_test_set(tmp_path: Path) -> None:
    found = read(tmp_path, *[{"validation_accuracy": 0.996, "validation_errors": 12, "validation_images": 3000}] * 2)
    with pytest.raises(UserError, match="a: not every run has a test accuracy; `python -m review.study --test` has"):
        _ = found.accuracies
    with pytest.raises(UserError, match="runs.0: has neither accuracy nor validation_accuracy"):
        read(tmp_path, {"loss": 0.1}, {"accuracy": 0.9})
