"""A run that is killed and resumed ends in the same bytes as an undisturbed one."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from stages.common import inputs, params, paths, resume
from stages.common.errors import Interrupted, UserError
from stages.dataset import data_card, packed
from stages.dataset.data_card import DataCard
from stages.train import __main__ as train_stage
from stages.train import checkpoint
from stages.train.checkpoint import LATEST, PREVIOUS, Checkpoints
from stages.train.live import Live
from stages.train.optimizers import OPTIMIZERS
from stages.train.stopping import StopSignal
from stages.train.trainer import Row
from tests.imports import ROOT
from tests.test_fit import same, train

STEPS = 19  # per epoch of tests.test_fit.train


def after(steps: int) -> Callable[[], int | None]:
    """A stop signal that comes in the given step, counted over all epochs of this process."""
    seen = 0

    def stop() -> int | None:
        nonlocal seen
        seen += 1
        return signal.SIGTERM if seen >= steps else None

    return stop


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@cache
def undisturbed(**options: Any) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    weights, history, _ = train(**options)
    return weights, history


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_run_stopped_at_any_step_ends_in_the_same_weights(optimizer: str, model: str) -> None:
    options: dict[str, Any] = {"model": model, "optimizer": optimizer, "augmentation": "shift", "schedule": "one_cycle"}
    whole, history = undisturbed(**options)
    for stops in ((1,), (STEPS + 1,), (5, 9, 20, 1)):
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
        {"lr": 0.3, "epochs": 50, "patience": 2},  # early stopping depends on epochs before the interruption
        {"validation": 0},
        {"model": "cnn", "precision": "bfloat16"},
        {"model": "cnn", "num_workers": 2},
    ],
    ids=["early stopping", "no validation", "bfloat16", "workers"],
)
def test_a_resumed_run_with(options: dict[str, Any]) -> None:
    whole, history = undisturbed(**options)
    with pytest.raises(Interrupted):
        train(**options, checkpoints=Checkpoints("a", 1e9), stop=after(2 * STEPS + 3))
    resumed, resumed_history, _ = train(**options, checkpoints=Checkpoints("a", 1e9))
    assert same(resumed, whole)
    assert resumed_history == history


def test_a_run_can_be_resumed_with_another_number_of_threads() -> None:
    whole, history, _ = train("cnn", augmentation="affine", shards=4)
    with pytest.raises(Interrupted):
        train("cnn", augmentation="affine", shards=4, threads=3, checkpoints=Checkpoints("a", 1e9), stop=after(30))
    resumed = train("cnn", augmentation="affine", shards=4, threads=2, checkpoints=Checkpoints("a", 1e9))
    assert same(resumed[0], whole)
    assert resumed[1] == history


def test_how_often_a_run_logs_and_writes_checkpoints_changes_no_bit() -> None:
    whole, history = undisturbed(model="cnn")
    often = train("cnn", log_every_steps=1, checkpoints=Checkpoints("a", 0))
    seldom = train("cnn", log_every_steps=1_000_000)
    for weights, rows, _ in (often, seldom):
        assert same(weights, whole)
        assert rows == history


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif how == "a bit flipped":
        content[-100] ^= 4
    elif how == "a bit flipped in the header":
        content[content.index(b'"epoch\\", ') + 10] ^= 1
    elif how == "a pickle":
        content = bytearray(b"\x80\x05cposix\nsystem\n(X\x07\x00\x00\x00touch xtR.")
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["truncated", "empty", "a bit flipped", "a bit flipped in the header", "a pickle"])
def test_a_damaged_checkpoint_is_set_aside_and_the_previous_one_is_used(
    how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = undisturbed(model="cnn")[0]
    with pytest.raises(Interrupted):  # a checkpoint in every step; the last two are kept
        train("cnn", checkpoints=Checkpoints("a", 0), stop=after(30))
    folder = paths.RESUME / "a"
    assert sorted(path.name for path in folder.iterdir()) == [LATEST, PREVIOUS]
    spoil(folder / LATEST, how)
    capsys.readouterr()
    assert same(train("cnn", checkpoints=Checkpoints("a", 1e9))[0], whole)
    log = capsys.readouterr().out
    assert log.startswith("set a checkpoint aside that cannot be resumed from, as runs/resume/a/latest.unreadable: ")
    assert log.splitlines()[1] == "resuming after step 9/19 of epoch 2"
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]  # no code was run
    # Both are damaged: the run starts again.
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


def alike(one: Any, other: Any) -> bool:
    """Whether two values have the same type and content, and for tensors the same memory layout."""
    if isinstance(one, Tensor):
        layout = (one.dtype, one.shape, one.stride())
        return layout == (other.dtype, other.shape, other.stride()) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(alike, one, other))
    return type(one) is type(other) and bool(one == other)


def test_a_checkpoint_restores_types_and_memory_layouts() -> None:
    weights = torch.arange(48.0).reshape(2, 3, 2, 4)
    state = {
        "channels last": weights.to(memory_format=torch.channels_last),
        "one channel": torch.ones(4, 1, 3, 3).to(memory_format=torch.channels_last),
        "twice": [weights, weights, weights[0, 0].T],
        "numbers": {0: torch.tensor(3), 1: {"step": torch.tensor(1.0), "empty": torch.empty(0)}},
        "values": [None, True, 1, 0.1, 1e-300, "dict", (0.9, 0.999), (), [], {}],
        "dict": {"list": {"tensor": {"a.b": torch.zeros(2, dtype=torch.bfloat16)}}},
    }
    Checkpoints("a", 1e9).save(state)
    assert alike(Checkpoints("a", 1e9).load(), state)
    assert Checkpoints("b", 1e9).load() is None


@pytest.mark.parametrize("value", [{1, 2}, np.float64(1), Path("a"), b"a"], ids=["set", "numpy", "path", "bytes"])
def test_a_checkpoint_refuses_values_that_it_cannot_restore(value: object) -> None:
    with pytest.raises(TypeError, match="a checkpoint cannot contain "):
        Checkpoints("a", 1e9).save({"state": [value]})
    assert not paths.RESUME.exists()


# --- the stage as a process, killed for real


class Stage:
    """A folder with a prepared data set and params.yaml, in which the train stage can run."""

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
        self.values["train"].update(epochs=3, batch_size=16)
        self.values["machine"]["checkpoint_every_seconds"] = 0.05

    def write_params(self) -> None:
        Path("params.yaml").write_text(yaml.safe_dump(self.values), encoding="utf-8")

    def start(self, code: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
        self.write_params()
        environment = {**os.environ, "PYTHONPATH": str(code), **environment}
        return subprocess.Popen(
            [sys.executable, "-m", "stages.train"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, code: Path = ROOT, **environment: str) -> str:
        process = self.start(code, **environment)
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 0, output
        return output

    def digests(self) -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.OUTPUTS]


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.soak), pytest.param(10, marks=pytest.mark.night)])
def test_a_run_killed_at_random_moments_ends_in_the_same_bytes(kills: int, stage: Stage) -> None:
    stage.values["machine"]["log_every_steps"] = 10  # of 450
    stage.run()
    undisturbed = stage.digests()
    for path in stage.OUTPUTS:
        path.unlink()
    moments, resumed = random.Random(0), 0
    for _ in range(kills):
        process = stage.start()
        assert process.stdout is not None
        # Counted in lines of the log, since the time they take depends on the load.
        lines = [process.stdout.readline() for _ in range(moments.randint(3, 8))]
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        resumed += "resuming after step" in "".join(lines) + process.communicate()[0]
        assert process.returncode in (-signal.SIGKILL, 0)
    assert "best epoch" in stage.run()
    assert resumed > 0
    assert stage.digests() == undisturbed
    assert not paths.RESUME.exists()  # nothing is left over


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.night)]
)
def test_a_signal_makes_training_write_a_checkpoint(signum: int, status: int, stage: Stage) -> None:
    stage.values["machine"].update(checkpoint_every_seconds=1000, log_every_steps=5)
    stage.values["train"]["epochs"] = 1
    stage.run()
    undisturbed = stage.digests()
    process = stage.start()
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]  # the device, and the first steps
    process.send_signal(signum)
    output = "".join(lines) + process.communicate(timeout=600)[0]
    assert process.returncode == status
    assert "interrupted: `dvc repro` resumes after step " in output
    assert "Traceback" not in output
    assert "resuming after step" in stage.run()
    assert stage.digests() == undisturbed


class InProcess:
    """The stage in this process, with a stop signal after a number of steps."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stage, self.monkeypatch = stage, monkeypatch
        stage.values["train"].update(numerics="fast", batch_size=128)  # 19 steps per epoch
        stage.values["evaluate"]["numerics"] = "fast"

    def run(self, steps: int | None = None) -> None:
        """Run the stage, or only the given number of steps of it."""
        self.stage.write_params()
        if steps is None:
            train_stage.main()
            return

        class SignalAfterSteps(StopSignal):
            def __call__(self) -> int | None:
                return count()

        count = after(steps)

        @contextmanager
        def handle_stop_signals() -> Iterator[StopSignal]:
            yield SignalAfterSteps()

        with self.monkeypatch.context() as patch:
            patch.setattr("stages.train.__main__.handle_stop_signals", handle_stop_signals)
            with pytest.raises(Interrupted):
                train_stage.main()


@pytest.fixture
def in_process(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    threads = torch.get_num_threads()
    yield InProcess(stage, monkeypatch)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("key", "value", "resumed"),
    [
        ("machine.threads", 3, True),
        ("machine.num_workers", 1, True),
        ("machine.log_every_steps", 7, True),
        ("machine.checkpoint_every_seconds", 12.5, True),
        ("train.device", "cpu", True),  # `auto` was the cpu before
        ("train.seed", 4, False),
        ("train.label_smoothing", 0.1, False),
        ("train.shards", 2, False),
        ("train.epochs", 4, False),
    ],
    ids=str,
)
def test_a_run_resumes_after_a_change_that_changes_no_bit(
    key: str, value: Any, resumed: bool, in_process: InProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    in_process.run(steps=25)
    section, _, leaf = key.partition(".")
    in_process.stage.values[section][leaf] = value
    capsys.readouterr()
    in_process.run()
    assert ("resuming after step " in capsys.readouterr().out) is resumed
    if resumed:
        digests = in_process.stage.digests()
        shutil.rmtree(paths.RUNS)
        in_process.run()
        assert in_process.stage.digests() == digests


def pipeline_at(root: Path) -> None:
    """A repository with a stage that depends on two folders, a file, and an output of another stage."""
    files = {"code/a.py": "1", "code/deep/b.py": "2", "one.py": "3", "other.py": "4", "data/x": "5", "folder/y": "6"}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    stages = {
        "make": {"deps": ["other.py"], "outs": ["folder"], "metrics": [{"data/x": {"cache": False}}]},
        "train": {"deps": ["code", "one.py", "data", "folder/y", "not/there"]},
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")


def test_the_code_of_a_run_is_its_dependencies_in_dvc_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PACKAGE", tmp_path / "code")
    pipeline_at(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in checkpoint.code("train", tmp_path)]
    assert names == ["code/a.py", "code/deep/b.py", "one.py"]  # outputs of other stages are data

    def key() -> str:
        return checkpoint.key("train", {"lr": 1}, [tmp_path / "data/x"], "cpu")

    keys = [key()]
    for name in ("code/a.py", "code/deep/b.py", "one.py", "data/x", "code/new.py"):
        (tmp_path / name).write_text("changed", encoding="utf-8")
        keys.append(key())
    (tmp_path / "code/deep/b.py").rename(tmp_path / "code/deep/c.py")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    (tmp_path / "other.py").write_text("changed", encoding="utf-8")
    (tmp_path / "code/__pycache__").mkdir()
    (tmp_path / "code/__pycache__/a.pyc").write_text("made by Python", encoding="utf-8")
    assert key() == keys[-1]
    others = [checkpoint.key("train", {"lr": 2}, [tmp_path / "data/x"], "cpu")]
    others.append(checkpoint.key("train", {"lr": 1}, [tmp_path / "data/x"], "cuda"))
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert len({key(), *others, keys[-1]}) == 4


@pytest.mark.parametrize("content", [None, "", "stages: {}", "stages: [1]"], ids=["none", "empty", "no stage", "list"])
def test_without_the_stage_in_dvc_yaml_the_code_is_the_whole_package(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "dvc.yaml").write_text(content, encoding="utf-8")
    assert ROOT / "stages/train/__main__.py" in checkpoint.code("train", tmp_path)


def test_the_code_of_this_pipeline_is_all_of_dvc_yaml_except_its_data() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    files = {path.relative_to(ROOT).as_posix() for path in checkpoint.code("train", ROOT)}
    assert {path for path in stages["train"]["deps"] if path.endswith(".py")} <= files
    assert "requirements.txt" in files
    assert not any(path.startswith("data/") for path in files)


@pytest.mark.soak
def test_a_killed_run_with_other_code_is_not_resumed(stage: Stage, tmp_path: Path) -> None:
    code = tmp_path / "code"
    shutil.copytree(ROOT / "stages", code / "stages")
    shutil.copy2(ROOT / "dvc.yaml", code)
    process = stage.start(code)
    while not list(paths.RESUME.glob(f"*/{LATEST}")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    shutil.copytree(paths.RUNS, tmp_path / "kept")
    assert "resuming after step" in stage.run(code)
    shutil.rmtree(paths.RUNS)
    shutil.move(tmp_path / "kept", paths.RUNS)
    running = code / "stages/train/__main__.py"  # this module is called __main__ in its process
    running.write_text(running.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    assert "resuming" not in stage.run(code)


def test_a_finished_run_deletes_its_checkpoints_and_those_unused_for_a_week() -> None:
    for name in ("a", "at work", "old"):
        (paths.RESUME / name).mkdir(parents=True)
        (paths.RESUME / name / LATEST).write_text(name, encoding="utf-8")
    long_ago = time.time() - 2 * resume.UNUSED_SECONDS
    os.utime(paths.RESUME / "old" / LATEST, (long_ago, long_ago))
    Checkpoints("a", 1e9).delete()
    assert [path.name for path in paths.RESUME.iterdir()] == ["at work"]
    Checkpoints("at work", 1e9).delete()
    assert not paths.RESUME.exists()


@pytest.mark.soak
def test_workers_train_below_a_tmpdir_with_a_long_name(stage: Stage, tmp_path: Path) -> None:
    temporary = tmp_path / ("x" * 90)
    temporary.mkdir()
    stage.values["train"].update(epochs=1, batch_size=128)
    stage.run()
    digests = stage.digests()
    stage.values["machine"]["num_workers"] = 2
    assert "best epoch" in stage.run(TMPDIR=str(temporary))
    assert stage.digests() == digests


@pytest.mark.soak
def test_too_little_memory_during_training_is_one_line(stage: Stage) -> None:
    stage.values["models"]["cnn"]["channels"] = [512, 512]
    stage.values["train"].update(batch_size=2400, shards=1)
    stage.write_params()
    command = ["sh", "-c", 'ulimit -v 4000000 && exec "$@"', "sh", sys.executable, "-m", "stages.train"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode != 0
    assert done.stderr.startswith("error: not enough memory (")
    assert "params.yaml: set a smaller train.batch_size, a smaller network (models)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.soak
def test_two_equal_runs_at_once_have_separate_checkpoints(stage: Stage) -> None:
    stage.values["train"].update(epochs=1, batch_size=128)
    first = stage.start()
    assert first.stdout is not None
    assert first.stdout.readline().startswith("device: ")
    first.send_signal(signal.SIGSTOP)  # until the second one has met it
    second = stage.start()
    assert second.stdout is not None
    assert second.stdout.readline().startswith("waiting for another stage in this folder")
    first.send_signal(signal.SIGCONT)
    outputs = [process.communicate(timeout=600)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert not any("resuming" in output for output in outputs)


# --- inputs that are edited while a stage runs


def test_an_edit_during_training_is_not_recorded_and_costs_no_training(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    in_process.run()
    undisturbed = in_process.stage.digests()
    monkeypatch.setenv("DVC_STAGE", "train")
    monkeypatch.setattr(inputs, "_start", None)  # which is so again for the tests that follow
    original = Path("params.yaml").read_bytes()

    def edit(live: Live, history: list[Row]) -> None:
        if len(history) == 3:  # the last epoch
            values = yaml.safe_load(original)
            values["optimizers"]["adam"]["lr"] = 0.5
            Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")

    with monkeypatch.context() as patch:
        patch.setattr(Live, "__call__", edit)
        paths.MODEL.unlink()
        with pytest.raises(UserError, match=r"^optimizers\.adam\.lr in params\.yaml changed while .* DVC would record"):
            in_process.run()
    assert not paths.MODEL.exists()
    capsys.readouterr()
    in_process.run()  # with the original params.yaml
    assert "resuming after step" in capsys.readouterr().out
    assert in_process.stage.digests() == undisturbed
