"""Each stage end to end, in a temporary folder, on a small data set of generated images."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from stages.common import params, paths, record
from stages.common.errors import UserError
from stages.dataset import data_card, idx, packed, registry
from stages.dataset.registry import DataSet, PublishedFile
from stages.download import __main__ as download
from stages.evaluate import __main__ as evaluate
from stages.evaluate import predictions
from stages.network import model_file
from stages.preprocess import __main__ as preprocess
from stages.train import __main__ as train_stage
from tests.imports import ROOT

TRAIN_IMAGES, TEST_IMAGES = 400, 120
CLASSES = ("bar at the top", "bar in the middle", "bar below")


def generated(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images uint8 (N, 12, 8) with a bright bar at the height of their class, and the labels."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count) % 3).astype(np.uint8)
    images = random.integers(0, 90, (count, 12, 8), dtype=np.uint8)
    images[np.arange(count), 4 * labels.astype(int) + 2] += 140
    return images, labels


class Workbench:
    """A folder with params.yaml and a directory mirror, in which stages run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = params.load(ROOT / "params.yaml")
        self.values["data"]["mirrors"] = ["mirror"]
        self.values["preprocess"]["validation_fraction"] = 0.1
        self.values["model"]["name"] = "mlp"
        self.values["models"]["mlp"]["hidden"] = 16
        self.values["train"].update(epochs=4, batch_size=16, augmentation="none")
        # All stages run in this process. Portable numerics need a new process (test_numerics).
        self.values["train"]["numerics"] = self.values["evaluate"]["numerics"] = "fast"
        self.values["evaluate"].update(worst_images=4)

    def run(self, *stages: Any) -> None:
        Path("params.yaml").write_text(yaml.safe_dump(self.values), encoding="utf-8")
        for stage in stages:
            stage.main()

    def content(self) -> dict[str, str]:
        """SHA-256 of every file that the stages wrote, except for the run records."""
        return {
            str(file): hashlib.sha256(file.read_bytes()).hexdigest()
            for folder in ("data", "metrics")
            for file in sorted(Path(folder).rglob("*"))
            if file.is_file()
        }


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    """A workbench whose `mnist` is the generated data set."""
    monkeypatch.chdir(tmp_path)
    Path("mirror").mkdir()
    files = []
    for prefix, count in (("train", TRAIN_IMAGES), ("t10k", TEST_IMAGES)):
        for kind, array in zip(("images-idx3", "labels-idx1"), generated(count, len(prefix)), strict=True):
            content, name = idx.encode(array), f"{prefix}-{kind}-ubyte"
            Path("mirror", f"{name}.gz").write_bytes(gzip.compress(content))
            files.append(PublishedFile(name, len(content), sha256=hashlib.sha256(content).hexdigest()))
    small = DataSet(tuple(files), (), CLASSES, (1, 12, 8), TRAIN_IMAGES, TEST_IMAGES, TRAIN_IMAGES)
    monkeypatch.setitem(registry.DATA_SETS, "mnist", small)
    return Workbench(tmp_path)


ALL = (download, preprocess, train_stage, evaluate)
OTHER_MACHINE = {
    "processes": 1,  # several processes: test_processes
    "threads": 3,
    "num_workers": 2,
    "log_every_steps": 1,
    "checkpoint_every_seconds": 0,
    "timeout_seconds": 30,
}


def test_from_a_mirror_to_the_metrics(bench: Workbench) -> None:
    bench.run(*ALL)
    metrics = json.loads(paths.TEST_METRICS.read_text(encoding="utf-8"))
    assert metrics["accuracy"] > 0.95
    assert metrics["images"] == TEST_IMAGES
    assert [row["class"] for row in metrics["classes"]] == list(CLASSES)
    trained = json.loads(paths.TRAIN_METRICS.read_text(encoding="utf-8"))
    assert trained["epochs_run"] == 4
    assert trained["parameters"] == 96 * 16 + 16 + 16 * 3 + 3
    assert trained["validation_accuracy"] > 0.95
    table = pd.read_csv(paths.PREDICTIONS)
    assert table["index"].tolist() == list(range(TEST_IMAGES))
    assert (table["label"] == table["prediction"]).mean() == pytest.approx(metrics["accuracy"])
    read = predictions.parse(paths.PREDICTIONS.read_bytes(), "predictions")  # as `compare` does
    columns = ["label", "prediction"]
    assert read[columns].astype(str).equals(table[columns].astype(str))
    assert np.allclose(read["probability"], table["probability"])
    probabilities = table[[f"p_{name}" for name in CLASSES]]
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(probabilities.max(axis=1), table["probability"])
    truth = generated(TEST_IMAGES, 4)[1]
    assert table["label"].tolist() == [CLASSES[label] for label in truth]
    confusion = pd.read_csv(paths.CONFUSION)
    assert len(confusion) == 9
    assert confusion["images"].sum() == TEST_IMAGES
    assert len(pd.read_csv(paths.TRAINING_CURVES)) == 4
    for picture in (paths.OVERVIEW, paths.WORST):
        Image.open(picture, formats=["PNG"]).verify()


def test_a_list_of_augmentations_with_class_weights_is_trained_and_measured(bench: Workbench) -> None:
    bench.values["train"].update(
        augmentation=["random_resized_crop", "flip", "mixup"],
        class_weights="effective",
        clip_norm=1.0,
        select_by="balanced_accuracy",
        early_stopping_patience_epochs=3,
    )
    bench.values["augmentations"]["random_resized_crop"]["scale"] = [0.8, 1.0]
    bench.run(*ALL)
    trained, curves = json.loads(paths.TRAIN_METRICS.read_bytes()), pd.read_csv(paths.TRAINING_CURVES)
    assert trained["validation_balanced_accuracy"] == pytest.approx(curves["validation_balanced_accuracy"].max())
    assert trained["validation_balanced_accuracy"] > 0.8
    metrics = json.loads(paths.TEST_METRICS.read_bytes())
    recalls = [row["recall"] for row in metrics["classes"]]
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(recalls), abs=1e-6)
    assert metrics["balanced_accuracy_low"] < metrics["balanced_accuracy"] <= metrics["balanced_accuracy_high"]
    assert all(row["recall_low"] <= row["recall"] <= row["recall_high"] for row in metrics["classes"])


def test_grey_images_have_no_hue_to_change(bench: Workbench) -> None:
    bench.values["train"]["augmentation"] = ["flip", "colour_jitter"]
    bench.run(download, preprocess)
    with pytest.raises(UserError, match="colour_jitter.saturation is 0.4, and the images are grey; allowed: 0, or pre"):
        bench.run(train_stage)


def test_preprocess_fits_the_normalization_on_the_training_part_only(bench: Workbench) -> None:
    bench.run(download, preprocess)
    card = data_card.read(paths.DATA_CARD)
    training = packed.open_split(paths.TRAIN, card.shape, 3)
    images, labels = training[:], training.labels
    held_out = packed.open_split(paths.VALIDATION, card.shape, 3)[:]
    assert (len(images), len(held_out)) == (361, 39)
    assert card.mean == pytest.approx([images.mean() / 255])
    assert card.std == pytest.approx([images.std() / 255])
    published, published_labels = generated(TRAIN_IMAGES, 5)
    every = {image.tobytes(): int(label) for image, label in zip(published, published_labels, strict=True)}
    assert all(every[image.tobytes()] == label for image, label in zip(images[:, 0], labels, strict=True))
    assert {image.tobytes() for image in (*images[:, 0], *held_out[:, 0])} == set(every)
    metrics = json.loads(paths.DATA_METRICS.read_text(encoding="utf-8"))
    assert metrics["images"] == {"train": 361, "validation": 39, "test": TEST_IMAGES}
    assert sum(row["validation"] for row in metrics["classes"]) == 39


def test_the_same_inputs_give_the_same_bytes_with_any_machine_settings(bench: Workbench) -> None:
    bench.values["train"]["augmentation"] = "affine"
    bench.run(*ALL)
    first = bench.content()
    # 4 raw, 3 x 2 + 1 processed, model and its card, predictions, 3 metrics, 6 plots, 2 environments
    assert len(first) == 25
    assert set(bench.values["machine"]) == set(OTHER_MACHINE)
    bench.values["machine"] = OTHER_MACHINE
    bench.run(*ALL)
    assert bench.content() == first
    bench.values["train"]["seed"] = 1
    bench.run(*ALL)
    changed = {name for name, digest in bench.content().items() if first[name] != digest}
    assert str(paths.MODEL) in changed
    assert not any(name.startswith(("data/raw", "data/processed")) for name in changed)


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_an_environment_names_the_outputs_that_it_describes(name: str, bench: Workbench) -> None:
    stage = {"train": train_stage, "evaluate": evaluate}[name]
    bench.run(*ALL)
    path = paths.ENVIRONMENT / f"{name}.json"
    written = path.read_bytes()
    recorded = json.loads(written)
    listed = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"][name]
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in listed.get(kind, [])]
    outs = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
    md5 = {out: hashlib.md5(Path(out).read_bytes(), usedforsecurity=False).hexdigest() for out in outs}
    assert recorded["outputs"] == md5
    assert record.describes(recorded, md5)
    # The same bytes on another machine do not change the record.
    elsewhere = json.dumps({**recorded, "device": "abacus"})
    path.write_text(elsewhere, encoding="utf-8")
    bench.run(stage)
    assert path.read_text(encoding="utf-8") == elsewhere
    # A record of other outputs, which a run from the run cache leaves, and an invalid record are replaced.
    for stale in (json.dumps({**recorded, "outputs": dict.fromkeys(md5, "0" * 32)}), "{", "[" * 100_000, "3"):
        path.write_text(stale, encoding="utf-8")
        bench.run(stage)
        assert path.read_bytes() == written


@pytest.mark.parametrize(
    ("environment", "outs", "described"),
    [
        ({"outputs": {"a": "1", "b": "2"}}, {"b": "2", "a": "1"}, True),
        ({"outputs": {"a": "1"}}, {"a": "2"}, False),
        ({"outputs": {"a": "1"}}, {"a": "1", "b": "2"}, True),
        ({"outputs": {"a": "1", "b": "2"}}, {"a": "1"}, False),
        ({"outputs": {}}, {}, False),
        ({"device": "cpu"}, {"a": "1"}, False),  # as earlier versions wrote it
        ({"outputs": ["a"]}, {"a": "1"}, False),
        (["outputs"], {"a": "1"}, False),
        (None, {"a": "1"}, False),
    ],
    ids=["same", "other", "of one stage", "unknown", "nothing", "old", "list", "no mapping", "none"],
)
def test_an_environment_is_of_these_outputs(environment: object, outs: dict[str, str], described: bool) -> None:
    assert record.describes(environment, outs) is described


@pytest.mark.parametrize(
    ("section", "options", "expected"),
    [
        ("evaluate", {"device": "cuda"}, "evaluate.device is cuda, and this machine has none; it has: cpu"),
        ("train", {"device": "mps"}, "train.device is mps, and this machine has none; it has: cpu"),
        ("train", {"precision": "float16"}, "train.precision is float16, which trains on cuda only"),
    ],
    ids=["evaluate.device", "train.device", "train.precision"],
)
def test_missing_hardware_is_an_error_before_data_are_read(
    section: str, options: dict[str, Any], expected: str, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.network.device.available", lambda: {"cpu": 1, "cuda": 0, "mps": 0})
    bench.values[section] |= options
    with pytest.raises(UserError, match=expected):
        bench.run(train_stage)  # there are no data


@pytest.mark.parametrize(
    ("section", "options", "expected"),
    [
        (
            "mlp",
            {"hidden": 65536, "depth": 3},
            r"models\.mlp has \d.* weights, and training them takes at least \d\d\d\.\d GB \(6 numbers .* has 8\.0 GB",
        ),
        (
            "cnn",
            {"channels": [4], "kernel_sizes": [3], "paddings": [1], "pool_sizes": [8]},
            r"train\.batch_size is 1, and in a step of 1 image batch norm gets one value per channel, where it needs",
        ),
        (
            "torchvision",
            {"architecture": "squeezenet1_1"},
            r"models\.torchvision\.architecture is squeezenet1_1, for which images of 12 x 8 pixels are too small \(.*",
        ),
        (
            "torchvision",
            {"architecture": "vit_b_32"},
            r"models\.torchvision: vit_b_32 takes square images; these are 12",
        ),
        (
            "torchvision",
            {"architecture": "maxvit_t"},
            r"models\.torchvision: maxvit_t cannot take images of 12 x 8 pixels: Input size .*",
        ),
    ],
    ids=["memory", "batch norm", "too small", "not square", "not in patches"],
)
def test_values_that_cannot_train_are_an_error_before_the_first_step(
    section: str, options: dict[str, Any], expected: str, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run(download, preprocess)
    monkeypatch.setattr("stages.common.machine.memory_bytes", lambda: 8_000_000_000)
    monkeypatch.setattr(train_stage, "fit", lambda *arguments, **options: pytest.fail("it trains"))
    bench.values["model"]["name"] = section
    bench.values["models"][section] |= options
    bench.values["train"].update({"batch_size": 1} if section == "cnn" else {})
    with pytest.raises(UserError, match=expected) as caught:
        bench.run(train_stage)
    assert len(str(caught.value).splitlines()) == 1


def test_a_network_of_torchvision_from_a_mirror_to_the_metrics(bench: Workbench) -> None:
    bench.values["model"]["name"] = "torchvision"
    network = {"architecture": "shufflenet_v2_x0_5", "dropout": 0.1}
    bench.values["models"]["torchvision"] |= network
    bench.values["train"].update(epochs=2, batch_size=64)
    bench.run(*ALL)
    assert json.loads(paths.TEST_METRICS.read_text(encoding="utf-8"))["images"] == TEST_IMAGES
    losses = pd.read_csv(paths.TRAINING_CURVES)["train_loss"]
    assert losses[1] < losses[0]  # the loss decreases
    _, spec = model_file.read(paths.MODEL)
    assert (spec.model, spec.options) == ("torchvision", network)


def test_training_never_reads_the_test_set(bench: Workbench) -> None:
    bench.run(download, preprocess)
    shutil.rmtree(paths.TEST)
    bench.run(train_stage)
    assert paths.MODEL.exists()


def test_without_a_validation_part(bench: Workbench) -> None:
    bench.values["preprocess"]["validation_fraction"] = 0
    bench.run(*ALL)
    trained = json.loads(paths.TRAIN_METRICS.read_text(encoding="utf-8"))
    assert trained["best_epoch"] == 4
    assert trained["temperature"] == 1
    assert "validation_accuracy" not in trained
    assert "without_temperature" not in json.loads(paths.TEST_METRICS.read_text(encoding="utf-8"))
    assert paths.UNSCALED_RELIABILITY.read_bytes() == paths.RELIABILITY.read_bytes()
    bench.values["train"]["early_stopping_patience_epochs"] = 2
    with pytest.raises(UserError, match="there is no validation part to stop on; allowed: 0, or a preprocess.valid"):
        bench.run(train_stage)


def test_a_temperature_is_fitted_on_validation_and_changes_no_prediction(bench: Workbench) -> None:
    bench.values["train"]["epochs"] = 1
    bench.values["optimizers"]["adam"]["lr"] = 0.0005  # so that the network still makes mistakes
    bench.run(*ALL)
    fitted = json.loads(paths.TRAIN_METRICS.read_text(encoding="utf-8"))["temperature"]
    assert fitted < 1  # after one epoch with label smoothing, the network is underconfident
    model, spec = model_file.read(paths.MODEL)
    assert model_file.temperature(model) == pytest.approx(fitted)
    scaled = json.loads(paths.TEST_METRICS.read_text(encoding="utf-8"))
    rows = pd.read_csv(paths.PREDICTIONS)
    model_file.write(paths.MODEL, model, spec)
    bench.run(evaluate)
    assert pd.read_csv(paths.PREDICTIONS)["prediction"].equals(rows["prediction"])
    unscaled = json.loads(paths.TEST_METRICS.read_text(encoding="utf-8"))
    assert scaled["without_temperature"] == pytest.approx({key: unscaled[key] for key in scaled["without_temperature"]})
    assert scaled["loss"] < unscaled["loss"]


@pytest.mark.parametrize("loss", ["cross_entropy", "nll", "mse", "bce"])
def test_every_loss_gives_a_model_that_evaluates(loss: str, bench: Workbench) -> None:
    bench.values["train"].update(loss=loss, epochs=6)
    bench.run(*ALL)
    _, spec = model_file.read(paths.MODEL)
    assert spec.output == ("sigmoid" if loss == "bce" else "softmax")
    assert json.loads(paths.TEST_METRICS.read_text(encoding="utf-8"))["accuracy"] > 0.9


def test_an_evaluation_without_a_mistake(bench: Workbench) -> None:
    bench.values["train"]["epochs"] = 12
    bench.run(*ALL)
    assert json.loads(paths.TEST_METRICS.read_text(encoding="utf-8"))["errors"] == 0


def test_raw_files_that_do_not_match_the_data_set(bench: Workbench) -> None:
    bench.run(download)
    labels = paths.RAW / "train-labels-idx1-ubyte"
    good = labels.read_bytes()
    for content, expected in (
        (good[:-1], r"train-labels-idx1-ubyte: an IDX file of shape \(400,\) has 408 bytes; this one has 407"),
        (idx.encode(np.zeros(399, dtype=np.uint8)), r"train labels are \(399,\); expected \(400,\), one per image"),
        (good[:-1] + b"\x03", "train label 399 is 3; expected 0 to 2"),
        (b"<html>", "not an IDX file"),
    ):
        labels.write_bytes(content)
        with pytest.raises(UserError, match=expected):
            bench.run(preprocess)
    labels.unlink()
    with pytest.raises(UserError, match="no such file; `dvc repro` fetches it"):
        bench.run(preprocess)
    labels.write_bytes(good)
    (paths.RAW / "train-images-idx3-ubyte").write_bytes(idx.encode(np.zeros((400, 8, 12), dtype=np.uint8)))
    with pytest.raises(UserError, match=r"train images are \(400, 8, 12\); expected \(400, 12, 8\)"):
        bench.run(preprocess)


def test_a_fraction_that_leaves_nothing_to_train_on(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.values["preprocess"]["validation_fraction"] = 0.9
    monkeypatch.setattr(preprocess, "stratified", lambda labels, *_: (np.arange(0), np.arange(len(labels))))
    with pytest.raises(UserError, match=r"validation_fraction is 0\.9, which leaves no image for training"):
        bench.run(download, preprocess)


def test_a_model_of_another_data_set_is_not_measured(bench: Workbench) -> None:
    bench.run(download, preprocess, train_stage)
    model, spec = model_file.read(paths.MODEL)
    model_file.write(paths.MODEL, model, spec.model_copy(update={"classes": ["x", "y", "z"]}))
    with pytest.raises(UserError, match="trained on other classes or image shapes"):
        bench.run(evaluate)


def test_networks_that_do_not_fit_the_images(bench: Workbench) -> None:
    bench.values["model"]["name"] = "cnn"
    bench.values["models"]["cnn"].update(
        channels=[4, 4, 4], kernel_sizes=[5, 3, 3], paddings=[0, 0, 0], pool_sizes=[2, 2, 2]
    )
    with pytest.raises(UserError, match="models.cnn: block 2 leaves nothing of images of 4 x 2"):
        bench.run(download, preprocess, train_stage)


def test_an_unavailable_gpu(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.network.device.available", lambda: {"cpu": 1, "cuda": 0, "mps": 0})
    bench.run(download, preprocess)
    for stage, section in ((train_stage, "train"), (evaluate, "evaluate")):
        bench.values[section]["device"] = "cuda"
        with pytest.raises(UserError, match=f"{section}.device is cuda, and this machine has none; it has: cpu"):
            bench.run(stage)
