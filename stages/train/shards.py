"""A batch in parts, its shards, each computed on one thread: sums whose order no number of threads can change.

torch divides an operation among its threads, and a sum in other parts ends in other last bits. Here every operation
has one thread, and the shards, whose number is a parameter, are computed side by side on as many threads as there are;
their gradients are added in order. As with DistributedDataParallel, batch norm goes by the images of each shard.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stages.network.random_layers import RandomLayer
from stages.train.seeds import STEP, seed_for


class Replica:
    """A network for one shard: weights that all replicas share; gradients, statistics and random numbers of its own.

    generator: of the CPU, for augmentation. statistics: the running means and variances of batch norm.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights = list(model.parameters())
        norms = [
            module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        ]
        self.statistics = [each for norm in norms for each in norm.buffers() if each.is_floating_point()]
        self.generator = torch.Generator()
        device = self.weights[0].device
        self._dropout = self.generator if device.type == "cpu" else torch.Generator(device)
        for module in model.modules():
            if isinstance(module, RandomLayer):
                module.generator = self._dropout

    def seed(self, seed: int, epoch: int, step: int, shard: int) -> None:
        """Make what is drawn next, for augmentation and dropout, a function of these."""
        value = seed_for(seed, STEP, epoch, step, shard)
        self.generator.manual_seed(value)
        self._dropout.manual_seed(value)


Shard = tuple[Replica, Tensor, Tensor, float]  # with its images, their labels, and its share of the batch's images


class Replicas:
    """`model` itself, and copies of it that share its weights, one for each shard of a batch."""

    def __init__(self, model: nn.Module, count: int, batch_size: int, seed: int) -> None:
        """batch_size: images of a whole batch; the last one of an epoch may be smaller. seed: of the run."""
        copies = [copy.deepcopy(model) for _ in range(count - 1)]
        for each in copies:
            for mine, shared in zip(each.parameters(), model.parameters(), strict=True):
                mine.data = shared.data
        self.replicas = [Replica(each) for each in (model, *copies)]
        self.batch_size, self.seed = batch_size, seed

    @contextmanager
    def shards(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> Iterator[list[Shard]]:
        """Divide a batch: what to compute within the block, in any order, or side by side.

        At the end of the block the model has the sum of the gradients that were left in the replicas, added in order,
        and the mean of their statistics. epoch, step: what the replicas draw within the block is a function of these.
        """
        parts = split(images, labels, len(self.replicas), self.batch_size)
        used = self.replicas[: len(parts)]
        scatter(used)
        for number, replica in enumerate(used):
            replica.seed(self.seed, epoch, step, number)
        yield [(replica, *part, len(part[1]) / len(labels)) for replica, part in zip(used, parts, strict=True)]
        gather(used)


def split(images: Tensor, labels: Tensor, shards: int, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """A batch as at most so many shards, whose sizes differ by one at most.

    None is smaller than batch_size / shards, so that batch norm sees no fewer images in a last, smaller batch; nor
    than two images, the fewest it can learn from.
    """
    ends = list(itertools.accumulate(sizes(len(labels), shards, batch_size)))[:-1]
    return list(zip(torch.tensor_split(images, ends), torch.tensor_split(labels, ends), strict=True))


def sizes(images: int, shards: int, batch_size: int) -> list[int]:
    """How many images each shard of a batch of so many has, as `split` divides it."""
    count = min(shards, max(images // max(batch_size // shards, 2), 1))
    return [images // count + (number < images % count) for number in range(count)]


def scatter(used: Sequence[Replica]) -> None:
    """Give all the statistics of the first, before a step."""
    first, *others = used
    for other in others:
        for mine, shared in zip(other.statistics, first.statistics, strict=True):
            mine.copy_(shared)


def gather(used: Sequence[Replica]) -> None:
    """Add the gradients of all to those of the first, in order, and give it the mean of all statistics."""
    first, *others = used
    for other in others:
        for mine, weight in zip(other.weights, first.weights, strict=True):
            if mine.grad is not None:
                weight.grad = mine.grad if weight.grad is None else weight.grad.add_(mine.grad)
                mine.grad = None
        for theirs, total in zip(other.statistics, first.statistics, strict=True):
            total += theirs
    for total in first.statistics:
        total /= len(used)
