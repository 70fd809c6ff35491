"""Running a network without gradients."""

import torch
from torch import Tensor, nn

from stages.network.device import Map
from stages.network.losses import Output, log_probabilities

PART = 256  # images computed at once. The last bits of the results depend on it, so params.yaml has no key for it


def predict(
    model: nn.Module,
    images: Tensor,
    output: Output,
    device: torch.device,
    parallel: Map = map,
    part_size: int | None = None,
) -> Tensor:
    """Log-probabilities float32 (N, K), on the CPU, of uint8 images (N, C, H, W) on any device.

    A row depends on its image alone, to the last bit: the images are computed in parts of one size, the last of which
    is filled up with black images, since a matrix product of another size may add up in another order.
    output: as in `log_probabilities`. parallel: as `map`; it may run several parts at once. part_size: None for PART; a
    smaller one is for few images at a time. The model is put into evaluation mode and left there.
    """
    model.eval()
    size = part_size or PART

    @torch.inference_mode()  # which is a thread's own
    def rows(part: Tensor) -> Tensor:
        missing = part.new_zeros(size - len(part), *part.shape[1:])
        whole = torch.cat([part, missing]) if len(missing) else part
        return log_probabilities(model(whole.to(device, non_blocking=True)), output)[: len(part)]

    # One copy at the end: each would wait for a GPU.
    return torch.cat(list(parallel(rows, torch.split(images, size)))).cpu()
