"""Sums along one fixed binary tree over the parts of a batch: ((0 + 1) + (2 + 3)) of four.

Floating-point sums depend on their order. Here the order is a function of the number of parts alone, so that each
partial sum has the same bits, whoever computes it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

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
