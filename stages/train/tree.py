"""Sums along a fixed binary tree over the shards of a batch: ((0 + 1) + (2 + 3)) for four shards.

The result of a floating-point sum depends on its order. Here the order depends on the number of shards only, so each
partial sum has the same bits, whichever process or thread computes it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")
Node = tuple[int, int]  # the shards first … last - 1


def shards_of(count: int, rank: int, size: int) -> range:
    """The shards that process `rank` of `size` computes: consecutive ones, divided as evenly as possible.

    If there are fewer shards than processes, some processes have none. Process 0 always has shard 0.
    """
    first, last = (-(-count * number // size) for number in (rank, rank + 1))
    return range(first, last)


def children(node: Node) -> tuple[Node, Node]:
    """The two halves of a node. The number of shards in the left one is the largest power of two that fits."""
    first, last = node
    middle = first + (1 << (last - first - 1).bit_length() - 1)
    return (first, middle), (middle, last)


def roots(shards: range, count: int) -> list[Node]:
    """The largest nodes, of the tree over `count` shards, that lie within these consecutive shards."""

    def below(node: Node) -> Iterator[Node]:
        if shards.start <= node[0] and node[1] <= shards.stop:
            yield node
        elif node[0] < shards.stop and shards.start < node[1] and node[1] - node[0] > 1:
            for child in children(node):
                yield from below(child)

    return list(below((0, count))) if shards else []


def sum_up(node: Node, values: Mapping[Node, T], add: Callable[[T, T], T]) -> T:
    """The sum of a node. values: of nodes below it that contain each of its shards exactly once."""
    if node in values:
        return values[node]
    left, right = children(node)
    return add(sum_up(left, values, add), sum_up(right, values, add))


class Sums(Generic[T]):
    """The sums of some nodes, of values that arrive in any order and from any thread.

    Two halves are added as soon as both are there. If the shards arrive in order, at most one value per level of the
    tree is in memory.
    """

    def __init__(self, roots: Iterable[Node], add: Callable[[T, T], T]) -> None:
        """roots: the nodes to compute. add: as in `sum_up`."""
        self.sums: dict[Node, T] = {}
        self._parents: dict[Node, Node] = {}
        self._add, self._lock = add, Lock()
        nodes = list(roots)
        for node in nodes:  # the list grows meanwhile
            if node[1] - node[0] > 1:
                nodes += children(node)
                self._parents |= dict.fromkeys(children(node), node)

    def put(self, node: Node, value: T) -> None:
        """Add the value of a node below one of the roots."""
        while parent := self._parents.get(node):
            left, right = children(parent)
            with self._lock:
                other = self.sums.pop(right if node == left else left, None)
                if other is None:
                    self.sums[node] = value
                    return
            value = self._add(value, other) if node == left else self._add(other, value)
            node = parent
        self.sums[node] = value
