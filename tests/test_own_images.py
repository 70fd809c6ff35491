"""Own pictures under DVC: what runs again after a change, and a real, messy folder from its package to the splits."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from integrity import verify
from stages.common import params
from tests.clones import Clone, copy_of_the_work_tree
from tests.imports import ROOT
from tests.programs import need_folder
from tests.remote_servers import SERVERS
from tests.test_pack import picture

SPLITS = [f"data/processed/{part}" for part in ("train", "validation", "test")]


def add_pictures(folder: Path, numbers: range) -> None:
    """Write pictures of the classes a and b, in turn."""
    for number in numbers:
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, number % 2).save(path)


@pytest.fixture
def mine(tmp_path: Path) -> Clone:
    """A clone whose data set is a plain folder of 80 pictures, which Git ignores."""
    clone = copy_of_the_work_tree(tmp_path / "clone")
    add_pictures(clone.path / "data/mine", range(80))
    for key, value in (("name", "images"), ("images", "data/mine")):
        clone.set(f"data.{key}", value)
    for key, value in (("image_size", "[12, 12]"), ("validation_fraction", "0.2"), ("test_fraction", "0.3")):
        clone.set(f"preprocess.{key}", value)
    with (clone.path / "data/.gitignore").open("a", encoding="utf-8") as file:
        file.write("/mine\n")
    return clone


def ran(clone: Clone) -> list[str]:
    """The stages that `dvc repro preprocess` runs, but for `check`."""
    output = clone.dvc("repro", "preprocess")
    return [stage for stage in re.findall(r"Running stage '(\w+)'", output) if stage != "check"]


def hashes(clone: Clone) -> dict[str, str]:
    """The MD5 of each split, by dvc.lock."""
    lock = yaml.safe_load((clone.path / "dvc.lock").read_text(encoding="utf-8"))
    return {out["path"]: out["md5"] for out in lock["stages"]["preprocess"]["outs"] if out["path"] in SPLITS}


def test_a_changed_picture_runs_what_reads_it_and_going_back_is_answered_by_the_run_cache(mine: Clone) -> None:
    assert ran(mine) == ["download", "preprocess"]
    before = hashes(mine)
    assert ran(mine) == []
    extra = mine.path / "data/mine/b/more.png"
    picture(99, 1).save(extra)
    (mine.path / "data/mine/a/Thumbs.db").write_bytes(b"junk, which DVC does not count either")
    assert ran(mine) == ["preprocess"]
    changed = hashes(mine)
    assert sum(before[path] != changed[path] for path in SPLITS) == 1  # the part that it is in
    extra.unlink()
    assert ran(mine) == []
    assert hashes(mine) == before
    mine.dvc("add", "data/mine")  # now DVC keeps the pictures: nothing else changes
    assert (mine.path / "data/mine.dvc").is_file()
    assert ran(mine) == []
    shutil.rmtree(mine.path / "data/mine")
    mine.dvc("checkout", "data/mine.dvc")
    assert ran(mine) == []

    with zipfile.ZipFile(mine.path / "data/mine.zip", "w") as archive:
        for path in sorted((mine.path / "data/mine").rglob("*.png")):
            archive.write(path, path.relative_to(mine.path / "data/mine"))
    mine.set("data.images", "data/mine.zip")
    assert ran(mine) == ["preprocess"]
    assert hashes(mine) == before


def test_a_folder_that_does_not_exist_is_named(mine: Clone) -> None:
    mine.set("data.images", "data/mien")
    output = mine.dvc("repro", "preprocess", check=False)
    assert "warning: data.images is data/mien: no such folder or archive\n" in output


@contextmanager
def another_repository(mine: Clone, folder: Path) -> Iterator[tuple[Path, list[str], Callable[[], object]]]:
    """A Git repository beside the clone, whose DVC remote is a folder."""
    source = Clone(folder / "source")
    (source.path / "photos").mkdir(parents=True)
    source.run("git", "init", "-q", "-b", "main")
    source.dvc("init", "-q")
    source.dvc("remote", "add", "-q", "--default", "beside", str(folder / "remote"))

    def publish() -> None:
        source.dvc("add", "-q", "photos")
        source.commit("photos")
        source.dvc("push", "-q")

    yield source.path / "photos", ["import", str(source.path), "photos", "--out", "data/mine"], publish


@contextmanager
def bucket_of_s3(mine: Clone, folder: Path) -> Iterator[tuple[Path, list[str], Callable[[], object]]]:
    """A folder in a bucket of a server of S3 on this machine."""
    with SERVERS["S3"](folder) as remote:
        mine.dvc("remote", "add", "-q", "bucket", "s3://bucket")
        for name, value in zip(("access_key_id", "secret_access_key"), remote.secrets, strict=True):
            mine.dvc("remote", "modify", "-q", "--local", "bucket", name, value)
        mine.dvc("remote", "modify", "-q", "bucket", "endpointurl", remote.words["https://s3.example.com"])
        yield remote.storage.parent / "photos", ["import-url", "remote://bucket/photos", "data/mine"], lambda: None


@pytest.mark.soak
@pytest.mark.parametrize("origin", [another_repository, bucket_of_s3])
def test_imported_pictures_are_packed_and_an_update_brings_the_new_ones(
    origin: Callable[..., AbstractContextManager[tuple[Path, list[str], Callable[[], object]]]],
    mine: Clone,
    tmp_path: Path,
) -> None:
    with origin(mine, tmp_path / "origin") as (photos, command, publish):
        shutil.copytree(mine.path / "data/mine", photos, dirs_exist_ok=True)
        shutil.rmtree(mine.path / "data/mine")
        publish()
        mine.dvc_as_program(*command)
        assert ran(mine) == ["download", "preprocess"]
        before = hashes(mine)
        assert sum(mine.metrics("data")["images"].values()) == 80
        mine.dvc_as_program("update", "data/mine.dvc")
        assert ran(mine) == []
        add_pictures(photos, range(80, 90))
        publish()
        mine.dvc_as_program("update", "data/mine.dvc")
        assert ran(mine) == ["preprocess"]
        assert sum(mine.metrics("data")["images"].values()) == 90
        assert hashes(mine) != before


@pytest.mark.soak
def test_an_archive_is_imported_over_http_and_an_update_brings_the_new_one(mine: Clone, tmp_path: Path) -> None:
    folder = mine.path / "data/mine"
    (tmp_path / "server").mkdir()
    with SERVERS["HTTP"](tmp_path / "server") as remote:

        def publish() -> None:
            with zipfile.ZipFile(remote.storage / "photos.zip", "w") as archive:
                for path in sorted(folder.rglob("*.png")):
                    archive.write(path, path.relative_to(folder))

        publish()
        url = remote.words["https://www.example.com/mnist"]
        mine.dvc_as_program("import-url", f"{url}/photos.zip", "data/photos.zip")
        mine.set("data.images", "data/photos.zip")
        assert ran(mine) == ["download", "preprocess"]
        assert sum(mine.metrics("data")["images"].values()) == 80
        add_pictures(folder, range(80, 90))
        publish()
        mine.dvc_as_program("update", "data/photos.zip.dvc")
        assert ran(mine) == ["preprocess"]
        assert sum(mine.metrics("data")["images"].values()) == 90


@pytest.mark.soak
def test_a_push_after_a_folder_was_added_sends_what_is_new(mine: Clone) -> None:
    add_pictures(mine.path / "data/mine", range(80, 800))
    code = mine.path / "stages/dataset/packed.py"
    limit = "SHARD_BYTES = 256_000_000"
    assert limit in code.read_text(encoding="utf-8")
    small = code.read_text(encoding="utf-8").replace(limit, f"SHARD_BYTES = {20 * 12 * 12 * 3}")  # 5 to 20 pictures
    code.write_text(small, encoding="utf-8")

    def pushed() -> dict[Path, int]:
        """The objects in the remote after the pictures, and what is made of them, were pushed, and their bytes."""
        mine.dvc("add", "-q", "data/mine")
        ran(mine)
        mine.dvc("push", "-q")
        objects = (mine.path.parent / "dvc-remote/files").rglob("*")
        return {path: path.stat().st_size for path in objects if path.is_file() and path.suffix != ".dir"}

    before = pushed()
    (mine.path / "data/mine/a/new").mkdir()
    for number in range(800, 810):
        picture(number, 0).save(mine.path / f"data/mine/a/new/{number}.png")
    sent = {path: size for path, size in pushed().items() if path not in before}
    pictures = [path for path in sent if path.read_bytes().startswith(b"\x89PNG")]
    assert len(pictures) == 10
    made, made_before = len(sent) - 10, len(before) - 800  # shards, and the few files beside them
    print(f"{made} of {made_before} files made, {sum(sent.values()):,} of {sum(before.values()):,} bytes")
    assert made_before > 60
    assert 1 <= made <= 20  # a picture changes the shard that it is in, or splits it


# Three pictures above the limit at which Pillow itself gives up, links, small classes, all five modes.
CLASSES = ("buttons", "electronics", "food", "logos", "signs_and_symbols", "transportation", "computer")
STEM = "/usr/share/openclipart/png"


@pytest.fixture
def clipart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run preprocess in, with some classes of Debian's openclipart-png."""
    root = need_folder("openclipart-png", STEM)
    monkeypatch.chdir(tmp_path)
    Path("png").mkdir()
    for name in CLASSES:
        Path("png", name).symlink_to(root / name)
    values: dict[str, Any] = params.load(ROOT / "params.yaml")
    values["data"].update(name="images", images="png")
    values["preprocess"].update(
        {"image_size": 32, "resize": "pad", "test_fraction": 0.2, "validation_fraction": 0.2}
        | {"bad_images": "skip", "on_conflict": "drop", "small_classes": "drop"}
    )
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return tmp_path


PREPROCESS = [sys.executable, "-m", "stages.preprocess"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def preprocess() -> str:
    done = subprocess.run(PREPROCESS, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.soak
def test_a_real_folder_is_audited_and_kills_do_not_change_a_byte(clipart: Path) -> None:
    output = preprocess()
    assert "pictures in png: a folder per class" in output
    document = json.loads((clipart / "metrics/data.json").read_text(encoding="utf-8"))
    audit = document["audit"]
    giant = {row["file"] for row in audit["unusable"] if re.match(r"(623|231),\d", row["reason"])}
    assert giant == {
        "computer/microchip_v.2_havok_redh_01.png",
        "signs_and_symbols/stop_sign_miguel_s_nchez_.png",
        "transportation/roadsigns/stop_sign_right_font_mig_.png",
    }
    assert set(audit["modes"]) == {"L", "LA", "P", "RGB", "RGBA"}
    assert audit["contents_under_two_classes"] > 20
    assert {"buttons"} <= {row["class"] for row in audit["small_classes"]}
    assert audit["near_copies_in_two_parts"] > 100
    assert audit["constant_pictures"] > 0
    listed = sum(document["images"].values()) + sum(audit["left_out"].values())
    assert listed == audit["files"] == sum(len(list(Path(STEM, name).rglob("*.png"))) for name in CLASSES)

    before = {path: path.read_bytes() for path in sorted(clipart.glob("data/processed/*/*"))}
    shutil.rmtree(clipart / "data/processed")
    moments, kills = random.Random(0), 0
    while kills < 5:
        with subprocess.Popen(PREPROCESS, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
            time.sleep(moments.uniform(1, 4))
            process.send_signal(signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL)
        if process.returncode == 0:
            break
    output = preprocess()
    assert "resuming after" in output or not kills
    assert {path: path.read_bytes() for path in sorted(clipart.glob("data/processed/*/*"))} == before


def test_verify_lends_the_pictures_to_its_clone_and_writes_nowhere_else(tmp_path: Path) -> None:
    root, clone = tmp_path / "root", tmp_path / "clones/clone"
    (root / "data/mine").mkdir(parents=True)
    (tmp_path / "beside").mkdir()
    clone.mkdir(parents=True)
    for name, linked in (
        ("data/mine", True),
        ("../beside", False),
        (str(tmp_path / "beside"), False),
        ("data/x", False),
    ):
        shutil.rmtree(clone)
        clone.mkdir()
        (clone / "params.yaml").write_text(yaml.safe_dump({"data": {"images": name}}), encoding="utf-8")
        verify.lend_inputs(root, clone)
        assert (clone / "data/mine").is_symlink() == linked
        assert [path.name for path in clone.parent.iterdir()] == ["clone"]
        assert len(list(clone.iterdir())) == 1 + linked
    (clone / "data").mkdir()
    (clone / "data/mine.dvc").write_text("outs: []\n", encoding="utf-8")
    (clone / "params.yaml").write_text(yaml.safe_dump({"data": {"images": "data/mine"}}), encoding="utf-8")
    verify.lend_inputs(root, clone)
    assert [path.name for path in (clone / "data").iterdir()] == ["mine"]
    (root / "data/weights").mkdir()
    (root / "data/weights/mine.safetensors").write_bytes(b"weights")
    values = {"data": {"images": "x"}, "models": {"torchvision": {"weights": "mine.safetensors"}}}
    (clone / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    verify.lend_inputs(root, clone)
    assert (clone / "data/weights/mine.safetensors").read_bytes() == b"weights"
