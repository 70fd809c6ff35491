"""What a sweep makes of runs: settings, statistics, notes, a picture; tests/test_experiments.py has real ones."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from integrity import revisions
from integrity.dvc_lock import LockedFile
from integrity.revisions import Revision
from review import sweep, sweep_figure
from stages.common import paths
from stages.common.digests import path_md5
from stages.common.errors import UserError
from tests import search_toy
from tests.forging import OTHER_MD5, relock

TRAIN = paths.TRAIN_METRICS.as_posix()


def run(name: str, accuracy: float | None, validation: str = "0" * 32, **params: Any) -> Revision:
    """A run that measured this; parameters with __ for the dot."""
    values = {"train.seed": 0, **{key.replace("__", "."): value for key, value in params.items()}}
    metrics: dict[str, Any] = {} if accuracy is None else {"validation_accuracy": accuracy, "validation_loss": 1.0}
    read_by = {key: ["train"] for key in values if key != "models.unread"}
    outs = {path: LockedFile(path=path, md5=validation) for path in [paths.VALIDATION.as_posix()]}
    return Revision(name, "0" * 40, values, read_by, {TRAIN: metrics}, outs)


def summary(runs: list[Revision], metric: str = "validation_accuracy") -> dict[str, Any]:
    return sweep.summary(runs, metric, 0.05)


GRID = [
    run(f"{lr}-{size}-{seed}", 0.9 + 10 * lr + 0.001 * seed, optimizers__lr=lr, train__size=size, train__seed=seed)
    for lr in (0.001, 0.004)
    for size in ([1, 2], [3])
    for seed in (1, 0)
]


def test_seeds_are_no_setting_and_the_best_comes_first() -> None:
    found = summary(GRID)
    assert found["varied"] == ["optimizers.lr", "train.size"]
    assert [row["parameters"]["optimizers.lr"] for row in found["settings"]] == [0.004, 0.004, 0.001, 0.001]
    assert [row["parameters"]["train.size"] for row in found["settings"]] == [[1, 2], [3], [1, 2], [3]]
    for row in found["settings"]:
        assert row["seeds"] == [0, 1]
        assert row["mean"] == pytest.approx(0.9 + 10 * row["parameters"]["optimizers.lr"] + 0.0005)
        assert row["deviation"] == pytest.approx(0.001 / math.sqrt(2))
    assert found["deviation"] == pytest.approx(0.001 / math.sqrt(2))
    assert [row["verdict"] for row in found["settings"]] == ["best", "within noise", "worse", "worse"]
    assert found["notes"] == []


def test_of_losses_the_lowest_is_best() -> None:
    runs = [run("a", 0.9, optimizers__lr=1), run("b", 0.8, optimizers__lr=2)]
    assert [row["mean"] for row in summary(runs)["settings"]] == [0.9, 0.8]
    runs[0].metrics[TRAIN]["validation_loss"] = 3.0
    assert [row["mean"] for row in summary(runs, "validation_loss")["settings"]] == [1.0, 3.0]


def test_what_no_stage_reads_is_no_difference() -> None:
    found = summary([run("a", 0.9, models__unread=1), run("b", 0.8, models__unread=2, train__seed=1)])
    assert found["varied"] == []
    assert [row["values"] for row in found["settings"]] == [[0.9, 0.8]]


def test_a_run_is_counted_once() -> None:
    found = summary([run("a", 0.9), run("again", 0.9), run("b", 0.8, train__seed=1)])
    assert found["settings"][0]["values"] == [0.9, 0.8]
    assert found["notes"] == ["again: left out: the same parameters and seed as another experiment"]


@pytest.mark.parametrize("seed", [0, 1])
def test_other_code_or_data_is_another_setting(seed: int) -> None:
    """Neither another seed of the same setting, nor left out; an input that the parameters explain is no column."""
    runs = [run("a", 0.9, lr=1), run("b", 0.8, lr=1, train__seed=seed), run("c", 0.7, lr=2)]
    old, new = {"train.py": "0" * 32, "data": "1" * 32}, {"train.py": "2" * 32, "data": "1" * 32}
    found = summary(sweep.with_inputs(runs, [old, new, {**old, "data": "3" * 32}]))
    assert found["varied"] == ["lr", "train.py"]
    assert [row["parameters"] for row in found["settings"]] == [
        {"lr": 1, "train.py": "0000000"},
        {"lr": 1, "train.py": "2222222"},
        {"lr": 2, "train.py": "0000000"},
    ]
    assert [row["values"] for row in found["settings"]] == [[0.9], [0.8], [0.7]]
    assert found["notes"] == []


def test_the_code_of_an_experiment_is_the_one_that_it_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = search_toy.started(tmp_path / "project")
    head = project.run("git", "rev-parse", "HEAD").strip()
    for name in ("old", "new"):
        if name == "new":
            relock(project, lambda stages: stages["train"]["deps"][1].update(md5=OTHER_MD5))
        project.run("git", "commit", "-qam", name, "--allow-empty")
        project.run("git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", "HEAD")
    project.run("git", "reset", "-q", "--hard", head)
    monkeypatch.chdir(project.path)
    with revisions.repository() as repo:
        runs = sweep.read(repo, revisions.resolve(repo, "HEAD"), "*")
    new, old = (row["parameters"]["train.py"] for row in summary(runs)["settings"])  # equally good: by name
    assert (new, old) == (OTHER_MD5[:7], str(path_md5(project.path, "train.py"))[:7])


def test_one_seed_has_no_verdict_and_missing_ones_are_told() -> None:
    found = summary([run("a", 0.9, optimizers__lr=1), run("b", 0.8, optimizers__lr=2)])
    assert (found["deviation"], [row["verdict"] for row in found["settings"]]) == (None, [None, None])
    assert summary(GRID[:-1])["notes"] == ["the settings have different numbers of seeds: 1 to 2"]


def test_other_validation_images_are_told() -> None:
    (note,) = summary([run("a", 0.9), run("b", 0.8, validation="1" * 32, train__seed=1)])["notes"]
    assert note.startswith("the runs have 2 different validation sets")


def test_a_run_without_validation_is_one_line() -> None:
    with pytest.raises(UserError, match="^b: metrics/train.json has no validation_accuracy; run it with preprocess"):
        summary([run("a", 0.9), run("b", None, train__seed=1)])


def test_a_sweep_of_a_regression_is_judged_by_r2() -> None:
    runs = [run(name, None, train__loss=loss) for name, loss in (("a", "mse"), ("b", "mae"))]
    for each, r2 in zip(runs, (-0.25, 0.75), strict=True):
        each.metrics[TRAIN] |= {"validation_r2": r2, "validation_loss": 1.0}
    found = summary(runs, "validation_r2")
    assert [setting["parameters"]["train.loss"] for setting in found["settings"]] == ["mae", "mse"]
    assert "0.7500" in sweep.text({"commit": "0" * 40, **found})
    with pytest.raises(UserError, match=r"no validation_accuracy; allowed: --metric validation_loss \| validation_r2$"):
        summary(runs)


@pytest.mark.parametrize(
    ("groups", "verdicts"),
    [
        ([[0.9, 0.9]], ["best"]),
        ([[0.9, 0.9], [0.9, 0.9], [0.8, 0.8]], ["best", "within noise", None]),
        ([[0.9], [0.8, 0.7]], [None, None]),
    ],
)
def test_verdicts_at_the_edges(groups: list[list[float]], verdicts: list[str | None]) -> None:
    assert sweep.verdicts(groups, 0.05) == verdicts


def test_equal_settings_are_seldom_called_worse() -> None:
    random = np.random.default_rng(0)
    trials = 40  # the distribution of Tukey's range takes its time
    alarms = 0
    for _ in range(trials):
        groups = sorted((random.normal(size=3).tolist() for _ in range(4)), key=np.mean, reverse=True)
        alarms += "worse" in sweep.verdicts(groups, 0.05)
    assert alarms <= 0.05 * trials + 3 * math.sqrt(trials * 0.05 * 0.95)  # the best against the rest is fewer than all


@pytest.mark.parametrize("runs", [GRID, GRID[:1], [run(c, 0.9, model__name=c) for c in "ab"]])
def test_a_plot_of_any_shape(runs: list[Revision]) -> None:
    assert sweep_figure.draw(summary(runs)).startswith(b"\x89PNG")


def test_more_lines_than_can_be_told_apart() -> None:
    runs = [run(f"{x}{y}", 0.9, optimizers__lr=x, train__size=y) for x in range(9) for y in range(8)]
    with pytest.raises(UserError, match="--plot draws 7 lines at most, and these experiments have 8 settings of"):
        sweep_figure.draw(summary(runs))


def test_places_on_the_axis() -> None:
    assert sweep_figure._places([1, 2, 4]) == {"1": 0.0, "2": 0.5, "4": 1.0}  # by their logarithm
    assert sweep_figure._places([0, 1, 4]) == {"0": 0.0, "1": 0.25, "4": 1.0}
    assert list(sweep_figure._places(["b2", "b10", "b1"])) == ["b1", "b2", "b10"]


ODD = ["value", "seeds", "mean", "against the best", "parameters", "a|b", "$x$", "two\nlines", "ü\x1b[2J", "_x"]


@pytest.mark.parametrize("key", ODD, ids=[f"name {number}" for number in range(len(ODD))])
def test_parameters_may_be_called_anything(key: str) -> None:
    runs = [run(f"{value}-{seed}", 0.9 + value / 50, train__seed=seed) for value in (1, 2) for seed in (0, 1)]
    for each in runs:
        assert each.params is not None
        each.params[key] = int(each.name[0])
        each.read_by[key] = ["train"]
    document = {"commit": "0" * 40, **summary(runs)}
    assert document["varied"] == [key]
    assert [row["parameters"] for row in document["settings"]] == [{key: 2}, {key: 1}]
    assert [row["seeds"] for row in document["settings"]] == [[0, 1], [0, 1]]
    shown = sweep.text(document).splitlines()
    assert shown[0].split()[-6:] == ["seeds", "mean", "deviation", "against", "the", "best"]
    assert [line.split()[0] for line in shown[1:3]] == ["2", "1"]
    assert len(sweep.markdown(document).split("\n\n")[0].splitlines()) == 4
    assert sweep_figure.draw(document).startswith(b"\x89PNG")


def test_an_experiment_may_lack_a_key_that_another_has() -> None:
    runs = [run("a", 0.9, new=None), run("b", 0.8), run("c", 0.9, new=None, train__seed=1)]
    runs[1].metrics["metrics/data.json"] = {}
    document = {"commit": "0" * 40, **summary(runs)}
    assert [row["parameters"] for row in document["settings"]] == [{"new": None}, {}]
    assert [line.split()[0] for line in sweep.text(document).splitlines()[1:3]] == ["null", "-"]
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert sweep_figure.draw(document).startswith(b"\x89PNG")


def test_an_experiment_that_lacks_more_is_one_line() -> None:
    runs = [run("a", 0.9), run("b", 0.8)]
    assert runs[1].params is not None
    del runs[1].params["train.seed"]
    with pytest.raises(UserError, match="^b: params.yaml there has no train.seed$"):
        summary(runs)
    runs = [run("a", 0.9), run("b", 0.8, train__seed=1)]
    runs[1].metrics.clear()
    with pytest.raises(UserError, match="^b: metrics/train.json has no validation_accuracy; "):
        summary(runs)


def test_seeds_are_sorted_as_numbers() -> None:
    (setting,) = summary([run(str(seed), 0.9, train__seed=seed) for seed in (10, 9, 100)])["settings"]
    assert setting["seeds"] == [9, 10, 100]


def test_equal_numbers_written_otherwise_have_one_place() -> None:
    assert sweep_figure._places([1, 1.0, 2]) == {"1": 0.0, "1.0": 0.0, "2": 1.0}


def test_equal_accuracies_are_never_a_difference() -> None:
    wrong = []
    for value in range(9900, 10_000, 7):
        for a in range(2, 11):
            groups = [[value / 10_000] * a, [value / 10_000] * (13 - a), [0.5, 0.5]]
            wrong += [(value, a)] * (sweep.verdicts(groups[:2], 0.05) != ["best", "within noise"])
            wrong += [(value, a)] * (sweep.verdicts(groups, 0.05) != ["best", "within noise", None])
    assert wrong == []
    # Equal means where seeds do differ.
    pair = [0.993, 0.995]
    assert sweep.verdicts([pair, pair * 2, [0.9, 0.9001]], 0.05) == ["best", "within noise", "worse"]
