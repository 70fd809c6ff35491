"""Whether the code, parameters and data that a stage reads are still those it started with.

DVC records them after a stage has ended. Without this check, what somebody edits or checks out during a long training
would be recorded in dvc.lock, and in the run cache, as if the results came from it.
"""

import os
import re
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from stages.common import params, paths
from stages.common.digests import file_md5
from stages.common.errors import UserError
from stages.common.text import listed

ROOT = Path(__file__).parents[2]
STAGE = "DVC_STAGE"  # set by DVC: "train", or "seeds/dvc.yaml:seed@0", with the path as seen from where dvc was started
PLACEHOLDER = re.compile(r"\$\{([\w.]+)\}")
OWN_PICTURES = "${data.images}"  # a dependency of preprocess, which lists these pictures twice: there may be a million
SMALL_BYTES = 1_000_000
SHOWN = 3  # at most so many changes, in an error message
MISSING = object()


class Inputs(NamedTuple):
    """What DVC records of a stage, at a moment."""

    files: dict[Path, str]  # each dependency, or file of one, with its signature
    parameters: bytes  # params.yaml
    keys: tuple[str, ...]  # those of params.yaml that dvc.yaml lists


_start: Inputs | None = None


def remember() -> None:
    """Remember the inputs, for `check`. Does nothing in a program that DVC did not start: nothing will be recorded."""
    global _start
    _start = None
    if STAGE not in os.environ:
        return
    parameters, stage = _parameters(), _stage()
    values = (
        params.flatten(params.parse_mapping(parameters, str(paths.PARAMS)), str(paths.PARAMS)) if parameters else {}
    )

    def filled(entry: str) -> str:
        """An entry of dvc.yaml as DVC resolves it, with the chosen names in it."""
        return PLACEHOLDER.sub(lambda placeholder: str(values.get(placeholder[1])), entry)

    keys = [entry for entry in stage.get("params", []) if isinstance(entry, str)]  # not {file: keys} of another file
    entries = [ROOT / filled(entry) for entry in stage.get("deps", []) if entry != OWN_PICTURES]
    files = {path: _signature(path) for entry in entries for path in _files(entry)}
    _start = Inputs(files, parameters, tuple(map(filled, keys)))


def check(kept: str = "") -> None:
    """Raise UserError if inputs have changed since `remember`. kept: what the next run need not do again."""
    if _start is None:
        return
    changed = sorted(str(path.relative_to(ROOT)) for path, before in _start.files.items() if _signature(path) != before)
    changed += [f"{key} in {paths.PARAMS}" for key in _changed_keys(_start)]
    if changed:
        raise UserError(
            f"{listed(changed, SHOWN)} changed while {_name()} ran, and DVC would record the results with the new "
            f"content; run it again{kept}"
        )


def unchanged(main: Callable[[], None]) -> Callable[[], None]:
    """A decorator of a stage's `main`: the stage fails if its inputs change while it runs."""

    @wraps(main)
    def checked() -> None:
        remember()
        main()
        check()

    return checked


def stages(file: Path) -> dict[str, dict[str, Any]]:
    """The stages in a dvc.yaml, by name; none if it has only plots, as that of DVCLive. Raises UserError."""
    found: dict[str, dict[str, Any]] = params.load(file, pipeline=True).get("stages") or {}
    return found


def _name() -> str:
    """The name of this stage: "train", "seed@0"."""
    return os.environ[STAGE].rpartition(":")[2]


def _stage() -> dict[str, Any]:
    """The stage in dvc.yaml, or in that of seeds or export; empty if none has it."""
    for file in (*ROOT.glob("dvc.yaml"), *sorted(ROOT.glob("*/dvc.yaml"))):
        if stage := stages(file).get(_name().partition("@")[0]):
            return stage
    return {}


def _files(entry: Path) -> Iterator[Path]:
    """A dependency that is a file, the modules of a package, or the files of another folder that are not hidden."""
    if not entry.is_dir():
        yield entry
        return
    pattern = "*.py" if (entry / "__init__.py").is_file() else "*"
    for path in entry.rglob(pattern):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(entry).parts):
            yield path


def _signature(path: Path) -> str:
    """The MD5 of a small file. Of a large one its size and time, which differ after a checkout of another one."""
    if not path.is_file():
        return "none"
    state = path.stat()
    return file_md5(path) if state.st_size <= SMALL_BYTES else f"{state.st_size} {state.st_mtime_ns}"


def _parameters() -> bytes:
    return paths.PARAMS.read_bytes() if paths.PARAMS.is_file() else b""


def _changed_keys(start: Inputs) -> list[str]:
    """The keys of params.yaml that DVC records for this stage, and whose values have changed."""
    if (now := _parameters()) == start.parameters:
        return []
    sides = (params.parse_mapping(content, str(paths.PARAMS)) for content in (start.parameters, now))
    before, after = (params.flatten(side, str(paths.PARAMS)) for side in sides)
    changed = (key for key in {**before, **after} if before.get(key, MISSING) != after.get(key, MISSING))
    return [key for key in changed if any(f"{key}.".startswith(f"{prefix}.") for prefix in start.keys)]
