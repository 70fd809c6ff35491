"""A trained network in torch."""

import sys
from contextlib import AbstractContextManager, redirect_stdout

import torch

from stages.common import machine, machine_settings, params, paths
from stages.evaluate.options import Evaluate
from stages.network import device, model_file
from stages.network.device import Map
from stages.network.inference import predict
from stages.network.losses import Output
from stages.network.model_file import Spec
from use.load import load
from use.model import Model, Outputs
from use.prepare import Pixels


class Classifier(Model):
    """A network on its device."""

    spec: Spec

    def __init__(self, model: str) -> None:
        """model: see `load`. Uses evaluate.device and evaluate.numerics of params.yaml. Raises UserError."""
        values = params.load(paths.PARAMS)
        options, threads = params.section(values, "evaluate", Evaluate), machine_settings.read(values).threads
        with redirect_stdout(sys.stderr):  # standard output is for predictions
            self.device = device.set_up(options.device, threads, options.numerics, "evaluate.device")
        self.threads = threads or machine.cores()
        network, self.spec, self.sha256 = load(model)
        self.training_mean = model_file.training_mean(network)
        self.network = network.to(self.device)

    def in_parallel(self) -> AbstractContextManager[Map]:
        """See Model."""
        return device.in_parallel(self.device, self.threads)

    def classify(self, pixels: Pixels, parallel: Map = map, part_size: int | None = None) -> Outputs:
        """See Model. parallel, part_size: see inference.predict."""
        images = torch.from_numpy(pixels)
        output: Output = "softmax" if self.spec.classes else "value"
        return predict(self.network, images, output, self.device, parallel, part_size).numpy()
