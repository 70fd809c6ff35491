"""Which parameters are best? `python -m review.sweep [NAMES]`: DVC's experiments as a table, a mean over seeds a row.

    dvc exp run --queue -n lr -S 'optimizers.adam.lr=0.005,0.01' -S 'train.seed=range(3)' && dvc queue start --jobs 2
    python -m review.sweep 'lr-*' --plot lr.png

Experiments that differ in nothing but `train.seed` are one setting. Judged is validation alone: a setting that was
chosen on the test set has no test set left. Not a stage: it reads what Git has, and writes nothing but the plot.
"""

import argparse
import fnmatch
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from integrity import revisions
from integrity.revisions import Revision
from review import comparison_text, options
from stages.common import errors, files, paths
from stages.common.errors import UserError, printable
from stages.common.text import shown as printable_key

SEED = "train.seed"
FORMATS = ("table", "markdown", "json")
# What a setting may be chosen by.
HIGHER_IS_BETTER = {"validation_accuracy": True, "validation_balanced_accuracy": True, "validation_loss": False}
BEST, NOISE, WORSE = "best", "within noise", "worse"
METHOD = "Tukey's HSD (1949): every pair of settings at once, so that many settings do not make false alarms likely"


def main() -> None:
    """Read the experiments, print the table, and draw it if asked to."""
    asked = arguments()
    with revisions.repository() as repo:
        baseline = revisions.resolve(repo, asked.rev)
        runs = read(repo, baseline, asked.names)
    document = {"commit": baseline, **summary(runs, asked.metric, asked.level)}
    if asked.plot:
        from review import sweep_figure  # matplotlib takes longer to import than the rest to run

        files.write_bytes(asked.plot, sweep_figure.draw(document))
    match asked.format:
        case "table":
            print(text(document), end="")
        case "markdown":
            print(markdown(document), end="")
        case "json":
            print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m review.sweep", description="Which parameters are best?")
    parser.add_argument("names", nargs="?", default="*", metavar="NAMES", help="of experiments: 'lr-*' (default: all)")
    parser.add_argument("--rev", default="HEAD", help="the commit that the experiments began at (default: HEAD)")
    parser.add_argument("--metric", choices=HIGHER_IS_BETTER, default="validation_accuracy")
    parser.add_argument(
        "--level", type=options.level, default=0.05, help="share of false alarms accepted (default: 0.05)"
    )
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it, too")
    return parser.parse_args()


def read(repo: Any, baseline: str, names: str) -> list[Revision]:
    """The experiments of a commit whose names match a pattern. Raises UserError if there are none."""
    from dvc.repo.experiments.utils import exp_refs_by_baseline

    found = exp_refs_by_baseline(repo.scm, {baseline}).get(baseline, [])  # not experiments.ls: that waits for a lock
    listed = sorted((ref.name, repo.scm.get_ref(str(ref))) for ref in found)
    matching = [(name, commit) for name, commit in listed if fnmatch.fnmatchcase(name, names)]
    if not matching:
        there = ", ".join(name for name, _ in listed[:5]) + (", …" if len(listed) > 5 else "")
        raise UserError(
            f"no experiment of {baseline[:7]} is named {names!r}; there are: {there}"
            if listed
            else f"no experiments of {baseline[:7]}; `dvc exp run --queue …` and `dvc queue start` make some, "
            "--rev reads those of another commit"
        )
    metrics = paths.TRAIN_METRICS.as_posix()
    return [revisions.read(repo, commit, name, metrics) for name, commit in matching]


def summary(runs: list[Revision], metric: str, level: float) -> dict[str, Any]:
    """Group runs into settings, and measure each over its seeds. Raises UserError for a run that was not measured.

    metric      what is measured, of the validation part
    varied      the parameters by which settings differ, in the order of params.yaml
    deviation   standard, over seeds, pooled over settings; None where no setting has two seeds
    settings    the best first: parameters (a key that it lacks is not there), seeds, values (one per seed), mean,
                deviation (None: one seed), and verdict:
                best | within noise | worse (than the best); None where there is no deviation to judge by
    notes       what the user must know to trust the rest, a line each
    """
    read_keys = {key for run in runs for key in run.read_by}
    keys = dict.fromkeys(key for run in runs for key in run.params or {} if key in read_keys and key != SEED)
    varied = [key for key in keys if len({_plain(run, key) for run in runs}) > 1]
    notes = [note for run in runs for note in run.notes] + splits(runs)

    seeds_of: dict[tuple[str, ...], dict[str, Revision]] = {}  # setting -> seed -> run
    for run in runs:
        if SEED not in (run.params or {}):
            raise UserError(f"{run.name}: {paths.PARAMS} there has no {SEED}")
        _value(run, metric)
        of_setting = seeds_of.setdefault(tuple(_plain(run, key) for key in varied), {})
        if of_setting.setdefault(_plain(run, SEED), run) is not run:
            notes.append(f"{run.name}: left out: the same parameters and seed as another experiment")

    settings: list[dict[str, Any]] = []
    for of_setting in seeds_of.values():
        ordered = sorted(of_setting.values(), key=lambda run: (len(_plain(run, SEED)), _plain(run, SEED)))
        values = [_value(run, metric) for run in ordered]
        parameters = ordered[0].params or {}
        settings.append(
            {
                "parameters": {key: parameters[key] for key in varied if key in parameters},
                "seeds": [(run.params or {})[SEED] for run in ordered],
                "values": values,
                "mean": statistics.fmean(values),
                "deviation": statistics.stdev(values) if len(values) > 1 else None,
            }
        )
    settings.sort(key=lambda setting: setting["mean"], reverse=HIGHER_IS_BETTER[metric])
    counts = {len(setting["seeds"]) for setting in settings}
    if len(counts) > 1:
        notes.append(f"not every setting has as many seeds: {min(counts)} to {max(counts)}")
    for setting, verdict in zip(settings, verdicts([setting["values"] for setting in settings], level), strict=True):
        setting["verdict"] = verdict
    return {
        "metric": metric,
        "level": level,
        "method": METHOD,
        "varied": varied,
        "deviation": pooled([setting["values"] for setting in settings]),
        "settings": settings,
        "notes": notes,
    }


def pooled(groups: list[list[float]]) -> float | None:
    """The standard deviation within groups, pooled over them; None if no group has two values."""
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return None
    squares = sum(statistics.pvariance(group) * len(group) for group in groups)
    return float((squares / freedom) ** 0.5)


def verdicts(groups: list[list[float]], level: float) -> list[str | None]:
    """How each setting stands to the first, which is the best. None for all if a setting has one seed.

    The stages write six decimals, which for accuracies stand for whole numbers of images: judged are whole millionths,
    whose sums are exact. Of floats, equal ones can have means that differ in the last bit, and so a "significant" one.
    """
    if len(groups) < 2:
        return [BEST] * len(groups)
    if min(map(len, groups)) < 2:
        return [None] * len(groups)
    whole = [[round(value * 1e6) for value in group] for group in groups]
    if all(len(set(group)) == 1 for group in whole):  # seeds change nothing at all: every difference is one
        return [BEST, *(NOISE if group[0] == whole[0][0] else WORSE for group in whole[1:])]
    p = stats.tukey_hsd(*whole).pvalue[0]
    return [BEST, *(WORSE if value < level else NOISE for value in p[1:])]


def splits(runs: list[Revision]) -> list[str]:
    """A note if the runs were not validated on the same images."""
    parts = {run.outs[path].md5 for run in runs if (path := paths.VALIDATION.as_posix()) in run.outs}
    if len(parts) < 2:
        return []
    return [f"the validation parts are {len(parts)} different ones: other images, so part of a difference is theirs"]


def text(document: dict[str, Any]) -> str:
    """A plain table, the notes, and how to read it."""
    lines = frame(document, printable_key).to_string(index=False).splitlines()
    blocks = ["\n".join(line.rstrip() for line in lines)]
    if document["notes"]:
        blocks.append("\n".join(f"note: {note}" for note in document["notes"]))
    blocks.append(legend(document))
    return printable("\n\n".join(blocks)) + "\n"


def markdown(document: dict[str, Any]) -> str:
    """The same in GitHub's Markdown."""
    table = frame(document, comparison_text.code)
    blocks = [table.to_markdown(index=False, tablefmt="pipe", disable_numparse=True, stralign="right")]
    blocks += [f"> {comparison_text.escaped(note)}" for note in document["notes"]]
    return "\n\n".join([*blocks, comparison_text.escaped(legend(document))]) + "\n"


def frame(document: dict[str, Any], shown_as: Callable[[str], str]) -> pd.DataFrame:
    """One row per setting, as text; parameters first, whatever they are called. shown_as: their names and values."""
    varied, metric = document["varied"], document["metric"]
    rows = [
        [
            *(
                shown_as(comparison_text.value(setting["parameters"][key]))
                if key in setting["parameters"]
                else comparison_text.MISSING
                for key in varied
            ),
            str(len(setting["seeds"])),
            shown(setting["mean"], metric),
            shown(setting["deviation"], metric, unit=False),
            setting["verdict"] or comparison_text.MISSING,
        ]
        for setting in document["settings"]
    ]
    return pd.DataFrame(rows, columns=[*map(shown_as, varied), "seeds", "mean", "deviation", "against the best"])


def legend(document: dict[str, Any]) -> str:
    """What the numbers are."""
    metric = document["metric"]
    runs = sum(len(setting["seeds"]) for setting in document["settings"])
    line = f"{metric.replace('_', ' ')}, mean over {SEED}, {runs} runs of {document['commit'][:7]}"
    if document["deviation"] is None:
        return f"{line}; one seed a setting does not tell noise from effect"
    spread = shown(document["deviation"], metric, unit=False)
    return f"{line}; deviation over seeds {spread}; Tukey's HSD, level {document['level']:g}"


def shown(value: float | None, metric: str, unit: bool = True) -> str:
    """A number of a metric as text: shares in percent."""
    if value is None:
        return comparison_text.MISSING
    if not metric.endswith("accuracy"):
        return f"{value:.4f}"
    return f"{100 * value:.3f}" + " %" * unit


def _plain(run: Revision, key: str) -> str:
    """A parameter as text, which is the same for the same value and nothing else: "" for none."""
    return json.dumps(run.params[key], ensure_ascii=False) if run.params and key in run.params else ""


def _value(run: Revision, metric: str) -> float:
    value = run.metrics.get(paths.TRAIN_METRICS.as_posix(), {}).get(metric)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(
            f"{run.name}: {paths.TRAIN_METRICS} has no {metric}; run it with a preprocess.validation_fraction above 0"
            + ", and train.select_by: balanced_accuracy" * ("balanced" in metric)
        )
    return float(value)


if __name__ == "__main__":
    errors.run_command(main)
