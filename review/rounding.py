"""Whether rebuilt outputs differ from the record only as the rounding of another processor explains.

No predicted class and no count may differ, and no probability or loss by more than TOLERANCE.
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from integrity import git, revisions
from integrity.dvc_lock import LockedFile
from integrity.rebuild import Output
from stages.common import paths
from stages.common.errors import UserError

TOLERANCE = 1e-3
# Metrics that may differ, besides those that end with _loss.
KEYS = ("loss", "calibration_error", "calibration_error_low", "calibration_error_high", "temperature")
TABLES = (paths.PREDICTIONS, paths.RELIABILITY, paths.UNSCALED_RELIABILITY)
FILES = (*TABLES, paths.TEST_METRICS, paths.TRAIN_METRICS, paths.MODEL_CARD)


def explains(repo: Any, root: Path, head: str, outputs: Sequence[Output]) -> bool:
    """Whether rounding explains that these outputs differ. Pictures are ignored; predictions must be among the rest."""
    judged = [out for out in outputs if not is_picture(out)]
    if any(is_edited(out) or not out.locked for out in outputs) or any(Path(out.path) not in FILES for out in judged):
        return False
    try:
        same = all(_near(repo, root, head, out) for out in judged)
    except (UserError, OSError, ValueError, csv.Error):  # the recorded bytes are unavailable, or not a table
        return False
    return same and any(Path(out.path) == paths.PREDICTIONS for out in judged)


def is_edited(out: Output) -> bool:
    """Whether the file in Git is neither the one that dvc.lock names nor the rebuilt one."""
    return out.committed is not None and out.committed not in (out.locked, out.rebuilt)


def is_picture(out: Output) -> bool:
    """Whether an output is a picture that evaluate drew."""
    return out.stage == "evaluate" and out.path.endswith(".png")


def _near(repo: Any, root: Path, head: str, out: Output) -> bool:
    """Whether a rebuilt output is near the recorded one. Raises as `explains` expects."""
    after = (root / out.path).read_bytes()
    before = git.file(root, head, out.path)
    if before is None:
        before, _ = revisions.fetch(repo, LockedFile(path=out.path, md5=out.locked))
    if out.path.endswith(".json"):
        return near_metrics(*(revisions.parse_json(content, out.path) for content in (before, after)))
    if out.path.endswith(".md"):
        return near_texts(before, after)
    return near_tables(before, after, exact=3 if Path(out.path) == paths.PREDICTIONS else 0)


def near_metrics(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether two sets of metrics are equal except for losses and calibration, which are near.

    Everything else is a count or computed from counts, and the same on every processor.
    """

    def same(key: str, a: Any, b: Any) -> bool:
        if key == "without_temperature" and isinstance(a, dict) and isinstance(b, dict):
            return near_metrics(a, b)
        numbers = isinstance(a, int | float) and isinstance(b, int | float)
        return bool(a == b) or (numbers and (key in KEYS or key.endswith("_loss")) and near(a, b))

    return before.keys() == after.keys() and all(same(key, before[key], after[key]) for key in before)


def near_tables(before: bytes, after: bytes, exact: int) -> bool:
    """Whether two CSV files are equal except for numbers, which are near.

    exact: the number of first columns that must be equal, such as index, label and prediction. Raises ValueError and
    csv.Error if one is not a table.
    """
    a, b = (list(csv.reader(content.decode("utf-8").splitlines(), strict=True)) for content in (before, after))
    return (
        a[:1] == b[:1]
        and [row[:exact] for row in a] == [row[:exact] for row in b]
        and [len(row) for row in a] == [len(row) for row in b]
        and all(x == y or near(x, y) for rows in zip(a, b, strict=True) for x, y in zip(*rows, strict=True))
    )


def near_texts(before: bytes, after: bytes) -> bool:
    """Whether two texts are equal except for decimal fractions, which are near."""
    a, b = (re.split(r"(\d+\.\d+)", content.decode("utf-8")) for content in (before, after))
    return len(a) == len(b) and all(
        x == y or (index % 2 and near(x, y)) for index, (x, y) in enumerate(zip(a, b, strict=True))
    )


def near(before: str | float, after: str | float) -> bool:
    """Whether two numbers, or texts of numbers, differ by at most TOLERANCE."""
    try:
        return abs(float(before) - float(after)) <= TOLERANCE
    except ValueError:
        return False
