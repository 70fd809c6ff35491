"""Is B better than A? `python -m review.compare A [B]`: commits, branches, tags, DVC experiments, or the work tree.

If both sides have several seeds that are up to date (`make seeds`), these decide. Otherwise it compares one trained
model with another, and says so. Not a stage: it reads what the stages wrote, and names results that contradict dvc.lock
or each other. It reruns nothing (`python -m integrity.verify` does), but with `--seeds auto` it trains seeds on both
sides until the question is decided.
Exit status: 0; with --fail-if worse 1 if B is worse, by its seeds or with --single; 2 if the question cannot be
answered (unknown revision, nothing measured; with --fail-if also no verdict).
"""

import argparse
import sys

from review import comparison, comparison_text, formatting, options, significance, training
from stages.common import errors
from stages.common.errors import UserError


def main() -> None:
    """Read both sides, print the comparison, and exit with status 1 if B is worse and --fail-if asks for it."""
    arguments = command_line()
    if arguments.seeds == "auto":
        document = training.until_decided(arguments.a, arguments.b, arguments.level, arguments.margin, arguments.budget)
    elif arguments.single:
        document = comparison.read(arguments.a, arguments.b, arguments.level, None)
    else:
        document = comparison.read(arguments.a, arguments.b, arguments.level)

    formatting.print_document(document, arguments.format, comparison_text.table, comparison_text.markdown)

    verdict, name = document["verdict"], document["b"]["name"]
    if arguments.fail_if != "worse":
        return
    if verdict["word"] == comparison.NOT_COMPARABLE:
        raise UserError(f"cannot tell whether {name} is worse: {verdict['text']}")
    if verdict["word"] == significance.WORSE:
        if verdict["basis"] == comparison.SEEDS or arguments.single:
            print(f"failed: {name} is worse: {verdict['text']}", file=sys.stderr)
            sys.exit(1)
        print(f"not failed: seeds not compared: {comparison.REMEDY}", file=sys.stderr)


def command_line() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m review.compare", description="Is B better than A?")
    parser.add_argument("a", metavar="A", help="compare with this commit, branch, tag or DVC experiment")
    parser.add_argument("b", metavar="B", nargs="?", help="judge this one; default: the work tree")
    formatting.add_format(parser)
    parser.add_argument("--level", type=options.level, default=0.05, help="accepted share of false alarms (0.05)")
    parser.add_argument(
        "--fail-if", choices=["worse"], help="exit with status 1 if B is worse, 2 if there is no verdict"
    )
    basis = parser.add_mutually_exclusive_group()
    basis.add_argument("--single", action="store_true", help="judge the two trained models, not their seeds")
    basis.add_argument("--seeds", choices=["auto"], help="train seeds on both sides until the question is decided")
    parser.add_argument("--budget", type=options.count, metavar="N", help="--seeds auto: seeds per side at most (10)")
    parser.add_argument(
        "--margin",
        type=options.points,
        metavar="POINTS",
        help="--seeds auto: percentage points of accuracy below which a difference does not matter (0.1)",
    )
    arguments = parser.parse_args()
    for name, default in (("budget", 10), ("margin", 0.001)):
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
        elif arguments.seeds is None:
            parser.error(f"argument --{name}: only with --seeds auto")
    return arguments


if __name__ == "__main__":
    errors.run_command(main, kept="seeds that are done are kept in DVC's cache")
