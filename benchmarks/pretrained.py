"""What pretrained weights are worth: trained on five classes of Fashion-MNIST, fine-tuned to few images of the others.

`python -m benchmarks.pretrained` writes benchmarks/pretrained.json and prints the table of docs/networks.md. It takes
minutes on two cores, and needs Debian's package dataset-fashion-mnist. The stages run as they are, in one process.

A seed is both: which images there are to train on, and train.seed. All ways to start have the same recipe, which is not
tuned to any of them. The epoch is selected on validation, and the test images are read once per run.
"""

import contextlib
import gzip
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from benchmarks.scratch import CODE, changed
from benchmarks.summary import spread
from stages.common import files, paths, record
from stages.dataset import idx
from stages.dataset.registry import DATA_SETS
from stages.evaluate import __main__ as evaluate
from stages.preprocess import __main__ as preprocess
from stages.train import __main__ as train
from stages.weights import __main__ as weights

RESULTS = CODE / "benchmarks/pretrained.json"
SOURCE = Path("/usr/share/datasets/fashion-mnist")
SEEDS = range(3)
BEFORE, AFTER = range(5), range(5, 10)  # classes
BEFORE_IMAGES, TRAINING, VALIDATION, TEST = 1000, 20, 20, 100  # per class; BEFORE_IMAGES are pretrained on
RECIPE = [
    *("data.name=images", "data.images=pictures", "preprocess.image_size=28", "model.name=torchvision"),
    *("models.torchvision.architecture=shufflenet_v2_x0_5", "train.shards=1", "train.batch_size=32"),
    *("train.augmentation=none", "train.epochs=20", "optimizers.adam.lr=0.003", "preprocess.on_conflict=drop"),
    *("train.numerics=fast", "evaluate.numerics=fast"),  # portable numerics need a process for each run
]
STAGES = {"preprocess": preprocess, "weights": weights, "train": train, "evaluate": evaluate}
WAYS: dict[str, dict[str, Any]] = {
    "new weights": {},
    "pretrained, all trained": {"weights": "before.safetensors"},
    "pretrained, backbone frozen": {"weights": "before.safetensors", "freeze": "backbone"},
}


def read(prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """A published part: images uint8 (N, 28, 28), and labels (N,)."""
    images, labels = (
        idx.decode(gzip.decompress((SOURCE / f"{prefix}-{kind}-ubyte.gz").read_bytes()))
        for kind in ("images-idx3", "labels-idx1")
    )
    return images, labels


def write_pictures(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """One PNG per image, in a folder per class."""
    names = DATA_SETS["fashion-mnist"].classes
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / names[label].replace("/", " or ")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:05}.png")


def draw(labels: np.ndarray, classes: range, count: int, seed: int) -> np.ndarray:
    """The indices of `count` images of each class, drawn at random."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.permutation(np.flatnonzero(labels == label))[:count] for label in classes])


def run(folder: Path, values: dict[str, Any], *stages: str) -> None:
    """Run stages in a folder with these parameters."""
    files.write_text(folder / paths.PARAMS, yaml.safe_dump(values, sort_keys=False))
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        paths.RUNS.mkdir(exist_ok=True)
        for stage in stages:
            STAGES[stage].main()


def measured(folder: Path, path: Path, key: str) -> float:
    """One number of a metrics file."""
    value: float = json.loads((folder / path).read_bytes())[key]
    return value


def pretrain(root: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Train on the first classes; returns the validation accuracy. The model file is in `root`."""
    chosen = draw(labels, BEFORE, BEFORE_IMAGES, seed=0)
    write_pictures(root / "pictures", images[chosen], labels[chosen])
    values = changed([*RECIPE, "train.epochs=5", "preprocess.test_fraction=0.05"])
    run(root, values, "preprocess", "train")
    return measured(root, paths.TRAIN_METRICS, "validation_accuracy")


def prepare(root: Path, seed: int, test: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """A folder with the few images of a seed, and the test images of all."""
    folder = root / f"seed-{seed}"
    chosen = draw(labels, AFTER, TRAINING + VALIDATION, seed).reshape(len(AFTER), -1)
    for part, indices in (("train", chosen[:, :TRAINING]), ("validation", chosen[:, TRAINING:])):
        write_pictures(folder / "pictures" / part, images[indices.ravel()], labels[indices.ravel()])
    (folder / "pictures/test").symlink_to(test, target_is_directory=True)
    (folder / paths.WEIGHTS).mkdir(parents=True)
    (folder / paths.WEIGHTS / "before.safetensors").symlink_to(root / "before" / paths.MODEL)
    run(folder, changed(RECIPE), "preprocess")
    return folder


def measure(folders: list[Path], options: dict[str, Any]) -> dict[str, Any]:
    """Test accuracy and seconds of training of one way to start, over the seeds."""
    test, seconds = [], []
    for seed, folder in enumerate(folders):
        values = changed([*RECIPE, f"train.seed={seed}"])
        values["models"]["torchvision"].update(options)
        run(folder, values, "weights", "train", "evaluate")
        test.append(measured(folder, paths.TEST_METRICS, "accuracy"))
        seconds.append(measured(folder, paths.RUNS / "train.json", "loop_seconds"))
    return {"test_accuracy": {**spread(test), "runs": test}, "loop_seconds": spread(seconds)}


def main() -> None:
    """Measure, write, and print the table."""
    images, labels = read("train")
    test_images, test_labels = read("t10k")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        kept = draw(test_labels, AFTER, TEST, seed=0)
        write_pictures(root / "test", test_images[kept], test_labels[kept])
        before = pretrain(root / "before", images, labels)
        folders = [prepare(root, seed, root / "test", images, labels) for seed in SEEDS]
        ways = {name: measure(folders, options) for name, options in WAYS.items()}
    result = {
        "command": "python -m benchmarks.pretrained",
        "machine": record.machine(),
        "pretrained_validation_accuracy": before,
        "seeds": len(SEEDS),
        "training_images": TRAINING * len(AFTER),
        "test_images": len(kept),
        "ways": ways,
    }
    files.write_text(RESULTS, json.dumps(result, indent=2) + "\n")
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """A row for each way to start."""
    rows = ["| start | test accuracy | seeds, lowest to highest |", "| --- | --- | --- |"]
    for name, way in result["ways"].items():
        test = way["test_accuracy"]
        mean, deviation = test["mean"], 100 * test["standard_deviation"]
        span = f"{test['n']}, {test['min']:.1%} to {test['max']:.1%}"
        rows.append(f"| {name} | {mean:.1%} ± {deviation:.1f} | {span} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
