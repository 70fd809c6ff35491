"""The IDX decoder: the inverse of the encoder, and one line for anything else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from stages.dataset import idx
from tests.forging import mutated_bytes


@settings(max_examples=300, deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)))
def test_decode_is_the_inverse_of_encode(array: np.ndarray) -> None:
    decoded = idx.decode(idx.encode(array))
    assert decoded.shape == array.shape
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, array)


def test_the_layout_that_is_published() -> None:
    content = bytes.fromhex("00000803 00000001 00000002 00000002 01020304".replace(" ", ""))
    assert idx.decode(content).tolist() == [[[1, 2], [3, 4]]]


def assert_decodes_or_is_refused_in_a_line(content: bytes) -> None:
    try:
        array = idx.decode(content)
    except ValueError as error:
        message = str(error)
    else:
        message = "decoded"
        assert idx.encode(array) == content
    assert len(message.splitlines()) == 1


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=64) | st.binary(max_size=40).map(lambda tail: b"\x00\x00\x08\x01" + tail))
def test_no_bytes_do_anything_but_decode_or_raise_a_line(content: bytes) -> None:
    assert_decodes_or_is_refused_in_a_line(content)


@settings(max_examples=300, deadline=None)
@given(mutated_bytes(idx.encode(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))))
def test_a_spoilt_file_decodes_or_is_refused_in_a_line(content: bytes) -> None:
    assert_decodes_or_is_refused_in_a_line(content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not an IDX file: 0 bytes"),
        (b"<!DOCTYPE html>", "not an IDX file of uint8 values: starts with the bytes 3c 21 44 4f"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "not an IDX file of uint8 values"),  # float32
        (b"\x00\x00\x08\x00", "not an IDX file of uint8 values"),  # no dimension
        (b"\x00\x00\x08\xff" + b"\xff" * 1020, "not an IDX file of uint8 values"),
        (b"\x00\x00\x08\x03\x00\x00", "ends within its header of 16 bytes"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x02\x01", r"an IDX file of shape \(2,\) has 10 bytes; this one has 9"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x02\x01\x01\x01", r"shape \(2,\) has 10 bytes; this one has 11"),
        (b"\x00\x00\x08\x02" + b"\xff" * 8, r"shape \(4294967295, 4294967295\) has 184467440\d+ bytes"),
    ],
)
def test_what_is_refused(content: bytes, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        idx.decode(content)
