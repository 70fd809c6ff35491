"""The processes that train one network together. They send each other tensors, and never a pickle.

stages/train/launch.py starts them; torchrun's environment variables tell each process its rank. A process that trains
alone is a group of one, which sends nothing and does not import torch.distributed.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

import torch
from torch import Tensor

from stages.common import paths
from stages.common.errors import UserError
from stages.train import tree
from stages.train.tree import Node

STORE, ROUND = "TRAIN_STORE", "TRAIN_ROUND"  # environment variables of a worker: host:port, and the name of this start
ENDED = "TRAIN_ENDED"  # environment variable of a worker: the file that the first worker to end by itself writes
ENDED_FILE, RESTARTING = "ended", "restarting"  # that file; a file beside it while the agent restarts the workers
ALIGNMENT = 16  # float32 numbers: each tensor in a flat buffer begins at a multiple of 64 bytes


class LostProcessError(Exception):
    """Another process of the group has ended, hangs, or cannot be reached."""


@dataclass(frozen=True)
class Group:
    """The processes of one run. rank: the number of this process; 0 is the head. size: the number of processes."""

    rank: int = 0
    size: int = 1

    @property
    def is_head(self) -> bool:
        """Whether this is the process that reads and writes checkpoints, and writes outputs and the log."""
        return self.rank == 0

    def own_shards(self, count: int) -> range:
        """The shards, of `count`, that this process computes."""
        return tree.shards_of(count, self.rank, self.size)

    def broadcast(self, content: bytes | None) -> bytes | None:
        """Send the head's bytes, or None, to every process, and return them. Raises LostProcessError."""
        if self.size == 1:
            return content
        import torch.distributed as dist

        with _lost_if_it_fails():
            length = torch.tensor([-1 if content is None else len(content)])
            dist.broadcast(length, src=0)
            if length < 0:
                return None
            if self.is_head and content:
                buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            else:
                buffer = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(buffer, src=0)
        return buffer.numpy().tobytes()

    def exchange(self, sent: Mapping[int, Sequence[Tensor]], received: Mapping[int, Sequence[Tensor]]) -> None:
        """Send tensors to other processes, and receive theirs in place. Both are contiguous tensors by rank, in order.

        What a process sends to itself is ignored. Raises LostProcessError.
        """
        import torch.distributed as dist

        with _lost_if_it_fails():
            operations = [
                dist.P2POp(operation, tensor, rank)
                for operation, by_rank in ((dist.isend, sent), (dist.irecv, received))
                for rank, tensors in by_rank.items()
                for tensor in tensors
                if rank != self.rank and tensor.numel()
            ]
            for work in dist.batch_isend_irecv(operations) if operations else []:
                work.wait()

    def gather(self, rows: Tensor, bounds: Sequence[int]) -> Tensor:
        """All rows (N, …), in every process. This process has `rows`; rank r has bounds[r] … bounds[r + 1] - 1."""
        if self.size == 1:
            return rows
        gathered = rows.new_empty(bounds[-1], *rows.shape[1:])
        slices = {rank: [gathered[first:last]] for rank, (first, last) in enumerate(pairwise(bounds))}
        slices[self.rank][0].copy_(rows)
        self.exchange(dict.fromkeys(slices, slices[self.rank]), slices)
        return gathered


SINGLE = Group()  # a process that trains alone


def is_worker() -> bool:
    """Whether stages/train/launch.py started this program as one process of a group."""
    return STORE in os.environ


def local() -> tuple[int, int]:
    """LOCAL_RANK and LOCAL_WORLD_SIZE: the number of this process on this machine, and how many there are."""
    return (int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])) if is_worker() else (0, 1)


@contextmanager
def process_group(device: torch.device, timeout_seconds: float) -> Iterator[Group]:
    """The group that this process belongs to, once all of its processes are there.

    Within the block, a wait for another process takes at most timeout_seconds. Raises LostProcessError, and UserError
    for a device that cannot exchange tensors.
    """
    if not is_worker():
        yield SINGLE
        return
    if device.type == "mps":
        raise UserError(
            f"{paths.PARAMS}: the device is mps, which trains in one process on one machine only; set "
            "machine.processes: 1, or train.device: cpu"
        )
    import torch.distributed as dist

    host, _, port = os.environ[STORE].rpartition(":")
    timeout = timedelta(seconds=timeout_seconds)
    group = Group(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    with _lost_if_it_fails():
        store = dist.TCPStore(host, int(port), is_master=False, timeout=timeout)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            # Without the prefix, the store would still have the addresses of the previous start.
            store=dist.PrefixStore(os.environ[ROUND], store),
            rank=group.rank,
            world_size=group.size,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
    yield group
    dist.destroy_process_group()  # not after an error: NCCL would wait


@contextmanager
def _lost_if_it_fails() -> Iterator[None]:
    """Turn the RuntimeError that torch.distributed raises, whatever the reason, into a LostProcessError."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(str(error)) from None


class TreeSum:
    """Sums lists of float32 tensors, of which each process has those of some shards, along the tree over all shards.

    The tensors are flattened and divided into one segment per process. Each process receives its segment from all
    others (as in a reduce-scatter), adds the top of the tree, and sends the result to all others (as in an all-gather).
    The buffers take the memory of the tensors, times one more than the number of this process's roots.
    """

    def __init__(self, group: Group, like: Sequence[Tensor]) -> None:
        """like: tensors with the shapes, memory layouts and device of those to sum."""
        self.group, self.like = group, list(like)
        sizes = [-(-tensor.numel() // ALIGNMENT) * ALIGNMENT for tensor in like]
        self.offsets = [sum(sizes[:number]) for number in range(len(sizes))]
        self.segment = -(-sum(sizes) // (group.size * ALIGNMENT)) * ALIGNMENT
        self._spare: list[Tensor] = []
        self._used: list[Tensor] = []
        self.total = self._buffer(group.size * self.segment)

    def __call__(self, own: Mapping[Node, Sequence[Tensor]], count: int) -> list[Tensor]:
        """The sum over `count` shards, in every process: views of a buffer that the next call overwrites.

        own: the sums of this process's nodes, as `tree.roots` gives them. Raises LostProcessError.
        """
        group = self.group
        nodes = {rank: tree.roots(tree.shards_of(count, rank, group.size), count) for rank in range(group.size)}
        # In the order of `nodes`, in which the others receive them; `own` is in the order in which threads finished.
        flat = {node: self._flatten(own[node]) for node in nodes[group.rank]}
        segment = {
            node: flat[node][self._slice(group.rank)] if rank == group.rank else self._buffer(self.segment)
            for rank, roots in nodes.items()
            for node in roots
        }
        group.exchange(
            {rank: [flat[node][self._slice(rank)] for node in flat] for rank in nodes},
            {rank: [segment[node] for node in roots] for rank, roots in nodes.items()},
        )
        totals = {rank: [self.total[self._slice(rank)]] for rank in nodes}
        totals[group.rank][0].copy_(tree.sum_up((0, count), segment, Tensor.add_))
        group.exchange(dict.fromkeys(nodes, totals[group.rank]), totals)
        self._spare, self._used = self._spare + self._used, []
        return self._views(self.total)

    def _slice(self, rank: int) -> slice:
        return slice(rank * self.segment, (rank + 1) * self.segment)

    def _views(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat tensor, with the shapes and layouts of `like`."""
        return [
            flat[offset : offset + tensor.numel()].as_strided(tensor.shape, tensor.stride())
            for offset, tensor in zip(self.offsets, self.like, strict=True)
        ]

    def _flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        flat = self._buffer(self.group.size * self.segment)
        for view, tensor in zip(self._views(flat), tensors, strict=True):
            view.copy_(tensor)
        return flat

    def _buffer(self, length: int) -> Tensor:
        """A buffer of an earlier step, or a new one of zeros, since the gaps between tensors are sent, too."""
        for number, buffer in enumerate(self._spare):
            if len(buffer) == length:
                self._used.append(self._spare.pop(number))
                return buffer
        buffer = torch.zeros(length, device=self.like[0].device)
        self._used.append(buffer)
        return buffer
