"""Some steps of the default recipe on random images, in the loop of stages/train: what several benchmarks time."""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from stages.common import params, paths
from stages.dataset import data_card
from stages.network import device, models
from stages.network.losses import LOSSES, OUTPUTS
from stages.train import options as train_params
from stages.train.augmentation import AUGMENTATIONS
from stages.train.batches import EpochBatches, PackedImages, loader
from stages.train.checkpoint import Checkpoints
from stages.train.loop import fit
from stages.train.optimizers import OPTIMIZERS
from stages.train.schedules import SCHEDULES

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


def training() -> tuple[nn.Module, Tensor, int, Callable[[int, device.Map], None]]:
    """The network, images uint8 (N, C, H, W) of STEPS batches, the shards of params.yaml, and what trains it on them.

    That is a function (shards, map) -> None.
    """
    chosen = train_params.read(params.load(paths.PARAMS))
    options = chosen.train
    card = data_card.read(paths.DATA_CARD)
    model = models.build(chosen.model, chosen.model_options, card.shape, len(card.classes), card.mean, card.std)
    optimizer = OPTIMIZERS[options.optimizer](model.parameters(), **chosen.optimizer_options)
    images = torch.randint(0, 256, (STEPS * options.batch_size, *card.shape), dtype=torch.uint8)
    labels = torch.randint(0, len(card.classes), (len(images),))
    sampler = EpochBatches(len(labels), options.batch_size, options.shuffle, options.seed)

    def train(shard_count: int, parallel: device.Map) -> None:
        with contextlib.redirect_stdout(None):
            fit(
                model,
                loader(PackedImages(images, labels), sampler, 0, pin_memory=False),
                sampler,
                (images[:0], labels[:0]),
                objective=partial(LOSSES[options.loss], smoothing=options.label_smoothing),
                output=OUTPUTS[options.loss],
                optimizer=optimizer,
                lr_factor=SCHEDULES[options.schedule](STEPS, **chosen.schedule_options),
                augment=partial(AUGMENTATIONS[options.augmentation], **chosen.augmentation_options),
                precision="float32",
                epochs=1,
                patience_epochs=0,
                seed=0,
                shard_count=shard_count,
                parallel=parallel,
                log_every_steps=STEPS,
                checkpoints=Checkpoints("none", every_seconds=1e9),
                stop=lambda: None,
            )

    return model, images, options.shards, train
