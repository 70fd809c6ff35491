"""The rows of an unfinished output, on disk, so that a killed run can resume."""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from stages.common import files, locks
from stages.common.errors import UserError

Row = dict[str, Any]


class Entry(NamedTuple):
    """A row, and the stamp that its picture had (sources.stamp)."""

    row: Row
    stamp: list[int] | None


class Journal:
    """The file OUT.partial, beside OUT: a line with the settings, then one JSON document per entry.

    An incomplete line, from a kill or a crash, is dropped with all lines after it. Raises UserError if another run
    is writing to the file.
    """

    def __init__(self, out: Path, settings: Mapping[str, object]) -> None:
        """settings: what the rows depend on. Rows that were written with other settings are dropped."""
        self.path = out.with_name(f"{out.name}.partial")
        self.first = _line(dict(settings))
        self.file = self.path.open("a+b")
        self.rows = 0

    def __enter__(self) -> Self:
        if not locks.try_lock(self.file.fileno()):
            self.file.close()
            raise UserError(f"{self.path}: another run is writing to it; wait for that run, or give another --out")
        if not self._is_at_its_path():  # the other run finished between `open` and `flock`, and removed it
            self.file.close()
            raise UserError(f"{self.path}: another run has just finished; run the command again")
        end = 0
        self.file.seek(0)
        if self.file.readline() == self.first:
            end = self.file.tell()
            while _entry(line := self.file.readline()) is not None:
                end += len(line)
                self.rows += 1
        self.file.truncate(end)
        if not end:
            self._append(self.first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError) if kind else nullcontext():  # a full disk also fails here, after the first error
            self.file.close()

    def _is_at_its_path(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def skip(self, names: Iterator[str], stamp: Callable[[str], list[int] | None]) -> Iterator[str]:
        """The names that have no row yet. Raises UserError if the rows are those of other pictures.

        Drops the rows from the first picture whose stamp has changed, and yields its name again. stamp: returns the
        current stamp of a picture.
        """
        for number, (row, before) in enumerate(self._entries()):
            name = next(names, None)
            if name is None or name != row["file"]:
                raise UserError(
                    f"{self.path}: a stopped run predicted other pictures ({row['file']} instead of {name}); delete "
                    "this file, or give another --out"
                )
            if stamp(name) != before:
                self._drop_after(number)
                return itertools.chain([name], names)
        return names

    def append(self, entries: Iterable[Entry]) -> None:
        """Add entries. They survive if this process is killed afterwards."""
        lines = [_line(entry._asdict()) for entry in entries]
        self._append(b"".join(lines))
        self.rows += len(lines)

    def read(self) -> Iterator[Row]:
        """All rows."""
        return (entry.row for entry in self._entries())

    def _entries(self) -> Iterator[Entry]:
        with self.path.open("rb") as file:
            file.readline()
            for _ in range(self.rows):
                yield Entry(**json.loads(file.readline()))

    def _drop_after(self, rows: int) -> None:
        """Drop all rows after the first `rows`."""
        self.file.seek(0)
        for _ in range(1 + rows):
            self.file.readline()
        self.file.truncate(self.file.tell())
        self.rows = rows

    def remove(self) -> None:
        """Delete the file. The output now contains its rows."""
        self.path.unlink()

    def _append(self, content: bytes) -> None:
        with files.named_errors(self.path):
            self.file.write(content)
            self.file.flush()


def _line(document: Row) -> bytes:
    return json.dumps(document, sort_keys=True).encode() + b"\n"  # ASCII, so names that are not UTF-8 can be written


def _entry(line: bytes) -> Row | None:
    """The entry in a line; None if the line is incomplete."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:  # a crash of the system can leave null bytes
        return None
    return entry if isinstance(entry, dict) and entry.keys() == set(Entry._fields) else None
