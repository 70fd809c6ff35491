"""Measure the trained network on the test set, which only this stage reads."""

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from stages.common import errors, files, inputs, machine_settings, params, paths, record
from stages.common.errors import UserError
from stages.dataset import data_card, packed
from stages.dataset.options import DataName
from stages.dataset.packed import Split
from stages.evaluate import figures, model_card, scores, values
from stages.evaluate.options import Evaluate
from stages.evaluate.predictions import csv, table
from stages.evaluate.scores import Floats
from stages.network import device, model_file, models
from stages.network.inference import predict
from stages.network.losses import Output

Results = tuple[dict[str, Any], str]  # the metrics, and a line that summarizes them


@device.enough_memory("fewer machine.threads, and train a smaller network (models)")
@inputs.unchanged
def main() -> None:
    """data/processed (test), data/model -> data/predictions.csv, data/model/README.md, metrics."""
    start = time.perf_counter()
    parameters = params.load(paths.PARAMS)
    options, threads = params.section(parameters, "evaluate", Evaluate), machine_settings.read(parameters).threads
    target = device.set_up(options.device, threads, options.numerics, "evaluate.device")

    card, data_metrics = data_card.read(paths.DATA_CARD), model_card.read_data(paths.DATA_METRICS)
    images = packed.open_split(paths.TEST, card.shape, len(card.classes))
    model, spec = model_file.read(paths.MODEL)
    if (spec.classes, spec.image_shape) != (card.classes, card.image_shape):
        raise UserError(f"{paths.MODEL}: trained on other classes or image shapes than {paths.TEST} has; `dvc repro`")
    output: Output = "value" if card.values else "softmax"

    model.to(target)
    with device.in_parallel(target, threads) as parallel:
        outputs = predict(model, images, output, target, parallel).numpy()
    if not np.isfinite(outputs).all():
        raise UserError(f"{paths.MODEL}: its outputs are not finite numbers; train it again, with a smaller lr")
    if card.values:
        temperature = 1.0
        metrics, line = evaluate_regression(outputs[:, 0], images, options)
    else:
        temperature = model_file.temperature(model)
        metrics, line = evaluate_classifier(outputs, images, card.classes, temperature, options)
    card_content = model_card.CardContent(
        data_name=params.section(parameters, "data", DataName).name,
        license=options.license,
        spec=spec,
        sha256=hashlib.sha256(paths.MODEL.read_bytes()).hexdigest(),
        parameters=models.parameter_count(model),
        temperature=temperature,
        calibration_bins=options.calibration_bins,
        torch=torch.__version__.partition("+")[0],
        metrics=metrics,
        data=data_metrics,
    )
    files.write_text(paths.MODEL_CARD, model_card.text(card_content))
    print(line)
    tables = (paths.PREDICTIONS, paths.TEST_METRICS, paths.CONFUSION, paths.RELIABILITY, paths.UNSCALED_RELIABILITY)
    files_written = (*tables, paths.MODEL_CARD, paths.OVERVIEW, paths.WORST)
    record.environment("evaluate", target.type, torch.backends.cpu.get_cpu_capability(), files_written)
    seconds = round(time.perf_counter() - start, 3)
    record.write("evaluate", {"seconds": seconds})


def evaluate_classifier(
    log_p: Floats, images: Split, classes: Sequence[str], temperature: float, options: Evaluate
) -> Results:
    """Write the metrics, tables and pictures of a classifier. log_p: log-probabilities float32 (N, K)."""
    labels = images.labels
    metrics = scores.summary(log_p, labels, classes, options.calibration_bins, temperature)

    predictions = log_p.argmax(axis=1)
    confidences = np.exp(log_p.max(axis=1))
    files.write_text(paths.PREDICTIONS, csv(table(log_p, labels, classes)))

    matrix = scores.confusion(labels, predictions, len(classes))
    pairs = pd.MultiIndex.from_product([classes, classes], names=["label", "prediction"])
    files.write_text(paths.CONFUSION, csv(pd.DataFrame({"images": matrix.ravel()}, index=pairs).reset_index()))
    bins = scores.reliability(confidences, predictions == labels, options.calibration_bins)
    files.write_text(paths.RELIABILITY, csv(bins))
    confidences_before = np.exp(scores.unscaled(log_p, temperature).max(axis=1))
    bins_before = scores.reliability(confidences_before, predictions == labels, options.calibration_bins)
    files.write_text(paths.UNSCALED_RELIABILITY, csv(bins_before))

    title = f"Test accuracy {metrics['accuracy']:.2%} ({len(labels):,} images)"
    before = bins_before if temperature != 1 else None
    files.write_bytes(paths.OVERVIEW, figures.overview(matrix, classes, bins, before, title))
    mistakes = np.flatnonzero(predictions != labels)
    most_confident_first = mistakes[np.argsort(-confidences[mistakes], kind="stable")]
    mistakes = most_confident_first[: options.worst_images]
    short = [name if len(name) <= 14 else f"{name[:13]}…" for name in classes]
    titles = [f"{short[labels[image]]}\n→ {short[predictions[image]]}, {confidences[image]:.1%}" for image in mistakes]
    heading = f"{len(mistakes)} of {metrics['errors']} mistakes, the most confident first:"
    heading = f"{heading}\ntrue class → prediction, its probability" if len(mistakes) else "no mistakes"
    files.write_bytes(paths.WORST, figures.worst(images.gather(mistakes), titles, heading))
    files.write_json(paths.TEST_METRICS, metrics)

    low, high = metrics["accuracy_low"], metrics["accuracy_high"]
    return metrics, f"{title} (95 % interval {low:.2%} to {high:.2%}), loss {metrics['loss']:.4f}"


def evaluate_regression(predictions: Floats, images: Split, options: Evaluate) -> Results:
    """Write the metrics, tables and pictures of a regression. predictions: float32 (N,).

    dvc.yaml has the same outputs for both tasks, so the tables about classes are written without rows.
    """
    labels = images.labels
    metrics = values.summary(predictions, labels)
    files.write_text(paths.PREDICTIONS, csv(values.table(predictions, labels)))
    files.write_text(paths.CONFUSION, csv(pd.DataFrame(columns=["label", "prediction", "images"])))
    no_rows = csv(scores.reliability(np.zeros(0), np.zeros(0, dtype=bool), options.calibration_bins))
    for path in (paths.RELIABILITY, paths.UNSCALED_RELIABILITY):
        files.write_text(path, no_rows)

    title = f"Test R2 {metrics['r2']:.4f}, root mean squared error {metrics['rmse']:.4g} ({len(labels):,} images)"
    files.write_bytes(paths.OVERVIEW, figures.scatter(labels, predictions, title))
    largest_first = np.argsort(-np.abs(predictions - labels), kind="stable")[: options.worst_images]
    titles = [f"{labels[image]:.4g}\n→ {predictions[image]:.4g}" for image in largest_first]
    heading = f"{len(titles)} images with the largest errors:\nlabel → prediction"
    files.write_bytes(paths.WORST, figures.worst(images.gather(largest_first), titles, heading))
    files.write_json(paths.TEST_METRICS, metrics, significant=True)
    low, high = metrics["r2_low"], metrics["r2_high"]
    return metrics, f"{title}, R2's 95 % interval {low:.4f} to {high:.4f}"


if __name__ == "__main__":
    errors.run(main, memory="machine.threads, models")
