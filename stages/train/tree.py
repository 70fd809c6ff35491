"""Sums along one fixed binary tree over the parts of a batch: ((0 + 1) + (2 + 3)) of four.

Floating-point sums depend on their order. Here the order is a function of the number of parts alone, so that each
partial sum has the same bits, whoever computes it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")
Node = tuple[int, int]  # the parts first … last - 1


def owned(count: int, rank: int, size: int) -> range:
    """The parts that process `rank` of `size` computes: consecutive ones, as many as the others have, or one fewer.

    With fewer parts than processes some have none; the first process always has part 0.
    """
    first, last = (-(-count * number // size) for number in (rank, rank + 1))
    return range(first, last)


def children(node: Node) -> tuple[Node, Node]:
    """The two halves of a node; the left one has as many parts as a power of two."""
    first, last = node
    middle = first + (1 << (last - first - 1).bit_length() - 1)
    return (first, middle), (middle, last)


def roots(parts: range, count: int) -> list[Node]:
    """The largest nodes of the tree over `count` parts that contain none but these consecutive parts."""

    def below(node: Node) -> Iterator[Node]:
        if parts.start <= node[0] and node[1] <= parts.stop:
            yield node
        elif node[0] < parts.stop and parts.start < node[1] and node[1] - node[0] > 1:
            for child in children(node):
                yield from below(child)

    return list(below((0, count))) if parts else []


def sum_up(node: Node, values: Mapping[Node, T], add: Callable[[T, T], T]) -> T:
    """The sum of a node, from the values of nodes below it that contain each of its parts once."""
    if node in values:
        return values[node]
    left, right = children(node)
    return add(sum_up(left, values, add), sum_up(right, values, add))


class Sums(Generic[T]):
    """The sums of some nodes, from values that come in any order and from any thread.

    Two halves are added as soon as both are there. If the parts come in order, no more than one value per level of the
    tree is kept.
    """

    def __init__(self, roots: Iterable[Node], add: Callable[[T, T], T]) -> None:
        """roots: the nodes whose sums are wanted. add: as in `sum_up`."""
        self.sums: dict[Node, T] = {}
        self._parents: dict[Node, Node] = {}
        self._add, self._lock = add, Lock()
        nodes = list(roots)
        for node in nodes:  # which grows
            if node[1] - node[0] > 1:
                nodes += children(node)
                self._parents |= dict.fromkeys(children(node), node)

    def put(self, node: Node, value: T) -> None:
        """The value of a node below one of the roots."""
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
