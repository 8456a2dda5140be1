"""How one block of a candidate moved from the baseline's, and how rows of SHIFT join."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffai_dist.kernels.compiled import Flag, Real, Word, jit
from diffai_dist.kernels.decode import U64
from diffai_dist.kernels.lanes import HITS, SUM, TOP, Words, load, loop, pattern, real
from diffai_dist.kernels.moments import SIGN, integer_magnitude, power_sums

LOW_BITS = np.uint64(2047)


def _difference_sums(words: Words, differences: Any) -> list[Any]:
    builder = words.builder
    size = words.absolute(differences)
    along = builder.fmul(differences, words.values(words.first))
    return [builder.fmul(differences, differences), size, along, size]


def _shift_terms(words: Words) -> Sequence[Any]:
    """d*d, |d|, d*a, |d| and the words that differ, change the value, and change the sign."""
    builder = words.builder
    differences = builder.fsub(words.values(words.second), words.values(words.first))
    crossed = builder.xor(words.first, words.second)
    zero = words.constant(0)
    differ = builder.icmp_unsigned("!=", crossed, zero)
    either = words.magnitude(builder.or_(words.first, words.second))
    changed = builder.and_(differ, builder.icmp_unsigned("!=", either, zero))
    flipped = builder.icmp_signed("<", crossed, zero)
    for side in (words.first, words.second):
        flipped = builder.and_(flipped, builder.icmp_unsigned("!=", words.magnitude(side), zero))
    hits = [words.hits(mask) for mask in (differ, changed, flipped)]
    return [*_difference_sums(words, differences), *hits]


def _given_terms(words: Words) -> Sequence[Any]:
    """The same sums where the second input is d itself."""
    return _difference_sums(words, words.values(words.second))


def _rest_terms(words: Words) -> Sequence[Any]:
    """(d - slope*a)^2."""
    builder, baseline = words.builder, words.values(words.first)
    differences = builder.fsub(words.values(words.second), baseline)
    rest = builder.fsub(differences, builder.fmul(words.number, baseline))
    return [builder.fmul(rest, rest)]


def _given_rest_terms(words: Words) -> Sequence[Any]:
    """(d - slope*a)^2 where the second input is d itself."""
    builder, baseline = words.builder, words.values(words.first)
    rest = builder.fsub(words.values(words.second), builder.fmul(words.number, baseline))
    return [builder.fmul(rest, rest)]


shift_sums = loop([SUM, SUM, SUM, TOP, HITS, HITS, HITS], _shift_terms)
given_sums = loop([SUM, SUM, SUM, TOP], _given_terms)
rest_sum = loop([SUM], _rest_terms)
given_rest_sum = loop([SUM], _given_rest_terms)


@jit
def clear_shift(row: Any) -> None:
    """Make the row neutral."""
    row.count = row.both = row.changed = row.changed_nonfinite = row.bits = row.flips = 0
    row.d2 = row.d1 = row.a1 = row.b1 = row.aa = row.bb = row.slope = row.rest = 0.0
    row.max_abs = np.uint64(0)
    row.max_abs_index = -1


@jit
def unchanged_shift(row: Any, moments: Any, squares: Real) -> None:
    """Fill the row of a block that is equal on both sides, as measuring it would."""
    clear_shift(row)
    row.count, row.both = moments.count, moments.finite
    row.a1 = row.b1 = moments.abs_sum
    row.aa = row.bb = squares


@jit
def float_shift(
    row: Any,
    kind: Word,
    baseline: Word,
    candidate: Word,
    sides: Any,
    squares: Any,
    equal_dtypes: bool,
    spare: np.ndarray,
) -> None:
    """Fill the row from one block of patterns, all but `max_abs_index`; `sides` are the MOMENTS of both blocks."""
    baseline, candidate = _begin(row, kind, baseline, candidate, sides, squares, equal_dtypes, spare)
    count = row.count
    row.d2, row.d1, along, top, differ, changed, flips = shift_sums(kind, (baseline, candidate), count, 0.0)
    row.changed += changed
    row.bits += differ if equal_dtypes else 0
    row.flips += flips
    row.max_abs = pattern(top)
    if _regress(row, along):
        row.rest = rest_sum(kind, (baseline, candidate), count, row.slope)[0]


@jit
def _begin(
    row: Any,
    kind: Word,
    baseline: Word,
    candidate: Word,
    sides: Any,
    squares: Any,
    equal_dtypes: bool,
    spare: np.ndarray,
) -> tuple[Word, Word]:
    """Set counts and norms of both sides; returns their addresses, or those of copies without what is not finite."""
    clear_shift(row)
    before, after = sides
    count = row.count = row.both = before.count
    if before.finite == count and after.finite == count:
        row.a1, row.b1 = before.abs_sum, after.abs_sum
        row.aa, row.bb = squares
        return baseline, candidate
    _mask(row, kind, baseline, candidate, count, equal_dtypes, spare)
    baseline, candidate = np.int64(spare[0].ctypes.data), np.int64(spare[1].ctypes.data)
    row.a1, row.aa = power_sums(kind, (baseline,), count, 0.0)[4:]
    row.b1, row.bb = power_sums(kind, (candidate,), count, 0.0)[4:]
    return baseline, candidate


@jit
def _regress(row: Any, along: Real) -> Flag:
    """Set slope and rest of a block from <d, a>; true if more than one bit cancels and `rest` needs a second pass."""
    row.slope = along / row.aa if row.aa > 0.0 else 0.0
    row.rest = row.d2 - row.slope * along
    return not (2.0 * row.slope * along <= row.d2 and row.d2 < math.inf)


@jit
def _mask(
    row: Any, kind: Word, baseline: Word, candidate: Word, count: Word, equal_dtypes: bool, spare: np.ndarray
) -> None:
    """Count what is not finite on both sides, and copy both sides with 0 in its place."""
    for i in range(count):
        left, right = load(kind, baseline, i), load(kind, candidate, i)
        before, after = real(left), real(right)
        if math.isfinite(before) and math.isfinite(after):
            spare[0, i], spare[1, i] = left, right
            continue
        spare[0, i] = spare[1, i] = 0
        row.both -= 1
        row.bits += equal_dtypes and left != right
        row.flips += (before < 0.0 and after > 0.0) or (before > 0.0 and after < 0.0)
        if before != after and not (math.isnan(before) and math.isnan(after)):
            row.changed += 1
            row.changed_nonfinite += 1


@jit
def first_shift(kind: Word, baseline: Word, candidate: Word, count: Word, largest: Real) -> Word:
    """Offset of the first |d| of that size among what is finite on both sides; -1 without any."""
    for i in range(count):
        before, after = real(load(kind, baseline, i)), real(load(kind, candidate, i))
        if math.isfinite(before) and math.isfinite(after) and abs(after - before) == largest:
            return i
    return -1


@jit
def integer_shift(
    row: Any, words: tuple[Word, Word], values: Word, sides: Any, squares: Any, signed: bool, spare: np.ndarray
) -> None:
    """Fill the row from 64-bit integers of one dtype: differences are exact, then rounded once."""
    clear_shift(row)
    before, after = sides
    count = row.count = row.both = before.count
    row.a1, row.b1 = before.abs_sum, after.abs_sum
    row.aa, row.bb = squares
    for i in range(count):
        left, right = load(U64, words[0], i), load(U64, words[1], i)
        size, grows = integer_distance(left, right, signed)
        spare[0, i] = pattern(np.float64(size) if grows else -np.float64(size))
        row.max_abs = max(row.max_abs, size)
        row.changed += left != right
        row.flips += signed and (left ^ right) >> np.uint64(63) and left != 0 and right != 0
    row.bits = row.changed
    differences = np.int64(spare[0].ctypes.data)
    row.d2, row.d1, along, _ = given_sums(U64, (values, differences), count, 0.0)
    if _regress(row, along):
        row.rest = given_rest_sum(U64, (values, differences), count, row.slope)[0]


@jit
def integer_distance(left: Word, right: Word, signed: bool) -> tuple[Word, bool]:
    """|right - left|, which fits 64 bits, and whether right is the larger one."""
    flip = SIGN if signed else np.uint64(0)
    grows = (right ^ flip) >= (left ^ flip)
    return (right - left if grows else left - right), grows


@jit
def first_integer_shift(words: tuple[Word, Word], count: Word, largest: Word, signed: bool) -> Word:
    """Offset of the first |d| of that size."""
    for i in range(count):
        if integer_distance(load(U64, words[0], i), load(U64, words[1], i), signed)[0] == largest:
            return i
    return -1


@jit
def mixed_shift(
    row: Any, words: tuple[Word, Word], wholes: Any, raws: tuple[Word, Word], sides: Any, squares: Any, spare: Any
) -> None:
    """Fill the row from 64-bit integers and another dtype; leaves the differences in spare[4], 0 where none is finite.

    `words` are float64 patterns of both sides, in which integers are rounded: their difference may be 0 where the
    values differ. `wholes` says of each side whether it is an integer, and whether a signed one; `raws` hold those.
    """
    baseline, _ = _begin(row, U64, words[0], words[1], sides, squares, False, spare)
    for i in range(row.count):
        before, after = real(load(U64, words[0], i)), real(load(U64, words[1], i))
        spare[4, i] = 0
        if not (math.isfinite(before) and math.isfinite(after)):
            continue
        high, low = _split(before, wholes[0], load(U64, raws[0], i) if wholes[0][0] else U64)
        higher, lower = _split(after, wholes[1], load(U64, raws[1], i) if wholes[1][0] else U64)
        difference = (higher - high) + (lower - low)
        spare[4, i] = pattern(difference)
        row.changed += difference != 0.0
        row.flips += (before < 0.0 and after > 0.0) or (before > 0.0 and after < 0.0)
    differences = np.int64(spare[4].ctypes.data)
    row.d2, row.d1, along, top = given_sums(U64, (baseline, differences), row.count, 0.0)
    row.max_abs = pattern(top)
    if _regress(row, along):
        row.rest = given_rest_sum(U64, (baseline, differences), row.count, row.slope)[0]


@jit
def _split(value: Real, whole: tuple[bool, bool], word: Word) -> tuple[Real, Real]:
    """A number as two float64 that add to it exactly: the lowest 11 of the 64 bits of an integer come apart.

    Both parts have the number's sign. So the difference of two high parts is exact unless they are a factor of 2
    apart, where what is lost is below 2^-52 of the difference; the difference of the low parts is always exact where
    both are integers, and a float64 has none. Their sum is 0 only for equal numbers.
    """
    if not whole[0]:
        return value, 0.0
    size = integer_magnitude(word, whole[1])
    low = np.float64(size & LOW_BITS)
    high = np.float64(size & ~LOW_BITS)
    return (-high, -low) if value < 0.0 else (high, low)


@jit
def first_mixed_shift(words: tuple[Word, Word], differences: Word, count: Word, largest: Real) -> Word:
    """Offset of the first of the differences of that size among what is finite on both sides."""
    for i in range(count):
        if abs(real(load(U64, differences, i))) == largest:
            if math.isfinite(real(load(U64, words[0], i))) and math.isfinite(real(load(U64, words[1], i))):
                return i
    return -1


@jit
def join_shift(row: Any, other: Any) -> None:
    """Add the shift of elements that lie behind those of the row."""
    row.count += other.count
    row.changed += other.changed
    row.changed_nonfinite += other.changed_nonfinite
    row.bits += other.bits
    row.flips += other.flips
    row.both += other.both
    row.d2 += other.d2
    row.d1 += other.d1
    row.a1 += other.a1
    row.b1 += other.b1
    if other.aa > 0.0:
        weight = other.aa / (row.aa + other.aa)
        gap = other.slope - row.slope
        row.slope += gap * weight
        row.rest += gap * gap * weight * row.aa
    row.rest += other.rest
    row.aa += other.aa
    row.bb += other.bb
    if other.max_abs_index >= 0 and (row.max_abs_index < 0 or other.max_abs > row.max_abs):
        row.max_abs, row.max_abs_index = other.max_abs, other.max_abs_index
