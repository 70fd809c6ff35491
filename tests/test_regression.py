"""Regression: discs drawn with Pillow, whose radius is learnt; numbers in labels.csv, measures, comparing, using."""

import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from safetensors import safe_open

from export import paths as exported
from export import run as export
from integrity import rules
from integrity.revisions import Revision
from review import comparison, comparison_text, formatting, regression, report_page, results, significance
from review.report_page import Against
from review.results import PredictionsLookup, Results
from seeds import collect
from seeds.record import Record, Row
from stages.common import params, paths
from stages.common.errors import UserError
from stages.dataset import data_card, folder, packed
from stages.evaluate import __main__ as evaluate
from stages.evaluate import figures, predictions, values
from stages.network import model_file
from stages.preprocess import __main__ as preprocess
from stages.train import __main__ as train_stage
from stages.train import checks, options, tasks
from stages.train.trainer import Trainer
from tests.imports import ROOT
from tests.test_report import harmless
from tests.test_serve import serving
from use import predict, rows
from use.classifier import Classifier

COUNT = 400
DISCS = "discs"
OPTIONS: dict[str, dict[str, Any]] = {
    "data": {"name": "images", "task": "regression", "images": DISCS},
    "preprocess": {"image_size": [16, 16], "validation_fraction": 0.15, "test_fraction": 0.2},
    "train": {
        **{"loss": "mse", "label_smoothing": 0.0, "select_by": "loss", "augmentation": "none"},
        **{"epochs": 8, "batch_size": 32, "numerics": "fast"},
    },
    "evaluate": {"numerics": "fast", "worst_images": 4},
}
CNN = {"channels": [8, 16], "kernel_sizes": [3, 3], "paddings": [1, 1], "pool_sizes": [2, 2], "hidden": 0}


def draw(root: Path, shuffled: bool = False) -> None:
    """Pictures of one disc each on noise, anywhere and of any brightness, and labels.csv with its radius in pixels."""
    root.mkdir(parents=True)
    random = np.random.default_rng(0)
    radii = random.uniform(1.5, 6, COUNT)
    for number, radius in enumerate(radii):
        image = Image.fromarray(random.normal(60, 15, (16, 16)).clip(0, 255).astype(np.uint8))
        x, y = random.uniform(radius, 15 - radius, 2)
        box = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(image).ellipse(box, fill=int(random.integers(150, 255)))
        image.save(root / f"{number:03}.png")
    labels = random.permutation(radii) if shuffled else radii
    lines = [f"{number:03}.png,{label:.3f}" for number, label in enumerate(labels)]
    (root / "labels.csv").write_text("\n".join(["file,label", *lines]) + "\n", encoding="utf-8")


def parameters(**changed: dict[str, Any]) -> dict[str, Any]:
    """Those of the repository, for the discs."""
    found: dict[str, Any] = params.load(ROOT / "params.yaml")
    for section, keys in OPTIONS.items():
        found[section].update(keys, **changed.get(section, {}))
    found["models"]["cnn"].update(CNN)
    return found


def write(found: dict[str, Any]) -> None:
    paths.PARAMS.write_text(yaml.safe_dump(found), encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the stages have run on the discs."""
    root = tmp_path_factory.mktemp("regression")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        draw(Path(DISCS))
        write(parameters())
        for stage in (preprocess, train_stage, evaluate):
            stage.main()
    return root


@pytest.fixture
def run(trained: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The metrics of that run; the test is in its folder."""
    monkeypatch.chdir(trained)
    found: dict[str, Any] = json.loads(paths.TEST_METRICS.read_bytes())
    return found


# --- from pictures to metrics


def test_a_radius_is_learnt(run: dict[str, Any]) -> None:
    assert run["r2"] > 0.9
    assert run["r2_low"] < run["r2"] < run["r2_high"]
    assert run["rmse"] ** 2 == pytest.approx(run["mse"], rel=1e-4)
    table = pd.read_csv(paths.PREDICTIONS)
    assert len(table) == run["images"] > 50
    errors = table["prediction"] - table["label"]
    assert run["mae"] == pytest.approx(errors.abs().mean(), rel=1e-4)
    assert run["r2"] == pytest.approx(1 - (errors**2).sum() / ((table["label"] - table["label"].mean()) ** 2).sum())
    assert set(table["label"]) <= set(pd.read_csv(f"{DISCS}/labels.csv")["label"])
    train = json.loads(paths.TRAIN_METRICS.read_bytes())
    assert train["validation_r2"] > 0.9
    curves = pd.read_csv(paths.TRAINING_CURVES)
    assert train["best_epoch"] == 1 + np.argmin(curves["validation_loss"])
    data = json.loads(paths.DATA_METRICS.read_bytes())
    assert 1.4 < data["values"]["train"]["least"] < data["values"]["train"]["mean"] < 4.5
    for picture in (paths.OVERVIEW, paths.WORST):
        Image.open(picture, formats=["PNG"]).verify()
    card = paths.MODEL_CARD.read_text(encoding="utf-8")
    assert "This network predicts a number for grey images of 16 x 16 pixels." in card
    assert f"| R2 | {run['r2']:.6g} | {run['r2_low']:.6g} to {run['r2_high']:.6g} |" in card
    assert "temperature" not in card
    for table_of_classes in (paths.CONFUSION, paths.RELIABILITY, paths.UNSCALED_RELIABILITY):
        assert pd.read_csv(table_of_classes).empty


def test_labels_that_have_nothing_to_do_with_the_pictures_are_not_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(Path(DISCS), shuffled=True)
    write(parameters(train={"epochs": 3, "loss": "huber"}))
    for stage in (preprocess, train_stage, evaluate):
        stage.main()
    assert json.loads(paths.TEST_METRICS.read_bytes())["r2"] < 0.1
    history = [{"validation_r2": value} for value in (-0.2, -0.1)]
    assert tasks.VALUES.explain_chance(history, torch.zeros(3)).startswith("a validation R2 of -0.1000")
    assert not tasks.VALUES.explain_chance([*history, {"validation_r2": 0.2}], torch.zeros(3))


OUTPUTS = (paths.MODEL, paths.TRAIN_METRICS, paths.TRAINING_CURVES)


def test_threads_workers_and_an_interruption_change_no_byte(
    run: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = [path.read_bytes() for path in OUTPUTS]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "data").mkdir()
    (elsewhere / paths.PROCESSED).symlink_to(paths.PROCESSED.resolve())
    monkeypatch.chdir(elsewhere)
    machine = {"threads": 1, "num_workers": 1, "checkpoint_every_seconds": 0}
    write(parameters(machine=machine) | {"machine": {**parameters()["machine"], **machine}})
    epochs = 0
    end_epoch = Trainer.end_epoch

    def killed(self: Any, *arguments: Any) -> Any:
        nonlocal epochs
        epochs += 1
        if epochs == 3:
            raise KeyboardInterrupt
        return end_epoch(self, *arguments)

    monkeypatch.setattr(Trainer, "end_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        train_stage.main()
    assert not paths.MODEL.exists()
    train_stage.main()
    assert epochs == 3 + OPTIONS["train"]["epochs"] - 2  # the first two were not repeated
    assert [path.read_bytes() for path in OUTPUTS] == before


@pytest.mark.soak
def test_two_processes_change_no_byte(run: dict[str, Any]) -> None:
    before = [path.read_bytes() for path in OUTPUTS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MACHINE_PROCESSES": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "stages.train"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes" in done.stdout
    assert [path.read_bytes() for path in OUTPUTS] == before


def test_shards_hold_the_labels_as_float64(run: dict[str, Any]) -> None:
    card = data_card.read(paths.DATA_CARD)
    assert card.values is not None
    labels = packed.open_split(paths.TRAIN, card.shape, 0).labels
    assert labels.dtype == np.float64
    assert card.values.mean == pytest.approx(labels.mean())
    assert card.values.std == pytest.approx(labels.std())
    with safe_open(paths.TRAIN / packed.shard_name(0), framework="np") as shard:
        assert shard.get_tensor("labels").tolist() == labels.tolist()
    with pytest.raises(UserError, match=r"labels are F64 \(\d+,\); expected I64"):
        packed.open_split(paths.TRAIN, card.shape, 2)


def test_the_same_images_and_labels_make_the_same_shards_as_preprocess(run: dict[str, Any], tmp_path: Path) -> None:
    card = data_card.read(paths.DATA_CARD)
    split = packed.open_split(paths.TEST, card.shape, 0)
    packed.write(tmp_path / "test", split[:], split.labels)
    for path in (tmp_path / "test").iterdir():
        assert path.read_bytes() == (paths.TEST / path.name).read_bytes(), path


# --- labels.csv


def listing(root: Path, lines: list[str], header: str = "file,label") -> folder.Listing:
    root.mkdir()
    for name in ("a.png", "b.png"):
        (root / name).write_bytes(b"")
    (root / "labels.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return folder.scan(root, "regression")


@pytest.mark.parametrize(("text", "value"), [("3", 3.0), (" -0.5 ", -0.5), ("1e-3", 0.001), ("+.5", 0.5), ("7.", 7.0)])
def test_numbers_are_read(text: str, value: float, tmp_path: Path) -> None:
    found = listing(tmp_path / "x", [f"a.png,{text},test", "b.png,1,"], "file,label,split")
    assert [(each.name, each.value, each.part) for each in found.pictures] == [
        ("a.png", value, "test"),
        ("b.png", 1, None),
    ]
    assert found.classes == ()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("cat", "label is cat, which is not a number"),
        ('"3,5"', "label is 3,5, which is not a number"),
        ("nan", "label is nan, which is not a number"),
        ("inf", "label is inf, which is not a number"),
        ("1e999", "label is 1e999, which is not below 1e+15 in size"),
        ("1_000", "label is 1_000, which is not a number"),
        ("٣", "which is not a number"),
        ("", "has no label"),
    ],
)
def test_what_is_no_number_is_one_line(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^[^\n]*labels.csv:2: a.png: [^\n]*{re.escape(why)}[^\n]*$"):
        listing(tmp_path / "x", [f"a.png,{text}", "b.png,1"])


def test_folders_of_classes_are_no_numbers(tmp_path: Path) -> None:
    (tmp_path / "x/a").mkdir(parents=True)
    (tmp_path / "x/a/1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"^[^\n]*has no labels.csv; regression \(data.task\) needs one"):
        folder.scan(tmp_path / "x", "regression")


def link_discs(trained: Path, count: int) -> None:
    """The first pictures, without labels."""
    Path(DISCS).mkdir()
    for number in range(count):
        Path(DISCS, f"{number:03}.png").symlink_to(trained / DISCS / f"{number:03}.png")


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (lambda number: 3, "all pictures of the train part have the label 3; regression needs different ones"),
        (
            lambda number: 1e9 + number % 2,
            r"the labels are about 1e\+09 with a standard deviation of 0\.[45]\d*, too small",
        ),
    ],
)
def test_labels_that_cannot_be_learnt_are_one_line(
    labels: Any, line: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    link_discs(trained, 60)
    text = "".join(f"{number:03}.png,{labels(number)}\n" for number in range(60))
    Path(DISCS, "labels.csv").write_text(f"file,label\n{text}", encoding="utf-8")
    write(parameters())
    with pytest.raises(UserError, match=f"^{line}"):
        preprocess.main()


def test_the_same_picture_with_two_labels(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    link_discs(trained, 80)
    for copy, of in (("same", "003"), ("other", "005")):
        Path(DISCS, f"{copy}.png").symlink_to(trained / DISCS / f"{of}.png")
    text = "".join(f"{number:03}.png,{number}\n" for number in range(80))
    Path(DISCS, "labels.csv").write_text(f"file,label\n{text}same.png,3\nother.png,9\n", encoding="utf-8")
    write(parameters())
    with pytest.raises(UserError, match=r"^the same picture with several labels: 005.png = other.png; remove"):
        preprocess.main()
    write(parameters(preprocess={"on_conflict": "drop"}))
    preprocess.main()
    document = json.loads(paths.DATA_METRICS.read_bytes())
    assert document["audit"]["left_out"]["conflicts"] == 2
    assert document["audit"]["conflicts"] == [["005.png", "other.png"]]
    assert sum(document["images"].values()) == 80


# --- params.yaml


@pytest.mark.parametrize(
    ("section", "changed", "line"),
    [
        ("data", {"name": "mnist", "images": "data/no-images"}, "data.task is regression, and data.name is mnist"),
        (
            "train",
            {"loss": "cross_entropy"},
            "train.loss is cross_entropy, and data.task is regression; allowed: mse | mae",
        ),
        ("train", {"label_smoothing": 0.1}, "train.label_smoothing is 0.1, and data.task is regression; allowed: 0.0"),
        ("train", {"class_weights": "balanced"}, "train.class_weights is balanced, and data.task is regression"),
        ("train", {"augmentation": ["flip", "mixup"]}, "train.augmentation is mixup, and data.task is regression"),
        ("train", {"select_by": "accuracy"}, "train.select_by is accuracy, and data.task is regression; allowed: loss"),
        (
            "data",
            {"task": "classification"},
            "train.loss is mae, and data.task is classification; allowed: cross_entropy",
        ),
    ],
)
def test_options_that_make_no_sense_are_one_line(section: str, changed: dict[str, Any], line: str) -> None:
    assert rules.check(parameters()) == []
    loss = {"train": {"loss": "mae"}} if "task" in changed else {}
    (found,) = rules.check(parameters(**{**loss, section: changed}))
    assert found.startswith(f"params.yaml: {line}")
    assert "\n" not in found


def test_train_alone_finds_a_loss_for_another_task(run: dict[str, Any]) -> None:
    train = options.Train.model_validate(parameters(train={"loss": "nll"})["train"])
    with pytest.raises(UserError, match=r"^params.yaml: train.loss is nll, and data.task is regression"):
        checks.check_task(train, data_card.read(paths.DATA_CARD))


# --- what is measured


def test_measures_of_named_numbers() -> None:
    labels, predicted = np.array([1.0, 2.0, 3.0, 6.0]), np.array([1.0, 3.0, 3.0, 4.0], dtype=np.float32)
    found = values.measures(predicted, labels)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"r2": 1 - 5 / 14, "rmse": 1.25**0.5, "mae": 0.75, "mse": 1.25}
    )
    assert values.measures(np.full(4, 3.0), labels)["r2"] == 0  # always the mean
    assert values.measures(labels, labels)["r2"] == 1


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random, held = np.random.default_rng(0), []
    for _ in range(30):
        labels = random.normal(0, 1, 150)
        low, high = values.bootstrap(labels + random.normal(0, 0.5, 150), labels)["r2"]
        held.append(low < 0.75 < high)
    assert 0.85 <= np.mean(held) <= 1


def test_predictions_are_read_back_to_the_last_digit() -> None:
    labels, predicted = np.array([1e-9, -3.25, 1e12 + 0.1]), np.array([1.1e-9, 1 / 3, 1e12], dtype=np.float32)
    found = predictions.parse(predictions.csv(values.table(predicted, labels)).encode(), "x")
    assert predictions.has_values(found)
    assert found["label"].tolist() == labels.tolist()
    assert found["prediction"].astype(np.float32).tolist() == predicted.tolist()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("index,label,prediction\n0,1,x\n", "x: row 2: label or prediction is no finite number"),
        ("index,label,prediction\n0,1,2\n1,inf,2\n", "x: row 3: label or prediction is no finite number"),
        ("index,label,prediction\n", "x: holds no predictions"),
        ("index,label,prediction\n1,1,2\n", "x: its index does not count"),
    ],
)
def test_predictions_that_evaluate_did_not_write(content: str, line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}"):
        predictions.parse(content.encode(), "x")


# --- comparing


def table(labels: Any, predicted: Any) -> pd.DataFrame:
    return pd.DataFrame({"label": np.asarray(labels, float), "prediction": np.asarray(predicted, float)})


def side(name: str, predicted: pd.DataFrame | None, **metrics: Any) -> tuple[Revision, PredictionsLookup]:
    revision = Revision(name, None, {}, {}, {"metrics/evaluate.json": metrics}, {})
    return revision, PredictionsLookup(predicted, "lost" if predicted is None else "", [])


def compared(
    a: tuple[Revision, PredictionsLookup], b: tuple[Revision, PredictionsLookup], records: Any = None
) -> dict[str, Any]:
    return comparison.compare(a[0], b[0], (a[1], b[1]), 0.05, records)


def two_runs(
    seed: int = 0, count: int = 300, worse: float = 0.3, better: float = 0.2
) -> list[tuple[Revision, PredictionsLookup]]:
    random = np.random.default_rng(seed)
    labels = random.normal(10, 1, count)
    sides = []
    for name, error in (("old", worse), ("new", better)):
        found = table(labels, labels + random.normal(0, error, count))
        metrics = values.measures(found["prediction"].to_numpy(), labels)
        sides.append(side(name, found, images=count, **{key: float(f"{each:.6g}") for key, each in metrics.items()}))
    return sides


def test_a_better_regression_is_found_and_shown() -> None:
    old, new = two_runs()
    document = compared(old, new)
    assert document["notes"] == []
    assert document["measure"] == "R2"
    verdict = document["verdict"]
    assert verdict["word"] == "better"
    difference = new[0].metrics["metrics/evaluate.json"]["r2"] - old[0].metrics["metrics/evaluate.json"]["r2"]
    assert verdict["difference"] == pytest.approx(difference, abs=2e-6)
    assert 0 < verdict["low"] < verdict["difference"] < verdict["high"]
    images = document["images"]
    assert images["nearer"] > images["farther"] > 0
    assert images["nearer"] + images["farther"] == images["images"] == 300
    first = images["nearer_examples"][0]
    errors = [
        (found.table["prediction"] - found.table["label"]).abs() for _, found in (old, new) if found.table is not None
    ]
    assert first["index"] == np.argmax(errors[0] - errors[1])
    text = comparison_text.table(document)
    assert "nearer to the label" in text
    assert re.search(r"R2 0\.\d{4} -> 0\.\d{4}, \+0\.\d{4} \(95 % interval", " ".join(text.split()))
    comparison_text.markdown(document)
    json.dumps(document)
    assert compared(new, old)["verdict"]["word"] == "worse"
    same = compared(old, old)
    assert (same["verdict"]["word"], same["verdict"]["p"], same["images"]["changed"]) == ("within noise", 1.0, 0)


def test_metrics_near_zero_agree_with_their_predictions() -> None:
    """Nine digits of a prediction near 2000 are too few for an R2 near 0, unless they are read as a float32."""
    random = np.random.default_rng(1)
    for _ in range(20):
        labels = random.normal(2000, 10, 200)
        predicted = np.full(200, labels.mean() + random.normal(0, 0.3), dtype=np.float32)
        metrics = {key: float(f"{each:.6g}") for key, each in values.measures(predicted, labels).items()}
        written = predictions.csv(values.table(predicted, labels)).encode()
        assert regression.contradiction(metrics, predictions.parse(written, "x")) is None
        metrics["r2"] *= 1.01
        assert regression.contradiction(metrics, predictions.parse(written, "x"))


def test_labels_without_variance_have_no_verdict() -> None:
    old, new = (side(name, table([3.0], [guess]), r2=0.0) for name, guess in (("old", 1.0), ("new", 2.0)))
    document = compared(old, new)
    assert document["verdict"]["text"] == "all test images of old have the same label, so R2 is undefined"
    json.dumps(document, allow_nan=False)


def test_the_verdict_alarms_no_more_often_than_its_level() -> None:
    random, alarms, found = np.random.default_rng(0), 0, 0
    for _ in range(400):
        labels = random.normal(size=100)
        noise = random.standard_t(4, (3, 100))  # errors with heavy tails
        a, b, worse = labels + noise[0], labels + noise[1], labels + 1.6 * noise[2]
        alarms += significance.paired_squares(labels, a, b, 0.05).p < 0.05
        found += significance.paired_squares(labels, worse, b, 0.05).p < 0.05
    assert alarms <= 31  # 20 expected; more than 31 have a chance of 0.5 %
    assert found > 240


def test_what_cannot_be_compared_has_no_verdict() -> None:
    old, new = two_runs()
    classes = pd.CategoricalDtype(["a", "b"])
    other = pd.DataFrame({"label": list("ab"), "prediction": list("ab"), "probability": 0.9})
    classifier = side("classifier", other.astype({"label": classes, "prediction": classes}), errors=0, images=2)
    for pair in ((old, classifier), (classifier, old), (side("old", None, r2=0.5, images=2), classifier)):
        document = compared(*pair)
        assert document["verdict"]["word"] == "not comparable"
        assert document["verdict"]["text"] == "old predicts numbers (data.task: regression), classifier classes"
    lost = compared(old, (new[0], PredictionsLookup(None, "lost", [])))
    assert lost["verdict"]["text"].startswith("regressions are compared image by image")
    shorter = compared(old, side("new", table([1, 2], [1, 2]), r2=1.0, rmse=0.0, mae=0.0, mse=0.0))
    assert shorter["verdict"]["text"] == "the test sets differ: 300 images in old, 2 in new"
    wrong = compared(old, (side("new", None, r2=0.5, rmse=1.0, mae=1.0, mse=1.0)[0], new[1]))
    assert re.match(r"new: metrics/evaluate.json contradicts the predictions, which have r2 0\.", wrong["notes"][0])


def test_seeds_are_compared_by_r2() -> None:
    records = tuple(
        Record([Row(seed=seed, images=300, r2=value) for seed, value in enumerate(each)], test_set="x")
        for each in ((0.90, 0.91, 0.92), (0.95, 0.96, 0.955))
    )
    old, new = two_runs()
    document = compared(old, new, records)
    assert document["verdict"]["basis"] == "seeds"
    assert document["verdict"]["word"] == "better"
    assert document["verdict"]["text"].startswith("mean test R2 0.9100 (3 seeds) -> 0.9550 (3 seeds), +0.0450 (95 %")
    assert "Test R2 over seeds" in comparison_text.table(document)
    with pytest.raises(ValueError, match="errors, or r2"):
        Row(seed=0, images=3)
    assert {"r2", "validation_r2"} <= set(collect.SUMMARIZED)


def page(run: Results, against: Against | None = None) -> str:
    return report_page.page(run, against, lambda index: None, [], [])


def test_the_page_of_a_regression() -> None:
    (old, old_found), (new, new_found) = two_runs()
    curves = pd.DataFrame({"epoch": [1.0, 2.0], "train_loss": [1.0, 0.5], "validation_r2": [0.1, 0.6]})
    assert new_found.table is not None
    png = figures.scatter(new_found.table["label"].to_numpy(), new_found.table["prediction"].to_numpy(), "x")
    pictures = dict.fromkeys(results.PICTURES, png)
    runs = [
        Results(revision, found, curves, None, None, {}, pictures)
        for revision, found in ((old, old_found), (new, new_found))
    ]
    alone = harmless(page(runs[1])).text
    for text in ("Test R2 0.9", "(300 images)", "root mean squared error", "Predictions and errors", "Largest errors"):
        assert text in alone, text
    assert "Precision" not in alone
    assert "calibration" not in alone.lower()
    both = harmless(page(runs[1], Against(runs[0], compared((old, old_found), (new, new_found))))).text
    assert "Predictions nearer and farther" in both
    assert formatting.R2.name in both


# --- using the model


def test_predict_answers_with_the_value(
    run: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    picture = f"{DISCS}/007.png"
    monkeypatch.setattr(
        sys, "argv", ["predict", "--model", str(paths.MODEL), "--format", "json", picture, "params.yaml"]
    )
    assert predict.main() == predict.UNREADABLE
    first, second = json.loads(capsys.readouterr().out)
    label = float(Path(DISCS, "labels.csv").read_text(encoding="utf-8").splitlines()[8].split(",")[1])
    assert first["value"] == pytest.approx(label, abs=5 * run["rmse"])
    assert "classes" not in first
    assert "error" in second


def test_an_exported_regression_predicts_the_same_values(
    run: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export.main()
    record = json.loads(exported.RECORD.read_bytes())
    assert record.pop("scaled_difference_below") <= 1e-5
    assert record == {
        "sha256": hashlib.sha256(exported.MODEL.read_bytes()).hexdigest(),
        "model_sha256": hashlib.sha256(paths.MODEL.read_bytes()).hexdigest(),
        "images": run["images"],
    }
    found = {}
    for runtime in ("torch", "onnx"):
        monkeypatch.setattr(sys, "argv", ["predict", f"--runtime={runtime}", "--format=jsonl", f"{DISCS}/0?0.png"])
        capsys.readouterr()
        assert predict.main() == 0
        found[runtime] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in found["onnx"]] == [row["file"] for row in found["torch"]]
    values = {name: [row["value"] for row in rows] for name, rows in found.items()}
    assert len(values["onnx"]) == 10
    assert np.std(values["torch"]) > 0.5
    assert values["onnx"] == pytest.approx(values["torch"], rel=1e-5)


@pytest.mark.parametrize("format", ["table", "csv", "json", "jsonl"])
def test_a_value_as_text(format: rows.Format) -> None:
    given: list[dict[str, Any]] = [
        {"file": "a.png", "inverted": False, "looks_inverted": False, "value": -1.5e-7},
        {"file": "b", "error": "bad"},
    ]
    text = "".join(rows.text(given, format, 0, []))
    assert "-1.5e-07" in text
    if format == "csv":
        assert list(csv.reader(io.StringIO(text)))[:2] == [
            ["file", "value", "inverted", "error"],
            ["a.png", "-1.5e-07", "false", ""],
        ]


def test_the_server_answers_with_the_value(run: dict[str, Any]) -> None:
    classifier = Classifier(str(paths.MODEL))
    with serving(classifier) as url:
        answer = httpx.post(f"{url}/predict", content=Path(DISCS, "007.png").read_bytes()).json()
        about = httpx.get(f"{url}/model").json()
        mistakes = httpx.post(f"{url}/mistakes", content=Path(DISCS, "007.png").read_bytes()).json()
    (found,) = answer["predictions"]
    assert found["classes"] == about["classes"] == []
    pixels = classifier.prepare(Path(DISCS, "007.png").read_bytes(), "auto").pixels
    assert found["value"] == classifier.value(classifier.classify(np.stack([pixels]))[0])
    assert mistakes["mistakes"] == []
    assert mistakes["unavailable"] == "the model predicts a number, so no image counts as misclassified"


def test_the_model_file_gives_labels_and_not_scaled_ones(run: dict[str, Any]) -> None:
    model, spec = model_file.read(paths.MODEL)
    card = data_card.read(paths.DATA_CARD)
    assert (spec.classes, spec.output) == ([], "value")
    split = packed.open_split(paths.TEST, card.shape, 0)
    with torch.inference_mode():
        outputs = model(torch.from_numpy(split[:20]))[:, 0].numpy()
    assert np.abs(outputs - split.labels[:20]).mean() < 3 * run["mae"]


@pytest.mark.parametrize(
    "changed", [{"classes": ["a", "b"]}, {"output": "softmax"}, {"classes": ["a"], "output": "softmax"}, {"format": 2}]
)
def test_a_forged_model_file_is_refused(changed: dict[str, Any], run: dict[str, Any]) -> None:
    spec = model_file.read(paths.MODEL)[1]
    with pytest.raises(ValueError, match="classes|preparation"):
        model_file.Spec.model_validate({**spec.model_dump(), **changed})
