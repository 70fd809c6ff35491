"""The first pass over your own pictures: read every file once, for its digest and what its header says.

Nothing is decoded: the second pass does that, once. It must compare the digest of what it reads with the one here, so
that a picture that changed in between is noticed, and it finds the pictures that are damaged behind their headers.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stages.common import paths
from stages.common.errors import UserError
from stages.common.text import shown
from stages.dataset.folder import Listing, Reader
from stages.dataset.pictures import Facts, UnusablePictureError, facts
from stages.preprocess import workers

STATE = paths.RUNS / "survey.jsonl"  # what a killed survey goes on from
FLUSH_PICTURES = 1000
FEW_PICTURES = 4000  # that this process reads in less time than others take to start
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")  # modes without colour


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What the first pass found in a file."""

    digest: bytes  # SHA-256 of the content; empty if the file could not be read at all
    facts: Facts | None  # None: it cannot be used
    reason: str  # why not; empty if it can, as far as its header shows


def survey(listing: Listing, reader: Reader, processes: int, state_file: Path = STATE) -> list[Surveyed]:
    """Read every picture of a listing; the results are in its order, whatever the number of processes.

    A survey that was killed goes on where it was: files whose size and time of change are as noted are not read again.
    Raises OSError (no permission, a failing disk).
    """
    names = [picture.name for picture in listing.pictures]
    stamps = [reader.stamp(name) for name in names]
    before = list(_noted(names, stamps, state_file))
    if before:
        print(f"going on after {len(before):,} of {len(names):,} pictures that were read before", flush=True)
    state_file.parent.mkdir(exist_ok=True)
    with state_file.open("w", encoding="utf-8") as state:
        state.writelines(map(_line, names, stamps, before))
        rest = names[len(before) :]
        results = workers.in_order(partial(_read, reader), rest, processes if len(rest) > FEW_PICTURES else 1)
        found = list(before)
        for result in workers.progress(results, "reading", len(names), len(before)):
            state.write(_line(names[len(found)], stamps[len(found)], result))
            found.append(result)
            if len(found) % FLUSH_PICTURES == 0:
                state.flush()
    return found


def forget(state_file: Path = STATE) -> None:
    """Delete what a killed survey would go on from: after the stage has succeeded, or found a picture changed."""
    state_file.unlink(missing_ok=True)


class ChangedError(UserError):
    """A picture differs from what the first pass read: what that noted cannot be used."""


def changed(name: str) -> ChangedError:
    """What the second pass raises for a picture that differs from what the first one read."""
    return ChangedError(f"{shown(name)}: changed while it was read; let nothing write to the pictures, and run again")


def is_grey(found: Iterable[Surveyed]) -> bool:
    """Whether every usable picture is stored as grey: what `channels: auto` goes by."""
    return all(each.facts is None or each.facts.mode in GREY for each in found)


def _read(reader: Reader, names: list[str]) -> list[Surveyed]:
    results = []
    for name in names:
        digest = b""
        try:
            content = reader.read(name)
            digest = hashlib.sha256(content).digest()
            results.append(Surveyed(digest, facts(content), ""))
        except UnusablePictureError as error:
            results.append(Surveyed(digest, None, error.reason))
    return results


Stamp = tuple[int, int]  # size in bytes, time of the last change in nanoseconds


def _line(name: str, stamp: Stamp, each: Surveyed) -> str:
    header = each.facts and [getattr(each.facts, key) for key in Facts.__slots__]
    return json.dumps([name, *stamp, each.digest.hex(), header, each.reason]) + "\n"


def _noted(names: list[str], stamps: list[Stamp], state_file: Path) -> Iterator[Surveyed]:
    """What an earlier survey noted of the first names, as far as it goes and the files are the same."""
    with suppress(FileNotFoundError, ValueError, TypeError), state_file.open(encoding="utf-8") as state:
        for name, stamp, line in zip(names, stamps, state, strict=False):
            noted, size, changed_ns, digest, header, reason = json.loads(line)  # ValueError where it was cut off
            if (noted, (size, changed_ns)) != (name, stamp):
                return
            yield Surveyed(bytes.fromhex(digest), Facts(*header) if header else None, reason)
