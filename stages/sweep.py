"""Which parameters are best? `python -m stages.sweep [NAMES]`: DVC's experiments as a table, a mean over seeds a row.

    dvc exp run --queue -n lr -S 'optimizers.adam.lr=0.005,0.01' -S 'train.seed=range(3)' && dvc queue start --jobs 2
    python -m stages.sweep 'lr-*' --plot lr.png

Experiments that differ in nothing but `train.seed` are one setting. Judged is validation alone: a setting that was
chosen on the test set has no test set left. Not a stage: it reads what Git has, and writes nothing but the plot.
"""

import argparse
import fnmatch
import json
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from stages import command, compare, comparison_text, files, paths, revisions
from stages.errors import UserError, printable
from stages.revisions import Revision

SEED = "train.seed"
FORMATS = ("table", "markdown", "json")
HIGHER_IS_BETTER = {"validation_accuracy": True, "validation_loss": False}  # what a setting may be chosen by
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
        from stages import sweep_figure  # matplotlib takes longer to import than the rest to run

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
    parser = argparse.ArgumentParser(prog="python -m stages.sweep", description="Which parameters are best?")
    parser.add_argument("names", nargs="?", default="*", metavar="NAMES", help="of experiments: 'lr-*' (default: all)")
    parser.add_argument("--rev", default="HEAD", help="the commit that the experiments began at (default: HEAD)")
    parser.add_argument("--metric", choices=HIGHER_IS_BETTER, default="validation_accuracy")
    parser.add_argument(
        "--level", type=compare.level, default=0.05, help="share of false alarms accepted (default: 0.05)"
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
    return [revisions.read(repo, commit, paths.PARAMS.as_posix(), metrics, name) for name, commit in matching]


def summary(runs: list[Revision], metric: str, level: float) -> dict[str, Any]:
    """Group runs into settings, and measure each over its seeds. Raises UserError for a run that was not measured.

    metric      what is measured, of the validation part
    varied      the parameters by which settings differ, in the order of params.yaml
    deviation   standard, over seeds, pooled over settings; None where no setting has two seeds
    settings    the best first: parameters, seeds, values (one a seed), mean, deviation (None: one seed), and verdict:
                best | within noise | worse (than the best); None where there is no deviation to judge by
    notes       what the user must know to trust the rest, a line each
    """
    read_keys = {key for run in runs for key in run.read_by}
    table = pd.DataFrame([{key: _plain(value) for key, value in (run.params or {}).items()} for run in runs])
    varied = [key for key in table if key in read_keys and key != SEED and table[key].nunique(dropna=False) > 1]
    if SEED not in table:
        raise UserError(f"{runs[0].name}: {paths.PARAMS} there has no {SEED}")
    table["value"] = [_value(run, metric) for run in runs]
    notes = [note for run in runs for note in run.notes] + splits(runs)
    twice = table.duplicated([*varied, SEED])
    notes += [
        f"{run.name}: left out: the same parameters and seed as another experiment" for run in _where(runs, twice)
    ]
    table = table[~twice]

    settings: list[dict[str, Any]] = []
    for _, rows in table.groupby(varied, sort=False, dropna=False) if varied else [((), table)]:
        rows = rows.sort_values(SEED)
        values = rows["value"].tolist()
        settings.append(
            {
                "parameters": {key: json.loads(rows[key].iloc[0]) for key in varied},
                "seeds": [json.loads(seed) for seed in rows[SEED]],
                "values": values,
                "mean": float(rows["value"].mean()),
                "deviation": float(rows["value"].std()) if len(values) > 1 else None,
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
    squares = sum(float(pd.Series(group).var(ddof=0)) * len(group) for group in groups)
    return float((squares / freedom) ** 0.5)


def verdicts(groups: list[list[float]], level: float) -> list[str | None]:
    """How each setting stands to the first, which is the best. None for all if a setting has one seed."""
    if len(groups) < 2:
        return [BEST] * len(groups)
    if min(map(len, groups)) < 2:
        return [None] * len(groups)
    if not pooled(groups):  # seeds change nothing at all: every difference is one
        return [BEST, *(NOISE if group[0] == groups[0][0] else WORSE for group in groups[1:])]
    p = stats.tukey_hsd(*groups).pvalue[0]
    return [BEST, *(WORSE if value < level else NOISE for value in p[1:])]


def splits(runs: list[Revision]) -> list[str]:
    """A note if the runs were not validated on the same images."""
    parts = {run.outs[path].md5 for run in runs if (path := paths.VALIDATION.as_posix()) in run.outs}
    if len(parts) < 2:
        return []
    return [f"the validation parts are {len(parts)} different ones: other images, so part of a difference is theirs"]


def text(document: dict[str, Any]) -> str:
    """A plain table, the notes, and how to read it."""
    lines = frame(document).to_string(index=False).splitlines()
    blocks = ["\n".join(line.rstrip() for line in lines)]
    if document["notes"]:
        blocks.append("\n".join(f"note: {note}" for note in document["notes"]))
    blocks.append(legend(document))
    return printable("\n\n".join(blocks)) + "\n"


def markdown(document: dict[str, Any]) -> str:
    """The same in GitHub's Markdown."""
    table = frame(document)
    table[document["varied"]] = table[document["varied"]].map(comparison_text._code)
    table = table.rename(columns={key: comparison_text._code(key) for key in document["varied"]})
    blocks = [table.to_markdown(index=False, tablefmt="pipe", disable_numparse=True, stralign="right")]
    blocks += [f"> {comparison_text._text(note)}" for note in document["notes"]]
    return "\n\n".join([*blocks, comparison_text._text(legend(document))]) + "\n"


def frame(document: dict[str, Any]) -> pd.DataFrame:
    """A row a setting, as text."""
    rows = []
    for setting in document["settings"]:
        row = {key: comparison_text.value(value) for key, value in setting["parameters"].items()}
        row |= {"seeds": str(len(setting["seeds"])), "mean": shown(setting["mean"], document["metric"])}
        row["deviation"] = shown(setting["deviation"], document["metric"], unit=False)
        rows.append({**row, "against the best": setting["verdict"] or comparison_text.MISSING})
    return pd.DataFrame(rows)


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


def _plain(value: Any) -> str:
    """A parameter as text that is the same for the same value: lists have no hash to group by."""
    return json.dumps(value, ensure_ascii=False)


def _value(run: Revision, metric: str) -> float:
    value = run.metrics[paths.TRAIN_METRICS.as_posix()].get(metric)
    if not isinstance(value, int | float):
        raise UserError(
            f"{run.name}: {paths.TRAIN_METRICS} has no {metric}; run it with a preprocess.validation_fraction above 0"
        )
    return float(value)


def _where(runs: list[Revision], mask: "pd.Series[bool]") -> list[Revision]:
    return [run for run, chosen in zip(runs, mask, strict=True) if chosen]


if __name__ == "__main__":
    command.run(main)
