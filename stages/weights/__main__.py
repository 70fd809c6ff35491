"""Provide the weights that training starts with: those that torchvision publishes, a file of your own, or none."""

import time

from stages.common import errors, inputs, params, paths, record
from stages.dataset.mirrors import Limits
from stages.network import weights_file
from stages.network.options import NO_WEIGHTS, PUBLISHED
from stages.weights import options, own, published


@inputs.unchanged
def main() -> None:
    """A mirror or data/weights -> data/pretrained/weights.safetensors."""
    start = time.perf_counter()
    chosen = options.read(params.load(paths.PARAMS))

    if chosen.weights == NO_WEIGHTS:  # as for most runs: torch is not imported
        weights_file.write_nothing(paths.PRETRAINED)
        print("training starts with new weights")
    else:
        if chosen.weights == PUBLISHED:
            weights = published.fetch(published.look_up(chosen.architecture), chosen.mirrors, Limits())
        else:
            weights = own.read(paths.WEIGHTS / chosen.weights)
        weights_file.write(paths.PRETRAINED, weights)
        print(f"{len(weights.tensors)} tensors from {weights.origin.source}, SHA-256 {weights.origin.sha256}")
    record.write("weights", {"seconds": round(time.perf_counter() - start, 3)})


if __name__ == "__main__":
    errors.run(main, memory="models.torchvision.architecture")
