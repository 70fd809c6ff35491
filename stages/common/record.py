"""Record how long a stage took, and the machine it ran on."""

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
    """Write runs/STAGE.json, which Git and DVC ignore: the given facts (seconds, device, …), machine and versions."""
    files.write_text(paths.RUNS / f"{stage}.json", json.dumps({**facts, **machine()}, indent=2) + "\n")


def environment(stage: str, device: str, instruction_set: str, outputs: Iterable[Path]) -> None:
    """Write metrics/environment/STAGE.json: everything that the last bits of the stage's outputs can depend on.

    Git keeps it beside the metrics, so that `make verify` can explain different bytes. It is not an output of DVC,
    since outputs must not depend on the machine; so it lists the outputs that it describes. As long as these are
    unchanged, the file remains as it is: the same bytes on another machine leave nothing to commit.
    """
    made = {path.as_posix(): file_md5(path) for path in outputs}
    path = paths.ENVIRONMENT / f"{stage}.json"
    recorded = read(path)
    if isinstance(recorded, dict) and recorded.get("outputs") == made:
        return
    content = {"device": device, "instruction_set": instruction_set, **machine(), "outputs": made}
    files.write_text(path, json.dumps(content, indent=2) + "\n")


def read(path: Path) -> object:
    """The content of a file written by `environment`; None if it is missing or not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def describes(environment: object, outs: Mapping[str, str | None]) -> bool:
    """Whether a record of `environment` describes the run that made these outputs.

    environment: the content of the file, which may be anything. outs: path -> MD5 as in dvc.lock, also of other stages.
    """
    made = environment.get("outputs") if isinstance(environment, dict) else None
    return isinstance(made, dict) and bool(made) and all(outs.get(path) == md5 for path, md5 in made.items())


def machine() -> dict[str, Any]:
    """This machine, and the versions of the packages that affect numbers."""
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
