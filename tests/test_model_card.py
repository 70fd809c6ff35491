"""The model card, and the model as an artifact that can be fetched by name."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from stages.common import files, paths
from stages.common.errors import UserError
from stages.common.preparation import Preparation
from stages.evaluate import model_card, scores
from stages.evaluate.model_card import CardContent
from stages.network.model_file import Spec
from tests import inside
from tests.clones import Clone
from tests.imports import ROOT

EVIL = "a|b `x` <script>\n# [c](d) \x1b[2J: é"


def known(classes: int = 3, **changes: Any) -> CardContent:
    names = [EVIL, *(f"class {number}" for number in range(1, classes))]
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 500)
    log_p = np.log(random.dirichlet(np.ones(classes), 500)).astype(np.float32)
    spec = Spec(
        format=3,
        model="torchvision",
        options={"architecture": "resnet18", "dropout": 0.0},
        image_shape=[3, 32, 48],
        classes=names,
        output="softmax",
        preparation=Preparation(channels="rgb", image_size=[32, 48], resize="crop", background=[0, 0, 0]),
    )
    values: dict[str, Any] = {
        "data_name": "images",
        "license": "cc-by-4.0",
        "spec": spec,
        "sha256": "0" * 64,
        "parameters": 11_000_000,
        "temperature": 1.25,
        "calibration_bins": 15,
        "torch": "2.14.1",
        "metrics": scores.summary(log_p, labels, names, 15, 1.25),
        "data": {
            "images": {"train": 4000, "validation": 300, "test": 500},
            "audit": {
                "near_copies_in_two_parts": 7,
                "constant_pictures": 0,
                "left_out": {"unusable": 2, "conflicts": "many"},
                "exact_copies": {"contents_in_two_parts": 1},
            },
        },
    }
    return CardContent(**{**values, **changes})


def parts(card: str) -> tuple[dict[str, Any], str]:
    """The YAML block, and the Markdown."""
    before, head, body = card.split("---\n", 2)
    assert before == ""
    return yaml.safe_load(head), body


def test_the_metadata_are_those_of_the_hub() -> None:
    """Its format: https://github.com/huggingface/hub-docs/blob/main/modelcard.md."""
    one = known()
    head, _ = parts(model_card.text(one))
    assert {key: head[key] for key in ("license", "library_name", "pipeline_tag")} == {
        "license": "cc-by-4.0",
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
    }
    (model,) = head["model-index"]
    (result,) = model["results"]
    assert model["name"] == "resnet18 on own pictures"
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"] == {"type": "images", "name": "own pictures", "split": "test"}
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == pytest.approx(
        {"accuracy": one.metrics["accuracy"], "f1": one.metrics["macro"]["f1"]}, abs=1e-6
    )


def test_the_text_of_the_card() -> None:
    _, body = parts(model_card.text(known()))
    assert "4,000 images to train on, 300 to choose the epoch and fit the temperature, 500 to test" in body
    limits = [line for line in body.splitlines() if line.startswith("- ")]
    assert len(limits) == 5
    assert "- 1 contents are in two parts" in limits[2]
    assert limits[3:] == [
        "- 7 pictures of validation or test look like one of another part.",
        "- 2 files were left out, since they could not be used.",
    ]
    assert "without temperature" in body
    head, body = parts(
        model_card.text(
            known(
                license="",
                temperature=1.0,
                data_name="mnist",
                data={"images": dict.fromkeys(("train", "validation", "test"), 0)},
                metrics={**known().metrics, "without_temperature": None},
            )
        )
    )
    assert "license" not in head
    assert "| license | not stated |" in body
    assert "without temperature" not in body
    assert "- No validation images: the last epoch is the model, and its probabilities are not calibrated." in body
    assert "- The images were not searched for copies" in body


def test_names_are_escaped() -> None:
    card = model_card.text(known())
    assert "\x1b" not in card
    body = parts(card)[1]
    assert "a\\|b \\`x\\` \\<script\\> \\# \\[c\\](d) ?\\[2J: é" in body
    (columns,) = {
        len(re.findall(r"(?<!\\)\|", line)) for line in body.splitlines() if "script" in line and line[0] == "|"
    }
    assert columns == 6


def test_only_the_first_of_many_classes_are_listed() -> None:
    body = parts(model_card.text(known(classes=300)))[1]
    assert "class 99, …" in body
    assert len(body) < 10_000


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": {"train": 1}}', '{"images": {"train": "x"}}'])
def test_metrics_that_preprocess_did_not_write_are_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    with pytest.raises(UserError, match="no such file"):
        model_card.read_data(path)
    files.write_text(path, content)
    with pytest.raises(UserError, match="not what preprocess writes"):
        model_card.read_data(path)


def test_the_artifact_is_the_model() -> None:
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["artifacts"]
    assert {name: each["path"] for name, each in declared.items()} == {"classifier": paths.MODEL.as_posix()}


@pytest.mark.soak
def test_a_version_is_fetched_by_its_tag(clone: Clone, tmp_path: Path) -> None:
    """As in docs/use.md: `git tag -a`, then `dvc artifacts get` from anywhere."""
    first = (clone.path / paths.MODEL).read_bytes()
    clone.run("git", "tag", "-a", "-m", "first", "classifier@v1.0.0")
    clone.set("train.seed", "1")
    clone.repro()
    clone.commit("another seed")
    clone.run("git", "tag", "-a", "-m", "second", "classifier@v1.1.0")
    clone.dvc("push")
    second = (clone.path / paths.MODEL).read_bytes()
    assert first != second
    (tmp_path / "elsewhere").mkdir()
    for arguments, content in ((["--rev", "v1.0.0"], first), ([], second)):
        got = ["artifacts", "get", str(clone.path), "classifier", *arguments, "--out", "got", "--force"]
        assert inside.run_dvc(tmp_path / "elsewhere", clone.environment, *got) == 0
        assert (tmp_path / "elsewhere/got").read_bytes() == content
    clone.run("git", "tag", "--delete", "classifier@v1.0.0", "classifier@v1.1.0")
