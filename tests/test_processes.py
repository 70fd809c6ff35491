"""Training in several processes: the same bytes, whichever process computes which shard."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.common import paths
from stages.common.errors import UserError
from stages.network import device
from stages.network.inference import PART, part_of
from stages.train import launch, tree
from stages.train.agent import MAX_FRUITLESS_ATTEMPTS, Attempts
from stages.train.batches import EpochBatches
from stages.train.checkpoint import LATEST
from stages.train.processes import STORE, Group, process_group
from tests.imports import ROOT
from tests.test_resume import Stage


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stage() -> Stage:
    stage = Stage()
    stage.values["train"].update(epochs=2, batch_size=250)  # nine batches, and one of 150 images in two shards
    return stage


# --- the tree


def as_text(left: str, right: str) -> str:
    return f"({left}+{right})"


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, "0"),
        (2, "(0+1)"),
        (3, "((0+1)+2)"),
        (4, "((0+1)+(2+3))"),
        (5, "(((0+1)+(2+3))+4)"),
        (7, "(((0+1)+(2+3))+((4+5)+6))"),
    ],
)
def test_the_tree_is_a_function_of_the_number_of_shards(count: int, expected: str) -> None:
    values = {(shard, shard + 1): str(shard) for shard in range(count)}
    assert tree.sum_up((0, count), values, as_text) == expected


@given(count=st.integers(1, 70), size=st.integers(1, 9))
def test_each_shard_has_one_process_and_the_sums_do_not_depend_on_the_processes(count: int, size: int) -> None:
    by_rank = [tree.shards_of(count, rank, size) for rank in range(size)]
    assert [shard for shards in by_rank for shard in shards] == list(range(count))
    assert by_rank[0]
    assert max(map(len, by_rank)) - min(map(len, by_rank)) <= 1
    values = {(shard, shard + 1): str(shard) for shard in range(count)}
    roots = [tree.roots(shards, count) for shards in by_rank]
    sums = {node: tree.sum_up(node, values, as_text) for nodes in roots for node in nodes}
    assert tree.sum_up((0, count), sums, as_text) == tree.sum_up((0, count), values, as_text)
    for shards, nodes in zip(by_rank, roots, strict=True):
        assert [shard for node in nodes for shard in range(*node)] == list(shards)
        assert len(nodes) <= max(2 * len(shards).bit_length() - 1, 0)  # each node is a message


@given(images=st.integers(2, 300), batch_size=st.integers(2, 64), shards=st.integers(1, 9), size=st.integers(1, 7))
def test_the_processes_divide_each_batch(images: int, batch_size: int, shards: int, size: int) -> None:
    batches = list(EpochBatches(images, batch_size, True, 0))
    divided = [list(EpochBatches(images, batch_size, True, 0, shards, Group(rank, size))) for rank in range(size)]
    assert [[*chain(*batch)] for batch in zip(*divided, strict=True)] == batches


@pytest.mark.parametrize("count", [0, 1, PART, PART + 1, 5 * PART + 3])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_validation_is_divided_by_whole_parts(count: int, size: int) -> None:
    images = torch.zeros(count, 1, 1, 1, dtype=torch.uint8)
    shares = [part_of(images, rank, size) for rank in range(size)]
    assert [number for share in shares for number in range(share.start, share.stop)] == list(range(count))
    assert all(share.start % PART == 0 or share.start == count for share in shares)


# --- the same bytes


def digests(combinations: str) -> dict[str, str]:
    """The SHA-256 of the results, by "PROCESSESxTHREADS"."""
    command = [sys.executable, "-m", "tests.workers", *combinations.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ended "))


def check_same(combinations: str) -> None:
    results = digests(combinations)
    assert list(results) == combinations.split()
    assert len(set(results.values())) == 1, results
    assert re.fullmatch("[0-9a-f]{64}", next(iter(results.values())))


def test_any_number_of_processes_and_threads_ends_in_the_same_bytes(stage: Stage) -> None:
    stage.values["models"]["cnn"]["dropout"] = 0.3
    stage.values["train"].update(epochs=1, shards=7)  # three processes have several nodes of the tree each
    stage.write_params()
    check_same("1x2 2x1 3x2 8x1")  # the eighth process never has a shard


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "the default": lambda values: None,
    "seven shards": lambda values: values["train"].update(shards=7, batch_size=64),
    "fewer shards than processes": lambda values: values["train"].update(shards=2),
    "one shard": lambda values: values["train"].update(shards=1),
    "one shard in the last batch": lambda values: values["train"].update(batch_size=2300),
    # Process 2 of 5 computes 1 shard of 8, and 2 of the 7 of the last batch.
    "more shards in the last batch": lambda values: values["train"].update(epochs=1, shards=8, batch_size=344),
    "loader workers": lambda values: values["machine"].update(num_workers=1),
    "early stopping": lambda values: values["train"].update(early_stopping_patience_epochs=1, epochs=20),
    "clipped gradients": lambda values: values["train"].update(clip_norm=0.05),
    "balanced accuracy": lambda values: values["train"].update(select_by="balanced_accuracy"),
    "sgd": lambda values: values["train"].update(optimizer="sgd"),
    "rmsprop": lambda values: values["train"].update(optimizer="rmsprop"),
    "bfloat16": lambda values: values["train"].update(precision="bfloat16"),
    "no validation": lambda values: None,
    "stochastic depth": lambda values: (
        values["model"].update(name="torchvision"),
        values["models"]["torchvision"].update(architecture="efficientnet_b0", dropout=0.2),
        values["train"].update(epochs=1, batch_size=800),
    ),
}


BY_DAY = ("clipped gradients",)  # the default is in `make test`, the others wait for the night


@pytest.mark.parametrize(
    "change",
    [pytest.param(name, marks=pytest.mark.soak if name in BY_DAY else pytest.mark.night) for name in CHANGES],
)
def test_the_same_bytes_with_every_kind_of_recipe(change: str, stage: Stage) -> None:
    CHANGES[change](stage.values)
    if change == "no validation":
        stage.values["preprocess"]["validation_fraction"] = 0
    stage.write_params()
    check_same("1x3 2x1 5x1")


def test_mps_cannot_exchange_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORE, "127.0.0.1:1")
    with pytest.raises(UserError, match=r"^params.yaml: the device is mps, which trains in one process"):
        process_group(torch.device("mps"), 1).__enter__()


# --- the launcher, with real processes


@pytest.fixture
def small_steps(stage: Stage) -> Stage:
    """A run of 150 steps, which soon prints the first lines of its log."""
    stage.values["train"].update(epochs=1, batch_size=16)
    stage.values["machine"]["log_every_steps"] = 20
    return stage


@pytest.mark.soak
def test_a_killed_worker_changes_no_bit(small_steps: Stage) -> None:
    small_steps.run()
    alone = small_steps.digests()
    process = small_steps.start(MACHINE_PROCESSES="2")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]  # the device, and the first steps
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    output = "".join(lines) + process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert "device: cpu, 2 processes of " in output
    assert "a process of training has ended (SIGKILL): resuming from the last checkpoint\n" in output
    assert "resuming after step " in output
    assert output.count("best epoch ") == 1
    assert small_steps.digests() == alone
    assert not paths.RESUME.exists()


@pytest.mark.parametrize(
    ("signum", "status"),
    [
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.soak),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.night),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.night),
    ],
)
def test_all_processes_end_after_a_signal_and_another_number_of_processes_resumes(
    signum: int, status: int, small_steps: Stage
) -> None:
    small_steps.values["machine"]["checkpoint_every_seconds"] = 1000  # only one, at the end
    small_steps.run()
    alone = small_steps.digests()
    process = small_steps.start(MACHINE_PROCESSES="2")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    started = workers(process.pid)
    process.send_signal(signum)
    output = "".join(lines) + process.communicate(timeout=300)[0]  # also waits for the workers, which have the pipe
    assert process.returncode == status, output
    assert output.count("interrupted: `dvc repro` resumes after step ") == 1
    assert "Traceback" not in output
    assert not any(map(runs, started))
    assert "resuming after step " in small_steps.run(MACHINE_PROCESSES="3")
    assert small_steps.digests() == alone


@pytest.mark.night
@pytest.mark.parametrize("number", [0, 1])
def test_a_worker_that_hangs_is_noticed(number: int, small_steps: Stage) -> None:
    # Longer than the start of one process takes more than that of another on a busy machine.
    small_steps.values["machine"]["timeout_seconds"] = 20
    process = small_steps.start(MACHINE_PROCESSES="2")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    os.kill(workers(process.pid)[number], signal.SIGSTOP)
    output = "".join(lines) + process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert "resuming from the last checkpoint\n" in output
    assert output.count("best epoch ") == 1


def test_an_error_in_all_processes_is_one_line(small_steps: Stage) -> None:
    small_steps.values["train"].update(optimizer="sgd")
    small_steps.values["optimizers"]["sgd"].update(lr=1000.0, momentum=0.9)
    process = small_steps.start(MACHINE_PROCESSES="3")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 2
    errors = [line for line in output.splitlines() if not line.startswith(("device:", "epoch "))]
    assert len(errors) == 1, output
    assert errors[0].startswith("error: the training loss is ")


def workers(launcher: int) -> list[int]:
    """The process numbers of a launcher's workers, by rank."""
    children = [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if parent_and_state(folder)[0] == launcher]
    ranks = {child: environment(child)["RANK"] for child in children}
    return sorted(ranks, key=ranks.__getitem__)


def parent_and_state(folder: Path) -> tuple[int, str]:
    try:
        state, parent = (folder / "stat").read_text(errors="replace").rpartition(") ")[2].split()[:2]
    except (OSError, ValueError):
        return 0, "Z"
    return int(parent), state


def environment(process: int) -> dict[str, str]:
    text = Path(f"/proc/{process}/environ").read_text(errors="replace")
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def runs(process: int) -> bool:
    return parent_and_state(Path(f"/proc/{process}"))[1] != "Z"


# --- decisions


def test_warnings_about_the_number_of_processes(capsys: pytest.CaptureFixture[str]) -> None:
    launch.warn(shards=4, processes=5, cores=8, device="cpu")
    launch.warn(shards=1, processes=2, cores=8, device="auto")
    launch.warn(shards=4, processes=4, cores=2, device="cpu")
    launch.warn(shards=4, processes=4, cores=2, device="cuda")
    launch.warn(shards=4, processes=2, cores=2, device="cpu")
    assert capsys.readouterr().out.splitlines() == [
        "warning: machine.processes is 5, and a batch has 4 parts (train.shards): only 4 processes can work",
        "warning: machine.processes is 2, and a batch has 1 part (train.shards): only 1 process can work",
        "warning: machine.processes is 4, and this machine has 2 cores",
    ]


@pytest.mark.parametrize(
    ("threads", "processes", "cores", "expected"), [(0, 1, 8, 8), (0, 3, 8, 2), (0, 9, 8, 1), (3, 2, 8, 3)]
)
def test_the_cores_are_divided_among_the_processes(threads: int, processes: int, cores: int, expected: int) -> None:
    assert device.threads_of(threads, processes, cores) == expected


def test_each_process_has_its_own_gpu() -> None:
    assert [device.gpu_of(process, 2, 2) for process in range(2)] == [0, 1]
    with pytest.raises(
        UserError, match="machine.processes is 3, and this machine has 2 GPUs for one process each; set 2"
    ):
        device.gpu_of(0, 3, 2)


def test_attempts_without_a_new_checkpoint_end() -> None:
    latest = paths.RESUME / "a" / LATEST
    latest.parent.mkdir(parents=True)
    attempts = Attempts()
    ends = [attempts.give_up() for _ in range(MAX_FRUITLESS_ATTEMPTS - 1)]
    latest.touch()
    ends += [attempts.give_up() for _ in range(MAX_FRUITLESS_ATTEMPTS)]
    assert not any(ends)
    assert attempts.give_up()
