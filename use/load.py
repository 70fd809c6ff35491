"""Load a model from a file, or from the dvc.lock of a revision."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from integrity import revisions
from integrity.dvc_lock import parse_lock
from integrity.lock_files import LOCK
from integrity.snapshots import Commit
from stages.common import paths
from stages.common.errors import UserError
from stages.network import model_file
from stages.network.model_file import Spec


class Loaded(NamedTuple):
    """A network in evaluation mode on the CPU, its description, and the SHA-256 of its file."""

    network: nn.Sequential
    spec: Spec
    sha256: str


def load(name: str) -> Loaded:
    """Read a model. name: a file, or a commit, branch, tag or experiment.

    The model of a revision comes from the work tree, DVC's cache or the default remote, and its MD5 is checked. Raises
    UserError, with the reason, if there is no intact model.
    """
    file = Path(name)
    if file.is_file() or file.suffix == paths.MODEL.suffix:
        return _read(file)
    content, _ = recorded(name, Path(LOCK), paths.MODEL, [], "`dvc repro` there")
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        copy = Path(folder, paths.MODEL.name)
        copy.write_bytes(content)
        return _read(copy)


def recorded(
    name: str, lock_file: Path, path: Path, others: Sequence[Path], remedy: str
) -> tuple[bytes, dict[Path, bytes | None]]:
    """Return an output of DVC at a revision, and other files of that revision from Git (None: missing).

    lock_file: the lock file that records the output. The output comes from the work tree, DVC's cache or the default
    remote, and its MD5 is checked. remedy: the command that creates it. Raises UserError, with the reason.
    """
    with revisions.repository() as repo:
        commit = revisions.resolve(repo, name)
        names = [lock_file.as_posix(), *(other.as_posix() for other in others)]
        in_git = Commit(Path(repo.root_dir), commit).read(*names)
        locked = in_git.get(lock_file.as_posix())
        if locked is None:
            raise UserError(f"{name}: has no {lock_file}; run {remedy}, and commit it")
        out = parse_lock(locked, f"{name}: {lock_file}").outs.get(path.as_posix())
        if out is None:
            raise UserError(f"{name}: its {lock_file} records no {path}; run {remedy}")
        content, _ = revisions.fetch(repo, out)
    return content, {other: in_git.get(other.as_posix()) for other in others}


def _read(file: Path) -> Loaded:
    if file.exists() and not file.is_file():  # opening a pipe would wait, and ignore signals
        raise UserError(f"{file}: not a file")
    network, spec = model_file.read(file)
    with file.open("rb") as content:
        return Loaded(network, spec, hashlib.file_digest(content, "sha256").hexdigest())
