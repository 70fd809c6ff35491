"""Setting part of the training images aside for validation."""

import numpy as np
import numpy.typing as npt

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
