"""Whether the code and the parameters of a stage are still those it started with.

DVC records both after a stage has ended. Without this check, what somebody edits during a long training would be
recorded in dvc.lock, and in the run cache, as if the results came from it.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from stages.common import errors, params, paths
from stages.common.digests import file_md5
from stages.common.errors import UserError
from stages.common.text import listed

STAGE = "DVC_STAGE"  # set by DVC: "train" for a stage of dvc.yaml, "seeds/dvc.yaml:seed@0" for one of another file
PLACEHOLDER = re.compile(r"\$\{([\w.]+)\}")
SHOWN = 3  # at most so many changes, in an error message
MISSING = object()


class Inputs(NamedTuple):
    """The code and the parameters at a moment."""

    code: dict[Path, str]  # MD5 of each file of this project that is imported
    parameters: bytes  # params.yaml


_start: Inputs | None = None


def remember() -> None:
    """Remember the inputs, for `check`. Does nothing in a program that DVC did not start: nothing will be recorded."""
    global _start
    if STAGE in os.environ:
        parameters = paths.PARAMS.read_bytes() if paths.PARAMS.is_file() else b""
        _start = Inputs({path: file_md5(path) for path in _imported()}, parameters)
    else:
        _start = None


def check(kept: str = "") -> None:
    """Raise UserError if inputs have changed since `remember`. kept: what the next run need not do again."""
    if _start is None:
        return
    code = [_relative(path) for path, md5 in _start.code.items() if not path.is_file() or file_md5(path) != md5]
    changed = [*sorted(code), *(f"{key} in {paths.PARAMS}" for key in _changed_keys(_start.parameters))]
    if changed:
        raise UserError(
            f"{listed(changed, SHOWN)} changed while {errors.program()} ran, and DVC would record the results with the "
            f"new content; run it again{kept}"
        )


def unchanged(main: Callable[[], None]) -> Callable[[], None]:
    """A decorator of a stage's `main`: the stage fails if its inputs change while it runs."""

    @wraps(main)
    def checked() -> None:
        remember()
        main()
        check()

    return checked


def _imported() -> Iterator[Path]:
    """The files of this project's modules that are imported."""
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)  # also of __main__, whose __name__ is another
        if spec and spec.origin and spec.name.partition(".")[0] in errors.OWN_PACKAGES:
            yield Path(spec.origin)


def _relative(path: Path) -> str:
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.as_posix()


def _changed_keys(before: bytes) -> list[str]:
    """The keys of params.yaml that DVC records for this stage, and whose values are not those of `before`."""
    after = paths.PARAMS.read_bytes() if paths.PARAMS.is_file() else b""
    if after == before:
        return []
    old = params.parse_mapping(before, str(paths.PARAMS))
    new = params.parse_mapping(after, str(paths.PARAMS))
    recorded = tuple(_recorded_keys(old))
    values, others = (params.flatten(side, str(paths.PARAMS)) for side in (old, new))
    changed = (key for key in {**values, **others} if values.get(key, MISSING) != others.get(key, MISSING))
    return [key for key in changed if any(f"{key}.".startswith(f"{prefix}.") for prefix in recorded)]


def _recorded_keys(values: dict[str, Any]) -> Iterator[str]:
    """The keys that dvc.yaml lists for this stage, as DVC resolved them at the start, with the chosen names in them."""
    file, _, name = os.environ[STAGE].rpartition(":")
    pipeline = params.load(Path(file or "dvc.yaml"))
    flat = params.flatten(values, str(paths.PARAMS))
    for key in pipeline["stages"][name.partition("@")[0]].get("params", []):
        yield PLACEHOLDER.sub(lambda placeholder: str(flat.get(placeholder[1])), key)
