"""Strategies for files that somebody has forged, or a disk has spoilt: near enough to real ones to be looked into."""

import json
import struct
from typing import Any

from hypothesis import strategies as st

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
