"""Commands in the process of the tests, since starting Python for each would take most of the time."""

import gc
import io
import runpy
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import dvc.cli
import pytest


@contextmanager
def place(path: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """A folder to work in, and an environment."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):  # DVC's own
        patch.chdir(path)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield
        gc.collect()  # the clients of remotes leave their sockets to it, which is a warning anywhere else


def module(path: Path, environment: Mapping[str, str], name: str, *arguments: str) -> tuple[int, str, str]:
    """`python -m name`: its exit status, and what it says on standard output and error."""
    out, err = io.StringIO(), io.StringIO()
    with place(path, environment), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            runpy.run_module(name, run_name="__main__")
    return int(end.value.code or 0), out.getvalue(), err.getvalue()


def run_dvc(path: Path, environment: Mapping[str, str], *arguments: str) -> int:
    """`dvc …`: its exit status."""
    with place(path, environment):
        return int(dvc.cli.main([*arguments]))
