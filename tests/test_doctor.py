"""The doctor finds real damage in a real pipeline, and what it says mends it does."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.clones import Clone


def doctor(clone: Clone) -> tuple[int, str]:
    """Its exit status, and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "stages.doctor"],
        cwd=clone.path,
        env=clone.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def flip(path: Path) -> None:
    """Flip a bit as a failing disk does: the size and the time stay."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cached(clone: Clone, out: str) -> Path:
    """The object of an output in the clone's cache."""
    stages = yaml.safe_load((clone.path / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    digest = next(entry["md5"] for stage in stages.values() for entry in stage["outs"] if entry["path"] == out)
    return Path(clone.path, ".dvc/cache/files/md5", digest[:2], digest[2:])


def in_both(clone: Clone) -> None:
    flip(cached(clone, "data/predictions.csv"))
    flip(clone.path / "data/predictions.csv")


def in_a_folder(clone: Clone) -> None:
    flip(clone.path / "data/raw/t10k-labels-idx1-ubyte")


def torn_lock(clone: Clone) -> None:
    content = (clone.path / "dvc.lock").read_bytes()
    (clone.path / "dvc.lock").write_bytes(content[: content.rindex(b"md5: ") + 2])


def torn_lock_that_can_be_read(clone: Clone) -> None:
    content = (clone.path / "dvc.lock").read_bytes()
    (clone.path / "dvc.lock").write_bytes(content[: content.index(b"  evaluate:")])


def leftovers(clone: Clone) -> None:
    (clone.path / "data/model/.model.safetensors.abc.tmp").write_bytes(b"half")
    (clone.path / "runs/resume/a").mkdir(parents=True, exist_ok=True)
    (clone.path / "runs/resume/a/latest.unreadable").write_bytes(b"half")
    (clone.path / ".dvc/tmp/rwlock").write_text('{"a', encoding="utf-8")
    (clone.path / ".dvc/cache/runs/ab/abcd").mkdir(parents=True)
    (clone.path / ".dvc/cache/runs/ab/abcd/.x.tmp").write_bytes(b"")


DAMAGE: dict[str, tuple[Callable[[Clone], object], list[str]]] = {
    "a bit in the cache": (
        lambda clone: flip(cached(clone, "data/model/model.safetensors")),
        [": not the bytes of its name\n    mend: rm -f .dvc/cache/files/md5/"],
    ),
    "a bit in the cache and in the work tree": (
        in_both,
        [": not the bytes of its name\n", "data/predictions.csv: not the bytes that dvc.lock names"],
    ),
    "a bit in the list of a folder": (
        lambda clone: flip(cached(clone, "data/raw")),
        [".dir: not the bytes of its name\n"],
    ),
    "a bit in a file of a folder": (in_a_folder, ["data/raw: not the bytes that dvc.lock names"]),
    "a metric changed by hand": (
        lambda clone: (clone.path / "metrics/evaluate.json").write_text("{}", encoding="utf-8"),
        ["metrics/evaluate.json: not the bytes", "mend: git checkout HEAD -- metrics/evaluate.json"],
    ),
    "an output gone": (
        lambda clone: (clone.path / "data/model/model.safetensors").unlink(),
        ["data/model/model.safetensors: missing"],
    ),
    "a torn dvc.lock": (torn_lock, ["dvc.lock: ", "mend: git checkout HEAD -- dvc.lock"]),
    "a torn dvc.lock that can be read": (
        torn_lock_that_can_be_read,
        ["dvc.lock: lacks ", ": cut off, or never run", "mend: git checkout HEAD -- dvc.lock, or dvc repro"],
    ),
    "leftovers": (
        leftovers,
        [
            ".model.safetensors.abc.tmp: a file",
            "latest.unreadable: a checkpoint",
            ".dvc/tmp/rwlock: cut off",
            ".dvc/cache/runs/ab/abcd/.x.tmp: an entry",
            ".dvc/cache/runs/ab/abcd: an entry",
        ],
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_it_finds_its_mend_mends(clone: Clone, damage: str) -> None:
    inflict, expected = DAMAGE[damage]
    assert doctor(clone)[0] == 0
    inflict(clone)
    status, told = doctor(clone)
    assert status == 1
    for part in expected:
        assert part in told
    for line in told.splitlines():
        if line.startswith("    mend: "):
            clone.run("sh", "-c", line.removeprefix("    mend: ").partition(", or ")[0])
    status, told = doctor(clone)
    assert status == 0, told
    assert clone.repro() == []
    assert clone.run("git", "status", "--short") == ""


def test_outside_a_repository(clone: Clone, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages.doctor"],
        cwd=tmp_path,
        env={**clone.environment, "PYTHONPATH": str(clone.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no commit of a DVC repository to read here")
    assert len(done.stderr.splitlines()) == 1
