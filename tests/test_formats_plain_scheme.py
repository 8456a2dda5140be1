"""Plain values: a run of elements is a run of bytes, also inside a byte."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.dtypes import BITS
from diffai_dist.storage import Source

SOURCE = Source("/x", 10**6, "v")


def tensor_of(dtype: str, data: bytes, start: int) -> Tensor:
    span = Span(SOURCE, start, start + len(data))
    return Tensor("t", dtype, (len(data) * 8 // BITS.get(dtype, 8),), (span,))


def bits(data: bytes) -> list[int]:
    """The bits of the bytes, least significant first: the order in which elements are packed."""
    return [byte >> place & 1 for byte in data for place in range(8)]


def run_of(tensor: Tensor, file: bytes, first: int, stop: int) -> list[int]:
    """The bits of elements [first, stop), which may begin inside a byte."""
    size = tensor.decoder.bits
    (span,) = tensor.ranges(first, stop)
    lead = first * size % 8
    return bits(file[span.start : span.stop])[lead : lead + (stop - first) * size]


@given(
    dtype=st.sampled_from([*BITS, "F3"]),
    data=st.integers(0, 24).flatmap(lambda n: st.binary(min_size=n * 24, max_size=n * 24)),
    start=st.integers(0, 20),
    cuts=st.lists(st.integers(0, 10**4), max_size=4),
)
def test_runs_are_those_of_the_whole_tensor_and_cover_it_once(
    dtype: str, data: bytes, start: int, cuts: list[int]
) -> None:
    tensor, file = tensor_of(dtype, data, start), b"\xa5" * start + data + b"\x5a" * 3
    elements = len(data) * 8 // tensor.decoder.bits
    edges = sorted({0, elements, *(cut % (elements + 1) for cut in cuts)})
    runs = [run_of(tensor, file, first, stop) for first, stop in pairwise(edges)]
    assert [bit for run in runs for bit in run] == bits(data)


@pytest.mark.parametrize(
    ("first", "stop", "expected"),
    [(0, 1, (8, 9)), (1, 2, (8, 9)), (1, 4, (8, 10)), (2, 2, (9, 9)), (0, 6, (8, 11))],
)
def test_an_odd_f4_element_begins_inside_a_byte(first: int, stop: int, expected: tuple[int, int]) -> None:
    (span,) = tensor_of("F4", b"\x21\x43\x65", 8).ranges(first, stop)
    assert (span.start, span.stop) == expected


@pytest.mark.parametrize("dtype", ["F6_E2M3", "F3"])
def test_a_dtype_without_a_decoder_is_counted_in_bytes(dtype: str) -> None:
    (span,) = tensor_of(dtype, b"abcdef", 8).ranges(2, 5)
    assert (span.start, span.stop) == (10, 13)
