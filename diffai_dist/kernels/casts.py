"""Whether a value is another one rounded to its dtype: to nearest, ties to even, as IEEE 754 and OCP define it.

What is too large becomes infinite, or NaN where the dtype has no infinity (as torch and ml_dtypes do it); there the
largest finite value is as good (saturation, OCP 8-bit formats v1.0). What comes from F64 may have been rounded to F32
before, as libraries without a direct way do. Nobody casts to F4 and F8_E8M0 alone: they are parts of scaled blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from diffai_dist.dtypes import DTYPES
from diffai_dist.kernels.compiled import Flag, Real, Word, jit
from diffai_dist.kernels.lanes import pattern, real
from diffai_dist.kernels.tables import CODE, PATTERNS, SMALL_FLOATS

MANTISSA_BITS = {
    "F64": 52,
    "F32": 23,
    "F16": 10,
    "BF16": 7,
    "F8_E4M3": 3,
    "F8_E5M2": 2,
    "F8_E4M3FNUZ": 3,
    "F8_E5M2FNUZ": 2,
    "F8_E8M0": 0,
    "F4": 1,
}
_FROM = frozenset({"F64", "F32", "BF16", "F16"})
_TO = frozenset(MANTISSA_BITS) - {"F8_E8M0", "F4"}
_BIAS, _FRACTION = 1023, 52


def _largest(name: str) -> float:
    """The largest finite value of a dtype; of those without a table, all ones behind the point."""
    if name in SMALL_FLOATS:
        values = PATTERNS[CODE[name]].view(np.float32)
        return float(values[np.isfinite(values)].max())
    top = {"F64": 1024, "F32": 128, "BF16": 128, "F16": 16}[name]
    return math.ldexp(1.0 - 2.0 ** -(MANTISSA_BITS[name] + 1), top)


def _table(value: Callable[[str], float], kind: type) -> np.ndarray:
    made: np.ndarray = np.zeros(1 + max(CODE.values()), kind)
    for name in MANTISSA_BITS:
        made[CODE[name]] = value(name)
    return made


_MANTISSA = _table(MANTISSA_BITS.__getitem__, np.int64)
_LEAST = _table(lambda name: _BIAS + math.frexp(DTYPES[name].smallest_normal or 1.0)[1] - 1, np.int64)
_LARGEST = _table(_largest, np.float64)
_INFINITE = _table(lambda name: name in ("F64", "F32", "F16", "BF16", "F8_E5M2"), np.bool_)
_ONE_ZERO = _table(lambda name: name.endswith("FNUZ"), np.bool_)
_SOURCE = _table(lambda name: name in _FROM, np.bool_)
_TARGET = _table(lambda name: name in _TO, np.bool_)
_F64 = CODE["F64"]


@jit
def is_castable(code: Word, other: Word) -> Flag:
    """Whether values of the one dtype are commonly rounded to the other."""
    return _SOURCE[code] and _TARGET[other] and code != other


@jit
def is_cast(before: Real, after: Real, code: Word, other: Word) -> Flag:
    """Whether `after` is `before`, of the dtype `code`, rounded to the dtype `other`."""
    return _is_rounded(before, after, other) or (
        code == _F64 and _is_rounded(np.float64(np.float32(before)), after, other)
    )


@jit
def _is_rounded(before: Real, after: Real, code: Word) -> Flag:
    if math.isnan(before):
        return math.isnan(after)
    value = before if code == _F64 else _nearest(before, _MANTISSA[code], _LEAST[code])
    if abs(value) > _LARGEST[code]:
        if _INFINITE[code]:
            return after == math.copysign(math.inf, before)
        return math.isnan(after) or after == math.copysign(_LARGEST[code], before)
    return pattern(after) == pattern(value) or (_ONE_ZERO[code] and value == 0.0 and pattern(after) == 0)


@jit
def _nearest(value: Real, mantissa: Word, least: Word) -> Real:
    """The value as the nearest multiple of the last place; scaling by powers of two is exact."""
    exponent = max(np.int64(pattern(value) >> np.uint64(_FRACTION)) & 2047, least)
    place = exponent - mantissa
    return np.rint(value * _power(2 * _BIAS - place)) * _power(place)


@jit
def _power(biased: Word) -> Real:
    return real(np.uint64(biased) << np.uint64(_FRACTION))
