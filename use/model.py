"""A trained network that is ready for pictures, whatever runs it. Nothing here imports torch."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from use.prepare import Described, Invert, Map, Pixels, Prepared, prepare

Logs = npt.NDArray[np.float32]
DIGITS = 6  # significant ones of a predicted number


class Ranked(NamedTuple):
    """A class, and its probability."""

    name: str
    probability: float


class Model(ABC):
    """What it says of a picture does not depend on the pictures beside it.

    spec: classes (none of regression, which predicts a number), and how pictures are prepared. training_mean: of the
    training pixels, of 0 … 1. sha256: of the file. threads: how many to use.
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
        """Log-probabilities (N, K), or of regression numbers (N, 1), of pictures (N, C, H, W).

        part_size: how many are computed at once; None: many.
        """

    def value(self, outputs: Logs) -> float | None:
        """The number that a regression predicts, outputs (1,), to six digits; None if the network has classes."""
        return None if self.spec.classes else float(f"{outputs[0]:.{DIGITS}g}")

    def ranking(self, log_p: Logs, top: int) -> list[Ranked]:
        """The most probable classes of a picture, the first one first; none for regression. log_p: (K,)."""
        probabilities = np.exp(log_p)
        order = np.argsort(-log_p, kind="stable")[: min(top, len(self.spec.classes))]
        return [Ranked(self.spec.classes[index], float(probabilities[index])) for index in order]
