"""A part of a tensor that is decoded has the values that it has in the whole, of every scheme that reads runs."""

from __future__ import annotations

import numpy as np
import pytest

from decoding import FIXTURES, cut, opened, run_of, same_bits, values_of
from diffai_dist.schemes.cut import part_of

CASES = [str(path.parent.relative_to(FIXTURES)) for path in sorted(FIXTURES.glob("*/*/model.safetensors"))]
CASES += ["bnb/weights.safetensors", "packed/dense.safetensors", "packed/before.safetensors"]


@pytest.mark.parametrize("case", CASES)
def test_a_part_has_the_values_that_it_has_in_the_whole(case: str) -> None:
    for tensor in opened(FIXTURES / case).tensors.values():
        if tensor.scheme is None or tensor.scheme.whole:
            continue
        values = values_of(tensor).reshape(-1)
        for first, stop in cut(tensor.elements, 5):
            part = part_of(tensor, "part", first, stop, (stop - first,))
            assert part.quantised == tensor.quantised
            assert part.nbytes <= tensor.nbytes
            for start, end in cut(part.elements, 6)[:6]:
                assert same_bits(run_of(part, start, end), values[first + start : first + end])


def test_the_cases_are_of_many_schemes() -> None:
    schemes = {type(one.scheme).__name__ for case in CASES for one in opened(FIXTURES / case).tensors.values()}
    assert {"Blocks", "FourBit", "EightBit", "Packed"} <= schemes


def test_where_the_whole_lies_is_no_part_of_a_key() -> None:
    (tensor,) = opened(FIXTURES / "fp8/channel").tensors.values()
    part = part_of(tensor, "part", 0, tensor.shape[-1], (tensor.shape[-1],))
    assert str(FIXTURES) not in repr(part.scheme)
    assert np.array_equal(values_of(part), values_of(tensor)[0])
