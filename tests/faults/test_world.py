"""Faults of the machine: each ends in one clear line, a nonzero exit status, and intact earlier results.

Once the cause is gone, the next `dvc repro` produces the bytes of an undisturbed run.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clones import Clone
from tests.faults import mounts
from tests.faults.lab import PROC, STAGES, Lab
from tests.faults.ledger import faults
from tests.forging import cached, flip

MOUNTS = mounts.possible()
GENEROUS = 500_000_000  # bytes
LIVE = ("metrics/train.json", "metrics/plots/training.csv")  # a failed run leaves those of its epochs
# The free bytes of the disk for each stage: too few, since they write 55 MB, 55 MB, 0.2 MB and 1.1 MB.
FREE = {"download": 20_000_000, "preprocess": 20_000_000, "train": 100_000, "evaluate": 300_000}


@contextmanager
def full_disk(folder: Path, lab: Lab) -> Iterator[Callable[[int], None]]:
    """Give `folder` a disk of its own; yields a function that sets its free bytes.

    Where mounting is not allowed, as in most containers, the function limits the size of each file that a run writes.
    """
    if MOUNTS:
        with mounts.small_disk(folder) as leave_free:
            yield leave_free
        return

    def limit_files(size: int) -> None:
        lab.limit_bytes = size

    try:
        yield limit_files
    finally:
        lab.limit_bytes = None


@pytest.mark.soak
def test_a_full_disk_in_each_stage(lab: Lab) -> None:
    where, words = lab.clone.path / "data", "No space left on device" if MOUNTS else "File too large"
    with faults("full disks") as count, full_disk(where, lab) as leave_free:
        lab.forget()
        for stage in STAGES:
            leave_free(FREE[stage])
            run = lab.start()
            assert run.wait() != 0
            count["full disks"] += 1
            output = run.output()
            assert re.findall(r"Running stage '(\w+)'", output)[-1] == stage
            assert re.search(rf"^error: data/\S+: {words}$|^error: {words}$", output, re.M), output
            assert "Traceback" not in output
            # No file is half-written, and the results of earlier stages are intact.
            assert not list(where.rglob(".*.tmp"))
            assert lab.locked() == list(STAGES[: STAGES.index(stage)])
            other = {"dvc.lock", *LIVE} if stage == "train" else {"dvc.lock"}
            digests = {name: sha256 for name, sha256 in lab.digest().items() if name not in other}
            assert digests.items() <= lab.digests.items()
            leave_free(GENEROUS)
            lab.clone.dvc("repro", stage)
        assert lab.digest() == lab.digests


@pytest.mark.soak
@pytest.mark.parametrize(("free", "what"), [(0, "dvc.lock"), (0, "a stage"), (200_000, "a stage")])
def test_a_full_disk_for_the_whole_clone(free: int, what: str, lab: Lab, tmp_path: Path) -> None:
    # The disk holds the work tree, DVC's cache and state, and dvc.lock.
    shutil.copytree(lab.clone.path, tmp_path / "disk/clone", symlinks=True)
    other = Lab(Clone(tmp_path / "disk/clone"))
    with faults("full disks") as count, full_disk(tmp_path / "disk", other) as leave_free:
        if what == "dvc.lock":  # the stages come from the run cache, so dvc only writes dvc.lock
            (other.clone.path / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
        else:
            other.clone.set("evaluate.calibration_bins", "7")
        leave_free(free)
        run = other.start()
        assert run.wait() != 0
        count["full disks"] += 1
        assert "Traceback" not in run.output()
        assert re.search(r"(?i)no space left|disk is full|disk I/O error|file too large", run.output()), run.output()
        leave_free(GENEROUS)
        other.clone.run(*other.REPAIR)
        other.clone.dvc("repro")
        if what == "a stage":
            assert other.digest() != lab.digests
            other.clone.set("evaluate.calibration_bins", "15")
            other.clone.dvc("repro")
        assert other.digest() == lab.digests
        assert "nothing to fix" in other.doctor()


@pytest.mark.soak
def test_a_read_only_data_directory(lab: Lab) -> None:
    lab.clone.set("evaluate.calibration_bins", "7")
    with faults("read-only directories") as count:
        with read_only(lab.clone.path / "data") as bound:
            for module, words in (("dvc", ["repro"]), ("stages.download", []), ("stages.preprocess", [])):
                done = subprocess.run(
                    [*bound, sys.executable, "-m", module, *words],
                    cwd=lab.clone.path,
                    env=lab.clone.environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                count["read-only directories"] += 1
                assert done.returncode not in (0, None)
                output = done.stdout + done.stderr
                assert re.search(r"(?i)^error: .*(Read-only file system|Permission denied)", output, re.M), output
                assert "Traceback" not in output
                assert module == "dvc" or len(done.stderr.splitlines()) == 1
            shutil.rmtree(lab.clone.path / "runs")
        assert lab.digest() == lab.digests
        lab.clone.set("evaluate.calibration_bins", "15")
        assert lab.clone.repro() == []
        assert lab.digest() == lab.digests


@contextmanager
def read_only(folder: Path) -> Iterator[list[str]]:
    """A block in which `folder` is read-only for commands with the yielded prefix."""
    if MOUNTS:
        with mounts.read_only(folder):
            yield []
        return
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:  # root obeys permissions after it has given up the right to override them
        yield ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    finally:
        for path in folders:
            path.chmod(0o755)


@pytest.mark.soak
def test_two_repros_at_once(lab: Lab) -> None:
    # Up to date only before train: neither dvc.lock nor the run cache has the rest.
    lock = lab.clone.path / "dvc.lock"
    content = lock.read_text(encoding="utf-8")
    lock.write_text(content[: content.index("\n  train:\n") + 1], encoding="utf-8")
    assert lab.locked() == ["download", "preprocess"]
    shutil.rmtree(lab.clone.path / ".dvc/cache/runs")
    with faults("second dvc repro at once") as count:
        both = [lab.start(), lab.start()]
        statuses = [run.wait() for run in both]
        count["second dvc repro at once"] += 1
        assert 0 in statuses
        for run, status in zip(both, statuses, strict=True):
            assert "Traceback" not in run.output()
            assert not status or re.search(r"^ERROR: .*(busy|Unable to acquire lock)", run.output(), re.M), run.output()
        lab.clone.run(*lab.REPAIR)
        lab.clone.dvc("repro")
        assert lab.digest() == lab.digests


def test_a_torn_dvc_lock(lab: Lab) -> None:
    lock = lab.clone.path / "dvc.lock"
    content = lock.read_bytes()
    with faults("torn dvc.lock") as count:
        for size in (0, 9, content.index(b"\n  preprocess:") + 17, content.index(b"\n  train:") + 6):
            lock.write_bytes(content[:size])
            count["torn dvc.lock"] += 1
            output = lab.clone.dvc("repro", check=False)
            assert "'./dvc.lock' " in output, output
            assert "Traceback" not in output
            assert "dvc.lock was truncated by a kill" in lab.clone.run(*lab.REPAIR)
            assert lock.read_bytes() == content
        # Truncated between two lines, it can be a valid one that records less.
        lock.write_bytes(content[: content.index(b"    outs:\n")])
        count["torn dvc.lock"] += 1
        assert lab.clone.run(*lab.REPAIR) == ""
        lab.clone.dvc("repro")
        assert lab.digest() == lab.digests


def test_repair_leaves_a_merge_conflict_in_dvc_lock(lab: Lab) -> None:
    lock = lab.clone.path / "dvc.lock"
    conflict = b"<<<<<<< HEAD\n" + lock.read_bytes() + b"=======\n>>>>>>> other\n"
    lock.write_bytes(conflict)
    assert lab.clone.run(*lab.REPAIR) == ""
    assert lock.read_bytes() == conflict


def strange(lab: Lab) -> str:
    """A lock of process 1, which is another program now, as in a container after a kill and a restart."""
    path = str(lab.clone.path / "data/model/model.safetensors")
    return json.dumps({"write": {path: {"pid": 1, "cmd": "dvc repro"}}, "read": {}})


@pytest.mark.skipif(not PROC, reason="/proc lists which program a process runs")
def test_stale_locks_are_removed(lab: Lab) -> None:
    rwlock = lab.clone.path / ".dvc/tmp/rwlock"
    lab.clone.set("train.seed", "1")  # so that train has to write the model
    with faults("locks left behind") as count:
        for content, expected in (
            (strange(lab), "removed .dvc/tmp/rwlock: left by a dvc that has ended (process 1)"),
            ('{"write": {"/a', "removed .dvc/tmp/rwlock: truncated by a kill"),
        ):
            rwlock.write_text(content)
            count["locks left behind"] += 1
            output = lab.clone.dvc("repro", check=False)
            assert re.search(r"^ERROR: failed to reproduce .*(busy|Unable to read RWLock-file)", output, re.M), output
            assert expected in lab.clone.run(*lab.REPAIR)
        lab.clone.set("train.seed", "0")
        assert lab.clone.repro() == []
        assert lab.digest() == lab.digests


@pytest.mark.soak
def test_locks_of_a_running_dvc_are_kept(lab: Lab) -> None:
    rwlock = lab.clone.path / ".dvc/tmp/rwlock"
    with subprocess.Popen([sys.executable, "-c", "input()", "repro"], stdin=subprocess.PIPE) as other:
        rwlock.write_text(strange(lab).replace('"pid": 1,', f'"pid": {other.pid},'))
        assert lab.clone.run(*lab.REPAIR) == ""
        assert rwlock.exists()
        other.kill()
    assert "left by a dvc that has ended" in lab.clone.run(*lab.REPAIR)


@pytest.mark.soak
def test_a_bit_flipped_in_the_cache(lab: Lab) -> None:
    # DVC checks out damaged training images and a damaged model without an error.
    outs = ("data/raw/train-images-idx3-ubyte", "data/model/model.safetensors")
    lab.clone.dvc("push", "--run-cache")
    with faults("bits flipped") as count:
        for out in outs:
            flip(cached(lab.clone, out))
            count["bits flipped"] += 1
            (lab.clone.path / out).unlink()
        lab.clone.dvc("checkout")
        output = lab.doctor()
        for out in outs:
            assert lab.digest()[out] != lab.digests[out]
            assert (
                f"{cached(lab.clone, out).relative_to(lab.clone.path)}: damaged: its content does not match its name\n"
                in output
            )
            assert f"{out}: does not match dvc.lock" in output
        for line in output.splitlines():
            if line.startswith("    fix: "):
                lab.clone.run("sh", "-c", line.removeprefix("    fix: ").partition(", or ")[0])
        lab.clone.dvc("repro")
        assert lab.digest() == lab.digests
        assert "nothing to fix" in lab.doctor()


@pytest.mark.soak
def test_a_bit_flipped_in_the_remote(lab: Lab, tmp_path: Path) -> None:
    lab.clone.dvc("push", "--run-cache")
    out = "data/model/model.safetensors"
    colleague = Clone(tmp_path / "colleague")
    lab.clone.run("git", "clone", "-q", str(lab.clone.path), str(colleague.path))
    remote = lab.clone.path.parent / "dvc-remote"
    colleague.dvc("remote", "modify", "--local", "beside", "url", str(remote))
    place = remote / cached(lab.clone, out).relative_to(lab.clone.path / ".dvc/cache")
    good = place.read_bytes()
    flip(place)
    with faults("bits flipped") as count:
        output = colleague.dvc("pull", check=False)
        count["bits flipped"] += 1
        assert "ERROR" in output, output
        assert not (colleague.path / out).exists()
        assert not cached(colleague, out).exists()
        place.unlink()
        place.write_bytes(good)
        colleague.dvc("pull", "--run-cache")
        colleague.dvc("repro")
        assert Lab(colleague).digest() == lab.digests
