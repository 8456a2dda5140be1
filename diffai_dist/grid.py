"""Leaves of a shape and the fixed tree over them. Pure arithmetic, frozen once results are stored."""

from __future__ import annotations

import math

LEAF_ELEMENTS = 2**20


def leaf_elements(shape: tuple[int, ...]) -> int:
    """How many elements a leaf of this shape has: whole rows where rows are short enough, else a cut row.

    A row is the last axis up to 3-D, and all axes behind the first above (a convolution's output channel);
    a 1-D tensor is one row.

    >>> leaf_elements((3, 2**19)), leaf_elements((10, 3000)), leaf_elements((5, 2**21))
    (1048576, 1047000, 1048576)
    """
    row = math.prod(shape[1:]) if len(shape) > 3 else math.prod(shape[-1:])
    return LEAF_ELEMENTS // row * row if 0 < row <= LEAF_ELEMENTS and len(shape) > 1 else LEAF_ELEMENTS


def leaf_count(shape: tuple[int, ...]) -> int:
    """How many leaves cover the shape; an empty tensor has none.

    >>> leaf_count(()), leaf_count((0, 7)), leaf_count((3, 2**19))
    (1, 0, 2)
    """
    return -(-math.prod(shape) // leaf_elements(shape))
