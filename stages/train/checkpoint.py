"""What a killed training run resumes from: the whole state of the loop, in a file that no pickle can poison.

It lives in runs/resume/KEY, where neither Git nor DVC looks. KEY is a digest of the code, the parameters, the data and
what computes, so that nothing of another run is ever resumed; the folder is deleted when the stage succeeds.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from stages.common import files, paths
from stages.common.errors import UserError

PACKAGE = Path(__file__).parents[1]  # of the stages
UNUSED_SECONDS = 7 * 24 * 3600  # after which what other runs left is deleted
LATEST, PREVIOUS = "latest.safetensors", "previous.safetensors"
META = "state"  # safetensors writes its metadata in no fixed order: one key, one JSON document


class Progress(NamedTuple):
    """Where a run stands: in an epoch, counted from 1, after as many of its steps as there are losses."""

    epoch: int
    losses: list[Tensor]  # of the epoch's steps so far, scalars
    sizes: list[int]  # images of each
    history: list[dict[str, float]]  # a row for each epoch that has ended
    weights: dict[str, Tensor]  # of the best epoch so far


def key(stage: str, parameters: object, inputs: Iterable[Path], place: str) -> str:
    """What a run is: a digest of all that can change a bit of its results.

    parameters: those that can, of a type whose repr tells them apart. inputs: the data files that it reads. place: the
    device and its instruction set. The code is what dvc.yaml says of the stage: not what is loaded, since the running
    stage is called __main__ and some of it may not be loaded yet.
    """
    versions = f"torch {torch.__version__} numpy {version('numpy')}"
    digest = hashlib.sha256(f"{stage} {parameters!r} {place} {versions}".encode())
    root = PACKAGE.parent
    named = [(path.relative_to(root).as_posix(), path) for path in code(stage, root)]
    for name, path in [*named, *((path.as_posix(), path) for path in inputs)]:
        digest.update(f"\0{name}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def code(stage: str, root: Path) -> list[Path]:
    """The files of a stage's code below `root`: what dvc.yaml there names as its inputs, and no other stage makes.

    All of the package where dvc.yaml is not there or does not have the stage. Raises UserError where it is no YAML.
    """
    try:
        stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        inputs = [root / _path(entry) for entry in stages[stage]["deps"]]
        made = {root / path for each in stages.values() for path in _outputs(each)}
    except (FileNotFoundError, KeyError, TypeError):
        return _files(PACKAGE)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"dvc.yaml: not valid YAML: {str(error).splitlines()[0]}") from None
    kept = [path for path in inputs if not any(path.is_relative_to(out) or out.is_relative_to(path) for out in made)]
    return sorted({file for path in kept for file in _files(path)})


def _outputs(stage: dict[str, Any]) -> Iterator[str]:
    for kind in ("outs", "metrics", "plots"):
        yield from map(_path, stage.get(kind, []))


def _path(entry: Any) -> str:
    """Of an entry of dvc.yaml, which is a path or {path: options}."""
    return str(next(iter(entry)) if isinstance(entry, dict) else entry)


def _files(path: Path) -> list[Path]:
    """A file, or all files of a folder but for Python's caches; nothing if it is not there."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


class Checkpoints:
    """The two last checkpoints of one run: the one before is there for the case that the last cannot be read."""

    def __init__(self, run: str, every_seconds: float) -> None:
        self.run, self.folder = run, paths.RESUME / run
        self.every_seconds, self.last = every_seconds, time.monotonic()

    def due(self) -> bool:
        """Whether the time for another one has come."""
        return time.monotonic() - self.last >= self.every_seconds

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, progress: Progress
    ) -> None:
        """Write a checkpoint, atomically. Waits for a GPU."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in progress.weights.items()}
        numbers: dict[str, Any] = {}
        for index, slots in optimizer.state_dict()["state"].items():
            for name, value in slots.items():
                place = tensors if isinstance(value, Tensor) else numbers
                place[f"optimizer.{index}.{name}"] = value
        if progress.losses:
            tensors["losses"] = torch.stack(progress.losses)
        state = {
            "run": self.run,
            "epoch": progress.epoch,
            "sizes": progress.sizes,
            "history": progress.history,
            "optimizer": numbers,
            "scaler": scaler.state_dict(),
        }
        # clone: a tensor that stands twice (the best weights may be the model's own) is written twice
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        state["sha256"] = _digest(state, tensors)
        content = save(tensors, metadata={META: json.dumps(state)})
        latest = self.folder / LATEST
        if latest.exists():
            latest.replace(self.folder / PREVIOUS)
        files.write_bytes(latest, content)
        self.last = time.monotonic()

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Progress | None:
        """Put the run's last state back, and say where it stood; None if there is none that can be read.

        A checkpoint that cannot be read, or is not of this run, is set aside with one line.
        """
        for name in (LATEST, PREVIOUS):
            path = self.folder / name
            try:
                state, tensors = self._read(path)
                return _restore(state, tensors, model, optimizer, scaler)
            except FileNotFoundError:
                continue
            except (SafetensorError, ValueError, KeyError, TypeError) as error:
                aside = path.with_suffix(".unreadable")
                path.replace(aside)
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                print(f"set a checkpoint aside that cannot be resumed from, as {aside}: {reason}", flush=True)
        return None

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A checkpoint of this run, every byte of it as it was written."""
        path.stat()  # FileNotFoundError, where safe_open has an error of its own
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})[META])
            tensors = {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
        if state.pop("sha256") != _digest(state, tensors):
            raise ValueError("its bytes have changed since it was written")
        if state["run"] != self.run:
            raise ValueError("it is of another run")
        return state, tensors

    def delete(self) -> None:
        """Forget the run's checkpoints, and those of other runs that have been left alone for a week.

        Others may be of a run that is at work beside this one, or that somebody comes back to.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in paths.RESUME.glob("*"):
            with suppress(OSError):  # another process has deleted it
                if time.time() - folder.stat().st_mtime > UNUSED_SECONDS:  # of its last checkpoint's rename
                    shutil.rmtree(folder)
        with suppress(OSError):  # not empty, or not there
            paths.RESUME.rmdir()


def _restore(
    state: dict[str, Any],
    tensors: dict[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> Progress:
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}}
    slots: dict[int, dict[str, Any]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in [*tensors.items(), *state["optimizer"].items()]:
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, _, slot = rest.partition(".")
            parameter = parameters[int(index)]
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # In the memory layout of the parameter, as the optimizer itself makes it: the same kernels.
                value = torch.empty_like(parameter, requires_grad=False).copy_(value)
            slots.setdefault(int(index), {})[slot] = value
        elif kind in parts:
            parts[kind][rest] = value
    losses = list(tensors["losses"].to(parameters[0].device)) if "losses" in tensors else []
    progress = Progress(state["epoch"], losses, state["sizes"], state["history"], parts["best"])
    model.load_state_dict(parts["model"])
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    scaler.load_state_dict(state["scaler"])
    return progress


def _digest(state: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Of all that a checkpoint holds: a disk that flips a bit must not change what a run ends in."""
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
