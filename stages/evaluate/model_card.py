"""The model card: Markdown with the metadata block that the Hugging Face hub reads.

It contains only what was measured and recorded, and has the same bytes on every machine.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from stages.common.errors import UserError, printable
from stages.network.model_file import Spec

MAX_CLASSES = 100  # that are listed
MARKUP = "\\`*_{}[]<>#|~!&"
# Findings of the audit that limit what the metrics mean: key in metrics/data.json, and the text after a count above 0.
LIMITS = {
    "exact_copies.contents_in_two_parts": "contents are in two parts: the test set has copies of training pictures, or "
    "validation has",
    "near_copies_in_two_parts": "pictures of validation or test look like one of another part",
    "contents_under_two_classes": "contents were filed under two classes",
    "constant_pictures": "pictures have one colour only",
    "left_out.unusable": "files were left out, since they could not be used",
    "left_out.conflicts": "files were left out, since the same content was filed under two classes",
    "left_out.small_classes": "files were left out, since their class was too small",
}

REGRESSION_METRICS = {"r2": "R2", "rmse": "root mean squared error", "mae": "mean absolute error"}


class CardContent(NamedTuple):
    """The content of a model card."""

    data_name: str  # data.name of params.yaml
    license: str  # evaluate.license; "" for none
    spec: Spec
    sha256: str  # of the model file
    parameters: int
    temperature: float
    calibration_bins: int
    torch: str  # version, without the build
    metrics: dict[str, Any]  # of metrics/evaluate.json
    data: dict[str, Any]  # of metrics/data.json


def read_data(path: Path) -> dict[str, Any]:
    """Read metrics/data.json. Raises UserError if preprocess did not write it."""
    try:
        metrics = json.loads(path.read_bytes())
        _ = [int(metrics["images"][part]) for part in ("train", "validation", "test")]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` writes it") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: not what preprocess writes; `dvc repro --force preprocess` writes it again") from None
    return dict(metrics)


def text(card: CardContent) -> str:
    """The card as Markdown."""
    head = yaml.safe_dump(header(card), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n".join(body(card))


def header(card: CardContent) -> dict[str, Any]:
    """The metadata of the hub: https://huggingface.co/docs/hub/model-cards."""
    task = "image-classification" if card.spec.classes else "other"  # the hub has no name for regression
    if card.spec.classes:
        measured = [
            {"type": "accuracy", "name": "Accuracy", "value": round(card.metrics["accuracy"], 6)},
            {"type": "f1", "name": "Macro F1", "value": round(card.metrics["macro"]["f1"], 6)},
        ]
    else:
        measured = [
            {"type": key, "name": name, "value": digits(card.metrics[key])} for key, name in REGRESSION_METRICS.items()
        ]
    result = {
        "task": {"type": task},
        "dataset": {"type": card.data_name, "name": data_set(card), "split": "test"},
        "metrics": measured,
    }
    return {
        **({"license": card.license} if card.license else {}),
        "library_name": "pytorch",
        **({"pipeline_tag": task} if card.spec.classes else {}),
        "model-index": [{"name": title(card), "results": [result]}],
    }


def title(card: CardContent) -> str:
    """The name of the model."""
    architecture = card.spec.options.get("architecture", card.spec.model)
    return f"{architecture} on {data_set(card)}"


def data_set(card: CardContent) -> str:
    """The name of the data set."""
    return "own pictures" if card.data_name == "images" else card.data_name


def body(card: CardContent) -> Iterator[str]:
    """The lines of the card."""
    spec, metrics = card.spec, card.metrics
    channels, height, width = spec.image_shape
    colour = "grey" if channels == 1 else "colour"
    names = ", ".join(map(plain, spec.classes[:MAX_CLASSES])) + (", …" if len(spec.classes) > MAX_CLASSES else "")
    yield f"# {plain(title(card))}"
    yield ""
    size = f"{width} x {height} pixels"
    if spec.classes:
        yield f"This network classifies {colour} images of {size} into {len(spec.classes):,} classes: {names}."
    else:
        yield f"This network predicts a number for {colour} images of {size}."
    yield ""
    yield from table(
        ["", ""],
        [
            ("file", "model.safetensors"),
            ("SHA-256", card.sha256),
            ("weights", f"{card.parameters:,}"),
            *temperature(card),
            ("made with", f"PyTorch {card.torch}"),
            ("license", card.license or "not stated"),
        ],
    )
    yield "## Results"
    yield ""
    yield f"On {metrics['images']:,} test images, which training does not read."
    yield ""
    yield from table(["metric", "value", "95 % interval"], list(results(card)))
    if spec.classes and len(spec.classes) <= MAX_CLASSES:
        columns = ("precision", "recall", "f1")
        rows = [
            (plain(row["class"]), f"{row['images']:,}", *(f"{row[column]:.4f}" for column in columns))
            for row in metrics["classes"]
        ]
        yield from table(["class", "test images", *columns], rows)
    yield "## Data"
    yield ""
    images = card.data["images"]
    prepared = spec.preparation
    how = "as published" if prepared is None else f"made {prepared.channels}, resized by `{prepared.resize}`"
    yield (
        f"{plain(data_set(card))}, {how}: {images['train']:,} images to train on, {images['validation']:,} to choose "
        f"the epoch{' and fit the temperature' if spec.classes else ''}, {images['test']:,} to test."
    )
    yield ""
    yield "## Limits"
    yield ""
    yield from (f"- {limit}" for limit in limits(card))
    yield ""


def results(card: CardContent) -> Iterator[tuple[str, str, str]]:
    """Metric, value, interval."""
    metrics = card.metrics
    if not card.spec.classes:
        for key, name in REGRESSION_METRICS.items():
            yield name, f"{metrics[key]:.6g}", f"{metrics[f'{key}_low']:.6g} to {metrics[f'{key}_high']:.6g}"
        return
    low, high = metrics["accuracy_low"], metrics["accuracy_high"]
    yield "accuracy", f"{metrics['accuracy']:.2%}", f"{low:.2%} to {high:.2%}"
    yield "misclassified images", f"{metrics['errors']:,}", ""
    for name in ("precision", "recall", "f1"):
        yield f"macro {name}", f"{metrics['macro'][name]:.4f}", ""
    for where, found in (("", metrics), (", without temperature", metrics.get("without_temperature"))):
        if found:
            low, high = found["calibration_error_low"], found["calibration_error_high"]
            bins = f"{card.calibration_bins} bins"
            yield f"negative log-likelihood{where}", f"{found['loss']:.4f}", ""
            interval = f"{low:.4f} to {high:.4f}"
            yield f"expected calibration error, {bins}{where}", f"{found['calibration_error']:.4f}", interval


def temperature(card: CardContent) -> list[tuple[str, str]]:
    """The table row of the temperature; none for regression."""
    shown = f"{card.temperature:g}" if card.temperature != 1 else "none"
    return [("temperature, fitted on validation", shown)] if card.spec.classes else []


def digits(value: float) -> float:
    """A number with six significant digits, as metrics/evaluate.json has them for regression."""
    return float(f"{value:.6g}")


def limits(card: CardContent) -> Iterator[str]:
    """The known limits of the results."""
    yield (
        f"Test images come from the same source as training images: {plain(data_set(card))}. Nothing was measured on "
        "other images."
    )
    if card.spec.classes:
        fewest = min(card.metrics["classes"], key=lambda row: row["images"])
        yield f"The class with the fewest test images, {plain(fewest['class'])}, has {fewest['images']:,}."
    if not card.data["images"]["validation"]:
        uncalibrated = ", and its probabilities are not calibrated" if card.spec.classes else ""
        yield f"No validation images: the last epoch is the model{uncalibrated}."
    audit = card.data.get("audit")
    if not isinstance(audit, dict):
        yield "The images were not searched for copies and wrong labels: that is done for own pictures only."
        return
    found = [(count, words) for key, words in LIMITS.items() if (count := number(audit, key))]
    yield from (f"{count:,} {words}." for count, words in found)
    if not found:
        yield "The audit of the pictures found no copies in two parts and no file that had to be left out."


def number(audit: dict[str, Any], key: str) -> int:
    """A count in the audit; 0 if it is missing."""
    value: Any = audit
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if type(value) is int else 0


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table, and an empty line."""
    yield f"| {' | '.join(columns)} |"
    yield "|" + " --- |" * len(columns)
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def plain(text: str) -> str:
    """A name as one line of plain text: markup is escaped, control characters are replaced."""
    return "".join(f"\\{letter}" if letter in MARKUP else letter for letter in printable(text).replace("\n", " "))
