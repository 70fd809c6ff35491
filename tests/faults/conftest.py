"""The undisturbed run that every faulted one is compared with."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clones import SHORT, Clone, copy_of_the_work_tree
from tests.faults.lab import STAGES, Lab

ENOUGH_STEPS = ("train.batch_size=256", "machine.checkpoint_every_seconds=0.1")  # to be killed among them


@pytest.fixture(scope="session")
def mirror(pipeline: Clone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that is a mirror of MNIST."""
    return Path(shutil.copytree(pipeline.path / "data/raw", tmp_path_factory.mktemp("mirror") / "mnist"))


@pytest.fixture(scope="session")
def undisturbed(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A clone after an undisturbed `dvc repro` on real MNIST, committed; its digests, and the seconds of each stage."""
    clone = copy_of_the_work_tree(tmp_path_factory.mktemp("faults") / "clone")
    for setting in (*SHORT, *ENOUGH_STEPS, f"data.mirrors=[{mirror}]"):
        clone.set(*setting.split("=", 1))
    lab = Lab(clone)
    run = lab.start()
    began: dict[str, float] = {}
    while (line := run.line(None)) is not None:
        if stage := run.stage_of(line):
            began[stage] = time.monotonic()
    assert run.process.wait() == 0, run.told()
    assert tuple(began) == STAGES
    ends = [*list(began.values())[1:], time.monotonic()]
    lab.seconds = {stage: end - start for (stage, start), end in zip(began.items(), ends, strict=True)}
    lab.digests = lab.digest()
    clone.commit("undisturbed")
    return lab


@pytest.fixture
def lab(undisturbed: Lab) -> Iterator[Lab]:
    """The clone with everything up to date, put back after the test; no process of the test is left."""
    yield undisturbed
    undisturbed.end_all()
    undisturbed.clone.run("git", "checkout", "-qf", "main")
    undisturbed.clone.run(*undisturbed.MEND)
    undisturbed.clone.dvc("repro")
    assert undisturbed.digest() == undisturbed.digests
