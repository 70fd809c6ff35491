"""The second pass over your own pictures: decode each once, on all cores, into the shards of its part.

Which pictures a shard contains is known before any of them is decoded. So worker processes write each picture directly
to its place in the file, and memory does not grow with the number of pictures. The shards grow in runs/pack. The name
of each is a digest of everything that determines its bytes, and a note beside it records the progress. So a run that
was killed, and a run with some other pictures, reuse the shards that are still valid.
"""

import hashlib
import itertools
import json
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL

from stages.common import files, inputs, paths
from stages.common.preparation import Preparation
from stages.dataset import folder, packed, pictures
from stages.dataset.packed import Row
from stages.preprocess import audit, decoding, normalization, workers
from stages.preprocess.audit import Fingerprints
from stages.preprocess.decoding import Task
from stages.preprocess.machines import Machines
from stages.preprocess.normalization import Sums

WORK = paths.RUNS / "pack"
CHECKPOINT_SECONDS = 5.0  # a killed run loses at most this much work
CODE = (Path(__file__), Path(decoding.__file__), Path(packed.__file__), Path(pictures.__file__))
BLOCK_BYTES = 2**19  # of images at a time: few enough to stay in the processor's cache, also as float64
FEW_PICTURES, FEW_SHARDS = 200, 4  # this process handles so many faster than worker processes start


@dataclass
class Shard:
    """A shard that grows in runs/pack."""

    path: Path
    names: Sequence[str]  # of the pictures, in order
    digests: Sequence[bytes]  # of their content
    labels: packed.Labels
    done: int = 0  # the first so many pictures are decoded, or known to be unusable
    unusable: dict[int, str] = field(default_factory=dict)  # place in the shard -> why

    @property
    def note(self) -> Path:
        """The file that records the progress."""
        return self.path.with_suffix(".json")

    @property
    def compact(self) -> Path:
        """The copy without the places of unusable pictures."""
        return self.path.with_suffix(".compact")

    def begin(self, image_shape: packed.Shape) -> None:
        """Resume from the note, or create the file, with room for all images."""
        with suppress(FileNotFoundError, ValueError):
            note = json.loads(self.note.read_bytes())
            self.done, self.unusable = note["done"], {int(place): why for place, why in note["unusable"].items()}
            return
        start = packed.header(len(self.names), image_shape, self.labels.dtype) + packed.little_endian(self.labels)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with files.named_errors(self.path), self.path.open("wb") as file:
            file.write(start)
            file.truncate(len(start) + len(self.names) * int(np.prod(image_shape)))

    def save(self) -> None:
        """Record the progress, once the images are on the disk."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        files.write_text(self.note, json.dumps({"done": self.done, "unusable": self.unusable}))


@dataclass(frozen=True)
class Packed:
    """What was written."""

    sums: Sums  # of the training part, for the normalization
    fingerprints: dict[Path, Fingerprints]  # of each part
    unusable: dict[str, str]  # name of a picture that cannot be decoded -> why


def pack(
    reader: folder.Reader,
    preparation: Preparation,
    parts: Mapping[Path, tuple[Sequence[str], Sequence[bytes], packed.Labels]],
    training: Path,
    processes: int,
    work: Path = WORK,
    machines: Machines | None = None,
) -> Packed:
    """Decode all parts and write each to its folder, without the pictures that cannot be decoded.

    parts: folder -> names, digests and labels of its pictures. training: the folder of the training part.
    work: the folder in which the shards grow. machines: other machines that decode, too.
    Raises UserError if a picture has changed since it was surveyed, OSError (no permission, a full disk).
    """
    identity, used = code_digest(preparation), Counter[str]()
    inputs.check()  # before the digest of edited code names shards of this code
    shards = {
        target: list(plan(*content, preparation.shape, identity, used, work)) for target, content in parts.items()
    }
    all_shards = [shard for shards_of_part in shards.values() for shard in shards_of_part]
    tidy({shard.path.stem for shard in all_shards}, work)
    for shard in all_shards:
        shard.begin(preparation.shape)
    decode(reader, preparation, all_shards, processes, machines)
    tasks = [
        Finish(shard.path, shard.compact, shard.labels, sorted(shard.unusable), preparation.shape, target == training)
        for target in shards
        for shard in shards[target]
    ]
    finished = workers.in_order(_finish, tasks, processes if len(tasks) > FEW_SHARDS else 1, batch=1)
    sums = np.zeros((3, preparation.shape[0]), dtype=np.int64)
    fingerprints = {}
    for target, shards_of_part in shards.items():
        rows: list[Row] = []
        seen = []
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for shard, result in zip(shards_of_part, finished, strict=False):
            if result.row:
                _link(shard.compact if shard.unusable else shard.path, target / packed.shard_name(len(rows)))
                rows.append(result.row)
            sums += result.sums
            seen.append(result.fingerprints)
        packed.write_index(target, rows)
        fingerprints[target] = Fingerprints.joined(seen)
    return Packed(
        sums, fingerprints, {shard.names[place]: why for shard in all_shards for place, why in shard.unusable.items()}
    )


def forget(work: Path = WORK) -> None:
    """Delete what a killed run would resume from: after the stage has succeeded."""
    shutil.rmtree(work, ignore_errors=True)


def tidy(needed: set[str], work: Path) -> None:
    """Delete the files of shards that no part needs any more. needed: names of files without suffix."""
    for path in work.glob("*"):
        if path.stem not in needed:
            path.unlink()


def code_digest(preparation: Preparation) -> bytes:
    """A digest of everything that determines the pixels of a picture, except the picture itself."""
    digest = hashlib.sha256(f"{preparation!r} {PIL.__version__} {version('numpy')} {platform.machine()}".encode())
    for path in CODE:
        digest.update(path.read_bytes())
    return digest.digest()


def plan(
    names: Sequence[str],
    digests: Sequence[bytes],
    labels: packed.Labels,
    image_shape: packed.Shape,
    identity: bytes,
    used: Counter[str],
    work: Path,
) -> Iterator[Shard]:
    """The shards of a part. used: how often a name is used, since shards of the same pictures need different names."""
    start = 0
    for end in packed.shard_ends(digests, int(np.prod(image_shape))):
        digest = hashlib.sha256(identity + labels.dtype.str.encode() + labels[start:end].tobytes())
        for content in digests[start:end]:
            digest.update(content)
        name = digest.hexdigest()[:32]
        used[name] += 1
        path = work / f"{name}-{used[name]}.safetensors"
        yield Shard(path, names[start:end], digests[start:end], labels[start:end])
        start = end


def decode(
    reader: folder.Reader,
    preparation: Preparation,
    shards: Sequence[Shard],
    processes: int,
    machines: Machines | None = None,
) -> None:
    """Decode whatever the shards still lack."""
    size = int(np.prod(preparation.shape))

    def tasks() -> Iterator[Task]:
        for shard in shards:
            start = len(packed.header(len(shard.names), preparation.shape, shard.labels.dtype)) + 8 * len(shard.names)
            for place in range(shard.done, len(shard.names)):
                yield Task(shard.names[place], shard.digests[place], shard.path, start + place * size)

    total, before = sum(len(shard.names) for shard in shards), sum(shard.done for shard in shards)
    if before:
        print(f"resuming after {before:,} of {total:,} pictures that were decoded before", flush=True)
    results = workers.in_order(
        partial(decoding.decode_into_shards, reader, preparation),
        tasks(),
        processes if total - before > FEW_PICTURES else 1,
        share=partial(machines.sharing, preparation, processes) if machines else None,
    )
    results = workers.progress(results, "decoding", total, before)
    saved = time.monotonic()
    for shard in shards:
        for reason in itertools.islice(results, len(shard.names) - shard.done):
            if reason:
                shard.unusable[shard.done] = reason
            shard.done += 1
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                shard.save()
                saved = time.monotonic()
        shard.save()


@dataclass(frozen=True, slots=True)
class Finish:
    """A shard whose pictures are all decoded. unusable: places in it."""

    path: Path
    compact: Path
    labels: packed.Labels
    unusable: Sequence[int]
    image_shape: packed.Shape
    summed: bool  # whether its sums are needed


@dataclass(frozen=True, slots=True)
class Finished:
    """What is known of a shard without its unusable pictures."""

    row: Row | None  # in the index; None: it has no image
    sums: Sums  # zeros if they are not needed
    fingerprints: Fingerprints


def _finish(tasks: list[Finish]) -> list[Finished]:
    """Write a copy of each shard with unusable pictures, without them; then read each shard once."""
    results = []
    for task in tasks:
        usable = np.setdiff1d(np.arange(len(task.labels)), task.unusable)
        if task.unusable and len(usable):
            _compact(task, usable)
        results.append(_read(task.compact if task.unusable else task.path, task, len(usable)))
    return results


def _compact(task: Finish, usable: npt.NDArray[np.int64]) -> None:
    """Copy a shard without its unusable pictures."""
    places, shape = len(task.labels), task.image_shape
    start = len(packed.header(places, shape, task.labels.dtype)) + 8 * places
    images = np.memmap(task.path, np.uint8, "r", start, (places, *shape)).view(np.ndarray)
    runs = np.split(usable, np.flatnonzero(np.diff(usable) > 1) + 1)  # adjacent
    head = packed.header(len(usable), shape, task.labels.dtype) + packed.little_endian(task.labels[usable])
    files.write_parts(task.compact, [head, *(images[run[0] : run[-1] + 1].data for run in runs)])


def _read(path: Path, task: Finish, count: int) -> Finished:
    """Read the `count` images of a shard, once for all that is to be known of them."""
    sums = np.zeros((3, task.image_shape[0]), dtype=np.int64)
    seen: list[Fingerprints] = []
    if not count:
        return Finished(None, sums, Fingerprints.joined(seen))
    digest = hashlib.sha256()
    size = int(np.prod(task.image_shape))
    buffer = np.empty((max(1, BLOCK_BYTES // size), *task.image_shape), dtype=np.uint8)
    with path.open("rb") as file:
        digest.update(file.read(len(packed.header(count, task.image_shape, task.labels.dtype)) + 8 * count))
        while read := file.readinto(buffer.data):
            images = buffer[: read // size]
            digest.update(images.data)
            sums += normalization.sums(images) if task.summed else 0
            seen.append(audit.fingerprints(images))
    return Finished(Row(images=count, sha256=digest.hexdigest()), sums, Fingerprints.joined(seen))


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
