"""What the commands of review/ and seeds/ print for fixed inputs, compared with the files in tests/golden.

`python -m tests.test_golden` rewrites these files. A change of wording is then one diff to read, and other tests need
not quote sentences. Each file is a transcript: the command, what it prints to both streams, and its exit status.
"""

import contextlib
import datetime
import functools
import io
import itertools
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from integrity import revisions
from integrity.dvc_lock import LockedFile
from integrity.revisions import Revision
from review import compare, comparison, pull_request, sequential, sweep, training, watch
from review.results import PredictionsLookup
from review.search import outcome, space
from review.watch import DEAD, QUEUED, RUNNING, STARTING, WAITING, Run
from seeds import __main__ as seeds_program
from seeds import paths as seed_paths
from seeds.record import Record, Row
from stages.common import children, paths
from stages.common.errors import UserError
from stages.evaluate import values
from tests import search_toy
from tests.imports import ROOT

FOLDER = Path(__file__).with_name("golden")
IMAGES = 400
NO_SEEDS = Record([], "no seeds; `make seeds` there trains them")
STALE = Record([], "its seeds are stale: trained before train.epochs changed; `make seeds N=3` there")
PARAMS = {"data.name": "pets", "train.seed": 0, "train.epochs": 5, "optimizers.adam.lr": 0.01}

Case = Callable[[pytest.MonkeyPatch], str]


@contextlib.contextmanager
def workspace() -> Iterator[pytest.MonkeyPatch]:
    """An empty current folder, and patches that end with it."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield patch


def transcript(patch: pytest.MonkeyPatch, module: str, main: Callable[[], object], *arguments: str) -> str:
    """What `python -m MODULE …` prints; errors end it as they end the program."""
    printed, status = io.StringIO(), 0
    patch.setattr(sys, "argv", [module, *arguments])
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            status = int(str(main() or 0))
        except UserError as error:
            status = 2
            print(f"error: {error}", file=sys.stderr)
        except SystemExit as end:
            status = int(end.code or 0)
    return f"$ {shlex.join(['python', '-m', module, *arguments])}\n{printed.getvalue()}[exit status {status}]\n"


# compare


def revision(name: str, table: pd.DataFrame | None, params: dict[str, Any], images: int = IMAGES) -> Revision:
    """A commit with these predictions, whose metrics agree with them."""
    measured: dict[str, Any] = {"loss": 0.25}
    if table is not None and "probability" in table:
        errors = int((table["label"] != table["prediction"]).sum())
        measured |= {"accuracy": 1 - errors / len(table), "errors": errors, "images": len(table)}
    elif table is not None:
        measured |= values.measures(table["prediction"].to_numpy(), table["label"].to_numpy())
    else:
        measured |= {"accuracy": 0.9, "errors": images // 10, "images": images}
    return Revision(
        name=name,
        commit=f"{len(name)}" * 40,
        params={**PARAMS, **params},
        read_by={"train.epochs": ["train"], "train.seed": ["train"], "optimizers.adam.lr": ["train"]},
        metrics={paths.TEST_METRICS.as_posix(): measured, paths.TRAIN_METRICS.as_posix(): {"best_epoch": 5}},
        outs={paths.TEST.as_posix(): LockedFile(path=paths.TEST.as_posix(), md5="0" * 32)},
    )


def classified(wrong: range, images: int = IMAGES) -> pd.DataFrame:
    """Predictions of cats and dogs in turn, some of which are wrong."""
    classes = ["cat", "dog"]
    labels = [classes[image % 2] for image in range(images)]
    predicted = [classes[(image + (image in wrong)) % 2] for image in range(images)]
    table = pd.DataFrame({"label": labels, "prediction": predicted}).astype(pd.CategoricalDtype(classes))
    return table.assign(probability=0.9)


def regressed(noise: float) -> pd.DataFrame:
    """Predictions of the numbers 0 to 9, off by multiples of `noise`."""
    labels = np.arange(IMAGES) % 10.0
    return pd.DataFrame({"label": labels, "prediction": labels + noise * (np.arange(IMAGES) % 7 - 3)})


def seeds(*errors: int) -> Record:
    """Seeds 0, 1, … with these errors in 10,000 images."""
    return Record([Row(seed=seed, errors=count, images=10_000) for seed, count in enumerate(errors)], "", "0" * 32)


def document(
    a: pd.DataFrame | None,
    b: pd.DataFrame | None,
    records: tuple[Record, Record] | None = (NO_SEEDS, NO_SEEDS),
    **params: Any,
) -> dict[str, Any]:
    """The comparison of `main` and `branch`, whose parameters differ by `params` (with __ for the dot)."""
    changed = {key.replace("__", "."): value for key, value in params.items()}
    missing = PredictionsLookup(None, "data/predictions.csv is not in the cache; no remote is set", [])
    lookup_a, lookup_b = (missing if table is None else PredictionsLookup(table, "", []) for table in (a, b))
    sides = revision("main", a, {}), revision("branch", b, changed)
    return comparison.compare(*sides, (lookup_a, lookup_b), 0.05, records)


def by_looks(records: tuple[Record, Record], budget: int) -> dict[str, Any]:
    """The comparison after a group-sequential test of these seeds."""
    found = document(classified(range(40)), classified(range(42)), records)
    looks = sequential.schedule(budget)
    taken = looks.index(len(records[0].rows))
    nominal = sequential.nominal_levels(looks, 0.05)[taken]
    look = sequential.look(records[0].scores, records[1].scores, nominal, 0.001)
    return {**found, "verdict": training.verdict(found, look, looks, taken + 1, 0.001)}


FEWER, SAME, MORE = (40, 45, 42), (60, 65, 62), (83, 88, 84)  # errors of three seeds
COMPARED: dict[str, Callable[[], dict[str, Any]]] = {
    "equal": lambda: document(classified(range(40)), classified(range(40))),
    "better": lambda: document(classified(range(40)), classified(range(12, 40)), optimizers__adam__lr=0.02),
    "worse": lambda: document(classified(range(40)), classified(range(60)), optimizers__adam__lr=0.02),
    "within-noise": lambda: document(classified(range(40)), classified(range(3, 44)), train__seed=1),
    "one-model": lambda: document(classified(range(40)), classified(range(60)), None),
    "stale-seeds": lambda: document(
        classified(range(40)), classified(range(60)), (seeds(*SAME), STALE), train__epochs=6
    ),
    "seeds-better": lambda: document(classified(range(40)), classified(range(42)), (seeds(*SAME), seeds(*FEWER))),
    "seeds-worse": lambda: document(classified(range(40)), classified(range(42)), (seeds(*SAME), seeds(*MORE))),
    "seeds-within-noise": lambda: document(
        classified(range(40)), classified(range(60)), (seeds(*SAME), seeds(63, 66, 61, 64))
    ),
    "seeds-that-never-vary": lambda: document(
        classified(range(40)), classified(range(40)), (seeds(50, 50), seeds(60, 60))
    ),
    "looks-equivalent": lambda: by_looks((seeds(60, 61, 60, 61, 60), seeds(61, 60, 61, 60, 61)), 10),
    "looks-undecided": lambda: by_looks((seeds(60, 65, 62), seeds(70, 62, 61)), 3),
    "another-data-set": lambda: document(classified(range(40)), classified(range(50), 500), data__name="birds"),
    "no-predictions": lambda: document(classified(range(40)), None, optimizers__adam__lr=0.02),
    "regression": lambda: document(regressed(0.3), regressed(0.4)),
    "regression-seeds": lambda: document(regressed(0.3), regressed(0.4), (scored(0.98, 0.97), scored(0.9, 0.91))),
}
WITH_JSON = ("worse", "seeds-worse", "regression")


def scored(*scores: float) -> Record:
    """Seeds 0, 1, … of a regression with these R2."""
    return Record([Row(seed=seed, r2=score, images=IMAGES) for seed, score in enumerate(scores)], "", "0" * 32)


def rounded(value: Any) -> Any:
    """Without the digits that depend on the processor."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def compared(name: str) -> Case:
    """The case of a comparison in each format."""

    def case(patch: pytest.MonkeyPatch) -> str:
        found = rounded(COMPARED[name]())
        patch.setattr(comparison, "read", lambda *_: found)
        patch.setattr(training, "until_decided", lambda *_: found)
        options = ["--single"] * (name == "one-model") + ["--seeds", "auto"] * name.startswith("looks")
        formats = ["table", "markdown", *["json"] * (name in WITH_JSON)]
        return "\n".join(
            transcript(
                patch,
                "review.compare",
                compare.main,
                *("main", "branch", "--format", kind),
                *options,
                *["--fail-if", "worse"] * (kind == "table"),
            )
            for kind in formats
        )

    return case


# pull_request


def gate(name: str) -> Case:
    """What a branch does to the results, in the terminal and in the report."""

    def case(patch: pytest.MonkeyPatch) -> str:
        notes = pull_request.trust(["train", "evaluate"], ["evaluate"])
        others = {"not-comparable": "another-data-set", "no-seeds": "stale-seeds"}
        found = COMPARED[others.get(name, "seeds-" + name.partition("-")[2])]()
        found = rounded({**found, "notes": notes, "evidence": "of B, evaluate ran here and the rest is on record"})
        false = ["metrics/evaluate.json"] if name == "false-better" else []

        def results(*_: object) -> tuple[dict[str, Any], list[str]]:
            if name == "failed-better":
                raise UserError("`dvc repro` failed, see above")
            return found, false

        patch.setattr(pull_request, "results", results)
        told = transcript(
            patch,
            "review.pull_request",
            lambda: pull_request.main(pull_request.arguments()),
            *("main", "--out", "report.md"),
        )
        return f"{told}\n$ cat report.md\n{Path('report.md').read_text(encoding='utf-8')}"

    return case


# sweep


def swept(patch: pytest.MonkeyPatch, metric: str, *counts: int) -> str:
    """A sweep of two learning rates with so many seeds each."""
    runs = [
        Revision(
            name=f"lr-{rate}-{seed}",
            commit="0" * 40,
            params={"optimizers.adam.lr": rate, "train.seed": seed},
            read_by={"optimizers.adam.lr": ["train"], "train.seed": ["train"]},
            metrics={
                paths.TRAIN_METRICS.as_posix(): {
                    "validation_accuracy": 0.97 + 2 * rate + 0.0005 * seed,
                    "validation_loss": 0.2 - 2 * rate - 0.005 * seed,
                }
            },
            outs={},
        )
        for rate, count in zip((0.001, 0.005), counts, strict=True)
        for seed in range(count)
    ]
    patch.setattr(revisions, "repository", contextlib.nullcontext)
    patch.setattr(revisions, "resolve", lambda *_: "0" * 40)
    patch.setattr(sweep, "read", lambda *_: runs)
    return "\n".join(
        transcript(patch, "review.sweep", sweep.main, "lr-*", "--metric", metric, "--format", kind)
        for kind in ("table", "markdown", "json")
    )


# seeds


def trained(patch: pytest.MonkeyPatch, rows: list[dict[str, Any]], status: int = 0) -> str:
    """`make seeds` whose pipeline ends with a status, and has collected these rows."""
    from seeds import collect

    def repro(*_: object) -> CompletedProcess[str]:
        for row in rows:
            path = seed_paths.ROWS / f"{row['seed']}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(row), encoding="utf-8")
        collect.main()
        return CompletedProcess([], status)

    seed_paths.PIPELINE.parent.mkdir()
    seed_paths.PIPELINE.touch()
    patch.setattr(seeds_program, "up_to_date", lambda: 0)
    patch.setattr(children, "run", repro)
    return transcript(patch, "seeds", seeds_program.main, str(len(rows)))


def seeds_cases(patch: pytest.MonkeyPatch) -> str:
    """Several seeds, one, regression, a stage that fails, another folder."""
    rows = [{"seed": 0, "accuracy": 0.99, "validation_accuracy": 0.98}, {"seed": 1, "accuracy": 0.992}]
    regression = [{"seed": seed, "r2": 0.9 + seed / 50, "validation_r2": 0.91} for seed in range(3)]
    told = [transcript(patch, "seeds", seeds_program.main, "3")]
    for case, status in (([rows[0], {**rows[0], **rows[1]}], 0), (rows[:1], 0), (regression, 0), (rows[:1], 1)):
        with workspace() as inner:
            told.append(trained(inner, case, status))
    return "\n".join(told)


# watch


def next_of(values: Iterator[Any], _: object) -> Any:
    return next(values)


def watched(patch: pytest.MonkeyPatch) -> str:
    """Runs in every state: one table, a log of changes, and each last line."""
    steps = [
        [Run("work tree", RUNNING), Run("lr-0.01", QUEUED), Run("a" * 50, STARTING)],
        [Run("work tree", RUNNING, 1, 10, 0.9, 540.0), Run("lr-0.01", RUNNING, 2, 5, None, 3725.0)],
        [Run("work tree", RUNNING, 1, 10, 0.9, 530.0), Run("lr-0.01", RUNNING, 2, 5, None, 3715.0)],
        [Run("lr-0.01", DEAD, 2, 5), Run("lr-0.02", WAITING)],
    ]
    patch.setattr(revisions, "repository", lambda writes: contextlib.nullcontext())
    patch.setattr(watch, "POLL_SECONDS", 0.0)
    told = []
    sessions: list[tuple[dict[str, int], list[list[Run]], list[str]]] = [
        ({}, [[]], []),
        ({}, [[]], ["--once"]),
        ({"finished": 3, "failed": 1}, steps[1:2], ["--once"]),
        ({}, steps, []),
        ({}, [steps[0], [Run("lr-0.02", WAITING)]], []),
        ({}, [steps[1], []], []),
    ]
    for finished, looks, arguments in sessions:
        patch.setattr(watch, "settled", functools.partial(next_of, iter(looks)))
        patch.setattr(watch, "ended_tasks", functools.partial(next_of, itertools.repeat(finished)))
        told.append(transcript(patch, "review.watch", watch.main, *arguments))
    return "\n".join(told)


# search


def found(metric: str = "validation_accuracy", **changed: Any) -> dict[str, Any]:
    """The document of a search of four trials; the third one is the best."""
    scale = 1 if metric.endswith("accuracy") else -1
    measured = [0.97, None, 0.98, None] if scale == 1 else [0.3, None, 0.29, None]
    trials = [
        {
            "number": number,
            "state": state,
            "value": value,
            "epochs": epochs,
            "parameters": {"optimizers.adam.lr": 0.01 + number / 100, "train.shuffle": number % 2 == 0},
            "curve": [[epoch, 0.9] for epoch in range(1, epochs + 1)],
            "reason": reason,
        }
        for number, (state, value, epochs, reason) in enumerate(
            zip(
                ("finished", "stopped early", "finished", "failed"),
                measured,
                (5, 2, 5, 0),
                ("", "", "", "the training loss is nan at epoch 1, step 3: the run diverged"),
                strict=True,
            )
        )
    ]
    difference = scale * 0.01
    final: dict[str, Any] = {"seeds": [1, 2], "recipe": [measured[0]] * 2, "winner": [measured[2]] * 2}
    final |= {"word": "better", "p": 0.004, "difference": difference}
    final["interval"] = [difference - 0.002, difference + 0.002]
    return {
        "name": "search-0123abcd",
        "commit": "1" * 40,
        "metric": metric,
        "space": {"optimizers.adam.lr": {"low": 0.001, "high": 0.1}, "train.shuffle": {"choices": [True, False]}},
        "params": {"optimizers.adam.lr": 0.01, "train.shuffle": True},
        "trials": trials,
        "best": 2,
        "recipe": 0,
        "importance": {"optimizers.adam.lr": 0.75, "train.shuffle": 0.25},
        "final": final,
        **changed,
    }


def searched(patch: pytest.MonkeyPatch) -> str:
    """What a search prints at its end: with each verdict, and as Markdown."""
    nothing: dict[str, Any] = {"trials": [], "best": None, "recipe": None, "importance": {}, "final": None}
    never = {**found()["final"], "p": None, "interval": None, "difference": None, "word": "not comparable"}
    documents = {
        "better": found(),
        "losses": found("validation_loss"),
        "neither side varies between seeds": found(final=never),
        "not compared by several seeds": found(final=None),
        "params.yaml is the best": found(best=0, final=None),
        "nothing finished": found(**nothing),
    }
    told = [
        "\n".join([f"# {name}", outcome.text(each) + "\n".join(outcome.commands(each))])
        for name, each in documents.items()
    ]
    return "\n\n".join([*told, f"# Markdown\n{outcome.markdown(found())}"])


MISTAKES: list[tuple[Any, dict[str, Any]]] = [  # of search.yaml: sections `space` and `search`
    (None, {"trials": 0}),
    (None, {"trails": 3}),
    (None, {"final_seeds": 1}),
    (None, {"metric": "accuracy"}),
    ({}, {}),
    ({"optimizers.adam.rl": {"low": 1, "high": 2}}, {}),
    ({3: {"low": 1, "high": 2}}, {}),
    ({"train.seed": {"low": 1, "high": 2}}, {}),
    ({"preprocess.normalization": {"choices": ["half", "none"]}}, {}),
    ({"optimizers.adam.lr": {"low": 0.1, "high": 0.01}}, {}),
    ({"optimizers.adam.lr": {"low": 0, "high": 1, "log": True}}, {}),
    ({"optimizers.adam.lr": {"low": 0.1, "higher": 1}}, {}),
    ({"optimizers.adam.lr": {"low": 0.1}}, {}),
    ({"optimizers.adam.lr": {"low": 0.01, "high": 0.1, "step": 0.2}}, {}),
    ({"optimizers.adam.lr": {"low": 0.01, "high": 0.1, "choices": [0.01]}}, {}),
    ({"optimizers.adam.lr": {"choices": [1, 1]}}, {}),
    ({"optimizers.adam.lr": 0.1}, {}),
    ({"optimizers.adam.lr": {"low": 0.1, "high": 5000.0}}, {}),
    ({"train.loss": {"choices": ["mse", "msw"]}}, {}),
    ({"train.loss": {"low": 1, "high": 2}}, {}),
    ({"optimizers.sgd.lr": {"low": 0.1, "high": 1.0}}, {}),
    ({"train.optimizer": {"choices": ["adam", datetime.date(2026, 1, 1)]}}, {}),
]


def mistakes(patch: pytest.MonkeyPatch) -> str:
    """Each mistake in search.yaml, and the line that it ends with."""
    for name in ("params.yaml", "dvc.yaml"):
        Path(name).write_bytes((ROOT / name).read_bytes())
    told = []
    for definition, options in MISTAKES:
        content = {"search": {**search_toy.SEARCH, **options}}
        content["space"] = search_toy.SPACE if definition is None else definition
        space.FILE.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        with pytest.raises(UserError) as error:
            space.read()
        assert "\n" not in str(error.value)
        mistake = yaml.safe_dump(options or {"space": definition}, default_flow_style=True, width=1000)
        told.append(f"{mistake}{error.value}")
    return "\n\n".join(told) + "\n"


CASES: dict[str, Case] = {
    **{f"compare-{name}": compared(name) for name in COMPARED},
    **{f"pull-request-{name}": gate(name) for name in ("passes-better", "fails-worse", "false-better")},
    **{f"pull-request-{name}": gate(name) for name in ("failed-better", "not-comparable", "no-seeds")},
    "sweep": lambda patch: swept(patch, "validation_accuracy", 3, 3),
    "sweep-of-losses": lambda patch: swept(patch, "validation_loss", 2, 3),
    "sweep-of-one-seed": lambda patch: swept(patch, "validation_accuracy", 1, 1),
    "seeds": seeds_cases,
    "watch": watched,
    "search": searched,
    "search-mistakes": mistakes,
}


@pytest.mark.parametrize("name", CASES)
def test_printed(name: str) -> None:
    with workspace() as patch:
        text = CASES[name](patch)
    assert text == (FOLDER / f"{name}.txt").read_text(encoding="utf-8"), "python -m tests.test_golden rewrites it"
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_every_file_has_a_case() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(CASES)


if __name__ == "__main__":
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    for case_name, run in CASES.items():
        with workspace() as new_patch:
            (FOLDER / f"{case_name}.txt").write_text(run(new_patch), encoding="utf-8")
