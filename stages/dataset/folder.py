"""A folder of pictures as a data set: which files belong to it, and the class and part of each. Decodes nothing.

There are three layouts: a folder per class; train, validation (or val) and test folders, each with a folder per class;
and a labels.csv beside the files, with the columns file, label and, optionally, split and group. Regression needs a
labels.csv, with numbers in the column label. The contents of the folder determine the layout.
An archive, or a folder that contains only archives, is treated as the folder that unpacking them all would give,
without the single top folder that many archives have.
Names use forward slashes and are sorted by Unicode code point, in whatever order the file system lists them. The name
of a file in an archive begins with the name of the archive.
"""

import csv
import dataclasses
import fnmatch
import io
import math
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stages.common.errors import UserError
from stages.common.text import shown
from stages.dataset import archives
from stages.dataset.options import Task
from stages.dataset.pictures import UnusablePictureError

Part = Literal["train", "validation", "test"]
File = tuple[str, str]  # the path that determines class and part, and the name
Row = tuple[str, str, Part | None, str | None]  # name, label, part, group

PARTS: dict[str, Part] = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
LABELS = "labels.csv"
COLUMNS = ("file", "label", "split", "group")
MAX_CLASSES = 65536
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # of pictures.FORMATS
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
MAX_VALUE = 1e15  # of a numeric label
SHOWN = 10  # mistakes in labels.csv that a message lists
# Left behind by file managers, editors and archivers. .dvcignore lists the same, so DVC ignores them, too.
LEFT_BEHIND = (
    "thumbs.db",
    "desktop.ini",
    "__macosx",
    "__pycache__",
    "*.py[co]",
    "*.tmp",
    "*.orig",
    "*.rej",
    "*~",
    "#*#",
)


@dataclass(frozen=True, slots=True)
class Picture:
    """One file. name: its path below the root. group: from labels.csv."""

    name: str
    label: int  # position in Listing.classes; 0 for regression
    part: Part | None  # as published; None: not published
    group: str | None
    value: float = 0.0  # the label for regression


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder, sorted by name."""

    layout: str  # a description for the log
    classes: tuple[str, ...]  # empty for regression
    pictures: list[Picture]
    others: list[str] = field(default_factory=list)  # files without a label


class Reader:
    """Reads the files of a folder by their names in a Listing. Picklable."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def stamp(self, name: str) -> tuple[int, int]:
        """Size in bytes and modification time in nanoseconds, of its archive if it is in one; zeros if missing."""
        path, _ = self._locate(name)
        try:
            status = path.stat()
        except FileNotFoundError:
            return 0, 0
        return status.st_size, status.st_mtime_ns

    def read(self, name: str) -> bytes:
        """The content of a file. Raises UnusablePictureError (no file, too large) and OSError (no permission, disk)."""
        path, inner = self._locate(name)
        if inner:
            return archives.opened(path).read(inner)
        try:
            status = path.stat()
        except FileNotFoundError:
            if path.is_symlink():
                raise UnusablePictureError(f"a link to {path.readlink()}, which does not exist") from None
            raise
        if not stat.S_ISREG(status.st_mode):
            raise UnusablePictureError("not a file, but a device, pipe or socket")
        if status.st_size > archives.MAX_BYTES:
            raise UnusablePictureError(f"{status.st_size:,} bytes; at most {archives.MAX_BYTES:,} are read")
        return path.read_bytes()

    def _locate(self, name: str) -> tuple[Path, str]:
        """The path of the file and "", or the path of its archive and its name in that."""
        first, _, inner = name.partition("/")
        if inner and archives.is_archive(first):
            if self.root.is_file():
                return self.root, inner
            if (self.root / first).is_file():
                return self.root / first, inner
        return self.root / name, ""


def scan(root: Path, task: Task = "classification") -> Listing:
    """List the pictures below `root`, a folder or an archive, without decoding any.

    Raises UserError, in one line, if it is not a usable data set: missing, empty, with a single class, classes that
    differ only in case, classes that train lacks, circular links, a wrong labels.csv, a damaged or hostile archive;
    for regression also without a labels.csv, or with labels that are not numbers. Raises OSError.
    """
    if not root.exists():
        raise UserError(f"{root}: no such folder; set data.images to the folder of your pictures")
    if root.is_file():
        if not archives.is_archive(root.name):
            raise UserError(
                f"{root}: is neither a folder nor an archive ({', '.join(archives.SUFFIXES)}); see data.images"
            )
        return _of_archives(root, [root], task)
    names = sorted(_files(root))
    if names and all("/" not in name and archives.is_archive(name) for name in names):
        return _of_archives(root, [root / name for name in names], task)
    return _listing(root, [(name, name) for name in names], task)


def _of_archives(root: Path, paths: list[Path], task: Task) -> Listing:
    files = [(name, f"{path.name}/{name}") for path in paths for name in archives.opened(path).names]
    files = [file for file in files if not any(map(ignored, file[0].split("/")))]
    while LABELS not in (tops := {path.partition("/")[0] for path, _ in files}) and len(tops) == 1:
        (top,) = tops
        if top.casefold() in PARTS or any("/" not in path for path, _ in files):
            break
        files = [(path.removeprefix(f"{top}/"), name) for path, name in files]
    listing = _listing(root, sorted(files), task)
    where = "an archive" if len(paths) == 1 else f"{len(paths)} archives"
    return dataclasses.replace(listing, layout=f"{listing.layout}, in {where}")


def _listing(root: Path, files: list[File], task: Task) -> Listing:
    if not files:
        raise UserError(
            f"{root}: contains no pictures; set data.images to a folder with a folder of pictures per class"
        )
    if any(path == LABELS for path, _ in files):
        return _by_labels(root, files, task)
    if task == "regression":
        raise UserError(f"{root}: has no {LABELS}; regression (data.task) needs one, with a number per picture")
    folders = {path.partition("/")[0] for path, _ in files if "/" in path}
    parts = sorted(folder for folder in folders if folder.casefold() in PARTS)
    if parts and len(parts) == len(folders) and "train" in map(str.casefold, parts):
        return _by_parts(root, files, parts)
    if len(parts) > 1:
        others = ", ".join(map(shown, sorted(folders - set(parts))[:3]))
        raise UserError(
            f"{root}: has the folders {', '.join(parts)} beside {others or 'no train'}: neither a folder per class nor "
            "train, validation and test; move or rename the folders that do not belong"
        )
    rows: list[Row] = [(name, path.partition("/")[0], None, None) for path, name in files if "/" in path]
    return _checked(root, "a folder per class", rows, [name for path, name in files if "/" not in path])


def _by_parts(root: Path, files: list[File], folders: list[str]) -> Listing:
    counts = Counter(PARTS[folder.casefold()] for folder in folders)
    if twice := [part for part, count in counts.items() if count > 1]:
        same = [folder for folder in folders if PARTS[folder.casefold()] in twice]
        raise UserError(f"{root}: {' and '.join(same)} are the same part; keep one")
    rows: list[Row] = []
    others = []
    for path, name in files:
        steps = path.split("/", 2)
        if len(steps) == 3:
            rows.append((name, steps[1], PARTS[steps[0].casefold()], None))
        else:
            others.append(name)
    present = [part for part in ("train", "validation", "test") if part in counts]
    return _checked(root, f"{', '.join(present)} folders with a folder per class", rows, others)


def _by_labels(root: Path, files: list[File], task: Task) -> Listing:
    tables = [name for path, name in files if path == LABELS]
    names = {path: name for path, name in files if path != LABELS}
    if len(tables) > 1 or len(names) < len(files) - 1:
        raise UserError(f"{root}: two archives contain the same file, and one has a {LABELS}; merge the archives")
    where = f"{root}/{LABELS}" if tables[0] == LABELS else f"{root.parent if root.is_file() else root}/{tables[0]}"
    rows: list[Row] = []
    mistakes: list[str] = []
    listed: set[str] = set()
    for line, row in _table(where, Reader(root).read(tables[0])):
        path, label, split = row["file"], row["label"], row.get("split") or ""
        if path not in names:
            mistakes.append(f"{where}:{line}: {shown(path)}: no such file beside it")
        elif path in listed:
            mistakes.append(f"{where}:{line}: {shown(path)}: is listed twice")
        elif not label:
            mistakes.append(f"{where}:{line}: {shown(path)}: has no label")
        elif task == "regression" and (why := _not_a_value(label)):
            mistakes.append(f"{where}:{line}: {shown(path)}: label is {shown(label)}, {why}")
        elif split and split.casefold() not in PARTS:
            mistakes.append(f"{where}:{line}: split is {shown(split)}; allowed: {', '.join(PARTS)}, or nothing")
        else:
            rows.append((names[path], label, PARTS[split.casefold()] if split else None, row.get("group") or None))
        listed.add(path)
    if mistakes:
        more = len(mistakes) - SHOWN
        raise UserError("\n".join(mistakes[:SHOWN]) + (f"\n{where}: {more} more such lines" if more > 0 else ""))
    others = [name for path, name in names.items() if path not in listed]
    if task == "regression":
        values = [Picture(name, 0, part, group, float(label)) for name, label, part, group in rows]
        return Listing(f"{LABELS} with numbers", (), sorted(values, key=lambda picture: picture.name), others)
    return _checked(root, LABELS, rows, others)


def _not_a_value(label: str) -> str:
    """Why a label cannot be used for regression; empty if it can."""
    text = label.strip()
    if not NUMBER.fullmatch(text):
        return "which is not a number (3, -0.5, 1e-3); for names, set data.task: classification"
    return (
        ""
        if math.isfinite(float(text)) and abs(float(text)) < MAX_VALUE
        else f"which is not below {MAX_VALUE:g} in size"
    )


def _table(where: str, content: bytes) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of labels.csv, each with the number of its last line. Raises UserError."""
    try:
        text = content.decode("utf-8-sig")  # Excel writes a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start}); save it as CSV in UTF-8") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = list(reader.fieldnames or [])
        if not {"file", "label"} <= set(columns) <= set(COLUMNS) or len(set(columns)) < len(columns):
            names = ", ".join(map(shown, columns)) or "none"
            raise UserError(f"{where}: its columns are {names}; expected file, label and, optionally, split and group")
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{where}:{reader.line_num}: the number of columns differs from the first line")
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{where}:{reader.line_num}: not valid CSV: {error}") from None


def _checked(root: Path, layout: str, rows: list[Row], others: list[str]) -> Listing:
    """The listing, once its classes are checked. The classes are those of the training part. Raises UserError."""
    pictures = [name for name in others if name.lower().endswith(SUFFIXES)]
    if pictures and layout != LABELS:
        raise UserError(
            f"{root}: {shown(pictures[0])} is not in a class folder"
            + (f", nor are {len(pictures) - 1} other pictures" if len(pictures) > 1 else "")
            + "; move it into the folder of its class, or remove it"
        )
    classes = sorted({label for _, label, part, _ in rows if part in ("train", None)})
    for place in ("validation", "test"):
        strange = {label for _, label, part, _ in rows if part == place} - set(classes)
        if strange:
            raise UserError(f"{root}: {place} has the class {shown(min(strange))}, which train lacks")
    if len(classes) < 2:
        count = f"one class, {shown(classes[0])}" if classes else "no class"
        raise UserError(f"{root}: has {count}; at least two are needed, each a folder of pictures (or in {LABELS})")
    if len(classes) > MAX_CLASSES:
        raise UserError(f"{root}: has {len(classes):,} classes; at most {MAX_CLASSES:,} are possible")
    alike: dict[str, str] = {}
    for name in classes:
        first = alike.setdefault(unicodedata.normalize("NFC", name).strip().casefold(), name)
        if first != name:
            raise UserError(
                f"{root}: the classes {first!r} and {name!r} differ only in case, blanks or encoding; rename one"
            )
    position = {name: label for label, name in enumerate(classes)}
    listed = [Picture(name, position[label], part, group) for name, label, part, group in rows]
    return Listing(layout, tuple(classes), sorted(listed, key=lambda picture: picture.name), others)


def _files(root: Path) -> Iterator[str]:
    """The names of all files below a folder, without ignored ones. Empty folders do not count, as in DVC and Git."""
    open_folders: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while open_folders:
        place, above = open_folders.pop()
        status = (root / place).stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            raise UserError(f"{root / place}: a link to a folder that contains it; remove the link")
        with os.scandir(root / place) as entries:
            for entry in entries:
                if ignored(entry.name):
                    continue
                name = f"{place}{entry.name}"
                if not _is_text(entry.name):
                    raise UserError(f"{root / place}: the name {os.fsencode(entry.name)!r} is not UTF-8; rename it")
                if entry.is_dir():
                    open_folders.append((f"{name}/", (*above, identity)))
                else:
                    yield name


def ignored(name: str) -> bool:
    """Whether a file or folder of this name is ignored: hidden, or left behind by a program."""
    return name.startswith(".") or any(fnmatch.fnmatchcase(name.casefold(), pattern) for pattern in LEFT_BEHIND)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
