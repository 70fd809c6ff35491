"""Faults of the world around a run: each ends in a line and a status that is not 0, harms nothing, and passes."""

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clones import Clone
from tests.faults.conftest import TALLY, assert_sound, digests, objects
from tests.faults.test_kill import STAGES
from tests.test_doctor import cached, flip

OUTS = {
    "download": "data/raw",
    "preprocess": "data/processed",
    "train": "data/model",
    "evaluate": "data/predictions.csv",
}


def mount(*arguments: str) -> None:
    """Real file systems need root, as CI is; a person's own run says what it skips."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")


def failing(clone: Clone, *arguments: str) -> str:
    """Run a dvc command that must fail; returns what it says, which is no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=clone.path,
        env=clone.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def small(victim: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A copy of the pipeline, cache and all, on a small disk of its own."""
    place = tmp_path_factory.mktemp("small")
    mount("-t", "tmpfs", "-o", "size=400m", "tmpfs", str(place))
    try:
        shutil.copytree(victim.path, place / "clone", symlinks=True)
        clone = Clone(place / "clone")
        # What is not of the checkout, DVC's state and Python's bytecode, is on another disk.
        clone.environment |= {"DVC_SITE_CACHE_DIR": f"{place}-site", "PYTHONDONTWRITEBYTECODE": "1"}
        assert clone.repro() == []
        yield clone
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def full(disk: Path, spare: int) -> Iterator[None]:
    """Fill a disk but for `spare` bytes."""
    filler = disk / "filler"
    try:
        with filler.open("wb") as file:
            free = shutil.disk_usage(disk).free - spare
            for _ in range(free // 2**16):
                file.write(bytes(2**16))
        yield
    finally:
        filler.unlink()


@pytest.mark.parametrize("stage", STAGES)
def test_the_disk_is_full(stage: str, small: Clone, intact: dict[str, str]) -> None:
    with TALLY.fault("full disks"):
        kept = objects(small.path)
        out = small.path / OUTS[stage]
        shutil.rmtree(out) if out.is_dir() else out.unlink()
        with full(small.path.parent, spare=300_000):
            told = failing(small, "repro", "--force", "--single-item", stage)
        assert "No space left on device" in told
        assert [line for line in told.splitlines() if line.startswith("error: ")], told
        assert f"failed to reproduce '{stage}'" in told
        assert {name: objects(small.path).get(name) for name in kept} == kept
        small.dvc("repro")
        assert digests(small.path) == intact


def test_the_data_folder_is_read_only(small: Clone, intact: dict[str, str]) -> None:
    with TALLY.fault("read-only folders"):
        data = str(small.path / "data")
        mount("--bind", data, data)
        try:
            mount("-o", "remount,ro,bind", data)
            told = failing(small, "repro", "--force", "--single-item", "train")
        finally:
            subprocess.run(["umount", data], check=True)
        assert "Read-only file system" in told
        small.dvc("repro")
        assert digests(small.path) == intact


def test_two_at_once(victim: Clone, intact: dict[str, str]) -> None:
    with TALLY.fault("second runs"):
        both = [
            subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro", "--force", "evaluate"],
                cwd=victim.path,
                env=victim.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(2)
        ]
        told = [process.communicate(timeout=300)[0] for process in both]
        for process, text in zip(both, told, strict=True):
            if process.returncode:  # DVC's lock is a matter of milliseconds: it may have let both through, in turn
                assert "another DVC process" in text or "is busy, it is being blocked by" in text, text
        assert 0 in [process.returncode for process in both], told
        victim.dvc("repro")
        assert digests(victim.path) == intact
        assert_sound(victim.path)


@pytest.mark.parametrize("story", range(4))
def test_a_torn_lock_file(story: int, victim: Clone, intact: dict[str, str]) -> None:
    with TALLY.fault("torn dvc.lock"):
        lock = victim.path / "dvc.lock"
        content = lock.read_bytes()
        lock.write_bytes(content[: random.Random(story).randrange(len(content))])
        told = victim.dvc("repro", check=False)
        assert "Traceback" not in told
        if "ERROR" in told:  # else what is left is a lock file of fewer stages, and the run cache has the others
            assert "'dvc.lock'" in told
            told = victim.run(sys.executable, "-m", "stages.doctor", check=False)
            assert "mend: git checkout HEAD -- dvc.lock" in told
            victim.run("git", "checkout", "HEAD", "--", "dvc.lock")
            assert victim.repro() == []
        assert digests(victim.path) == intact


@pytest.mark.parametrize("out", ["data/processed/train.safetensors", "data/model/model.safetensors"])
def test_a_flipped_bit_in_the_cache_reaches_nobody(out: str, victim: Clone, intact: dict[str, str]) -> None:
    with TALLY.fault("flipped bits in the cache"):
        flip(cached(victim, out))
        (victim.path / out).unlink()
        assert "not the bytes of its name" in victim.run(sys.executable, "-m", "stages.doctor", check=False)
        victim.dvc("repro")
        for line in victim.run(sys.executable, "-m", "stages.doctor", check=False).splitlines():
            if line.startswith("    mend: "):
                victim.run("sh", "-c", line.removeprefix("    mend: ").partition(", or ")[0])
        victim.dvc("repro")
        assert digests(victim.path) == intact
        assert_sound(victim.path)


def test_a_flipped_bit_in_the_remote_reaches_nobody(victim: Clone, intact: dict[str, str], tmp_path: Path) -> None:
    with TALLY.fault("flipped bits in the remote"):
        remote = victim.path.parent.parent / "dvc-remote"  # the default: beside the clone
        colleague = Clone(tmp_path / "clone")
        subprocess.run(["git", "clone", "-q", str(victim.path), str(colleague.path)], check=True)
        colleague.dvc("remote", "modify", "--local", "beside", "url", str(tmp_path / "remote"))
        victim.dvc("remote", "add", "--local", "--force", "copy", str(tmp_path / "remote"))
        victim.dvc("push", "--remote", "copy")
        assert not remote.exists()
        source = cached(victim, "data/model/model.safetensors")
        flip(tmp_path / "remote/files/md5" / source.parent.name / source.name)
        told = failing(colleague, "pull")
        assert "data/model/model.safetensors" in told
        assert_sound(colleague.path)
        assert not (colleague.path / "data/model/model.safetensors").exists()
        colleague.dvc("repro")
        assert digests(colleague.path) == intact
