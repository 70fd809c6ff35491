"""The result of a search as a document, a table and Markdown: pure functions of what the trials have recorded."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from review import formatting, significance
from review.comparison import NOT_COMPARABLE
from review.formatting import measure_of, p_value, parameter
from review.search.space import Plan
from review.search.study import REASON, Study, values
from review.significance import Difference
from review.sweep import HIGHER_IS_BETTER
from stages.common.errors import printable
from stages.common.text import listed, shown

STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
LEVEL = 0.05  # accepted share of false alarms, the default of `review.compare`
MOST_FAILED = 2  # failures that are explained
MOST_ROWS = 10  # of the table on a terminal
Finals = tuple[list[int], list[float], list[float]]  # seeds; values of the recipe; values of the winner


def document(study: Study, name: str, commit: str, finals: Finals | None) -> dict[str, Any]:
    """The document. It does not depend on the clock, so that a killed search gives the same as an undisturbed one.

    name        of the search; the experiment of trial 12 is called NAME-0012
    trials      by number: number, state, value (None: not finished), epochs (that were run), parameters, curve
                (epoch, value), reason (of a failure)
    best        number of the best trial; None: none has finished
    recipe      number of the trial with the parameters of params.yaml; None: they are outside the space
    importance  parameter -> share; empty if too few trials finished
    final       the best trial against the recipe, each with several seeds; None: not compared
    """
    plan = study.plan
    trials = [row(trial) for trial in study.trials]
    best = study.best()
    recipe = {key: plan.recipe[key] for key in plan.space}
    return {
        "name": name,
        "commit": commit,
        "metric": plan.options.metric,
        "space": plan.definition,
        "params": recipe,
        "trials": trials,
        "best": best.number if best else None,
        "recipe": next((trial["number"] for trial in trials if trial["parameters"] == recipe), None),
        "importance": study.importance(),
        "final": final(finals, plan) if finals else None,
    }


def row(trial: FrozenTrial) -> dict[str, Any]:
    """A trial of the document."""
    return {
        "number": trial.number,
        "state": STATES[trial.state],
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "epochs": len(trial.intermediate_values),
        "parameters": values(trial),
        "curve": [[epoch, value] for epoch, value in sorted(trial.intermediate_values.items())],
        "reason": trial.user_attrs.get(REASON, ""),
    }


def final(finals: Finals, plan: Plan) -> dict[str, Any]:
    """`final` of a document: whether the winner is better than the recipe, on seeds that chose neither."""
    seeds, recipe, winner = finals
    sign = 1 if plan.higher_is_better else -1
    difference = significance.welch(np.array(recipe), np.array(winner), LEVEL)
    judged: dict[str, Any] = {"difference": None, "interval": None, "p": None, "word": NOT_COMPARABLE}
    if difference:
        judged = {
            "difference": difference.difference,
            "interval": [difference.low, difference.high],
            "p": difference.p,
            "word": significance.verdict(sign * difference.difference, difference.p, LEVEL),
        }
    return {"seeds": seeds, "recipe": recipe, "winner": winner, **judged}


def ranked(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Finished trials, the best first, then the others by number."""
    sign = -1 if HIGHER_IS_BETTER[document["metric"]] else 1
    return sorted(
        document["trials"],
        key=lambda trial: (trial["value"] is None, sign * (trial["value"] or 0.0), trial["number"]),
    )


def state_counts(document: dict[str, Any]) -> dict[str, int]:
    """The number of trials in each state that occurs."""
    states = [trial["state"] for trial in document["trials"]]
    return {state: states.count(state) for state in STATES.values() if state in states}


def frame(document: dict[str, Any], quote: Callable[[str], str], most: int | None = None) -> pd.DataFrame:
    """One row per trial, as text. quote: writes names and values of parameters."""
    keys, measure = list(document["space"]), measure_of(document["metric"])
    rows = [
        [
            str(trial["number"]),
            measure.value(trial["value"]),
            str(trial["epochs"]),
            label(document, trial),
            *(quote(parameter(trial["parameters"][key])) for key in keys),
        ]
        for trial in ranked(document)[:most]
    ]
    return pd.DataFrame(rows, columns=["trial", "validation", "epochs", "state", *map(quote, keys)])


def label(document: dict[str, Any], trial: dict[str, Any]) -> str:
    """The state of a trial, and whether it is the best one or that of params.yaml."""
    marks = [mark for mark, key in (("best", "best"), ("params.yaml", "recipe")) if document[key] == trial["number"]]
    return f"{trial['state']} ({', '.join(marks)})" if marks else str(trial["state"])


def text(document: dict[str, Any]) -> str:
    """A plain table; the verdict comes last, next to the prompt."""
    table = formatting.plain_table(frame(document, shown, MOST_ROWS)) if document["trials"] else ["no trials yet"]
    return printable("\n".join([*table, "", *lines(document)])) + "\n"


def markdown(document: dict[str, Any]) -> str:
    """The same in GitHub's Markdown, with every trial."""
    table = formatting.markdown_table(frame(document, formatting.code))
    return "\n\n".join([table, *map(formatting.escaped, lines(document))]) + "\n"


def lines(document: dict[str, Any]) -> list[str]:
    """Counts, importance, verdict."""
    metric, trials = document["metric"].replace("_", " "), document["trials"]
    counts = ", ".join(f"{count} {state}" for state, count in state_counts(document).items())
    sentences = [
        f"{metric} of the epoch that is kept; {len(trials)} trials of {document['commit'][:7]}"
        + (f": {counts}" if counts else "")
    ]
    if document["importance"]:
        shares = ", ".join(f"{shown(key)} {share:.0%}" for key, share in document["importance"].items())
        sentences.append(f"importance (PED-ANOVA): {shares}")
    if failed := [f"trial {trial['number']} failed: {trial['reason']}" for trial in trials if trial["reason"]]:
        sentences.append(listed(failed, MOST_FAILED, "; "))
    return [*sentences, verdict(document)]


def verdict(document: dict[str, Any]) -> str:
    """Whether the search found better parameters, in one line."""
    best, final = document["best"], document["final"]
    if best is None:
        return "no trial finished"
    if best == document["recipe"]:
        return "no trial is better than params.yaml"
    if final is None:
        return f"trial {best} is the best by one seed; not compared with params.yaml by several"
    measure = measure_of(document["metric"])
    recipe, winner = (measure.value(float(np.mean(final[side]))) for side in ("recipe", "winner"))
    means = (
        f"trial {best} against params.yaml: {final['word']}: {len(final['seeds'])} new seeds each, {recipe} -> {winner}"
    )
    if final["p"] is None:
        return f"{means}; neither varies between seeds, so there is no variation to judge the difference by"
    low, high = final["interval"]
    difference = Difference(final["difference"], low, high, final["p"])
    return f"{means}, {measure.interval(difference, LEVEL)}, Welch's t test {p_value(final['p'])}, level {LEVEL:g}"


def commands(document: dict[str, Any]) -> list[str]:
    """The commands that apply the winner's parameters to the work tree."""
    if document["best"] in (None, document["recipe"]):
        return []
    return [f"dvc exp apply {document['name']}-{document['best']:04d}", "make repro"]
