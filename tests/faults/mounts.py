"""Small and read-only file systems. Mounting them takes root."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def possible() -> bool:
    """Whether this process may mount; root in a container often may not."""
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False).returncode:
            return False
        _unmount(Path(folder))
    return True


def _unmount(folder: Path) -> None:
    # --lazy, if a process that was just killed still has a file open there.
    if subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[int], None]]:
    """Move the content of `folder` to a disk of its own for the duration of the block.

    Yields a function that sets the free bytes of this disk.
    """
    before, after = folder.with_name(f"{folder.name}.before"), folder.with_name(f"{folder.name}.after")
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
        shutil.copytree(folder, after, symlinks=True)
        _unmount(folder)
        folder.rmdir()
        after.rename(folder)
        shutil.rmtree(before)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A block in which nobody, not even root, can write to `folder`."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        _unmount(folder)
