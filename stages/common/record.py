"""What a run took and where it ran: for people, and for comparing machines. Ignored by Git and by DVC."""

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.common import files, paths
from stages.common.digests import file_md5

PACKAGES = ("torch", "numpy", "dvc", "safetensors")


def write(stage: str, facts: dict[str, Any]) -> None:
    """Write runs/STAGE.json: the facts given (seconds, device, …), the machine and the versions."""
    files.write_text(paths.RUNS / f"{stage}.json", json.dumps({**facts, **machine()}, indent=2) + "\n")


def environment(stage: str, device: str, instruction_set: str, outputs: Iterable[Path]) -> None:
    """Write metrics/environment/STAGE.json: what the last bits of the stage's outputs can depend on.

    Git keeps it beside the metrics, so that `make verify` can say of a run that ends in other bytes where it ran. It is
    no output of DVC's: nothing there may depend on the machine. So DVC does not bring it back with a run out of its
    cache, and it names the outputs that it describes. It stays as it is while it describes the outputs that are there,
    wherever these were made first: the same bytes on another machine leave nothing to commit.
    """
    made = {path.as_posix(): file_md5(path) for path in outputs}
    path = paths.ENVIRONMENT / f"{stage}.json"
    recorded = read(path)
    if isinstance(recorded, dict) and recorded.get("outputs") == made:
        return
    content = {"device": device, "instruction_set": instruction_set, **machine(), "outputs": made}
    files.write_text(path, json.dumps(content, indent=2) + "\n")


def read(path: Path) -> object:
    """What a file of `environment` holds; None if it is not there or is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def describes(environment: object, outs: Mapping[str, str | None]) -> bool:
    """Whether what `environment` wrote is of the run that made these outputs.

    environment: the content of the file, whatever it holds. outs: path -> MD5, as dvc.lock names them; those of other
    stages may be among them.
    """
    made = environment.get("outputs") if isinstance(environment, dict) else None
    return isinstance(made, dict) and bool(made) and all(outs.get(path) == md5 for path, md5 in made.items())


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
