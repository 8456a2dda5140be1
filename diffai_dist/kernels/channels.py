"""Sums of rows and columns: ROW and COLUMN of a member, ROW_SHIFT and COLUMN_SHIFT of a pair, block by block.

What a block and a row have in common is a run. Its whole vectors are summed in lanes, the rest one by one, and both are
added to the row; a column takes one row after another. Where a block holds anything that is not finite, the loops see a
copy with 0 in its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffai_dist.kernels.compiled import Flag, Word, jit
from diffai_dist.kernels.lanes import (
    HITS,
    LANES,
    SUM,
    UNSIGNED_MAX,
    Words,
    bytes_of,
    load,
    loop,
    real,
    real_of,
)


def _row_terms(words: Words) -> Sequence[Any]:
    """The largest magnitude, x, x*x."""
    values = words.values(words.first)
    return [words.magnitude(words.first), values, words.builder.fmul(values, values)]


def _shift_terms(words: Words) -> Sequence[Any]:
    """Values that differ, d*d, a*d."""
    builder, before = words.builder, words.values(words.first)
    differences = builder.fsub(words.values(words.second), before)
    differ = builder.icmp_unsigned("!=", words.first, words.second)
    some = builder.icmp_unsigned("!=", words.magnitude(builder.or_(words.first, words.second)), words.constant(0))
    changed = words.hits(builder.and_(differ, some))
    return [changed, builder.fmul(differences, differences), builder.fmul(before, differences)]


_ROW = [UNSIGNED_MAX, SUM, SUM]
_SHIFT = [HITS, SUM, SUM]
row_sums, row_sums_into = loop(_ROW, _row_terms), loop(_ROW, _row_terms, into=2)
shift_sums, shift_sums_into = loop(_SHIFT, _shift_terms), loop(_SHIFT, _shift_terms, into=1)


@jit
def add_channels(
    rows: np.ndarray,
    columns: np.ndarray,
    kind: Word,
    address: Word,
    size: Word,
    place: tuple[Word, Word, Word, Word],
    finite: bool,
    zeros: bool,
    spare: np.ndarray,
) -> None:
    """Add a block of a member to its rows [rows] and columns [columns].

    `place` is the row and the column of the first element, the width, and the index of the first column or -1; the
    flags say whether all of the block is finite, and whether anything is 0.
    """
    row, column, width, columns_at = place
    words = address
    if not finite:
        words = np.int64(spare.ctypes.data)
        for i in range(size):
            spare[i] = 0
            if math.isfinite(real(load(kind, address, i))):
                spare[i] = load(kind, address, i)
    start = 0
    while start < size:
        run = min(width - column, size - start)
        into = columns_at + column if columns_at >= 0 else -1
        _add_run(rows[row], columns, into, kind, words + start * bytes_of(kind), run)
        if zeros or not finite:
            _count(rows[row], kind, address + start * bytes_of(kind), run)
        start, row, column = start + run, row + 1, 0


@jit
def _add_run(row: Any, columns: np.ndarray, into: Word, kind: Word, address: Word, count: Word) -> None:
    """Add a run of finite values to its row, and to as many columns from `into` on unless that is -1."""
    whole = count - count % LANES
    top, total, squares = _whole_sums(kind, address, columns, into, whole)
    row.finite += count
    row.sum += total
    row.squares += squares
    row.absmax = max(row.absmax, real_of(kind, top))
    for i in range(whole, count):
        value = real(load(kind, address, i))
        row.sum += value
        row.squares += value * value
        row.absmax = max(row.absmax, abs(value))
        if into >= 0:
            columns[into + i].squares += value * value


@jit
def _whole_sums(kind: Word, address: Word, columns: np.ndarray, into: Word, count: Word) -> Any:
    if into >= 0:
        return row_sums_into(kind, (address, columns.ctypes.data + 8 * into), count, 0.0)
    return row_sums(kind, (address,), count, 0.0)


@jit
def _count(row: Any, kind: Word, address: Word, count: Word) -> None:
    """Count zeros, and take back what is not finite."""
    zeros, lost = 0, 0
    for i in range(count):
        value = real(load(kind, address, i))
        zeros += value == 0.0
        lost += not math.isfinite(value)
    row.zeros += zeros
    row.finite -= lost


@jit
def add_shift_channels(
    rows: Any,
    columns: np.ndarray,
    kind: Word,
    words: tuple[Word, Word],
    size: Word,
    place: tuple[Word, Word, Word, Word],
    finite: bool,
    spare: np.ndarray,
) -> None:
    """Add a block of a pair to its rows [rows] and columns [columns]; `place` as above."""
    row, column, width, columns_at = place
    before, after = words
    if not finite:
        before, after = np.int64(spare[0].ctypes.data), np.int64(spare[1].ctypes.data)
        for i in range(size):
            left, right = load(kind, words[0], i), load(kind, words[1], i)
            spare[0, i] = spare[1, i] = 0
            if _both(left, right):
                spare[0, i], spare[1, i] = left, right
    start = 0
    while start < size:
        run, offset = min(width - column, size - start), start * bytes_of(kind)
        into = columns_at + column if columns_at >= 0 else -1
        _add_shift_run(rows[row], columns, into, kind, before + offset, after + offset, run)
        if not finite:
            for i in range(start, start + run):
                rows[row].both -= not _both(load(kind, words[0], i), load(kind, words[1], i))
        start, row, column = start + run, row + 1, 0


@jit
def _both(left: Word, right: Word) -> Flag:
    return math.isfinite(real(left)) and math.isfinite(real(right))


@jit
def _add_shift_run(
    row: Any, columns: np.ndarray, into: Word, kind: Word, before: Word, after: Word, count: Word
) -> None:
    whole = count - count % LANES
    changed, d2, along = _whole_shift_sums(kind, (before, after), columns, into, whole)
    row.both += count
    row.changed += changed
    row.d2 += d2
    row.along += along
    for i in range(whole, count):
        value = real(load(kind, before, i))
        difference = real(load(kind, after, i)) - value
        row.changed += difference != 0.0
        row.d2 += difference * difference
        row.along += value * difference
        if into >= 0:
            columns[into + i].d2 += difference * difference


@jit
def _whole_shift_sums(kind: Word, words: tuple[Word, Word], columns: np.ndarray, into: Word, count: Word) -> Any:
    if into >= 0:
        return shift_sums_into(kind, (words[0], words[1], columns.ctypes.data + 8 * into), count, 0.0)
    return shift_sums(kind, words, count, 0.0)


@jit
def add_equal_rows(
    rows: Any, kind: Word, address: Word, size: Word, place: tuple[Word, Word, Word, Word], finite: bool
) -> None:
    """Add a block that is equal on both sides: what is finite is all there is to count."""
    row, column, width, _ = place
    start = 0
    while start < size:
        run = min(width - column, size - start)
        rows[row].both += run
        if not finite:
            for i in range(start, start + run):
                rows[row].both -= not math.isfinite(real(load(kind, address, i)))
        start, row, column = start + run, row + 1, 0
