"""The rooms of train: networks, model files, losses, schedules, augmentation, batches, device."""

import json
import math
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torchvision.transforms.v2 import functional as tv

from stages import augmentation, device, losses, model_file, models, schedules
from stages.batches import EpochBatches, PackedImages, loader
from stages.errors import UserError
from stages.model_file import Spec
from stages.params.model import Name
from tests import forging

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
    assert torch.equal(logits, model(images.float()))  # what augmentation gives


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
        format=1, model=name, options=OPTIONS[name], image_shape=[1, 8, 8], classes=["a", "b"], output="softmax"
    )
    return models.build(name, OPTIONS[name], (1, 8, 8), 2, [0.4], [0.3]).eval(), spec


@pytest.mark.parametrize("name", models.MODELS)
def test_a_model_comes_back_and_is_the_same_bytes_twice(name: Name, tmp_path: Path) -> None:
    model, spec = small_model(name)
    for file in ("a", "b"):
        model_file.write(tmp_path / file, model, spec)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read, read_spec = model_file.read(tmp_path / "a")
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(read(images), model(images))
    assert read_spec == spec
    assert not read.training


def forged(**changes: Any) -> bytes:
    """A model file with some tensors (`changes`) replaced, or left out where None."""
    model, spec = small_model()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    header = changes.pop("spec", spec.model_dump())
    tensors.update({name.replace("__", "."): value for name, value in changes.items()})
    kept = {name: value for name, value in tensors.items() if value is not None}
    return save(kept, metadata={"spec": header if isinstance(header, str) else json.dumps(header)})


def with_spec(**changes: Any) -> bytes:
    return forged(spec={**small_model()[1].model_dump(), **changes})


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
        (with_spec(format=2), "not one of this pipeline's models: format"),
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
        (forged(**{"0__std": torch.full((1, 1, 1), math.inf)}), "0.std holds NaN or infinite"),
    ],
)
def test_a_file_that_is_no_model_is_refused(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        model_file.read(path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]  # nothing was run


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_change_of_bytes_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(forged())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "model.safetensors"
    path.write_bytes(bytes(content))
    message = str(path)  # a changed weight may be read; anything else is refused
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
    else:  # nothing that matters was changed: it is a model that can be used
        message = str(path)
        assert model(torch.zeros(1, *spec.image_shape, dtype=torch.uint8)).shape == (1, len(spec.classes))
    assert str(path) in message


# --- losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_what_their_names_say(smoothing: float) -> None:
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
        assert torch.allclose(loss(logits, labels, smoothing), expected[name]), name


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
    # The way down is theirs; the way up is a straight line here and a cosine there.
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


def test_affine_with_nothing_to_do_changes_nothing() -> None:
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


def test_elastic_bends_by_pixels_and_smoothly() -> None:
    ramp = torch.arange(40.0).expand(64, 1, 40, 40)  # the value of a pixel is its column
    moved = augmentation.affine(ramp, generator(), **{**STILL, "elastic_pixels": 1.0}) - ramp
    inside = moved[:, :, 8:-8, 8:-8]
    assert 0.5 < inside.std() < 1.1  # a standard deviation of one pixel at the grid's points, less between them
    assert (inside[..., 1:] - inside[..., :-1]).abs().max() < 0.8  # neighbours move together


def test_the_bend_is_bicubic_between_the_points() -> None:
    grid = torch.randn(3, 2, 5, 5)
    ours = augmentation._between(5, 28) @ grid @ augmentation._between(5, 17).T
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


def epochs(num_workers: int, *which: int, shuffle: bool = True, count: int = 103) -> list[list[int]]:
    """The labels of each batch of some epochs; an image's label is its position."""
    images = torch.arange(count, dtype=torch.uint8).reshape(count, 1, 1, 1)
    sampler = EpochBatches(count, 10, shuffle, seed=5)
    batches = loader(PackedImages(images, torch.arange(count)), sampler, num_workers, pin_memory=False)
    rows = []
    for epoch in which:
        sampler.epoch = epoch
        for pixels, labels in batches:
            assert torch.equal(pixels.flatten().long(), labels)
            rows.append(labels.tolist())
    return rows


def test_every_image_comes_once_an_epoch() -> None:
    rows = epochs(0, 1)
    assert [len(row) for row in rows] == [10] * 10 + [3]
    assert sorted(chain(*rows)) == list(range(103))
    assert list(chain(*rows)) != list(range(103))


def test_batches_are_a_function_of_the_epoch_not_of_what_came_before() -> None:
    first, second = epochs(0, 1), epochs(0, 2)
    assert epochs(0, 1, 2) == first + second
    assert first != second


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")  # more than a small machine has cores
@pytest.mark.parametrize("num_workers", [1, 3])
def test_any_number_of_workers_gives_the_same_batches(num_workers: int) -> None:
    assert epochs(num_workers, 1, 2) == epochs(0, 1, 2)


def test_without_shuffle_the_order_is_the_files() -> None:
    assert list(chain(*epochs(0, 3, shuffle=False))) == list(range(103))


@pytest.mark.parametrize(("count", "batches"), [(1, 1), (10, 1), (11, 1), (12, 2), (20, 2)])
def test_a_single_image_left_over_is_left_out(count: int, batches: int) -> None:
    assert len(epochs(0, 1, count=count)) == batches
    assert len(EpochBatches(count, 10, True, 0)) == batches


def test_images_and_labels_of_different_number_are_refused() -> None:
    with pytest.raises(ValueError, match="3 images and 2 labels"):
        PackedImages(torch.zeros(3, 1, 1, 1), torch.zeros(2))


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
def test_the_device_that_is_chosen(wanted: str, there: dict[str, int], chosen: str) -> None:
    assert device.choose(wanted, there, "train.device") == chosen


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"train\.device is cuda, and this machine has none; it has: cpu, mps"):
        device.choose("cuda", {"cpu": 1, "cuda": 0, "mps": 1}, "train.device")


def test_torchrun_is_refused() -> None:
    device.one_process({})
    device.one_process({"WORLD_SIZE": "1"})
    with pytest.raises(UserError, match="one of 4 processes"):
        device.one_process({"WORLD_SIZE": "4"})


def test_precision_that_the_device_does_not_have() -> None:
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


def test_several_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A GPU")
    there = {"cpu": 1, "cuda": 3, "mps": 0}
    assert device.describe("cuda", there, 2).startswith("device: cuda:0, A GPU (2 more not used")
    assert device.describe("cuda", {**there, "cuda": 1}, 2) == "device: cuda:0, A GPU"
