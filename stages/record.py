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


def environment(stage: str, device: str, instruction_set: str) -> None:
    """Write metrics/environment/STAGE.json: what the last bits of the stage's numbers can depend on.

    Git keeps it beside the metrics, so that `make verify` can say of a run that ends in other bytes where it ran. It is
    no output of DVC's: nothing there may depend on the machine. No clock and no host name, so the same machine writes
    the same file.
    """
    content = {"device": device, "instruction_set": instruction_set, **machine()}
    files.write_text(paths.ENVIRONMENT / f"{stage}.json", json.dumps(content, indent=2) + "\n")


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
