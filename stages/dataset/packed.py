"""One split of a data set in one safetensors file: images uint8 (N, C, H, W) and labels int64 (N,).

uint8 is a quarter of the bytes to cache, push and move to a GPU; safetensors runs no code when it is read.
N: images, C: channels, H: height, W: width, in all of this repository.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from stages.common import files
from stages.common.errors import UserError

Images = npt.NDArray[np.uint8]  # (N, C, H, W)
Labels = npt.NDArray[np.int64]  # (N,)


def write(path: Path, images: Images, labels: Labels) -> None:
    """Write a split, atomically. The same arrays give the same bytes."""
    files.write_bytes(path, save({"images": np.ascontiguousarray(images), "labels": np.ascontiguousarray(labels)}))


def read(path: Path, image_shape: tuple[int, int, int], classes: int) -> tuple[Images, Labels]:
    """Read a split and check it against what the data card states.

    Raises UserError for a file that is not such a split: another format, other names, types or shapes, images and
    labels of different number, labels outside 0 … classes - 1.
    """
    try:
        arrays = load(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` makes it") from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a safetensors file ({error}); `dvc repro` makes it anew") from None
    if set(arrays) != {"images", "labels"}:
        raise UserError(f"{path}: holds {', '.join(sorted(arrays)) or 'nothing'}; expected images and labels")
    images, labels = arrays["images"], arrays["labels"]
    expected = (len(labels) if labels.ndim else 0, *image_shape)
    if images.dtype != np.uint8 or images.shape != expected:
        raise UserError(f"{path}: images are {images.dtype} {images.shape}; expected uint8 {expected}")
    if labels.dtype != np.int64 or labels.ndim != 1:
        raise UserError(f"{path}: labels are {labels.dtype} {labels.shape}; expected int64, a number an image")
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise UserError(f"{path}: labels run from {labels.min()} to {labels.max()}; expected 0 to {classes - 1}")
    return images, labels
