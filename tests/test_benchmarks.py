"""The figures in docs/performance.md are those of the committed measurements."""

import json

import pytest

from benchmarks import __main__ as bench
from benchmarks import gate, hashes, power, pretrained, studies, tables
from benchmarks.scratch import changed
from benchmarks.summary import spread
from tests.imports import ROOT

PAGE = (ROOT / "docs/performance.md").read_text(encoding="utf-8")


def test_the_page_has_the_tables_of_the_benchmarks() -> None:
    results = json.loads((ROOT / bench.RESULTS).read_text(encoding="utf-8"))
    assert set(results) == set(bench.PARTS) == set(tables.ROWS)
    assert tables.measurements(results) in PAGE
    assert tables.origins(results) in PAGE


def test_the_page_has_the_table_of_the_seed_studies() -> None:
    assert studies.table(studies.load()) in PAGE


@pytest.mark.parametrize("name", studies.load())
def test_a_study_adds_up(name: str) -> None:
    study = studies.load()[name]
    accuracies = [run["accuracy"] for run in study["runs"]]
    assert study["accuracy"]["mean"] == pytest.approx(sum(accuracies) / len(accuracies), abs=1e-6)
    assert [run["seed"] for run in study["runs"]] == list(range(len(accuracies)))
    assert set(studies.recipe(name)) - {"-S"} <= set(study.get("overrides", []))  # of the recipe as it is today


def test_every_recipe_has_a_name_and_valid_parameters() -> None:
    recipes = sorted(path.stem for path in studies.RECIPES.glob("*.txt"))
    assert sorted([*recipes, studies.DEFAULT]) == sorted(studies.NAMES)
    for name in recipes:
        changed(studies.recipe(name))


def test_summary_of_a_study() -> None:
    deviation_of_mean = 0.01 / 3**0.5
    assert studies.summary([0.97, 0.98, 0.99]) == {
        "mean": 0.98,
        "min": 0.97,
        "max": 0.99,
        "n": 3,
        "standard_deviation": 0.01,
        "low": round(0.98 - 4.302653 * deviation_of_mean, 6),  # Student's t, two degrees of freedom
        "high": round(0.98 + 4.302653 * deviation_of_mean, 6),
    }
    assert studies.summary([0.98]) == {"mean": 0.98, "min": 0.98, "max": 0.98, "n": 1}


def test_the_page_has_the_table_of_the_power_of_seeds() -> None:
    assert power.table() in (ROOT / "docs/review.md").read_text(encoding="utf-8")


def test_the_page_has_the_table_of_the_gate() -> None:
    assert gate.table() in (ROOT / "docs/review.md").read_text(encoding="utf-8")


def test_the_page_has_the_table_of_pretrained_weights() -> None:
    result = json.loads(pretrained.RESULTS.read_text(encoding="utf-8"))
    assert pretrained.table(result) in (ROOT / "docs/networks.md").read_text(encoding="utf-8")


def test_spread() -> None:
    assert spread([3.0, 1.0, 2.0]) == {
        "median": 2.0,
        "mean": 2.0,
        "standard_deviation": 1.0,
        "min": 1.0,
        "max": 3.0,
        "n": 3,
    }
    assert spread([1.5])["standard_deviation"] == 0


def test_the_page_has_the_table_of_hashes_which_are_equal() -> None:
    rows = json.loads((ROOT / hashes.RESULTS).read_text(encoding="utf-8"))["rows"]
    assert hashes.table(rows) in (ROOT / "docs/several-machines.md").read_text(encoding="utf-8")
    assert len({text for _, _, row in rows for text in row}) == 1


@pytest.mark.night  # 27 trainings
def test_any_number_of_processes_threads_and_hosts_gives_one_hash() -> None:
    assert len({text for _, _, row in hashes.measure() for text in row}) == 1
