"""SIGKILL at any moment of any stage, of the stage or of dvc or of both: `dvc repro` ends in the same bytes.

`make test` kills 15 times; FAULTS_KILLS=100 in the environment kills as often as it says (a nightly run).
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import cycle, islice
from pathlib import Path

import pytest

from tests.clones import Clone
from tests.faults.conftest import TALLY, assert_sound, digests

KILLS = int(os.environ.get("FAULTS_KILLS", "15"))
STORY = 15  # kills in a row, from nothing to the end of the pipeline
STAGES = ["download", "preprocess", "train", "evaluate"]
# How often each stage is aimed at in a story: the one that keeps state of its own, most.
AIMS = ["download"] * 3 + ["preprocess"] * 3 + ["train"] * 6 + ["evaluate"] * 3

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in Linux's /proc")


class Repro:
    """`make repro` after the install: a dvc in a process group of its own, and the stage it runs."""

    def __init__(self, clone: Clone, log: Path, *arguments: str) -> None:
        clone.run(sys.executable, "-m", "stages.after_kill")
        with log.open("a", encoding="utf-8") as file:
            self.dvc = subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro", *arguments],
                cwd=clone.path,
                env=clone.environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def stage(self) -> tuple[str, int] | None:
        """The stage at work below this dvc: its name and its process."""
        waiting, found = [self.dvc.pid], None
        while waiting:
            pid = waiting.pop()
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
            # The shell that dvc starts has the same words in one argument.
            if match := re.search(rb"\0-m\0stages\.(\w+)\0$", command):
                found = match[1].decode(), pid
        return found

    def wait_for(self, name: str) -> bool:
        """Until the stage is at work; False if dvc ended without."""
        while self.dvc.poll() is None:
            if (now := self.stage()) and now[0] == name:
                return True
            time.sleep(0.005)
        return False

    def kill(self, whom: str) -> str | None:
        """SIGKILL to the stage, to dvc or to both; returns what was at work, None if all had ended."""
        at_work = self.stage()
        killed = None
        if whom != "stage" and self.dvc.poll() is None:
            os.kill(self.dvc.pid, signal.SIGKILL)
            killed = "dvc"
        if whom != "dvc" and at_work:
            try:
                os.kill(at_work[1], signal.SIGKILL)
            except ProcessLookupError:
                return killed
        return at_work[0] if at_work and (killed or whom == "stage") else killed


@pytest.fixture(scope="module")
def seconds(victim: Clone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """How long each stage takes, from its process's start to the next one's."""
    start_anew(victim)
    repro, seen = Repro(victim, tmp_path_factory.mktemp("log") / "log"), {}
    while repro.dvc.poll() is None:
        if now := repro.stage():
            seen.setdefault(now[0], time.monotonic())
        time.sleep(0.005)
    assert list(seen) == STAGES
    ends = [*list(seen.values())[1:], time.monotonic()]
    return {name: end - start for (name, start), end in zip(seen.items(), ends, strict=True)}


def start_anew(clone: Clone) -> None:
    """Take all results away, and what could bring them back without work: cache, run cache, checkpoints."""
    for name in ("data/raw", "data/processed", "data/model", "metrics", ".dvc/cache", "runs"):
        shutil.rmtree(clone.path / name, ignore_errors=True)
    for name in ("data/predictions.csv", "dvc.lock"):
        (clone.path / name).unlink(missing_ok=True)


@pytest.mark.parametrize("story", range(-(-KILLS // STORY)))
def test_killed_at_any_moment_it_ends_in_the_same_bytes(
    story: int, victim: Clone, intact: dict[str, str], seconds: dict[str, float], tmp_path: Path
) -> None:
    assert digests(victim.path) == intact
    start_anew(victim)
    moments, log, hit = random.Random(story), tmp_path / "log", Counter[str]()
    aims = sorted(islice(cycle(AIMS), min(STORY, KILLS - story * STORY)), key=STAGES.index)
    again: list[str] = []
    while aims:
        repro = Repro(victim, log, *again)
        if not repro.wait_for(aims[0]):
            assert repro.dvc.wait() == 0, log.read_text(encoding="utf-8")
            again = ["--force", "--single-item", aims[0]]  # a kill of it came when all its work was done
            continue
        # Past the end of the stage too: dvc hashes, caches and writes dvc.lock then.
        time.sleep(moments.uniform(0, 1.1 * seconds[aims[0]]))
        if at_work := repro.kill(moments.choice(["stage", "dvc", "both"])):
            aims.pop(0)
            hit[at_work] += 1
            TALLY.injected["kills"] += 1
        repro.dvc.wait()
    assert Repro(victim, log).dvc.wait() == 0, log.read_text(encoding="utf-8")
    assert digests(victim.path) == intact, log.read_text(encoding="utf-8")
    assert_sound(victim.path)
    assert not (victim.path / "runs/resume").exists()
    assert "Traceback" not in log.read_text(encoding="utf-8")
    TALLY.survived["kills"] += hit.total()
    assert len(hit) >= min(4, hit.total()), f"these alone were hit: {hit}"
