"""Several seeds: the second pipeline, what is trained and what is not, and how `review.compare` judges by them.

The project is that of tests/toy.py with a pipeline of seeds of its own, whose seeds take a moment. The real one is
compared with dvc.yaml here, and runs in tests/test_pipeline.py.
"""

import io
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from integrity import repair, revisions
from integrity.dvc_lock import parse_lock
from integrity.only_one import only_one
from review import compare, comparison, sequential
from seeds import __main__ as seeds_program
from seeds import collect, paths, record, run
from stages.common import children
from stages.train.options import Train
from tests import in_process
from tests.imports import ROOT, closure
from tests.test_pull_request import judge
from tests.toy import Project, begun

PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / paths.PIPELINE).read_text(encoding="utf-8"))["stages"]
MAIN: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

SEED = """
import json, random, re, sys
from pathlib import Path

seed = int(sys.argv[1])
lr, skill = (float(re.search(f"  {key}: (.*)", Path("params.yaml").read_text())[1]) for key in ("lr", "skill"))
errors = round(10_000 * (1 - skill) + random.Random(f"{seed} {lr} {skill}").gauss(0, 6))
row = {"seed": seed, "validation_accuracy": skill, "accuracy": round(1 - errors / 10_000, 6), "errors": errors}
for kind, text in (("metrics", json.dumps({**row, "images": 10_000}, indent=2)), ("predictions", str(seed))):
    path = Path("data/seeds", kind, f"{seed}.{'json' if kind == 'metrics' else 'csv'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\\n")
"""
SEEDS = """
vars: [../params.yaml, seeds.yaml]
stages:
  seed:
    matrix:
      seed: ${seeds}
    wdir: ..
    cmd: python seed.py ${item.seed}
    deps: [seed.py, data/processed/test]
    params: [train.skill, train.lr]
    outs:
      - data/seeds/metrics/${item.seed}.json
      - data/seeds/predictions/${item.seed}.csv
  collect:
    matrix:
      seeds: ${collect}
    wdir: ..
    cmd: python -m seeds.collect
    deps: [data/seeds/metrics]
    metrics:
      - metrics/seeds.json:
          cache: false
"""


# The real pipeline


def test_a_seed_reads_what_train_and_evaluate_read_but_for_the_seed() -> None:
    made = {out for name in ("train", "evaluate") for out in MAIN[name]["outs"]}
    read = {dep for name in ("train", "evaluate") for dep in MAIN[name]["deps"]} - made
    own = {"seeds/__init__.py", "seeds/paths.py", "seeds/run.py"}
    assert set(PIPELINE["seed"]["deps"]) == read | own
    params = {key for name in ("train", "evaluate") for key in MAIN[name]["params"]} - {"train"}
    train = {f"train.{key}" for key in Train.model_fields} - {"train.seed"}
    assert set(PIPELINE["seed"]["params"]) == params | train


@pytest.mark.parametrize(("stage", "module"), [("seed", "seeds.run"), ("collect", "seeds.collect")])
def test_each_stage_declares_the_code_that_it_imports(stage: str, module: str) -> None:
    deps = PIPELINE[stage]["deps"]
    for path in closure(module):
        assert any(path == dep or path.startswith(f"{dep}/") for dep in deps), path


def test_a_plain_repro_does_not_know_the_seeds() -> None:
    assert not {"seed", "collect"} & set(MAIN)


def test_mean_and_spread() -> None:
    assert collect.summary([0.5, 0.7, 0.6]) == {"mean": 0.6, "standard_deviation": pytest.approx(0.1)}
    assert collect.summary([0.5]) == {"mean": 0.5}


def test_a_seed_runs_the_code_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not modules in the folder in which it trains."""
    for folder, status in (("project", 0), ("runs/seeds/0", 3)):
        (tmp_path / folder / "stages").mkdir(parents=True)
        (tmp_path / folder / "stages/train.py").write_text(f"raise SystemExit({status})\n", encoding="utf-8")
    monkeypatch.setattr(run, "CODE", tmp_path / "project")
    run.run("train", 0, tmp_path / "runs/seeds/0")


# A project whose seeds take a moment


def started(path: Path) -> Project:
    """The toy project with its pipeline of seeds, nothing of which has run."""
    project = begun(path, ignored="__pycache__/\n/runs/\n")
    for package in ("stages", "review", "integrity"):
        (path / package).symlink_to(ROOT / package)
    (path / "seeds").mkdir()
    for module in (ROOT / "seeds").glob("*.py"):
        (path / "seeds" / module.name).symlink_to(module)
    for name, content in (
        ("seed.py", SEED),
        ("seeds/dvc.yaml", SEEDS),
        ("seeds/seeds.yaml", "seeds: []\ncollect: []\n"),
    ):
        project.write(name, content)
    (path / "data/processed").mkdir(parents=True)
    project.write("data/.gitignore", "/seeds\n")
    project.set()
    return project


def train(project: Project, seeds: int) -> list[int]:
    """`python -m seeds`, with DVC in this process; returns the seeds that were trained."""
    ran: list[str] = []

    def repro(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "dvc", "repro"]
        ran.extend(in_process.repro(folder, command[4:], environment))
        return subprocess.CompletedProcess(command, 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children, "run", repro)
        inside(project, patch, "seeds", str(seeds))
        seeds_program.main()
    return [int(seed) for seed in re.findall(r"seeds/dvc.yaml:seed@(\d+)", " ".join(ran))]


def inside(project: Project, patch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Make this process one that was started with these arguments in the project."""
    patch.chdir(project.path)
    for name, value in project.environment.items():
        patch.setenv(name, value)
    patch.setattr(sys, "argv", [*arguments])


def python(project: Project, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command, cwd=project.path, env=project.environment, capture_output=True, text=True, timeout=300
    )


def commit(project: Project, message: str) -> None:
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", message)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """main with 3 seeds, pushed; branches worse (less skill, 3 seeds), noise (lr, 3), stale (skill, old seeds)."""
    project = started(tmp_path_factory.mktemp("seeds") / "project")
    project.dvc("repro", "-q")
    project.dvc("status", "-q")  # nothing is missed where there are no seeds
    assert train(project, 3) == [0, 1, 2]
    project.dvc("status", "-q")
    commit(project, "seeds")
    for name, values in (("worse", {"skill": 0.897}), ("noise", {"lr": 2e-05}), ("stale", {"skill": 0.85})):
        project.branch(name, train=values)
        if name != "stale":
            assert train(project, 3) == [0, 1, 2]
            commit(project, f"seeds of {name}")
    project.run("git", "checkout", "-q", "main")
    project.dvc("checkout", "-q")
    project.dvc("push", "-q", "--all-branches")
    return project


@pytest.fixture
def project(origin: Project, tmp_path: Path) -> Project:
    """A fresh clone of it; its remote is the one that was pushed to."""
    origin.run("git", "clone", "-q", ".", str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    clone.write(".dvc/config.local", f"['remote \"beside\"']\n    url = {origin.path.parent / 'remote'}\n")
    for branch in ("worse", "noise", "stale"):
        clone.run("git", "branch", branch, f"origin/{branch}")
    return clone


def test_it_travels_and_only_new_seeds_are_trained(project: Project) -> None:
    assert python(project, "integrity.pull").returncode == 0
    assert (project.path / "data/seeds/predictions/2.csv").read_text(encoding="utf-8") == "2\n"
    assert train(project, 3) == []
    assert project.run("git", "status", "--porcelain") == ""
    assert train(project, 5) == [3, 4]
    assert train(project, 2) == []  # and nothing is thrown away
    collected = json.loads((project.path / paths.COLLECTED).read_bytes())
    assert [row["seed"] for row in collected["seeds"]] == [0, 1, 2, 3, 4]
    mean = sum(row["accuracy"] for row in collected["seeds"]) / 5
    assert collected["accuracy"]["mean"] == pytest.approx(mean, abs=1e-6)
    project.set(train={"seed": 9, "lr": 3e-05})
    assert train(project, 2) == [0, 1]  # the others are stale
    assert sorted(path.name for path in (project.path / paths.ROWS).iterdir()) == ["0.json", "1.json"]
    lock = parse_lock((project.path / paths.LOCK).read_bytes(), "lock")
    assert set(lock.stages) == {"seed@0", "seed@1", "collect@all"}


def test_a_killed_run_loses_no_finished_seed(project: Project) -> None:
    """Of five, the last two are missing, and the results are not collected: fewer may be requested now."""
    project.dvc("pull", "-q")
    assert train(project, 5) == [3, 4]
    lock = yaml.safe_load((project.path / paths.LOCK).read_text(encoding="utf-8"))
    for stage in ("seed@4", "collect@all"):
        del lock["stages"][stage]
    project.write(paths.LOCK.as_posix(), yaml.safe_dump(lock, sort_keys=False))
    (project.path / paths.COLLECTED).unlink()
    train(project, 2)
    collected = json.loads((project.path / paths.COLLECTED).read_bytes())
    assert [row["seed"] for row in collected["seeds"]] == [0, 1, 2, 3]


def test_two_at_once_are_refused_before_anything_changes(project: Project) -> None:
    chosen = (project.path / paths.CHOSEN).read_bytes()
    with only_one(project.path / seeds_program.RUNNING, ""):
        done = python(project, "seeds", "5")
    assert (done.returncode, done.stderr) == (2, "error: `make seeds` is already running in this folder\n")
    project.write(paths.LOCK.as_posix(), "<<<<<<< HEAD\n")
    assert python(project, "seeds", "5").returncode == 2
    assert (project.path / paths.CHOSEN).read_bytes() == chosen


def test_a_seed_that_diverges_loses_none_of_the_others(project: Project) -> None:
    project.dvc("pull", "-q")
    project.write("seed.py", SEED + "if seed == 1: sys.exit('error: seed 1: the loss is not finite')\n")
    done = python(project, "seeds", "3")
    assert done.returncode == 2
    assert "error: seed 1: the loss is not finite" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: `dvc repro` of the seeds failed; its message is above.")
    assert read(project).why == "its seeds are stale: trained before seed.py changed; `make seeds N=3` there"
    project.write("seed.py", SEED + "\n")
    assert train(project, 3) == [0, 1, 2]


@pytest.mark.parametrize("n", ["0", "-1", "1001", "five", ""])
def test_a_number_that_cannot_be(n: str, project: Project) -> None:
    done = python(project, "seeds", "--", n)
    assert done.returncode == 2
    assert f"error: argument N: {n!r}; allowed: 1 to 1,000, as in `make seeds N=5`" in done.stderr


def test_a_lock_of_the_seeds_that_was_cut_off_is_mended(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    good = (project.path / paths.LOCK).read_bytes()
    torn = good[: good.rindex(b"md5:") + 3]
    (project.path / paths.LOCK).write_bytes(torn)
    monkeypatch.chdir(project.path)
    monkeypatch.setattr(sys, "argv", ["repair"])
    repair.main()
    assert (project.path / paths.LOCK).read_bytes() == good
    assert (project.path / "runs/seeds-dvc.lock.torn").read_bytes() == torn


# Comparing


def read(project: Project, rev: str | None = None) -> record.Record:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.path)
        with revisions.repository() as repo:
            side = revisions.read(repo, rev)
            return record.read(repo, side)


def compared(project: Project, *arguments: str) -> tuple[int, str, str]:
    """Exit status, output and errors of `python -m review.compare`."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        inside(project, patch, "compare", *arguments)
        try:
            compare.main()
        except SystemExit as end:
            status = int(end.code or 0)
    return status, out.getvalue(), err.getvalue()


def document(project: Project, *arguments: str, status: int = 0) -> dict[str, Any]:
    ended, out, err = compared(project, *arguments, "--format", "json")
    assert ended == status, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_seeds_decide(project: Project) -> None:
    found = document(project, "main", "worse", "--fail-if", "worse", status=1)
    assert (found["verdict"]["word"], found["verdict"]["basis"]) == ("worse", "seeds")
    assert [side["seeds"] for side in found["seeds"]["sides"]] == [3, 3]
    assert found["seeds"]["paired"]["p"] < 0.05
    assert found["seeds"]["needed"] in range(2, 7)
    rows = [json.loads(project.run("git", "show", f"{rev}:metrics/seeds.json"))["seeds"] for rev in ("main", "worse")]
    means = [sum(row["accuracy"] for row in side) / 3 for side in rows]
    assert found["verdict"]["difference"] == pytest.approx(means[1] - means[0], abs=1e-6)
    printed = " ".join(compared(project, "main", "worse")[1].split())
    assert "One model against another, which does not decide: within noise: accuracy " in printed
    share = r"\d\d\.\d{3} % \(3 seeds\)"
    assert re.search(
        rf"worse is worse than main: mean test accuracy {share} -> {share}, -0\.\d\d\d points "
        r"\(95 % interval .*\); Welch's t test p = 0\.0\d+, level 0\.05$",
        printed,
    )
    markdown = compared(project, "main", "worse", "--format", "markdown")[1]
    assert markdown.startswith("### `worse` is worse than `main`\n\nMean test accuracy ")
    assert "| A `main` |" in re.sub(" +", " ", markdown)


def test_other_draws_of_one_recipe_are_noise(project: Project) -> None:
    found = document(project, "main", "noise", "--fail-if", "worse")
    assert (found["verdict"]["word"], found["verdict"]["basis"]) == ("within noise", "seeds")
    assert found["verdict"]["difference"] != 0


def test_a_branch_that_changes_only_the_seed_has_the_same_seeds(project: Project) -> None:
    project.dvc("pull", "-q")
    project.set(train={"seed": 1})
    project.dvc("repro", "-q")
    found = document(project, "main", "--fail-if", "worse")
    assert (found["verdict"]["word"], found["verdict"]["basis"]) == ("within noise", "seeds")
    assert (found["verdict"]["difference"], found["verdict"]["p"]) == (0, 1)
    assert found["images"]["changed"] > 0


def test_without_fresh_seeds_one_model_does_not_fail(project: Project) -> None:
    status, out, err = compared(project, "main", "stale", "--fail-if", "worse")
    assert status == 0
    told = " ".join(out.split())
    why = "stale: its seeds are stale: trained before train.skill changed; `make seeds N=3` there"
    assert f"Seeds not compared: {why}" in told
    assert "stale against main, one model against another; seeds not compared: worse: accuracy" in told
    assert err.startswith(
        "not failed: seeds not compared: run `make seeds` on both sides and commit, or let --seeds auto"
    )
    assert document(project, "main", "stale", "--fail-if", "worse", "--single", status=1)["seeds"] is None
    assert document(project, "main", "worse", "--single")["verdict"]["basis"] == "one model"


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        (
            "seed.py",
            ("import json", "import  json"),
            "its seeds are stale: trained before seed.py changed; `make seeds N=3`",
        ),
        ("seeds/seeds.yaml", ("2]", "2, 3, 4]"), "3 of 5 seeds are trained; `make seeds N=5` there trains the others"),
        (
            "seeds/seeds.yaml",
            ("[0,", "[-1, 0,"),
            "seeds/seeds.yaml: seeds is not a list of whole numbers; `make seeds N=5`",
        ),
        ("seeds/seeds.yaml", ("seeds", "sed"), "seeds/seeds.yaml: seeds is not a list of whole numbers; `make"),
        ("seeds/seeds.yaml", ("seeds: [0, 1, 2]", "seeds: []"), "no seeds; `make seeds` there trains them"),
        (
            "seeds/seeds.yaml",
            (", 2]", "]"),
            "metrics/seeds.json does not have the seeds of seeds/seeds.yaml; `make seeds N=2`",
        ),
        ("seeds/dvc.lock", ("schema", "- schema"), "seeds/dvc.lock: not valid YAML"),
        ("metrics/seeds.json", ('"accuracy": 0.', '"accuracy": 0.9'), "metrics/seeds.json: seed 0 is not the one that"),
        (
            "metrics/seeds.json",
            ('"seed": 0', '"seed": "0"'),
            "metrics/seeds.json: seed: Input should be a valid integer",
        ),
        ("metrics/seeds.json", ('"seeds": [', '"rows": ['), "metrics/seeds.json does not have the seeds of"),
    ],
)
def test_seeds_that_do_not_count(name: str, change: tuple[str, str], why: str, project: Project) -> None:
    content = (project.path / name).read_text(encoding="utf-8")
    assert change[0] in content
    if name == "metrics/seeds.json" and change[0].startswith('"acc'):
        head, rest = content.split('"seeds"', 1)
        project.write(name, f'{head}"seeds"{rest.replace(*change, 1)}')
    else:
        project.write(name, content.replace(*change, 1))
    found = read(project)
    assert not found.rows
    assert found.why.startswith(why)
    assert "\n" not in found.why


def test_another_test_set_on_one_side(project: Project) -> None:
    lock = (project.path / paths.LOCK).read_text(encoding="utf-8")
    dep = re.search(r"processed/test\n\s+hash: md5\n\s+md5: (\S+)", lock)
    assert dep
    sides = read(project, "main"), read(project, "noise")
    other = sides[1]._replace(test_set="0" * 32)
    assert sides[0].test_set == dep[1]
    assert comparison.obstacles_to_seeds(("main", "noise"), sides) == []
    (why,) = comparison.obstacles_to_seeds(("main", "noise"), (sides[0], other))
    assert why.startswith("they were measured on different test sets: data/processed/test differs between main")


def test_one_seed_is_none(project: Project) -> None:
    one = read(project, "main").first(1)
    assert comparison.obstacles_to_seeds(("a", "b"), (one, one)) == [
        "a and b: one seed shows no variation; `make seeds N=5` there"
    ]


def test_seeds_are_trained_on_both_sides_until_the_question_is_decided(project: Project) -> None:
    project.run("git", "checkout", "-q", "stale")
    project.run("git", "rm", "-q", "metrics/seeds.json", "seeds/dvc.lock")
    commit(project, "no seeds")
    project.dvc("pull", "-q", "--allow-missing")
    done = python(project, "review.compare", "main", "--seeds", "auto", "--fail-if", "worse")
    assert done.returncode == 1, done.stdout + done.stderr
    trained = re.findall(r"Running stage 'seeds/dvc.yaml:seed@(\d+)'", done.stderr)
    assert trained == ["0", "1", "2"]  # of the work tree; those of main are on record
    told = " ".join(done.stdout.split())
    assert "work tree is worse than main: mean test accuracy " in told
    assert "group-sequential test, look 1 of 4 (at 3, 5, 7, 10 seeds per side), level 0.05, margin 0.1 points" in told


def test_seeds_that_exist_already_do_not_change_when_it_looks(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a branch that moves meanwhile change what is compared."""
    for branch in ("noise", "main"):
        project.run("git", "checkout", "-q", branch)
        project.dvc("pull", "-q")
        assert train(project, 4) == [3]
        commit(project, "one more")
    head = project.run("git", "rev-parse", "noise").strip()
    schedule = sequential.schedule

    def moved(*arguments: int, **others: int) -> list[int]:
        project.run("git", "branch", "-qf", "noise", "worse")
        return schedule(*arguments, **others)

    monkeypatch.setattr(sequential, "schedule", moved)
    found = document(project, "main", "noise", "--seeds", "auto", "--budget", "4")
    assert "look 2 of 2 (at 3, 4 seeds per side)" in found["verdict"]["text"]
    assert found["b"] == {"name": "noise", "commit": head}


@pytest.mark.soak
def test_a_revision_without_seeds_is_trained_in_a_clone(project: Project) -> None:
    found = document(project, "main", "stale", "--seeds", "auto", "--budget", "3")
    assert (found["verdict"]["word"], found["verdict"]["basis"], found["verdict"]["p"]) == ("worse", "seeds", None)
    assert [side["seeds"] for side in found["seeds"]["sides"]] == [3, 3]
    assert project.run("git", "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--seeds", "some"], "argument --seeds: invalid choice: 'some'"),
        (["--seeds", "auto", "--budget", "1"], "argument --budget: '1'; allowed: 2 to 1,000 seeds"),
        (["--seeds", "auto", "--margin", "-1"], "argument --margin: '-1'; allowed: a number from 0 to 100"),
        (["--seeds", "auto", "--single"], "argument --single: not allowed with argument --seeds"),
        (["--budget", "3"], "argument --budget: only with --seeds auto"),
        (["--margin", "1"], "argument --margin: only with --seeds auto"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], line: str, project: Project) -> None:
    status, _, err = compared(project, "main", *arguments)
    assert status == 2
    assert line in err


# The gate


def judged(project: Project, *arguments: str) -> tuple[int, str]:
    """Exit status and output of `python -m review.pull_request`."""
    done = python(project, "review.pull_request", *arguments)
    return done.returncode, done.stdout + done.stderr


def test_the_gate_has_no_verdict_if_the_branch_removed_its_seeds(project: Project) -> None:
    """Although one model is worse than the other, and `--seeds 0` would say so."""
    project.run("git", "checkout", "-q", "stale")
    project.run("git", "rm", "-q", "seeds/dvc.yaml", "seeds/dvc.lock", "metrics/seeds.json")
    commit(project, "no seeds")
    status, told = judge(project, "main", "--seeds", "3")
    assert status == 2, told
    assert "work tree against main, one model against another; seeds not compared: worse: " in " ".join(told.split())
    assert told.splitlines()[-1] == (
        "error: no verdict: the seeds cannot be compared: work tree: no seeds/dvc.yaml, which main has; `--seeds 0` "
        "compares one trained model with another"
    )


@pytest.mark.soak
def test_the_gate_judges_by_seeds(project: Project) -> None:
    """Recorded on both sides; of a branch that changed only the seed; trained for a branch that has none."""
    project.run("git", "checkout", "-q", "worse")
    status, told = judged(project, "main", "--seeds", "3")
    assert status == 1, told
    assert "note: main: 3 seeds, as seeds/dvc.lock names them, taken on trust\n" in told
    assert "note: work tree: 3 seeds, as seeds/dvc.lock names them, taken on trust\n" in told
    assert told.splitlines()[-1].startswith("failed: the branch is worse: mean test accuracy ")

    project.run("git", "checkout", "-q", "main")
    project.run("git", "checkout", "-qb", "another-seed")
    project.set(train={"seed": 1})
    commit(project, "another seed")
    status, told = judged(project, "main", "--seeds", "3")
    assert status == 0, told
    assert "work tree against main: within noise: mean test accuracy " in " ".join(told.split())

    project.run("git", "reset", "-q", "--hard")
    project.run("git", "checkout", "-q", "stale")
    status, told = judged(project, "main", "--seeds", "3")
    assert status == 1, told
    assert re.findall(r"Running stage 'seeds/dvc.yaml:seed@(\d)'", told) == ["0", "1", "2"]
    assert "note: work tree: 3 seeds, trained here or cached\n" in told
