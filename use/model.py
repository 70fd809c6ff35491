"""The interface of a trained network, independent of its runtime. Nothing here imports torch."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from use.prepare import Described, Invert, Map, Pixels, Prepared, prepare

Outputs = npt.NDArray[np.float32]  # log-probabilities (N, K), or for regression values (N, 1)
DIGITS = 6  # significant digits of a predicted number


class Ranked(NamedTuple):
    """A class and its probability."""

    name: str
    probability: float


class Model(ABC):
    """A network that classifies pictures. The result for a picture does not depend on the others in a call.

    spec: the classes (empty for regression, which predicts a number), and how pictures are prepared. training_mean: of
    the training pixels, 0 to 1. sha256: of the model file. threads: how many to use.
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
        """A context with a `map` that runs on all threads."""

    @abstractmethod
    def classify(self, pixels: Pixels, parallel: Map = map, part_size: int | None = None) -> Outputs:
        """Log-probabilities (N, K), or for regression values (N, 1), of pictures (N, C, H, W).

        part_size: the number of pictures per call of the network; None: a large number.
        """

    def value(self, outputs: Outputs) -> float | None:
        """The value that a regression predicts, to six significant digits; None for a classifier. outputs: (1,)."""
        return None if self.spec.classes else float(f"{outputs[0]:.{DIGITS}g}")

    def ranking(self, log_p: Outputs, top: int) -> list[Ranked]:
        """The `top` most probable classes, in order; empty for regression. log_p: (K,)."""
        probabilities = np.exp(log_p)
        order = np.argsort(-log_p, kind="stable")[: min(top, len(self.spec.classes))]
        return [Ranked(self.spec.classes[index], float(probabilities[index])) for index in order]
