"""Running a network without gradients."""

import torch
from torch import Tensor, nn

from stages.device import Map
from stages.losses import Output, log_probabilities


def predict(
    model: nn.Module, images: Tensor, output: Output, batch_size: int, device: torch.device, parallel: Map = map
) -> Tensor:
    """Log-probabilities float32 (N, K), on the CPU, of uint8 images (N, C, H, W) on any device.

    output: as in `log_probabilities`. parallel: as `map`; it may run several batches at once. The model is put into
    evaluation mode and left there.
    """
    model.eval()

    @torch.inference_mode()  # which is a thread's own
    def batch(part: Tensor) -> Tensor:
        return log_probabilities(model(part.to(device, non_blocking=True)), output)

    # One copy at the end: each would wait for a GPU.
    return torch.cat(list(parallel(batch, torch.split(images, batch_size)))).cpu()
