"""The trials of a search in Optuna's journal, an append-only file: what to try next, and which trials to stop early.

What a trial tries depends only on its number and the trials before it: no sampler has a state that a kill could lose.
Each trial is written in one line with its parameters, so that after a kill it is recorded completely or not at all.
"""

from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from review.search import space
from review.search.space import Plan

NAME = "search"
REASON, SECONDS = "reason", "seconds"  # attributes of a trial: why it failed, and how long it ran

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study:
    """The trials of one search. No other process may write the same journal: `review.search` holds a lock."""

    def __init__(self, journal: Path, plan: Plan) -> None:
        journal.parent.mkdir(parents=True, exist_ok=True)
        _repair(journal)
        self.plan = plan
        self.distributions: dict[str, BaseDistribution] = {**plan.space}
        self.storage = JournalStorage(JournalFileBackend(str(journal)))
        self.study = optuna.create_study(
            storage=self.storage,
            study_name=NAME,
            direction="maximize" if plan.higher_is_better else "minimize",
            sampler=RandomSampler(seed=0),  # not used: `propose` creates the samplers
            pruner=_pruner(plan),
            load_if_exists=True,
        )

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.study.get_trials(deepcopy=False)

    def unfinished(self) -> list[FrozenTrial]:
        """The trials that are running, or ran when the search was killed."""
        return [trial for trial in self.trials if trial.state == TrialState.RUNNING]

    def spent_minutes(self) -> float:
        """The time that all finished trials took."""
        return float(sum(trial.user_attrs.get(SECONDS, 0.0) for trial in self.trials)) / 60

    def propose(self) -> FrozenTrial | None:
        """Begin another trial; None if the budget is spent. The first one is the recipe of params.yaml, if inside."""
        options, trials = self.plan.options, self.trials
        minutes = options.minutes * options.jobs
        if len(trials) >= options.trials or (minutes and self.spent_minutes() >= minutes):
            return None
        params = space.point(self.plan.recipe, self.plan.space) if not trials else None
        if params is None:
            # In a copy, so that a trial without parameters is never written.
            copy = optuna.create_study(sampler=self._sampler(len(trials)), direction=self.study.direction)
            copy.add_trials(trials)
            drawn = copy.ask(self.distributions).params
            params = {key: space.readable(drawn[key], self.plan.space[key]) for key in self.plan.space}
        begun = optuna.create_trial(state=TrialState.RUNNING, params=params, distributions=self.distributions)
        self.study.add_trial(begun)
        return self.trials[len(trials)]

    def _sampler(self, number: int) -> BaseSampler:
        seed = (self.plan.options.seed + 7919 * number) % 2**32
        return TPESampler(seed=seed) if self.plan.options.sampler == "tpe" else RandomSampler(seed=seed)

    def report(self, number: int, rows: list[dict[str, float]], epochs: int) -> bool:
        """Record the new epochs of a trial; returns whether it should end before its last epoch.

        rows: one per epoch so far, as in metrics/plots/training.csv. Epochs are judged in order and once each, so that
        reading them later changes no decision.
        """
        for row in rows:
            epoch, recorded = int(row["epoch"]), self.trials[number].intermediate_values
            if epoch < max(recorded, default=0):
                continue
            if epoch not in recorded:
                self.storage.set_trial_intermediate_value(self._id(number), epoch, row[self.plan.options.metric])
            if epoch < epochs and self.study.pruner.prune(self.study, self.trials[number]):
                return True
        return False

    def finish(self, number: int, value: float, seconds: float) -> None:
        """Record that a trial has finished, with this value of the metric."""
        self._tell(number, seconds, value=value)

    def prune(self, number: int, seconds: float) -> None:
        """Record that a trial was stopped early."""
        self._tell(number, seconds, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str, seconds: float) -> None:
        """Record that a trial failed."""
        self.storage.set_trial_user_attr(self._id(number), REASON, reason)
        self._tell(number, seconds, state=TrialState.FAIL)

    def _tell(self, number: int, seconds: float, value: float | None = None, state: TrialState | None = None) -> None:
        self.storage.set_trial_user_attr(self._id(number), SECONDS, round(seconds, 1))
        self.study.tell(number, value, state)

    def _id(self, number: int) -> int:
        study = self.storage.get_study_id_from_name(NAME)
        return self.storage.get_trial_id_from_study_id_trial_number(study, number)

    def best(self) -> FrozenTrial | None:
        """The best finished trial, the first among equals; None if there is none."""
        finished = [trial for trial in self.trials if trial.state == TrialState.COMPLETE and trial.value is not None]
        sign = -1 if self.plan.higher_is_better else 1
        return min(finished, key=lambda trial: sign * (trial.value or 0.0), default=None)

    def importance(self) -> dict[str, float]:
        """The importance of each parameter, a share, by PED-ANOVA (Watanabe et al. 2023); empty if unknown."""
        finished = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        if len(finished) < 4 or len({trial.value for trial in finished}) < 2:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(self.study, evaluator=evaluator)


def values(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters of a trial, as values for params.yaml."""
    return {key: space.value(drawn) for key, drawn in trial.params.items()}


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    options = plan.options
    if options.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(options.startup_trials, n_warmup_steps=options.warmup_epochs + 1)


def _repair(journal: Path) -> None:
    """Remove what a killed process may have left: part of a last line, and a lock that Optuna would wait for (30 s)."""
    for lock in journal.parent.glob(f"{journal.name}.lock*"):
        lock.unlink()
    if journal.is_file():
        with journal.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
