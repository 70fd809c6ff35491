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
    own: slice | None = None,
) -> Tensor:
    """Log-probabilities float32 (N, K), on the CPU, of uint8 images (N, C, H, W), of which few are in memory at once.

    With the output "value", the numbers that a regression predicts, float32 (N, 1).

    A row depends on its image alone, to the last bit: the images are computed in parts of one size, the last of which
    is filled up with black images, since a matrix product of another size may add up in another order.
    output: as in `log_probabilities`. parallel: as `map`; it may run several parts at once. part_size: None for PART
    (large images: fewer); a smaller one is for few images at a time. own: the images to compute, as `part_of` divides
    them among processes; None: all. The model is put into evaluation mode and left there.
    """
    model.eval()
    size = part_size or part_images(images)
    begin, end = (own.start, own.stop) if own else (0, len(images))

    @torch.inference_mode()  # which is a thread's own
    def rows(start: int) -> Tensor:
        part = torch.as_tensor(images[start : min(start + size, end)])
        missing = part.new_zeros(size - len(part), *part.shape[1:])
        whole = torch.cat([part, missing]) if len(missing) else part
        outputs = model(whole.to(device, non_blocking=True))
        return (outputs.float() if output == "value" else log_probabilities(outputs, output))[: len(part)]

    def put_rows(start: int) -> None:
        log_p[start - begin : start - begin + size] = rows(start)

    first = rows(begin)
    # Its memory comes first: small tensors that stay would break up what large ones have freed, and memory would grow.
    log_p = first.new_empty(end - begin, first.shape[1])
    log_p[:size] = first
    list(parallel(put_rows, range(begin + size, end, size)))
    return log_p.cpu()  # one copy at the end: each would wait for a GPU


def part_images(images: Images) -> int:
    """How many of these images are computed at once."""
    values: int = math.prod(images[:1].shape[1:])
    return max(min(PART, PART_VALUES // values), 1)


def part_of(images: Images, process: int, processes: int) -> slice:
    """The images that one of several processes computes: whole parts, so that each row has the bits of one process."""
    size = part_images(images)
    parts = -(-len(images) // size)
    return slice(*(min(size * (parts * number // processes), len(images)) for number in (process, process + 1)))
