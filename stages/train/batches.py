"""Batches of packed images, from memory or from memory-mapped files.

A plain DataLoader fetches one image at a time and stacks them, which takes longer than training a small network on
them. Here the sampler yields the indices of a whole batch, which are read at once.

A worker of a plain DataLoader sends its batches to the parent, which takes longer than copying packed images from the
page cache. Here the workers of a DataLoader only read the images of later batches from the disk into the page cache,
and send the indices back.
"""

import multiprocessing
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from stages.common import children, machine, paths
from stages.common.errors import UserError
from stages.dataset.packed import Split
from stages.train import shards
from stages.train.processes import SINGLE, Group
from stages.train.seeds import ORDER, seed_for
from stages.train.stopping import StopSignal

Batch = tuple[Tensor, Tensor]  # images uint8 (N, C, H, W), labels int64 (N,)

COPY_IMAGES = 256  # copied into memory at once
WAIT_SECONDS = 120  # for a worker to read a batch, which takes milliseconds
SHARED_MEMORY = Path("/dev", "shm")  # has the locks of Python's queues


class PackedImages:
    """Images uint8 (N, C, H, W), in memory or on disk, and labels int64 (N,)."""

    def __init__(self, images: Tensor | Split, labels: Tensor) -> None:
        """images: a tensor on the device of the labels, or a split."""
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images and {len(labels)} labels")
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, positions: list[int]) -> Batch:
        """The images and labels at these positions."""
        indices = torch.tensor(positions, dtype=torch.int64, device=self.labels.device)
        if isinstance(self.images, Split):
            return torch.from_numpy(self.images.gather(positions)), self.labels[indices]
        return self.images[indices], self.labels[indices]


def load_into_memory(split: Split, device: torch.device) -> Tensor:
    """Copy all images of a split to a device: uint8 (N, C, H, W)."""
    images = torch.empty((len(split), *split.image_shape), dtype=torch.uint8, device=device)
    for start in range(0, len(split), COPY_IMAGES):
        images[start : start + COPY_IMAGES] = torch.from_numpy(split[start : start + COPY_IMAGES])
    return images


class EpochBatches(Sampler[list[int]]):
    """The image indices of each batch of an epoch, as a function of (seed, epoch).

    Set `epoch` before each pass, and `skip` to the number of first batches to leave out, for a resumed run. Each epoch
    has every image once. The last batch may be smaller, but a last batch of one image is dropped, since batch norm
    cannot train on it.
    """

    def __init__(
        self, count: int, batch_size: int, shuffle: bool, seed: int, shards: int = 1, group: Group = SINGLE
    ) -> None:
        """count: images. shards: of a batch (train.shards); each process of the group gets the images of its own."""
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, seed
        self.shards, self.group = shards, group
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        full, rest = divmod(self.count, self.batch_size)
        return max(full + (rest > 1), 1)

    def batch_sizes(self) -> set[int]:
        """The sizes of the first and the last batch of an epoch."""
        return {self.images_in(batch) for batch in (1, len(self))}

    def images_in(self, batch: int) -> int:
        """Images of a batch, in all processes. batch: its number, counted from 1."""
        return min(self.batch_size, self.count - (batch - 1) * self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.count)
        if self.shuffle:
            generator = torch.Generator().manual_seed(seed_for(self.seed, ORDER, self.epoch))
            order = torch.randperm(self.count, generator=generator)
        for positions in torch.split(order, self.batch_size)[self.skip : len(self)]:
            sizes = shards.sizes(len(positions), self.shards, self.batch_size)
            own = self.group.own_shards(len(sizes))
            yield positions[sum(sizes[: own.start]) : sum(sizes[: own.stop])].tolist()


class _ReadAhead(Dataset[list[int]]):
    """What a worker does: read the images of a batch into the page cache, and return their positions.

    Nothing else passes between the processes. So workers need no space in /dev/shm (64 MB in a Docker container).
    """

    def __init__(self, images: Tensor | Split) -> None:
        """images: those of a tensor are in memory already. A split's files are opened by each worker."""
        self._split = images if isinstance(images, Split) else None

    def __getitems__(self, positions: list[int]) -> list[int]:
        """A whole batch. torch's fetcher prefers this method to __getitem__."""
        if self._split:
            self._split.read_ahead(positions)
        return positions


def _identity(positions: list[int]) -> list[int]:
    return positions  # nothing to stack


def _start_worker(worker: int) -> None:
    children.end_with_the_parent()  # torch's workers look for their parent every five seconds


class Batches:
    """The batches of each epoch, as a function of (seed, epoch), for any number of workers."""

    def __init__(
        self,
        dataset: PackedImages,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        num_workers: int,
        pin_memory: bool,
        stop: StopSignal,
        shards: int = 1,
        group: Group = SINGLE,
    ) -> None:
        """num_workers: processes that read ahead, for all epochs; 0: none. stop: ends waits for a worker.

        shards, group: as in EpochBatches.
        """
        self._dataset, self._num_workers, self._pin_memory = dataset, num_workers, pin_memory
        self._sampler = EpochBatches(len(dataset), batch_size, shuffle, seed, shards, group)
        self._positions: Iterable[list[int]] = self._sampler
        if num_workers:
            self._positions = DataLoader(
                _ReadAhead(dataset.images),
                batch_sampler=self._sampler,
                collate_fn=_identity,
                num_workers=num_workers,
                persistent_workers=True,
                timeout=WAIT_SECONDS,
                worker_init_fn=_start_worker,
            )
        self._stop, self._started = stop, False

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._sampler)

    def images_in(self, batch: int) -> int:
        """Images of a batch, in all processes. batch: its number, counted from 1."""
        return self._sampler.images_in(batch)

    def iterate(self, epoch: int, skip: int) -> Iterator[Batch]:
        """The batches of an epoch, without the first `skip`. They end early if a stop signal comes, also during a wait.

        Raises UserError if the workers cannot be started, if one of them ends, and if none answers within WAIT_SECONDS.
        """
        self._sampler.epoch, self._sampler.skip = epoch, skip
        # The first call starts the workers, which a signal must not interrupt; later calls wait for them.
        begin = partial(self._call_workers, lambda: iter(self._positions))
        iterator = self._stop.wait(begin) if self._started else begin()
        self._started = True
        while iterator:
            positions = self._stop.wait(lambda: self._call_workers(lambda: next(iterator, None)))
            if positions is None:
                return
            images, labels = self._dataset.batch(positions)
            yield (images.pin_memory(), labels.pin_memory()) if self._pin_memory else (images, labels)

    def _call_workers(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (RuntimeError, OSError, MemoryError, EOFError) as error:
            if not self._num_workers:
                raise
            _clear_frames(error)
            raise UserError(workers_failed(error, self._num_workers)) from None


def _clear_frames(error: BaseException) -> None:
    """Delete the local variables in the frames of an error, silently.

    A torch iterator whose workers could not be started prints a traceback when it is deleted.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = hook


def workers_failed(error: BaseException, num_workers: int) -> str:
    """The message for workers that failed with this error, with the limits of this machine that may be the cause."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".")
    limits = [f"ulimit -n is {machine.open_files() or 'unlimited'}"]
    if (free := machine.memory_bytes()) is not None:
        limits.insert(0, f"{machine.gigabytes(free)} of memory are free")
    if SHARED_MEMORY.is_dir():
        limits.append(f"{machine.gigabytes(shutil.disk_usage(SHARED_MEMORY).free)} in {SHARED_MEMORY}")
    return (
        f"the loader's workers failed: {reason}; {paths.PARAMS}: machine.num_workers is {num_workers}: set 0, or "
        f"fewer ({', '.join(limits)})"
    )


@contextmanager
def ending_workers(num_workers: int) -> Iterator[None]:
    """Kill all workers that the block started, at its end. Python itself would wait for a worker that hangs.

    Raises UserError if a worker was killed during the block: torch then raises a RuntimeError in the main thread.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    except RuntimeError as error:
        if num_workers and str(error).startswith("DataLoader worker"):
            raise UserError(workers_failed(error, num_workers)) from None
        raise
    finally:
        # torch's handler of SIGCHLD would raise an exception.
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if hasattr(signal, "SIGCHLD") else None
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
            child.join()
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)
