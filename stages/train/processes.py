"""The processes that train one network together, and what they send each other: tensors, and nothing that is unpickled.

torchrun's environment variables say which process this is (stages/train/launch.py starts them). A process that trains
alone is a group of one, which sends nothing and never loads torch.distributed.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

import torch
from torch import Tensor

from stages.train import tree
from stages.train.tree import Node

STORE, ROUND = "TRAIN_STORE", "TRAIN_ROUND"  # environment variables of a worker: host:port, and the attempt's name
ALIGNED = 16  # numbers: the tensors of a flat buffer begin at multiples of 64 bytes


class LostProcessError(Exception):
    """Another process of the group has ended, hangs, or cannot be reached."""


@dataclass(frozen=True)
class Group:
    """The processes of one run. rank: this one's number, 0 being the head, which alone writes. size: their number."""

    rank: int = 0
    size: int = 1

    @property
    def head(self) -> bool:
        """Whether this process reads and writes checkpoints, outputs and the log."""
        return self.rank == 0

    def owned(self, count: int) -> range:
        """Which of `count` parts this process computes."""
        return tree.owned(count, self.rank, self.size)

    def broadcast(self, content: bytes | None) -> bytes | None:
        """The head's content, in every process; None if the head has None. Raises LostProcessError."""
        if self.size == 1:
            return content
        import torch.distributed as dist

        with _talking():
            length = torch.tensor([-1 if content is None else len(content)])
            dist.broadcast(length, src=0)
            if length < 0:
                return None
            if self.head and content:
                buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            else:
                buffer = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(buffer, src=0)
        return buffer.numpy().tobytes()

    def exchange(self, sent: Mapping[int, Sequence[Tensor]], received: Mapping[int, Sequence[Tensor]]) -> None:
        """Send tensors to other processes while theirs are received, in place. Both: contiguous, by rank, in order."""
        import torch.distributed as dist

        with _talking():
            operations = [
                dist.P2POp(act, tensor, rank)
                for act, tensors in ((dist.isend, sent), (dist.irecv, received))
                for rank, several in tensors.items()
                for tensor in several
                if rank != self.rank and tensor.numel()
            ]
            for work in dist.batch_isend_irecv(operations) if operations else []:
                work.wait()

    def gather(self, rows: Tensor, bounds: Sequence[int]) -> Tensor:
        """The rows (N, …) of all processes, in every process; those of rank r are bounds[r] … bounds[r + 1] - 1."""
        if self.size == 1:
            return rows
        whole = rows.new_empty(bounds[-1], *rows.shape[1:])
        pieces = [whole[first:last] for first, last in pairwise(bounds)]
        pieces[self.rank].copy_(rows)
        self.exchange({rank: [pieces[self.rank]] for rank in range(self.size)}, dict(enumerate([p] for p in pieces)))
        return whole


ALONE = Group()


def is_worker() -> bool:
    """Whether the launcher started this program as one of several (stages/train/launch.py)."""
    return STORE in os.environ


def local() -> tuple[int, int]:
    """This process's number among those of this machine, and how many these are."""
    return (int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])) if is_worker() else (0, 1)


@contextmanager
def joined(device: torch.device, timeout_seconds: float) -> Iterator[Group]:
    """The group of this program: itself alone, or all workers of the launcher, once all are there.

    Within the block no wait for another process takes longer than timeout_seconds. Raises LostProcessError.
    """
    if not is_worker():
        yield ALONE
        return
    import torch.distributed as dist

    host, _, port = os.environ[STORE].rpartition(":")
    timeout = timedelta(seconds=timeout_seconds)
    group = Group(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    with _talking():
        store = dist.TCPStore(host, int(port), is_master=False, timeout=timeout)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            # torchrun's own store keeps the addresses of an attempt before this one, which nobody answers.
            store=dist.PrefixStore(os.environ[ROUND], store),
            rank=group.rank,
            world_size=group.size,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
    yield group
    dist.destroy_process_group()  # after an error the end of the program does it: NCCL would wait


@contextmanager
def _talking() -> Iterator[None]:
    """Raise LostProcessError for what torch.distributed raises: a RuntimeError, whatever the reason."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(str(error)) from None


class TreeSum:
    """Sums lists of float32 tensors along the tree over the parts of a batch, whose parts several processes have.

    Each process adds up one segment of the tree's top for all of them, and sends it to the others: as few bytes as an
    all-reduce. The buffers are as large as what is summed, times one more than the roots of a process.
    """

    def __init__(self, group: Group, like: Sequence[Tensor]) -> None:
        """like: tensors of the shapes, memory layouts and device of those that will be summed."""
        self.group, self.like = group, list(like)
        sizes = [-(-tensor.numel() // ALIGNED) * ALIGNED for tensor in like]
        self.offsets = [sum(sizes[:number]) for number in range(len(sizes))]
        self.segment = -(-sum(sizes) // (group.size * ALIGNED)) * ALIGNED
        self._spare: list[Tensor] = []
        self._used: list[Tensor] = []
        self.total = self._buffer(group.size * self.segment)

    def __call__(self, own: Mapping[Node, Sequence[Tensor]], count: int) -> list[Tensor]:
        """The sum over `count` parts, the same in every process: views of a buffer that the next call overwrites.

        own: the sums of this process's roots (tree.roots). Raises LostProcessError.
        """
        group = self.group
        nodes = {rank: tree.roots(tree.owned(count, rank, group.size), count) for rank in range(group.size)}
        # In the order in which the others expect them; `own` has the order in which its threads were done.
        flat = {node: self._flatten(own[node]) for node in nodes[group.rank]}
        mine = {
            node: flat[node][self._slice(group.rank)] if rank == group.rank else self._buffer(self.segment)
            for rank, roots in nodes.items()
            for node in roots
        }
        group.exchange(
            {rank: [flat[node][self._slice(rank)] for node in flat] for rank in nodes},
            {rank: [mine[node] for node in roots] for rank, roots in nodes.items()},
        )
        segments = {rank: self.total[self._slice(rank)] for rank in nodes}
        segments[group.rank].copy_(tree.sum_up((0, count), mine, Tensor.add_))
        own_segment = [segments[group.rank]]
        group.exchange(dict.fromkeys(nodes, own_segment), {rank: [each] for rank, each in segments.items()})
        self._spare, self._used = self._spare + self._used, []
        return self._views(self.total)

    def _slice(self, rank: int) -> slice:
        return slice(rank * self.segment, (rank + 1) * self.segment)

    def _views(self, flat: Tensor) -> list[Tensor]:
        """Tensors as those in `like`, whose memory is in a flat one."""
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
        """A buffer of an earlier step, or a new one, of zeros: what is between the tensors is sent as well."""
        for number, buffer in enumerate(self._spare):
            if len(buffer) == length:
                self._used.append(self._spare.pop(number))
                return buffer
        buffer = torch.zeros(length, device=self.like[0].device)
        self._used.append(buffer)
        return buffer
