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
from pathlib import Path
from typing import Any

import pytest
import yaml

from integrity import verify
from stages.common import params
from tests.clones import Clone, copy_of_the_work_tree
from tests.imports import ROOT
from tests.programs import need_folder
from tests.test_pack import picture

SPLITS = [f"data/processed/{part}" for part in ("train", "validation", "test")]


@pytest.fixture
def mine(tmp_path: Path) -> Clone:
    """A clone whose data set is a plain folder of 80 pictures, which Git ignores."""
    clone = copy_of_the_work_tree(tmp_path / "clone")
    for number in range(80):
        path = clone.path / "data/mine" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, number % 2).save(path)
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
    assert "going on after" in output or not kills
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
