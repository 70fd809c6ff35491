"""The audit of pictures: each thing that may be wrong with them, put there on purpose, and nothing else."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from stages.common import paths
from stages.dataset import packed
from stages.dataset.data_card import DataCard
from stages.dataset.folder import Part
from stages.dataset.packed import Split
from stages.preprocess import audit, own, pack, survey
from stages.preprocess.options import Preprocess
from tests.test_folder import fill, zipped
from tests.test_pictures import saved

OPTIONS = Preprocess(
    validation_fraction=0.0,
    seed=0,
    normalization="dataset",
    test_fraction=0.0,
    group_by="none",
    channels="auto",
    image_size=[32, 32],
    resize="stretch",
    background=[255, 255, 255],
    bad_images="skip",
    on_conflict="drop",
    small_classes="drop",
)


def scene(seed: int) -> Image.Image:
    """A picture that looks like no other."""
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((60, 50), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int) -> bytes:
    return saved(image, "JPEG", quality=quality)


def audited(root: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    return prepared(root, monkeypatch, **options)[2]


def prepared(
    root: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[DataCard, Mapping[Part, Split], dict[str, Any]]:
    monkeypatch.chdir(root.parent)
    targets: dict[Part, Path] = {"train": paths.TRAIN, "validation": paths.VALIDATION, "test": paths.TEST}
    return own.prepare(root, "classification", OPTIONS.model_copy(update=options), targets, 1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    contents = {f"train/{label}/{seed}.png": saved(scene(seed)) for seed, label in enumerate("aabb")}
    contents |= {f"test/{label}/{seed}.png": saved(scene(10 + seed)) for seed, label in enumerate("ab")}
    return fill(tmp_path / "images", contents)


def test_nothing_is_wrong(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = audited(root, monkeypatch)
    assert found["files"] == 6
    assert found["layout"] == "train, test folders with a folder per class"
    assert (found["formats"], found["modes"]) == ({"PNG": 6}, {"RGB": 6})
    assert (found["width"], found["height"], found["aspect_ratio"]) == ([60] * 5, [50] * 5, [1.2] * 5)
    assert not found["turned_by_exif"]
    for key in ("unusable", "conflicts", "small_classes", "copies_in_two_parts", "near_copies", "constant"):
        assert found[key] == [], key
    assert found["left_out"] == {"unusable": 0, "conflicts": 0, "small_classes": 0}
    assert found["exact_copies"] == {"pictures": 0, "contents": 0, "contents_in_two_parts": 0}


def test_everything_that_is_wrong_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(
        root,
        {
            "train/a/copy.png": saved(scene(0)),  # in one part and one class
            "test/a/leak.png": saved(scene(1)),  # of train/a/1.png
            "test/b/near.jpg": jpeg(ImageEnhance.Brightness(scene(2)).enhance(1.03), 80),  # of train/b/2.png
            "train/b/flat.png": saved(Image.new("RGB", (30, 30), (9, 9, 9))),
            "train/a/both.png": saved(scene(20)),
            "train/b/both too.png": saved(scene(20)),
            "train/b/broken.png": saved(scene(21))[:-200],
            "train/b/page.png": b"<html>",
            "train/c/rare.png": saved(scene(22)),  # and none in test
            "README.md": b"",
        },
    )
    found = audited(root, monkeypatch)
    assert found["files"] == 15
    assert found["left_out"] == {"unusable": 2, "conflicts": 2, "small_classes": 1}
    assert [row["file"] for row in found["unusable"]] == ["train/b/broken.png", "train/b/page.png"]
    assert found["unusable"][1]["reason"].startswith("not a picture but an HTML page")
    assert found["conflicts"] == [["train/a/both.png", "train/b/both too.png"]]
    assert found["small_classes"] == [{"class": "c", "pictures": 1}]
    assert found["exact_copies"] == {"pictures": 4, "contents": 2, "contents_in_two_parts": 1}
    assert found["copies_in_two_parts"] == [["test/a/leak.png", "train/a/1.png"]]
    near = [(row["file"], row["part"], row["like"], row["other_part"]) for row in found["near_copies"]]
    assert near == [
        ("test/a/leak.png", "test", "train/a/1.png", "train"),
        ("test/b/near.jpg", "test", "train/b/2.png", "train"),
    ]
    assert found["constant"] == ["train/b/flat.png"]
    assert found["in_no_class"] == ["README.md"]


def test_a_hash_is_that_of_what_is_seen() -> None:
    images = [scene(seed).resize((48, 40)) for seed in range(30)]
    hashes = audit.perceptual_hash(np.stack([np.asarray(image).transpose(2, 0, 1) for image in images]))
    changed = [Image.open(io.BytesIO(jpeg(image, 60))) for image in images]
    again = audit.perceptual_hash(np.stack([np.asarray(image).transpose(2, 0, 1) for image in changed]))
    assert np.bitwise_count(hashes ^ again).max() <= audit.NEAR_BITS
    others = np.bitwise_count(hashes[:, None] ^ hashes[None])[~np.eye(30, dtype=bool)]
    assert others.min() > audit.NEAR_BITS


@pytest.mark.parametrize("crowd", [10**6, 5])
def test_near_pairs_are_those_of_all_pairs(crowd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "CROWD", crowd)
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 2**63, 40, dtype=np.uint64).repeat(5)
    flips = np.uint64(1) << draw.integers(0, 64, (200, 2), dtype=np.uint64)
    hashes ^= np.where(draw.random(200) < 0.5, flips[:, 0] ^ flips[:, 1], np.uint64(0))
    part = draw.integers(0, 3, 200)
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    certain, possible = (
        {(one, other) for one, other in np.argwhere((distance <= bits) & (part[:, None] != part[None])) if one < other}
        for bits in (audit.BANDS - 1, audit.NEAR_BITS)
    )
    found = {tuple(sorted(pair)) for pair in audit._near_pairs(hashes, part)}
    assert certain
    assert found <= possible
    assert certain <= found or crowd == 5


def test_a_large_picture_is_hashed_exactly() -> None:
    """The sums are whole numbers that float64 holds, whatever the order in which a processor adds them."""
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 700, 900), dtype=np.uint8)
    down, across = (audit._cosines(side) for side in (700, 900))
    grey = image.sum(axis=1, dtype=np.int64)[0]
    exact = down.astype(np.int64) @ grey @ across.astype(np.int64).T
    assert np.array_equal(down @ grey.astype(np.float64) @ across.T, exact)
    assert np.abs(exact).max() < 2**53


def test_an_archive_is_audited_like_its_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = audited(root, monkeypatch)
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.png")}
    inside = audited(zipped(root.parent / "set.zip", files), monkeypatch)
    assert inside.pop("layout") == f"{plain.pop('layout')}, in an archive"
    assert inside == plain


def test_a_shard_may_be_read_in_blocks_of_any_size(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card, _, whole = prepared(root, monkeypatch)
    index = (paths.TRAIN / packed.INDEX).read_text(encoding="utf-8")
    monkeypatch.setattr(pack, "BLOCK_BYTES", 1)  # an image at a time
    again, _, in_blocks = prepared(root, monkeypatch)
    assert (again, in_blocks) == (card, whole)
    assert (paths.TRAIN / packed.INDEX).read_text(encoding="utf-8") == index
    assert hashlib.sha256((paths.TRAIN / packed.shard_name(0)).read_bytes()).hexdigest() in index


def test_copies_of_files_are_groups_in_order() -> None:
    found = [survey.Surveyed(digest, None, "") for digest in (b"x", b"y", b"", b"x", b"", b"y", b"x", b"z")]
    assert list(survey.copies(found)) == [[0, 3, 6], [1, 5]]
