"""A batch in parts, its shards, each computed on one thread: sums whose order no number of threads can change.

torch divides an operation among its threads, and a sum in other parts ends in other last bits. Here every operation
has one thread, and the shards, whose number is a parameter, are computed side by side on as many threads and processes
as there are; their gradients are added along a fixed tree (stages/train/tree.py). As with DistributedDataParallel,
batch norm goes by the images of each shard.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stages.network.random_layers import RandomLayer
from stages.train import tree
from stages.train.processes import Group, TreeSum
from stages.train.seeds import STEP, seed_for


class Replica:
    """A network for one shard: weights that all replicas share; gradients, statistics and random numbers of its own.

    generator: of the CPU, for augmentation. statistics: the running means and variances of batch norm. scalars: float32
    (2,), summed over the shards as the gradients are: the shard's part of the loss, and the signal to stop.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        kinds = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
        norms = [module for module in model.modules() if isinstance(module, kinds) and module.training]  # not frozen
        self.statistics = [each for norm in norms for each in norm.buffers() if each.is_floating_point()]
        self.generator = torch.Generator()
        device = self.weights[0].device
        self.scalars = torch.zeros(2, device=device)
        self._sums: tree.Sums[list[Tensor]] | None = None
        self._number = 0
        self._dropout = self.generator if device.type == "cpu" else torch.Generator(device)
        for module in model.modules():
            if isinstance(module, RandomLayer):
                module.generator = self._dropout

    def seed(self, seed: int, epoch: int, step: int, shard: int) -> None:
        """Make what is drawn next, for augmentation and dropout, a function of these."""
        value = seed_for(seed, STEP, epoch, step, shard)
        self.generator.manual_seed(value)
        self._dropout.manual_seed(value)

    def begin(self, shard: int, sums: tree.Sums[list[Tensor]]) -> None:
        """Take over a shard. sums: where its part goes."""
        self.scalars.zero_()
        self._number, self._sums = shard, sums

    def end(self) -> None:
        """Add what was computed to the sums, and keep no gradient: few of them are in memory at a time.

        A weight that the loss does not depend on has a gradient of zeros.
        """
        if self._sums:
            gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self.weights]
            for weight in self.weights:
                weight.grad = None
            sums, self._sums = self._sums, None
            sums.put((self._number, self._number + 1), [*gradients, *self.statistics, self.scalars])


Shard = tuple[Replica, Tensor, Tensor, float]  # with its images, their labels, and its share of the batch's images


class Replicas:
    """`model` itself, and copies of it that share its weights, one for each shard that this process computes.

    loss: of the last step, a scalar on the device. stop: the signal that the head was told to stop by before it, or 0.
    """

    def __init__(self, model: nn.Module, count: int, batch_size: int, seed: int, group: Group) -> None:
        """count: of the shards of a batch. batch_size: images of a whole batch; the last of an epoch may be smaller.

        seed: of the run.
        """
        copies = (sharing_weights(model) for _ in range(len(group.owned(count)) - 1))  # one at a time takes less memory
        self.replicas = [Replica(each) for each in (model, *copies)]
        self.count, self.batch_size, self.seed, self.group = count, batch_size, seed, group
        main = self.replicas[0]
        self._tree_sum = TreeSum(group, [*main.weights, *main.statistics, main.scalars]) if group.size > 1 else None
        self.loss, self.stop = main.scalars[0], 0

    @contextmanager
    def shards(
        self, images: Tensor, labels: Tensor, of: int, epoch: int, step: int, stop: int = 0
    ) -> Iterator[list[Shard]]:
        """Divide what this process has of a batch: what to compute within the block, in any order, or side by side.

        At the end of the block the model has the sum of the gradients that were left in the replicas of all processes,
        and the mean of their statistics. of: images of the whole batch. epoch, step: what the replicas draw within the
        block is a function of these. stop: the signal's number, which counts on the head. Each replica whose shard is
        computed may be told so (`end`), which saves memory.
        """
        every = sizes(of, self.count, self.batch_size)
        own = self.group.owned(len(every))
        parts = split(images, labels, [every[number] for number in own])
        used = self.replicas[: len(own)]
        scatter(self.replicas[0], used)
        sums = tree.Sums(tree.roots(own, len(every)), add)
        for number, replica in zip(own, used, strict=True):
            replica.seed(self.seed, epoch, step, number)
            replica.begin(number, sums)
            if number == 0:
                replica.scalars[1] = stop
        yield [(replica, *part, len(part[1]) / of) for replica, part in zip(used, parts, strict=True)]
        for replica in used:
            replica.end()
        self._gather(sums.sums, len(every))
        self.loss = self.replicas[0].scalars[0].clone()
        self.stop = stop if self.group.size == 1 else int(self.replicas[0].scalars[1].item())

    @torch.no_grad()
    def _gather(self, sums: dict[tree.Node, list[Tensor]], count: int) -> None:
        """Give the model the sum over the `count` shards of all processes. sums: those of this process."""
        main = self.replicas[0]
        total = iter(self._tree_sum(sums, count) if self._tree_sum else sums[0, count])
        for weight in main.weights:
            weight.grad = next(total)
        for mine, summed in zip((*main.statistics, main.scalars), total, strict=True):
            mine.copy_(summed)
        for statistic in main.statistics:
            statistic /= count


def sharing_weights(model: nn.Module) -> nn.Module:
    """A copy of a network with the same weights in memory."""
    twin = copy.deepcopy(model)
    for mine, shared in zip(twin.parameters(), model.parameters(), strict=True):
        mine.data = shared.data
    return twin


def add(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    """Add each of some tensors to the one at its place, which changes."""
    for one, other in zip(left, right, strict=True):
        one += other
    return left


def split(images: Tensor, labels: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Images and labels as shards of these sizes."""
    return list(zip(torch.split(images, list(sizes)), torch.split(labels, list(sizes)), strict=True))


def sizes(images: int, shards: int, batch_size: int) -> list[int]:
    """How many images each shard of a batch of so many has: at most so many shards, which differ by one at most.

    None is smaller than batch_size / shards, so that batch norm sees no fewer images in a last, smaller batch; nor
    than two images, the fewest it can learn from.
    """
    count = min(shards, max(images // max(batch_size // shards, 2), 1))
    return [images // count + (number < images % count) for number in range(count)]


def scatter(main: Replica, used: Sequence[Replica]) -> None:
    """Give all the statistics of the main one, before a step."""
    for other in used:
        if other is not main:
            for mine, shared in zip(other.statistics, main.statistics, strict=True):
                mine.copy_(shared)
