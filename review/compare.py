"""Is B better than A? `python -m review.compare A [B]`: commits, branches, tags, DVC experiments, or the work tree.

Not a stage: it reads what the stages wrote, and writes nothing. It names results that contradict dvc.lock or each
other; what is consistent was recorded, not rerun: `python -m integrity.verify` reruns.
Exit status: 0; 1 with --fail-if worse, if B is; 2 if the question cannot be answered (no such revision, nothing
measured, and with --fail-if no verdict).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from integrity import revisions
from review import comparison, comparison_text, predictions, significance, study_file
from stages.common import errors, paths
from stages.common.errors import UserError

FORMATS = ("table", "markdown", "json")


def main() -> None:
    """Read both sides, print the comparison, and exit 1 if it was asked to fail and has to."""
    asked = arguments()
    sides = [asked.a, *([asked.b] if asked.b is not None else [])]
    if any(side.endswith(".json") for side in sides):
        document = two_studies(sides, asked.level)
    else:
        document = two_revisions(asked.a, asked.b, asked.level)

    match asked.format:
        case "table":
            print(comparison_text.table(document), end="")
        case "markdown":
            print(comparison_text.markdown(document), end="")
        case "json":
            print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
    sys.stdout.flush()

    verdict = document["verdict"]
    if asked.fail_if == "worse":
        if verdict["word"] == comparison.NOT_COMPARABLE:
            raise UserError(f"cannot tell whether {document['b']['name']} is worse: {verdict['text']}")
        if verdict["word"] == significance.WORSE:
            print(f"failed: {document['b']['name']} is worse: {verdict['text']}", file=sys.stderr)
            sys.exit(1)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m review.compare", description="Is B better than A?")
    parser.add_argument("a", metavar="A", help="what to compare with: a commit, branch, tag or DVC experiment")
    parser.add_argument("b", metavar="B", nargs="?", help="what to judge; the work tree if left out")
    parser.epilog = "A and B may both be seed studies: JSON files as `python -m review.study` writes them."
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--level", type=level, default=0.05, help="share of false alarms accepted (default: 0.05)")
    parser.add_argument("--fail-if", choices=["worse"], help="exit 1 if B is worse, 2 if that cannot be told")
    return parser.parse_args()


def level(text: str) -> float:
    """A significance level. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-6 <= value <= 0.5:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a number from 0.000001 to 0.5")
    return value


def two_studies(sides: list[str], level: float) -> dict[str, Any]:
    """The document of two files of seed studies. Raises UserError."""
    if len(sides) < 2 or not all(side.endswith(".json") for side in sides):
        raise UserError("a seed study (.json) is compared with another seed study, not with one run; give two")
    a, b = (study_file.read(Path(side)) for side in sides)
    return comparison.studies(a, b, level)


def two_revisions(a: str, b: str | None, level: float) -> dict[str, Any]:
    """The document of two revisions, or of one and the work tree (b: None). Raises UserError."""
    metrics = f"{paths.TEST_METRICS.parent.as_posix()}/*.json"
    with revisions.repository() as repo:
        old, new = (revisions.read(repo, name, paths.PARAMS.as_posix(), metrics) for name in (a, b))
        found = [predictions.load(repo, side, paths.PREDICTIONS.as_posix()) for side in (old, new)]
        damaged = revisions.damaged(repo, [old, new], besides=paths.PREDICTIONS.as_posix())
    document = comparison.revisions(
        old, new, (found[0], found[1]), paths.TEST_METRICS.as_posix(), paths.TEST.as_posix(), level
    )
    document["notes"] += damaged
    return document


if __name__ == "__main__":
    errors.run_command(main)
