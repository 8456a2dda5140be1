"""Moments of one block of one member, and how rows of MOMENTS join. Formulas: Chan, Golub, LeVeque 1979."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffai_dist.kernels.compiled import Real, Word, jit
from diffai_dist.kernels.decode import U64
from diffai_dist.kernels.lanes import (
    HITS,
    SIGNED_MAX,
    SUM,
    UNSIGNED_MAX,
    UNSIGNED_MIN,
    Words,
    load,
    loop,
    pattern,
    real,
    real_of,
    sign_of,
    splat,
)

ALL_ONES = np.uint64(2**64 - 1)
SIGN = np.uint64(2**63)


def _power_terms(words: Words) -> Sequence[Any]:
    """Unsigned and signed maxima and the smallest magnitude settle min, max and whether all values are finite."""
    values = words.values(words.first)
    squares = words.builder.fmul(values, values)
    return [words.first, words.first, words.magnitude(words.first), values, words.absolute(values), squares]


def _centred_terms(words: Words) -> Sequence[Any]:
    """Distance from the mean and its square; 0 for non-finite values."""
    builder = words.builder
    exponent = words.constant(0x7F800000 if words.bits == 32 else 0x7FF0000000000000)
    finite = builder.icmp_unsigned("!=", builder.and_(words.first, exponent), exponent)
    distance = builder.fsub(words.values(words.first), words.number)
    distance = builder.select(finite, distance, splat(distance.type, 0.0))
    return [distance, builder.fmul(distance, distance)]


def _small_terms(words: Words) -> Sequence[Any]:
    """Zeros, and magnitudes below the smallest normal number."""
    builder, magnitude = words.builder, words.magnitude(words.first)
    zero = builder.icmp_unsigned("==", magnitude, words.constant(0))
    small = builder.fcmp_ordered("<", words.values(magnitude), words.number)
    return [words.hits(zero), words.hits(small)]


power_sums = loop([UNSIGNED_MAX, SIGNED_MAX, UNSIGNED_MIN, SUM, SUM, SUM], _power_terms)
centred_sums = loop([SUM, SUM], _centred_terms)
small_counts = loop([HITS, HITS], _small_terms)


@jit
def key(value: Real) -> Word:
    """Float64 as an unsigned integer of the same order."""
    bits = pattern(value)
    return ~bits if bits & SIGN else bits | SIGN


@jit
def clear_moments(row: Any) -> None:
    """Make the row neutral."""
    row.count = row.finite = row.nans = row.posinfs = row.neginfs = row.zeros = row.subnormals = 0
    row.mean = row.m2 = row.abs_sum = 0.0
    row.low = ALL_ONES
    row.high = row.absmax = np.uint64(0)
    row.absmax_index = -1


@jit
def float_moments(row: Any, kind: Word, address: Word, count: Word, smallest_normal: Real, spare: np.ndarray) -> Real:
    """Fill the row from one block of patterns, all but `absmax_index`; returns the sum of squares."""
    clear_moments(row)
    row.count = row.finite = count
    top, positive, least, total, absolute, squares = power_sums(kind, (address,), count, 0.0)
    low = top if top >= sign_of(kind) else least  # no sign bit anywhere: the smallest magnitude
    high = np.uint64(positive) if positive >= 0 else least | sign_of(kind)
    if not (math.isfinite(real_of(kind, low)) and math.isfinite(real_of(kind, high))):
        low, high = _finite_extremes(row, kind, address, count, spare)
        total, absolute, squares = power_sums(kind, (spare.ctypes.data,), count, 0.0)[3:]
    if real_of(kind, least) <= smallest_normal:
        row.zeros, small = small_counts(kind, (address,), count, smallest_normal)
        row.subnormals = max(small - row.zeros, 0)
    if row.finite:
        smallest, largest = real_of(kind, low), real_of(kind, high)
        row.low, row.high = key(smallest), key(largest)
        row.absmax = pattern(max(abs(smallest), abs(largest)))
        row.abs_sum = absolute
        row.mean, row.m2 = _mean_and_spread(kind, address, count, row.finite, total, squares)
    return squares


@jit
def _mean_and_spread(
    kind: Word, address: Word, count: Word, finite: Word, total: Real, squares: float
) -> tuple[Real, Real]:
    """Mean and centred squares of a block: from its power sums where at most one bit cancels, else in a second pass."""
    mean = total / finite
    offset = mean * total
    if 2.0 * offset <= squares and squares < math.inf:
        return mean, squares - offset
    drift, spread = centred_sums(kind, (address,), count, mean)
    return mean + drift / finite, max(spread - drift * (drift / finite), 0.0)


@jit
def _finite_extremes(row: Any, kind: Word, address: Word, count: Word, spare: np.ndarray) -> tuple[Word, Word]:
    """Count what is not finite, put 0 in its place into `spare`, and find the smallest and largest of the others."""
    low, high = math.inf, -math.inf
    low_word = high_word = np.uint64(0)
    for i in range(count):
        word = load(kind, address, i)
        value = real(word)
        if math.isfinite(value):
            spare[i] = word
            if key(value) < key(low):
                low, low_word = value, np.uint64(word)
            if key(value) > key(high):
                high, high_word = value, np.uint64(word)
            continue
        spare[i] = 0
        row.finite -= 1
        if math.isnan(value):
            row.nans += 1
        elif value > 0:
            row.posinfs += 1
        else:
            row.neginfs += 1
    return low_word, high_word


@jit
def integer_moments(row: Any, address: Word, count: Word, values: Word, signed: bool) -> Real:
    """Fill the row from 64-bit integers at `address` and their float64 roundings at `values`; returns the squares."""
    clear_moments(row)
    row.count = row.finite = count
    total, absolute, squares = power_sums(U64, (values,), count, 0.0)[3:]
    row.abs_sum = absolute
    row.mean, row.m2 = _mean_and_spread(U64, values, count, count, total, squares)
    flip = SIGN if signed else np.uint64(0)
    for i in range(count):
        word = load(U64, address, i)
        row.low = min(row.low, word ^ flip)
        row.high = max(row.high, word ^ flip)
        row.absmax = max(row.absmax, integer_magnitude(word, signed))
        row.zeros += word == 0
    return squares


@jit
def integer_magnitude(word: Word, signed: bool) -> Word:
    """|x| of a 64-bit integer, exact for -2^63 too."""
    return ~word + np.uint64(1) if signed and word & SIGN else word


@jit
def join_moments(row: Any, other: Any) -> None:
    """Add the moments of elements that lie behind those of the row."""
    row.count += other.count
    row.nans += other.nans
    row.posinfs += other.posinfs
    row.neginfs += other.neginfs
    if other.finite == 0:
        return
    row.zeros += other.zeros
    row.subnormals += other.subnormals
    weight = other.finite / (row.finite + other.finite)
    step = other.mean - row.mean
    if row.finite:
        row.mean += step * weight
        row.m2 += other.m2 + step * step * weight * row.finite
    else:
        row.mean, row.m2 = other.mean, other.m2
    row.finite += other.finite
    row.abs_sum += other.abs_sum
    row.low = min(row.low, other.low)
    row.high = max(row.high, other.high)
    if row.absmax_index < 0 or other.absmax > row.absmax:
        row.absmax, row.absmax_index = other.absmax, other.absmax_index
