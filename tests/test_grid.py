"""Leaves cover a tensor once, in order, and depend on its shape alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffai_dist.grid import LEAF_ELEMENTS, leaf_count, leaf_elements
from diffai_dist.rows import merge_tree

SHAPES = st.lists(st.integers(0, 3000), max_size=5).map(tuple)


@given(SHAPES)
def test_leaves_are_whole_rows_where_rows_are_short_enough(shape: tuple[int, ...]) -> None:
    row = math.prod(shape[1:]) if len(shape) > 3 else math.prod(shape[-1:])
    leaf = leaf_elements(shape)
    assert 0 < leaf <= LEAF_ELEMENTS
    assert len(shape) < 2 or row > LEAF_ELEMENTS or row == 0 or leaf % row == 0


@given(SHAPES)
def test_leaves_cover_the_shape_once(shape: tuple[int, ...]) -> None:
    size, leaf, count = math.prod(shape), leaf_elements(shape), leaf_count(shape)
    assert (count - 1) * leaf < size <= count * leaf


@pytest.mark.parametrize(
    ("shape", "leaf"),
    [
        ((), 2**20),
        ((10,), 2**20),  # 1-D is one row: cut, never rounded
        ((2**21 + 1,), 2**20),
        ((2, 3, 1000), 1048000),  # up to 3-D a row is the last axis
        ((64, 3, 7, 7), 2**20 // 147 * 147),  # a convolution's output channel
        ((5, 2**20 + 1), 2**20),  # a longer row is cut inside
    ],
)
def test_the_grid_is_frozen(shape: tuple[int, ...], leaf: int) -> None:
    assert leaf_elements(shape) == leaf


@given(st.integers(1, 200), st.integers(0, 7))
def test_merging_subtrees_first_gives_the_same_tree(count: int, level: int) -> None:
    """A unit of 2**m leaves that starts at a multiple of 2**m may merge its own part first."""

    def merge(left: np.ndarray, right: np.ndarray) -> None:
        left[:] = [f"({a}{b})" for a, b in zip(left, right, strict=True)]

    leaves = np.array([f"{index}." for index in range(count)], dtype=object)
    step = 2**level
    nodes = [merge_tree(leaves[first : first + step].copy(), merge) for first in range(0, count, step)]
    assert merge_tree(np.array(nodes, dtype=object), merge) == merge_tree(leaves.copy(), merge)
