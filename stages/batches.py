"""Batches, sliced whole out of arrays in memory, through torch.utils.data.

A plain DataLoader fetches image by image and stacks them, which costs more time than a small network takes to learn
from them. Here the sampler draws the positions of a whole batch, and the Dataset slices them at once.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from stages.rng import ORDER, seed_for

Batch = tuple[Tensor, Tensor]  # images uint8 (N, C, H, W), labels int64 (N,)


class PackedImages(Dataset[Batch]):
    """Images uint8 (N, C, H, W) and labels int64 (N,), in the machine's memory or on a device."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images and {len(labels)} labels")
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> Batch:
        return self.images[position], self.labels[position]

    def __getitems__(self, positions: list[int]) -> Batch:
        """A whole batch; torch's fetcher calls this instead of __getitem__ where it is there."""
        where = torch.tensor(positions, device=self.labels.device)
        return self.images[where], self.labels[where]


class EpochBatches(Sampler[list[int]]):
    """The positions of each batch of an epoch: a function of (seed, epoch), whatever was drawn before.

    Set `epoch` before each pass, and `first` to leave out the batches that a resumed run has had. Every image comes
    once an epoch, in the last batch too, which may be smaller; a single image left over is left out, since batch norm
    cannot learn from one.
    """

    def __init__(self, count: int, batch_size: int, shuffle: bool, seed: int) -> None:
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, seed
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        whole, rest = divmod(self.count, self.batch_size)
        return max(whole + (rest > 1), 1)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.count)
        if self.shuffle:
            generator = torch.Generator().manual_seed(seed_for(self.seed, ORDER, self.epoch))
            order = torch.randperm(self.count, generator=generator)
        for positions in torch.split(order, self.batch_size)[self.first : len(self)]:
            yield positions.tolist()


def _as_it_is(batch: Any) -> Any:
    return batch  # whole already: nothing to stack


def loader(dataset: PackedImages, sampler: EpochBatches, num_workers: int, pin_memory: bool) -> DataLoader[Batch]:
    """A DataLoader whose workers, if any, fetch whole batches and live as long as it does."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
    )
