"""Several measurements as one row, and where they were made."""

import resource
import statistics
import subprocess
from collections.abc import Sequence
from typing import Any

from stages.common import record

RESULTS = "benchmarks/*.json"  # benchmarks write these, which does not change what they measure


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, mean, standard deviation, range and number of measurements."""
    return {
        "median": round(statistics.median(values), 4),
        "mean": round(statistics.fmean(values), 4),
        "standard_deviation": round(statistics.stdev(values), 4) if len(values) > 1 else 0.0,
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "n": len(values),
    }


def processor_seconds() -> float:
    """The processor time of all child processes that have ended, and of theirs."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def origin() -> dict[str, Any]:
    """The commit, with -dirty if tracked files other than RESULTS differ from it, and the machine."""
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], check=True, stdout=subprocess.PIPE, text=True)
    difference = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ".", f":(exclude){RESULTS}"])
    dirty = "-dirty" if difference.returncode else ""
    return {"commit": head.stdout.strip() + dirty, "machine": record.machine()}
