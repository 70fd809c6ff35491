"""Running a network without gradients."""

import torch
from torch import Tensor, nn

from stages.losses import Output, log_probabilities


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, output: Output, batch_size: int, device: torch.device) -> Tensor:
    """Log-probabilities float32 (N, K), on the CPU, of uint8 images (N, C, H, W) on any device.

    output: as in `log_probabilities`. The model is put into evaluation mode and left there.
    """
    model.eval()
    parts = [model(part.to(device, non_blocking=True)) for part in torch.split(images, batch_size)]
    return log_probabilities(torch.cat(parts), output).cpu()
