"""The rooms of preprocess: split, normalization, packed files, data card."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from stages.common.errors import UserError
from stages.dataset import data_card, packed
from stages.dataset.data_card import DataCard
from stages.preprocess.normalization import NORMALIZATIONS
from stages.preprocess.split import stratified
from tests import forging


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 4), max_size=200).map(lambda items: np.array(items, dtype=np.int64)),
    st.floats(0, 0.9),
    st.integers(0, 2**32 - 1),
)
def test_a_split_is_a_partition_with_each_class_in_proportion(labels: np.ndarray, fraction: float, seed: int) -> None:
    training, validation = stratified(labels, fraction, seed)
    assert sorted([*training, *validation]) == list(range(len(labels)))
    assert list(training) == sorted(training)
    for label in range(5):
        members = int((labels == label).sum())
        assert int((labels[validation] == label).sum()) == round(fraction * members)


def test_a_split_depends_on_the_seed_and_on_nothing_else() -> None:
    labels = np.arange(1000) % 10
    first, again, other = (stratified(labels, 0.1, seed)[1] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    # Which images of class 0 are drawn does not change with the other classes.
    relabelled = np.where(labels == 9, 8, labels)
    assert set(first[labels[first] == 0]) == set((moved := stratified(relabelled, 0.1, 3)[1])[relabelled[moved] == 0])


def test_normalization_is_the_mean_and_standard_deviation_of_each_channel() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5000, 3, 4, 5), dtype=np.uint8)
    images[:, 1] //= 2
    mean, std = NORMALIZATIONS["dataset"](images)
    assert np.allclose(mean, (images / 255).mean(axis=(0, 2, 3)), atol=1e-12)
    assert np.allclose(std, (images / 255).std(axis=(0, 2, 3)), atol=1e-12)
    assert NORMALIZATIONS["half"](images) == ([0.5] * 3, [0.5] * 3)
    assert NORMALIZATIONS["none"](images) == ([0.0] * 3, [1.0] * 3)


def test_a_channel_that_does_not_vary_is_not_divided_by_zero() -> None:
    assert NORMALIZATIONS["dataset"](np.full((2, 1, 3, 3), 51, dtype=np.uint8)) == ([0.2], [1.0])


IMAGES = np.arange(2 * 12, dtype=np.uint8).reshape(2, 1, 3, 4)
LABELS = np.array([1, 0], dtype=np.int64)


def test_a_packed_split_comes_back_and_is_the_same_bytes_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        packed.write(tmp_path / name, IMAGES, LABELS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    images, labels = packed.read(tmp_path / "a", (1, 3, 4), 2)
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)


def test_an_empty_split_comes_back(tmp_path: Path) -> None:
    packed.write(tmp_path / "a", IMAGES[:0], LABELS[:0])
    images, labels = packed.read(tmp_path / "a", (1, 3, 4), 2)
    assert images.shape == (0, 1, 3, 4)
    assert labels.shape == (0,)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a safetensors file"),
        (b"\x80\x05cos\nsystem\n(S'touch x'\ntR.", "not a safetensors file"),  # a pickle
        (b"\xff" * 100, "not a safetensors file"),
        (save({"images": IMAGES}), "holds images; expected images and labels"),
        (save({"images": IMAGES, "labels": LABELS, "more": LABELS}), "holds images, labels, more; expected"),
        (save({"images": IMAGES.astype(np.float32), "labels": LABELS}), "images are float32"),
        (save({"images": IMAGES[:1], "labels": LABELS}), r"images are uint8 \(1, 1, 3, 4\); expected uint8 \(2, 1, 3"),
        (save({"images": IMAGES[:, :, :2], "labels": LABELS}), "images are uint8"),
        (save({"images": IMAGES, "labels": LABELS.astype(np.int32)}), "labels are int32"),
        (save({"images": IMAGES, "labels": LABELS + 1}), "labels run from 1 to 2; expected 0 to 1"),
        (save({"images": IMAGES, "labels": LABELS - 1}), "labels run from -1 to 0; expected 0 to 1"),
        (save({"images": IMAGES, "labels": LABELS})[:-3], "not a safetensors file"),
    ],
)
def test_a_file_that_is_no_packed_split(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "train.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        packed.read(path, (1, 3, 4), 2)


WHOLE = save({"images": IMAGES, "labels": LABELS})


@settings(max_examples=300, deadline=None)
@given(forging.forged_safetensors(WHOLE) | forging.mutated_bytes(WHOLE))
def test_no_forged_split_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "train.safetensors"
    path.write_bytes(content)
    try:
        images, labels = packed.read(path, (1, 3, 4), 2)
    except UserError as error:
        message = str(error)
    else:
        message = str(path)
        assert images.shape == (len(labels), 1, 3, 4)
        assert set(labels.tolist()) <= {0, 1}
    assert str(path) in message


CARD = DataCard(classes=["a", "b"], image_shape=[1, 3, 4], mean=[1 / 3], std=[0.25])


def test_a_card_comes_back_with_every_digit(tmp_path: Path) -> None:
    data_card.write(tmp_path / "data.json", CARD)
    assert data_card.read(tmp_path / "data.json") == CARD


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "Invalid JSON"),
        ("[]", "the file"),
        (CARD.model_dump_json().replace("0.25", "0.0"), r"std.0: .* greater than 0"),
        (CARD.model_dump_json().replace("0.25", "NaN"), "std.0"),
        (CARD.model_dump_json().replace("[0.25]", "[0.25, 1.0]"), "a number for each channel"),
        (CARD.model_dump_json().replace('"b"', "1"), "classes.1"),
    ],
)
def test_a_card_that_is_wrong(content: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=expected):
        data_card.read(tmp_path / "data.json")
