"""Assign images to parts: train, validation or test."""

import hashlib

import numpy as np
import numpy.typing as npt

from stages.dataset.folder import Part

Indices = npt.NDArray[np.int64]


def stratified(labels: npt.NDArray[np.int64], fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Split positions 0 … N - 1 into a training and a validation part, the same share of each class.

    labels: int64 (N,). fraction: share of each class that goes to validation, rounded to whole images.
    Returns the positions of both parts in ascending order; each position is in exactly one of them.
    The choice within a class depends only on (seed, class), not on the other classes.
    """
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = np.random.default_rng([seed, int(label)]).permutation(len(members))
        chosen[members[order[: round(fraction * len(members))]]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def drawn(key: bytes, seed: int, test_fraction: float, validation_fraction: float) -> Part:
    """The part of a picture, a function of the arguments only: independent of other pictures, and the same for copies.

    key: the content of the picture, or its group. With many pictures, the parts have about these shares of the pictures
    and of each class; with few, the shares vary as in independent draws.
    """
    draw = int.from_bytes(hashlib.sha256(seed.to_bytes(4) + key).digest()[:8]) / 2**64  # in 0 … 1
    if draw < test_fraction:
        return "test"
    return "validation" if draw < test_fraction + validation_fraction else "train"
