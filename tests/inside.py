"""Commands in the process of the tests, since starting Python for each would take most of the time."""

import gc
import io
import logging
import os
import runpy
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO
from unittest import mock

import dvc.cli
import fsspec.asyn
import pytest

NO_COLORAMA = {"DVC_TEST": "1"}  # with colorama, DVC prints JSON to the sys.stdout that there was when it was imported


@contextmanager
def place(path: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """A folder to work in, an environment, and loggers as in a new process."""
    logging.disable(logging.NOTSET)  # the launcher of several processes turns all off, import-linter those it finds
    for logger in logging.Logger.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):  # DVC's own
        patch.chdir(path)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield
        if fsspec.asyn.iothread[0] or "webdav4" in sys.modules:
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


def dvc_says(path: Path, environment: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    """`dvc …` with no other environment: its exit status, and all that it and its stages print."""
    return says(path, {**environment, **NO_COLORAMA}, lambda: int(dvc.cli.main([*arguments])))


def module_says(path: Path, environment: Mapping[str, str], name: str, *arguments: str) -> tuple[int, str]:
    """`python -m name` with no other environment: its exit status, and all that it and its programs print."""

    def run() -> int:
        with mock.patch.object(sys, "argv", [name, *arguments]), pytest.raises(SystemExit) as end:
            runpy.run_module(name, run_name="__main__")
        return int(end.value.code or 0)

    return says(path, environment, run)


def says(path: Path, environment: Mapping[str, str], run: Callable[[], int]) -> tuple[int, str]:
    """What `run` returns in this folder and environment, and what is printed by it and the programs that it starts."""
    with (
        tempfile.TemporaryFile("w+", buffering=1, encoding="utf-8", errors="replace") as file,
        mock.patch.dict(os.environ, environment, clear=True),
        place(path, environment),
    ):
        with printing_to(file):
            status = run()
        file.seek(0)
        return status, file.read()


@contextmanager
def printing_to(file: TextIO) -> Iterator[None]:
    """Let this process, DVC's loggers and the programs that are started print to a file."""
    loggers = [logging.getLogger(name) for name in ("dvc", "dvc_objects", "dvc_data")]
    handlers = {handler: None for logger in loggers for handler in logger.handlers}
    with ExitStack() as stack:
        for descriptor in (1, 2):
            saved = os.dup(descriptor)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, descriptor)
            os.dup2(file.fileno(), descriptor)
        for logger in loggers:
            logger.disabled = False  # import-linter, in tests/test_layers.py, disables all loggers that exist by then
        for handler in handlers:
            if isinstance(handler, logging.StreamHandler) and (before := handler.setStream(file)):
                stack.callback(handler.setStream, before)
        stack.enter_context(redirect_stdout(file))
        stack.enter_context(redirect_stderr(file))
        yield
