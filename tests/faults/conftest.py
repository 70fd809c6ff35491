"""The undisturbed run that every disturbed one is compared with."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clones import Clone
from tests.faults.lab import Lab


@pytest.fixture(scope="session")
def undisturbed(short_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The clone of the short run, with a folder as the mirror of MNIST, committed, and the digests of its results."""
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
    """The clone with everything up to date. After the test, its processes are ended and the clone is restored."""
    yield undisturbed
    undisturbed.end_all()
    undisturbed.clone.run("git", "checkout", "-qf", "main")
    undisturbed.clone.run(*undisturbed.REPAIR)
    undisturbed.clone.dvc("repro")
    assert undisturbed.digest() == undisturbed.digests
