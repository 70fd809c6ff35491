"""The whole pipeline through `dvc repro`, on real MNIST, in a clone: what runs, what does not, what is shared.

The tests of this file share one clone and run in their order; each begins with everything up to date.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.clones import Clone

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it


def test_it_trains_and_measures(clone: Clone) -> None:
    evaluated, trained, data = (clone.metrics(name) for name in ("evaluate", "train", "data"))
    assert evaluated["images"] == 10_000
    assert evaluated["accuracy"] > 0.9
    assert evaluated["accuracy"] == pytest.approx(1 - evaluated["errors"] / 10_000)
    assert evaluated["accuracy_low"] < evaluated["accuracy"] < evaluated["accuracy_high"]
    assert trained["parameters"] == 784 * 512 + 512 + 512 * 10 + 10
    assert trained["epochs_run"] == 1
    assert data["images"] == {"train": 57_000, "validation": 3_000, "test": 10_000}
    predictions = (clone.path / "data/predictions.csv").read_text(encoding="utf-8").splitlines()
    assert len(predictions) == 10_001
    assert predictions[0].startswith("index,label,prediction,probability")


def test_nothing_runs_twice(clone: Clone) -> None:
    assert clone.repro() == []
    assert "up to date" in clone.dvc("status")


@pytest.mark.parametrize(
    ("key", "value", "stages"),
    [
        ("evaluate.calibration_bins", "10", ["evaluate"]),
        ("evaluate.worst_images", "9", ["evaluate"]),
        ("train.batch_size", "512", ["train", "evaluate"]),
        ("model.name", "cnn", ["train", "evaluate"]),
        ("models.mlp.hidden", "64", ["train", "evaluate"]),
        ("models.cnn.hidden", "64", []),  # not the chosen one
        ("optimizers.adam.lr", "0.002", ["train", "evaluate"]),
        ("optimizers.sgd.lr", "0.5", []),
        ("augmentations.shift.pixels", "1", []),
        ("preprocess.seed", "1", ["preprocess", "train", "evaluate"]),
        ("preprocess.normalization", "half", ["preprocess", "train", "evaluate"]),
    ],
)
def test_a_change_runs_what_depends_on_it_and_nothing_else(
    key: str, value: str, stages: list[str], clone: Clone
) -> None:
    clone.set(key, value)
    assert clone.repro() == stages


def test_another_mirror_fetches_again_and_changes_nothing_else(clone: Clone, tmp_path: Path) -> None:
    shutil.copytree(clone.path / "data/raw", tmp_path / "mirror")
    clone.set("data.mirrors", f"[{tmp_path / 'mirror'}]")
    assert clone.repro() == ["download"]


def test_a_seed_study_touches_nothing_that_is_tracked(clone: Clone) -> None:
    clone.environment["PYTHONPATH"] = str(clone.path)
    options = ["-S", "models.mlp.hidden=32", "--seeds", "2", "--jobs", "2", "--test", "--out", "../study.json"]
    told = clone.run(sys.executable, "-m", "stages.study", *options)
    assert re.search(r"seed 1, validation 9\d\.\d\d%, test 9\d\.\d\d%", told)
    study = json.loads((clone.path.parent / "study.json").read_text(encoding="utf-8"))
    assert [run["seed"] for run in study["runs"]] == [0, 1]
    assert study["runs"][0]["accuracy"] != study["runs"][1]["accuracy"]
    assert 0.9 < study["accuracy"]["low"] < study["accuracy"]["mean"] < 0.99
    assert study["overrides"] == ["models.mlp.hidden=32"]
    assert clone.run("git", "status", "--short") == ""
    assert clone.repro() == []
    failed = clone.run(sys.executable, "-m", "stages.study", "-S", "train.epochs=0", check=False)
    assert failed.splitlines()[-1].startswith("error: params.yaml: train.epochs is 0; allowed")


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Fashion-MNIST: Debian's package dataset-fashion-mnist")
def test_another_data_set_runs_everything(clone: Clone) -> None:
    clone.set("data.name", "fashion-mnist")
    clone.set("data.mirrors", f"[{FASHION}]")
    assert clone.repro() == ["download", "preprocess", "train", "evaluate"]
    assert clone.metrics("evaluate")["classes"][0]["class"] == "T-shirt/top"
    assert 0.75 < clone.metrics("evaluate")["accuracy"] < 0.95


def test_code_that_a_stage_does_not_import_does_not_run_it(clone: Clone) -> None:
    with (clone.path / "stages/optimizers.py").open("a", encoding="utf-8") as file:
        file.write("# a change\n")
    assert clone.repro() == ["train"]  # the model is the same, so evaluate is up to date


def test_results_come_back_from_the_run_cache(clone: Clone) -> None:
    before = clone.metrics("evaluate")
    clone.set("train.seed", "7")
    assert clone.repro() == ["train", "evaluate"]
    assert clone.metrics("evaluate") != before
    clone.set("train.seed", "0")
    assert clone.repro() == []
    assert clone.metrics("evaluate") == before


def test_a_wrong_parameter_is_one_line_and_loses_nothing(clone: Clone) -> None:
    clone.set("train.epochs", "many")
    output = clone.dvc("repro", check=False)
    assert "error: params.yaml: train.epochs is 'many'; allowed: a whole number, at least 1" in output
    assert "Traceback" not in output
    clone.set("train.epochs", "1")
    assert clone.repro() == []
    assert (clone.path / "data/model/model.safetensors").is_file()


def test_the_same_inputs_give_the_same_bytes(clone: Clone) -> None:
    lock = (clone.path / "dvc.lock").read_bytes()
    clone.dvc("repro", "--force", "--no-run-cache")
    assert (clone.path / "dvc.lock").read_bytes() == lock
    assert "metrics/" not in clone.run("git", "status", "--porcelain")


def test_branches_compare_without_a_pull(clone: Clone, tmp_path: Path) -> None:
    clone.run("git", "checkout", "-qb", "sgd")
    clone.set("train.optimizer", "sgd")
    assert clone.repro() == ["train", "evaluate"]
    clone.commit("sgd")
    clone.run("git", "clone", "-q", str(clone.path), str(tmp_path / "git-only"))
    other = Clone(tmp_path / "git-only")
    other.run("git", "fetch", "-q", "origin", "main:main")
    assert not (other.path / ".dvc/cache").exists()
    table = other.dvc("metrics", "diff", "main", "--json")
    accuracy = json.loads(table)["metrics/evaluate.json"] if "metrics/evaluate.json" in table else None
    assert accuracy is not None
    assert accuracy["accuracy"]["diff"] < 0
    assert json.loads(other.dvc("params", "diff", "main", "--json"))["params.yaml"]["train.optimizer"] == {
        "old": "adam",
        "new": "sgd",
    }
    clone.run("git", "checkout", "-qf", "main")
    clone.run("git", "branch", "-qD", "sgd")


def test_a_colleague_pulls_and_runs_nothing(clone: Clone) -> None:
    beside = clone.path.parent / "colleague"  # the default remote is a folder beside the clone
    clone.run("git", "clone", "-q", str(clone.path), str(beside))
    colleague = Clone(beside)
    colleague.dvc("pull")
    assert colleague.repro() == []
    for name in ("data/model/model.safetensors", "data/predictions.csv"):
        assert (beside / name).read_bytes() == (clone.path / name).read_bytes()


def test_an_experiment_by_parameters_alone(clone: Clone) -> None:
    clone.dvc("exp", "run", "-n", "rms", "-S", "train.optimizer=rmsprop", "-S", "optimizers.rmsprop.lr=1e-4")
    assert "rms" in clone.dvc("exp", "list")
    shown = clone.dvc("exp", "show", "--csv")
    assert "rmsprop" in shown
    assert clone.metrics("evaluate")["accuracy"] > 0.5
    clone.dvc("exp", "remove", "rms")  # other files share this clone


def test_a_first_commit_of_the_results_holds_no_data(clone: Clone) -> None:
    files = clone.run("git", "ls-files", "data").split()
    assert all(name.endswith(".gitignore") for name in files)
