"""Search for better parameters: `python -m review.search`, or `make search`; search.yaml says what and how long.

Each trial is an experiment of DVC that trains, and is judged by its validation part; the test set is not read. A search
that was killed goes on where it was, and a finished one only prints its result. The best trial is then compared with
params.yaml on new seeds. Writes a table, and the page search.html. State: runs/search. Exit status: 0; 2 for an error.
"""

import argparse
import fcntl
import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from integrity import dvc_lock, git, rebuild, revisions
from review.search import FOLDER, LOCK, outcome, page, space
from review.search import study as studies
from review.search.experiments import EndedEarlyError, Place, Result, Rows
from review.search.outcome import Finals
from review.search.space import PIPELINE, SEED, Plan
from review.search.study import Study
from stages.common import children, errors, files, params, paths
from stages.common.errors import UserError

PAGE = Path("search.html")  # Git ignores it
FORMATS = ("table", "markdown", "json")
ATTEMPTS, POLL_SECONDS = 3, 0.1  # to take the lock, which `make watch` holds for an instant
FAILURES = 3  # the first so many trials: if all fail, so would the others
EPOCHS = "train.epochs"

Run = Callable[[str, dict[str, Any], Callable[[Rows], None], children.Group], Result]  # as Place.run


def main() -> None:
    """Read search.yaml, run what is missing, print and draw the result."""
    arguments = command_line()
    root = rebuild.project()
    plan = space.read()
    with one_search():
        place, name = prepared(root, plan)
        study = Study(place.folder / "journal.log", plan)
        if arguments.show:
            finals = None
            with suppress(UserError):  # not all of them have run
                finals = Search(study, place.recorded, lambda name: None, name).run_finals()
        else:
            search = Search(study, place.run, place.forget, name)
            search.run_trials()
            finals = search.run_finals()
        found = outcome.document(study, name, place.commit, finals)
    files.write_json(place.folder / "result.json", found)
    files.write_text(PAGE, page.page(found))
    match arguments.format:
        case "table":
            print(f"\n{outcome.text(found)}{PAGE}: the same with pictures")
            for command in outcome.commands(found):
                print(f"  {command}")
        case "markdown":
            print(outcome.markdown(found), end="")
        case "json":
            print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))


def command_line() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m review.search", description="Search for better parameters.")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--show", action="store_true", help="print what there is so far, and train nothing")
    return parser.parse_args()


@contextmanager
def one_search() -> Iterator[None]:
    """Only one search at a time in this folder. Raises UserError."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with LOCK.open("a") as lock:
        for attempt in range(ATTEMPTS):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == ATTEMPTS - 1:
                    raise UserError("another search is at work here; `make watch` shows it") from None
                time.sleep(POLL_SECONDS)
            except OSError as error:
                if error.errno not in errors.NO_LOCKS:
                    raise
                break
        yield


def prepared(root: Path, plan: Plan) -> tuple[Place, str]:
    """Where the trials run, and the name of this search: a digest of all that its trials depend on.

    Runs what train reads the outputs of, if it is out of date, as `dvc repro` does. Raises UserError.
    """
    commit = git.head(root)
    stages = params.load(PIPELINE)["stages"]
    stage = stages["train"]
    code = [PIPELINE.as_posix(), paths.PARAMS.as_posix(), *map(str, stage["deps"])]
    if changed := git.run(root, "diff", "--name-only", "--relative", "HEAD", "--", *code).decode().split():
        raise UserError(f"changed since the last commit: {', '.join(changed[:3])}; `git commit` it: trials start there")
    writers = [name for name, each in stages.items() if {*map(str, each.get("outs", []))} & {*stage["deps"]}]
    rebuild.repro(root, ["--quiet", *writers], rebuild.dvc_environment())
    lock = dvc_lock.parse_lock((root / dvc_lock.LOCK).read_bytes(), dvc_lock.LOCK)
    inputs = {path: lock.outs[path].md5 for path in stage["deps"] if path in lock.outs}
    options = plan.options.model_dump(exclude={"trials", "minutes", "jobs", "final_seeds"})
    tree = git.run(root, "ls-tree", "-r", "--full-name", commit, "--", *code).decode()
    whole = json.dumps([tree, inputs, options, plan.definition], sort_keys=True, default=str)
    name = f"search-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    folder = (FOLDER / name).resolve()
    start = folder / "commit"  # where its first trial started, to which the later ones belong as well
    if not start.is_file():
        files.write_text(start, commit)
    with revisions.repository() as repo:
        cache = repo.cache.local_cache_dir
    return Place(root, start.read_text(encoding="utf-8"), cache, folder, list(inputs)), name


class Search:
    """Runs trials until the budget is spent. run: trains one set of parameters. forget: called when a run is over."""

    def __init__(self, study: Study, run: Run, forget: Callable[[str], None], name: str) -> None:
        self.study, self.plan, self.run, self.forget, self.name = study, study.plan, run, forget, name
        self.lock = threading.Lock()  # of the study, and of the output
        self.stopping = False  # told to end: what a run says from now on is no result

    def run_trials(self) -> None:
        """Finish what a killed search began, then begin others. Raises UserError if all of the first ones fail."""
        waiting = self.study.unfinished()
        if self.study.trials:
            finished = len(self.study.trials) - len(waiting)
            self.say(f"{self.name}: {finished} of {self.plan.options.trials} trials are finished")

        def following() -> Callable[[children.Group], None] | None:
            with self.lock:
                trial = waiting.pop(0) if waiting else self.study.propose()
            return (lambda group: self.attempt(trial, group)) if trial else None

        self.run_all(following)

    def run_all(self, following: Callable[[], Callable[[children.Group], None] | None]) -> None:
        """Run what `following` returns until it returns None, several at once. Whatever ends this ends them all."""
        jobs = self.plan.options.jobs
        running: set[Future[None]] = set()
        with ThreadPoolExecutor(jobs) as pool, children.Group() as group:
            try:
                while True:
                    while len(running) < jobs and (task := following()):
                        running.add(pool.submit(task, group))
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for each in done:
                        each.result()
            except BaseException:
                self.stopping = True
                raise

    def attempt(self, trial: FrozenTrial, group: children.Group) -> None:
        """Run a trial, and record what became of it. Raises UserError if all of the first trials have failed."""
        number, name, start = trial.number, f"{self.name}-{trial.number:04d}", time.monotonic()
        chosen = studies.values(trial)
        epochs = int(chosen.get(EPOCHS, self.plan.recipe[EPOCHS]))
        described = ", ".join(f"{key} {value}" for key, value in chosen.items())
        self.say(f"trial {number}: {described}")

        def on_epochs(rows: Rows) -> None:
            with self.lock:
                if self.study.report(number, rows, epochs):
                    raise EndedEarlyError

        try:
            result = self.run(name, chosen, on_epochs, group)
        except children.Ended:
            return
        except EndedEarlyError:
            result = None
        if self.stopping:
            return
        seconds = time.monotonic() - start
        with self.lock:
            if result is None:
                self.study.prune(number, seconds)
                word = f"stopped early after {len(self.study.trials[number].intermediate_values)} epochs"
            elif result.metrics is None:
                self.study.fail(number, result.reason, seconds)
                word = f"failed: {result.reason}"
            else:
                self.study.finish(number, float(result.metrics[self.plan.options.metric]), seconds)
                word = f"{self.plan.options.metric} {result.metrics[self.plan.options.metric]:g}"
        self.forget(name)
        self.say(f"trial {number}: {word}")
        first = self.study.trials[:FAILURES]
        if len(first) == FAILURES and all(trial.state == TrialState.FAIL for trial in first):
            raise UserError(f"the first {FAILURES} trials failed, the last one with: {first[-1].user_attrs['reason']}")

    def run_finals(self) -> Finals | None:
        """Train the best trial's parameters and those of params.yaml with new seeds; None if there is nothing to do.

        With none of the seeds that the trials had: among many trials, the best one is also a lucky one.
        """
        best, count = self.study.best(), self.plan.options.final_seeds
        recipe = {key: self.plan.recipe[key] for key in self.plan.space}
        if best is None or not count or studies.values(best) == recipe:
            return None
        seeds = [self.plan.recipe[SEED] + 1 + number for number in range(count)]
        sides = {"params": recipe, f"best-{best.number:04d}": studies.values(best)}
        todo = [(side, seed) for seed in seeds for side in sides]
        measured: dict[tuple[str, int], float] = {}

        def following() -> Callable[[children.Group], None] | None:
            if not todo:
                return None
            side, seed = todo.pop(0)
            return lambda group: self.judge(side, {**sides[side], SEED: seed}, measured, group)

        self.run_all(following)
        recipe_side, best_side = sides
        return seeds, [measured[recipe_side, seed] for seed in seeds], [measured[best_side, seed] for seed in seeds]

    def judge(
        self, side: str, parameters: dict[str, Any], measured: dict[tuple[str, int], float], group: children.Group
    ) -> None:
        """Train one side with one seed. Raises UserError if it fails: then there is no comparison."""
        seed = parameters[SEED]
        name = f"{self.name}-{side}-seed-{seed}"
        try:
            result = self.run(name, parameters, lambda rows: None, group)
        except children.Ended:
            return
        if self.stopping:
            return
        if result.metrics is None:
            raise UserError(f"{side} with seed {seed} failed: {result.reason}")
        measured[side, seed] = float(result.metrics[self.plan.options.metric])
        self.forget(name)
        self.say(f"{side}, seed {seed}: {self.plan.options.metric} {measured[side, seed]:g}")

    def say(self, line: str) -> None:
        """Print where it does not mix with the result, which may be JSON."""
        print(errors.printable(line), file=sys.stderr, flush=True)


if __name__ == "__main__":
    errors.run_command(main, kept="finished trials are kept, and `make search` goes on from there")
