"""Export the trained network and compare it with the original on the test set, a stage of export/dvc.yaml."""

import hashlib
import math
from typing import Any

import numpy as np

from export.convert import convert
from export.paths import MODEL, RECORD
from export.runtime import Description, Network, Outputs, Record
from stages.common import errors, files, inputs, machine_settings, params, paths
from stages.common.errors import UserError
from stages.dataset import packed
from stages.evaluate.options import Evaluate
from stages.network import device, model_file
from stages.network.inference import predict
from stages.network.losses import Output

MAX_SCALED_DIFFERENCE = 1e-3  # of a regression's values, in standard deviations of the training labels


@device.enough_memory("fewer machine.threads, and train a smaller network (models)")
@inputs.unchanged
def main() -> None:
    """data/model/model.safetensors, data/processed/test -> data/model/model.onnx, metrics/export.json."""
    values = params.load(paths.PARAMS)
    options, threads = params.section(values, "evaluate", Evaluate), machine_settings.read(values).threads
    # onnxruntime computes on the CPU; a GPU would add differences of its own, such as TF32 convolutions.
    target = device.set_up("cpu", threads, options.numerics, "evaluate.device")

    model, spec = model_file.read(paths.MODEL)
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
    output: Output = "softmax" if spec.classes else "value"
    with device.in_parallel(target, threads) as parallel:
        in_torch = predict(model, images, output, target, parallel).numpy()
        in_onnx = Network(content).outputs(images, parallel)
    if spec.classes:
        differences = compare_classes(in_torch, in_onnx)
    else:
        differences = compare_values(in_torch, in_onnx, float(model.get_buffer(f"{model_file.LAYERS}.std")))
    files.write_bytes(MODEL, content)
    record = Record(
        sha256=hashlib.sha256(content).hexdigest(),
        model_sha256=description.model_sha256,
        images=len(images),
        **differences,
    )
    files.write_json(RECORD, record.model_dump(exclude_none=True))


def compare_classes(in_torch: Outputs, in_onnx: Outputs) -> dict[str, Any]:
    """The fields of Record for log-probabilities (N, K). Raises UserError if a prediction changes."""
    difference = largest_difference(in_torch, in_onnx)
    changed = int((in_torch.argmax(axis=1) != in_onnx.argmax(axis=1)).sum())
    print(f"{len(in_torch):,} test images: largest difference of log-probabilities {difference:.2g}, {changed} changed")
    if changed or not math.isfinite(difference):
        raise UserError(
            f"{changed} of {len(in_torch):,} predictions change in ONNX (largest difference of log-probabilities: "
            f"{difference:.2g}), so the file is not written; train longer, so that probabilities are less equal"
        )
    return {"changed_predictions": changed, "log_probability_difference_below": power_of_ten_above(difference)}


def compare_values(in_torch: Outputs, in_onnx: Outputs, std: float) -> dict[str, Any]:
    """The fields of Record for predicted numbers (N, 1). Raises UserError if they differ too much.

    std: the standard deviation of the training labels, in which the difference is measured.
    """
    difference = largest_difference(in_torch, in_onnx) / std
    print(f"{len(in_torch):,} test images: largest difference of values {difference:.2g} standard deviations")
    if not difference <= MAX_SCALED_DIFFERENCE:
        raise UserError(
            f"the predicted values change in ONNX by up to {difference:.2g} standard deviations of the training labels "
            f"(allowed: {MAX_SCALED_DIFFERENCE:g}), so the file is not written; choose another network (model.name)"
        )
    return {"scaled_difference_below": power_of_ten_above(difference)}


def largest_difference(in_torch: Outputs, in_onnx: Outputs) -> float:
    """The largest absolute difference, in float64; NaN if an output is."""
    return float(np.abs(in_torch.astype(np.float64) - in_onnx).max())


def power_of_ten_above(value: float) -> float:
    """The next power of ten above a number, at least 1e-6."""
    return float(10 ** max(math.floor(math.log10(value)) + 1, -6)) if value else 1e-6


if __name__ == "__main__":
    errors.run(main, memory="machine.threads, models")
