"""DVC in this process, in place of a program of its own: starting Python takes most of the time of a small test."""

import logging
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import dvc.cli
import pytest

from integrity import pull as integrity_pull
from stages.common.errors import UserError


def repro(folder: Path, options: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """As integrity.rebuild.repro, which it stands in for."""
    ran: list[str] = []

    class Ran(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            ran.extend(re.findall(r"Running stage '([^']+)'", record.getMessage()))

    logger, handler = logging.getLogger("dvc.stage.run"), Ran()
    logger.addHandler(handler)
    logger.disabled = False  # import-linter, in tests/test_layers.py, disables all loggers that exist by then
    try:
        if command(folder, ["repro", *options], environment):
            raise UserError("`dvc repro` failed, see above")
    finally:
        logger.removeHandler(handler)
    return ran


def pull(folder: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """`python -m integrity.pull`; returns its exit status."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):  # DVC's own
        patch.chdir(folder)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["pull", *arguments])
        return integrity_pull.main()


def command(folder: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command of DVC; returns its exit status."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):  # DVC's own
        patch.chdir(folder)
        for name, value in environment.items():
            patch.setenv(name, value)
        return int(dvc.cli.main(list(arguments)))
