"""The rows of an output that is being written, on the disk as they come, so that a killed run goes on where it was."""

import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stages.common.errors import NO_LOCKS, UserError

Row = dict[str, Any]


class Journal:
    """OUT.partial, beside OUT: a line that says what the rows depend on, then one JSON document per row.

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
            while _row(line := self.file.readline()) is not None:
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

    def skip(self, names: Iterator[str]) -> Iterator[str]:
        """The names after those of the rows that are here. Raises UserError if these are of other pictures."""
        for row in self.read():
            name = next(names, None)
            if name != row["file"]:
                raise UserError(
                    f"{self.path}: its rows, of a run that was stopped, are of other pictures than those asked for now "
                    f"({row['file']} and not {name}); delete it, or give another --out"
                )
        return names

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows. They survive a kill of this process at any time after."""
        lines = [_line(row) for row in rows]
        self._append(b"".join(lines))
        self.rows += len(lines)

    def read(self) -> Iterator[Row]:
        """The rows from the first one on."""
        with self.path.open("rb") as file:
            file.readline()
            for _ in range(self.rows):
                yield json.loads(file.readline())

    def remove(self) -> None:
        """Delete it: the output has all of its rows."""
        self.path.unlink()

    def _append(self, content: bytes) -> None:
        self.file.write(content)
        self.file.flush()


def _line(document: Row) -> bytes:
    return json.dumps(document, sort_keys=True).encode() + b"\n"  # ASCII: names that are no UTF-8 as well


def _row(line: bytes) -> Row | None:
    """The row of a line; None if it is not a whole one."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:  # a crash of the system may leave zeros
        return None
    return row if isinstance(row, dict) else None
