"""The undisturbed run that every faulted one is compared with."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clones import Clone
from tests.faults.lab import Lab


@pytest.fixture(scope="session")
def undisturbed(short_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The clone of the short run with a directory as mirror of MNIST, committed; its digests."""
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(short_run, folder, symlinks=True, dirs_exist_ok=True)
    clone, mirror = Clone(folder / "clone"), folder / "mirror"
    shutil.copytree(clone.path / "data/raw", mirror)
    clone.set("data.mirrors", f"[{mirror}]")
    clone.set("machine.checkpoint_every_seconds", "0.1")
    assert clone.repro() == ["download"]
    clone.commit("undisturbed")
    lab = Lab(clone)
    lab.digests = lab.digest()
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
