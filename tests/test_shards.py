"""Shards: their sizes, their gradients, their random numbers, and their memory."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.network.random_layers import Dropout, RandomLayer, StochasticDepth
from stages.train import shards, tree
from stages.train.optimizers import RmsProp
from stages.train.processes import SINGLE, Group
from stages.train.shards import Replicas
from tests.imports import ROOT


@pytest.mark.parametrize(
    ("images", "count", "batch_size", "sizes"),
    [
        (256, 4, 256, [64, 64, 64, 64]),
        (168, 4, 256, [84, 84]),  # the last batch of an epoch: no shard is smaller than 64
        (5, 4, 256, [5]),
        (7, 3, 7, [3, 2, 2]),
        (8, 8, 8, [2, 2, 2, 2]),  # batch norm cannot train on one image
        (2, 4, 2, [2]),
        (1, 4, 1, [1]),
        (100, 1, 100, [100]),
    ],
)
def test_the_sizes_of_shards(images: int, count: int, batch_size: int, sizes: list[int]) -> None:
    labels = torch.arange(images)
    parts = shards.split(labels[:, None], labels, shards.sizes(images, count, batch_size))
    assert [len(part[1]) for part in parts] == sizes
    assert torch.cat([part[1] for part in parts]).tolist() == labels.tolist()
    assert all(torch.equal(pixels[:, 0], part) for pixels, part in parts)


class Network(nn.Module):
    """A network with a layer of each kind that shards affect."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.drop, self.last = nn.Linear(6, 5), nn.BatchNorm1d(5), Dropout(0.5), nn.Linear(5, 3)

    def forward(self, values: Tensor) -> Tensor:
        logits: Tensor = self.last(self.drop(self.norm(self.first(values))))
        return logits


def step(replicas: Replicas, values: Tensor, labels: Tensor) -> None:
    with replicas.shards(values, labels, len(labels), epoch=1, step=1) as parts:
        for replica, values, labels, share in parts:
            (F.cross_entropy(replica.model(values), labels) * share).backward()


def test_gradients_are_those_of_the_whole_batch() -> None:
    values, labels = torch.randn(30, 6), torch.randint(0, 3, (30,))
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    F.cross_entropy(plain(values), labels).backward()
    expected = [weight.grad for weight in plain.parameters() if weight.grad is not None]
    plain.zero_grad()
    replicas = Replicas(plain, 3, batch_size=30, seed=0, group=SINGLE)
    step(replicas, values, labels)
    assert len(expected) == 4
    for weight, before in zip(plain.parameters(), expected, strict=True):
        assert weight.grad is not None
        assert torch.allclose(weight.grad, before, atol=1e-6)
    assert all(weight.grad is None for replica in replicas.replicas[1:] for weight in replica.weights)


@pytest.mark.parametrize("count", range(1, 33))
def test_each_process_has_a_replica_for_each_of_its_shards_of_any_batch(count: int) -> None:
    for group in (Group(rank, size) for size in range(1, 17) for rank in range(size)):
        replicas = len(Replicas(nn.Linear(1, 1), count, batch_size=2 * count, seed=0, group=group).replicas)
        for images in range(2, 2 * count + 1, 2):  # process 2 of 5 computes 1 shard of 8, but 2 of 7
            assert len(group.own_shards(len(shards.sizes(images, count, 2 * count)))) <= replicas


def test_replicas_share_weights_and_the_mean_of_their_statistics() -> None:
    model = Network()
    replicas = Replicas(model, 2, batch_size=40, seed=0, group=SINGLE)
    values, labels = torch.randn(40, 6) * torch.arange(1, 41)[:, None], torch.randint(0, 3, (40,))
    for _ in range(3):
        step(replicas, values, labels)
    mean = torch.zeros(5)
    for _ in range(3):
        mean = 0.9 * mean + 0.1 * model.first(values).mean(dim=0)  # the mean over equal shards is that over the batch
    assert model.norm.running_mean is not None
    assert torch.allclose(model.norm.running_mean, mean, atol=1e-4)
    with torch.no_grad():
        model.last.bias.fill_(7)
    assert all((replica.weights[-1] == 7).all() for replica in replicas.replicas)


@pytest.mark.parametrize("kind", [Dropout, StochasticDepth])
def test_dropout_is_torchs_with_its_own_generator(kind: type[RandomLayer]) -> None:
    model = nn.Sequential(kind(0.5), nn.Linear(4000, 1))
    replicas = Replicas(model, 3, batch_size=3, seed=1, group=SINGLE).replicas
    layers = [next(module for module in replica.model.modules() if isinstance(module, kind)) for replica in replicas]
    ones, drops = torch.ones(4000), []
    for _ in range(2):
        for number, (replica, layer) in enumerate(zip(replicas, layers, strict=True)):
            replica.seed(1, 2, 3, number)
            torch.rand(7)  # the global generator has no influence
            drops.append(layer(ones))
    assert torch.equal(drops[0], drops[3])
    assert not torch.equal(drops[0], drops[1])
    assert not torch.equal(drops[1], drops[2])
    assert set(drops[0].tolist()) == {0.0, 2.0}
    assert abs(drops[0].mean() - 1) < 0.1
    model.eval()
    assert torch.equal(layers[0](ones), ones)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_rmsprop_is_torchs(momentum: float, weight_decay: float) -> None:
    def end(optimize: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Tensor:
        layer = Network().first
        optimizer = optimize(list(layer.parameters()))
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            optimizer.zero_grad()
            layer(torch.randn(8, 6, generator=generator)).square().sum().backward()
            optimizer.step()
        return layer.weight.detach()

    ours = end(lambda weights: RmsProp(weights, 0.01, 0.9, momentum, weight_decay))
    theirs = end(lambda weights: torch.optim.RMSprop(weights, 0.01, 0.9, momentum=momentum, weight_decay=weight_decay))
    assert torch.allclose(ours, theirs, rtol=1e-4)
    assert not torch.allclose(ours, Network().first.weight, rtol=0.01)


def test_sums_do_not_depend_on_the_order_of_the_values() -> None:
    def brackets(left: str, right: str) -> str:
        return f"({left}+{right})"

    parts = {(number, number + 1): str(number) for number in range(5)}
    for order in itertools.permutations(range(5)):
        sums = tree.Sums([(0, 5)], brackets)
        for number in order:
            sums.put((number, number + 1), str(number))
        assert sums.sums == {(0, 5): tree.sum_up((0, 5), parts, brackets)}


def test_shards_in_order_need_one_sum_per_level() -> None:
    sums, most = tree.Sums([(0, 64)], int.__add__), 0
    for number in range(64):
        sums.put((number, number + 1), number)
        most = max(most, len(sums.sums))
    assert most == 6
    assert sums.sums == {(0, 64): sum(range(64))}


MEMORY = """
import re
from functools import partial
from pathlib import Path
import torch
from stages.network import losses, models
from stages.train.augmentation import compose
from stages.train.optimizers import sgd
from stages.train.recipe import Recipe
from stages.train.trainer import Trainer

torch.set_num_threads(1)
def peak():  # ru_maxrss would include the peak of the parent process
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

def step(shards, hidden, width, batch, side):
    options = {"channels": [width], "kernel_sizes": [3], "paddings": [1], "pool_sizes": [1]}
    options |= {"hidden": hidden, "dropout": 0.0}
    model = models.build("cnn", options, (1, side, side), 10, [0.5], [0.5])
    recipe = Recipe(
        objective=partial(losses.cross_entropy, smoothing=0.0, reduction="mean"), output="softmax",
        lr_factor=lambda step: 1.0, augment=compose({}, 10), clip_norm=0.0, epochs=1, select_by="accuracy",
        patience_epochs=0, batch_size=batch, seed=0, precision="float32", shards=shards,
    )
    optimizer = sgd(model.parameters(), lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)
    trainer = Trainer(model, optimizer, recipe, map)
    trainer.step(torch.zeros(batch, 1, side, side, dtype=torch.uint8), torch.zeros(batch, dtype=torch.int64))

step(shards=1, hidden=4, width=2, batch=2, side=8)  # includes what torch sets up in its first step
start = peak()
step(SHARDS)
print(peak() - start)
"""


def megabytes(shards: int, shape: str) -> int:
    """The peak memory of a step in a new process, without torch's own. shape: see `step` above."""
    code = MEMORY.replace("step(SHARDS)", f"step({shards}, {shape})")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak of memory")
def test_a_batch_takes_the_memory_of_the_shards_that_are_computed_in_parallel() -> None:
    activations = "hidden=0, width=16, batch=256, side=64"  # of 64 MB per layer
    whole, parts = megabytes(1, activations), megabytes(16, activations)
    assert whole > 200
    assert parts < whole / 2  # 87 of 267 MB, as measured
    # 32 MB of weights: the gradients of 32 shards would take 1,024 MB.
    weights = "hidden=512, width=16, batch=64, side=32"
    assert megabytes(32, weights) < megabytes(1, weights) + 9 * 32
