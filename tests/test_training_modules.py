"""The modules of training: networks, model files, losses, schedules, augmentation, batches, machine, device."""

import gc
import json
import math
import multiprocessing
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torchvision.transforms.v2 import functional as tv

from stages.common import machine
from stages.common.errors import SIGNALS, UserError, one_stage_at_a_time
from stages.dataset import packed
from stages.network import device, losses, model_file, models
from stages.network.model_file import Spec
from stages.network.options import Name
from stages.train import augmentation, schedules
from stages.train.batches import Batches, EpochBatches, PackedImages, ending_workers
from stages.train.stopping import StopSignal, handle_stop_signals
from tests import forging
from tests.imports import ROOT
from tests.test_fit import one_thread_an_operation

OPTIONS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": 16, "depth": 2, "dropout": 0.1},
    "cnn": {
        "channels": [4, 8],
        "kernel_sizes": [3, 3],
        "paddings": [1, 0],
        "pool_sizes": [2, 1],
        "hidden": 16,
        "dropout": 0.1,
    },
    "torchvision": {"architecture": "shufflenet_v2_x0_5", "dropout": 0.1},
}


# --- networks


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 14)])
def test_networks_take_raw_pixels_and_give_logits(name: str, shape: tuple[int, int, int]) -> None:
    model = models.build(name, OPTIONS[name], shape, 7, [0.3] * shape[0], [0.2] * shape[0]).eval()
    images = torch.randint(0, 256, (5, *shape), dtype=torch.uint8)
    logits = model(images)
    assert logits.shape == (5, 7)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, model(images.float()))  # as augmentation returns them


def test_the_first_layer_normalizes() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    normalized = models.Normalize([0.5], [0.25])(images).flatten()
    assert torch.allclose(normalized, (torch.tensor([0, 0.2, 1.0]) - 0.5) / 0.25)


def test_the_tutorials_mlp_has_its_size() -> None:
    model = models.build("mlp", {"hidden": 512, "depth": 1, "dropout": 0.0}, (1, 28, 28), 10, [0.5], [0.5])
    assert models.parameter_count(model) == 784 * 512 + 512 + 512 * 10 + 10


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"channels": [4] * 5, "kernel_sizes": [3] * 5, "paddings": [1] * 5, "pool_sizes": [2] * 5},
            "block 5 leaves nothing of images of 1 x 1; set fewer, smaller or padded blocks",
        ),
    ],
)
def test_networks_that_do_not_fit_the_images(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        models.build("cnn", {**OPTIONS["cnn"], **change}, (1, 28, 28), 10, [0.5], [0.5])


# --- model files


def small_model(name: Name = "cnn") -> tuple[torch.nn.Sequential, Spec]:
    torch.manual_seed(0)
    spec = Spec(
        format=3, model=name, options=OPTIONS[name], image_shape=[1, 8, 8], classes=["a", "b"], output="softmax"
    )
    return models.build(name, OPTIONS[name], (1, 8, 8), 2, [0.4], [0.3]).eval(), spec


@pytest.mark.parametrize("name", models.MODELS)
def test_a_model_file_restores_the_model_and_has_the_same_bytes_twice(name: Name, tmp_path: Path) -> None:
    model, spec = small_model(name)
    for file in ("a", "b"):
        model_file.write(tmp_path / file, model, spec, temperature=0.5)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read, read_spec = model_file.read(tmp_path / "a")
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(read(images), 2 * model(images))  # logits / 0.5
    assert model_file.temperature(read) == 0.5
    assert read_spec == spec
    assert not read.training


def forged(**changes: Any) -> bytes:
    """A model file with some tensors replaced, or left out (None). changes: tensors by name."""
    model, spec = small_model()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    tensors[model_file.TEMPERATURE] = torch.tensor(0.5)
    header = changes.pop("spec", spec.model_dump())
    tensors.update({name.replace("__", "."): value for name, value in changes.items()})
    kept = {name: value for name, value in tensors.items() if value is not None}
    return save(kept, metadata={"spec": header if isinstance(header, str) else json.dumps(header)})


def with_spec(**changes: Any) -> bytes:
    return forged(spec={**small_model()[1].model_dump(), **changes})


PREPARATION = {"channels": "grey", "image_size": [8, 8], "resize": "pad", "background": [0, 0, 0]}


@pytest.mark.parametrize("header", [{"format": 1}, {"format": 2, "preparation": PREPARATION}], ids=["1", "2"])
def test_a_file_of_an_older_format_is_read_without_a_temperature(header: dict[str, Any], tmp_path: Path) -> None:
    model, spec = small_model()
    older = {**spec.model_dump(exclude_none=True), **header}
    (tmp_path / "old").write_bytes(forged(spec=older, **{"2__temperature": None}))
    read, read_spec = model_file.read(tmp_path / "old")
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(read(images), model(images))
    assert (model_file.temperature(read), read_spec.format) == (1.0, header["format"])
    model_file.write(tmp_path / "new", read, read_spec, temperature=2.0)
    again, new_spec = model_file.read(tmp_path / "new")
    assert torch.equal(again(images), model(images) / 2)
    assert new_spec == read_spec.model_copy(update={"format": 3})


HUGE = {"hidden": 65536, "depth": 100, "dropout": 0.0}  # 1.7 TB of weights


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a model file"),
        (b"\x80\x05cposix\nsystem\n(X\x07\x00\x00\x00touch xtR.", "not a model file"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "not a model file"),
        (forged()[:-1], "not a model file"),
        (save({"weight": torch.zeros(2)}), "without a 'spec'"),
        (forged(spec="{"), "not a model file"),
        (forged(spec="[" * 100_000), "not a model file"),
        (forged(spec="3"), "not one of this pipeline's models"),
        (with_spec(format=4), "not one of this pipeline's models: format"),
        (with_spec(model="os.system"), "not one of this pipeline's models: model"),
        (with_spec(options={"hidden": 3}), "not one of this pipeline's models"),
        (with_spec(surprise=1), "not one of this pipeline's models: surprise"),
        (with_spec(model="mlp", options=HUGE), "is not one of the model|is missing"),
        (with_spec(image_shape=[1, 65536, 65536]), r"expected torch.float32 \(16, 8588886048\)"),
        (with_spec(image_shape=[1, 2, 2]), "not a model file"),
        (forged(**{"1__0__weight": None}), "the tensor 1.0.weight is missing"),
        (forged(more=torch.zeros(1)), "the tensor more is not one of the model"),
        (forged(**{"1__0__weight": torch.zeros(4, 1, 3, 4)}), r"1.0.weight is torch.float32 \(4, 1, 3, 4\); expected"),
        (forged(**{"1__0__weight": torch.zeros(4, 1, 3, 3).double()}), "1.0.weight is torch.float64"),
        (forged(**{"1__0__weight": torch.full((4, 1, 3, 3), math.nan)}), "1.0.weight holds NaN or infinite"),
        (forged(**{"2__temperature": None}), "the tensor 2.temperature is missing"),
        (forged(**{"2__temperature": torch.tensor(0.0)}), "the tensor 2.temperature is 0; expected more than 0"),
        (forged(**{"2__temperature": torch.tensor(-2.0)}), "the tensor 2.temperature is -2; expected more than 0"),
        (forged(**{"0__std": torch.full((1, 1, 1), math.inf)}), "0.std holds NaN or infinite"),
    ],
)
def test_a_file_that_is_no_model_is_refused(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        model_file.read(path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]  # no code was run


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_change_of_bytes_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(forged())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "model.safetensors"
    path.write_bytes(bytes(content))
    message = str(path)  # a file with a changed weight can be read; any other is refused
    try:
        model_file.read(path)
    except UserError as error:
        message = str(error)
    assert str(path) in message


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_forged_header_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = data.draw(forging.forged_safetensors(forged()) | forging.mutated_bytes(forged()))
    path = tmp_path_factory.getbasetemp() / "model.safetensors"
    path.write_bytes(content)
    try:
        model, spec = model_file.read(path)
    except UserError as error:
        message = str(error)
    else:  # the change has no effect on the model
        message = str(path)
        assert model(torch.zeros(1, *spec.image_shape, dtype=torch.uint8)).shape == (1, len(spec.classes))
    assert str(path) in message


# --- losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_match_their_formulas(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 1, 1])
    targets = torch.full((6, 4), smoothing / 4, dtype=torch.float64)
    targets[range(6), labels] += 1 - smoothing
    p, sigmoid = logits.softmax(1), logits.sigmoid()
    expected = {
        "cross_entropy": -(targets * p.log()).sum(1).mean(),
        "nll": -(targets * p.log()).sum(1).mean(),
        "mse": ((p - targets) ** 2).sum(1).mean(),
        "bce": -(targets * sigmoid.log() + (1 - targets) * (1 - sigmoid).log()).sum(1).mean(),
    }
    for name, loss in losses.LOSSES.items():
        assert torch.allclose(loss(logits, labels, smoothing, "mean"), expected[name]), name


def test_losses_and_outputs_have_the_same_names() -> None:
    assert losses.LOSSES.keys() == losses.OUTPUTS.keys()


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_probabilities_add_up_to_one_and_keep_the_order(output: losses.Output) -> None:
    logits = torch.tensor([[1.0, -2.0, 3.0], [900.0, -900.0, 0.0], [-900.0, -950.0, -901.0]])
    log_p = losses.log_probabilities(logits, output)
    assert torch.isfinite(log_p).all()
    assert torch.allclose(log_p.exp().sum(1), torch.ones(3))
    assert torch.equal(log_p.argmax(1), logits.argmax(1))


# --- schedules


def test_one_cycle_is_torchs() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=100,
        pct_start=0.25,
        div_factor=10,
        final_div_factor=100,
        cycle_momentum=False,
    )
    factor = schedules.one_cycle(100, warmup_fraction=0.25, start_factor=0.1, end_factor=0.001)
    ours, theirs = [], []
    for step in range(100):
        ours.append(factor(step))
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < 99:
            reference.step()
    assert ours[0] == pytest.approx(0.1)
    assert ours[-1] == pytest.approx(0.001)
    assert max(ours) == 1
    # The decrease is torch's. The increase is linear here, and a cosine in torch.
    assert ours[24:] == pytest.approx(theirs[24:])


def test_cosine_is_torchs() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = CosineAnnealingLR(optimizer, T_max=49, eta_min=0.01)
    factor = schedules.cosine(50, end_factor=0.01)
    for step in range(50):
        assert factor(step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_schedule(name: str, steps: int) -> None:
    options: dict[str, dict[str, float]] = {
        "one_cycle": {"warmup_fraction": 0.5, "start_factor": 0.1, "end_factor": 0.0},
        "cosine": {"end_factor": 0},
    }
    factor = schedules.SCHEDULES[name](steps, **options.get(name, {}))
    assert all(0 <= factor(step) <= 1 for step in range(steps))


@pytest.mark.parametrize(("steps", "warmup"), [(2, 0.75), (3, 0.9), (1000, 0.9999), (3, 1 - 2**-53)])
def test_the_last_step_has_the_end_factor_even_after_a_long_warmup(steps: int, warmup: float) -> None:
    factor = schedules.one_cycle(steps, warmup_fraction=warmup, start_factor=0.1, end_factor=0.001)
    assert factor(0) == pytest.approx(0.1)
    assert factor(steps - 1) == pytest.approx(1.0 if warmup * steps == steps else 0.001)  # no step left to decrease


# --- augmentation


STILL: dict[str, Any] = {
    "degrees": 0,
    "translate": 0,
    "scale": 0,
    "shear_degrees": 0,
    "elastic_pixels": 0,
    "elastic_grid": 5,
    "flip": False,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shift_moves_each_image_as_a_whole_and_fills_with_black() -> None:
    torch.manual_seed(0)
    images = torch.randint(1, 256, (500, 2, 6, 5), dtype=torch.uint8)
    moved = augmentation.shift(images, generator(), 2)
    assert moved.shape == images.shape
    assert moved.dtype == torch.uint8
    padded = F.pad(images, (2, 2, 2, 2))
    seen = set()
    for before, after in zip(padded, moved, strict=True):
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(before[:, y : y + 6, x : x + 5], after)]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 25  # every direction is drawn


def test_affine_without_any_change_returns_the_image() -> None:
    images = torch.randint(0, 256, (4, 3, 7, 9), dtype=torch.uint8)
    same = augmentation.affine(images, generator(), **STILL)
    assert torch.allclose(same, images.float(), atol=0.01)


@pytest.mark.parametrize("shape", [(28, 28), (20, 40)])
def test_affine_turns_as_torchvision_does(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image = tv.gaussian_blur(torch.randint(0, 256, (1, 1, *shape)).float(), [9, 9])
    monkeypatch.setattr(torch, "rand", lambda *size, generator: torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5])[:, None])
    ours = augmentation.affine(image, generator(), **{**STILL, "degrees": 30})
    theirs = tv.rotate(image, 30, interpolation=tv.InterpolationMode.BILINEAR)
    assert (ours - theirs).abs().max() < 0.1


def test_flip_mirrors_half_of_the_images() -> None:
    images = torch.randint(0, 256, (200, 1, 6, 5), dtype=torch.uint8)
    moved = augmentation.affine(images, generator(), **{**STILL, "flip": True})
    same = torch.isclose(moved, images.float(), atol=0.01).flatten(1).all(1)
    mirrored = torch.isclose(moved, images.flip(3).float(), atol=0.01).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


def test_elastic_distortion_is_smooth_and_measured_in_pixels() -> None:
    ramp = torch.arange(40.0).expand(64, 1, 40, 40)  # the value of a pixel is its column
    moved = augmentation.affine(ramp, generator(), **{**STILL, "elastic_pixels": 1.0}) - ramp
    inside = moved[:, :, 8:-8, 8:-8]
    assert (
        0.5 < inside.std() < 1.1
    )  # the standard deviation is one pixel at the points of the grid, and less between them
    assert (inside[..., 1:] - inside[..., :-1]).abs().max() < 0.8  # neighbours move together


def test_elastic_distortion_is_interpolated_bicubically() -> None:
    grid = torch.randn(3, 2, 5, 5)
    ours = augmentation.interpolation_matrix(5, 28) @ grid @ augmentation.interpolation_matrix(5, 17).T
    assert torch.allclose(ours, torch.nn.functional.interpolate(grid, (28, 17), mode="bicubic"), atol=1e-5)


@pytest.mark.parametrize("name", ["shift", "affine"])
def test_augmentation_is_a_function_of_the_seed(name: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "shift": {"pixels": 2},
        "affine": {
            "degrees": 9,
            "translate": 0.1,
            "scale": 0.1,
            "shear_degrees": 5,
            "elastic_pixels": 1,
            "elastic_grid": 4,
            "flip": True,
        },
    }
    images = torch.randint(0, 256, (8, 1, 12, 12), dtype=torch.uint8)
    results = []
    for seed in (1, 1, 2):
        results.append(augmentation.AUGMENTATIONS[name](images, generator(seed), **options[name]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# --- batches


def tens(dataset: PackedImages, num_workers: int, stop: StopSignal, shuffle: bool = False, seed: int = 0) -> Batches:
    """Batches of ten images."""
    return Batches(
        dataset, batch_size=10, shuffle=shuffle, seed=seed, num_workers=num_workers, pin_memory=False, stop=stop
    )


def epochs(num_workers: int, *which: int, shuffle: bool = True, count: int = 103) -> list[list[int]]:
    """The labels of each batch of some epochs. The label of an image is its position."""
    images = torch.arange(count, dtype=torch.uint8).reshape(count, 1, 1, 1)
    batches = tens(PackedImages(images, torch.arange(count)), num_workers, StopSignal(), shuffle, seed=5)
    rows = []
    for epoch in which:
        for pixels, labels in batches.iterate(epoch, skip=0):
            assert torch.equal(pixels.flatten().long(), labels)
            rows.append(labels.tolist())
    return rows


def test_every_epoch_has_every_image_once() -> None:
    rows = epochs(0, 1)
    assert [len(row) for row in rows] == [10] * 10 + [3]
    assert sorted(chain(*rows)) == list(range(103))
    assert list(chain(*rows)) != list(range(103))


def test_batches_are_a_function_of_the_epoch() -> None:
    first, second = epochs(0, 1), epochs(0, 2)
    assert epochs(0, 1, 2) == first + second
    assert first != second


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")  # a small machine has fewer cores
@pytest.mark.parametrize("num_workers", [1, 3])
def test_any_number_of_workers_gives_the_same_batches(num_workers: int) -> None:
    assert epochs(num_workers, 1, 2) == epochs(0, 1, 2)


def test_without_shuffle_the_order_is_that_of_the_files() -> None:
    assert list(chain(*epochs(0, 3, shuffle=False))) == list(range(103))


@pytest.mark.parametrize(("count", "batches"), [(1, 1), (10, 1), (11, 1), (12, 2), (20, 2)])
def test_a_last_batch_of_one_image_is_dropped(count: int, batches: int) -> None:
    assert len(epochs(0, 1, count=count)) == batches
    assert len(EpochBatches(count, 10, True, 0)) == batches


def test_different_numbers_of_images_and_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="3 images and 2 labels"):
        PackedImages(torch.zeros(3, 1, 1, 1), torch.zeros(2))


def on_disk(folder: Path, count: int, kind: type[packed.Split] = packed.Split) -> PackedImages:
    """Images of a pixel, which are not in memory."""
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    packed.write(folder, images, np.zeros(count, np.int64))
    return PackedImages(kind(folder, (1, 1, 1), 1), torch.arange(count))


def test_workers_send_positions_instead_of_images(tmp_path: Path) -> None:
    dataset = on_disk(tmp_path / "split", 20)
    batches = tens(dataset, 1, StopSignal())
    with ending_workers(1):
        assert list(batches._positions) == [list(range(10)), list(range(10, 20))]
        got = list(batches.iterate(1, skip=0))
    for images, labels in got:
        assert torch.equal(images.flatten().long(), labels)
    assert sum(len(images) for images, _ in got) == 20


@pytest.fixture
def _no_waiting_for_ever() -> Iterator[None]:
    """Make a test that hangs fail."""

    def fail(signum: int, frame: object) -> None:
        raise AssertionError("it waits and waits")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


TWO_ARE_THERE = multiprocessing.Event()


class Hangs(packed.Split):
    """Images whose third batch is never read. The worker sends the parent a stop signal once it has two batches."""

    def read_ahead(self, positions: npt.ArrayLike) -> None:
        if 20 in np.asarray(positions):
            TWO_ARE_THERE.wait()
            os.kill(os.getppid(), signal.SIGTERM)
            signal.pause()


@pytest.mark.usefixtures("_no_waiting_for_ever")
@pytest.mark.parametrize("stopped", [False, True], ids=["hanging", "suspended"])
def test_a_signal_ends_the_wait_for_a_worker_and_the_worker(stopped: bool, tmp_path: Path) -> None:
    TWO_ARE_THERE.clear()
    dataset = on_disk(tmp_path / "split", 40, Hangs)
    with handle_stop_signals() as stop, ending_workers(1):
        batches = tens(dataset, 1, stop)
        for count, _ in enumerate(batches.iterate(1, skip=0), start=1):
            if count == 2:
                TWO_ARE_THERE.set()
        assert count == 2
        assert stop() == signal.SIGTERM
        (worker,) = multiprocessing.active_children()
        if stopped:
            os.kill(worker.pid or 0, signal.SIGSTOP)
        assert list(batches.iterate(2, skip=0)) == []  # the start of an epoch waits for the worker as well
    assert not worker.is_alive()


KILLED = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import multiprocessing, torch
from stages.common import errors
from stages.train.batches import Batches, PackedImages
from stages.train.stopping import StopSignal
def main():
    count = 4096
    dataset = PackedImages(torch.zeros(count, 1, 28, 28, dtype=torch.uint8), torch.arange(count))
    workers = int(os.environ["WORKERS"])
    batches = Batches(
        dataset, batch_size=1024, shuffle=False, seed=0, num_workers=workers, pin_memory=False, stop=StopSignal()
    )
    next(batches.iterate(1, skip=0))
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    signal.pause()
errors.run(main)
"""


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_end_with_a_killed_parent_and_its_lock_is_released(
    num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKERS", str(num_workers))  # a stage takes no arguments
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with process.stdout as output:
        workers = [int(pid) for pid in output.readline().split()]
        process.kill()
        process.wait()
        with one_stage_at_a_time(wait=False) as free:
            # Their output ends when no process has the other end of the pipe any more.
            ended = bool(select.select([output], [], [], 60)[0])
    if not ended:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
    assert (len(workers), free, ended) == (num_workers, True, True)


class Dies(packed.Split):
    """Images whose worker is killed, as by a system that lacks memory."""

    def read_ahead(self, positions: npt.ArrayLike) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Starves(packed.Split):
    """Images whose worker cannot allocate memory."""

    def read_ahead(self, positions: npt.ArrayLike) -> None:
        raise MemoryError("no room")


@pytest.mark.usefixtures("_no_waiting_for_ever")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Dies, r"DataLoader worker \(pid.*\) (is killed by signal: Killed|exited unexpectedly)"),
        (Starves, "MemoryError: no room"),
    ],
    ids=["killed", "without memory"],
)
def test_a_worker_that_fails_is_one_line(kind: type[packed.Split], reason: str, tmp_path: Path) -> None:
    dataset = on_disk(tmp_path / "split", 20, kind)
    ending = r"; params\.yaml: machine\.num_workers is 2: set 0, or fewer \(.*ulimit -n is"
    with pytest.raises(UserError, match=reason + ending), handle_stop_signals() as stop, ending_workers(2):
        list(tens(dataset, 2, stop).iterate(1, skip=0))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), OSError(28, "No space left on device")], ids=str)
def test_workers_that_cannot_be_started_are_one_line(
    error: OSError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("torch.multiprocessing.Queue", fails)
    monkeypatch.setattr(torch.multiprocessing.get_context().__class__, "Queue", fails, raising=False)
    batches = tens(PackedImages(torch.zeros(20, 1, 1, 1), torch.arange(20)), 2, StopSignal())
    with pytest.raises(UserError, match=f"the loader's workers failed: .*{error.strerror}; params.yaml: machine.num_w"):
        list(batches.iterate(1, skip=0))
    gc.collect()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", SIGNALS, ids=str)
def test_the_first_signal_is_noted_and_the_second_has_its_usual_effect(number: int) -> None:
    came: list[int] = []
    before = signal.signal(number, lambda signum, frame: came.append(signum))
    try:
        with handle_stop_signals() as stop:
            assert stop() is None
            assert stop.wait(lambda: 3) == 3
            signal.raise_signal(number)
            assert stop() == number
            assert stop.wait(lambda: 3) is None
            assert came == []
            signal.raise_signal(number)
            assert came == [number]
        signal.raise_signal(number)
        assert came == [number, number]
    finally:
        signal.signal(number, before)


def test_a_signal_interrupts_a_wait() -> None:
    with handle_stop_signals() as stop:
        assert stop.wait(lambda: signal.raise_signal(signal.SIGTERM)) is None
        assert stop() == signal.SIGTERM


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handle_stop_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop() is None
    finally:
        signal.signal(signal.SIGHUP, before)


# --- what a process may use of the machine


def fake_process(folder: Path, groups: str, mounts: list[tuple[str, str, str]], files: dict[str, str]) -> Path:
    """A folder as /proc/self. mounts: root, place, and "cgroup2" or the controllers of a version 1. files: content."""
    process = folder / "proc" / "self"
    process.mkdir(parents=True)
    (process / "cgroup").write_text(groups, encoding="utf-8")
    lines = [f"20 1 0:20 / {folder} rw - ext4 /dev/sda rw\n"]
    for root, place, kind in mounts:
        version = "cgroup2 cgroup2 rw" if kind == "cgroup2" else f"cgroup cgroup rw,{kind}"
        lines.append(f"30 20 0:30 {root} {folder / place} rw,nosuid shared:7 - {version}\n")
    (process / "mountinfo").write_text("".join(lines), encoding="utf-8")
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return process


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "quota"),
    [
        ("0::/\n", [("/", "cg", "cgroup2")], {}, None),
        ("0::/a/b\n", [("/", "cg", "cgroup2")], {"cg/a/b/cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", [("/", "cg", "cgroup2")], {"cg/a/b/cpu.max": "50000 100000\n"}, 0.5),
        (
            "0::/a/b\n",
            [("/", "cg", "cgroup2")],
            {"cg/a/b/cpu.max": "800000 100000\n", "cg/a/cpu.max": "150000 100000\n"},
            1.5,
        ),
        ("0::/../x\n", [("/", "cg", "cgroup2")], {"cg/cpu.max": "200000 100000\n"}, 2),
        (
            "4:memory:/m\n3:cpu,cpuacct:/a\n",
            [("/", "cpu", "cpu,cpuacct"), ("/", "memory", "memory")],
            {
                "cpu/a/cpu.cfs_quota_us": "300000\n",
                "cpu/a/cpu.cfs_period_us": "100000\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
            },
            3,
        ),
        (
            "3:cpu:/a\n",
            [("/", "cpu", "cpu")],
            {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "9\n"},
            None,
        ),
        (
            "3:cpu:/docker/1f\n",  # the path on the host, of which the container sees only its own part
            [("/docker/1f", "cpu", "cpu")],
            {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            0.5,
        ),
        ("0::/a\n", [("/", "cg", "cgroup2")], {"cg/a/cpu.max": "nonsense"}, None),
    ],
    ids=["none", "max", "half", "nested", "above", "v1", "v1 none", "v1 container", "nonsense"],
)
def test_quotas_of_control_groups(
    groups: str, mounts: list[tuple[str, str, str]], files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    assert machine.cpu_quota(fake_process(tmp_path, groups, mounts, files)) == quota


def test_without_proc_there_is_no_quota(tmp_path: Path) -> None:
    assert machine.cpu_quota(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("quota", "assigned", "cores"), [(None, 8, 8), (0.5, 8, 1), (1.2, 8, 2), (2.0, 8, 2), (16.0, 8, 8), (0.01, 1, 1)]
)
def test_cores_are_what_a_quota_leaves(
    quota: float | None, assigned: int, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.common.machine.cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(assigned)), raising=False)
    assert machine.cores() == cores


def test_a_real_quota() -> None:
    root = Path("/sys/fs/cgroup/cpu")
    group = root / f"tests-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("150000", encoding="utf-8")
    except OSError as error:
        pytest.skip(f"needs the right to make control groups of version 1: {error}")
    try:
        script = "import sys; open(sys.argv[1], 'w').write('0'); from stages.common import machine; "
        script += "print(machine.cpu_quota())"
        command = [sys.executable, "-c", script, str(group / "tasks")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600)
        assert done.stdout == "1.5\n"
    finally:
        group.rmdir()


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cg/a/memory.max": "max\n"}, 3000 * 1024),
        ({"cg/a/memory.max": "1000000\n", "cg/memory.max": "500000\n"}, 500_000),
    ],
    ids=["the machine's", "a control group's"],
)
def test_memory_is_the_least_of_its_limits(
    files: dict[str, str], limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.common.machine.address_space", lambda: None)
    files |= {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    2000 kB\nSwapFree: 1000 kB\nHugePages_Total: 3\n"}
    process = fake_process(tmp_path, "0::/a\n", [("/", "cg", "cgroup2")], files)
    assert machine.memory_bytes(process) == limit
    (process / "status").write_text("Name:\tx\nVmSize:\t    100 kB\n", encoding="utf-8")
    monkeypatch.setattr("stages.common.machine.address_space", lambda: 200_000)
    assert machine.memory_bytes(process) == 200_000 - 102_400


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes"),
            True,
        ),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("can't start new thread"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_too_little_memory_is_one_line(error: Exception, known: bool) -> None:
    with pytest.raises(UserError if known else type(error)) as raised, device.enough_memory("a smaller x.y"):
        raise error
    if known:
        text = str(raised.value)
        assert text.startswith("not enough memory (")
        assert text.endswith("; params.yaml: set a smaller x.y")
        assert "\n" not in text


# --- device


@pytest.mark.parametrize(
    ("wanted", "there", "chosen"),
    [
        ("auto", {"cpu": 1, "cuda": 0, "mps": 0}, "cpu"),
        ("auto", {"cpu": 1, "cuda": 2, "mps": 0}, "cuda"),
        ("auto", {"cpu": 1, "cuda": 0, "mps": 1}, "mps"),
        ("cpu", {"cpu": 1, "cuda": 2, "mps": 0}, "cpu"),
        ("cuda", {"cpu": 1, "cuda": 1, "mps": 0}, "cuda"),
    ],
)
def test_the_choice_of_the_device(wanted: str, there: dict[str, int], chosen: str) -> None:
    assert device.choose(wanted, there, "train.device") == chosen


def test_an_unavailable_device() -> None:
    with pytest.raises(UserError, match=r"train\.device is cuda, and this machine has none; it has: cpu, mps"):
        device.choose("cuda", {"cpu": 1, "cuda": 0, "mps": 1}, "train.device")


def test_torchrun_is_refused() -> None:
    device.one_process({})
    device.one_process({"WORLD_SIZE": "1"})
    with pytest.raises(UserError, match="one of 4 processes"):
        device.one_process({"WORLD_SIZE": "4"})


def test_a_precision_that_the_device_does_not_support() -> None:
    device.check_precision("float32", "cpu", True)
    device.check_precision("bfloat16", "cpu", True)
    device.check_precision("float16", "cuda", False)
    with pytest.raises(UserError, match=r"float16, which trains on cuda only; on cpu: float32 \| bfloat16"):
        device.check_precision("float16", "cpu", True)
    with pytest.raises(UserError, match="bfloat16, which this GPU does not have"):
        device.check_precision("bfloat16", "cuda", False)


@pytest.mark.parametrize(
    ("size", "free", "workers", "kept"),
    [(100, None, 0, True), (100, 200, 0, True), (101, 200, 0, False), (1, 200, 2, False), (1, None, 2, False)],
)
def test_images_stay_on_the_device_when_they_fit(size: int, free: int | None, workers: int, kept: bool) -> None:
    assert device.keep_on_device(size, free, workers) is kept


def test_a_gpu_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.distributed refuses a device without one, also on a machine that has one GPU and trains with others."""
    chosen: list[torch.device] = []
    monkeypatch.setattr("stages.network.device.available", lambda: {"cpu": 1, "cuda": 2, "mps": 0})
    monkeypatch.setattr("torch.zeros", lambda size, device: torch.ones(size))
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "A GPU")
    monkeypatch.setattr("torch.use_deterministic_algorithms", lambda mode, warn_only: None)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    with one_thread_an_operation():
        alone = device.set_up("auto", 1, "fast", "train.device")
        second = device.set_up("auto", 1, "fast", "train.device", process=1, processes=2)
    assert [alone, second] == chosen == [torch.device("cuda", 0), torch.device("cuda", 1)]


def test_a_gpu_that_only_emulates_bfloat16_does_not_support_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda._check_bf16_tensor_supported", lambda index: True)
    for major, supported in ((7, False), (8, True)):  # compute capability of Turing and Ampere
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda index, major=major: SimpleNamespace(major=major))
        assert device.has_bfloat16(torch.device("cuda", 0)) is supported
    assert device.has_bfloat16(torch.device("cpu"))


def test_unused_gpus_are_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A GPU")
    there = {"cpu": 1, "cuda": 3, "mps": 0}
    assert device.describe("cuda", there, 2).startswith("device: cuda:0, A GPU (2 more not used")
    assert device.describe("cuda", {**there, "cuda": 1}, 2) == "device: cuda:0, A GPU"


@pytest.mark.parametrize(
    ("visible", "built", "usable", "installed", "expected"),
    [
        (None, True, 0, 0, ""),
        ("7", True, 0, 0, ""),
        (None, True, 2, 2, ""),
        (
            "7",
            True,
            0,
            2,
            "CUDA_VISIBLE_DEVICES=7 hides the 2 NVIDIA GPUs of this machine: unset it, or name an existing one",
        ),
        ("", True, 0, 1, "CUDA_VISIBLE_DEVICES= hides the 1 NVIDIA GPU of this machine"),
        (
            None,
            True,
            0,
            1,
            "torch cannot use the 1 NVIDIA GPU of this machine: its driver is too old for this torch, or",
        ),
        ("0", False, 0, 1, "torch is built without CUDA and cannot use the 1 NVIDIA GPU of this machine"),
    ],
    ids=["none", "none to hide", "all there", "wrong index", "empty", "old driver", "no CUDA"],
)
def test_the_reason_for_a_hidden_gpu(
    visible: str | None, built: bool, usable: int, installed: int, expected: str
) -> None:
    why = device.why_hidden(visible, built, usable, installed)
    assert why.startswith(expected)
    assert bool(why) == bool(expected)


def test_a_hidden_gpu_is_mentioned(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.network.device.available", lambda: {"cpu": 1, "cuda": 0, "mps": 0})
    monkeypatch.setattr("stages.common.machine.gpus", lambda: 2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    threads = torch.get_num_threads()
    try:
        device.set_up("auto", 1, "fast", "train.device")
        device.set_up("cpu", 1, "fast", "train.device")
    finally:
        torch.set_num_threads(threads)
    auto, cpu = capsys.readouterr().out.splitlines()
    assert auto.startswith("device: cpu, 1 thread; CUDA_VISIBLE_DEVICES=7 hides the 2 NVIDIA GPUs")
    assert cpu == "device: cpu, 1 thread"
    with pytest.raises(UserError, match=r"it has: cpu. Set one of these, or auto \(CUDA_VISIBLE_DEVICES=7 hides"):
        device.set_up("cuda", 1, "fast", "train.device")


@pytest.fixture
def old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs whose driver is too old for this torch. Asked for their number, the driver itself answers."""

    def fails(*arguments: object) -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it")

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.get_device_name", fails)
    monkeypatch.setattr("torch.cuda.set_device", fails)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("stages.common.machine.gpus", lambda: 2)
    monkeypatch.setattr("torch.use_deterministic_algorithms", lambda mode, warn_only: None)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")


@pytest.mark.usefixtures("old_driver")
@pytest.mark.parametrize("visible", [None, "0,1"])
def test_gpus_with_an_old_driver_are_not_used(
    visible: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with one_thread_an_operation():
        assert device.set_up("auto", 1, "fast", "train.device") == torch.device("cpu")
        with pytest.raises(UserError, match=r"it has: cpu\. .* auto \(torch cannot use .* driver is too old .*\)$"):
            device.set_up("cuda", 1, "fast", "train.device")
    line = capsys.readouterr().out
    assert line.startswith("device: cpu, 1 thread; torch cannot use the 2 NVIDIA GPUs of this machine: its driver is ")


@pytest.mark.usefixtures("old_driver")
def test_a_gpu_that_only_the_driver_reports_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # as with PYTORCH_NVML_BASED_CUDA_CHECK=1
    expected = r"^train\.device: the GPU cannot be used \(The NVIDIA driver .* 11040\)\.\): choose another one with .*$"
    with one_thread_an_operation(), pytest.raises(UserError, match=expected) as error:
        device.set_up("auto", 1, "fast", "train.device")
    assert "\n" not in str(error.value)


def test_more_processes_than_gpus_are_refused_before_a_device_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.network.device.available", lambda: {"cpu": 1, "cuda": 2, "mps": 0})
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "A GPU")
    monkeypatch.setattr("torch.use_deterministic_algorithms", lambda mode, warn_only: None)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    with one_thread_an_operation(), pytest.raises(UserError, match="machine.processes is 4, and this machine has 2 G"):
        device.set_up("auto", 1, "fast", "train.device", process=0, processes=4)
    assert not capsys.readouterr().out


def test_a_quota_is_mentioned() -> None:
    there = {"cpu": 1, "cuda": 0, "mps": 0}
    assert device.describe("cpu", there, 1, 0.5) == "device: cpu, 1 thread (a control group allows 0.5 cores)"
    assert device.describe("cpu", there, 2) == "device: cpu, 2 threads"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.\nMore"),
            "train.device: the memory of the GPU is full (CUDA out of memory. Tried to allocate 2 MiB.): end what uses",
        ),
        (
            torch.AcceleratorError("CUDA error: no kernel image is available for execution\nCUDA kernel errors might"),
            "train.device: the GPU cannot be used (CUDA error: no kernel image is available for execution): choose "
            "another one with CUDA_VISIBLE_DEVICES, or set cpu",
        ),
    ],
    ids=["full", "too old"],
)
def test_a_gpu_that_cannot_be_used(error: RuntimeError, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("torch.cuda.set_device", lambda target: None)
    monkeypatch.setattr("torch.zeros", fails)
    monkeypatch.setattr("torch.cuda.mem_get_info", fails)
    for ask in (device.use_gpu, device.free_bytes):
        with pytest.raises(UserError) as raised:
            ask(torch.device("cuda"), "train.device")
        assert str(raised.value).startswith(expected)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "capability", "expected"),
    [
        ({"device": "auto", "numerics": "fast"}, "DEFAULT", ""),
        ({"device": "cpu", "numerics": "portable"}, "AVX2", ""),
        (
            {"device": "cuda", "numerics": "fast"},
            "AVX2",
            "evaluate.device is cuda, and this machine has none; it has: cpu",
        ),
        (
            {"device": "mps", "numerics": "fast"},
            "AVX2",
            "evaluate.device is mps, and this machine has none; it has: cpu",
        ),
        (
            {"device": "cpu", "numerics": "portable"},
            "DEFAULT",
            "evaluate.numerics is portable, which needs a processor",
        ),
        ("nonsense", "AVX2", ""),
        ({"device": 3}, "AVX2", ""),
    ],
    ids=["auto", "fine", "cuda", "mps", "no AVX2", "no mapping", "wrong type"],
)
def test_the_requirements_of_a_later_stage_are_checked(
    options: object, capability: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.network.device.available", lambda: {"cpu": 1, "cuda": 0, "mps": 0})
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    if not expected:
        device.check_section(options, "evaluate")
        return
    with pytest.raises(UserError, match=expected):
        device.check_section(options, "evaluate")
