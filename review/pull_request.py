"""What does this branch do to the results? `python -m review.pull_request BASE`, the same on a laptop and in CI.

Pulls what the remote has, reproduces what the branch changed, runs `evaluate` again in any case, and compares that with
the commit at which the branch left BASE, as the diff of a pull request does. What no remote has is run again, on both
sides. Not a stage: it runs them. Exit status: 0; 1 if the branch is worse; 2 if that cannot be told, or if the results
that the branch has committed are not what its stages give.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from integrity import git, rebuild, revisions
from integrity.rebuild import Output
from integrity.revisions import Lock
from review import compare, comparison, comparison_text, significance
from stages.common import children, errors, files, paths
from stages.common.errors import UserError
from stages.evaluate import predictions

SHOWN = 6  # artifacts that are named where many differ
REBUILD = {"evaluate": ["evaluate"], "train": ["train", "evaluate"], "all": []}  # --rebuild; []: every stage
ROUNDING = 1e-3  # by which numbers may differ on another processor, where no predicted class does
REMEDY = "commit dvc.lock and metrics/ after `dvc repro`, and `dvc push`"


def main(asked: argparse.Namespace) -> int:
    """Pull, reproduce, compare, report; returns the exit status, 0 or 1. Raises UserError."""
    try:
        document, false = results(asked.base, asked.level, asked.rebuild)
    except UserError as error:
        if asked.out:
            reason = comparison_text._text(str(error))
            files.write_text(asked.out, f"### What this branch gives could not be told\n\n{reason}\n")
        raise
    print("\n" + comparison_text.table(document), end="", flush=True)
    if asked.out:
        files.write_text(asked.out, comparison_text.markdown(document))

    verdict = document["verdict"]
    if verdict["word"] == significance.WORSE:
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
    parser.add_argument("--level", type=compare.level, default=0.05, help="share of false alarms accepted")
    parser.add_argument(
        "--rebuild",
        choices=list(REBUILD),
        default="evaluate",
        help="the first stage that runs here in any case; what comes before it is taken from the record (evaluate)",
    )
    return parser.parse_args()


def results(base: str, level: float, first: str) -> tuple[dict[str, Any], list[str]]:
    """The commit where HEAD left `base` against the work tree, reproduced: a document of review/comparison.py.

    Its notes begin with what ran here, and whether that gave what HEAD has on record. And the files that are false
    there. first: a key of REBUILD. Raises UserError for a revision that is not there, and where a stage fails.
    """
    root = rebuild.project()
    head = git.head(root)
    with revisions.repository() as repo:
        start = fork(repo, root, base)
        cache = repo.cache.local_cache_dir
    notes = uncommitted(root)
    environment = rebuild.environment()
    notes += pull(root, environment)
    ran = rebuild.repro(root, [], environment)
    ran += run_again(root, first, ran, environment)
    with revisions.repository() as repo:  # anew: DVC has written to it meanwhile
        found, false = record(repo, root, head, ran)
        notes += [*found, *rebuild_if_missing(repo, root, cache, start)]
        document = compare.two_revisions(start, None, level)
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
    reason = revisions.one_line(ValueError(lines[0] if lines else "no reason given"))
    print(f"nothing pulled: {reason}", flush=True)
    return [f"nothing pulled, so run again: {reason}"]


def run_again(root: Path, first: str, ran: Sequence[str], environment: dict[str, str]) -> list[str]:
    """Run the stages from `first` (of REBUILD) on that have not `ran` just now; returns them.

    They read what dvc.lock names and nothing else: the bytes are hashed first. Raises UserError if they are others.
    """
    lock = rebuild.lock((root / revisions.LOCK).read_bytes(), "the work tree")
    again = [name for name in REBUILD[first] or lock.stages if name in lock.stages and name not in ran]
    wrote = {out.path: name for name, stage in lock.stages.items() for out in stage.outs}
    for dep in {dep.path: dep for name in again for dep in lock.stages[name].deps}.values():
        if dep.path in wrote and wrote[dep.path] not in again and rebuild.digest(root, dep.path) != dep.md5:
            raise UserError(
                f"{dep.path} is not what {revisions.LOCK} names, and DVC takes it for that: `make doctor` says what "
                "mends it"
            )
    if not again:
        return []
    print(f"\nrunning again, without a cache: {', '.join(again)}", flush=True)
    return rebuild.repro(root, ["--force", "--no-run-cache", "--single-item", *again], environment)


def record(repo: Any, root: Path, head: str, ran: Sequence[str]) -> tuple[list[str], list[str]]:
    """What ran here and how the record of HEAD compares with it: notes, and the files that are false there.

    Stale is not false: a dvc.lock of other inputs than HEAD has says so itself.
    """
    after = rebuild.lock((root / revisions.LOCK).read_bytes(), "the work tree")
    stages = {stage.addressing for stage in repo.index.stages}  # dvc.lock keeps those that dvc.yaml has no more
    after = Lock(stages={name: stage for name, stage in after.stages.items() if name in stages})
    notes = trust(list(after.stages), ran)
    try:
        before = rebuild.lock(git.file(root, head, revisions.LOCK), "HEAD")
    except UserError as error:
        return [*notes, f"{error}"], []

    other = rebuild.inputs(before, after)
    stale = {row.stage for row in other}
    for name, stage in after.stages.items():  # what reads the outputs of a stale stage
        read = {dep.path for dep in stage.deps}
        stale |= {name for source in stale & set(after.stages) for out in after.stages[source].outs if out.path in read}
    if other:
        names = listed([row.name for row in other])
        notes.append(f"stale: {revisions.LOCK} of HEAD was made from other inputs than HEAD's ({names}): {REMEDY}")
    outputs = rebuild.outputs(root, head, before, after, root, ran)
    wrong = [out for out in outputs if out.problem()]
    false = [out for out in wrong if out.stage not in stale or edited(out)]
    missing = [out.path for out in wrong if out.stage not in before.stages]
    if missing:
        notes.append(f"stale: {revisions.LOCK} of HEAD does not name {listed(missing)}: {REMEDY}")
    false = [out for out in false if out.path not in missing]
    if false and rounded(repo, root, head, false):
        names = listed([out.path for out in false])
        notes.append(f"last digits differ here, and no predicted class does: {names}: made on another machine?")
        false = []
    notes += [f"not reproduced: {out.path} of HEAD: {out.problem()}" for out in false]
    if ran and not wrong:
        notes.append(f"what ran here gave the bytes that HEAD has on record: {listed(ran)}")
    return notes, [out.path for out in false]


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


def rounded(repo: Any, root: Path, head: str, outputs: Sequence[Output]) -> bool:
    """Whether outputs of evaluate differ by what another processor's rounding explains.

    That is: no predicted class differs, and no number by more than ROUNDING. Figures have neither, and go with them.
    """
    if any(out.stage != "evaluate" or edited(out) or not out.locked for out in outputs):
        return False
    try:
        for out in outputs:
            here = (root / out.path).read_bytes()
            if out.path == paths.PREDICTIONS.as_posix():
                content, _ = revisions.fetch(repo, revisions.LockedFile(path=out.path, md5=out.locked))
                a, b = (predictions.parse(side, out.path) for side in (content, here))
                if not a[["label", "prediction"]].equals(b[["label", "prediction"]]):
                    return False
                if (a["probability"] - b["probability"]).abs().max() > ROUNDING:
                    return False
            elif out.path.endswith(".json"):
                sides = [git.file(root, head, out.path) or b"", here]
                before, after = (revisions.flatten(revisions.parse_json(side, out.path), out.path) for side in sides)
                if not near(before, after):
                    return False
    except UserError:  # the bytes on record are nowhere
        return False
    return any(out.path == paths.PREDICTIONS.as_posix() for out in outputs)


def near(a: Any, b: Any) -> bool:
    """Whether two values of JSON are the same but for numbers, and these to within ROUNDING; whole numbers exactly."""
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= ROUNDING
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(near(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(near(*pair) for pair in zip(a, b, strict=True))
    return bool(a == b)


def rebuild_if_missing(repo: Any, root: Path, cache: str, start: str) -> list[str]:
    """Have the predictions of a revision in the cache: where no remote has them, by running its stages elsewhere.

    A note on which of the two. If its stages fail, the counts in Git are compared. Raises UserError for a revision
    without metrics, or with none but false ones.
    """
    side = revisions.read(repo, start, paths.PARAMS.as_posix(), f"{paths.TEST_METRICS.parent.as_posix()}/*.json")
    out = side.outs.get(paths.PREDICTIONS.as_posix())
    if out is None or side.commit is None:
        return []
    try:
        revisions.fetch(repo, out)
        return [f"{start}: its predictions are those that its {revisions.LOCK} names, on trust; none of its stages ran"]
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
            if content is not None and metrics in side.outs and rebuild.md5(content) != side.outs[metrics].md5:
                raise UserError(
                    f"{start}: {metrics} is not what its {revisions.LOCK} names, and its stages fail: no results of it"
                ) from None
            return [f"{start}: its stages fail, too; its metrics are taken on trust"]


def listed(names: Sequence[str]) -> str:
    """Names in a row, the first few of them."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


if __name__ == "__main__":
    errors.run_command(lambda: main(arguments()), "what has run is kept, and `dvc repro` goes on from there")
