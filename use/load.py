"""Which model to use: a file, or what a revision's dvc.lock names."""

import hashlib
import tempfile
from pathlib import Path
from typing import NamedTuple

from torch import nn

from integrity import revisions
from integrity.dvc_lock import LOCK, parse_lock
from integrity.snapshots import Commit
from stages.common import paths
from stages.common.errors import UserError
from stages.network import model_file
from stages.network.model_file import Spec


class Loaded(NamedTuple):
    """A network in evaluation mode on the CPU, what it is, and the digest of its file."""

    network: nn.Sequential
    spec: Spec
    sha256: str


def load(name: str) -> Loaded:
    """Read a model. name: a file, or a commit, branch, tag or experiment.

    A revision's model comes from the work tree, DVC's cache or the default remote, and its MD5 is checked. Raises
    UserError, with the reason, if there is no such model, or none that can be trusted.
    """
    file = Path(name)
    if file.is_file() or file.suffix == paths.MODEL.suffix:
        return _read(file)
    with revisions.repository() as repo:
        commit = revisions.resolve(repo, name)
        locked = Commit(Path(repo.root_dir), commit).read(LOCK).get(LOCK)
        if locked is None:
            raise UserError(f"{name}: no {LOCK} there; run `dvc repro` there, and commit it")
        lock = parse_lock(locked, f"{name}: {LOCK}")
        out = lock.outs.get(paths.MODEL.as_posix())
        if out is None:
            raise UserError(f"{name}: {LOCK} there does not name one {paths.MODEL}; run `dvc repro` there")
        content, _ = revisions.fetch(repo, out)
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        copy = Path(folder, paths.MODEL.name)
        copy.write_bytes(content)
        return _read(copy)


def _read(file: Path) -> Loaded:
    network, spec = model_file.read(file)
    with file.open("rb") as content:
        return Loaded(network, spec, hashlib.file_digest(content, "sha256").hexdigest())
