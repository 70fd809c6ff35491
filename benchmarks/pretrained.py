"""The gain from pretrained weights: trained on five classes of Fashion-MNIST, fine-tuned to a few images of the others.

`python -m benchmarks.pretrained` writes benchmarks/pretrained.json and prints the table of docs/networks.md. It takes
minutes on two cores, and needs Debian's package dataset-fashion-mnist. The stages run as they are, in one process.

A seed chooses the training images, and is train.seed. All starts have the same recipe, which is tuned to none of them.
The epoch is selected on validation, and the test images are read once per run.
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
PRETRAINING_CLASSES, CLASSES = range(5), range(5, 10)
PRETRAINING, TRAINING, VALIDATION, TEST = 1000, 20, 20, 100  # images per class
RECIPE = [
    *("data.name=images", "data.images=pictures", "preprocess.image_size=28", "model.name=torchvision"),
    *("models.torchvision.architecture=shufflenet_v2_x0_5", "train.shards=1", "train.batch_size=32"),
    *("train.augmentation=none", "train.epochs=20", "optimizers.adam.lr=0.003", "preprocess.on_conflict=drop"),
    *("train.numerics=fast", "evaluate.numerics=fast"),  # portable numerics need a process for each run
]
STAGES = {"preprocess": preprocess, "weights": weights, "train": train, "evaluate": evaluate}
STARTS: dict[str, dict[str, Any]] = {
    "new weights": {},
    "pretrained, all trained": {"weights": "pretrained.safetensors"},
    "pretrained, backbone frozen": {"weights": "pretrained.safetensors", "freeze": "backbone"},
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
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        class_folder = folder / names[label].replace("/", " or ")
        class_folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(class_folder / f"{index:05}.png")


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


def number(folder: Path, path: Path, key: str) -> float:
    """One number of a JSON file."""
    value: float = json.loads((folder / path).read_bytes())[key]
    return value


def pretrain(root: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Train on PRETRAINING_CLASSES in `root`; returns the validation accuracy."""
    chosen = draw(labels, PRETRAINING_CLASSES, PRETRAINING, seed=0)
    write_pictures(root / "pictures", images[chosen], labels[chosen])
    values = changed([*RECIPE, "train.epochs=5", "preprocess.test_fraction=0.05"])
    run(root, values, "preprocess", "train")
    return number(root, paths.TRAIN_METRICS, "validation_accuracy")


def prepare(root: Path, seed: int, test: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """A folder with the training and validation images of a seed, and the test images that all seeds share."""
    folder = root / f"seed-{seed}"
    chosen = draw(labels, CLASSES, TRAINING + VALIDATION, seed).reshape(len(CLASSES), -1)
    for part, indices in (("train", chosen[:, :TRAINING]), ("validation", chosen[:, TRAINING:])):
        write_pictures(folder / "pictures" / part, images[indices.ravel()], labels[indices.ravel()])
    (folder / "pictures/test").symlink_to(test, target_is_directory=True)
    (folder / paths.WEIGHTS).mkdir(parents=True)
    (folder / paths.WEIGHTS / "pretrained.safetensors").symlink_to(root / "pretraining" / paths.MODEL)
    run(folder, changed(RECIPE), "preprocess")
    return folder


def measure(folders: list[Path], options: dict[str, Any]) -> dict[str, Any]:
    """Test accuracy and seconds of training of one start, over the seeds."""
    test, seconds = [], []
    for seed, folder in enumerate(folders):
        values = changed([*RECIPE, f"train.seed={seed}"])
        values["models"]["torchvision"].update(options)
        run(folder, values, "weights", "train", "evaluate")
        test.append(number(folder, paths.TEST_METRICS, "accuracy"))
        seconds.append(number(folder, paths.RUNS / "train.json", "loop_seconds"))
    return {"test_accuracy": {**spread(test), "runs": test}, "loop_seconds": spread(seconds)}


def main() -> None:
    """Measure, write, and print the table."""
    images, labels = read("train")
    test_images, test_labels = read("t10k")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        chosen = draw(test_labels, CLASSES, TEST, seed=0)
        write_pictures(root / "test", test_images[chosen], test_labels[chosen])
        pretrained_accuracy = pretrain(root / "pretraining", images, labels)
        folders = [prepare(root, seed, root / "test", images, labels) for seed in SEEDS]
        starts = {name: measure(folders, options) for name, options in STARTS.items()}
    result = {
        "command": "python -m benchmarks.pretrained",
        "machine": record.machine(),
        "pretrained_validation_accuracy": pretrained_accuracy,
        "seeds": len(SEEDS),
        "training_images": TRAINING * len(CLASSES),
        "test_images": len(chosen),
        "ways": starts,
    }
    files.write_text(RESULTS, json.dumps(result, indent=2) + "\n")
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """One row per start."""
    rows = ["| start | test accuracy | seeds, lowest to highest |", "| --- | --- | --- |"]
    for name, start in result["ways"].items():
        test = start["test_accuracy"]
        mean, deviation = test["mean"], 100 * test["standard_deviation"]
        span = f"{test['n']}, {test['min']:.1%} to {test['max']:.1%}"
        rows.append(f"| {name} | {mean:.1%} ± {deviation:.1f} | {span} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
