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


SHORT_ROW, MANY_ROWS, MOST_ROWS, MOST_COLUMNS = 8, 2**16, 2**20, 2**16


def row_elements(shape: tuple[int, ...]) -> int:
    """How many elements a row has of which partials are kept; 0 where none are.

    A row is that of the leaf; of a 1-D tensor each element is one. None are kept of rows that are cut, of more than
    2^20 rows, nor of more than 2^16 that are 1-D or shorter than 8: what is kept must be small beside what is read.

    >>> row_elements((3, 2**19)), row_elements((512,)), row_elements((64, 3, 7, 7)), row_elements((2**17,))
    (524288, 1, 147, 0)
    """
    elements = math.prod(shape)
    if not shape or not elements:
        return 0
    row = 1 if len(shape) == 1 else math.prod(shape[1:]) if len(shape) > 3 else shape[-1]
    most = MANY_ROWS if row < SHORT_ROW else MOST_ROWS
    return row if row <= LEAF_ELEMENTS and elements // row <= most else 0


def column_count(shape: tuple[int, ...]) -> int:
    """How many columns partials are kept of: the elements of a row, of tensors that have rows; 0 where none are.

    >>> column_count((3, 2**19)), column_count((512, 64)), column_count((512,))
    (0, 64, 0)
    """
    row = row_elements(shape)
    return row if len(shape) > 1 and row <= MOST_COLUMNS else 0
