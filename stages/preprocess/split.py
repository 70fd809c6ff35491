"""Which part an image is in: train, validation or test."""

import hashlib

import numpy as np
import numpy.typing as npt

from stages.dataset.folder import Part

Indices = npt.NDArray[np.int64]


def stratified(labels: npt.NDArray[np.int64], fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Split positions 0 … N - 1 into a training and a validation part, the same share of each class.

    labels: int64 (N,). fraction: share of each class that goes to validation, rounded to whole images.
    Returns both parts' positions, each in ascending order; together they are all positions, each once.
    Which images are drawn of a class depends on (seed, class) alone, not on the other classes.
    """
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = np.random.default_rng([seed, int(label)]).permutation(len(members))
        chosen[members[order[: round(fraction * len(members))]]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def drawn(key: bytes, seed: int, test_fraction: float, validation_fraction: float) -> Part:
    """The part of a picture, a function of these alone: no other picture moves it, and copies of it are with it.

    key: what the picture is, or the group that it belongs to. Of many pictures, and of many of one class, these shares
    are in the test and the validation part; of few, more or fewer may be, as when each is drawn by itself.
    """
    draw = int.from_bytes(hashlib.sha256(seed.to_bytes(4) + key).digest()[:8]) / 2**64  # in 0 … 1
    if draw < test_fraction:
        return "test"
    return "validation" if draw < test_fraction + validation_fraction else "train"
