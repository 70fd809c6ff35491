"""Search for better parameters: `python -m review.search`, or `make search`. search.yaml says what to try.

Each trial is an experiment of DVC that runs the pipeline up to train, and is judged on the validation set; the test set
is not read. A killed search continues where it was, and a finished one only prints its result. The best trial is then
compared with params.yaml on new seeds. Writes a table and the page search.html. State: runs/search. Exit status: 0; 2
for an error.
"""

import argparse
import functools
import hashlib
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import redirect_stdout, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from integrity import dvc_lock, git, lock_files, rebuild, revisions
from integrity.only_one import only_one
from review import formatting
from review.search import FOLDER, LOCK, outcome, page, space
from review.search import study as studies
from review.search.experiments import EndedEarlyError, Place, Result, Rows
from review.search.outcome import Finals
from review.search.space import PIPELINE, Plan
from review.search.study import Study
from review.sweep import SEED
from stages.common import children, errors, files, inputs, params, paths
from stages.common.errors import UserError

PAGE = Path("search.html")  # Git ignores it
JOURNAL, COMMIT = "journal.log", "commit"  # files of a search: its trials, and where they start
FAILURES = 3  # if the first trials all fail, the others would fail as well
EPOCHS = "train.epochs"
BUSY = "another search is running here; `make watch` shows it, and `make search ARGS=--show` what it has found so far"

Run = Callable[[str, dict[str, Any], Callable[[Rows], None], children.Group], Result]  # as Place.run
Task = Callable[[children.Group], None]


def main() -> None:
    """Read search.yaml, run what is missing, print and draw the result."""
    arguments = command_line()
    root = rebuild.project()
    if arguments.show:
        document = shown(root, space.read(committed_parameters(root)))
    else:
        plan = space.read()
        with only_one(LOCK, BUSY):
            document = searched(root, plan)
    files.write_text(PAGE, page.page(document))
    formatting.print_document(document, arguments.format, table, outcome.markdown)


def command_line() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m review.search", description="Search for better parameters.")
    formatting.add_format(parser)
    parser.add_argument("--show", action="store_true", help="print the results so far, and train nothing")
    return parser.parse_args()


def table(document: dict[str, Any]) -> str:
    """The result on a terminal."""
    commands = "".join(f"  {command}\n" for command in outcome.commands(document))
    return f"\n{outcome.text(document)}{PAGE}: the same with pictures\n{commands}"


def searched(root: Path, plan: Plan) -> dict[str, Any]:
    """Run the search to its end; returns its document. Raises UserError."""
    stages = inputs.stages(PIPELINE)
    read_files = {*map(str, stages["train"]["deps"])}
    if changed := git.changed(root, *code_of_train()):
        raise UserError(f"changed since the last commit: {', '.join(changed[:3])}; `git commit` it: trials start there")
    writers = [name for name in stages if read_files.intersection(map(str, stages[name].get("outs", [])))]
    with redirect_stdout(sys.stderr):  # the result may be JSON
        rebuild.repro(root, ["--quiet", *writers], rebuild.dvc_environment())
    name, place = identified(root, plan)
    files.write_text(place.folder / COMMIT, place.commit)
    search = Search(Study(place.folder / JOURNAL, plan), place.run, place.forget, name)
    search.run_trials()
    document = outcome.document(search.study, name, place.commit, search.run_finals())
    files.write_json(place.folder / "result.json", document)
    return document


def shown(root: Path, plan: Plan) -> dict[str, Any]:
    """The document of a search as far as it has come, which may be running. Raises UserError if it has no trials."""
    name, place = identified(root, plan)
    if not (place.folder / JOURNAL).is_file():
        raise UserError(f"no trials yet of this {space.FILE}, commit and data ({name}); `make search` starts them")
    with tempfile.TemporaryDirectory() as scratch:  # a running search writes to the journal
        study = Study(Path(shutil.copy(place.folder / JOURNAL, scratch)), plan)
        finals = None
        with suppress(UserError):  # not all of them have run
            finals = Search(study, place.recorded, lambda name: None, name, quiet=True).run_finals()
        return outcome.document(study, name, place.commit, finals)


def committed_parameters(root: Path) -> dict[str, Any]:
    """params.yaml of HEAD, where trials start: the work tree may have those of a trial, by `dvc exp apply`."""
    content = git.file(root, git.head(root), paths.PARAMS.as_posix())
    return params.parse_mapping(content or b"", f"HEAD: {paths.PARAMS}")


def code_of_train() -> list[str]:
    """The pipeline, params.yaml, and the dependencies of train."""
    deps = inputs.stages(PIPELINE)["train"]["deps"]
    return [PIPELINE.as_posix(), paths.PARAMS.as_posix(), *map(str, deps)]


def identified(root: Path, plan: Plan) -> tuple[str, Place]:
    """The name of this search, a digest of everything that its trials depend on, and the place where they run."""
    head, code = git.head(root), code_of_train()
    lock = root / lock_files.LOCK
    outs = dvc_lock.parse_lock(lock.read_bytes(), lock_files.LOCK).outs if lock.is_file() else {}
    inputs = {path: outs[path].md5 for path in code if path in outs}
    options = plan.options.model_dump(exclude={"trials", "minutes", "jobs", "final_seeds"})
    tree = git.run(root, "ls-tree", "-r", "--full-name", head, "--", *code).decode()
    content = json.dumps([tree, inputs, options, plan.definition], sort_keys=True, default=str)
    name = f"search-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    folder = (FOLDER / name).resolve()
    start = folder / COMMIT  # where its first trial started; later trials start there, too
    commit = start.read_text(encoding="utf-8") if start.is_file() else head
    with revisions.repository() as repo:
        cache = repo.cache.local_cache_dir
    return name, Place(root, commit, cache, folder, list(inputs))


class Search:
    """Runs trials until the budget is spent. run: trains one set of parameters. forget: called when a run has ended."""

    def __init__(self, study: Study, run: Run, forget: Callable[[str], None], name: str, quiet: bool = False) -> None:
        self.study, self.plan, self.run, self.forget, self.name, self.quiet = (
            study,
            study.plan,
            run,
            forget,
            name,
            quiet,
        )
        self.lock = threading.Lock()  # of the study, and of the output
        self.stopping = False  # then a run was ended, and its result does not count

    def run_trials(self) -> None:
        """Finish what a killed search began, then begin others. Raises UserError if the first trials all fail."""
        unfinished = self.study.unfinished()
        if self.study.trials:
            finished = len(self.study.trials) - len(unfinished)
            self.say(f"{self.name}: {finished} of {self.plan.options.trials} trials are finished")

        def tasks() -> Iterator[Task]:
            while True:
                with self.lock:
                    trial = unfinished.pop(0) if unfinished else self.study.propose()
                if trial is None:
                    return
                yield functools.partial(self.attempt, trial)

        self.run_all(tasks())

    def run_all(self, tasks: Iterator[Task]) -> None:
        """Run tasks, several at once. Anything that ends this ends them all."""
        jobs = self.plan.options.jobs
        running: set[Future[None]] = set()
        with ThreadPoolExecutor(jobs) as pool, children.Group() as group:
            try:
                while True:
                    while len(running) < jobs and (task := next(tasks, None)):
                        running.add(pool.submit(task, group))
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
            except BaseException:
                self.stopping = True
                raise

    def attempt(self, trial: FrozenTrial, group: children.Group) -> None:
        """Run a trial, and record its result. Raises UserError if all trials so far have failed."""
        number, name, start = trial.number, f"{self.name}-{trial.number:04d}", time.monotonic()
        parameters, metric = studies.values(trial), self.plan.options.metric
        epochs = int(parameters.get(EPOCHS, self.plan.recipe[EPOCHS]))
        self.say(f"trial {number}: {', '.join(f'{key} {value}' for key, value in parameters.items())}")

        def on_epochs(rows: Rows) -> None:
            with self.lock:
                if self.study.report(number, rows, epochs):
                    raise EndedEarlyError

        try:
            result = self.run(name, parameters, on_epochs, group)
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
                state = f"stopped early after {len(self.study.trials[number].intermediate_values)} epochs"
            elif result.metrics is None:
                self.study.fail(number, result.reason, seconds)
                state = f"failed: {result.reason}"
            else:
                self.study.finish(number, float(result.metrics[metric]), seconds)
                state = f"{metric} {result.metrics[metric]:g}"
        self.forget(name)
        self.say(f"trial {number}: {state}")
        ended = list(takewhile(lambda trial: trial.state.is_finished(), self.study.trials))  # none before them may yet
        if len(ended) >= FAILURES and all(trial.state == TrialState.FAIL for trial in ended):
            reason = ended[-1].user_attrs[studies.REASON]
            raise UserError(f"the first {len(ended)} trials failed, the last one with: {reason}")

    def run_finals(self) -> Finals | None:
        """Train the best trial's parameters and those of params.yaml with new seeds; None if they are the same.

        No trial had these seeds: the best of many trials is also a lucky one.
        """
        best, count = self.study.best(), self.plan.options.final_seeds
        recipe = {key: self.plan.recipe[key] for key in self.plan.space}
        if best is None or not count or studies.values(best) == recipe:
            return None
        seeds = [self.plan.recipe[SEED] + 1 + number for number in range(count)]
        sides = {"params": recipe, f"best-{best.number:04d}": studies.values(best)}
        scores: dict[str, dict[int, float]] = {side: {} for side in sides}  # side -> seed -> metric
        self.run_all(
            functools.partial(self.judge, side, {**parameters, SEED: seed}, scores[side])
            for seed in seeds
            for side, parameters in sides.items()
        )
        recipe_scores, best_scores = ([by_seed[seed] for seed in seeds] for by_seed in scores.values())
        return seeds, recipe_scores, best_scores

    def judge(self, side: str, parameters: dict[str, Any], scores: dict[int, float], group: children.Group) -> None:
        """Train one side with one seed, and add its score. Raises UserError if that fails."""
        seed, metric = parameters[SEED], self.plan.options.metric
        name = f"{self.name}-{side}-seed-{seed}"
        try:
            result = self.run(name, parameters, lambda rows: None, group)
        except children.Ended:
            return
        if self.stopping:
            return
        if result.metrics is None:
            raise UserError(f"{side} with seed {seed} failed: {result.reason}")
        scores[seed] = float(result.metrics[metric])
        self.forget(name)
        self.say(f"{side}, seed {seed}: {metric} {scores[seed]:g}")

    def say(self, line: str) -> None:
        """Print to stderr, so that it does not mix with the result, which may be JSON."""
        if not self.quiet:
            print(errors.printable(line), file=sys.stderr, flush=True)


if __name__ == "__main__":
    errors.run_command(main, kept="finished trials are kept, and `make search` continues from there")
