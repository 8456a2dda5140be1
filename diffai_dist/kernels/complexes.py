"""C64: moments of the parts, norms of the modulus, differences in the complex plane. Plain loops: the dtype is rare."""

from __future__ import annotations

import math
from typing import Any

from diffai_dist.kernels.compiled import Flag, Real, Word, jit
from diffai_dist.kernels.decode import U32
from diffai_dist.kernels.lanes import load, pattern, real
from diffai_dist.kernels.moments import clear_moments, key
from diffai_dist.kernels.shift import clear_shift


@jit
def part(address: Word, index: Word) -> Real:
    """Real parts lie at even, imaginary ones at odd indices."""
    return real(load(U32, address, index))


@jit
def modulus(x: Real, y: Real) -> Real:
    """Of two float32 values: their squares neither overflow nor underflow in float64."""
    return math.sqrt(x * x + y * y)


@jit
def complex_moments(row: Any, address: Word, count: Word, smallest_normal: Real) -> Real:
    """Fill the row, all but `absmax_index`; returns the sum of squared moduli."""
    clear_moments(row)
    row.count = count
    total = squares = top = 0.0
    for i in range(count):
        x, y = part(address, 2 * i), part(address, 2 * i + 1)
        if not (math.isfinite(x) and math.isfinite(y)):
            row.nans += math.isnan(x) or math.isnan(y)
            continue
        row.finite += 1
        row.zeros += x == 0.0 and y == 0.0
        row.subnormals += 0.0 < abs(x) < smallest_normal or 0.0 < abs(y) < smallest_normal
        total += x + y
        squares += x * x + y * y
        row.abs_sum += modulus(x, y)
        top = max(top, modulus(x, y))
        row.low = min(row.low, key(x), key(y))
        row.high = max(row.high, key(x), key(y))
    row.posinfs = count - row.finite - row.nans
    row.absmax = pattern(top)
    if row.finite:
        row.mean = total / (2 * row.finite)
        row.m2 = _spread(address, count, row.mean)
    return squares


@jit
def _spread(address: Word, count: Word, mean: Real) -> Real:
    """Half of the parts' centred squares: m2 as an element's share, for rows join by numbers of elements."""
    spread = 0.0
    for i in range(count):
        x, y = part(address, 2 * i), part(address, 2 * i + 1)
        if math.isfinite(x) and math.isfinite(y):
            spread += (x - mean) * (x - mean) + (y - mean) * (y - mean)
    return spread / 2.0


@jit
def first_modulus(address: Word, count: Word, largest: Real) -> Word:
    """Offset of the first finite element of that modulus; -1 without any."""
    for i in range(count):
        x, y = part(address, 2 * i), part(address, 2 * i + 1)
        if math.isfinite(x) and math.isfinite(y) and modulus(x, y) == largest:
            return i
    return -1


@jit
def both_finite(baseline: Word, candidate: Word, index: Word) -> Flag:
    """Whether all four parts are."""
    before = math.isfinite(part(baseline, 2 * index)) and math.isfinite(part(baseline, 2 * index + 1))
    return before and math.isfinite(part(candidate, 2 * index)) and math.isfinite(part(candidate, 2 * index + 1))


@jit
def complex_shift(row: Any, baseline: Word, candidate: Word, count: Word) -> None:
    """Fill the row, all but `max_abs_index`; slope is Re<d, a> / <a, a>."""
    clear_shift(row)
    row.count = count
    along = top = 0.0
    for i in range(count):
        x, y = part(baseline, 2 * i), part(baseline, 2 * i + 1)
        u, v = part(candidate, 2 * i), part(candidate, 2 * i + 1)
        row.bits += _word(baseline, i) != _word(candidate, i)
        if not both_finite(baseline, candidate, i):
            changed = _differ(x, y, u, v)
            row.changed += changed
            row.changed_nonfinite += changed
            continue
        row.both += 1
        row.changed += x != u or y != v
        size = modulus(u - x, v - y)
        top = max(top, size)
        row.d1 += size
        row.d2 += (u - x) * (u - x) + (v - y) * (v - y)
        along += (u - x) * x + (v - y) * y
        row.a1 += modulus(x, y)
        row.b1 += modulus(u, v)
        row.aa += x * x + y * y
        row.bb += u * u + v * v
    row.max_abs = pattern(top)
    row.slope = along / row.aa if row.aa > 0.0 else 0.0
    row.rest = _rest(baseline, candidate, count, row.slope)


@jit
def _word(address: Word, index: Word) -> tuple[Word, Word]:
    return load(U32, address, 2 * index), load(U32, address, 2 * index + 1)


@jit
def _differ(x: Real, y: Real, u: Real, v: Real) -> Flag:
    """Whether (x, y) and (u, v) are other values; an element with a NaN in any part is a NaN."""
    before, after = math.isnan(x) or math.isnan(y), math.isnan(u) or math.isnan(v)
    if before or after:
        return before != after
    return x != u or y != v


@jit
def _rest(baseline: Word, candidate: Word, count: Word, slope: Real) -> Real:
    rest = 0.0
    for i in range(count):
        if both_finite(baseline, candidate, i):
            for p in (2 * i, 2 * i + 1):
                distance = part(candidate, p) - part(baseline, p) - slope * part(baseline, p)
                rest += distance * distance
    return rest


@jit
def first_complex_shift(baseline: Word, candidate: Word, count: Word, largest: Real) -> Word:
    """Offset of the first |d| of that size among what is finite on both sides; -1 without any."""
    for i in range(count):
        if both_finite(baseline, candidate, i):
            across = part(candidate, 2 * i) - part(baseline, 2 * i)
            up = part(candidate, 2 * i + 1) - part(baseline, 2 * i + 1)
            if modulus(across, up) == largest:
                return i
    return -1
