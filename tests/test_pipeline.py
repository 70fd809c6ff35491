"""The whole pipeline through `dvc repro`, on real MNIST, in a clone: what runs, what does not, what is shared.

The tests of this file share one clone and run in their order; each begins with everything up to date.
"""

import json
import re
import shutil
import sys
import warnings
from pathlib import Path

import pytest
from dvc.repo import Repo

from integrity import revisions
from stages.common import params
from tests.clones import Clone

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it


@pytest.fixture
def here(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """The clone, for DVC in this process: starting Python for each of its commands takes most of their time."""
    for name, value in clone.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(clone.path)
    warnings.simplefilter("ignore")  # DVC's own; pytest puts the filters back
    return clone


def test_it_trains_and_measures(clone: Clone) -> None:
    evaluated, trained, data = (clone.metrics(name) for name in ("evaluate", "train", "data"))
    assert evaluated["images"] == 10_000
    assert evaluated["accuracy"] > 0.9
    assert evaluated["accuracy"] == pytest.approx(1 - evaluated["errors"] / 10_000)
    assert evaluated["accuracy_low"] < evaluated["accuracy"] < evaluated["accuracy_high"]
    assert trained["parameters"] == 784 * 64 + 64 + 64 * 10 + 10
    assert trained["epochs_run"] == 1
    assert data["images"] == {"train": 57_000, "validation": 3_000, "test": 10_000}
    predictions = (clone.path / "data/predictions.csv").read_text(encoding="utf-8").splitlines()
    assert len(predictions) == 10_001
    assert predictions[0].startswith("index,label,prediction,probability")


def test_nothing_runs_twice(clone: Clone) -> None:
    assert clone.repro() == []
    assert "up to date" in clone.dvc("status")


# The stages that a change of each key makes DVC run first; whatever reads the results of these runs after them.
FIRST = {
    ("data.mirrors", "[/x]"): "download",
    ("preprocess.seed", "1"): "preprocess",
    ("preprocess.normalization", "half"): "preprocess",
    ("train.batch_size", "512"): "train",
    ("train.augmentation", "[random_resized_crop, flip]"): "train",
    ("model.name", "cnn"): "train weights",  # which then has nothing to do
    ("models.mlp.hidden", "32"): "train",
    ("optimizers.adam.lr", "0.002"): "train",
    ("models.cnn.hidden", "64"): None,  # not the chosen one, as those below
    ("optimizers.sgd.lr", "0.5"): None,
    ("augmentations.shift.pixels", "1"): "train",  # not the chosen one, but DVC cannot fill in a list of names
    ("class_weights.effective.beta", "0.9"): None,
    ("models.torchvision.dropout", "0.5"): None,
    ("models.torchvision.weights", "default"): "weights",
    ("weights.mirrors", "[/x]"): "weights",
    ("evaluate.calibration_bins", "10"): "evaluate",
    ("evaluate.worst_images", "9"): "evaluate",
}


def test_a_change_runs_the_stage_that_reads_it_and_no_other(here: Clone) -> None:
    original = (here.path / "params.yaml").read_bytes()
    found = {}
    with Repo() as repo:
        assert repo.status() == {}
        for key, value in FIRST:
            here.set(key, value)
            repo._reset()  # it keeps what it has read
            found[key, value] = set(repo.status())
            (here.path / "params.yaml").write_bytes(original)
    assert found == {change: {"check", *(stages or "").split()} for change, stages in FIRST.items()}


@pytest.mark.night
def test_a_change_of_the_first_stage_runs_all_that_follow(clone: Clone) -> None:
    clone.set("preprocess.seed", "1")
    clone.set("evaluate.worst_images", "9")
    assert clone.repro() == ["preprocess", "train", "evaluate"]
    clone.set("models.cnn.hidden", "64")  # not the chosen one
    assert clone.repro() == []


OTHER_MACHINE = {
    "processes": 2,
    "threads": 2,
    "num_workers": 1,
    "log_every_steps": 7,
    "checkpoint_every_seconds": 0.5,
    "timeout_seconds": 30,
}


def test_another_machine_setting_runs_nothing_and_is_no_difference(
    here: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    with revisions.repository() as repo:
        before = revisions.read(repo, None)
    for key, value in OTHER_MACHINE.items():
        here.set(f"machine.{key}", str(value))
        monkeypatch.setenv(f"MACHINE_{key.upper()}", str(value))
    assert params.load(Path("params.yaml"))["machine"] == OTHER_MACHINE
    with Repo() as repo:
        assert repo.status() == {}
    with revisions.repository() as repo:
        assert revisions.read(repo, None) == before


def test_a_wrong_machine_setting_is_one_line_where_a_stage_reads_it(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone.set("machine.threads", "-1")
    clone.set("evaluate.worst_images", "9")
    assert_only_the_check_ran(clone.dvc("repro", check=False), "machine.threads is -1; allowed: a whole number")
    clone.set("machine.threads", "0")
    monkeypatch.setitem(clone.environment, "MACHINE_THREADS", "-1")
    output = clone.dvc("repro", check=False)
    assert "error: MACHINE_THREADS is '-1'; allowed: a whole number, at least 0, at most 1,024" in output
    assert "Traceback" not in output


def test_another_mirror_fetches_again_and_changes_nothing_else(clone: Clone, tmp_path: Path) -> None:
    shutil.copytree(clone.path / "data/raw", tmp_path / "mirror")
    clone.set("data.mirrors", f"[{tmp_path / 'mirror'}]")
    assert clone.repro() == ["download"]


@pytest.mark.soak
def test_each_seed_gives_the_bytes_of_a_run_with_it(clone: Clone) -> None:
    clone.run(sys.executable, "-m", "seeds", "2")
    places = [clone.path / f"data/seeds/predictions/{seed}.csv" for seed in (0, 1)]
    assert places[0].read_bytes() == (clone.path / "data/predictions.csv").read_bytes()
    assert clone.repro() == []  # a plain repro knows no seeds
    rows = clone.metrics("seeds")["seeds"]
    clone.set("train.seed", "1")
    assert clone.repro() == ["train", "evaluate"]
    assert places[1].read_bytes() == (clone.path / "data/predictions.csv").read_bytes()
    assert [row["accuracy"] for row in rows][1] == clone.metrics("evaluate")["accuracy"]
    assert rows[1]["validation_accuracy"] == clone.metrics("train")["validation_accuracy"]
    again = clone.run(sys.executable, "-m", "seeds", "2")
    assert "Running stage 'seeds/dvc.yaml:seed" not in again


@pytest.mark.night
def test_an_experiment_with_seeds_is_compared_by_them(clone: Clone) -> None:
    clone.run(sys.executable, "-m", "seeds", "2")
    options = ["-S", "models.mlp.hidden=8", "-S", "seeds/seeds.yaml:seeds=[0, 1]", "seeds/dvc.yaml"]
    clone.run("git", "add", "--all")
    clone.run("git", "commit", "-qm", "seeds")
    clone.dvc("exp", "run", "--temp", "-n", "narrow", *options)
    output = " ".join(clone.run(sys.executable, "-m", "review.compare", "main", "narrow").split())
    assert (
        "narrow is worse than main: mean test accuracy" in output or "narrow against main: within noise: mean" in output
    )


@pytest.mark.soak
@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Fashion-MNIST: Debian's package dataset-fashion-mnist")
def test_another_data_set_runs_everything(clone: Clone) -> None:
    clone.set("data.name", "fashion-mnist")
    clone.set("data.mirrors", f"[{FASHION}]")
    assert clone.repro() == ["download", "preprocess", "train", "evaluate"]
    assert clone.metrics("evaluate")["classes"][0]["class"] == "T-shirt/top"
    assert 0.75 < clone.metrics("evaluate")["accuracy"] < 0.95


def test_code_that_a_stage_does_not_import_does_not_run_it(clone: Clone) -> None:
    with (clone.path / "stages/train/optimizers.py").open("a", encoding="utf-8") as file:
        file.write("# a change\n")
    assert clone.repro() == ["train"]  # the model is the same, so evaluate is up to date


def test_results_come_back_from_the_run_cache(clone: Clone) -> None:
    before = clone.metrics("evaluate")
    clone.set("train.optimizer", "sgd")
    assert clone.repro() == ["train", "evaluate"]
    assert clone.metrics("evaluate") != before
    clone.set("train.optimizer", "adam")
    assert clone.repro() == []
    assert clone.metrics("evaluate") == before


WRONG = {
    "optimizer": (
        ["train.optimizer=adm"],
        "train.optimizer is 'adm'; allowed: sgd | adam | adamw | rmsprop (did you mean",
    ),
    "bins": (["evaluate.calibration_bins=1"], "evaluate.calibration_bins is 1; allowed: a whole number, at least 2"),
    "precision": (
        ["train.precision=float16", "train.device=cpu"],
        "train.precision is float16 and train.device is cpu",
    ),
    "validation": (
        ["preprocess.validation_fraction=0.00001", "train.early_stopping_patience_epochs=2"],
        "train.early_stopping_patience_epochs is 2, and preprocess.validation_fraction is 1e-05, which leaves no image",
    ),
}


@pytest.mark.parametrize(
    "mistake",
    [pytest.param(name, marks=pytest.mark.night) if name in ("bins", "precision") else name for name in WRONG],
)
def test_a_wrong_parameter_is_found_before_anything_runs(mistake: str, clone: Clone) -> None:
    settings, line = WRONG[mistake]
    for setting in [*settings, "preprocess.seed=1"]:
        clone.set(*setting.split("=", 1))
    assert_only_the_check_ran(clone.dvc("repro", check=False), line)
    clone.run("git", "checkout", "-q", "params.yaml")
    assert clone.repro() == []
    assert (clone.path / "data/model/model.safetensors").is_file()


@pytest.mark.parametrize(
    "command",
    ["repro train", "exp run -S train.optimizer=adm", "exp run --temp -S train.optimizer=adm"],
    ids=["one-stage", "experiment", "temporary-experiment"],
)
def test_a_wrong_choice_is_found_whatever_starts_the_stages(command: str, clone: Clone) -> None:
    if command == "repro train":
        clone.set("train.optimizer", "adm")
    assert_only_the_check_ran(clone.dvc(*command.split(), check=False), WRONG["optimizer"][1])


def assert_only_the_check_ran(output: str, line: str) -> None:
    assert f"error: params.yaml: {line}" in output
    assert re.findall(r"Running stage '(\w+)'", output) == ["check"]
    assert "Traceback" not in output


def test_parameters_that_no_stage_uses_are_read_by_none(here: Clone) -> None:
    """`check` reads all; what is compared are results, and none depends on the value of a block that is not chosen."""
    here.set("models.cnn.hidden", "64")
    with revisions.repository() as repo:
        tree = revisions.read(repo, None)
    assert tree.params is not None
    assert tree.params["models.cnn.hidden"] == 64
    assert tree.read_by["models.mlp.hidden"] == ["train"]
    assert "models.cnn.hidden" not in tree.read_by
    assert not any("hidden" in note for note in tree.notes)


def test_branches_compare_without_a_pull(clone: Clone, tmp_path: Path) -> None:
    clone.run("git", "checkout", "-qb", "sgd")
    clone.set("train.optimizer", "sgd")
    clone.repro()
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


def test_a_first_commit_of_the_results_holds_no_data(clone: Clone) -> None:
    files = clone.run("git", "ls-files", "data").split()
    kept = ("no-images/.gitkeep", "weights/none", "weights/default")
    assert all(name.endswith(kept) for name in files)
