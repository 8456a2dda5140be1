"""A tensor in pieces, as the ranks of a distributed training save it: each holds some rows, or some columns of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np

from diffai_dist.checkpoint import Span, Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows [row, row + rows) and columns [column, column + columns) of a matrix, row after row."""

    row: int
    rows: int
    column: int
    columns: int


@dataclass(frozen=True, slots=True)
class Chunked:
    """Elements of dtype `values`, the tensor as a matrix of `width` columns; one chunk for each span, in order.

    Pieces of whole rows are a matrix of one row, so that a run needs its own bytes alone; in others a run of
    several rows is rounded outward to whole ones.
    """

    values: str
    width: int
    chunks: tuple[Chunk, ...]

    whole = False
    bits = digits = block = 0  # no codes

    def spans(self, tensor: Tensor, first: int, stop: int) -> tuple[Span, ...]:
        """What each chunk has of the rows of the run; of a run inside a row, what it has of that."""
        size = tensor.decoder.bits // 8
        ranges = (self._range(chunk, first, stop) for chunk in self.chunks)
        return tuple(span.part(low * size, high * size) for span, (low, high) in zip(tensor.spans, ranges, strict=True))

    def decode(self, tensor: Tensor, parts: Sequence[np.ndarray], first: int, stop: int, out: np.ndarray) -> None:
        """Copy what each chunk has to its place.

        >>> left, right = Chunk(0, 2, 0, 1), Chunk(0, 2, 1, 2)
        >>> tensor = Tensor("w", "U8", (2, 3), (), Chunked("U8", 3, (left, right)))
        >>> out = np.empty(4, np.uint8)
        >>> tensor.scheme.decode(tensor, [np.array([1, 4], np.uint8), np.array([2, 3, 5, 6], np.uint8)], 1, 5, out)
        >>> out
        array([2, 3, 4, 5], dtype=uint8)
        """
        kind = np.dtype(f"V{tensor.decoder.bits // 8}")
        values = out.view(kind)
        for row, rows, column, columns in self._rectangles(first, stop):
            start = row * self.width + column - first
            target = values[start : start + rows * columns].reshape(rows, columns)
            for chunk, part in zip(self.chunks, parts, strict=True):
                top, bottom = max(row, chunk.row), min(row + rows, chunk.row + chunk.rows)
                left, right = max(column, chunk.column), min(column + columns, chunk.column + chunk.columns)
                if top < bottom and left < right:
                    # Either part of one row or all columns of the chunk: one run of it.
                    begin = (top - chunk.row) * chunk.columns + left - chunk.column - self._range(chunk, first, stop)[0]
                    found = part.view(kind)[begin : begin + (bottom - top) * (right - left)]
                    target[top - row : bottom - row, left - column : right - column] = found.reshape(bottom - top, -1)

    def _rectangles(self, first: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """A run as rows, count of rows, columns, count of columns: what is left of a row, whole rows, a last one."""
        while first < stop:
            row, column = divmod(first, self.width)
            rows = max((stop - first) // self.width, 1) if column == 0 else 1
            columns = min(self.width - column, stop - first)
            yield row, rows, column, columns
            first += rows * columns

    def _range(self, chunk: Chunk, first: int, stop: int) -> tuple[int, int]:
        """Elements of a chunk that a run needs."""
        if stop <= first:
            return 0, 0
        row, last = first // self.width, (stop - 1) // self.width
        top, bottom = max(row, chunk.row), min(last + 1, chunk.row + chunk.rows)
        left, right = chunk.column, chunk.column + chunk.columns
        if row == last:
            left, right = max(left, first % self.width), min(right, (stop - 1) % self.width + 1)
        if top >= bottom or left >= right:
            return 0, 0
        low = (top - chunk.row) * chunk.columns + left - chunk.column
        return low, (bottom - 1 - chunk.row) * chunk.columns + right - chunk.column


def matrix_of(shape: Sequence[int], places: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Chunked | None:
    """Pieces at (offsets, sizes) of a shape as chunks of a matrix, in that order, without the dtype; None where
    they are cut along more axes than two, do not cover the shape, or cover a part of it twice.

    >>> matrix_of((4, 3), [((0, 0), (2, 3)), ((2, 0), (2, 3))]).chunks[1]
    Chunk(row=0, rows=1, column=6, columns=6)
    >>> matrix_of((4, 3), [((0, 0), (4, 1)), ((0, 1), (4, 2))]).width
    3
    """
    if any(first + size > whole for place in places for first, size, whole in zip(*place, shape, strict=True)):
        return None
    axes = [axis for axis, size in enumerate(shape) if any(sizes[axis] != size for _, sizes in places)]
    # Between the two, axes are whole; before the first, a piece would lie in several runs of rows.
    if len(axes) > 2 or (len(axes) == 2 and math.prod(shape[: axes[0]]) != 1):
        return None
    inner = axes[-1] if axes else 0
    behind, before = math.prod(shape[inner + 1 :]), math.prod(shape[:inner])
    chunks = []
    for offsets, sizes in places:
        row, rows = 0, before
        if len(axes) == 2:
            between = math.prod(shape[axes[0] + 1 : inner])
            row, rows = offsets[axes[0]] * between, sizes[axes[0]] * between
        column, columns = (offsets[inner] * behind, sizes[inner] * behind) if shape else (0, 1)
        chunks.append(Chunk(row, rows, column, columns))
    width = math.prod(shape[inner:])
    return Chunked("", width, tuple(chunks)) if _covers(chunks, before, width) else None


def _covers(chunks: Sequence[Chunk], rows: int, columns: int) -> bool:
    """Whether each element is in one chunk: bands of rows side by side, each of columns side by side."""
    pieces = sorted((chunk.row, chunk.rows, chunk.column, chunk.columns) for chunk in chunks)
    bands = [(place, list(band)) for place, band in groupby(pieces, key=itemgetter(0, 1))]
    return _tile((place for place, _ in bands), rows) and all(
        _tile((piece[2:] for piece in band), columns) for _, band in bands
    )


def _tile(pieces: Iterable[tuple[int, int]], size: int) -> bool:
    reached = 0
    for start, length in sorted(pieces):
        if start != reached:
            return False
        reached += length
    return reached == size
