"""The names of the tests, which pytest-xdist compares between its workers: one that differs ends the whole run."""

import os
import subprocess
import sys
import time

import pytest

from tests.imports import ROOT


def names(hash_seed: str) -> list[str]:
    """The tests that a fresh Python collects."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.soak
def test_no_name_depends_on_the_clock_or_on_chance() -> None:
    first = names("1")
    time.sleep(2)  # into another second, which is what gzip writes into a file
    assert len(first) > 500
    assert names("2") == first
    assert len(set(first)) == len(first)
