"""A run that is killed, and resumed, ends in the bytes of one that was not."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from stages import data_card, packed, params, paths
from stages.checkpoint import LATEST, PREVIOUS, Checkpoints
from stages.data_card import DataCard
from stages.errors import Interrupted
from stages.optimizers import OPTIMIZERS
from tests.imports import ROOT
from tests.test_fit import same, train

STEPS = 19  # an epoch of tests.test_fit.train


def after(steps: int) -> Callable[[], int | None]:
    """A `stop` that comes with the given step, counted over all epochs of this process."""
    seen = 0

    def stop() -> int | None:
        nonlocal seen
        seen += 1
        return signal.SIGTERM if seen >= steps else None

    return stop


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_run_stopped_at_any_step_ends_in_the_same_weights(optimizer: str, model: str) -> None:
    options: dict[str, Any] = {"model": model, "optimizer": optimizer, "augmentation": "shift", "schedule": "one_cycle"}
    whole, history, _ = train(**options)
    for stops in ((1,), (STEPS,), (STEPS + 1,), (3 * STEPS,), (5, 9, 20, 1)):
        for steps in stops:
            with pytest.raises(Interrupted, match="`dvc repro` resumes after step"):
                train(**options, checkpoints=Checkpoints("a", 1e9), stop=after(steps))
        resumed, resumed_history, _ = train(**options, checkpoints=Checkpoints("a", 1e9))
        assert same(resumed, whole)
        assert resumed_history == history
        Checkpoints("a", 1e9).delete()


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.3, "epochs": 50, "patience": 2},  # early stopping goes by epochs before the stop
        {"validation": 0},
        {"model": "cnn", "precision": "bfloat16"},
        {"model": "cnn", "num_workers": 2},
    ],
)
def test_what_else_a_run_remembers(options: dict[str, Any]) -> None:
    whole, history, _ = train(**options)
    with pytest.raises(Interrupted):
        train(**options, checkpoints=Checkpoints("a", 1e9), stop=after(2 * STEPS + 3))
    resumed, resumed_history, _ = train(**options, checkpoints=Checkpoints("a", 1e9))
    assert same(resumed, whole)
    assert resumed_history == history


def test_it_may_be_resumed_on_another_number_of_threads() -> None:
    whole, history, _ = train("cnn", augmentation="affine", shards=4)
    with pytest.raises(Interrupted):
        train("cnn", augmentation="affine", shards=4, threads=3, checkpoints=Checkpoints("a", 1e9), stop=after(30))
    resumed = train("cnn", augmentation="affine", shards=4, threads=2, checkpoints=Checkpoints("a", 1e9))
    assert same(resumed[0], whole)
    assert resumed[1] == history


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif how == "a bit flipped":
        content[-100] ^= 4
    elif how == "a bit flipped in the header":
        content[content.index(b'"epoch\\": ') + 11] ^= 1
    elif how == "a pickle":
        content = bytearray(b"\x80\x05cposix\nsystem\n(X\x07\x00\x00\x00touch xtR.")
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["truncated", "empty", "a bit flipped", "a bit flipped in the header", "a pickle"])
def test_a_spoilt_checkpoint_is_set_aside_and_the_one_before_is_used(
    how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train("cnn")[0]
    with pytest.raises(Interrupted):  # a checkpoint every step: the last two are kept
        train("cnn", checkpoints=Checkpoints("a", 0), stop=after(30))
    folder = paths.RESUME / "a"
    assert sorted(path.name for path in folder.iterdir()) == [LATEST, PREVIOUS]
    spoil(folder / LATEST, how)
    capsys.readouterr()
    assert same(train("cnn", checkpoints=Checkpoints("a", 1e9))[0], whole)
    log = capsys.readouterr().out
    assert log.startswith("set a checkpoint aside that cannot be resumed from, as runs/resume/a/latest.unreadable: ")
    assert log.splitlines()[1] == "resuming after step 9/19 of epoch 2"
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]  # nothing was run
    # Both spoilt: from the start.
    with pytest.raises(Interrupted):
        train("cnn", checkpoints=Checkpoints("a", 0), stop=after(3))
    for name in (LATEST, PREVIOUS):
        spoil(folder / name, how)
    assert same(train("cnn", checkpoints=Checkpoints("a", 1e9))[0], whole)
    assert "resuming" not in capsys.readouterr().out.split("set a checkpoint aside")[-1]


def test_a_checkpoint_of_another_run_is_not_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Interrupted):
        train(checkpoints=Checkpoints("a", 1e9), stop=after(30))
    shutil.copytree(paths.RESUME / "a", paths.RESUME / "b")
    capsys.readouterr()
    train(checkpoints=Checkpoints("b", 1e9))
    assert "latest.unreadable: it is of another run" in capsys.readouterr().out


# --- the stage as a process, killed for real


class Stage:
    """A folder with a prepared data set and params.yaml, in which the train stage runs as a process of its own."""

    OUTPUTS = (paths.MODEL, paths.TRAIN_METRICS, paths.TRAINING_CURVES)

    def __init__(self) -> None:
        random_images = np.random.default_rng(0)
        labels = np.arange(3000, dtype=np.int64) % 3
        images = random_images.integers(0, 120, (3000, 1, 12, 12), dtype=np.uint8)
        images[np.arange(3000), 0, 4 * labels + 1] += 60
        packed.write(paths.TRAIN, images[:2400], labels[:2400])
        packed.write(paths.VALIDATION, images[2400:], labels[2400:])
        card = DataCard(classes=["a", "b", "c"], image_shape=[1, 12, 12], mean=[0.25], std=[0.15])
        data_card.write(paths.DATA_CARD, card)
        self.values = params.load(ROOT / "params.yaml")
        self.values["models"]["cnn"].update(
            channels=[8, 8], kernel_sizes=[3, 3], paddings=[1, 1], pool_sizes=[2, 2], hidden=16
        )
        self.values["train"].update(epochs=3, batch_size=16, checkpoint_every_seconds=0.05)

    def start(self) -> subprocess.Popen[str]:
        Path("params.yaml").write_text(yaml.safe_dump(self.values), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-m", "stages.train"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self) -> str:
        process = self.start()
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, output
        return output

    def digests(self) -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.OUTPUTS]


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_killed_at_random_moments_it_ends_in_the_same_bytes(stage: Stage) -> None:
    began = time.monotonic()
    stage.run()
    seconds = time.monotonic() - began
    undisturbed = stage.digests()
    for path in stage.OUTPUTS:
        path.unlink()
    moments, resumed = random.Random(0), 0
    for _ in range(10):
        process = stage.start()
        time.sleep(moments.uniform(0.3, 0.9) * seconds)
        process.kill()
        resumed += "resuming after step" in process.communicate()[0]
        assert process.returncode in (-signal.SIGKILL, 0)
    assert "best epoch" in stage.run()
    assert resumed > 0
    assert stage.digests() == undisturbed
    assert not paths.RESUME.exists()  # nothing is left over


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop_it_writes_a_checkpoint_and_says_so(signum: int, status: int, stage: Stage) -> None:
    stage.values["train"]["checkpoint_every_seconds"] = 1000
    stage.run()
    undisturbed = stage.digests()
    process = stage.start()
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]  # the device, and the first steps
    process.send_signal(signum)
    output = "".join(lines) + process.communicate(timeout=60)[0]
    assert process.returncode == status
    assert "interrupted: `dvc repro` resumes after step " in output
    assert "Traceback" not in output
    assert "resuming after step" in stage.run()
    assert stage.digests() == undisturbed


def test_a_changed_parameter_never_resumes_a_stale_run(stage: Stage) -> None:
    stage.values["train"]["seed"] = 5
    stage.run()
    fresh = stage.digests()
    stage.values["train"]["seed"] = 4
    process = stage.start()
    while not list(paths.RESUME.glob(f"*/{LATEST}")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    stage.values["train"]["seed"] = 5
    assert "resuming" not in stage.run()
    assert stage.digests() == fresh


def test_two_at_once_do_not_write_over_each_other(stage: Stage) -> None:
    both = [stage.start(), stage.start()]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    waited = ["waiting for a stage that is at work in this folder already" in output for output in outputs]
    assert sorted(waited) == [False, True]
    assert not any("resuming" in output for output in outputs)
