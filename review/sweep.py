"""Which parameters are best? `python -m review.sweep [NAMES]`: DVC's experiments as a table of means over seeds.

    dvc exp run --queue -n lr -S 'optimizers.adam.lr=0.005,0.01' -S 'train.seed=range(3)' && dvc queue start --jobs 2
    python -m review.sweep 'lr-*' --plot lr.png

Experiments that differ only in `train.seed` are one setting; with other code or data, they are different settings. Only
validation metrics are compared: after a choice on the test set, there is no unbiased test set left. Not a stage: it
reads what is in Git, and writes only the plot.
"""

import argparse
import fnmatch
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from integrity import revisions
from integrity.dvc_lock import parse_lock
from integrity.lock_files import LOCK
from integrity.revisions import Revision
from review import formatting, options
from review.formatting import MISSING, measure_of, parameter
from stages.common import errors, files, paths
from stages.common.errors import UserError, printable
from stages.common.text import listed, shown

SEED = "train.seed"
# The metrics that a setting can be chosen by.
HIGHER_IS_BETTER = {
    "validation_accuracy": True,
    "validation_balanced_accuracy": True,
    "validation_loss": False,
    "validation_r2": True,  # of a regression
}
BEST, NOISE, WORSE = "best", "within noise", "worse"
MOST_NAMES = 5  # of experiments, in an error message
METHOD = "Tukey's HSD (1949): all pairs of settings at once, so that more settings give no more false alarms"


def main() -> None:
    """Read the experiments, print the table, and draw it if --plot is given."""
    arguments = command_line()
    with revisions.repository() as repo:
        baseline = revisions.resolve(repo, arguments.rev)
        runs = read(repo, baseline, arguments.names)
    document = {"commit": baseline, **summary(runs, arguments.metric, arguments.level)}
    if arguments.plot:
        from review import sweep_figure  # importing matplotlib takes longer than all the rest

        files.write_bytes(arguments.plot, sweep_figure.draw(document))
    formatting.print_document(document, arguments.format, text, markdown)


def command_line() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m review.sweep", description="Which parameters are best?")
    parser.add_argument(
        "names", nargs="?", default="*", metavar="NAMES", help="names of experiments, such as 'lr-*' (default: all)"
    )
    parser.add_argument("--rev", default="HEAD", help="the commit at which the experiments started (default: HEAD)")
    parser.add_argument("--metric", choices=HIGHER_IS_BETTER, default="validation_accuracy")
    parser.add_argument("--level", type=options.level, default=0.05, help="accepted share of false alarms (0.05)")
    formatting.add_format(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw the table")
    return parser.parse_args()


def read(repo: Any, baseline: str, names: str) -> list[Revision]:
    """The experiments of a commit whose names match a pattern. Raises UserError if there are none."""
    from dvc.repo.experiments.utils import exp_refs_by_baseline

    refs = exp_refs_by_baseline(repo.scm, {baseline}).get(baseline, [])  # experiments.ls would wait for a lock
    experiments = sorted((ref.name, repo.scm.get_ref(str(ref))) for ref in refs)
    if not experiments:
        raise UserError(
            f"no experiments of {baseline[:7]}; `dvc exp run --queue …` and `dvc queue start` run some, and --rev "
            "selects another commit"
        )
    matching = [(name, commit) for name, commit in experiments if fnmatch.fnmatchcase(name, names)]
    if not matching:
        known = listed([name for name, _ in experiments], MOST_NAMES)
        raise UserError(f"no experiment of {baseline[:7]} is named {names!r}; there are: {known}")
    metrics = paths.TRAIN_METRICS.as_posix()
    runs = [revisions.read(repo, commit, name, metrics) for name, commit in matching]
    return with_inputs(runs, [inputs_of_train(repo, run) for run in runs])


def inputs_of_train(repo: Any, run: Revision) -> dict[str, str]:
    """The code and data that train read: path -> MD5, from dvc.lock. Empty if it cannot be read, which a note says."""
    try:
        lock = parse_lock(revisions.file(repo, run, LOCK) or b"", f"{run.name}: {LOCK}")
    except UserError:
        return {}
    return {dep.path: dep.md5 or "" for dep in lock.stages["train"].deps} if "train" in lock.stages else {}


def with_inputs(runs: list[Revision], inputs: list[dict[str, str]]) -> list[Revision]:
    """Add each input of train that differs between runs of equal parameters, as another parameter: one setting is not
    a mixture of code or data. Its key is the path, its value the first digits of the MD5.

    inputs: for each run, path -> MD5.
    """
    keys = varied_keys(runs)
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for run, read_files in zip(runs, inputs, strict=True):
        groups.setdefault(tuple(_plain(run, key) for key in keys), []).append(read_files)
    differing = [
        path
        for path in dict.fromkeys(path for read_files in inputs for path in read_files)
        if any(len({read_files.get(path) for read_files in group}) > 1 for group in groups.values())
    ]
    return [
        replace(
            run,
            params={**(run.params or {}), **{path: read_files[path][:7] for path in differing if path in read_files}},
            read_by={**run.read_by, **{path: ["train"] for path in differing}},
        )
        for run, read_files in zip(runs, inputs, strict=True)
    ]


def varied_keys(runs: list[Revision]) -> list[str]:
    """The parameters, except the seed, that a stage reads and that differ between runs, in the order of params.yaml."""
    read_keys = {key for run in runs for key in run.read_by}
    keys = dict.fromkeys(key for run in runs for key in run.params or {} if key in read_keys and key != SEED)
    return [key for key in keys if len({_plain(run, key) for run in runs}) > 1]


def summary(runs: list[Revision], metric: str, level: float) -> dict[str, Any]:
    """Group runs into settings, and summarize each over its seeds. Raises UserError for a run without the metric.

    metric      the validation metric
    varied      the parameters that differ between settings, in the order of params.yaml, and inputs of `with_inputs`
    deviation   the standard deviation over seeds, pooled over settings; None if no setting has two seeds
    settings    the best first: parameters (without the keys that it lacks), seeds, values (one per seed), mean,
                deviation (None: one seed), and verdict: best | within noise | worse (than the best); None if unknown
    notes       what the reader must know to trust the rest, one line each
    """
    varied = varied_keys(runs)
    notes = [note for run in runs for note in run.notes] + different_validation_sets(runs)

    runs_by_setting: dict[tuple[str, ...], dict[str, Revision]] = {}  # setting -> seed -> run
    for run in runs:
        if SEED not in (run.params or {}):
            raise UserError(f"{run.name}: {paths.PARAMS} there has no {SEED}")
        _value(run, metric)
        runs_by_seed = runs_by_setting.setdefault(tuple(_plain(run, key) for key in varied), {})
        if runs_by_seed.setdefault(_plain(run, SEED), run) is not run:
            notes.append(f"{run.name}: left out: the same parameters and seed as another experiment")

    settings: list[dict[str, Any]] = []
    for runs_by_seed in runs_by_setting.values():
        ordered = sorted(runs_by_seed.values(), key=lambda run: (len(_plain(run, SEED)), _plain(run, SEED)))
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
        notes.append(f"the settings have different numbers of seeds: {min(counts)} to {max(counts)}")
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
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in groups if len(group) > 1)
    return float((squares / freedom) ** 0.5)


def verdicts(groups: list[list[float]], level: float) -> list[str | None]:
    """The verdict on each setting against the first, which is the best. None for all if a setting has one seed.

    None also for settings that differ from the best, if no setting varies between its seeds.

    The stages write six decimals. The test uses whole millionths, whose sums are exact: means of equal floats can
    differ in the last bit, which would be a "significant" difference.
    """
    if len(groups) < 2:
        return [BEST] * len(groups)
    if min(map(len, groups)) < 2:
        return [None] * len(groups)
    whole = [[round(value * 1e6) for value in group] for group in groups]
    if all(len(set(group)) == 1 for group in whole):  # no variation between seeds to judge a difference by
        return [BEST, *(NOISE if group[0] == whole[0][0] else None for group in whole[1:])]
    p = stats.tukey_hsd(*whole).pvalue[0]
    return [BEST, *(WORSE if value < level else NOISE for value in p[1:])]


def different_validation_sets(runs: list[Revision]) -> list[str]:
    """A note if the runs were validated on different images."""
    count = len({run.outs[path].md5 for run in runs if (path := paths.VALIDATION.as_posix()) in run.outs})
    if count < 2:
        return []
    return [f"the runs have {count} different validation sets, which cause part of the differences"]


def text(document: dict[str, Any]) -> str:
    """A plain table, the notes, and a legend."""
    blocks = ["\n".join(formatting.plain_table(frame(document, shown)))]
    if document["notes"]:
        blocks.append("\n".join(f"note: {note}" for note in document["notes"]))
    blocks.append(legend(document))
    return printable("\n\n".join(blocks)) + "\n"


def markdown(document: dict[str, Any]) -> str:
    """The same in GitHub's Markdown."""
    blocks = [formatting.markdown_table(frame(document, formatting.code))]
    blocks += [f"> {formatting.escaped(note)}" for note in document["notes"]]
    return "\n\n".join([*blocks, formatting.escaped(legend(document))]) + "\n"


def frame(document: dict[str, Any], quote: Callable[[str], str]) -> pd.DataFrame:
    """One row per setting, as text, the parameters first. quote: writes names and values of parameters."""
    varied, measure = document["varied"], measure_of(document["metric"])
    rows = [
        [
            *(quote(parameter(row["parameters"][key])) if key in row["parameters"] else MISSING for key in varied),
            str(len(row["seeds"])),
            measure.value(row["mean"]),
            MISSING if row["deviation"] is None else measure.number(row["deviation"]),
            row["verdict"] or MISSING,
        ]
        for row in document["settings"]
    ]
    return pd.DataFrame(rows, columns=[*map(quote, varied), "seeds", "mean", "deviation", "against the best"])


def legend(document: dict[str, Any]) -> str:
    """What the numbers mean."""
    metric, deviation = document["metric"], document["deviation"]
    runs = sum(len(setting["seeds"]) for setting in document["settings"])
    line = f"{metric.replace('_', ' ')}, mean over {SEED}, {runs} runs of {document['commit'][:7]}"
    if deviation is None:
        return f"{line}; one seed per setting cannot tell effect from noise"
    if not deviation:
        return f"{line}; no setting varies between its seeds, so there is no variation to judge a difference by"
    return (
        f"{line}; deviation over seeds {measure_of(metric).number(deviation)}; Tukey's HSD, level {document['level']:g}"
    )


def _plain(run: Revision, key: str) -> str:
    """A parameter as JSON, so that only equal values are equal; "" if the run lacks it."""
    return json.dumps(run.params[key], ensure_ascii=False) if run.params and key in run.params else ""


def _value(run: Revision, metric: str) -> float:
    measured = run.metrics.get(paths.TRAIN_METRICS.as_posix(), {})
    value = measured.get(metric)
    if isinstance(value, bool) or not isinstance(value, int | float):
        known = [name for name in HIGHER_IS_BETTER if name in measured]
        remedy = f"allowed: --metric {' | '.join(known)}"
        if not known:
            remedy = "run it with preprocess.validation_fraction above 0"
        elif "balanced" in metric:
            remedy += ", or run it with train.select_by: balanced_accuracy"
        raise UserError(f"{run.name}: {paths.TRAIN_METRICS} has no {metric}; {remedy}")
    return float(value)


if __name__ == "__main__":
    errors.run_command(main)
