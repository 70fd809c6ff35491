"""Small and read-only file systems, mounted for real, which root may do; another user is given what comes nearest."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def possible() -> bool:
    """Whether this process may mount: root may, unless it is a container's that was given no right to."""
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False).returncode:
            return False
        _unmount(Path(folder))
    return True


def _unmount(folder: Path) -> None:
    # Lazily where a process that was just killed still has a file open there.
    if subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[int], None]]:
    """A disk of its own at `folder`, with what stands there; what it holds in the end is there afterwards.

    Gives a function that leaves it so many bytes free.
    """
    before, kept = folder.with_name(f"{folder.name}.before"), folder.with_name(f"{folder.name}.kept")
    folder.rename(before)
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)], check=True)

    def leave_free(size: int) -> None:
        total = shutil.disk_usage(folder).used + size
        subprocess.run(["mount", "-o", f"remount,size={total}", str(folder)], check=True)

    try:
        shutil.copytree(before, folder, symlinks=True, dirs_exist_ok=True)
        yield leave_free
    finally:
        shutil.copytree(folder, kept, symlinks=True)
        _unmount(folder)
        folder.rmdir()
        kept.rename(folder)
        shutil.rmtree(before)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """`folder` cannot be written to, not by root either."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        _unmount(folder)
