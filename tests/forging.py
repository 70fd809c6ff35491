"""Forged and damaged files: strategies for contents close to real ones, and changes to a pipeline that has run."""

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.clones import Clone
from tests.toy import Project

OTHER_MD5 = "0123456789abcdef0123456789abcdef"

# What JSON, and so a header, can hold: nested, and with the numbers that trip up those who trust them.
NUMBERS = st.integers(-(2**64), 2**64) | st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**30]) | st.floats()
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes changed, cut off, repeated, put in or taken out."""
    mutated = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(mutated)))
        how = draw(st.sampled_from(["change", "cut", "insert", "remove"]))
        if how == "change" and at < len(mutated):
            mutated[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del mutated[at:]
        elif how == "insert":
            mutated[at:at] = draw(st.binary(max_size=9))
        else:
            del mutated[at : at + draw(st.integers(0, 9))]
    return bytes(mutated)


@st.composite
def changed_json(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with something in it, at any depth, replaced, left out or added."""
    if isinstance(value, dict) and draw(st.integers(0, 3)):
        key = draw(st.sampled_from([*value, "surprise"]) | st.text(max_size=4))
        rest = {name: item for name, item in value.items() if name != key}
        return rest if draw(st.integers(0, 4)) == 0 else {**rest, key: draw(changed_json(value.get(key)))}
    if isinstance(value, list) and value and draw(st.integers(0, 2)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(changed_json(value[at])), *value[at + 1 :]]
    return draw(JSON | st.sampled_from(["F64", "I8", "BOOL", "BF16", [], {}, [0, 0], [2**62, 4]]))


@st.composite
def forged_safetensors(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file with another header: types, shapes, offsets and metadata that do not belong together."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    if "__metadata__" in header and draw(st.booleans()):  # our own JSON document within
        spec = draw(changed_json(json.loads(header["__metadata__"]["spec"])))
        header["__metadata__"]["spec"] = json.dumps(spec)
    else:
        header = draw(changed_json(header))
    packed = json.dumps(header).encode()
    claimed = draw(st.just(len(packed)) | st.integers(0, 2**64 - 1) | st.just(len(packed)))
    return struct.pack("<Q", claimed) + packed + content[8 + length :]


# Changes to a pipeline that has run


def replace(path: Path, content: str | bytes) -> None:
    """Write other content to a file, which may be read-only or a link into the cache."""
    path.unlink()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def flip(path: Path) -> None:
    """Flip a bit as a failing disk does: the size and the time remain."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def forge(project: Project, contents: Mapping[str, str]) -> None:
    """Replace files, and record them in dvc.lock and the cache, as `dvc commit --force` does."""
    for path, content in contents.items():
        replace(project.path / path, content)
    project.dvc("commit", "--force", "-q")


def relock(project: Project, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the stages of dvc.lock by hand."""
    lock = locked(project)
    change(lock["stages"])
    project.write("dvc.lock", yaml.safe_dump(lock, sort_keys=False))


def locked(project: Project | Clone) -> dict[str, Any]:
    """The content of dvc.lock."""
    content: dict[str, Any] = yaml.safe_load((project.path / "dvc.lock").read_text(encoding="utf-8"))
    return content


def entry(stage: dict[str, Any], path: str) -> dict[str, Any]:
    """An output or a dependency of a stage in dvc.lock."""
    return next(entry for entry in [*stage["outs"], *stage["deps"]] if entry["path"] == path)


def cached(project: Project | Clone, out: str) -> Path:
    """The object of an output in the cache."""
    outs = [entry for stage in locked(project)["stages"].values() for entry in stage["outs"]]
    md5 = next(entry["md5"] for entry in outs if entry["path"] == out)
    return project.path / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}"
