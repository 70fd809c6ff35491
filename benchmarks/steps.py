"""Training in the loop of stages/train, and the matrix product to compare it with: what several benchmarks time."""

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from stages.common import params, paths
from stages.dataset import data_card
from stages.network import device, models
from stages.train import options as train_params
from stages.train.batches import Batches, PackedImages
from stages.train.checkpoint import Checkpoints
from stages.train.loop import fit
from stages.train.optimizers import OPTIMIZERS
from stages.train.processes import SINGLE, Group
from stages.train.recipe import Recipe
from stages.train.stopping import StopSignal
from stages.train.trainer import Trainer

STEPS = 10  # of `training`
MATRIX_SIDE, PRODUCTS = 2048, 10
MATRIX_PRODUCT_FLOPS = PRODUCTS * 2 * MATRIX_SIDE**3  # of one call of `matrix_products`


def seconds(work: Callable[[], object]) -> float:
    """The seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextlib.contextmanager
def operation_threads(count: int) -> Iterator[None]:
    """Within the block, torch divides an operation among this many threads; `set_up` has set 1."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def matrix_products(threads: int) -> Callable[[], None]:
    """A function that multiplies square float32 matrices PRODUCTS times, each time on `threads` threads."""
    left, right = torch.randn(MATRIX_SIDE, MATRIX_SIDE), torch.randn(MATRIX_SIDE, MATRIX_SIDE)

    def multiply() -> None:
        with operation_threads(threads):
            for _ in range(PRODUCTS):
                left @ right

    return multiply


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    dataset: PackedImages,
    parallel: device.Map,
    group: Group = SINGLE,
) -> None:
    """Train for one epoch as stages/train does, without validation, checkpoints and log."""
    stop = StopSignal()
    batches = Batches(
        dataset,
        batch_size=recipe.batch_size,
        shuffle=True,
        seed=recipe.seed,
        num_workers=0,
        pin_memory=False,
        stop=stop,
        shards=recipe.shards,
        group=group,
    )
    trainer = Trainer(model, optimizer, recipe, parallel, group)
    no_validation = torch.empty(0), dataset.labels[:0]
    checkpoints = Checkpoints("none", every_seconds=1e9, group=group)
    with contextlib.redirect_stdout(None):
        fit(trainer, batches, no_validation, checkpoints, 10**6, stop, lambda history: None)


def training(
    group: Group = SINGLE, architecture: str | None = None, side: int | None = None
) -> tuple[nn.Module, Tensor, int, Callable[[int, device.Map], None]]:
    """The default recipe on random images: the network, images uint8 (N, C, H, W) of STEPS batches, train.shards, and
    a function (shards, map) -> None that trains the network for these steps.

    group: the processes that train. architecture: of torchvision, instead of the network of params.yaml. side: height
    and width of the images in pixels, instead of the data's.
    """
    chosen = train_params.read(params.load(paths.PARAMS))
    options = chosen.train
    card = data_card.read(paths.DATA_CARD)
    if architecture:
        chosen = chosen._replace(model="torchvision", model_options={"architecture": architecture, "dropout": 0.0})
    if side:
        card = card.model_copy(update={"image_shape": [card.image_shape[0], side, side]})
    model = models.build(chosen.model, chosen.model_options, card.shape, len(card.classes), card.mean, card.std)
    optimizer = OPTIMIZERS[options.optimizer](model.parameters(), **chosen.optimizer_options)
    images = torch.randint(0, 256, (STEPS * options.batch_size, *card.shape), dtype=torch.uint8)
    labels = torch.randint(0, len(card.classes), (len(images),))
    per_class = torch.bincount(labels, minlength=len(card.classes)).tolist()
    one_epoch = {"precision": "float32", "epochs": 1, "early_stopping_patience_epochs": 0, "seed": 0}

    def train(shard_count: int, parallel: device.Map) -> None:
        train_options = options.model_copy(update={**one_epoch, "shards": shard_count})
        recipe = Recipe.of(chosen._replace(train=train_options), STEPS, per_class)
        train_epoch(model, optimizer, recipe, PackedImages(images, labels), parallel, group)

    return model, images, options.shards, train
