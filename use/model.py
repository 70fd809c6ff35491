"""A trained network that is ready for pictures, whatever runs it. Nothing here imports torch."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from use.prepare import Described, Invert, Map, Pixels, Prepared, prepare

Logs = npt.NDArray[np.float32]


class Ranked(NamedTuple):
    """A class, and its probability."""

    name: str
    probability: float


class Model(ABC):
    """What it says of a picture does not depend on the pictures beside it.

    spec: classes, and how pictures are prepared. training_mean: of the training pixels, of 0 … 1. sha256: of the file.
    threads: how many to use.
    """

    spec: Described
    training_mean: float
    sha256: str
    threads: int

    def prepare(self, content: bytes, invert: Invert) -> Prepared:
        """A picture file as the network sees it. Raises pictures.UnusablePictureError."""
        return prepare(content, self.spec, self.training_mean, invert)

    @abstractmethod
    def in_parallel(self) -> AbstractContextManager[Map]:
        """A block with a `map` that runs on all threads."""

    @abstractmethod
    def classify(self, pixels: Pixels, parallel: Map = map, part_size: int | None = None) -> Logs:
        """Log-probabilities (N, K) of pictures (N, C, H, W). part_size: how many are computed at once; None: many."""

    def ranking(self, log_p: Logs, top: int) -> list[Ranked]:
        """The most probable classes of a picture, the first one first. log_p: (K,)."""
        probabilities = np.exp(log_p)
        order = np.argsort(-log_p, kind="stable")[:top]
        return [Ranked(self.spec.classes[index], float(probabilities[index])) for index in order]
