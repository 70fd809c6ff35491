"""Running a network without gradients."""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stages.network.device import Map
from stages.network.losses import Output, log_probabilities

# Images computed at once, and values in them, at most: large images are computed in smaller parts. The last bits of the
# results depend on both, so params.yaml has no key for them.
PART, PART_VALUES = 256, 2**24


class Images(Protocol):
    """Images uint8 (N, C, H, W): a tensor on any device, or a split on the disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Any:
        """Consecutive images, as a tensor or an array."""


def predict(
    model: nn.Module,
    images: Images,
    output: Output,
    device: torch.device,
    parallel: Map = map,
    part_size: int | None = None,
) -> Tensor:
    """Log-probabilities float32 (N, K), on the CPU, of uint8 images (N, C, H, W), of which few are in memory at once.

    A row depends on its image alone, to the last bit: the images are computed in parts of one size, the last of which
    is filled up with black images, since a matrix product of another size may add up in another order.
    output: as in `log_probabilities`. parallel: as `map`; it may run several parts at once. part_size: None for PART
    (large images: fewer); a smaller one is for few images at a time. The model is put into evaluation mode and left
    there.
    """
    model.eval()
    size = part_size or max(min(PART, PART_VALUES // math.prod(images[:1].shape[1:])), 1)

    @torch.inference_mode()  # which is a thread's own
    def rows(start: int) -> Tensor:
        part = torch.as_tensor(images[start : start + size])
        missing = part.new_zeros(size - len(part), *part.shape[1:])
        whole = torch.cat([part, missing]) if len(missing) else part
        return log_probabilities(model(whole.to(device, non_blocking=True)), output)[: len(part)]

    def put_rows(start: int) -> None:
        log_p[start : start + size] = rows(start)

    first = rows(0)
    # Its memory comes first: small tensors that stay would break up what large ones have freed, and memory would grow.
    log_p = first.new_empty(len(images), first.shape[1])
    log_p[:size] = first
    list(parallel(put_rows, range(size, len(images), size)))
    return log_p.cpu()  # one copy at the end: each would wait for a GPU
