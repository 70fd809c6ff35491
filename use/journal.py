"""The rows of an output that is being written, on the disk as they come, so that a killed run goes on where it was."""

import fcntl
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from stages.common.errors import NO_LOCKS, UserError

Row = dict[str, Any]


class Entry(NamedTuple):
    """A row, and the stamp of its picture (sources.stamp) when it was read."""

    row: Row
    stamp: list[int] | None


class Journal:
    """OUT.partial, beside OUT: a line that says what the rows depend on, then one JSON document per entry.

    A line that was cut off by a kill or a crash is dropped, and all after it. Raises UserError if another run is
    writing it.
    """

    def __init__(self, out: Path, settings: Mapping[str, object]) -> None:
        """settings: what the rows depend on; rows that were written with others are dropped."""
        self.path = out.with_name(f"{out.name}.partial")
        self.first = _line(dict(settings))
        self.file = self.path.open("a+b")
        self.rows = 0

    def __enter__(self) -> Self:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                self.file.close()
                raise UserError(
                    f"{self.path}: another run is writing it; wait for that one, or give another --out"
                ) from None
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
        self.file.close()

    def skip(self, names: Iterator[str], stamp: Callable[[str], list[int] | None]) -> Iterator[str]:
        """The names after those of the rows that are here. Raises UserError if these are of other pictures.

        From the first picture on whose stamp has changed, the rows are dropped, and its name comes again. stamp: of a
        picture as it is now.
        """
        for number, (row, before) in enumerate(self._entries()):
            name = next(names, None)
            if name is None or name != row["file"]:
                raise UserError(
                    f"{self.path}: its rows, of a run that was stopped, are of other pictures than those asked for now "
                    f"({row['file']} and not {name}); delete it, or give another --out"
                )
            if stamp(name) != before:
                self._keep(number)
                return itertools.chain([name], names)
        return names

    def append(self, entries: Iterable[Entry]) -> None:
        """Add entries. They survive a kill of this process at any time after."""
        lines = [_line(entry._asdict()) for entry in entries]
        self._append(b"".join(lines))
        self.rows += len(lines)

    def read(self) -> Iterator[Row]:
        """The rows from the first one on."""
        return (entry.row for entry in self._entries())

    def _entries(self) -> Iterator[Entry]:
        with self.path.open("rb") as file:
            file.readline()
            for _ in range(self.rows):
                yield Entry(**json.loads(file.readline()))

    def _keep(self, rows: int) -> None:
        """Drop all rows but the first ones."""
        self.file.seek(0)
        for _ in range(1 + rows):
            self.file.readline()
        self.file.truncate(self.file.tell())
        self.rows = rows

    def remove(self) -> None:
        """Delete it: the output has all of its rows."""
        self.path.unlink()

    def _append(self, content: bytes) -> None:
        self.file.write(content)
        self.file.flush()


def _line(document: Row) -> bytes:
    return json.dumps(document, sort_keys=True).encode() + b"\n"  # ASCII: names that are no UTF-8 as well


def _entry(line: bytes) -> Row | None:
    """The entry of a line; None if it is not a whole one."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:  # a crash of the system may leave zeros
        return None
    return entry if isinstance(entry, dict) and entry.keys() == set(Entry._fields) else None
