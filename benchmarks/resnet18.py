"""Training resnet18 on photographs of 128 x 128 pixels: this pipeline against torchvision's reference recipe.

    PYTHONPATH=. .venv/bin/python -m benchmarks.resnet18

The reference is references/classification of pytorch/vision: ImageFolder with the transforms of its training preset, a
DataLoader with one worker per core, and the loop of its train_one_epoch, on all of torch's threads. It runs on JPEG
files, as in the recipe, and on batches that are in memory, which times only the loop. Our side trains on the same
pictures, packed by preprocess (not timed: that happens once), with the same network, optimizer, batch size and kinds of
augmentation, and train.shards as in params.yaml. The three take turns with a matrix product, after a warm-up,
in float32 with `numerics: fast`. The FLOPs are those of convolutions and matrix products only.

Needs photographs (benchmarks/photographs.py says where to get them).
"""

import json
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, models, transforms

from benchmarks import photographs
from benchmarks.scratch import Scratch
from benchmarks.steps import MATRIX_PRODUCT_FLOPS, matrix_products, operation_threads, seconds, train_epoch
from benchmarks.summary import spread
from stages.common import machine, paths
from stages.dataset import data_card, packed
from stages.network import device
from stages.network import models as our_models
from stages.train import options
from stages.train.batches import PackedImages, load_into_memory
from stages.train.optimizers import OPTIMIZERS
from stages.train.recipe import Recipe

PICTURES, TEST_PICTURES, SIDE, BATCH = 320, 40, 128, 32
LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-4  # the reference's defaults, as is BATCH
REPEATS = 4
RECIPE = [
    *("data.name=images", "data.images=pictures", f"preprocess.image_size={SIDE}", "preprocess.validation_fraction=0"),
    *("model.name=torchvision", "models.torchvision.architecture=resnet18"),
    *("train.epochs=1", f"train.batch_size={BATCH}", "train.label_smoothing=0", "train.schedule=constant"),
    *("train.optimizer=sgd", f"optimizers.sgd.lr={LR}", f"optimizers.sgd.momentum={MOMENTUM}"),
    *(f"optimizers.sgd.weight_decay={WEIGHT_DECAY}", "train.augmentation=[random_resized_crop,flip]"),
]
Batches = Iterable[tuple[Tensor, Tensor]]


def reference_images(folder: Path) -> datasets.ImageFolder:
    """The JPEG files, transformed as the reference does for training."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float),
            transforms.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ]
    )
    return datasets.ImageFolder(str(folder), transform)


def reference_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches) -> None:
    """One epoch in the shape of train_one_epoch: a step, then the loss and the accuracies for the log."""
    criterion = nn.CrossEntropyLoss()
    model.train()
    for images, labels in batches:
        logits = model(images)
        loss = criterion(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        top5 = logits.topk(5).indices == labels[:, None]
        loss.item(), top5[:, 0].float().mean().item(), top5.any(dim=1).float().mean().item()


def our_training(folder: Path, target: torch.device) -> tuple[Callable[[device.Map], None], float]:
    """A function that trains for one epoch on the packed pictures, and the GFLOP per image."""
    chosen = options.read(Scratch(folder, RECIPE).values)
    card = data_card.read(folder / paths.DATA_CARD)
    split = packed.open_split(folder / paths.TRAIN, card.shape, len(card.classes))
    images, labels = load_into_memory(split, target), torch.from_numpy(split.labels)
    model = our_models.build(chosen.model, chosen.model_options, card.shape, len(card.classes), card.mean, card.std)
    optimizer = OPTIMIZERS[chosen.train.optimizer](model.parameters(), **chosen.optimizer_options)
    recipe = Recipe.of(chosen, steps=len(labels) // BATCH, images=torch.bincount(labels).tolist())
    train = partial(train_epoch, model, optimizer, recipe)
    with FlopCounterMode(display=False) as counter:  # counts in this thread only, hence map
        train(PackedImages(images[:BATCH], labels[:BATCH]), map)
    return partial(train, PackedImages(images, labels)), counter.get_total_flops() / BATCH / 1e9


def main() -> None:
    """Print JSON."""
    all_cores = torch.get_num_threads()
    target = device.set_up("cpu", 0, "fast", "benchmark")
    with tempfile.TemporaryDirectory() as temporary, device.in_parallel(target, 0) as parallel:
        folder = Path(temporary)
        photographs.cut(folder / "pictures/train", PICTURES)
        photographs.cut(folder / "pictures/test", TEST_PICTURES)
        ours, gflop = our_training(folder, target)
        images = reference_images(folder / "pictures/train")
        files = DataLoader(images, BATCH, shuffle=True, num_workers=machine.cores())
        model = models.resnet18(num_classes=len(images.classes))
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

        def reference(batches: Batches) -> None:
            with operation_threads(all_cores):
                reference_epoch(model, optimizer, batches)

        works: dict[str, Callable[[], object]] = {
            "ours": partial(ours, parallel),
            "reference": partial(reference, files),
            "reference_in_memory": partial(reference, list(files)),
            "matrix_product": matrix_products(all_cores),
        }
        rounds = [{name: seconds(work) for name, work in works.items()} for _ in range(REPEATS + 1)]
    rounds = rounds[1:]  # the first is a warm-up
    sides = ("ours", "reference", "reference_in_memory")
    rates = {name: [len(images) / took[name] for took in rounds] for name in sides}
    peaks = [MATRIX_PRODUCT_FLOPS / took["matrix_product"] / 1e9 for took in rounds]
    result = {f"{name}_images_per_second": spread(values) for name, values in rates.items()}
    for name in sides[1:]:
        result[f"ours_by_{name}"] = spread([a / b for a, b in zip(rates["ours"], rates[name], strict=True)])
    shares = [gflop * rate / peak for rate, peak in zip(rates["ours"], peaks, strict=True)]
    result |= {"matrix_product_gflops": spread(peaks), "share_of_the_matrix_product": spread(shares)}
    print(json.dumps({"threads": all_cores, "gflop_per_image": round(gflop, 3), **result}))


if __name__ == "__main__":
    main()
