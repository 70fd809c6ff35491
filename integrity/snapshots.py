"""The files of a commit, or of the work tree. Paths are relative to DVC's root, which may lie below Git's.

Commits are read by the program git: libraries that read Git's objects wait forever for what a partial clone lacks.
"""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from integrity import git
from stages.common.digests import md5, path_md5

MAX_HASHED_BYTES = 1_000_000_000  # of the work tree, per comparison: about two seconds


class WorkTree:
    """The files on the disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def glob(self, pattern: str) -> list[str]:
        """The paths that match a pattern, sorted."""
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(pattern) if path.is_file())

    def exists(self, path: str) -> bool:
        """Whether a file or a folder has this name."""
        return (self.root / path).exists()

    def read(self, *paths: str) -> dict[str, bytes]:
        """The contents of the paths that are files."""
        return {path: (self.root / path).read_bytes() for path in paths if (self.root / path).is_file()}

    def hashes(self, paths: Iterable[str]) -> dict[str, str]:
        """The MD5s of the existing paths, as in dvc.lock; the smallest first, up to MAX_HASHED_BYTES in total."""
        sizes = {path: _size(self.root / path) for path in paths if (self.root / path).exists()}
        hashed, total = {}, 0
        for path in sorted(sizes, key=lambda path: sizes[path]):
            total += sizes[path]
            if total > MAX_HASHED_BYTES:
                break
            hashed[path] = path_md5(self.root, path) or ""
        return hashed


class Commit:
    """The files of a commit. Links and submodules exist, but have no content."""

    def __init__(self, root: Path, commit: str) -> None:
        self.root, self.commit = root, commit
        self.blobs: dict[str, bytes] = {}  # path -> object with its content
        self.others = set()  # paths of links and submodules
        for line in git.run(root, "ls-tree", "-r", "-z", commit).split(b"\0")[:-1]:
            (mode, _, blob), name = line[: line.index(b"\t")].split(), line[line.index(b"\t") + 1 :]
            if mode.startswith(b"100"):
                self.blobs[os.fsdecode(name)] = blob
            else:
                self.others.add(os.fsdecode(name))

    def glob(self, pattern: str) -> list[str]:
        """The paths that match a pattern, sorted."""
        depth = len(PurePosixPath(pattern).parts)
        paths = [PurePosixPath(path) for path in self.blobs if path.count("/") == depth - 1]
        return sorted(path.as_posix() for path in paths if path.match(pattern))

    def exists(self, path: str) -> bool:
        """Whether a file or a folder has this name."""
        return any(name == path or name.startswith(f"{path}/") for name in [*self.blobs, *self.others])

    def read(self, *paths: str) -> dict[str, bytes]:
        """The contents of the paths that are files."""
        found = [path for path in dict.fromkeys(paths) if path in self.blobs]
        if not found:
            return {}
        if git.is_partial(self.root):  # fetch all missing objects in one request
            nothing = git.run(self.root, "hash-object", "-t", "tree", "--stdin").decode().strip()
            options = ("--shortstat", "--no-ext-diff", "--no-textconv", nothing, self.commit, "--", *found)
            git.run(self.root, "--literal-pathspecs", "diff-tree", *options)
        names = b"".join(self.blobs[path] + b"\n" for path in found)
        output, contents = git.run(self.root, "cat-file", "--batch", stdin=names), {}
        for path in found:  # OBJECT blob SIZE\nCONTENT\n
            header, _, output = output.partition(b"\n")
            size = int(header.split()[2])
            contents[path], output = output[:size], output[size + 1 :]
        return contents

    def hashes(self, paths: Iterable[str]) -> dict[str, str]:
        """The MD5s of the paths that Git keeps, as in dvc.lock."""
        paths = list(paths)
        folders = [path for path in paths if any(name.startswith(f"{path}/") for name in self.blobs)]
        hashed = {path: md5(content) for path, content in self.read(*paths).items()}
        if folders:
            with tempfile.TemporaryDirectory() as scratch:
                prefixes = tuple(f"{path}/" for path in folders)
                names = [name for name in self.blobs if name.startswith(prefixes) or name.endswith(".dvcignore")]
                for name, content in self.read(*names).items():
                    if ".." not in PurePosixPath(name).parts:  # only a forged tree has such names
                        place = Path(scratch, name)
                        place.parent.mkdir(parents=True, exist_ok=True)
                        place.write_bytes(content)
                hashed |= {path: path_md5(Path(scratch), path) or "" for path in folders}
        return hashed


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
