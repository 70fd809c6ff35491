"""The rooms of preprocess: split, normalization, packed files, data card."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from stages.common.errors import UserError
from stages.dataset import data_card, packed
from stages.dataset.data_card import DataCard
from stages.preprocess.normalization import NORMALIZATIONS, sums
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
    mean, std = NORMALIZATIONS["dataset"](sums(images[:3]) + sums(images[3:]))
    assert np.allclose(mean, (images / 255).mean(axis=(0, 2, 3)), atol=1e-12)
    assert np.allclose(std, (images / 255).std(axis=(0, 2, 3)), atol=1e-12)
    assert NORMALIZATIONS["half"](sums(images)) == ([0.5] * 3, [0.5] * 3)
    assert NORMALIZATIONS["none"](sums(images)) == ([0.0] * 3, [1.0] * 3)


def test_a_channel_that_does_not_vary_is_not_divided_by_zero() -> None:
    assert NORMALIZATIONS["dataset"](sums(np.full((2, 1, 3, 3), 51, dtype=np.uint8))) == ([0.2], [1.0])


@pytest.mark.parametrize("shape", [(2, 3, 300, 301), (3, 1, 256, 256), (70_000, 1, 1, 1)])
def test_the_sums_of_the_normalization_are_exact(shape: tuple[int, ...]) -> None:
    images = np.full(shape, 255, dtype=np.uint8)  # whose squares are the largest
    images[-1] = 254
    wide = images.astype(object).transpose(1, 0, 2, 3).reshape(shape[1], -1)
    assert sums(images).tolist() == [
        [wide.shape[1]] * shape[1],
        *((wide**power).sum(axis=1).tolist() for power in (1, 2)),
    ]


IMAGES = np.arange(2 * 12, dtype=np.uint8).reshape(2, 1, 3, 4)
LABELS = np.array([1, 0], dtype=np.int64)


def test_a_packed_split_comes_back_and_is_the_same_bytes_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        packed.write(tmp_path / name, IMAGES, LABELS)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    split = packed.open_split(tmp_path / "a", (1, 3, 4), 2)
    assert np.array_equal(split[:], IMAGES)
    assert np.array_equal(split.labels, LABELS)
    assert split.nbytes == IMAGES.nbytes
    # A shard is what safetensors' own writer would have written.
    assert (tmp_path / "a/00000.safetensors").read_bytes() == save({"images": IMAGES, "labels": LABELS})


def test_an_empty_split_comes_back(tmp_path: Path) -> None:
    packed.write(tmp_path / "a", IMAGES[:0], LABELS[:0])
    split = packed.open_split(tmp_path / "a", (1, 3, 4), 2)
    assert split[:].shape == split.gather([]).shape == (0, 1, 3, 4)
    assert split.labels.shape == (0,)
    assert len(split) == 0


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def many(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images uint8 (count, 1, 3, 4), and labels."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 1, 3, 4), dtype=np.uint8), random.integers(0, 2, count)


@pytest.fixture
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SHARD_BYTES", 40 * 12)  # of 10 to 40 images


@pytest.mark.usefixtures("_small_shards")
def test_a_split_of_many_shards_is_read_as_one_array(tmp_path: Path) -> None:
    images, labels = many(1000, 0)
    packed.write(tmp_path, images, labels)
    split = packed.open_split(tmp_path, (1, 3, 4), 2)
    sizes = [len(shard) for shard in split.shards]
    assert len(sizes) > 25
    assert max(sizes) <= 40
    assert min(sizes[:-1]) >= 10
    assert np.array_equal(split[:], images)
    assert np.array_equal(split[990:1010], images[990:])
    assert np.array_equal(split.labels, labels)
    where = np.random.default_rng(1).permutation(1000)[:300]
    assert np.array_equal(split.gather(where.tolist()), images[where])
    assert not any(shard.flags.writeable for shard in split.shards)
    sent = pickle.dumps(split)  # as a worker gets it: opened again there, and no image is sent
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent)[:], images)


@pytest.mark.usefixtures("_small_shards")
def test_images_that_are_added_change_few_shards(tmp_path: Path) -> None:
    images, labels = many(1000, 0)
    more, more_labels = many(30, 1)
    before, after = tmp_path / "before", tmp_path / "after"
    packed.write(before, images, labels)
    packed.write(after, np.insert(images, [400], more, axis=0), np.insert(labels, [400], more_labels))
    unchanged = {content for name, content in content(before).items() if name != packed.INDEX}
    new = {content for name, content in content(after).items() if name != packed.INDEX} - unchanged
    assert len(unchanged) > 25
    assert 0 < len(new) <= 5


def test_a_shard_never_exceeds_its_size_whatever_the_digests_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SHARD_BYTES", 100)
    assert packed.shard_ends([b"\x01" * 8] * 25, 10) == [10, 20, 25]  # no digest ends a shard
    assert packed.shard_ends([bytes(8)] * 5, 10) == [2, 4, 5]  # each does
    assert packed.shard_ends([b"\x01" * 8] * 3, 1000) == [1, 2, 3]  # an image is larger than a shard should be
    assert packed.shard_ends([], 10) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a safetensors file"),
        (b"\x80\x05cos\nsystem\n(S'touch x'\ntR.", "not a safetensors file"),  # a pickle
        (b"\xff" * 100, "not a safetensors file"),
        (save({"images": IMAGES}), "contains images; expected images and labels"),
        (save({"images": IMAGES, "labels": LABELS, "more": LABELS}), "contains images, labels, more; expected"),
        (save({"images": IMAGES.astype(np.float32), "labels": LABELS}), "images are F32"),
        (save({"images": IMAGES[:1], "labels": LABELS}), r"images are U8 \(1, 1, 3, 4\); expected U8 \(2, 1, 3, 4\)"),
        (save({"images": IMAGES[:, :, :2], "labels": LABELS}), "images are U8"),
        (save({"images": IMAGES, "labels": LABELS.astype(np.int32)}), "labels are I32"),
        (save({"images": IMAGES[:1], "labels": LABELS[:1]}), r"labels are I64 \(1,\); expected I64 \(2,\)"),
        (save({"images": IMAGES, "labels": LABELS + 1}), "labels range from 1 to 2; expected 0 to 1"),
        (save({"images": IMAGES, "labels": LABELS - 1}), "labels range from -1 to 0; expected 0 to 1"),
        (save({"images": IMAGES, "labels": LABELS})[:-3], "not a safetensors file"),
    ],
)
def test_a_file_that_is_no_packed_split(content: bytes, expected: str, tmp_path: Path) -> None:
    packed.write(tmp_path, IMAGES, LABELS)
    (tmp_path / "00000.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=expected) as error:
        packed.open_split(tmp_path, (1, 3, 4), 2)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.usefixtures("_small_shards")
def test_a_folder_that_is_no_packed_split(tmp_path: Path) -> None:
    def expect(line: str) -> None:
        with pytest.raises(UserError, match=line) as error:
            packed.open_split(tmp_path / "train", (1, 3, 4), 2)
        assert len(str(error.value).splitlines()) == 1

    expect(r"train/index\.json: no such file; `dvc repro` makes it")
    packed.write(tmp_path / "train", *many(200, 0))
    index = tmp_path / "train" / packed.INDEX
    last = max((tmp_path / "train").glob("*.safetensors"))
    complete = last.read_bytes()
    last.unlink()
    expect(rf"train/{last.name}: no such file, but index\.json lists it; `dvc repro --force preprocess` makes it again")
    last.write_bytes(complete[:-1])
    expect(f"train/{last.name}: not a safetensors file")
    last.write_bytes(complete)
    (last.parent / "00099.safetensors").write_bytes(complete)
    expect(r"train/00099\.safetensors: a shard that index\.json does not list")
    (last.parent / "00099.safetensors").unlink()
    (last.parent / ".DS_Store").write_bytes(b"")  # what a file manager leaves
    assert len(packed.open_split(tmp_path / "train", (1, 3, 4), 2)) == 200
    rows = packed.Index.model_validate_json(index.read_bytes()).shards
    packed.write_index(tmp_path / "train", [*rows[1:], rows[0]])
    expect(r"labels are I64 \(\d+,\); expected I64")
    for content in ("", "[]", '{"shards": [{"images": 0, "sha256": ""}]}', '{"shards": 3}'):
        index.write_text(content, encoding="utf-8")
        expect(r"train/index\.json: ")


WHOLE = save({"images": IMAGES, "labels": LABELS})


@settings(max_examples=300, deadline=None)
@given(forging.forged_safetensors(WHOLE) | forging.mutated_bytes(WHOLE))
def test_no_forged_split_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "forged"
    packed.write(folder, IMAGES, LABELS)
    (folder / "00000.safetensors").write_bytes(content)
    try:
        split = packed.open_split(folder, (1, 3, 4), 2)
    except UserError as error:
        message = str(error)
    else:
        message = str(folder)
        assert split[:].shape == (len(split), 1, 3, 4)
        assert set(split.labels.tolist()) <= {0, 1}
    assert str(folder) in message


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
        (CARD.model_dump_json().replace("[0.25]", "[0.25, 1.0]"), "one number per channel"),
        (CARD.model_dump_json().replace('"b"', "1"), "classes.1"),
    ],
)
def test_a_card_that_is_wrong(content: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=expected):
        data_card.read(tmp_path / "data.json")
