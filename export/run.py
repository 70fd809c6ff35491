"""Export the trained network and compare it with the original on the test set, a stage of export/dvc.yaml."""

import hashlib
import math

import numpy as np

from export.convert import convert
from export.paths import MODEL, RECORD
from export.runtime import Description, Logs, Network, Record
from stages.common import errors, files, machine_settings, params, paths
from stages.common.errors import UserError
from stages.dataset import packed
from stages.evaluate.options import Evaluate
from stages.network import device, model_file
from stages.network.inference import predict


@device.enough_memory("fewer machine.threads, and train a smaller network (models)")
def main() -> None:
    """data/model/model.safetensors, data/processed/test -> data/model/model.onnx, metrics/export.json."""
    values = params.load(paths.PARAMS)
    options, threads = params.section(values, "evaluate", Evaluate), machine_settings.read(values).threads
    target = device.set_up(options.device, threads, options.numerics, "evaluate.device")

    model, spec = model_file.read(paths.MODEL)
    if not spec.classes:
        raise UserError(
            f"{paths.MODEL}: a regression, which cannot be exported yet; `make predict` and `make serve` run it"
        )
    description = Description(
        format=1,
        classes=spec.classes,
        image_shape=spec.image_shape,
        training_mean=model_file.training_mean(model),
        preparation=spec.preparation,
        model_sha256=hashlib.sha256(paths.MODEL.read_bytes()).hexdigest(),
    )
    content = convert(model, description)

    channels, height, width = spec.image_shape
    images = packed.open_split(paths.TEST, (channels, height, width), len(spec.classes))
    with device.in_parallel(target, threads) as parallel:
        ours = predict(model.to(target), images, "softmax", target, parallel).numpy()
        exported = Network(content).log_probabilities(images, parallel)
    changed, difference = compare(ours, exported)
    print(f"{len(images):,} test images: largest difference of log-probabilities {difference:.2g}, {changed} changed")
    if changed:
        raise UserError(
            f"{changed} of {len(images):,} predictions change in ONNX (log-probabilities differ by {difference:.2g} at "
            "most): it is not written; networks with nearly equal probabilities do this: train it longer"
        )
    files.write_bytes(MODEL, content)
    record = Record(
        sha256=hashlib.sha256(content).hexdigest(),
        model_sha256=description.model_sha256,
        images=len(images),
        changed_predictions=changed,
        log_probability_difference_below=power_of_ten_above(difference),
    )
    files.write_json(RECORD, record.model_dump())


def compare(ours: Logs, exported: Logs) -> tuple[int, float]:
    """How many predictions differ, and the largest difference of log-probabilities. Both (N, K)."""
    difference = float(np.abs(ours.astype(np.float64) - exported).max())
    return int((ours.argmax(axis=1) != exported.argmax(axis=1)).sum()), difference


def power_of_ten_above(value: float) -> float:
    """The next power of ten above a number, from 1e-6 on."""
    return float(10 ** max(math.floor(math.log10(value)) + 1, -6)) if value else 1e-6


if __name__ == "__main__":
    errors.run(main, memory="machine.threads, models")
