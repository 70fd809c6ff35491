"""After a SIGKILL of a stage, of dvc or of both, at any moment, `dvc repro` produces the same bytes.

`make soak` kills 8 times; the nightly run is `FAULTS_KILLS=100 make soak ARGS=tests/faults`. FAULTS_SEED draws other
moments, from the seconds that each stage takes undisturbed, including the time in which dvc hashes and caches. A killed
dvc may leave its stage running, which the next dvc then finds.
"""

import os
import queue
import random
import re
import shutil
import time
from collections.abc import Callable

import pytest

from integrity import repair
from tests.faults.lab import STAGES, VICTIMS, Lab
from tests.faults.ledger import KILLS_OF, faults

KILLS = int(os.environ.get("FAULTS_KILLS", "8"))
SEED = int(os.environ.get("FAULTS_SEED", "0"))
KILLS_PER_STAGE = 4  # in a run of the pipeline, which then finishes undisturbed
# DVC's messages for a truncated file of its own, and for an unfinished entry of the run cache.
REFUSED = ("dvc.lock' is invalid", "dvc.lock' validation failed", "RWLock-file", "join() argument must be")


def one_run(lab: Lab, moments: random.Random, wanted: Callable[[str], bool]) -> tuple[str, str] | None:
    """Run `dvc repro`, and kill it at a random moment of a stage that is `wanted`.

    Returns the stage and what was killed; None if the run finished.
    """
    run, stage, began, due = lab.start(), "", 0.0, None
    while True:
        try:
            line = run.line(None if due is None else max(0, due - time.monotonic()))
        except queue.Empty:
            if run.process.poll() is None:
                return stage, run.kill(moments.choice(VICTIMS))
            due = None  # it has just ended: read the rest
            continue
        if line is None:
            break
        if begun := run.stage_of(line):
            now = time.monotonic()
            if stage:  # it has ended: it takes less on a machine that is less busy now
                lab.seconds[stage] = min(lab.seconds[stage], now - began)
            stage, began = begun, now
            # The first kill of a stage comes in its first half, to hit it also on a machine that is less busy now.
            most = lab.seconds[stage] if KILLS_OF[stage] else lab.seconds[stage] / 2
            due = now + moments.uniform(0, most) if wanted(stage) else None
    status, output = run.process.wait(), run.output()
    if status and any(words in output for words in REFUSED):
        repairs = lab.clone.run(*lab.REPAIR)
        assert re.search("truncated by a kill|an unfinished entry", repairs), output
        print(repairs)
        return one_run(lab, moments, wanted)
    assert status == 0, output
    return None


@pytest.mark.soak
def test_killed_at_random_moments_it_ends_in_the_same_bytes(lab: Lab) -> None:
    moments = random.Random(SEED)
    lab.measure()
    assert lab.digest() == lab.digests
    with faults("kills") as count:
        while count["kills"] < KILLS:
            lab.forget()
            killed, most = 0, min(len(STAGES) * KILLS_PER_STAGE, KILLS - count["kills"])

            def wanted(stage: str) -> bool:
                # Each stage gets its share; the next ones also get what an almost finished stage left over.
                return killed < most * (STAGES.index(stage) + 1) / len(STAGES)  # noqa: B023 - called in this pass

            while (hit := one_run(lab, moments, wanted)) is not None:
                stage, victim = hit
                killed += 1
                count["kills"] += 1
                KILLS_OF[stage] += 1
                print(f"kill {count['kills']}: {victim} in {stage}")
            assert lab.digest() == lab.digests
    if KILLS >= 100:
        assert all(KILLS_OF[stage] >= KILLS // 10 for stage in STAGES), KILLS_OF
    lab.clone.run(*lab.REPAIR)
    assert "nothing to fix" in lab.doctor()


@pytest.mark.soak
def test_dvc_killed_while_it_writes_the_run_cache(lab: Lab) -> None:
    lab.clone.set("evaluate.calibration_bins", "9")
    entries = lab.clone.path / ".dvc/cache/runs"
    before = set(entries.glob("*/*"))
    lab.clone.dvc("repro")
    new = set(entries.glob("*/*")) - before  # the entries of evaluate and of check, which reads every parameter
    (folder,) = (path for path in new if "stages.evaluate" in next(path.iterdir()).read_text(encoding="utf-8"))
    for left in ([], [".abc.tmp"]):  # killed before it wrote the entry, and before it renamed it
        shutil.rmtree(folder)
        folder.mkdir()
        for name in left:
            (folder / name).write_text("cmd: pyth", encoding="utf-8")
        shutil.copy2(lab.clone.path / "dvc.lock", lab.clone.path.parent / "dvc.lock")
        lab.clone.run("git", "checkout", "-q", "HEAD", "--", "dvc.lock")
        with faults("kills within the run cache") as count:
            count["kills within the run cache"] += 1
            if not left:
                assert "join() argument must be" in lab.clone.dvc("repro", check=False)
            assert "an unfinished entry" in lab.clone.run(*lab.REPAIR)
            assert lab.clone.repro() == ["evaluate"]
            assert (lab.clone.path / "dvc.lock").read_bytes() == (lab.clone.path.parent / "dvc.lock").read_bytes()


@pytest.mark.parametrize("update", [1, *(pytest.param(update, marks=pytest.mark.night) for update in (2, 4))])
def test_dvc_killed_while_it_writes_dvc_lock(update: int, lab: Lab) -> None:
    # All stages come from the run cache, so dvc does little but write dvc.lock, once per stage.
    lock = lab.clone.path / "dvc.lock"
    committed = lock.read_bytes()
    with faults("kills within dvc.lock") as count:
        lock.write_text("schema: '2.0'\nstages: {}\n")
        lab.clone.run("git", "commit", "-qm", "no results yet", "dvc.lock")
        run, torn, before = lab.start(), 0, lock.stat().st_size
        while torn < update:
            assert run.process.poll() is None, run.output()
            if (size := lock.stat().st_size) < before:
                torn += 1
            before = size
        run.kill("dvc")
        count["kills within dvc.lock"] += 1
        assert repair.truncated(lock.read_bytes())
        refused = lab.clone.dvc("repro", check=False)
        assert "'./dvc.lock' " in refused
        assert "Traceback" not in refused
        assert [line.split(":")[0] for line in lab.doctor().splitlines()[:1]] == ["dvc.lock"]
        output = lab.clone.run(*lab.REPAIR)
        assert "dvc.lock was truncated by a kill: moved to runs/dvc.lock.torn, and replaced by HEAD's" in output
        assert lab.clone.repro() == []  # all of it is in the run cache
        assert lock.read_bytes() == committed
        lab.clone.run("git", "reset", "-q", "--hard", "HEAD~1")
        assert lab.digest() == lab.digests
