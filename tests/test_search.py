"""A search: its file, its trials, what survives a kill, its result. tests/search_toy.py has the project."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from selenium import webdriver

from integrity.only_one import only_one
from review.search import LOCK, outcome, page, space, study
from review.search import __main__ as program
from review.search.__main__ import Search
from review.search.experiments import Place, Result, Rows
from review.search.study import Study
from stages.common import children, params
from stages.common.errors import UserError
from tests import search_toy, test_report
from tests.browser import browser
from tests.faults.lab import PROC, descendants
from tests.imports import ROOT
from tests.programs import need
from tests.toy import Project

OPTIONS = search_toy.SEARCH
EPOCHS = 3


class Here:
    """A folder with the files that a search reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("params.yaml", "dvc.yaml"):
            (path / name).write_bytes((ROOT / name).read_bytes())
        self.write()

    def write(self, definition: Any = None, **options: Any) -> None:
        content = {"search": {**OPTIONS, **options}, "space": definition or search_toy.SPACE}
        (self.path / "search.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def study(self, name: str = "a") -> Study:
        return Study(self.path / name / "journal.log", space.read())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(tmp_path)
    return Here(tmp_path)


def curve(parameters: dict[str, Any]) -> Rows:
    """What the fake runner measures: a function of the parameters alone."""
    lr, seed = parameters["optimizers.adam.lr"], parameters.get("train.seed", 0)
    best = 0.9 - 10 * abs(lr - 0.02) + random.Random(f"{seed} {lr}").gauss(0, 0.0001)
    return [
        {"epoch": epoch, "validation_accuracy": round(best - 0.1**epoch, 6), "validation_loss": round(1 - best, 6)}
        for epoch in range(1, EPOCHS + 1)
    ]


class Fake:
    """Runs nothing. kill_at: how many epochs it reports before it is killed; read_late: it reports all at its end."""

    def __init__(self, kill_at: int = 10**9, read_late: bool = False, diverges: Callable[[float], bool] | None = None):
        self.kill_at, self.read_late, self.epochs = kill_at, read_late, 0
        self.diverges = diverges or (lambda lr: lr > 0.045)
        self.names: list[str] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def __call__(
        self, name: str, parameters: dict[str, Any], on_epochs: Callable[[Rows], None], group: children.Group
    ) -> Result:
        with self.lock:
            self.names.append(name)
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            rows = curve(parameters)
            if self.diverges(parameters["optimizers.adam.lr"]):
                return Result(None, [], "the training loss is nan at epoch 1, step 3: the run diverged")
            for epoch in [EPOCHS] if self.read_late else range(1, EPOCHS + 1):
                self.epochs += "seed" not in name  # of the finals DVC keeps each
                if self.epochs == self.kill_at:
                    raise Killed
                on_epochs(rows[:epoch])
            return Result(rows[-1], rows)
        finally:
            with self.lock:
                self.at_once -= 1


class Killed(BaseException):
    """Stands for SIGKILL."""


def searched(trials: Study, run: Fake) -> dict[str, Any]:
    """The document of a search that ran to its end."""
    search = Search(trials, run, lambda name: None, "s")
    search.run_trials()
    return outcome.document(trials, "s", "0" * 40, search.run_finals())


# search.yaml


def test_the_committed_file_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = space.read()
    assert set(plan.space) == {"optimizers.adam.lr", "train.label_smoothing", "train.batch_size"}
    assert space.point(plan.recipe, plan.space) is not None  # so that the first trial is params.yaml


def test_what_is_missing_or_invalid_is_one_line(here: Here) -> None:
    params = (here.path / "params.yaml").read_text(encoding="utf-8")
    for old, new, line in (
        ("epochs: 5", "epochs: five", "params.yaml: train.epochs is 'five'"),
        ("validation_fraction: 0.05", "validation_fraction: 0", "validation_fraction is 0: a search needs validation"),
    ):
        (here.path / "params.yaml").write_text(params.replace(old, new), encoding="utf-8")
        with pytest.raises(UserError, match=line):
            space.read()
    (here.path / "params.yaml").write_text(params, encoding="utf-8")
    (here.path / "search.yaml").write_text("serach: {}\n", encoding="utf-8")
    with pytest.raises(UserError, match="search.yaml: serach: unknown section .did you mean search.."):
        space.read()
    (here.path / "search.yaml").unlink()
    with pytest.raises(UserError, match="search.yaml: no such file; it says what to try"):
        space.read()


def test_every_trial_must_measure_the_metric(here: Here) -> None:
    params = (here.path / "params.yaml").read_text(encoding="utf-8")
    select = "train.select_by: balanced_accuracy in params.yaml"
    here.write(metric="validation_balanced_accuracy")
    with pytest.raises(UserError, match=f"needs {select}$"):
        space.read()
    balanced = params.replace("select_by: accuracy", "select_by: balanced_accuracy")
    (here.path / "params.yaml").write_text(balanced, encoding="utf-8")
    assert space.read()
    choices = {"train.select_by": {"choices": ["balanced_accuracy", "loss"]}}
    here.write({**search_toy.SPACE, **choices}, metric="validation_balanced_accuracy")
    with pytest.raises(UserError, match=f"needs {select}, and no train.select_by in space$"):
        space.read()

    here.write(metric="validation_r2")
    with pytest.raises(UserError, match="validation_r2, and data.task is classification; allowed: validation_accuracy"):
        space.read()
    for old, new in (
        ("name: mnist", "name: images"),
        ("images: data/no-images", "images: photos"),
        ("task: classification", "task: regression"),
        ("loss: cross_entropy", "loss: mse"),
        ("label_smoothing: 0.05", "label_smoothing: 0.0"),
        ("select_by: accuracy", "select_by: loss"),
    ):
        params = params.replace(old, new, 1)
    (here.path / "params.yaml").write_text(params, encoding="utf-8")
    learning_rate = {"optimizers.adam.lr": search_toy.SPACE["optimizers.adam.lr"]}
    here.write(learning_rate, metric="validation_r2")
    assert space.read().higher_is_better
    here.write(learning_rate)
    with pytest.raises(UserError, match=r"data.task is regression; allowed: validation_r2 \| validation_loss$"):
        space.read()


def test_a_folder_outside_of_git_is_one_line(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["search"])
    with pytest.raises(UserError, match="is in no DVC repository: run this in the project's folder"):
        program.main()


def test_two_at_once_are_refused_in_one_line(here: Here) -> None:
    def hold() -> None:
        with only_one(LOCK, program.BUSY):
            pass

    with only_one(LOCK, program.BUSY), pytest.raises(UserError, match="^another search is running here"):
        hold()
    hold()


def test_a_running_search_can_be_shown(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a copy of its journal, and without its lock."""
    here.write(trials=3)
    searched(here.study("place"), Fake())
    journal = here.path / "place/journal.log"
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker')  # the search is writing
    before = journal.read_bytes()
    place = Place(here.path, "0" * 40, "", journal.parent, [])
    monkeypatch.setattr(program, "identified", lambda root, plan: ("s", place))
    monkeypatch.setattr(Place, "recorded", lambda *_: Result(None, [], "not trained yet"))
    with only_one(LOCK, program.BUSY):
        document = program.shown(here.path, space.read())
    assert [trial["number"] for trial in document["trials"]] == [0, 1, 2]
    assert document["final"] is None
    assert journal.read_bytes() == before
    journal.unlink()
    with pytest.raises(UserError, match=r"^no trials yet of this search.yaml, commit and data \(s\); `make search`"):
        program.shown(here.path, space.read())


# Trials


def test_what_is_drawn_is_inside_readable_and_of_its_kind(here: Here) -> None:
    definition = {
        **search_toy.SPACE,
        "train.epochs": {"low": 2, "high": 9},
        "models.cnn.channels": {"choices": [[16, 32, 32, 64, 64], [8, 8, 8, 8, 8]]},
        "train.shuffle": {"choices": [True, False]},
    }
    here.write(definition, trials=30)
    trials = here.study()
    while trials.propose():
        pass
    first, *drawn = [study.values(trial) for trial in trials.trials]
    assert first == {key: trials.plan.recipe[key] for key in definition}  # the recipe itself is the first one
    for values in drawn:
        assert 0.001 <= values["optimizers.adam.lr"] <= 0.05
        assert len(f"{values['optimizers.adam.lr']:.10g}".lstrip("0.").replace(".", "")) <= space.DIGITS
        assert values["train.label_smoothing"] in [step / 100 for step in range(11)]
        assert type(values["train.epochs"]) is int
        assert values["models.cnn.channels"] in definition["models.cnn.channels"]["choices"]
        assert type(values["train.shuffle"]) is bool
    assert len({values["optimizers.adam.lr"] for values in drawn}) == len(drawn)


def test_trials_end_in_every_way_and_the_winner_is_judged_on_new_seeds(here: Here) -> None:
    here.write(trials=14)
    run = Fake(diverges=lambda lr: lr > 0.04)
    trials = here.study()
    found = searched(trials, run)
    states = [trial["state"] for trial in found["trials"]]
    assert {"finished", "stopped early", "failed"} == set(states)
    for trial in found["trials"]:
        rows = curve(trial["parameters"])
        if trial["state"] == "finished":
            assert trial["value"] == rows[-1]["validation_accuracy"]
            assert trial["epochs"] == EPOCHS
        if trial["state"] == "stopped early":
            assert OPTIONS["warmup_epochs"] < trial["epochs"] < EPOCHS
        if trial["state"] == "failed":
            assert trial["reason"].endswith("the run diverged")
    best = max((trial for trial in found["trials"] if trial["value"]), key=lambda trial: trial["value"])
    assert (found["best"], found["recipe"]) == (best["number"], 0)
    assert found["final"]["seeds"] == [1, 2]  # those of no trial: all had train.seed, 0
    assert found["final"]["winner"] == [
        curve({**best["parameters"], "train.seed": seed})[-1]["validation_accuracy"] for seed in (1, 2)
    ]
    assert found["final"]["word"] == "better"
    assert sum(found["importance"].values()) == pytest.approx(1)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_killed_at_any_moment_it_ends_where_an_undisturbed_one_ends(here: Here, sampler: str) -> None:
    here.write(trials=9, sampler=sampler)
    expected = searched(here.study("undisturbed"), Fake())
    for kill_at in (1, 2, 3, 5):
        name, seen = f"killed-{kill_at}", 0
        while True:
            try:
                found = searched(here.study(name), Fake(kill_at))
                break
            except Killed:
                seen += 1
                journal = here.path / name / "journal.log"
                journal.with_name("journal.log.lock").symlink_to(journal)  # as a kill while it writes leaves it
                with journal.open("ab") as file:
                    file.write(b'{"op_code":4,"worker')
            if kill_at <= EPOCHS:  # it never comes to the end of a trial
                found = searched(here.study(name), Fake())
                break
        assert found == expected
        assert seen


def test_how_late_epochs_are_read_changes_nothing(here: Here) -> None:
    here.write(trials=12)
    assert searched(here.study("late"), Fake(read_late=True)) == searched(here.study("live"), Fake())


def test_more_trials_go_on_from_those_there_are(here: Here) -> None:
    here.write(trials=4)
    searched(here.study(), Fake())
    here.write(trials=9)
    run = Fake()
    found = searched(here.study(), run)
    assert [name for name in run.names if "seed" not in name] == [f"s-{number:04d}" for number in range(4, 9)]
    assert found == searched(here.study("at once"), Fake())


def test_several_at_once_lose_and_repeat_none(here: Here) -> None:
    here.write(trials=12, jobs=3)
    run = Fake()
    barrier = threading.Barrier(3, timeout=600)

    def together(name: str, *rest: Any) -> Result:
        if "seed" not in name:
            barrier.wait()
        return run(name, *rest)

    trials = here.study()
    search = Search(trials, together, lambda name: None, "s")
    search.run_trials()
    assert sorted(run.names) == [f"s-{number:04d}" for number in range(12)]
    assert all(trial.state.is_finished() for trial in trials.trials)


def test_a_budget_in_minutes_counts_all_runs(here: Here) -> None:
    here.write(trials=100, minutes=2, pruner="none")
    trials = here.study()
    for number in (0, 1):
        assert trials.propose()
        trials.finish(number, 0.9, 70)
    assert here.study().propose() is None


def test_where_all_fail_it_ends(here: Here) -> None:
    with pytest.raises(UserError, match="^the first 3 trials failed, the last one with: the training loss is nan"):
        searched(here.study(), Fake(diverges=lambda lr: True))


def test_failures_beside_a_first_trial_that_still_trains_do_not_end_it(here: Here) -> None:
    here.write(trials=8, jobs=4)
    run = Fake(diverges=lambda lr: True)
    failed, trials = threading.Event(), here.study()

    def mostly_failing(name: str, *rest: Any) -> Result:
        if name != "s-0000":
            result = run(name, *rest)
            if name > "s-0003":
                failed.set()
            return result
        assert failed.wait(600)  # three others have failed by then, since a fifth one has begun
        return Fake()(name, *rest)

    Search(trials, mostly_failing, lambda name: None, "s").run_trials()
    assert len(trials.trials) == 8
    assert trials.best() is not None


def test_it_continues_after_the_cause_of_the_first_failures_is_fixed(here: Here) -> None:
    here.write(trials=9)
    with pytest.raises(UserError, match="^the first 3 trials failed"):
        searched(here.study(), Fake(diverges=lambda lr: True))
    found = searched(here.study(), Fake())
    assert [trial["state"] for trial in found["trials"]][:4] == ["failed", "failed", "failed", "finished"]
    assert len(found["trials"]) == 9


def test_seeds_that_do_not_vary_judge_no_winner(here: Here) -> None:
    plan = here.study().plan
    final = outcome.final(([1, 2], [0.97, 0.97], [0.98, 0.98]), plan)
    assert (final["word"], final["p"], final["interval"]) == ("not comparable", None, None)
    line = outcome.verdict({"best": 3, "recipe": 0, "metric": "validation_accuracy", "final": final})
    assert line.endswith(
        "97.000 % -> 98.000 %; neither varies between seeds, so there is no variation to judge the difference by"
    )
    assert outcome.final(([1, 2], [0.97, 0.97], [0.97, 0.97]), plan)["word"] == "within noise"


def test_of_losses_the_lowest_wins(here: Here) -> None:
    here.write(metric="validation_loss", trials=9)
    found = searched(here.study(), Fake())
    finished = [trial for trial in found["trials"] if trial["value"] is not None]
    assert found["trials"][found["best"]]["value"] == min(trial["value"] for trial in finished)
    assert found["final"]["word"] == "better"
    assert found["final"]["difference"] < 0
    assert outcome.ranked(found)[0]["number"] == found["best"]


# The result


def test_the_page_has_every_trial(here: Here) -> None:
    here.write(
        {**search_toy.SPACE, "models.cnn.channels": {"choices": [[16, 32, 32, 64, 64], [8, 8, 8, 8, 8]]}}, trials=14
    )
    found = searched(here.study(), Fake(diverges=lambda lr: lr > 0.04))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert len(outcome.markdown(found).split("\n\n")[0].splitlines()) == 2 + len(found["trials"])
    content = page.page(found)
    for part in ("History", "Importance", "Parallel coordinates", "The best trial against params.yaml", "All trials"):
        assert part in content
    assert content.count("<circle") == 3 + sum(trial["epochs"] > 0 for trial in found["trials"])  # 3 in the legend
    assert page.page(found) == content


@pytest.fixture(scope="module")
def chrome() -> Iterator[webdriver.Chrome]:
    with browser(need("chromium", "chromium"), need("chromium-driver", "chromedriver")) as found:
        yield found


@pytest.mark.parametrize(("width", "scheme"), test_report.SIZES)
def test_the_page_in_a_browser(width: int, scheme: str, here: Here, chrome: webdriver.Chrome) -> None:
    here.write(trials=30)
    found = searched(here.study(), Fake(diverges=lambda lr: lr > 0.04))
    next(trial for trial in found["trials"] if trial["reason"])["reason"] = "<script>throw 1</script> \x1b[2J"
    (here.path / "search.html").write_text(page.page(found), encoding="utf-8")
    test_report.looks_right(chrome, here.path / "search.html", width, scheme, images=0)


def test_a_search_without_a_winner_has_a_page_too(here: Here) -> None:
    here.write(trials=2)
    empty = outcome.document(here.study("empty"), "s", "0" * 40, None)
    assert "No trial finished" in page.page(empty)
    found = searched(here.study(), Fake(diverges=lambda lr: lr != 0.01))
    assert (found["best"], found["recipe"], found["final"]) == (0, 0, None)
    assert "No trial is better than params.yaml" in page.page(found)


@pytest.mark.parametrize(
    ("column", "places"),
    [([1, 2, 3], [208.0, 109.0, 10.0]), ([0.001, 0.01, 0.1], [208.0, 109.0, 10.0]), ([5, 5], [109.0, 109.0])],
)
def test_numbers_lie_to_scale_on_an_axis(column: list[float], places: list[float]) -> None:
    place, ticks = page.axis(column, percent=False)
    assert [place(value) for value in column] == places
    assert {y for y, _ in ticks} == set(places)


# Real experiments of DVC


def test_what_is_shown_is_that_of_the_commit_and_json_is_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also after `dvc exp apply`, and if the stages before train run first."""
    project = search_toy.started(tmp_path / "project")
    project.write("dvc.yaml", search_toy.PIPELINE.replace("echo images", "echo printed; echo images"))
    project.run("git", "commit", "-qam", "another preprocess")
    monkeypatch.chdir(project.path)
    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Place, "run", Fake())
    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", ["search", "--format", "json"])
    program.main()
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert "printed" in err
    assert found["best"] != found["recipe"]

    best = found["trials"][found["best"]]["parameters"]
    applied = space.replaced(params.load(project.path / "params.yaml"), best)
    project.write("params.yaml", yaml.safe_dump(applied, sort_keys=False))
    monkeypatch.setattr(sys, "argv", ["search", "--format", "json", "--show"])
    program.main()
    assert json.loads(capfd.readouterr().out)["params"] == found["params"]


class Program:
    """`python -m review.search` as a process, whose output goes to a file: what it starts may outlive it."""

    def __init__(self, project: Project, *arguments: str) -> None:
        self.log = project.path.parent / f"log-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "review.search", *arguments]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=project.path, env=project.environment, stdout=log, stderr=log, start_new_session=True
            )

    def until(self, line: str) -> None:
        """Wait until it has printed a text."""
        deadline = time.monotonic() + 600
        while line not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def kill(self, everything: bool) -> None:
        """SIGKILL, also to all that it has started, as a machine that loses power, or to the search alone."""
        for number in [self.process.pid, *(descendants(self.process.pid) if everything else [])]:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> str:
        assert self.process.wait(timeout=900) == 0, self.log.read_text()
        return self.log.read_text()


@pytest.mark.night
@pytest.mark.skipif(not PROC, reason="who is at work stands in /proc")
def test_a_search_killed_twice_ends_where_an_undisturbed_one_ends(tmp_path: Path) -> None:
    killed = search_toy.started(tmp_path / "killed")
    undisturbed = killed.copy(tmp_path / "undisturbed")
    for project in (killed, undisturbed):
        search_toy.written(project, trials=5, final_seeds=0)  # an edit of search.yaml needs no commit
        project.environment["TOY_SECONDS"] = "0.3"
    head = killed.run("git", "rev-parse", "HEAD")

    first = Program(killed)
    first.until("trial 1: optimizers")
    second = Program(killed)
    assert second.process.wait(timeout=600) == 2
    assert second.log.read_text() == f"error: {program.BUSY}\n"
    first.kill(everything=False)
    again = Program(killed)
    again.until("trial 3: optimizers")
    again.kill(everything=True)
    told = Program(killed).finish()
    expected = Program(undisturbed).finish()

    paths = [next(project.path.glob("runs/search/*/result.json")) for project in (killed, undisturbed)]
    results = [json.loads(path.read_bytes()) for path in paths]
    assert results[0] == results[1]
    states = [trial["state"] for trial in results[0]["trials"]]
    assert len(states) == 5
    assert "running" not in states
    assert told.partition("\n\n")[2] == expected.partition("\n\n")[2]  # the table
    assert (killed.path / "search.html").read_bytes() == (undisturbed.path / "search.html").read_bytes()

    assert killed.run("git", "rev-parse", "HEAD") == head  # the work tree is as it was
    assert killed.run("git", "status", "--porcelain") == " M search.yaml\n"
    assert [path.name for path in (killed.path / "runs/search").glob("search-*/*-0*")] == []
    name, best = results[0]["name"], results[0]["trials"][results[0]["best"]]
    killed.dvc("exp", "apply", "-q", f"{name}-{best['number']:04d}")
    applied = params.flatten(yaml.safe_load((killed.path / "params.yaml").read_text(encoding="utf-8")), "")
    assert {key: applied[key] for key in best["parameters"]} == best["parameters"]
    assert json.loads((killed.path / "metrics/train.json").read_bytes())["validation_accuracy"] == best["value"]
