"""What does this branch do to the results? `python -m review.pull_request BASE`, the same on a laptop and in CI.

Pulls what the remote has, reproduces what the branch changed, runs `evaluate` again in any case, and compares that with
the commit at which the branch left BASE, as the diff of a pull request does. What no remote has is run again, on both
sides. Several seeds decide: those of BASE are on record or trained here, those of the branch are trained here unless
they are on record and up to date. Not a stage: it runs them. Exit status: 0; 1 if the branch is worse by its seeds, or
by one model with `--seeds 0`; 2 if that cannot be told, or if the results that the branch has committed are not what
its stages give.
"""

import argparse
import csv
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from integrity import git, hidden_code, rebuild, revisions
from integrity.dvc_lock import LOCK, SEEDS_LOCK, Lock, LockedFile
from integrity.rebuild import Output
from review import comparison, comparison_text, options, significance, training
from seeds.paths import PIPELINE
from seeds.record import Record
from stages.common import children, errors, files, paths, text
from stages.common.digests import md5, path_md5
from stages.common.errors import UserError, one_line

SEEDS = 5  # per side: then a difference of four standard deviations between seeds is found in 99 of 100 comparisons
SHOWN = 6  # artifacts that are named where many differ
REBUILD = {"evaluate": ["evaluate"], "train": ["train", "evaluate"], "all": []}  # --rebuild; []: every stage
ROUNDING = 1e-3  # by which the following may differ on another processor, where no predicted class does
# Of metrics, and whatever ends with _loss.
CALIBRATION_KEYS = ("calibration_error", "calibration_error_low", "calibration_error_high", "temperature")
ROUNDED_KEYS = ("loss", *CALIBRATION_KEYS)
TABLES = (paths.PREDICTIONS, paths.RELIABILITY, paths.UNSCALED_RELIABILITY)
ROUNDED = (*TABLES, paths.TEST_METRICS, paths.TRAIN_METRICS, paths.MODEL_CARD)
REMEDY = "commit dvc.lock and metrics/ after `dvc repro`, and `dvc push`"


def main(asked: argparse.Namespace) -> int:
    """Pull, reproduce, compare, report; returns the exit status, 0 or 1. Raises UserError."""
    if asked.out:
        files.check_target(asked.out)
    try:
        document, false = results(asked.base, asked.level, asked.rebuild, asked.seeds)
    except UserError as error:
        if asked.out:
            reason = comparison_text.escaped(str(error))
            files.write_text(asked.out, f"### What this branch gives could not be told\n\n{reason}\n")
        raise
    print("\n" + comparison_text.table(document), end="", flush=True)
    if asked.out:
        files.write_text(asked.out, comparison_text.markdown(document))

    verdict = document["verdict"]
    if verdict["word"] == significance.WORSE and (verdict["basis"] == comparison.SEEDS or not asked.seeds):
        print(f"failed: the branch is worse: {verdict['text']}", file=sys.stderr)
        return 1
    if false:
        raise UserError(f"the committed results are not what the stages give: {listed(false)}; {REMEDY}")
    if verdict["word"] == comparison.NOT_COMPARABLE:
        raise UserError(f"cannot tell whether the branch is worse: {verdict['text']}")
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m review.pull_request", description="What does this branch do?")
    parser.add_argument("base", metavar="BASE", help="what it is to be merged into; after -- if it may begin with -")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="the comparison as Markdown, too")
    parser.add_argument("--level", type=options.level, default=0.05, help="share of false alarms accepted")
    parser.add_argument(
        "--seeds",
        type=seeds,
        default=SEEDS,
        metavar="N",
        help=f"how many of the branch are compared at least; 0: one trained model with another ({SEEDS})",
    )
    parser.add_argument(
        "--rebuild",
        choices=list(REBUILD),
        default="evaluate",
        help="the first stage that runs here in any case; what comes before it is taken from the record (evaluate)",
    )
    return parser.parse_args()


def seeds(text: str) -> int:
    """The value of --seeds. Raises ArgumentTypeError."""
    return 0 if text == "0" else options.count(text)


def results(base: str, level: float, first: str, seeds: int) -> tuple[dict[str, Any], list[str]]:
    """The commit where HEAD left `base` against the work tree, reproduced: a document of review/comparison.py.

    Its notes begin with what ran here, and whether that gave what HEAD has on record. And the files that are false
    there. first: a key of REBUILD. seeds: how many of the branch decide at least; 0: one model decides. Raises
    UserError for a revision that is not there, and where a stage fails.
    """
    root = rebuild.project()
    head = git.head(root)
    hidden_code.refuse(root)
    with revisions.repository() as repo:
        start = fork(repo, root, base)
        must_run = wanted(repo, first)
        cache = repo.cache.local_cache_dir
    notes = uncommitted(root)
    set_checkpoints_aside(root)
    with tempfile.TemporaryDirectory(prefix="gate-") as scratch:
        environment = rebuild.environment(Path(scratch))
        notes += pull(root, environment)
        ran = rebuild.repro(root, [], environment)
        ran += run_again(root, must_run, ran, environment)
    with revisions.repository() as repo:  # anew: DVC has written to it meanwhile
        found, false = record(repo, root, head, ran)
        notes += [*found, *rebuild_if_missing(repo, root, cache, start)]
    records: tuple[Record, Record] | None = None
    if seeds:
        old, new, told = trained(start, seeds, force=first != "evaluate")
        records, notes = (old, new), [*notes, *told]
    document = comparison.read(start, None, level, records)
    document["notes"] = [*notes, *document["notes"]]
    document["evidence"] = f"of B, {listed(ran)} ran here and the rest is on record; of A, see the notes"
    return document, false


def fork(repo: Any, root: Path, base: str) -> str:
    """The commit at which HEAD left `base`: `base` itself, or a short hash if that has gone on. Raises UserError."""
    commit = revisions.resolve(repo, base)
    try:
        start = git.run(root, "merge-base", commit, "HEAD").decode().strip()
    except UserError:
        raise UserError(
            f"{base!r} and HEAD have no commit in common here; of a shallow clone, `git fetch --unshallow` first"
        ) from None
    return base if start == commit else start[:12]


def uncommitted(root: Path) -> list[str]:
    """A note if the work tree has changes that HEAD has not."""
    changed = git.run(root, "diff", "--name-only", "--relative", "-z", "HEAD").decode(errors="replace").split("\0")[:-1]
    return [f"not in HEAD, and part of what was reproduced: {listed(changed)}"] if changed else []


def pull(root: Path, environment: dict[str, str]) -> list[str]:
    """Get what dvc.lock names, and the run cache, as far as there is a remote that has it; a note if not."""
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
    return [f"nothing pulled, so run again: {reason}"]


def set_checkpoints_aside(root: Path) -> None:
    """Have no stage resume: a checkpoint that lies here, or that the branch has committed, may be of other code."""
    checkpoints = root / paths.RESUME
    if not checkpoints.exists() and not checkpoints.is_symlink():
        return
    aside = checkpoints.with_name("resume-before-check")
    rebuild.delete(aside)
    checkpoints.rename(aside)
    print(f"{paths.RESUME} set aside as {aside.relative_to(root)}: what runs here starts from nothing", flush=True)


def wanted(repo: Any, first: str) -> list[str]:
    """The stages that have to run here, for a key of REBUILD. Raises UserError if one of them cannot be made to."""
    stages = rebuild.pipeline(repo)
    wrote = {repo.fs.relpath(out.fs_path, repo.root_dir): name for name in stages for out in stages[name].outs}
    names = REBUILD[first] or list(stages)
    if reason := rebuild.idle(names, stages):
        raise UserError(f"{reason}: nothing that ran here tells whether the results are true")
    for path in (paths.TEST_METRICS.as_posix(), paths.PREDICTIONS.as_posix()):
        if (writer := wrote.get(path)) != "evaluate":
            who = f"{writer} writes {path}" if writer else f"no stage writes {path}"
            raise UserError(f"dvc.yaml: {who}, which evaluate has to write: it is what runs here in any case")
    return names


def run_again(root: Path, names: Sequence[str], ran: Sequence[str], environment: dict[str, str]) -> list[str]:
    """Run those of the stages `names` that have not `ran` just now; returns them.

    They read what dvc.lock names and nothing else: the bytes are hashed first. Raises UserError if they are others, or
    if a stage does not run.
    """
    lock = rebuild.lock((root / LOCK).read_bytes(), "the work tree")
    again = [name for name in names if name not in ran]
    deps = [dep for name in again if name in lock.stages for dep in lock.stages[name].deps]
    for dep in {dep.path: dep for dep in deps}.values():
        if (writers := lock.writers.get(dep.path)) and writers[-1] not in again and path_md5(root, dep.path) != dep.md5:
            raise UserError(
                f"{dep.path} is not what {LOCK} names, and DVC takes it for that: `make doctor` prints the fix"
            )
    if not again:
        return []
    print(f"\nrunning again, without a cache: {', '.join(again)}", flush=True)
    done = rebuild.repro(root, ["--force", "--no-run-cache", "--single-item", *again], environment)
    if idle := [name for name in again if name not in done]:
        raise UserError(f"{listed(idle)} did not run here: nothing tells whether the results are true")
    return done


def record(repo: Any, root: Path, head: str, ran: Sequence[str]) -> tuple[list[str], list[str]]:
    """What ran here and how the record of HEAD compares with it: notes, and the files that are false there.

    Stale is not false: a dvc.lock of other inputs than HEAD has says so itself.
    """
    after = rebuild.lock((root / LOCK).read_bytes(), "the work tree")
    stages = {stage.addressing for stage in repo.index.stages}  # dvc.lock keeps those that dvc.yaml has no more
    after = Lock(stages={name: stage for name, stage in after.stages.items() if name in stages})
    notes = trust(list(after.stages), ran)
    try:
        before = rebuild.lock(git.file(root, head, LOCK), "HEAD")
    except UserError as error:
        return [*notes, f"{error}"], []

    other = rebuild.inputs(before, after)
    stale = {row.stage for row in other}
    for name, stage in after.stages.items():  # what reads the outputs of a stale stage
        read = {dep.path for dep in stage.deps}
        stale |= {name for source in stale & set(after.stages) for out in after.stages[source].outs if out.path in read}
    if other:
        names = listed([row.name for row in other])
        notes.append(f"stale: {LOCK} of HEAD was made from other inputs than HEAD's ({names}): {REMEDY}")
    outputs = rebuild.outputs(root, head, before, after, root, ran)
    wrong = [out for out in outputs if out.problem()]
    false = [out for out in wrong if out.stage not in stale or edited(out)]
    missing = [out.path for out in wrong if out.stage not in before.stages]
    if missing:
        notes.append(f"stale: {LOCK} of HEAD does not name {listed(missing)}: {REMEDY}")
    false = [out for out in false if out.path not in missing]
    if false and rounded(repo, root, head, false):
        names = listed([out.path for out in false if not picture(out)])
        notes.append(f"last digits differ here, and no predicted class does: {names}: made on another machine?")
        if pictures := [out.path for out in false if picture(out)]:
            notes.append(f"other pictures here, which this check cannot judge: {listed(pictures)}")
        false = []
    notes += [f"not reproduced: {out.path} of HEAD: {out.problem()}" for out in false]
    stray = rebuild.undeclared(root, head, after)
    notes += [f"not reproduced: {path} of HEAD: no stage writes it" for path in stray]
    if ran and not wrong:
        notes.append(f"what ran here gave the bytes that HEAD has on record: {listed(ran)}")
    return notes, [*(out.path for out in false), *stray]


def trust(stages: Sequence[str], ran: Sequence[str]) -> list[str]:
    """Notes on which stages ran here, and what the report takes on trust of the others."""
    skipped = [name for name in stages if name not in ran]
    notes = [f"ran here: {listed(ran)}" if ran else "ran here: no stage"]
    if skipped:
        notes.append(f"taken on trust from the record, not run here: {listed(skipped)}")
    if "train" in skipped:
        notes.append(
            "train was not rerun here: that this model comes from this code is on trust; `--rebuild train` checks it"
        )
    return notes


def edited(out: Output) -> bool:
    """Whether the file that Git keeps is neither what dvc.lock names nor what ran here gave: nothing explains it."""
    return out.committed is not None and out.committed not in (out.locked, out.rebuilt)


def picture(out: Output) -> bool:
    """Whether an output is a picture of evaluate's."""
    return out.stage == "evaluate" and out.path.endswith(".png")


def rounded(repo: Any, root: Path, head: str, outputs: Sequence[Output]) -> bool:
    """Whether outputs differ by what another processor's rounding explains.

    That is: no predicted class and no count differs, and no probability or loss by more than ROUNDING. Pictures have
    none of these, and are left out.
    """
    judged = [out for out in outputs if not picture(out)]
    if any(edited(out) or not out.locked for out in outputs) or any(Path(out.path) not in ROUNDED for out in judged):
        return False
    try:
        for out in judged:
            here = (root / out.path).read_bytes()
            content = git.file(root, head, out.path)
            if content is None:
                content, _ = revisions.fetch(repo, LockedFile(path=out.path, md5=out.locked))
            if out.path.endswith(".json"):
                before, after = (revisions.parse_json(side, out.path) for side in (content, here))
                if not near_metrics(before, after):
                    return False
            elif out.path.endswith(".md"):
                if not near_texts(content, here):
                    return False
            elif not near_tables(content, here, exact=3 if Path(out.path) == paths.PREDICTIONS else 0):
                return False
    except (UserError, OSError, ValueError, csv.Error):  # the bytes on record are nowhere, or no table
        return False
    return any(Path(out.path) == paths.PREDICTIONS for out in judged)


def near_metrics(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether two sets of metrics are the same but for losses and calibration, and these to within ROUNDING.

    All else is counted, as is what is computed of counts: another processor gives the same.
    """

    def same(key: str, a: Any, b: Any) -> bool:
        if key == "without_temperature" and isinstance(a, dict) and isinstance(b, dict):
            return near_metrics(a, b)
        numbers = isinstance(a, int | float) and isinstance(b, int | float)
        return bool(a == b) or (numbers and (key in ROUNDED_KEYS or key.endswith("_loss")) and near(a, b))

    return before.keys() == after.keys() and all(same(key, before[key], after[key]) for key in before)


def near_tables(before: bytes, after: bytes, exact: int) -> bool:
    """Whether two CSV files are the same but for numbers, and these to within ROUNDING.

    exact: of so many columns every cell has to be the same, such as index, label and predicted class. Raises ValueError
    and csv.Error if one is no table.
    """
    a, b = (list(csv.reader(content.decode("utf-8").splitlines(), strict=True)) for content in (before, after))
    return (
        a[:1] == b[:1]
        and [row[:exact] for row in a] == [row[:exact] for row in b]
        and [len(row) for row in a] == [len(row) for row in b]
        and all(x == y or near(x, y) for rows in zip(a, b, strict=True) for x, y in zip(*rows, strict=True))
    )


def near_texts(before: bytes, after: bytes) -> bool:
    """Whether two texts are the same but for decimal fractions, and these to within ROUNDING."""
    a, b = (re.split(r"(\d+\.\d+)", content.decode("utf-8")) for content in (before, after))
    return len(a) == len(b) and all(
        x == y or (at % 2 and near(x, y)) for at, (x, y) in enumerate(zip(a, b, strict=True))
    )


def near(before: str | float, after: str | float) -> bool:
    """Whether two numbers, or texts of numbers, differ by ROUNDING at most."""
    try:
        return abs(float(before) - float(after)) <= ROUNDING
    except ValueError:
        return False


def rebuild_if_missing(repo: Any, root: Path, cache: str, start: str) -> list[str]:
    """Have the predictions of a revision in the cache: where no remote has them, by running its stages elsewhere.

    A note on which of the two. If its stages fail, the counts in Git are compared. Raises UserError for a revision
    without metrics, or with none but false ones.
    """
    side = revisions.read(repo, start)
    out = side.outs.get(paths.PREDICTIONS.as_posix())
    if out is None or side.commit is None:
        return []
    try:
        revisions.fetch(repo, out)
        return [f"{start}: its predictions are those that its {LOCK} names, on trust; none of its stages ran"]
    except UserError as error:
        print(f"\nrunning {start} again: {error}", flush=True)
    with tempfile.TemporaryDirectory(prefix="base-") as scratch:
        clone = git.clone(root, side.commit, Path(scratch) / "clone")
        try:
            ran = rebuild.repro(clone, [], rebuild.isolated(clone, Path(scratch), cache))
            return [f"{start}: ran here: {listed(ran) or 'no stage'}"]
        except UserError:
            metrics = paths.TEST_METRICS.as_posix()
            content = git.file(root, side.commit, metrics)
            if content is not None and metrics in side.outs and md5(content) != side.outs[metrics].md5:
                raise UserError(
                    f"{start}: {metrics} is not what its {LOCK} names, and its stages fail: no results of it"
                ) from None
            return [f"{start}: its stages fail, too; its metrics are taken on trust"]


def trained(start: str, seeds: int, force: bool) -> tuple[Record, Record, list[str]]:
    """The seeds of the commit where HEAD left its base and of the work tree, trained here if need be; and notes.

    force: those of the work tree are trained here even if they are on record. A side without the seeds' pipeline has
    none. Raises UserError if a seed fails.
    """
    records: list[Record] = []
    notes: list[str] = []
    with revisions.repository() as repo, training.checkout(repo, start) as old, training.checkout(repo, None) as new:
        if not all((side.folder / PIPELINE).is_file() for side in (old, new)):
            nothing = Record([], f"no {PIPELINE} on both sides")
            return nothing, nothing, notes
        for side in (old, new):
            here = force and side is new
            before = side.recorded()
            records.append(side.trained(seeds, here))
            enough = len(before.rows) >= seeds and not here
            notes.append(
                f"{side.name}: {len(records[-1].rows)} seeds, "
                + (f"which {SEEDS_LOCK} names, on trust; none was trained here" if enough else "trained here or cached")
            )
    return records[0], records[1], notes


def listed(names: Sequence[str]) -> str:
    """Names in a row, each once, the first few of them."""
    return text.listed(dict.fromkeys(names), SHOWN)


if __name__ == "__main__":
    errors.run_command(lambda: main(arguments()), "what has run is kept, and `dvc repro` goes on from there")
