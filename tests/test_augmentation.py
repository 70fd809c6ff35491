"""Augmentation for photographs, mixtures and class weights, compared with torchvision and with their definitions."""

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from stages.common import params
from stages.common.errors import Interrupted, UserError
from stages.dataset.data_card import DataCard
from stages.network import losses, models
from stages.train import checks, class_weights, mixing, options, photographs
from stages.train.augmentation import AUGMENTATIONS, MIXTURES, compose
from stages.train.checkpoint import Checkpoints
from stages.train.options import Train
from tests.imports import ROOT
from tests.test_fit import same, train
from tests.test_resume import after

DEFAULTS = params.load(ROOT / "params.yaml")
BLOCKS = DEFAULTS["augmentations"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator(seed))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [*AUGMENTATIONS, *MIXTURES])
def test_an_augmentation_is_a_function_of_the_seed_only(name: str, channels: int) -> None:
    images, labels = pictures(6, channels, 12, 10), torch.arange(6)
    augment = compose({name: BLOCKS[name]}, classes=6)
    first, targets = augment(images, labels, generator(1))
    torch.rand(1000)  # from the global generator, which must have no influence
    again, same_targets = augment(images, labels, generator(1))
    assert torch.equal(first, again)
    assert torch.equal(targets, same_targets)
    assert first.shape == images.shape
    assert first.min() >= 0
    assert first.max() <= 255
    assert (name == "none") == torch.equal(first, augment(images, labels, generator(2))[0])


@pytest.mark.parametrize(
    "names",
    [[name] for name in (*AUGMENTATIONS, *MIXTURES) if name != "none"] + [["affine", "flip", "mixup", "cutmix"]],
)
def test_threads_and_resuming_change_no_bit(names: list[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"model": "cnn", "augmentation": tuple(names), "shards": 3, "epochs": 2}
    whole, history, _ = train(**options, threads=1)
    with pytest.raises(Interrupted):
        train(**options, threads=3, checkpoints=Checkpoints("a", 1e9), stop=after(25))
    resumed, rows, _ = train(**options, threads=2, checkpoints=Checkpoints("a", 1e9))
    assert same(resumed, whole)
    assert rows == history


def test_mixed_precision_augments_as_float32_does(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {"float32": [], "bfloat16": []}
    normalize = models.Normalize.forward

    def forward(self: models.Normalize, images: Tensor) -> Tensor:
        if images.dtype == torch.float32:  # augmented: validation images are uint8
            seen[precision].append(images)
        return normalize(self, images)

    monkeypatch.setattr(models.Normalize, "forward", forward)
    for precision in seen:
        train(augmentation="affine", precision=precision, epochs=1)
    assert len(seen["float32"]) > 10
    assert all(torch.equal(*pair) for pair in zip(*seen.values(), strict=True))


def test_every_name_has_a_function_a_block_and_a_schema() -> None:
    names = [*AUGMENTATIONS, *MIXTURES]
    assert names == list(get_args(options.Augmentation)) == list(options.AUGMENTATIONS)
    assert set(names) == set(BLOCKS)
    assert ["none", *class_weights.CLASS_WEIGHTS] == list(options.CLASS_WEIGHTS) == list(DEFAULTS["class_weights"])


def test_one_name_equals_a_list_of_it_and_the_order_of_a_list_matters() -> None:
    assert Train.model_validate(DEFAULTS["train"]).augmentation == ["affine"]
    images, labels = pictures(8, 1, 9, 9), torch.arange(8)
    one = compose({"flip": BLOCKS["flip"], "shift": BLOCKS["shift"]}, 8)(images, labels, generator())[0]
    other = compose({"shift": BLOCKS["shift"], "flip": BLOCKS["flip"]}, 8)(images, labels, generator())[0]
    assert not torch.equal(one, other)


def test_the_next_augmentation_gets_whole_numbers() -> None:
    images, labels = pictures(8, 3, 9, 9), torch.arange(8)
    both = compose({name: BLOCKS[name] for name in ("affine", "trivial_augment")}, 8)(images, labels, generator(3))[0]
    assert both.dtype == torch.uint8  # torchvision's kernels expect floats in 0 … 1


# --- against torchvision


@pytest.mark.parametrize("shape", [(40, 40), (30, 90)])
def test_boxes_are_drawn_as_torchvision_draws_them(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    images, scale, ratio = pictures(1, 1, *shape).expand(4000, -1, -1, -1), (0.1, 0.9), (0.5, 2.0)
    ours = np.stack(photographs.random_boxes(images, generator(), scale, ratio), axis=1)
    theirs = v2.RandomResizedCrop(shape, scale=scale, ratio=ratio)
    drawn = [theirs.make_params([images[0]]) for _ in range(4000)]
    expected = np.array([[box[key] for key in ("top", "left", "height", "width")] for box in drawn])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= shape).all()
    for measure in (np.mean, np.std):
        spread = expected.std(axis=0) / np.sqrt(len(expected))
        assert (np.abs(measure(ours, axis=0) - measure(expected, axis=0)) < 6 * spread).all()


def test_if_no_box_fits_the_largest_one_in_the_middle_is_used() -> None:
    images, scale, ratio = pictures(2, 1, 10, 100), (1.0, 1.0), (0.5, 2.0)
    top, left, height, width = photographs.random_boxes(images, generator(), scale, ratio)
    assert [side.tolist() for side in (top, left, height, width)] == [[0, 0], [40, 40], [10, 10], [20, 20]]
    theirs = v2.RandomResizedCrop((10, 100), scale=scale, ratio=ratio).make_params([images[0]])
    assert theirs == {"top": 0, "left": 40, "height": 10, "width": 20}
    for ratio in ((0.01, 0.01), (100.0, 100.0)):  # torchvision's box would be empty
        assert photographs.random_resized_crop(images[:, :, :9, :9], generator(), scale, ratio).shape == (2, 1, 9, 9)


def test_a_crop_is_that_of_torchvision() -> None:
    images = pictures(5, 3, 20, 16)
    box = {"scale": (0.2, 0.5), "ratio": (0.75, 1.33)}
    cropped = photographs.random_resized_crop(images, generator(4), **box)
    boxes = photographs.random_boxes(images, generator(4), **box)
    for index, (top, left, height, width) in enumerate(zip(*boxes, strict=True)):
        part = images[index : index + 1, :, top : top + height, left : left + width]
        assert torch.equal(cropped[index], v2.functional.resize(part, [20, 16], antialias=True)[0])


def test_colours_are_changed_as_torchvision_changes_them() -> None:
    images, options = pictures(7, 3, 9, 8), {"brightness": 0.4, "contrast": 0.3, "saturation": 0.5, "hue": 0.2}
    changed = photographs.colour_jitter(images, generator(5), **options)
    draws = generator(5)
    orders = torch.rand(7, 4, generator=draws).argsort(dim=1)
    shares = torch.rand(7, 4, generator=draws).tolist()
    keys = [f"{name}_factor" for name in options]
    ranges = [(0.6, 1.4), (0.7, 1.3), (0.5, 1.5), (-0.2, 0.2)]
    for image, order, row, mine in zip(images, orders, shares, changed, strict=True):
        factors = [low + (high - low) * share for share, (low, high) in zip(row, ranges, strict=True)]
        values = dict(zip(keys, factors, strict=True))
        assert torch.equal(v2.ColorJitter(**options).transform(image, {"fn_idx": order, **values}), mine)
    assert len({tuple(order) for order in orders.tolist()}) > 3


def test_trivial_augment_has_the_changes_and_ranges_of_torchvision() -> None:
    image, theirs = pictures(1, 3, 24, 20)[0], v2.TrivialAugmentWide()
    space = theirs._AUGMENTATION_SPACE
    assert len(photographs.trivial_changes()) == len(space)
    for change, (name, (magnitudes_of, signed)) in zip(photographs.trivial_changes(), space.items(), strict=True):
        magnitudes = magnitudes_of(31, 24, 20)
        for step in (0, 7, 30):
            magnitude = 0.0 if magnitudes is None else float(magnitudes[step])
            for sign in (1, -1) if signed else (1,):
                expected = theirs._apply_image_or_video_transform(image, name, sign * magnitude, "nearest", {})
                # torchvision computes magnitudes in float32, which may round a pixel differently.
                different = (change(image, sign * step / 30).int() - expected.int()).abs()
                assert different.bool().float().mean() < 0.02, (name, step)


# --- flips, boxes, mixtures


def test_flip_mirrors_the_given_share_of_images() -> None:
    images = pictures(400, 1, 6, 5)
    moved = photographs.flip(images, generator(), probability=0.25)
    same_images = (moved == images).flatten(1).all(1)
    assert ((moved == images.flip(3)).flatten(1).all(1) ^ same_images).all()
    assert 60 < (~same_images).sum() < 140
    assert torch.equal(photographs.flip(images, generator(), probability=1.0), images.flip(3))


def test_erasing_makes_a_box_black_and_leaves_the_rest() -> None:
    images = pictures(500, 3, 20, 20).clamp(min=1)
    erased = photographs.random_erasing(images, generator(), probability=0.5, scale=(0.1, 0.2), ratio=(0.5, 2.0))
    black = (erased == 0).all(dim=1)  # (N, H, W)
    share = black.flatten(1).float().mean(dim=1)
    assert 200 < (share > 0).sum() < 300
    assert share[share > 0].min() > 0.08
    assert share.max() < 0.23
    assert torch.equal(erased[~black[:, None].expand_as(erased)], images[~black[:, None].expand_as(images)])


@pytest.mark.parametrize("name", MIXTURES)
def test_an_image_and_its_target_are_mixed_with_the_same_weight(name: str) -> None:
    labels = torch.arange(300) % 2
    images = (labels * 200)[:, None, None, None].expand(-1, 1, 30, 30).to(torch.uint8)  # the label is the brightness
    mixed, targets = MIXTURES[name](images, mixing.shares_of(labels, 2), generator(), alpha=1.0)
    assert torch.allclose(targets.sum(dim=1), torch.ones(300))
    assert torch.allclose(mixed.float().mean(dim=(1, 2, 3)) / 200, targets[:, 1], atol=1e-3)
    assert 0.2 < targets[:, 1].std() < 0.45  # each image has its own share


def test_the_weight_of_a_mixture_has_the_beta_distribution() -> None:
    for alpha in (0.2, 1.0, 5.0):
        drawn = mixing.beta(20_000, alpha, generator())
        assert drawn.mean() == pytest.approx(0.5, abs=0.01)
        assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_takes_shares_of_classes(name: str, smoothing: float) -> None:
    logits, labels = torch.randn(5, 4, generator=generator()), torch.tensor([0, 1, 2, 3, 1])
    loss, hard = losses.LOSSES[name], F.one_hot(labels, 4).float()
    for reduction in ("mean", "none"):
        by_label = loss(logits, labels, smoothing, reduction)
        assert torch.allclose(loss(logits, hard, smoothing, reduction), by_label, atol=1e-6)
    assert torch.allclose(loss(logits, labels, smoothing, "none").mean(), loss(logits, labels, smoothing, "mean"))
    # Cross entropy is linear in the target, so that of a mixture is the mixture of those of its classes.
    if name != "mse":
        half = loss(logits, (hard + hard.roll(1, 1)) / 2, smoothing, "mean")
        other = loss(logits, (labels + 1) % 4, smoothing, "mean")
        assert torch.allclose(half, (loss(logits, labels, smoothing, "mean") + other) / 2)


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_every_loss_learns_from_mixtures(loss: str) -> None:
    accuracy = train("mlp", loss, lr=0.01, epochs=5, augmentation=("mixup", "cutmix"), class_weights="balanced")[2]
    assert accuracy > 0.9  # chance is 0.33


# --- class weights, clipping


def test_balanced_weights_give_every_class_the_same_total() -> None:
    images = [900, 90, 10]
    weights = class_weights.scaled(class_weights.balanced(images), images)
    assert (weights * torch.tensor(images)).tolist() == pytest.approx([1000 / 3] * 3)


def test_effective_weights_lie_between_none_and_balanced() -> None:
    images = [900, 90, 10]
    balanced = class_weights.scaled(class_weights.balanced(images), images)
    for beta, expected in ((1e-9, torch.ones(3)), (1 - 1e-9, balanced)):
        assert torch.allclose(class_weights.scaled(class_weights.effective(images, beta), images), expected, rtol=1e-3)
    raw = class_weights.effective(images, 0.99)
    assert raw == pytest.approx([0.01 / (1 - 0.99**count) for count in images])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_weighted_loss_is_torchs_if_the_batch_has_the_classes_of_the_data(smoothing: float) -> None:
    images, labels = [4, 2, 2], torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    logits, loss = torch.randn(8, 3, generator=generator()), losses.LOSSES["cross_entropy"]
    ours = class_weights.objective_of(loss, smoothing, "balanced", {}, images)
    weights = class_weights.scaled(class_weights.balanced(images), images)
    if smoothing == 0:  # with smoothing, torch also weights the other classes' share
        assert torch.allclose(ours(logits, labels), F.cross_entropy(logits, labels, weight=weights))
    # The loss of a batch is the mean over its parts, however the classes are distributed.
    parts = [ours(logits[part], labels[part]) for part in (slice(0, 4), slice(4, 8))]
    assert torch.allclose(torch.stack(parts).mean(), ours(logits, labels))
    assert torch.allclose(ours(logits, F.one_hot(labels, 3).float()), ours(logits, labels))


def test_class_weights_favour_rare_classes() -> None:
    """A constant classifier predicts the class that counts most in the loss."""
    images, labels = [90, 10], torch.tensor([0] * 90 + [1] * 10)
    for name, expected in (("none", 0.9), ("balanced", 0.5)):
        logits = torch.zeros(2, requires_grad=True)
        objective = class_weights.objective_of(losses.LOSSES["cross_entropy"], 0.0, name, {}, images)
        optimizer = torch.optim.SGD([logits], lr=1.0)
        for _ in range(200):
            optimizer.zero_grad()
            objective(logits.expand(100, 2), labels).backward()
            optimizer.step()
        assert logits.softmax(0)[0].item() == pytest.approx(expected, abs=0.01)


def test_clipping_limits_the_norm_over_all_weights() -> None:
    def moved(clip_norm: float) -> float:
        options: dict[str, Any] = {"optimizer": "sgd", "lr": 1.0, "epochs": 1, "validation": 0}
        start, end = train(**options, clip_norm=1e-9)[0], train(**options, clip_norm=clip_norm, shards=3)[0]
        squares = [((end[name] - start[name]) ** 2).sum().item() for name in start]
        return math.sqrt(sum(squares))

    steps = 19
    assert 0.001 < moved(0.001) <= steps * 0.001 * 1.01
    assert moved(0.0) > steps * 0.001 * 2


# --- bad input


CARD = DataCard(image_shape=[1, 4, 4], classes=["cat", "dog", "eel"], mean=[0.5], std=[0.5], preparation=None)


def with_weights(name: str) -> Train:
    return Train.model_validate({**DEFAULTS["train"], "class_weights": name})


def test_a_class_without_an_image_has_no_weight() -> None:
    checks.check_data(with_weights("none"), [5, 0, 5], 1, CARD)
    with pytest.raises(
        UserError, match=r"^params.yaml: train.class_weights is balanced, and the training part has no im"
    ):
        checks.check_data(with_weights("balanced"), [5, 0, 5], 1, CARD)


def test_grey_images_have_no_hue() -> None:
    checks.check_augmentation({"colour_jitter": BLOCKS["colour_jitter"]}, 3)
    checks.check_augmentation({"colour_jitter": {**BLOCKS["colour_jitter"], "saturation": 0, "hue": 0}}, 1)
    with pytest.raises(
        UserError, match="augmentations.colour_jitter.saturation is 0.4, and the images are grey; allowed"
    ):
        checks.check_augmentation({"colour_jitter": BLOCKS["colour_jitter"]}, 1)
