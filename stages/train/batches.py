"""Batches, taken whole out of memory or out of memory maps, through torch.utils.data.

A plain DataLoader fetches image by image and stacks them, which costs more time than a small network takes to learn
from them. Here the sampler draws the positions of a whole batch, and the Dataset takes them at once.
"""

import multiprocessing
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
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
from stages.train.processes import ALONE, Group
from stages.train.seeds import ORDER, seed_for
from stages.train.stopping import Stop

Batch = tuple[Tensor, Tensor]  # images uint8 (N, C, H, W), labels int64 (N,)

COPIED = 256  # images at once, of a split that is brought into memory
WAIT_SECONDS = 120  # for a batch of a worker, which takes milliseconds
SHARED_MEMORY = Path("/dev", "shm")  # where the locks of Python's queues are


class PackedImages(Dataset[Batch]):
    """Images uint8 (N, C, H, W), in memory or on the disk, and labels int64 (N,)."""

    def __init__(self, images: Tensor | Split, labels: Tensor) -> None:
        """images: a tensor, on any device, as the labels are; or a split, whose files each worker opens by itself."""
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images and {len(labels)} labels")
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> Batch:
        images, labels = self.__getitems__([position])
        return images[0], labels[0]

    def __getitems__(self, positions: list[int]) -> Batch:
        """A whole batch; torch's fetcher calls this instead of __getitem__ where it is there."""
        where = torch.tensor(positions, dtype=torch.int64, device=self.labels.device)
        if isinstance(self.images, Split):
            return torch.from_numpy(self.images.gather(positions)), self.labels[where]
        return self.images[where], self.labels[where]

    def __reduce__(self) -> tuple[Any, ...]:
        images = self.images if isinstance(self.images, Split) else self.images.numpy()
        return _unpickled_images, (images, self.labels.numpy())  # as _ThroughAPipe, for the same reason


def in_memory(split: Split, device: torch.device) -> Tensor:
    """All images of a split, on a device: uint8 (N, C, H, W)."""
    images = torch.empty((len(split), *split.image_shape), dtype=torch.uint8, device=device)
    for start in range(0, len(split), COPIED):
        images[start : start + COPIED] = torch.from_numpy(split[start : start + COPIED])
    return images


class EpochBatches(Sampler[list[int]]):
    """The positions of each batch of an epoch: a function of (seed, epoch), whatever was drawn before.

    Set `epoch` before each pass, and `first` to leave out the batches that a resumed run has had. Every image comes
    once an epoch, in the last batch too, which may be smaller; a single image left over is left out, since batch norm
    cannot learn from one.
    """

    def __init__(
        self, count: int, batch_size: int, shuffle: bool, seed: int, parts: int = 1, group: Group = ALONE
    ) -> None:
        """parts: of a whole batch (train.shards), of which each process of the group gets its own."""
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, seed
        self.parts, self.group = parts, group
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        whole, rest = divmod(self.count, self.batch_size)
        return max(whole + (rest > 1), 1)

    def batch_sizes(self) -> set[int]:
        """Images of the first batch of an epoch and of the last."""
        return {self.images_in(batch) for batch in (1, len(self))}

    def images_in(self, batch: int) -> int:
        """Images of a whole batch, by its number from 1, in all processes together."""
        return min(self.batch_size, self.count - (batch - 1) * self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.count)
        if self.shuffle:
            generator = torch.Generator().manual_seed(seed_for(self.seed, ORDER, self.epoch))
            order = torch.randperm(self.count, generator=generator)
        for positions in torch.split(order, self.batch_size)[self.first : len(self)]:
            sizes = shards.sizes(len(positions), self.parts, self.batch_size)
            own = self.group.owned(len(sizes))
            yield positions[sum(sizes[: own.start]) : sum(sizes[: own.stop])].tolist()


class _ThroughAPipe:
    """A batch on its way from a worker, which unpickles as the pair of tensors that it holds.

    torch would put tensors into shared memory and send file descriptors through a socket: that waits for ever below a
    TMPDIR with a long name, needs room in /dev/shm (64 MB in a container of Docker), and two open files a batch.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled_batch, tuple(tensor.numpy() for tensor in self.batch)


def _unpickled_batch(images: Any, labels: Any) -> Batch:
    return torch.from_numpy(images), torch.from_numpy(labels)


def _unpickled_images(images: Any, labels: Any) -> PackedImages:
    return PackedImages(images if isinstance(images, Split) else torch.from_numpy(images), torch.from_numpy(labels))


def _through_a_pipe(batch: Any) -> Any:
    return _ThroughAPipe(batch)


def _as_it_is(batch: Any) -> Any:
    return batch  # whole already: nothing to stack


def _begin_worker(worker: int) -> None:
    # torch asks every five seconds whether the parent is there, and never while the pipe to it is full.
    children.end_with_the_parent()


class Batches:
    """The batches of each epoch: a function of (seed, epoch), whatever was drawn before, with any number of workers."""

    def __init__(
        self,
        dataset: PackedImages,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        num_workers: int,
        pin_memory: bool,
        stop: Stop,
        parts: int = 1,
        group: Group = ALONE,
    ) -> None:
        """parts, group: as for EpochBatches.

        num_workers: processes that fetch whole batches and live as long as this does; 0: none."""
        self._positions = EpochBatches(len(dataset), batch_size, shuffle, seed, parts, group)
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._positions,
            collate_fn=_through_a_pipe if num_workers else _as_it_is,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            timeout=WAIT_SECONDS if num_workers else 0,
            worker_init_fn=_begin_worker,
        )
        self._stop, self._started = stop, False

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self._positions)

    def images_in(self, batch: int) -> int:
        """Images of a whole batch, by its number from 1, in all processes together."""
        return self._positions.images_in(batch)

    def of_epoch(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch but for its `first` ones, without a wait that nothing ends.

        They end early once `stop` was told to stop, also while this waits for one. Raises UserError if the workers
        cannot be started, if one of them ends, and if none gives a batch within WAIT_SECONDS.
        """
        self._positions.epoch, self._positions.first = epoch, first
        # The first time it starts the workers, which should not be given up half-way; later it waits for them.
        begin = partial(self._of_workers, lambda: iter(self._loader))
        iterator = self._stop.wait(begin) if self._started else begin()
        self._started = True
        while iterator and (batch := self._stop.wait(lambda: self._of_workers(lambda: next(iterator, None)))):
            yield batch

    def _of_workers(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (RuntimeError, OSError, MemoryError, EOFError) as error:
            if not self._loader.num_workers:
                raise
            _discard(error)
            raise UserError(workers_failed(error, self._loader.num_workers)) from None


def _discard(error: BaseException) -> None:
    """Delete what the frames of an error hold.

    An iterator of torch's whose workers could not be started prints a traceback as it is deleted.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = hook


def workers_failed(error: BaseException, num_workers: int) -> str:
    """What to say of workers that failed with this error: what decides on it, and what there is of it here."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".")
    there = [f"ulimit -n is {machine.open_files() or 'unlimited'}"]
    if (free := machine.memory_bytes()) is not None:
        there.insert(0, f"{machine.gigabytes(free)} of memory are free")
    if SHARED_MEMORY.is_dir():
        there.append(f"{machine.gigabytes(shutil.disk_usage(SHARED_MEMORY).free)} in {SHARED_MEMORY}")
    return (
        f"the loader's workers failed: {reason}; {paths.PARAMS}: machine.num_workers is {num_workers}: set 0, or "
        f"fewer, or a smaller train.batch_size ({', '.join(there)})"
    )


@contextmanager
def ending_workers(num_workers: int) -> Iterator[None]:
    """End the workers that were started within the block with it, one that hangs or is stopped as well.

    Python would wait for such a one at its own end. Raises UserError if one of them was killed: torch tells the main
    thread by an exception, whatever that is doing.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    except RuntimeError as error:
        if num_workers and str(error).startswith("DataLoader worker"):
            raise UserError(workers_failed(error, num_workers)) from None
        raise
    finally:
        # torch answers the end of a worker with an exception.
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if hasattr(signal, "SIGCHLD") else None
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
            child.join()
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)
