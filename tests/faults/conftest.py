"""What the fault suite shares: a pipeline to break, what it is to end in, and the count of what it survived."""

import hashlib
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clones import Clone

OUTPUTS = ["data", "metrics", "dvc.lock"]


class Tally:
    """Faults by kind, as they really happened."""

    def __init__(self) -> None:
        self.injected, self.survived = Counter[str](), Counter[str]()

    @contextmanager
    def fault(self, kind: str) -> Iterator[None]:
        """A fault is injected in the block, and survived if the block ends without an error."""
        self.injected[kind] += 1
        yield
        self.survived[kind] += 1


TALLY = Tally()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The closing count of the suite."""
    if injected := TALLY.injected.total():
        kinds = ", ".join(f"{count} {kind}" for kind, count in TALLY.injected.most_common())
        terminalreporter.write_line(f"faults: {injected} injected, {TALLY.survived.total()} survived ({kinds})")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every output in a checkout, and of dvc.lock."""
    files = [path for name in OUTPUTS for path in sorted([folder / name, *(folder / name).rglob("*")])]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file() and path.name != ".gitignore"
    }


def objects(folder: Path) -> dict[str, str]:
    """Every object of a checkout's cache: its name, and the MD5 of what it holds, which should be that name."""
    cache = folder / ".dvc/cache/files/md5"
    return {
        f"{path.parent.name}{path.name}": hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        for path in cache.rglob("*")
        if path.is_file() and not path.name.startswith(".") and "tmp" not in path.name
    }


def assert_sound(folder: Path) -> None:
    """Nothing in the cache is half written."""
    for name, digest in objects(folder).items():
        assert name.removesuffix(".dir") == digest, f"a damaged object in the cache: {name}"


@pytest.fixture(scope="session")
def victim(pipeline: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone of the short pipeline, up to date, whose data come from a folder, so that it never needs a network."""
    folder = tmp_path_factory.mktemp("victim")
    shutil.copytree(pipeline.path / "data/raw", folder / "mirror")
    clone = Clone(folder / "clone")
    subprocess.run(["git", "clone", "-q", str(pipeline.path), str(clone.path)], check=True)
    clone.set("data.mirrors", f"[{folder / 'mirror'}]")
    clone.set("train.checkpoint_every_seconds", "0.2")
    assert clone.repro() == ["download", "preprocess", "train", "evaluate"]
    clone.commit("to be broken")
    return clone


@pytest.fixture(scope="session")
def intact(victim: Clone) -> dict[str, str]:
    """What an undisturbed run ends in."""
    return digests(victim.path)
