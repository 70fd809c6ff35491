"""What a search has found, as a document, a table and Markdown: pure functions on what the trials have recorded."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from review import comparison_text, significance, sweep
from review.search.space import HIGHER_IS_BETTER, Plan
from review.search.study import REASON, Study, values
from stages.common.errors import printable
from stages.common.text import listed, shown

STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
LEVEL = 0.05  # of the verdict: the share of false alarms, the default of `review.compare`
MOST_FAILED = 2  # whose reason is told
TOP = 10  # rows of a table, where there are more
Finals = tuple[list[int], list[float], list[float]]  # seeds; values of the recipe; values of the winner


def document(study: Study, name: str, commit: str, finals: Finals | None) -> dict[str, Any]:
    """All of it. Nothing in it depends on the clock: a search that was killed has the document of one that was not.

    trials      by number: number, state, value (None: not finished), epochs (that were run), parameters, curve
                (epoch, value), reason (of a failure)
    best        number of the best trial; None: none has finished
    recipe      number of the trial with the parameters of params.yaml; None: they are outside the space
    importance  parameter -> share; empty where too few trials finished
    name        of the search; that of a trial's experiment is NAME-0012
    final       the best against the recipe, each with several seeds; None: not compared
    """
    plan = study.plan
    trials = [row(trial) for trial in study.trials]
    best = study.best()
    now = {key: plan.recipe[key] for key in plan.space}
    recipe = next((trial["number"] for trial in trials if trial["parameters"] == now), None)
    return {
        "name": name,
        "commit": commit,
        "metric": plan.options.metric,
        "space": plan.definition,
        "params": now,
        "trials": trials,
        "best": best.number if best else None,
        "recipe": recipe,
        "importance": study.importance(),
        "final": final(finals, plan) if finals else None,
    }


def row(trial: FrozenTrial) -> dict[str, Any]:
    """A trial of the document."""
    curve = sorted(trial.intermediate_values.items())
    return {
        "number": trial.number,
        "state": STATES[trial.state],
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "epochs": len(curve),
        "parameters": values(trial),
        "curve": [[epoch, value] for epoch, value in curve],
        "reason": trial.user_attrs.get(REASON, ""),
    }


def final(finals: Finals, plan: Plan) -> dict[str, Any]:
    """Whether the winner is better than the recipe, on seeds of which neither was chosen."""
    seeds, recipe, winner = finals
    difference = significance.welch(np.array(recipe), np.array(winner), LEVEL)
    mean = float(np.mean(winner) - np.mean(recipe))
    sign = 1 if plan.higher_is_better else -1
    if difference is None:  # neither varies between its seeds
        word, interval, p = significance.verdict(sign * mean, 0.0, LEVEL), [mean, mean], None
    else:
        word = significance.verdict(sign * difference.difference, difference.p, LEVEL)
        interval, p = [difference.low, difference.high], difference.p
    return {
        "seeds": seeds,
        "recipe": recipe,
        "winner": winner,
        "difference": mean,
        "interval": interval,
        "p": p,
        "word": word,
    }


def ranked(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Finished trials, the best first, then the others by number."""
    sign = -1 if HIGHER_IS_BETTER[found["metric"]] else 1
    return sorted(
        found["trials"],
        key=lambda trial: (trial["value"] is None, sign * (trial["value"] or 0.0), trial["number"]),
    )


def frame(found: dict[str, Any], quote: Callable[[str], str], most: int | None = None) -> pd.DataFrame:
    """One row per trial, as text. quote: for names and values of parameters."""
    keys = list(found["space"])
    rows = [
        [
            str(trial["number"]),
            sweep.shown(trial["value"], found["metric"]),
            str(trial["epochs"]),
            label(found, trial),
            *(quote(comparison_text.value(trial["parameters"][key])) for key in keys),
        ]
        for trial in ranked(found)[:most]
    ]
    return pd.DataFrame(rows, columns=["trial", "validation", "epochs", "state", *map(quote, keys)])


def label(found: dict[str, Any], trial: dict[str, Any]) -> str:
    """The state of a trial, with what else is to be known of it."""
    marks = [mark for mark, key in (("best", "best"), ("params.yaml", "recipe")) if found[key] == trial["number"]]
    return f"{trial['state']} ({', '.join(marks)})" if marks else str(trial["state"])


def text(found: dict[str, Any]) -> str:
    """A plain table; the verdict comes last, next to the prompt."""
    table = frame(found, shown, TOP).to_string(index=False).splitlines()
    blocks = ["\n".join(line.rstrip() for line in table), "\n".join(lines(found))]
    return printable("\n\n".join(blocks)) + "\n"


def markdown(found: dict[str, Any]) -> str:
    """The same in GitHub's Markdown, with every trial."""
    table = frame(found, comparison_text.code)
    rows = table.to_markdown(index=False, tablefmt="pipe", disable_numparse=True, stralign="right")
    return "\n\n".join([rows, *map(comparison_text.escaped, lines(found))]) + "\n"


def lines(found: dict[str, Any]) -> list[str]:
    """Counts, importance, verdict."""
    metric = found["metric"].replace("_", " ")
    states = [trial["state"] for trial in found["trials"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES.values() if state in states)
    said = [f"{metric} of the epoch that is kept; {len(states)} trials of {found['commit'][:7]}: {counts}"]
    if found["importance"]:
        shares = ", ".join(f"{shown(key)} {share:.0%}" for key, share in found["importance"].items())
        said.append(f"importance (PED-ANOVA): {shares}")
    failed = [f"trial {trial['number']} failed: {trial['reason']}" for trial in found["trials"] if trial["reason"]]
    if failed:
        said.append(listed(failed, MOST_FAILED, "; "))
    return [*said, verdict(found)]


def verdict(found: dict[str, Any]) -> str:
    """Whether the search was worth it, in a line."""
    if found["best"] is None:
        return "no trial finished"
    if found["best"] == found["recipe"]:
        return "no trial is better than params.yaml"
    if (final := found["final"]) is None:
        return f"trial {found['best']} is the best by one seed; not compared with params.yaml by several"
    metric = found["metric"]
    recipe, winner = (float(np.mean(final[side])) for side in ("recipe", "winner"))
    low, high = final["interval"]
    if metric.endswith("accuracy"):
        change = f"{100 * final['difference']:+.3f} points (95 % interval {100 * low:+.3f} to {100 * high:+.3f})"
    else:
        change = f"{final['difference']:+.5f} (95 % interval {low:+.5f} to {high:+.5f})"
    chance = "neither varies between seeds" if final["p"] is None else f"Welch's t test {p_text(final['p'])}"
    return (
        f"trial {found['best']} against params.yaml: {final['word']}: {len(final['seeds'])} new seeds each, "
        f"{sweep.shown(recipe, metric)} -> {sweep.shown(winner, metric)}, {change}, {chance}, level {LEVEL:g}"
    )


def p_text(p: float) -> str:
    """A p-value in as many digits as matter."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.{max(2, 1 - math.floor(math.log10(p)))}f}" if p < 1 else "p = 1"


def commands(found: dict[str, Any]) -> Sequence[str]:
    """The commands with which the winner's parameters come into the work tree."""
    if found["best"] in (None, found["recipe"]):
        return []
    return [f"dvc exp apply {found['name']}-{found['best']:04d}", "make repro"]
