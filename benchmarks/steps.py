"""Some steps of the default recipe on random images, in the loop of stages/train: what several benchmarks time."""

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

STEPS = 10


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextlib.contextmanager
def torchs_threads(count: int) -> Iterator[None]:
    """Within the block an operation has so many threads, where set_up gave it one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def training(
    group: Group = SINGLE, architecture: str | None = None, side: int | None = None
) -> tuple[nn.Module, Tensor, int, Callable[[int, device.Map], None]]:
    """The network, images uint8 (N, C, H, W) of STEPS batches, the shards of params.yaml, and what trains it on them.

    That is a function (shards, map) -> None. group: of the processes that train. architecture: of torchvision, instead
    of the network of params.yaml. side: of the images, instead of the data's.
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
    stop = StopSignal()
    batches = Batches(
        PackedImages(images, labels),
        batch_size=options.batch_size,
        shuffle=options.shuffle,
        seed=options.seed,
        num_workers=0,
        pin_memory=False,
        stop=stop,
        shards=options.shards,
        group=group,
    )
    per_class = torch.bincount(labels, minlength=len(card.classes)).tolist()
    plain = {"precision": "float32", "epochs": 1, "early_stopping_patience_epochs": 0, "seed": 0}

    def train(shard_count: int, parallel: device.Map) -> None:
        once = options.model_copy(update={**plain, "shards": shard_count})
        recipe = Recipe.of(chosen._replace(train=once), STEPS, per_class)
        trainer = Trainer(model, optimizer, recipe, parallel, group)
        with contextlib.redirect_stdout(None):
            fit(
                trainer,
                batches,
                (images[:0], labels[:0]),
                Checkpoints("none", 1e9, group),
                STEPS,
                stop,
                lambda history: None,
            )

    return model, images, options.shards, train
