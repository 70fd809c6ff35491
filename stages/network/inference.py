"""Running a network without gradients."""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stages.network.device import Map
from stages.network.losses import Output, log_probabilities

# The images computed at once, and the pixel values in them, are at most these. The last bits of the results depend on
# both, so params.yaml has no key for them.
PART, PART_VALUES = 256, 2**24


class Images(Protocol):
    """Images uint8 (N, C, H, W): a tensor on any device, or a split on disk."""

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
    subset: slice | None = None,
) -> Tensor:
    """Log-probabilities float32 (N, K) on the CPU, of images uint8 (N, C, H, W), of which few are in memory at once.

    With the output "value", they are the numbers that a regression predicts, float32 (N, 1).

    Each row depends on its image only, to the last bit. For that, the images are computed in parts of one size, the
    last of which is padded with black images: a matrix product of another size may add in another order.
    output: as in `log_probabilities`. parallel: like `map`; it may compute parts in parallel. part_size: images of a
    part; None: PART, or fewer if they are large. subset: the images to compute, as `part_of` divides them among
    processes; None: all. The model is left in evaluation mode.
    """
    model.eval()
    size = part_size or part_images(images)
    begin, end = (subset.start, subset.stop) if subset else (0, len(images))

    @torch.inference_mode()  # each thread has its own mode
    def rows(start: int) -> Tensor:
        part = torch.as_tensor(images[start : min(start + size, end)])
        padding = part.new_zeros(size - len(part), *part.shape[1:])
        padded = torch.cat([part, padding]) if len(padding) else part
        outputs = model(padded.to(device))
        return (outputs.float() if output == "value" else log_probabilities(outputs, output))[: len(part)]

    def put_rows(start: int) -> None:
        log_p[start - begin : start - begin + size] = rows(start)

    first = rows(begin)
    # Allocated before the other parts: small tensors in between would fragment the memory that large ones free.
    log_p = first.new_empty(end - begin, first.shape[1])
    log_p[:size] = first
    list(parallel(put_rows, range(begin + size, end, size)))
    return log_p.cpu()  # one copy at the end, since each copy waits for the GPU


def part_images(images: Images) -> int:
    """The number of these images that are computed at once."""
    values: int = math.prod(images[:1].shape[1:])
    return max(min(PART, PART_VALUES // values), 1)


def part_of(images: Images, process: int, processes: int) -> slice:
    """The images that one of several processes computes: whole parts, so that each row has the same bits."""
    size = part_images(images)
    parts = -(-len(images) // size)
    return slice(*(min(size * (parts * number // processes), len(images)) for number in (process, process + 1)))
