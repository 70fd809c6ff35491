"""Checkpoints, from which a killed run resumes: safetensors files, without pickles.

They are in runs/resume/KEY (stages/common/resume.py), which Git and DVC ignore. KEY is a digest of the code, the
parameters, the data and the hardware, so a run never resumes from another run's checkpoint. The folder is deleted when
the stage succeeds.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from stages.common import files, inputs, paths, resume
from stages.common.errors import UserError
from stages.train.processes import SINGLE, Group

PACKAGE = Path(__file__).parents[1]  # the folder stages
LATEST, PREVIOUS = "latest.safetensors", "previous.safetensors"
META = "state"  # safetensors writes its metadata in no fixed order: one key, one JSON document


def key(stage: str, parameters: object, inputs: Iterable[Path], place: str) -> str:
    """The key of a run: a digest of everything that can change a bit of its results.

    parameters: those that can, of a type whose repr shows all values. inputs: the data files that it reads. place: the
    device and its instruction set. The code consists of the stage's dependencies in dvc.yaml, not of the modules that
    are loaded: some may not be loaded yet, and the stage itself is called __main__.
    """
    versions = f"torch {torch.__version__} numpy {version('numpy')}"
    digest = hashlib.sha256(f"{stage} {parameters!r} {place} {versions}".encode())
    root = PACKAGE.parent
    code_files = [(path.relative_to(root).as_posix(), path) for path in code(stage, root)]
    for name, path in [*code_files, *((path.as_posix(), path) for path in inputs)]:
        digest.update(f"\0{name}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def code(stage: str, root: Path) -> list[Path]:
    """The files of a stage's code below `root`: its dependencies in dvc.yaml that are no outputs of other stages.

    Without a dvc.yaml that has the stage, they are all files of the package. Raises UserError if it is not valid YAML.
    """
    pipeline = root / "dvc.yaml"
    stages = inputs.stages(pipeline) if pipeline.is_file() else {}
    try:
        deps = [root / _path(entry) for entry in stages[stage]["deps"]]
        outputs = {root / path for definition in stages.values() for path in _outputs(definition)}
    except (KeyError, TypeError):
        return _files(PACKAGE)
    sources = [
        path for path in deps if not any(path.is_relative_to(out) or out.is_relative_to(path) for out in outputs)
    ]
    return sorted({file for path in sources for file in _files(path)})


def _outputs(stage: dict[str, Any]) -> Iterator[str]:
    for kind in ("outs", "metrics", "plots"):
        yield from map(_path, stage.get(kind, []))


def _path(entry: Any) -> str:
    """The path of an entry of dvc.yaml, which is the path itself or {path: options}."""
    return str(next(iter(entry)) if isinstance(entry, dict) else entry)


def _files(path: Path) -> list[Path]:
    """A file itself, or all files of a folder except for Python's caches; nothing if the path is missing."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


class Checkpoints:
    """The last two checkpoints of a run. The older one is used if the newer one cannot be read.

    Only the head of a group of processes reads and writes them.
    """

    def __init__(self, run: str, every_seconds: float, group: Group = SINGLE, folder: Path | None = None) -> None:
        """run: the key. folder: as `resume.claimed` gives it."""
        self.run, self.folder, self.group = run, folder or paths.RESUME / run, group
        self.every_seconds, self.last = every_seconds, time.monotonic()

    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return self.group.is_head and time.monotonic() - self.last >= self.every_seconds

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint, atomically. Waits for a GPU.

        state: nested dicts, lists and tuples of tensors and JSON values. Raises TypeError for anything else.
        """
        if not self.group.is_head:
            return
        content = self._encoded(state)
        latest = self.folder / LATEST
        if latest.exists():
            latest.replace(self.folder / PREVIOUS)
        files.write_bytes(latest, content)
        self.last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The last state of the run, in every process, with all tensors on the CPU; None if there is none.

        A checkpoint that cannot be read, or belongs to another run, is set aside with one line. Raises UserError in a
        process whose key differs from the head's.
        """
        if self.group.size == 1:
            return self._stored()
        if self.group.broadcast(self.run.encode()) != self.run.encode():
            raise UserError(
                f"process {self.group.rank} would not train what the first one trains: its code, {paths.PARAMS}, data, "
                "package versions or kind of processor differ; use the same commit and the same machine type"
            )
        state = self._stored() if self.group.is_head else None
        content = self.group.broadcast(None if state is None else self._encoded(state))
        return state if self.group.is_head or content is None else self._decoded(content)

    def _stored(self) -> dict[str, Any] | None:
        for name in (LATEST, PREVIOUS):
            path = self.folder / name
            try:
                return self._read(path)
            except FileNotFoundError:
                continue
            except (SafetensorError, ValueError, KeyError, TypeError) as error:
                aside = path.with_suffix(".unreadable")
                path.replace(aside)
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                print(f"set a checkpoint aside that cannot be resumed from, as {aside}: {reason}", flush=True)
        return None

    def _read(self, path: Path) -> dict[str, Any]:
        """The state in a checkpoint, if the file is complete, unchanged, and of this run. Raises ValueError, …"""
        path.stat()  # raises FileNotFoundError, instead of safe_open's own error
        with safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {})[META])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it cannot be iterated over
        return self._checked(document, tensors)

    def _encoded(self, state: dict[str, Any]) -> bytes:
        tensors: dict[str, Tensor] = {}
        document = {"run": self.run, "state": _encode(state, tensors)}
        document["sha256"] = _digest(document, tensors)
        return save(tensors, metadata={META: json.dumps(document)})

    def _decoded(self, content: bytes) -> dict[str, Any]:
        """The inverse of `_encoded`. safetensors has no function that reads the metadata from bytes."""
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return self._checked(json.loads(header["__metadata__"][META]), load(content))

    def _checked(self, document: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        if document.pop("sha256") != _digest(document, tensors):
            raise ValueError("its bytes have changed since it was written")
        if document["run"] != self.run:
            raise ValueError("it is of another run")
        state: dict[str, Any] = _decode(document["state"], tensors)
        return state

    def delete(self) -> None:
        """Delete the checkpoints of this run, and old ones of other runs."""
        shutil.rmtree(self.folder, ignore_errors=True)
        resume.prune()


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A JSON document that `_decode` turns back into the value. Tensors are added to `tensors`.

    Each container becomes a JSON object whose one key is its type: JSON has no tuples, and only strings as keys.
    """
    if isinstance(value, Tensor):
        name, copy = str(len(tensors)), value.detach().cpu().clone()  # safetensors refuses tensors that share memory
        tensors[name] = copy.contiguous()
        return {"tensor": [name, copy.stride()]}
    if isinstance(value, dict):
        return {"dict": [[key, _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list" if isinstance(value, list) else "tuple": [_encode(item, tensors) for item in value]}
    if value is not None and type(value) not in (bool, int, float, str):
        raise TypeError(f"a checkpoint cannot contain {type(value).__name__}")
    return value


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        # In its original memory layout, which decides which kernels run, and so the last bits of results.
        name, stride = content
        return torch.empty_strided(tensors[name].shape, stride, dtype=tensors[name].dtype).copy_(tensors[name])
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    items = [_decode(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)


def _digest(document: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """A digest of the whole content: a bit flipped on disk must not change the results."""
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
