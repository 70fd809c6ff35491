"""What a run took and where it ran: for people, and for comparing machines. Ignored by Git and by DVC."""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages import files, paths

PACKAGES = ("torch", "numpy", "dvc", "safetensors")


def write(stage: str, facts: dict[str, Any]) -> None:
    """Write runs/STAGE.json: the facts given (seconds, device, …), the machine and the versions."""
    machine = {
        "system": platform.platform(),
        "processor": _processor(),
        "python": sys.version.split()[0],
        **{name: version(name) for name in PACKAGES},
    }
    files.write_text(paths.RUNS / f"{stage}.json", json.dumps({**facts, **machine}, indent=2) + "\n")


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:  # platform.processor() says x86_64, or nothing
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
