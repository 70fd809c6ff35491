"""The weights that torchvision publishes: look them up, fetch them from a mirror, and convert them to safetensors.

torchvision publishes only the first digits of each file's SHA-256, in the file name. They are checked here. The
complete digest is stored with the weights, and dvc.lock pins the output from then on.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stages.common import children, paths
from stages.common.errors import UserError
from stages.dataset.mirrors import Limits, MirrorError, chunks, public
from stages.network import weights_file
from stages.network.options import Architecture
from stages.network.weights_file import Origin, Weights

DIGITS = re.compile(r"-([0-9a-f]{8,64})\.")  # torch.hub.HASH_REGEX, of 8 digits or more
HALF = ("googlenet", "inception_v3")  # trained on (pixel - 0.5) / 0.5, to which torchvision converts its inputs
SLACK = 1.02  # torchvision states a rounded size
CONVERTER = Path(__file__).with_name("convert.py")
CONVERT_SECONDS = 600
MEMORY_BYTES = 8_000_000_000  # of address space, mostly for torch's libraries; plus 6 times the file size


class Published(NamedTuple):
    """A file of weights, as torchvision describes it."""

    architecture: Architecture
    folder: str  # URL
    name: str
    size: int  # bytes, approximately
    classes: list[str]
    mean: list[float]
    std: list[float]

    @property
    def digits(self) -> str:
        """The first hexadecimal digits of the SHA-256. Raises UserError if the name has none."""
        match = DIGITS.search(self.name)
        if not match:
            raise UserError(f"{self.name}: its name has no digits of a SHA-256, so it cannot be checked")
        return match[1]


def look_up(architecture: Architecture) -> Published:
    """The default weights of an architecture, as torchvision lists them. Raises UserError if there are none."""
    from torchvision.models import get_model_weights  # 3 s

    published = get_model_weights(architecture)
    if not len(published):
        raise UserError(
            f"{paths.PARAMS}: models.torchvision.weights is default, and torchvision publishes none for "
            f"{architecture}; allowed: none, a file in {paths.WEIGHTS}, or another architecture"
        )
    weights = published.DEFAULT
    folder, _, name = weights.url.rpartition("/")
    transforms = weights.transforms()
    mean, std = ([0.5] * 3, [0.5] * 3) if architecture in HALF else (list(transforms.mean), list(transforms.std))
    size = int(weights.meta["_file_size"] * 2**20)
    return Published(architecture, folder, name, size, list(weights.meta["categories"]), mean, std)


def fetch(published: Published, mirrors: Sequence[str], limits: Limits) -> Weights:
    """The weights, from the first mirror that has the right bytes. Raises UserError with the error of each mirror."""
    paths.RUNS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="weights-", dir=paths.RUNS) as scratch:
        file, failures = Path(scratch, "published"), []
        for mirror in [*mirrors, published.folder]:
            try:
                url = f"{mirror.rstrip('/')}/{published.name}"
                digest = download(url, file, published, limits)
                print(f"{published.name}: {file.stat().st_size:,} bytes from {public(mirror)}", flush=True)
                return convert(
                    file,
                    published,
                    Origin(
                        source=public(f"{published.folder}/{published.name}"),
                        sha256=digest,
                        architecture=published.architecture,
                        classes=published.classes,
                        mean=published.mean,
                        std=published.std,
                    ),
                )
            except FileNotFoundError:
                failures.append(f"{public(mirror)}: has no {published.name}")
            except MirrorError as error:
                failures.append(f"{public(mirror)}: {published.name}: {error}")
            print(f"skipping a mirror: {failures[-1]}", flush=True)
    listed = "".join(f"\n  {failure}" for failure in failures)
    raise UserError(
        f"no mirror has the weights of {published.architecture}; add one to weights.mirrors of {paths.PARAMS}: a "
        f"directory, or the URL of a folder, with {published.name}. Tried:{listed}"
    )


def download(url: str, file: Path, published: Published, limits: Limits) -> str:
    """Download a file, and check its digits. Returns its complete SHA-256. Raises MirrorError, FileNotFoundError."""
    digest = hashlib.sha256()
    with file.open("wb") as target:
        for chunk in chunks(url, int(published.size * SLACK), limits):
            digest.update(chunk)
            target.write(chunk)
    actual = digest.hexdigest()
    if not actual.startswith(published.digits):
        raise MirrorError(f"has the wrong bytes (SHA-256 {actual[:12]}..., torchvision's begins {published.digits})")
    return actual


def convert(file: Path, published: Published, origin: Origin) -> Weights:
    """Convert the pickle in a process with limits and no secrets. Raises MirrorError if it has no such weights."""
    target = file.with_name("converted")
    memory_bytes = MEMORY_BYTES + 6 * published.size
    command = [sys.executable, "-I", str(CONVERTER), published.architecture, str(file.resolve()), str(target.resolve())]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(file.parent.resolve()), "OMP_NUM_THREADS": "1"}
    try:
        done = children.run(
            [*command, str(memory_bytes), str(CONVERT_SECONDS)],
            file.parent,
            environment,
            capture=True,
            timeout_seconds=CONVERT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise MirrorError(f"cannot be converted within {CONVERT_SECONDS} s") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"the converter ended with status {done.returncode}"])[-1]
        raise MirrorError(f"cannot be converted: {public(reason)[:300]}")
    tensors, _ = weights_file.parse(target)
    return Weights(tensors, origin)
