"""Sums of rows and columns: ROW and COLUMN of a member, ROW_SHIFT and COLUMN_SHIFT of a pair, block by block.

What a block and a row have in common is summed in lanes and added to the row; a column takes one element after another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffai_dist.kernels.compiled import Real, Word, jit
from diffai_dist.kernels.lanes import HITS, SUM, UNSIGNED_MAX, Words, bytes_of, load, loop, real, real_of


def _row_terms(words: Words) -> Sequence[Any]:
    """Zeros, the largest magnitude, x, x*x."""
    magnitude, values = words.magnitude(words.first), words.values(words.first)
    zero = words.builder.icmp_unsigned("==", magnitude, words.constant(0))
    return [words.hits(zero), magnitude, values, words.builder.fmul(values, values)]


def _row_shift_terms(words: Words) -> Sequence[Any]:
    """Values that differ, d*d, a*d."""
    builder, before = words.builder, words.values(words.first)
    differences = builder.fsub(words.values(words.second), before)
    differ = builder.icmp_unsigned("!=", words.first, words.second)
    some = builder.icmp_unsigned("!=", words.magnitude(builder.or_(words.first, words.second)), words.constant(0))
    changed = words.hits(builder.and_(differ, some))
    return [changed, builder.fmul(differences, differences), builder.fmul(before, differences)]


row_sums = loop([HITS, UNSIGNED_MAX, SUM, SUM], _row_terms)
row_shift_sums = loop([HITS, SUM, SUM], _row_shift_terms)


@jit
def add_rows(
    rows: np.ndarray,
    member: Word,
    kind: Word,
    address: Word,
    size: Word,
    place: tuple[Word, Word, Word],
    spare: np.ndarray,
) -> None:
    """Add a block of a member to its rows; `place` is the row of the first element, its column, and the width."""
    row, column, width = place
    if width == 1:
        for i in range(size):
            _add_one(rows[row + i, member], real(load(kind, address, i)))
        return
    start = 0
    while start < size:
        run = min(width - column, size - start)
        _add_row(rows[row, member], kind, address + start * bytes_of(kind), run, spare)
        start, row, column = start + run, row + 1, 0


@jit
def _add_one(row: Any, value: Real) -> None:
    if math.isfinite(value):
        row.finite += 1
        row.zeros += value == 0.0
        row.sum += value
        row.squares += value * value
        row.absmax = max(row.absmax, abs(value))


@jit
def _add_row(row: Any, kind: Word, address: Word, count: Word, spare: np.ndarray) -> None:
    zeros, top, total, squares = row_sums(kind, (address,), count, 0.0)
    finite = count
    if not math.isfinite(real_of(kind, top)):
        finite = 0
        for i in range(count):
            word = load(kind, address, i)
            good = math.isfinite(real(word))
            spare[i] = word if good else 0
            finite += good
        top, total, squares = row_sums(kind, (spare.ctypes.data,), count, 0.0)[1:]
    row.finite += finite
    row.zeros += zeros
    row.sum += total
    row.squares += squares
    row.absmax = max(row.absmax, real_of(kind, top))


@jit
def add_row_shifts(
    rows: np.ndarray,
    pair: Word,
    kind: Word,
    words: tuple[Word, Word],
    size: Word,
    place: tuple[Word, Word, Word],
    spare: np.ndarray,
) -> None:
    """Add a block of a pair to its rows."""
    row, column, width = place
    if width == 1:
        for i in range(size):
            _add_one_shift(rows[row + i, pair], real(load(kind, words[0], i)), real(load(kind, words[1], i)))
        return
    start = 0
    while start < size:
        run = min(width - column, size - start)
        offset = start * bytes_of(kind)
        _add_row_shift(rows[row, pair], kind, (words[0] + offset, words[1] + offset), run, spare)
        start, row, column = start + run, row + 1, 0


@jit
def _add_one_shift(row: Any, before: Real, after: Real) -> None:
    if math.isfinite(before) and math.isfinite(after):
        row.both += 1
        row.changed += before != after
        row.d2 += (after - before) * (after - before)
        row.along += before * (after - before)


@jit
def _add_row_shift(row: Any, kind: Word, words: tuple[Word, Word], count: Word, spare: np.ndarray) -> None:
    changed, d2, along = row_shift_sums(kind, words, count, 0.0)
    both = count
    if not math.isfinite(d2 + along):  # a value that is none, or squares that leave float64
        both = _mask_both(kind, words, count, spare)
        changed, d2, along = row_shift_sums(kind, (spare[0].ctypes.data, spare[1].ctypes.data), count, 0.0)
    row.both += both
    row.changed += changed
    row.d2 += d2
    row.along += along


@jit
def _mask_both(kind: Word, words: tuple[Word, Word], count: Word, spare: np.ndarray) -> Word:
    """Copy both sides with 0 where either is not finite; returns how many are."""
    both: Word = 0
    for i in range(count):
        left, right = load(kind, words[0], i), load(kind, words[1], i)
        good = math.isfinite(real(left)) and math.isfinite(real(right))
        spare[0, i] = left if good else 0
        spare[1, i] = right if good else 0
        both += good
    return both


@jit
def add_equal_rows(
    rows: np.ndarray, pair: Word, kind: Word, address: Word, size: Word, place: tuple[Word, Word, Word]
) -> None:
    """Add a block that is equal on both sides: what is finite is all there is to count."""
    row, column, width = place
    start = 0
    while start < size:
        run = min(width - column, size - start)
        finite = 0
        for i in range(start, start + run):
            finite += math.isfinite(real(load(kind, address, i)))
        rows[row, pair].both += finite
        start, row, column = start + run, row + 1, 0


@jit
def add_columns(
    columns: np.ndarray, at: Word, kind: Word, address: Word, size: Word, column: Word, width: Word
) -> None:
    """Add a block of a member to its columns, the first at index `at`."""
    start = 0
    while start < size:
        run = min(width - column, size - start)
        for i in range(run):
            value = real(load(kind, address, start + i))
            columns[at + column + i].squares += value * value if math.isfinite(value) else 0.0
        start, column = start + run, 0


@jit
def add_column_shifts(
    columns: np.ndarray, at: Word, kind: Word, words: tuple[Word, Word], size: Word, column: Word, width: Word
) -> None:
    """Add a block of a pair to its columns."""
    start = 0
    while start < size:
        run = min(width - column, size - start)
        for i in range(run):
            before, after = real(load(kind, words[0], start + i)), real(load(kind, words[1], start + i))
            good = math.isfinite(before) and math.isfinite(after)
            columns[at + column + i].d2 += (after - before) * (after - before) if good else 0.0
        start, column = start + run, 0
