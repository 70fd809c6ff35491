"""Programs and data of the system that a test needs, from Debian's packages."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def need(package: str, program: str) -> str:
    """The path of `program`, of Debian's `package`; installed if it is missing and this is a root with apt-get.

    Without that, the test is skipped and says what to install; in CI it fails, since a test nobody runs proves nothing.
    """
    return _needed(package, program, lambda: find(program))


def need_folder(package: str, folder: str) -> Path:
    """As `need`, for a folder of data."""
    return Path(_needed(package, folder, lambda: folder if Path(folder).is_dir() else None))


def _needed(package: str, name: str, found: Callable[[], str | None]) -> str:
    lock = Path(tempfile.gettempdir()) / f"tests-apt-{os.getuid()}.lock"
    with FileLock(lock):  # two tests, or two runs of the suite, may want it at once
        if not found() and os.getuid() == 0 and shutil.which("apt-get"):
            install(package)
    if path := found():
        return path
    message = f"needs {name}: install the package {package}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def find(program: str) -> str | None:
    """Where `program` is; servers are in folders that a person's PATH may not have."""
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin")


def install(package: str) -> None:
    """apt-get install, with lists of today: those of an image are often gone or old."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", package]):
        subprocess.run(["apt-get", "-qq", *arguments], env=environment, capture_output=True, check=False, timeout=600)
