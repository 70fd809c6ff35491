"""The names of the tests, which must be the same in each worker of pytest-xdist: otherwise it runs none."""

import os
import subprocess
import sys

import pytest

from tests.conftest import COLLECTED
from tests.imports import ROOT


def collect(arguments: list[str], hash_seed: str) -> list[str]:
    """The names of the tests that a new process collects. arguments: files and folders."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.soak
def test_no_name_depends_on_the_clock_or_on_chance(request: pytest.FixtureRequest) -> None:
    own = request.config.stash[COLLECTED]  # by this process, seconds ago, with a random hash seed
    assert collect(request.config.args, hash_seed="1") == own
    assert len(set(own)) == len(own)
