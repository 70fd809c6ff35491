"""Is B better than A? `python -m review.compare A [B]`: commits, branches, tags, DVC experiments, or the work tree.

Where both sides have several seeds that are up to date (`make seeds`), these decide; else it compares one trained model
with another, and says so. Not a stage: it reads what the stages wrote. Only `--seeds auto` trains: seeds of both sides
until the question is decided. It names results that contradict dvc.lock or each other; what is consistent was recorded,
not rerun: `python -m integrity.verify` reruns.
Exit status: 0; 1 with --fail-if worse, if B is, by its seeds or with --single; 2 if the question cannot be answered (no
such revision, nothing measured, and with --fail-if no verdict).
"""

import argparse
import json
import sys

from review import comparison, comparison_text, options, significance, training
from stages.common import errors
from stages.common.errors import UserError

FORMATS = ("table", "markdown", "json")


def main() -> None:
    """Read both sides, print the comparison, and exit 1 if that was requested and B is worse."""
    chosen = arguments()
    if chosen.seeds == "auto":
        document = training.until_decided(chosen.a, chosen.b, chosen.level, chosen.margin, chosen.budget)
    elif chosen.single:
        document = comparison.read(chosen.a, chosen.b, chosen.level, None)
    else:
        document = comparison.read(chosen.a, chosen.b, chosen.level)

    match chosen.format:
        case "table":
            print(comparison_text.table(document), end="")
        case "markdown":
            print(comparison_text.markdown(document), end="")
        case "json":
            print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
    sys.stdout.flush()

    verdict, name = document["verdict"], document["b"]["name"]
    if chosen.fail_if != "worse":
        return
    if verdict["word"] == comparison.NOT_COMPARABLE:
        raise UserError(f"cannot tell whether {name} is worse: {verdict['text']}")
    if verdict["word"] == significance.WORSE:
        if verdict["basis"] == comparison.SEEDS or chosen.single:
            print(f"failed: {name} is worse: {verdict['text']}", file=sys.stderr)
            sys.exit(1)
        print(f"not failed: seeds not compared: {comparison.REMEDY}", file=sys.stderr)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m review.compare", description="Is B better than A?")
    parser.add_argument("a", metavar="A", help="what to compare with: a commit, branch, tag or DVC experiment")
    parser.add_argument("b", metavar="B", nargs="?", help="what to judge; the work tree if left out")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--level", type=options.level, default=0.05, help="share of false alarms accepted (0.05)")
    parser.add_argument("--fail-if", choices=["worse"], help="exit 1 if B is worse, 2 if that cannot be told")
    basis = parser.add_mutually_exclusive_group()
    basis.add_argument("--single", action="store_true", help="judge the two trained models, not their seeds")
    basis.add_argument("--seeds", choices=["auto"], help="train seeds on both sides until the question is decided")
    parser.add_argument("--budget", type=options.count, default=10, metavar="N", help="seeds per side at most (10)")
    parser.add_argument(
        "--margin",
        type=options.points,
        default=0.001,
        metavar="POINTS",
        help="with --seeds auto: percentage points of accuracy below which a difference does not matter (0.1)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    errors.run_command(main, kept="seeds that are done are kept in DVC's cache")
