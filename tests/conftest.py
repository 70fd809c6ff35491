"""Shared fixtures, and the order of the tests."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from filelock import FileLock

from tests.clones import SHORT, Clone, copy_of_the_work_tree
from tests.faults import ledger

hypothesis.settings.register_profile("any machine", deadline=None)  # a slow machine must not fail
hypothesis.settings.load_profile("any machine")


def pytest_configure() -> None:
    """Let Ctrl-C reach the programs under test, even if a shell script started pytest with `&`, which ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# The files that take longest come first: one that came last would leave the other worker idle. Every second one needs
# the short run, so that one worker makes it while the other has something else to do.
LONGEST = (
    *("test_doctor", "test_processes", "test_pipeline", "test_resume", "test_remotes", "test_hosts", "test_verify"),
    *("test_pull_request", "test_kills", "test_seeds", "test_experiments", "test_world", "test_own_images"),
    *("test_venv", "test_temporary_experiments", "test_compare", "test_torchvision"),
)
COLLECTED = pytest.StashKey[list[str]]()  # the names of all tests, before `-m` deselects any


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that take longest; within a file, the order remains."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    config.stash[COLLECTED] = [item.nodeid for item in items]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker of pytest-xdist, send the counts of faults to the main process."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = ledger.state()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the counts of a worker; one that crashed sends none."""
    ledger.add(getattr(node, "workeroutput", {}).get("faults", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts of faults, also with -q."""
    if line := ledger.line():
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clone after its first `dvc repro`, committed, and its remote; all workers copy it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "short-run"
    with FileLock(shared / "short-run.lock"):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            clone = copy_of_the_work_tree(folder / "clone")
            for setting in SHORT:
                clone.set(*setting.split("=", 1))
            assert sorted(clone.repro()) == ["download", "evaluate", "preprocess", "train", "weights"]
            clone.commit("short run")
            clone.dvc("push", "--run-cache")
            (folder / "complete").touch()
    return folder


@pytest.fixture(scope="session")
def pipeline(short_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """This worker's copy of the clone, with its remote."""
    folder = tmp_path_factory.mktemp("pipeline")
    shutil.copytree(short_run, folder, symlinks=True, dirs_exist_ok=True)
    return Clone(folder / "clone")


@pytest.fixture
def clone(pipeline: Clone) -> Iterator[Clone]:
    """The clone, up to date. Parameters, results and the branch main are restored after the test."""
    commit = pipeline.run("git", "rev-parse", "main").strip()
    yield pipeline
    pipeline.run("git", "checkout", "-qfB", "main", commit)
    pipeline.run("git", "reset", "-q", "--hard")
    pipeline.run("git", "clean", "-qfd")
    pipeline.dvc("checkout", "--force")
