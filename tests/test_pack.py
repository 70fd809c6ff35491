"""Own pictures from files to shards: which part each is in, the same bytes after every kill, and errors in a line."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.common import params, paths
from stages.common.errors import UserError
from stages.dataset import data_card, idx, packed, registry
from stages.dataset.registry import DataSet, PublishedFile
from stages.download import __main__ as download
from stages.evaluate import __main__ as evaluate
from stages.network import device
from stages.preprocess import __main__ as preprocess
from stages.preprocess import audit as audit_module
from stages.preprocess import pack
from stages.preprocess.split import drawn, stratified
from stages.train import __main__ as train_stage
from tests.imports import ROOT

ALL = (download, preprocess, train_stage, evaluate)


def picture(seed: int, label: int, size: tuple[int, int] = (20, 24)) -> Image.Image:
    """A noisy colour picture with a bright bar at the height of its class."""
    pixels = np.random.default_rng(seed).integers(0, 120, (*size, 3), dtype=np.uint8)
    pixels[8 * label + 1 : 8 * label + 5] += 120
    return Image.fromarray(pixels)


# preprocess, but for the interval after which it notes how far it is.
PROGRAM = """
from stages.common import errors
from stages.preprocess import __main__, pack
pack.CHECKPOINT_SECONDS = 0.02
errors.run(__main__.main)
"""
TRAIN = "from stages.common import errors; from stages.train import __main__; errors.run(__main__.main)"


class Own:
    """A folder with params.yaml and pictures of two classes, and the stages run in it."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = params.load(ROOT / "params.yaml")
        self.values["data"].update(name="images", images="pictures")
        self.values["preprocess"].update(image_size=[12, 12], validation_fraction=0.2, test_fraction=0.2)
        self.values["model"]["name"] = "mlp"
        self.values["models"]["mlp"]["hidden"] = 16
        self.values["train"].update(epochs=2, batch_size=16, augmentation="none", numerics="fast")
        self.values["evaluate"].update(worst_images=4, numerics="fast")
        self.count = 0

    def add(self, count: int, folder: str = "") -> None:
        for _ in range(count):
            label = self.count % 2
            path = Path("pictures", "ab"[label], folder, f"{self.count:04}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(self.count, label).save(path, compress_level=1)
            self.count += 1

    def write_params(self) -> None:
        Path("params.yaml").write_text(yaml.safe_dump(self.values), encoding="utf-8")

    def run(self, *stages: Any) -> None:
        self.write_params()
        for stage in stages:
            stage.main()

    def start(self, limit_bytes: int | None = None, program: str = PROGRAM) -> subprocess.Popen[str]:
        """preprocess or another program, in a process of its own. limit_bytes: of a file, at most."""
        self.write_params()
        command = [sys.executable, "-c", program]
        if limit_bytes:
            command = ["sh", "-c", f'ulimit -f {limit_bytes // 512} && exec "$@"', "sh", *command]
        return subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def fails(self, line: str) -> None:
        with pytest.raises(UserError, match=line):
            self.run(preprocess)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Own:
    monkeypatch.chdir(tmp_path)
    made = Own()
    made.add(60)
    return made


def content(*folders: Path) -> dict[str, str]:
    """SHA-256 of every file in these folders."""
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def parts() -> dict[str, set[bytes]]:
    """The images of each part."""
    card = data_card.read(paths.DATA_CARD)
    splits = {"train": paths.TRAIN, "validation": paths.VALIDATION, "test": paths.TEST}
    return {
        name: {image.tobytes() for image in packed.open_split(path, card.shape, len(card.classes))[:]}
        for name, path in splits.items()
    }


def test_from_pictures_to_the_metrics(own: Own) -> None:
    own.run(*ALL)
    card = data_card.read(paths.DATA_CARD)
    assert (card.classes, card.shape) == (["a", "b"], (3, 12, 12))
    split = packed.open_split(paths.TRAIN, card.shape, 2)
    assert card.mean == pytest.approx((split[:] / 255).mean(axis=(0, 2, 3)))
    assert card.std == pytest.approx((split[:] / 255).std(axis=(0, 2, 3)))
    counts = json.loads(paths.DATA_METRICS.read_text(encoding="utf-8"))
    assert sum(counts["images"].values()) == 60
    assert set(counts["audit"]["left_out"].values()) == {0}
    raw = (paths.TRAIN_IMAGES, paths.TRAIN_LABELS, paths.TEST_IMAGES, paths.TEST_LABELS)
    assert {path.read_bytes() for path in raw} == {download.NOTHING}
    assert json.loads(paths.TEST_METRICS.read_text(encoding="utf-8"))["images"] == counts["images"]["test"]
    Image.open(paths.WORST, formats=["PNG"]).verify()
    assert not pack.WORK.exists()


def test_a_set_that_is_read_from_the_disk_trains_to_the_same_bytes(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    own.values["train"]["augmentation"] = "shift"
    own.run(*ALL)
    first = content(Path("data/model"), Path("metrics"))
    monkeypatch.setattr(device, "RESIDENT_BYTES", 0)
    for num_workers in (0, 2):
        own.values["machine"]["num_workers"] = num_workers
        own.run(train_stage, evaluate)
        assert content(Path("data/model"), Path("metrics")) == first


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits this memory")
def test_a_set_larger_than_the_memory_that_a_stage_may_use(own: Own) -> None:
    """RLIMIT_DATA counts what a process has of its own: the page cache does not count, and a copy of the set would."""
    random = np.random.default_rng(0)
    block = random.integers(0, 256, (64, 3, 256, 256), dtype=np.uint8)
    images = np.lib.format.open_memmap("images.npy", "w+", np.uint8, (6400, 3, 256, 256))  # on the disk
    for start in range(0, len(images), len(block)):
        images[start : start + len(block)] = block
    labels = np.arange(len(images)) % 2
    packed.write(paths.TRAIN, images, labels)
    packed.write(paths.VALIDATION, block, labels[: len(block)])
    limit = 2_000_000_000  # of which torch and a batch take 1.2 GB
    assert images.nbytes > 0.6 * limit
    card = data_card.DataCard(classes=["a", "b"], image_shape=[3, 256, 256], mean=[0.5] * 3, std=[0.25] * 3)
    data_card.write(paths.DATA_CARD, card)
    own.values["models"]["mlp"]["hidden"] = 1
    own.values["train"].update(epochs=1, batch_size=64, numerics="portable")
    own.write_params()
    done = subprocess.run(
        ["sh", "-c", f"ulimit -d {limit // 1024} && exec {sys.executable} -m stages.train"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_adding_pictures_moves_no_other_and_keeps_most_shards(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SHARD_BYTES", 3 * 12 * 12 * 16)  # of 4 to 16 images
    own.add(200)
    own.run(preprocess)
    before, shards = parts(), set(content(paths.TRAIN).values())
    own.add(10, "new")
    own.run(preprocess)
    after = parts()
    for part, images in before.items():
        assert images <= after[part]
    assert sum(map(len, after.values())) == 270
    unchanged = shards & set(content(paths.TRAIN).values())
    assert len(unchanged) > len(shards) - 6


def test_copies_are_in_the_same_part_and_a_group_is(own: Own) -> None:
    for name in range(6):  # copies of six pictures, under other names
        shutil.copy(f"pictures/a/{2 * name:04}.png", f"pictures/a/copy-{name}.png")
    own.run(preprocess)
    found = parts()
    assert sum(map(len, found.values())) == 60
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]
    shutil.rmtree("pictures")
    for camera in range(20):
        own.add(10, f"camera {camera}")
    own.values["preprocess"]["group_by"] = r"path:camera \d+"
    own.run(preprocess)
    sizes = [len(images) for images in parts().values()]
    assert all(size and size % 10 == 0 for size in sizes)
    assert sum(sizes) == 200


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 2**32 - 1), st.floats(0, 0.45), st.floats(0, 0.45))
def test_a_part_is_a_function_of_content_and_seed(key: bytes, seed: int, test: float, validation: float) -> None:
    assert drawn(key, seed, test, validation) == drawn(key, seed, test, validation)
    # A larger fraction takes pictures and gives none away.
    if drawn(key, seed, test, validation) == "test":
        assert drawn(key, seed, test + 0.1, validation) == "test"
    assert drawn(key, seed, 0, 0) == "train"


def test_the_parts_have_their_shares() -> None:
    drawn_parts = [drawn(str(key).encode(), 3, 0.1, 0.2) for key in range(10_000)]
    assert drawn_parts.count("test") == pytest.approx(1000, abs=120)  # four standard deviations
    assert drawn_parts.count("validation") == pytest.approx(2000, abs=160)


def damage(own: Own) -> None:
    cut = Path("pictures/a/0010.png")
    cut.write_bytes(cut.read_bytes()[:-300])  # behind its header
    Path("pictures/b/page.png").write_bytes(b"<html>")


def conflict(own: Own) -> None:
    shutil.copy("pictures/a/0010.png", "pictures/b/same.png")


def a_small_class(own: Own) -> None:
    for name in ("c", "d"):
        Path("pictures", name).mkdir()
        picture(1000, 0).save(f"pictures/{name}/one.png")
        shutil.copy(f"pictures/{name}/one.png", f"pictures/{name}/two.png") if name == "d" else None
    conflicting = Path("pictures/d")
    shutil.rmtree(conflicting)


@pytest.mark.parametrize(
    ("spoil", "option", "line", "files"),
    [
        (
            damage,
            {"bad_images": "skip"},
            r"2 pictures cannot be used:\na/0010\.png: damaged \(.*\)\nb/page\.png: not a picture but an HTML page.*\n"
            "remove these, or set preprocess.bad_images: skip",
            ["a/0010.png", "b/page.png"],
        ),
        (
            conflict,
            {"on_conflict": "drop"},
            r"the same picture in several classes: a/0010\.png = b/same\.png; remove the wrong ones, or set ",
            ["a/0010.png", "b/same.png"],
        ),
        (
            a_small_class,
            {"small_classes": "drop"},
            r"classes that are not in every part: c \(1 pictures, none in .*\); add pictures, set larger fractions or",
            ["c"],
        ),
    ],
    ids=["damaged", "conflict", "small class"],
)
def test_what_is_left_out_or_refused(
    spoil: Callable[[Own], None], option: dict[str, str], line: str, files: list[str], own: Own
) -> None:
    own.run(preprocess)
    before = parts()
    spoil(own)
    own.fails(line)
    own.values["preprocess"].update(option)
    own.run(preprocess)
    audit = json.loads(paths.DATA_METRICS.read_text(encoding="utf-8"))["audit"]
    named = [row["file"] for row in audit["unusable"]] + [file for group in audit["conflicts"] for file in group]
    assert named + [row["class"] for row in audit["small_classes"]] == files
    assert sum(audit["left_out"].values()) == len(files)
    assert data_card.read(paths.DATA_CARD).classes == ["a", "b"]
    for part, images in parts().items():
        assert images <= before[part]
    assert sum(map(len, parts().values())) == 60 - ("a/0010.png" in files)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_part_whose_pictures_cannot_be_decoded_is_named(part: str, own: Own) -> None:
    for name in ("train", "validation", "test"):
        shutil.copytree("pictures", f"parts/{name}")
    for path in Path("parts", part).rglob("*.png"):
        path.write_bytes(path.read_bytes()[:-300])  # behind its header
    own.values["data"]["images"] = "parts"
    own.values["preprocess"]["bad_images"] = "skip"
    own.fails(
        rf"^no picture in the {part} part can be decoded, such as {part}/a/0000\.png: damaged \(.*\); add picture"
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"group_by": "column"}, r"a/0000\.png: has no group in labels\.csv; preprocess\.group_by: column needs one"),
        ({"group_by": "path:camera"}, r"a/0000\.png: no match for preprocess\.group_by in this path: path:camera"),
        (
            {"test_fraction": 0.0},
            "no picture is in the test part; set a larger preprocess.test_fraction, or another preprocess.seed",
        ),
    ],
)
def test_options_that_do_not_fit_the_pictures(options: dict[str, Any], line: str, own: Own) -> None:
    own.values["preprocess"].update(options)
    own.fails(line)


def test_a_picture_that_changes_between_the_two_passes(own: Own) -> None:
    path = Path("pictures/b/0001.png")
    decode = pack.decode

    def after_a_change(*arguments: Any) -> None:
        picture(99, 1).save(path)
        decode(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "decode", after_a_change)
        own.fails(r"b/0001\.png: changed while the pictures were read")
    own.run(preprocess)
    assert sum(map(len, parts().values())) == 60


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda: picture(99, 0).save("pictures/a/new.png"), r"a/new\.png: added, removed, or given another label"),
        (lambda: Path("pictures/b/0001.png").unlink(), r"b/0001\.png: added, removed, or given another label"),
        (lambda: picture(99, 1).save("pictures/b/0001.png"), r"b/0001\.png: changed while the pictures were read"),
    ],
    ids=["added", "removed", "changed"],
)
def test_pictures_that_change_after_they_were_read_are_not_recorded(
    change: Callable[[], None], line: str, own: Own
) -> None:
    audit = audit_module.audit

    def before_a_change(*arguments: Any) -> dict[str, Any]:
        result = audit(*arguments)
        change()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit_module, "audit", before_a_change)
        own.fails(line)  # DVC would hash the folder as it is now
    own.run(preprocess)
    assert sum(map(len, parts().values())) == len(list(Path("pictures").rglob("*.png")))


def test_a_full_disk_ends_in_a_line_and_nothing_is_lost(own: Own) -> None:
    own.add(100)
    process = own.start(limit_bytes=32 * 1024)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 2, output
    assert "Traceback" not in output
    assert re.search(r"error: runs/pack/\w+-1\.safetensors: File too large\n", output)
    assert not paths.TRAIN.exists()
    own.run(preprocess)
    assert sum(map(len, parts().values())) == 160


def test_killed_five_times_it_ends_in_the_same_bytes(own: Own) -> None:
    own.add(300)
    for place in range(0, 360, 30):  # pictures that take long to decode, so that the kills come before the end
        noise = np.random.default_rng(place).integers(0, 255, (1000, 1000, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"pictures/{'ab'[place % 4 // 2]}/{place:04}-large.png", compress_level=1)
    own.run(preprocess)
    undisturbed = content(Path("data"), Path("metrics"))
    shutil.rmtree("data")
    shutil.rmtree("metrics")
    done = [0]
    for _ in range(5):
        process = own.start()
        while decoded() <= done[-1] and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.communicate()
        assert not Path("data").exists()
        done.append(decoded())
    assert 0 < done[1] < done[5] < 372
    output = own.start().communicate(timeout=600)[0]
    assert f"resuming after {done[5]} of 372 pictures that were decoded before" in output
    assert content(Path("data"), Path("metrics")) == undisturbed


@pytest.mark.soak
def test_training_that_is_killed_ends_in_the_same_bytes(own: Own, capsys: pytest.CaptureFixture[str]) -> None:
    own.values["train"]["epochs"] = 20
    own.values["machine"]["checkpoint_every_seconds"] = 0
    own.run(preprocess, train_stage)
    outputs = (paths.MODEL.parent, Path("metrics"))
    undisturbed = content(*outputs)
    for path in (paths.MODEL, paths.TRAIN_METRICS, paths.TRAINING_CURVES):
        path.unlink()
    process = own.start(program=TRAIN)
    while not list(paths.RESUME.glob("*/latest*")) and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not paths.MODEL.exists()
    capsys.readouterr()
    own.run(train_stage)
    assert "resuming after step" in capsys.readouterr().out
    assert content(*outputs) == undisturbed


def decoded() -> int:
    """The number of decoded pictures, from the notes of an interrupted run."""
    return sum(json.loads(note.read_bytes())["done"] for note in pack.WORK.glob("*.json"))


def test_idx_files_written_out_as_pictures_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    random, classes = np.random.default_rng(0), tuple("0123456789")
    files, rows = [], []
    paths.RAW.mkdir(parents=True)
    for prefix, count in (("train", 300), ("t10k", 100)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = random.integers(0, 10, count).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{prefix}-{kind}-ubyte"
            (paths.RAW / name).write_bytes(idx.encode(array))
            files.append(PublishedFile(name, 0))
        held_out = set(stratified(labels.astype(np.int64), 0.1, 0)[1].tolist())
        for place, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            split = "test" if prefix == "t10k" else "validation" if place in held_out else "train"
            name = f"{prefix}-{place:05}.png"
            Path("pictures").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(Path("pictures", name))
            rows.append(f"{name},{label},{split}")
    Path("pictures/labels.csv").write_text("\n".join(["file,label,split", *rows, ""]), encoding="utf-8")
    monkeypatch.setitem(
        registry.DATA_SETS, "mnist", DataSet(tuple(files), (), classes, (1, 28, 28), 300, 100, largest_class=300)
    )
    own = Own()
    own.values["preprocess"].update(image_size=[28, 28], validation_fraction=0.1)
    made = []
    for name in ("mnist", "images"):
        own.values["data"]["name"] = name
        own.run(preprocess)
        card = data_card.read(paths.DATA_CARD)
        made.append((content(paths.TRAIN, paths.VALIDATION, paths.TEST), card.mean, card.std, card.classes))
    assert made[0] == made[1]
