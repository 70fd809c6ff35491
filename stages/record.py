"""What a run took and where it ran: for people, and for comparing machines. Ignored by Git and by DVC."""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages import files, paths

PACKAGES = ("torch", "numpy", "dvc", "safetensors")


def write(stage: str, facts: dict[str, Any]) -> None:
    """Write runs/STAGE.json: the facts given (seconds, device, …), the machine and the versions."""
    files.write_text(paths.RUNS / f"{stage}.json", json.dumps({**facts, **machine()}, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """What this machine is, and the versions of what decides on numbers."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        **{name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:  # platform.processor() says x86_64, or nothing
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
