"""The first pass over your own pictures: read every file once, for its digest and what its header says.

Nothing is decoded: the second pass decodes each file once. It compares the digest of what it reads with the one from
here, which shows whether a picture has changed in between, and it finds pictures with damage behind their headers.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

import PIL

from stages.common import inputs, paths
from stages.common.errors import UserError
from stages.common.text import shown
from stages.dataset import archives, folder, pictures
from stages.dataset.folder import Listing, Reader
from stages.dataset.pictures import Facts, UnusablePictureError, facts
from stages.preprocess import workers

STATE = paths.RUNS / "survey.jsonl"  # what a killed survey resumes from
CODE = (Path(__file__), Path(archives.__file__), Path(folder.__file__), Path(pictures.__file__))
FLUSH_PICTURES = 1000
FEW_PICTURES = 4000  # this process reads so many faster than worker processes start
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")  # modes without colour


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What the first pass found in a file."""

    digest: bytes  # SHA-256 of the content; empty if the file could not be read
    facts: Facts | None  # None: the picture is unusable
    reason: str  # why it is unusable; empty if the header is fine


def survey(listing: Listing, reader: Reader, processes: int, state_file: Path = STATE) -> list[Surveyed]:
    """Read every picture of a listing. The results are in the listing's order, for any number of processes.

    Resumes a survey of the same code that was killed: files with the recorded size and modification time are not read
    again.
    Raises OSError (no permission, a failing disk).
    """
    names = [picture.name for picture in listing.pictures]
    stamps = [reader.stamp(name) for name in names]
    first_line = f"{code_digest()}\n"
    inputs.check()  # before the digest of edited code marks results of this code
    before = list(_recorded(names, stamps, state_file, first_line))
    if before:
        print(f"resuming after {len(before):,} of {len(names):,} pictures that were read before", flush=True)
    state_file.parent.mkdir(exist_ok=True)
    with state_file.open("w", encoding="utf-8") as state:
        state.write(first_line)
        state.writelines(map(_line, names, stamps, before))
        rest = names[len(before) :]
        results = workers.in_order(partial(_read, reader), rest, processes if len(rest) > FEW_PICTURES else 1)
        surveyed = list(before)
        for result in workers.progress(results, "reading", len(names), len(before)):
            state.write(_line(names[len(surveyed)], stamps[len(surveyed)], result))
            surveyed.append(result)
            if len(surveyed) % FLUSH_PICTURES == 0:
                state.flush()
    return surveyed


def code_digest() -> str:
    """A digest of everything that determines what is found in a file, except the file itself."""
    digest = hashlib.sha256(PIL.__version__.encode())
    for path in CODE:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def forget(state_file: Path = STATE) -> None:
    """Delete what a killed survey would resume from: after success, or if a picture has changed."""
    state_file.unlink(missing_ok=True)


class ChangedError(UserError):
    """A picture differs from what the first pass read, so the results of that pass cannot be used."""


def changed(name: str, how: str = "changed") -> ChangedError:
    """The error for a picture that differs from what the first pass read."""
    return ChangedError(f"{shown(name)}: {how} while the pictures were read; let nothing write to them, and run again")


def check_unchanged(listing: Listing, listing_now: Listing, reader: Reader, state_file: Path = STATE) -> None:
    """Raise ChangedError if a picture was added, removed or changed since it was surveyed, or a class renamed.

    DVC hashes the folder after the stage, and would record the results with what it contains then.
    """
    if listing.classes != listing_now.classes:
        name = min(set(listing.classes) ^ set(listing_now.classes))
        raise changed(name, "a class that was added, removed or renamed")
    for before, now in zip_longest(listing.pictures, listing_now.pictures):
        if before != now:
            name = min(picture.name for picture in (before, now) if picture)
            raise changed(name, "added, removed, or given another label")
    names = [picture.name for picture in listing.pictures]
    same = sum(1 for _ in _recorded(names, map(reader.stamp, names), state_file))
    if same < len(names):
        raise changed(names[same])


def copies(surveyed: Sequence[Surveyed]) -> Iterator[list[int]]:
    """For each content of two files or more, the positions of these files."""
    first: dict[bytes, int] = {}
    groups: dict[int, list[int]] = {}
    for position, picture in enumerate(surveyed):
        if picture.digest and (other := first.setdefault(picture.digest, position)) != position:
            groups.setdefault(other, [other]).append(position)
    yield from (groups[position] for position in sorted(groups))


def is_grey(surveyed: Iterable[Surveyed]) -> bool:
    """Whether every usable picture is stored as grey, for `channels: auto`."""
    return all(picture.facts is None or picture.facts.mode in GREY for picture in surveyed)


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


def _line(name: str, stamp: Stamp, picture: Surveyed) -> str:
    header = picture.facts and [getattr(picture.facts, key) for key in Facts.__slots__]
    return json.dumps([name, *stamp, picture.digest.hex(), header, picture.reason]) + "\n"


def _recorded(
    names: Iterable[str], stamps: Iterable[Stamp], state_file: Path, first_line: str | None = None
) -> Iterator[Surveyed]:
    """What an earlier survey recorded, up to the first file that is missing there or has changed since.

    first_line: nothing is read from a state that begins with another one. None: the state is that of this process.
    """
    with suppress(FileNotFoundError, ValueError, TypeError), state_file.open(encoding="utf-8") as state:
        if state.readline() != first_line and first_line is not None:
            return
        for name, stamp, line in zip(names, stamps, state, strict=False):
            # A killed survey may leave half a line: ValueError.
            recorded_name, size, changed_ns, digest, header, reason = json.loads(line)
            if (recorded_name, (size, changed_ns)) != (name, stamp):
                return
            yield Surveyed(bytes.fromhex(digest), Facts(*header) if header else None, reason)
