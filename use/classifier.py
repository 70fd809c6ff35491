"""A trained network on its device, ready for pictures."""

import sys
from contextlib import redirect_stdout
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from stages.common import machine, machine_settings, params, paths
from stages.evaluate.options import Evaluate
from stages.network import device
from stages.network.device import Map
from stages.network.inference import predict
from use.load import load
from use.prepare import Invert, Pixels, Prepared, prepare

Logs = npt.NDArray[np.float32]


class Ranked(NamedTuple):
    """A class, and its probability."""

    name: str
    probability: float


class Classifier:
    """A network on its device. What it says of a picture does not depend on the pictures beside it."""

    def __init__(self, model: str) -> None:
        """model: as `load` takes it; device and numerics: evaluate.* of params.yaml. Raises UserError."""
        values = params.load(paths.PARAMS)
        options, threads = params.section(values, "evaluate", Evaluate), machine_settings.read(values).threads
        with redirect_stdout(sys.stderr):  # standard output is for results
            self.device = device.set_up(options.device, threads, options.numerics, "evaluate.device")
        self.threads = threads or machine.cores()
        network, self.spec, self.sha256 = load(model)
        self.training_mean = float(network.get_buffer("0.mean").mean()) / 255  # of the normalization layer
        self.network = network.to(self.device)

    def prepare(self, content: bytes, invert: Invert) -> Prepared:
        """A picture file as the network sees it. Raises pictures.UnusablePictureError."""
        return prepare(content, self.spec, self.training_mean, invert)

    def classify(self, pixels: Pixels, parallel: Map = map, part_size: int | None = None) -> Logs:
        """Log-probabilities (N, K) of pictures (N, C, H, W). parallel, part_size: as inference.predict takes them."""
        images = torch.from_numpy(pixels)
        return predict(self.network, images, "softmax", self.device, parallel, part_size).numpy()

    def ranking(self, log_p: Logs, top: int) -> list[Ranked]:
        """The most probable classes of a picture, the first one first. log_p: (K,)."""
        probabilities = np.exp(log_p)
        order = np.argsort(-log_p, kind="stable")[:top]
        return [Ranked(self.spec.classes[index], float(probabilities[index])) for index in order]
