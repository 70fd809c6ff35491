"""A trained network in onnxruntime, on the CPU. Nothing here imports torch."""

import hashlib
import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from export import paths as exported
from export import runtime
from export.runtime import Network
from stages.common import machine, machine_settings, params, paths
from stages.common.errors import UserError
from use.model import Model, Outputs
from use.prepare import Map, Pixels


class OnnxClassifier(Model):
    """A network exported to ONNX."""

    def __init__(self, model: str) -> None:
        """model: see `load`. Raises UserError."""
        if importlib.util.find_spec("onnxruntime") is None:
            raise UserError("--runtime onnx needs onnxruntime: `pip install --require-hashes -r requirements-onnx.txt`")
        self.threads = machine_settings.read(params.load(paths.PARAMS)).threads or machine.cores()
        content = load(model)
        self.network = Network(content)
        self.spec, self.training_mean = self.network.description, self.network.description.training_mean
        self.sha256 = hashlib.sha256(content).hexdigest()

    @contextmanager
    def in_parallel(self) -> Iterator[Map]:
        """See Model."""
        with ThreadPoolExecutor(self.threads) as pool:
            yield pool.map

    def classify(self, pixels: Pixels, parallel: Map = map, part_size: int | None = None) -> Outputs:
        """See Model."""
        return self.network.outputs(pixels, parallel, part_size)


def load(name: str) -> bytes:
    """Read an exported network. name: a file, or a commit, branch, tag or experiment (which needs DVC).

    Raises UserError, with the reason, if there is no such file, or if its SHA-256 is not in the metrics/export.json of
    the work tree or of that revision.
    """
    file = Path(name)
    if file.is_file() or file.suffix == exported.MODEL.suffix:
        return runtime.read_file(file)
    if importlib.util.find_spec("dvc") is None:
        raise UserError(f"{name}: no such file; for the model of a revision, install DVC with `make predict`")
    from use.load import recorded

    content, others = recorded(name, exported.LOCK, exported.MODEL, [exported.RECORD], "`make export` there")
    return runtime.read(content, name, others[exported.RECORD])
