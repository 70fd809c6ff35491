"""The seed study: overrides as DVC takes them, the statistics, and that nothing tracked is touched (test_pipeline)."""

import copy
import statistics

import pytest

from stages import params, study
from stages.errors import UserError
from tests.imports import ROOT

DEFAULTS = params.load(ROOT / "params.yaml")


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
        ("=3", "-S =3: : not a key of params.yaml"),
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
