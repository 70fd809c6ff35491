"""Gradients of a batch that have the same bits for any number of threads and processes.

torch divides an operation among its threads, and a sum that is divided differently ends in different last bits. Here
every operation uses one thread. A batch is divided into shards, whose number is a hyperparameter; the threads of all
processes compute shards in parallel, and the gradients are added along a fixed tree (stages/train/tree.py). As in
DistributedDataParallel, batch norm is computed over one shard.
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
    """A network that computes one shard. It shares its weights with all replicas, and has its own gradients.

    generator: on the CPU, for augmentation. statistics: the running means and variances of batch norm. scalars: float32
    (2,), added over the shards like the gradients: the shard's share of the loss, and the number of the stop signal.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        kinds = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
        norms = [module for module in model.modules() if isinstance(module, kinds) and module.training]  # not frozen
        self.statistics = [buffer for norm in norms for buffer in norm.buffers() if buffer.is_floating_point()]
        self.generator = torch.Generator()
        device = self.weights[0].device
        self.scalars = torch.zeros(2, device=device)
        self._sums: tree.Sums[list[Tensor]] | None = None
        self._shard = 0
        self._layer_generator = self.generator if device.type == "cpu" else torch.Generator(device)
        for module in model.modules():
            if isinstance(module, RandomLayer):
                module.generator = self._layer_generator

    def seed(self, seed: int, epoch: int, step: int, shard: int) -> None:
        """Make the next random numbers, for augmentation and dropout, a function of the arguments."""
        value = seed_for(seed, STEP, epoch, step, shard)
        self.generator.manual_seed(value)
        self._layer_generator.manual_seed(value)

    def begin(self, shard: int, sums: tree.Sums[list[Tensor]]) -> None:
        """Prepare for a shard. sums: where `finish` adds its results."""
        self.scalars.zero_()
        self._shard, self._sums = shard, sums

    def finish(self) -> None:
        """Add the results to the sums and free the gradients, so that few of them are in memory at a time.

        A weight that the loss does not depend on counts as having a gradient of zeros. A second call does nothing.
        """
        if self._sums:
            gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self.weights]
            for weight in self.weights:
                weight.grad = None
            sums, self._sums = self._sums, None
            sums.put((self._shard, self._shard + 1), [*gradients, *self.statistics, self.scalars])


Shard = tuple[Replica, Tensor, Tensor, float]  # images, labels, and the shard's share of the images of the batch


class Replicas:
    """`model` and copies that share its weights: one replica for each shard that this process may have to compute.

    loss: of the last step, a scalar on the device. stop: the number of the signal that asked the head to stop, or 0.
    """

    def __init__(self, model: nn.Module, count: int, batch_size: int, seed: int, group: Group) -> None:
        """count: shards of a batch. batch_size: images of a batch; the last one of an epoch may be smaller.

        seed: of the run.
        """
        most = max(len(group.own_shards(shards)) for shards in range(1, count + 1))  # a smaller batch may give it more
        copies = (copy_sharing_weights(model) for _ in range(most - 1))
        self.replicas = [Replica(network) for network in (model, *copies)]
        self.count, self.batch_size, self.seed, self.group = count, batch_size, seed, group
        main = self.replicas[0]
        self._tree_sum = TreeSum(group, [*main.weights, *main.statistics, main.scalars]) if group.size > 1 else None
        self.loss, self.stop = main.scalars[0], 0

    @contextmanager
    def shards(
        self, images: Tensor, labels: Tensor, batch_size: int, epoch: int, step: int, stop: int = 0
    ) -> Iterator[list[Shard]]:
        """Divide this process's images of a batch into shards. The block computes their gradients, in any order.

        At the end of the block, the model has the sum of the gradients of all replicas in all processes, and the mean
        of their statistics. The block may call `finish` of each replica, which saves memory. batch_size: images of the
        batch in all processes. epoch, step: they seed the replicas. stop: the signal's number; only the head's counts.
        """
        shard_sizes = sizes(batch_size, self.count, self.batch_size)
        own = self.group.own_shards(len(shard_sizes))
        inputs = split(images, labels, [shard_sizes[shard] for shard in own])
        used = self.replicas[: len(own)]
        copy_statistics(self.replicas[0], used)
        sums = tree.Sums(tree.roots(own, len(shard_sizes)), add)
        for shard, replica in zip(own, used, strict=True):
            replica.seed(self.seed, epoch, step, shard)
            replica.begin(shard, sums)
            if shard == 0:
                replica.scalars[1] = stop
        yield [(replica, x, y, len(y) / batch_size) for replica, (x, y) in zip(used, inputs, strict=True)]
        for replica in used:
            replica.finish()
        self._reduce(sums.sums, len(shard_sizes))
        self.loss = self.replicas[0].scalars[0].clone()
        self.stop = stop if self.group.size == 1 else int(self.replicas[0].scalars[1].item())

    @torch.no_grad()
    def _reduce(self, sums: dict[tree.Node, list[Tensor]], count: int) -> None:
        """Put the sums over the `count` shards of all processes into the model. sums: those of this process."""
        main = self.replicas[0]
        total = iter(self._tree_sum(sums, count) if self._tree_sum else sums[0, count])
        for weight in main.weights:
            weight.grad = next(total)
        for tensor, summed in zip((*main.statistics, main.scalars), total, strict=True):
            tensor.copy_(summed)
        for statistic in main.statistics:
            statistic /= count


def copy_sharing_weights(model: nn.Module) -> nn.Module:
    """A copy of a network whose weights are the same memory."""
    replica = copy.deepcopy(model)
    for own, shared in zip(replica.parameters(), model.parameters(), strict=True):
        own.data = shared.data
    return replica


def add(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    """Add the tensors of `right` to those of `left`, in place."""
    for total, term in zip(left, right, strict=True):
        total += term
    return left


def split(images: Tensor, labels: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Divide images and labels into shards of these sizes."""
    return list(zip(torch.split(images, list(sizes)), torch.split(labels, list(sizes)), strict=True))


def sizes(images: int, shards: int, batch_size: int) -> list[int]:
    """The number of images of each shard of a batch: they differ by at most one. There are at most `shards` of them.

    No shard is smaller than batch_size // shards, so that batch norm sees as many images in the last, smaller batch of
    an epoch as in the others; nor smaller than two images, the fewest that batch norm can train on.
    """
    count = min(shards, max(images // max(batch_size // shards, 2), 1))
    return [images // count + (number < images % count) for number in range(count)]


def copy_statistics(main: Replica, replicas: Sequence[Replica]) -> None:
    """Copy the statistics of the main replica to the others, before a step."""
    for replica in replicas:
        if replica is not main:
            for own, current in zip(replica.statistics, main.statistics, strict=True):
                own.copy_(current)
