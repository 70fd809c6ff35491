"""Which model to use: a file, or what a revision's dvc.lock names."""

import hashlib
import tempfile
from collections.abc import Sequence
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
    content, _ = recorded(name, Path(LOCK), paths.MODEL, [], "`dvc repro` there")
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        copy = Path(folder, paths.MODEL.name)
        copy.write_bytes(content)
        return _read(copy)


def recorded(
    name: str, lock_file: Path, path: Path, others: Sequence[Path], remedy: str
) -> tuple[bytes, dict[Path, bytes | None]]:
    """A file that DVC keeps, as a revision's lock file names it, and other files that Git has of that revision.

    The first comes from the work tree, DVC's cache or the default remote, and its MD5 is checked. remedy: the command
    that makes it. Raises UserError, with the reason, if it is not to be had.
    """
    with revisions.repository() as repo:
        commit = revisions.resolve(repo, name)
        wanted = [lock_file.as_posix(), *(other.as_posix() for other in others)]
        found = Commit(Path(repo.root_dir), commit).read(*wanted)
        locked = found.get(lock_file.as_posix())
        if locked is None:
            raise UserError(f"{name}: no {lock_file} there; run {remedy}, and commit it")
        out = parse_lock(locked, f"{name}: {lock_file}").outs.get(path.as_posix())
        if out is None:
            raise UserError(f"{name}: {lock_file} there does not name one {path}; run {remedy}")
        content, _ = revisions.fetch(repo, out)
    return content, {other: found.get(other.as_posix()) for other in others}


def _read(file: Path) -> Loaded:
    network, spec = model_file.read(file)
    with file.open("rb") as content:
        return Loaded(network, spec, hashlib.file_digest(content, "sha256").hexdigest())
