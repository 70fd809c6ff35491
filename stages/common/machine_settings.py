"""Section `machine` of params.yaml: it affects the speed and the log of a run, and no bit of its results.

No stage lists the section in dvc.yaml, so changing it runs nothing. An environment variable overrides a key for one
machine or one command: MACHINE_THREADS=4 overrides machine.threads.
"""

import os
from typing import Any

from pydantic import Field, ValidationError

from stages.common import params, paths
from stages.common.errors import UserError
from stages.common.params import Section

SECTION = "machine"


class Machine(Section):
    """Section `machine`."""

    processes: int = Field(ge=1, le=1024)
    threads: int = Field(ge=0, le=1024)
    num_workers: int = Field(ge=0, le=256)
    log_every_steps: int = Field(ge=1, le=1_000_000)
    checkpoint_every_seconds: float = Field(ge=0, le=1_000_000)
    timeout_seconds: float = Field(ge=1, le=100_000)


def read(values: dict[str, Any]) -> Machine:
    """The section in `values`, overridden by the environment. Raises UserError with a line for each mistake in them."""
    in_file = params.section(values, SECTION, Machine)
    # An empty variable counts as unset: compose files and CI systems pass unset ones as empty.
    given = {name: text for name in Machine.model_fields if (text := os.environ.get(variable(name)))}
    overrides = {name: params.parse(text, variable(name)) for name, text in given.items()}
    try:
        return Machine.model_validate(in_file.model_dump() | overrides)
    except ValidationError as error:
        names = [str(mistake["loc"][0]) for mistake in error.errors()]
        lines = [
            f"{variable(name)} is {given[name][:80]!r}; allowed: {params.allowed(Machine, name)} (this environment "
            f"variable overrides {SECTION}.{name} of {paths.PARAMS}; unset it to use that)"
            for name in dict.fromkeys(names)
        ]
        raise UserError("\n".join(lines)) from None


def variable(name: str) -> str:
    """The environment variable that overrides a key of the section."""
    return f"{SECTION}_{name}".upper()
