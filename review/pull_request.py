"""How does this branch change the results? `python -m review.pull_request BASE`, the same on a laptop and in CI.

Pulls what the remote has, reproduces what the branch changed, always reruns `evaluate`, and compares the results with
those of the commit at which the branch left BASE, as the diff of a pull request does. Whatever the remote lacks is
rerun, on both sides. Several seeds decide; missing or stale ones are trained here. Not a stage: it runs them.
Exit status: 0; 1 if the branch is worse by its seeds, or by one model with `--seeds 0`; 2 if there is no verdict, such
as if the seeds of the two sides cannot be compared, or if the committed results differ from what the stages produce.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from integrity import git, hidden_code, merging, rebuild, revisions
from integrity.dvc_lock import Lock
from integrity.lock_files import LOCK, SEEDS_LOCK
from review import comparison, comparison_text, formatting, options, rounding, significance, training
from review.watch import is_locked
from seeds.__main__ import RUNNING
from seeds.paths import PIPELINE
from seeds.record import Record
from stages.common import children, errors, files, paths, text
from stages.common.digests import md5, path_md5
from stages.common.errors import UserError, one_line

SEEDS = 5  # per side; they find a difference of four standard deviations in 99 of 100 comparisons
SHOWN = 6  # names in one message
REBUILD = {"evaluate": ["evaluate"], "train": ["train", "evaluate"], "all": []}  # --rebuild; []: every stage
REMEDY = "commit dvc.lock and metrics/ after `dvc repro`, and `dvc push`"


def main(arguments: argparse.Namespace) -> int:
    """Pull, reproduce, compare, report. Returns the exit status, 0 or 1. Raises UserError."""
    out: Path | None = arguments.out
    if out:
        files.check_target(out)
    try:
        document, false = results(arguments.base, arguments.level, arguments.rebuild, arguments.seeds)
    except UserError as error:
        if out:
            files.write_text(out, f"### This branch could not be checked\n\n{formatting.escaped(str(error))}\n")
        raise
    print("\n" + comparison_text.table(document), end="", flush=True)
    if out:
        files.write_text(out, comparison_text.markdown(document))

    verdict = document["verdict"]
    if verdict["word"] == significance.WORSE and (verdict["basis"] == comparison.SEEDS or not arguments.seeds):
        print(f"failed: the branch is worse: {verdict['text']}", file=sys.stderr)
        return 1
    if false:
        raise UserError(f"the committed results differ from what the stages produce: {listed(false)}; {REMEDY}")
    if verdict["word"] == comparison.NOT_COMPARABLE:
        raise UserError(f"cannot tell whether the branch is worse: {verdict['text']}")
    if document["without_seeds"]:
        reasons = "; ".join(document["without_seeds"])
        raise UserError(
            f"no verdict: the seeds cannot be compared: {reasons}; `--seeds 0` compares one trained model with another"
        )
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m review.pull_request", description="How does this branch change the results?"
    )
    parser.add_argument(
        "base", metavar="BASE", help="the branch to merge into; put -- before a name that may begin with -"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="also write the comparison as Markdown")
    parser.add_argument("--level", type=options.level, default=0.05, help="accepted share of false alarms (0.05)")
    parser.add_argument(
        "--seeds",
        type=seeds,
        default=SEEDS,
        metavar="N",
        help=f"the least number of seeds to compare; 0: compare one trained model with another ({SEEDS})",
    )
    parser.add_argument(
        "--rebuild",
        choices=list(REBUILD),
        default="evaluate",
        help="the first stage to rerun here; the results of earlier stages are taken from the record (evaluate)",
    )
    return parser.parse_args()


def seeds(text: str) -> int:
    """The value of --seeds: 0, or what `options.count` accepts. Raises ArgumentTypeError."""
    return 0 if text == "0" else options.count(text)


def results(base: str, level: float, first: str, seeds: int) -> tuple[dict[str, Any], list[str]]:
    """The commit at which HEAD left `base` against the reproduced work tree: a document of review/comparison.py.

    Its notes begin with what ran here, and whether that matches the record of HEAD. Also returns the files that do not
    match. first: a key of REBUILD. seeds: the least number of seeds per side; 0: one model decides. Raises UserError
    for an unknown revision, and if a stage fails.
    """
    root = rebuild.project()
    head = git.head(root)
    if unmerged := merging.unmerged():
        raise UserError(
            f"a merge is in progress, with conflicts in {listed(list(unmerged))}: finish and commit it first"
        )
    hidden_code.refuse(root)
    with revisions.repository() as repo:
        start, name = fork(repo, root, base)
        stages = stages_to_run(repo, first)
        cache = repo.cache.local_cache_dir
    notes = uncommitted(root)
    set_checkpoints_aside(root)
    with tempfile.TemporaryDirectory(prefix="gate-") as scratch:
        environment = rebuild.environment(Path(scratch))
        notes += pull(root, environment)
        ran = rebuild.repro(root, [], environment)
        ran += run_again(root, stages, ran, environment)
    with revisions.repository() as repo:  # opened again, because DVC has written to it
        record_notes, false = compare_with_record(repo, root, head, ran)
        notes += [*record_notes, *rebuild_if_missing(repo, root, cache, start, name)]
    records: tuple[Record, Record] | None = None
    if seeds:
        records, seed_notes = trained(start, name, seeds, force=first != "evaluate")
        notes += seed_notes
    document = comparison.read(start, None, level, records, (name, None))
    document["notes"] = [*notes, *document["notes"]]
    document["evidence"] = f"for B, {listed(ran)} ran here and the rest is recorded; for A, see the notes"
    return document, false


def fork(repo: Any, root: Path, base: str) -> tuple[str, str]:
    """The commit at which HEAD left `base`, and its name: `base`, or a short hash if `base` has moved on.

    Raises UserError.
    """
    commit = revisions.resolve(repo, base)
    try:
        start = git.run(root, "merge-base", commit, "HEAD").decode().strip()
    except UserError:
        raise UserError(
            f"{base!r} and HEAD have no common commit here; in a shallow clone, run `git fetch --unshallow` first"
        ) from None
    return start, base if start == commit else start[:12]


def uncommitted(root: Path) -> list[str]:
    """A note if the work tree has uncommitted changes."""
    changed = git.changed(root)
    return [f"uncommitted changes are part of what was reproduced: {listed(changed)}"] if changed else []


def pull(root: Path, environment: dict[str, str]) -> list[str]:
    """Pull what dvc.lock names, and the run cache, as far as the remote has them; returns a note if that fails."""
    command = [sys.executable, "-m", "integrity.pull", "--run-cache", "--allow-missing"]
    print("python -m integrity.pull --run-cache --allow-missing", flush=True)
    done = children.run(command, root, environment, capture=True)
    print(done.stdout, end="", flush=True)
    if not done.returncode:
        return []
    lines = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.strip()]
    crashed = any(line.startswith("Traceback") for line in lines)
    reason = one_line(ValueError(lines[-1 if crashed else 0] if lines else "no reason given"))
    print(f"nothing pulled: {reason}", flush=True)
    return [f"nothing pulled, so everything was rerun: {reason}"]


def set_checkpoints_aside(root: Path) -> None:
    """Move checkpoints away: those left here, or committed by the branch, may come from other code.

    Those of the seeds with all of their folders: a seed runs in one of them, and Python looks there first for modules.
    Raises UserError while `make seeds` is running.
    """
    if is_locked(root / RUNNING):
        raise UserError("`make seeds` is running in this folder: wait until it ends")
    for folder in (paths.RESUME, RUNNING.parent):
        checkpoints = root / folder
        if not checkpoints.exists() and not checkpoints.is_symlink():
            continue
        aside = checkpoints.with_name(f"{folder.name}-before-check")
        rebuild.delete(aside)
        checkpoints.rename(aside)
        print(f"{folder} moved to {aside.relative_to(root)}: what runs here starts from scratch", flush=True)


def stages_to_run(repo: Any, first: str) -> list[str]:
    """The stages that must run here, for a key of REBUILD. Raises UserError if one of them would not run."""
    stages = rebuild.pipeline(repo)
    writers = {repo.fs.relpath(out.fs_path, repo.root_dir): name for name in stages for out in stages[name].outs}
    names = REBUILD[first] or list(stages)
    if reason := rebuild.idle(names, stages):
        raise UserError(f"{reason}: without it, nothing here shows whether the results are true")
    for path in (paths.TEST_METRICS.as_posix(), paths.PREDICTIONS.as_posix()):
        if (writer := writers.get(path)) != "evaluate":
            problem = f"{writer} writes {path}" if writer else f"no stage writes {path}"
            raise UserError(f"dvc.yaml: {problem}; evaluate must write it, because evaluate is what always runs here")
    return names


def run_again(root: Path, names: Sequence[str], ran: Sequence[str], environment: dict[str, str]) -> list[str]:
    """Run the stages `names` except those that `ran` just now; returns the ones it ran.

    Their inputs are hashed first. Raises UserError if an input is not what dvc.lock names, or a stage does not run.
    """
    lock = rebuild.lock((root / LOCK).read_bytes(), "the work tree")
    again = [name for name in names if name not in ran]
    deps = [dep for name in again if name in lock.stages for dep in lock.stages[name].deps]
    for dep in {dep.path: dep for dep in deps}.values():
        if (writers := lock.writers.get(dep.path)) and writers[-1] not in again and path_md5(root, dep.path) != dep.md5:
            raise UserError(f"{dep.path} is not what {LOCK} names, but DVC would use it: `make doctor` prints the fix")
    if not again:
        return []
    print(f"\nrerunning without a cache: {', '.join(again)}", flush=True)
    done = rebuild.repro(root, ["--force", "--no-run-cache", "--single-item", *again], environment)
    if idle := [name for name in again if name not in done]:
        raise UserError(f"{listed(idle)} did not run here: nothing shows whether the results are true")
    return done


def compare_with_record(repo: Any, root: Path, head: str, ran: Sequence[str]) -> tuple[list[str], list[str]]:
    """Compare what ran here with the record of HEAD: notes, and the files that do not match.

    A stale record, whose dvc.lock was made from other inputs than HEAD's, is only a note.
    """
    after = rebuild.lock((root / LOCK).read_bytes(), "the work tree")
    stages = {stage.addressing for stage in repo.index.stages}  # dvc.lock also keeps stages that dvc.yaml has lost
    after = Lock(stages={name: stage for name, stage in after.stages.items() if name in stages})
    notes = trust(list(after.stages), ran)
    try:
        before = rebuild.lock(git.file(root, head, LOCK), "HEAD")
    except UserError as error:
        return [*notes, f"{error}"], []

    other = rebuild.inputs(before, after)
    stale = {row.stage for row in other}
    for name, stage in after.stages.items():  # stages that read outputs of a stale stage are stale, too
        read = {dep.path for dep in stage.deps}
        stale |= {name for source in stale & set(after.stages) for out in after.stages[source].outs if out.path in read}
    if other:
        names = listed([row.name for row in other])
        notes.append(f"stale: {LOCK} of HEAD was made from other inputs than HEAD's ({names}): {REMEDY}")
    outputs = rebuild.outputs(root, head, before, after, root, ran)
    wrong = [out for out in outputs if out.problem()]
    false = [out for out in wrong if out.stage not in stale or rounding.is_edited(out)]
    missing = [out.path for out in wrong if out.stage not in before.stages]
    if missing:
        notes.append(f"stale: {LOCK} of HEAD does not name {listed(missing)}: {REMEDY}")
    false = [out for out in false if out.path not in missing]
    if false and rounding.explains(repo, root, head, false):
        names = listed([out.path for out in false if not rounding.is_picture(out)])
        notes.append(f"only last digits differ here, and no predicted class: {names}: made on another machine?")
        if pictures := [out.path for out in false if rounding.is_picture(out)]:
            notes.append(f"pictures differ here, which this check cannot judge: {listed(pictures)}")
        false = []
    notes += [f"not reproduced: {out.path} of HEAD: {out.problem()}" for out in false]
    stray = rebuild.undeclared(root, head, after)
    notes += [f"not reproduced: {path} of HEAD: no stage writes it" for path in stray]
    if ran and not wrong:
        notes.append(f"what ran here gave the bytes that HEAD records: {listed(ran)}")
    return notes, [*(out.path for out in false), *stray]


def trust(stages: Sequence[str], ran: Sequence[str]) -> list[str]:
    """Notes on which stages ran here, and which results are taken on trust."""
    skipped = [name for name in stages if name not in ran]
    notes = [f"ran here: {listed(ran)}" if ran else "ran here: no stage"]
    if skipped:
        notes.append(f"not run here, taken on trust from the record: {listed(skipped)}")
    if "train" in skipped:
        notes.append(
            "train was not rerun here: that this code trained this model is taken on trust; `--rebuild train` checks it"
        )
    return notes


def rebuild_if_missing(repo: Any, root: Path, cache: str, start: str, name: str) -> list[str]:
    """Fetch the predictions of the commit `start` or, if no remote has them, run its stages in a temporary clone.

    name: of the commit, to print. Returns a note on which of the two. If its stages fail, the counts in Git are
    compared. Raises UserError for a commit without metrics, or whose metrics are not those that its dvc.lock names.
    """
    side = revisions.read(repo, start, name)
    out = side.outs.get(paths.PREDICTIONS.as_posix())
    if out is None:
        return []
    try:
        revisions.fetch(repo, out)
        return [f"{name}: its predictions are those that its {LOCK} names, taken on trust; none of its stages ran"]
    except UserError as error:
        print(f"\nrerunning {name}: {error}", flush=True)
    with tempfile.TemporaryDirectory(prefix="base-") as scratch:
        clone = git.clone(root, start, Path(scratch) / "clone")
        try:
            ran = rebuild.repro(clone, [], rebuild.isolated(clone, Path(scratch), cache))
            return [f"{name}: ran here: {listed(ran) or 'no stage'}"]
        except UserError:
            metrics = paths.TEST_METRICS.as_posix()
            content = git.file(root, start, metrics)
            if content is not None and metrics in side.outs and md5(content) != side.outs[metrics].md5:
                raise UserError(
                    f"{name}: no results: {metrics} is not what its {LOCK} names, and its stages fail"
                ) from None
            return [f"{name}: its stages fail as well; its metrics are taken on trust"]


def trained(start: str, name: str, seeds: int, force: bool) -> tuple[tuple[Record, Record] | None, list[str]]:
    """The seeds of the commit `start` and of the work tree, trained here if they are missing or stale; and notes.

    None if the commit has no pipeline of seeds. name: of the commit, to print. force: train the seeds of the work tree
    even if they are recorded. Raises UserError if a seed fails.
    """
    with (
        revisions.repository() as repo,
        training.checkout(repo, start, name) as old,
        training.checkout(repo, None, revisions.WORK_TREE) as new,
    ):
        if not (old.folder / PIPELINE).is_file():
            return None, [f"{name}: no {PIPELINE}, so one trained model is compared with another"]
        if not (new.folder / PIPELINE).is_file():
            return (old.recorded(), Record([], f"no {PIPELINE}, which {name} has")), []
        records, notes = [], []
        for side, retrain in ((old, False), (new, force)):
            on_trust = len(side.recorded().rows) >= seeds and not retrain
            source = f"as {SEEDS_LOCK} names them, taken on trust" if on_trust else "trained here or cached"
            records.append(side.trained(seeds, retrain))
            notes.append(f"{side.name}: {len(records[-1].rows)} seeds, {source}")
    return (records[0], records[1]), notes


def listed(names: Sequence[str]) -> str:
    """The first few names, each once."""
    return text.listed(dict.fromkeys(names), SHOWN)


if __name__ == "__main__":
    errors.run_command(lambda: main(arguments()), "what has run is kept, and `dvc repro` continues from there")
