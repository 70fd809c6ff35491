"""Read single files of .zip, .tar and .tar.gz archives, without unpacking anything to disk.

A gzipped archive has no index. So the first use in each process decompresses all of it once, and saves the state of the
decompressor at intervals, from where it can continue later. A .zip or .tar needs no such pass.
"""

import io
import os
import posixpath
import stat
import tarfile
import zipfile
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING

from stages.common.errors import UserError, one_line
from stages.common.text import shown
from stages.dataset.pictures import UnusablePictureError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_BYTES = 2**30  # of one file: much more than any picture that is small enough to decode
MAX_FILES = 20_000_000
# An archive that expands to more than this, and to more than MAX_RATIO times its own size, is refused as a bomb.
FREE_BYTES, MAX_RATIO = 2**27, 200
STATE_BYTES = 2**20  # compressed bytes between two saved states of the decompressor, or more in a large archive
MAX_STATES = 2048  # of 40 kB each
CHUNK = 2**16
MAX_LINKS = 8  # links to links
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)


def is_archive(name: str) -> bool:
    """Whether a file of this name is read as an archive."""
    return name.lower().endswith(SUFFIXES)


class Archive:
    """An archive of files. names: their paths in it."""

    names: list[str]

    def read(self, name: str) -> bytes:
        """The content of a file. Raises UnusablePictureError."""
        raise NotImplementedError


def opened(path: Path) -> Archive:
    """Open an archive, once per process. Raises UserError if it is damaged, or contains anything hostile."""
    status = path.stat()
    return _opened(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _opened(path: Path, size: int, changed_ns: int) -> Archive:
    """size, changed_ns: a changed archive is opened again."""
    with _readable(path):
        archive = Zip(path, size) if path.name.lower().endswith(".zip") else Tar(path, size)
    if len(archive.names) > MAX_FILES:
        raise UserError(f"{path}: contains {len(archive.names):,} files; at most {MAX_FILES:,} are allowed")
    if len(set(archive.names)) < len(archive.names):
        (twice, _), *_ = Counter(archive.names).most_common(1)
        raise UserError(f"{path}: contains {shown(twice)} twice; create the archive again")
    return archive


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        raise UserError(
            f"{path}: cannot be read as an archive ({one_line(error)}); truncated? Create or fetch it again"
        ) from None


def _checked(path: Path, name: str) -> str:
    """The normalized name of a file in an archive. Raises UserError if it could lead out of the archive."""
    steps = name.split("/")
    if name.startswith("/") or ".." in steps or "\\" in name or "\0" in name:
        raise UserError(f"{path}: contains {shown(name)}, a path that leads out of it; create it with relative paths")
    if not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name):
        raise UserError(
            f"{path}: the name {name.encode(errors='surrogateescape')!r} is not UTF-8; create the archive again"
        )
    return posixpath.normpath(name)


def _check_expansion(path: Path, size: int, expanded: int) -> None:
    if expanded > FREE_BYTES and expanded > MAX_RATIO * size:
        raise UserError(f"{path}: {size:,} bytes that expand to {expanded:,} or more: refused as a bomb")


class Zip(Archive):
    """A .zip archive."""

    def __init__(self, path: Path, size: int) -> None:
        self._file = zipfile.ZipFile(path)
        self._members = {}
        self.names = []
        for member in self._file.infolist():
            if member.is_dir():
                continue
            if member.flag_bits & 1:
                raise UserError(f"{path}: is encrypted; unpack it, or create it without a password")
            name = _checked(path, member.filename)
            self._members[name] = member
            self.names.append(name)
        _check_expansion(path, size, sum(member.file_size for member in self._members.values()))

    def read(self, name: str) -> bytes:
        member = self._members[name]
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UnusablePictureError("a link, which is not followed in a .zip")
        try:
            with self._file.open(member) as file:
                return _bounded(file.read(MAX_BYTES + 1))
        except DAMAGED as error:
            raise UnusablePictureError(f"damaged in its archive ({error})") from None


class Tar(Archive):
    """A .tar archive, gzipped or not. Links are followed inside the archive, but never out of it."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        plain = path.name.lower().endswith(".tar")
        self._gunzipped = None if plain else io.BufferedReader(Gunzipped(path, size), CHUNK)
        self._lock = Lock()
        self._places: dict[str, tuple[int, int]] = {}  # of a file: offset and size in bytes
        self._links: dict[str, str] = {}
        self.names = []
        with self._content() as content, tarfile.open(fileobj=content, mode="r:") as archive:
            for member in archive:
                vars(archive)["members"].clear()  # of a kilobyte each
                if member.isdir():
                    continue
                name = _checked(path, member.name)
                self.names.append(name)
                if member.issym():
                    self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                elif member.islnk():
                    self._links[name] = posixpath.normpath(member.linkname)
                elif member.isreg() and not member.issparse():
                    self._places[name] = (member.offset_data, member.size)

    def read(self, name: str) -> bytes:
        target = name
        for _ in range(MAX_LINKS):
            target = self._links.get(target, target)
        if target not in self._places:
            what = f"a link to {shown(target)}, which the archive lacks" if target != name else "not a plain file"
            raise UnusablePictureError(what)
        offset, size = self._places[target]
        if size > MAX_BYTES:
            raise UnusablePictureError(f"{size:,} bytes; at most {MAX_BYTES:,} are read")
        try:
            with self._content() as file:
                file.seek(offset)
                content = file.read(size)
        except DAMAGED as error:
            raise UnusablePictureError(f"damaged in its archive ({error})") from None
        if len(content) < size:
            raise UnusablePictureError(f"damaged in its archive (ends after {len(content):,} of {size:,} bytes)")
        return content

    @contextmanager
    def _content(self) -> Iterator[IO[bytes]]:
        """The uncompressed archive: a file that is opened for each use, or the decompressor, which keeps its states.

        All threads share the decompressor, and so its position: only one at a time seeks and reads.
        """
        if self._gunzipped:
            with self._lock:
                yield self._gunzipped
        else:
            with self._path.open("rb") as file:
                yield file


def _bounded(content: bytes) -> bytes:
    if len(content) > MAX_BYTES:
        raise UnusablePictureError(f"more than {MAX_BYTES:,} bytes; at most so many are read")
    return content


class Gunzipped(io.RawIOBase):
    """The content of a gzip file, with seek: decompression starts at the last saved state before the position.

    Raises zlib.error and EOFError for a damaged or truncated file.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._spacing = max(STATE_BYTES, size // MAX_STATES)
        self._gunzip = zlib.decompressobj(wbits=31)  # 31: with gzip's header and check sum
        self._rest = b""  # read from the source, not decompressed yet
        self._position = self._source = 0  # positions in the content and in the file
        self._states = [(0, 0, b"", self._gunzip.copy())]  # the two positions, rest, decompressor

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        target = offset + self._position if whence == os.SEEK_CUR else offset
        if whence == os.SEEK_END:
            raise io.UnsupportedOperation("the length is unknown before the end")
        position, source, rest, gunzip = self._states[bisect_right(self._states, target, key=itemgetter(0)) - 1]
        if target < self._position or position > self._position:
            self._position, self._source, self._rest, self._gunzip = position, source, rest, gunzip.copy()
        while self._position < target and self._next(min(CHUNK, target - self._position)):
            pass
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        with memoryview(buffer).cast("B") as view:
            content = self._next(len(view))
            view[: len(content)] = content
        return len(content)

    def _next(self, count: int) -> bytes:
        """The next bytes, at most `count`; none at the end."""
        content = b""
        while not content:
            if self._gunzip.eof:  # several gzip files may follow each other
                self._rest = (self._gunzip.unused_data or self._chunk()).lstrip(b"\0")
                if not self._rest:
                    return b""
                self._gunzip = zlib.decompressobj(wbits=31)
            self._save_state()
            self._rest = self._rest or self._chunk()
            ended = not self._rest
            content = self._gunzip.decompress(self._rest, count)
            self._rest = self._gunzip.unconsumed_tail
            if ended and not content and not self._gunzip.eof:
                raise EOFError("ends before its end mark")
        self._position += len(content)
        _check_expansion(self._path, self._size, self._position)
        return content

    def _save_state(self) -> None:
        if self._source - self._states[-1][1] >= self._spacing:
            self._states.append((self._position, self._source, self._rest, self._gunzip.copy()))

    def _chunk(self) -> bytes:
        with self._path.open("rb") as file:  # not kept open: nothing would close it
            file.seek(self._source)
            chunk = file.read(CHUNK)
        self._source += len(chunk)
        return chunk
