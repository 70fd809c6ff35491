"""What does this branch do to the results? `python -m stages.pull_request BASE`, the same on a laptop and in CI.

Pulls what the remote has, reproduces what the branch changed, and compares that with the commit at which the branch
left BASE, as the diff of a pull request does. What no remote has is run again, on both sides. Not a stage: it runs
them. Exit status: 0; 1 if the branch is worse; 2 if that cannot be told.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from stages import command, compare, comparison, comparison_text, files, paths, revisions, significance, verify
from stages.errors import UserError
from stages.revisions import Lock

SHOWN = 6  # artifacts that are named where many differ


def main(asked: argparse.Namespace) -> int:
    """Pull, reproduce, compare, report; returns the exit status, 0 or 1. Raises UserError."""
    try:
        document = results(asked.base, asked.level)
    except UserError as error:
        if asked.out:
            reason = comparison_text._text(str(error))
            files.write_text(asked.out, f"### What this branch gives could not be told\n\n{reason}\n")
        raise
    print("\n" + comparison_text.table(document), end="", flush=True)
    if asked.out:
        files.write_text(asked.out, comparison_text.markdown(document))

    verdict = document["verdict"]
    if verdict["word"] == comparison.NOT_COMPARABLE:
        raise UserError(f"cannot tell whether the branch is worse: {verdict['text']}")
    if verdict["word"] == significance.WORSE:
        print(f"failed: the branch is worse: {verdict['text']}", file=sys.stderr)
        return 1
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m stages.pull_request", description="What does this branch do?")
    parser.add_argument("base", metavar="BASE", help="what it is to be merged into; after -- if it may begin with -")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="the comparison as Markdown, too")
    parser.add_argument("--level", type=compare.level, default=0.05, help="share of false alarms accepted")
    return parser.parse_args()


def results(base: str, level: float) -> dict[str, Any]:
    """The comparison (of stages/comparison.py) of the commit where HEAD left `base` with the work tree, reproduced.

    Its notes begin with whether the committed dvc.lock is what the stages give. Raises UserError for a revision that is
    not there, and where a stage fails.
    """
    with revisions.repository() as repo:
        root, head = Path(repo.root_dir), revisions.resolve(repo, "HEAD")
        start = fork(repo, base)
        cache = repo.cache.local_cache_dir
    notes = uncommitted(root)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    notes += pull(root, environment)
    if verify.dvc(root, ["repro"], environment):
        raise UserError("`dvc repro` failed; what it says is above")
    notes += committed(root, head)
    with revisions.repository() as repo:  # anew: DVC has written to it meanwhile
        notes += rebuild_if_missing(repo, root, cache, start)
        document = compare.two_revisions(start, None, level)
    document["notes"] = [*notes, *document["notes"]]
    document["evidence"] = "the branch's come from the stages that ran here and from caches, the base's from dvc.lock"
    return document


def fork(repo: Any, base: str) -> str:
    """The commit at which HEAD left `base`: `base` itself, or a short hash if that has gone on. Raises UserError."""
    commit = revisions.resolve(repo, base)
    try:
        start = verify.git(Path(repo.root_dir), "merge-base", commit, "HEAD").decode().strip()
    except UserError:
        raise UserError(
            f"{base!r} and HEAD have no commit in common here; of a shallow clone, `git fetch --unshallow` first"
        ) from None
    return base if start == commit else start[:12]


def uncommitted(root: Path) -> list[str]:
    """A note if the work tree has changes that HEAD has not."""
    changed = verify.git(root, "diff", "--name-only", "HEAD").decode().splitlines()
    return [f"not in HEAD, and part of what was reproduced: {listed(changed)}"] if changed else []


def pull(root: Path, environment: dict[str, str]) -> list[str]:
    """Get what dvc.lock names, and the run cache, as far as there is a remote that has it; a note if not."""
    command = [sys.executable, "-m", "dvc", "pull", "--run-cache", "--allow-missing"]
    print("dvc pull --run-cache --allow-missing", flush=True)
    done = subprocess.run(
        command, cwd=root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if not done.returncode:
        return []
    said = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    reason = revisions.one_line(ValueError(said[0] if said else "no reason given"))
    print(f"nothing pulled: {reason}", flush=True)
    return [f"nothing pulled, so run again: {reason}"]


def committed(root: Path, head: str) -> list[str]:
    """Whether dvc.lock and the metrics of HEAD are what the stages gave just now: a note."""
    after = verify.lock((root / revisions.LOCK).read_bytes(), "the work tree")
    try:
        before = verify.lock(verify.git(root, "show", f"{head}:{revisions.LOCK}"), "HEAD")
    except UserError:
        before = Lock()
    rows = [(path, path.endswith(" (input)")) for _, path, same in verify.compared(before, after) if not same]
    mend = "commit dvc.lock and metrics/ after `dvc repro`, and `dvc push`"
    if not before.stages:
        return [f"HEAD has no {revisions.LOCK}: {mend}"]
    if any(is_input for _, is_input in rows):
        inputs = listed([path.removesuffix(" (input)") for path, is_input in rows if is_input])
        return [f"stale: {revisions.LOCK} of HEAD is of other inputs than HEAD has ({inputs}): {mend}"]
    if rows:
        outputs = listed([path for path, _ in rows])
        return [f"the same inputs gave other bytes here than {revisions.LOCK} of HEAD names ({outputs}): `make verify`"]
    changed = verify.git(root, "diff", "--name-only", head, "--", *sorted(verify.committed_outs(after))).decode()
    if changed:
        return [f"stale: not what {revisions.LOCK} of HEAD names: {listed(changed.splitlines())}: {mend}"]
    return [f"{revisions.LOCK} and metrics of HEAD are what `dvc repro` gives"]


def rebuild_if_missing(repo: Any, root: Path, cache: str, start: str) -> list[str]:
    """Have the predictions of a revision in the cache: where no remote has them, by running its stages elsewhere.

    A note if that fails: then the counts in Git are compared. Raises UserError for a revision without metrics.
    """
    side = revisions.read(repo, start, paths.PARAMS.as_posix(), f"{paths.TEST_METRICS.parent.as_posix()}/*.json")
    out = side.outs.get(paths.PREDICTIONS.as_posix())
    if out is None or side.commit is None:
        return []
    try:
        revisions.fetch(repo, out)
    except UserError as error:
        print(f"\nrunning {start} again: {error}", flush=True)
        with tempfile.TemporaryDirectory(prefix="base-") as scratch:
            clone = Path(scratch) / "clone"
            verify.git(root, "clone", "--quiet", str(root), str(clone))
            verify.git(clone, "checkout", "--quiet", side.commit)
            try:
                verify.rebuild(clone, cache, [])
            except UserError:
                return [f"{start}: its stages fail, too"]
    return []


def listed(names: list[str]) -> str:
    """Names in a row, the first few of them."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


if __name__ == "__main__":
    command.run(lambda: main(arguments()), "what has run is kept, and `dvc repro` goes on from there")
