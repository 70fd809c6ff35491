"""The IDX format of MNIST and its relatives (http://yann.lecun.com/exdb/mnist/, "FILE FORMATS").

Two zero bytes, a type code, the number of dimensions, each dimension as a big-endian 32-bit integer, the values.
"""

import math

import numpy as np
import numpy.typing as npt

UINT8 = 0x08  # the one type that published image sets use
MAX_DIMENSIONS = 4


def decode(content: bytes) -> npt.NDArray[np.uint8]:
    """Decode an IDX file of uint8 values into an array of the shape that its header states, without copying.

    Raises ValueError, in one line, for anything that is not exactly one such file.
    """
    if len(content) < 4:
        raise ValueError(f"not an IDX file: {len(content)} bytes, too few for a header")
    zero, kind, dimensions = int.from_bytes(content[:2]), content[2], content[3]
    if zero != 0 or kind != UINT8 or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ValueError(f"not an IDX file of uint8 values: starts with the bytes {content[:4].hex(' ')}")
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise ValueError(f"not an IDX file: ends within its header of {start} bytes")
    shape = tuple(int.from_bytes(content[at : at + 4]) for at in range(4, start, 4))
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise ValueError(f"an IDX file of shape {shape} has {expected} bytes; this one has {len(content)}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def encode(array: npt.NDArray[np.uint8]) -> bytes:
    """Encode a uint8 array as an IDX file; the inverse of `decode`."""
    header = bytes([0, 0, UINT8, array.ndim]) + b"".join(size.to_bytes(4) for size in array.shape)
    return header + np.ascontiguousarray(array, dtype=np.uint8).tobytes()
