"""What kernels look up by the code of a dtype: the values of small floats, family, threshold of subnormals."""

from __future__ import annotations

import math

import numpy as np

from diffai_dist.dtypes import BYTES, DTYPES, Family


def small_float(code: int, exponent_bits: int, mantissa_bits: int, bias: int) -> float:
    """Value of a sign-exponent-mantissa code without special cases: `(-1)^s * 2^(e-bias) * 1.m`, subnormal for e = 0.

    >>> small_float(0x7E, 4, 3, 7), small_float(0x01, 4, 3, 7), small_float(0b0111, 2, 1, 1)
    (448.0, 0.001953125, 6.0)
    """
    mantissa = code & (1 << mantissa_bits) - 1
    exponent = code >> mantissa_bits & (1 << exponent_bits) - 1
    sign = -1.0 if code >> mantissa_bits + exponent_bits else 1.0
    lead = 1 << mantissa_bits if exponent else 0
    return sign * math.ldexp(lead + mantissa, max(exponent, 1) - bias - mantissa_bits)


def _e4m3(code: int) -> float:
    return math.nan if code & 0x7F == 0x7F else small_float(code, 4, 3, 7)


def _e5m2(code: int) -> float:
    if code & 0x7C == 0x7C:
        return math.nan if code & 3 else math.copysign(math.inf, -(code >> 7) or 1)
    return small_float(code, 5, 2, 15)


def _e4m3fnuz(code: int) -> float:
    return math.nan if code == 0x80 else small_float(code, 4, 3, 8)


def _e5m2fnuz(code: int) -> float:
    return math.nan if code == 0x80 else small_float(code, 5, 2, 16)


def _e8m0(code: int) -> float:
    return math.nan if code == 0xFF else math.ldexp(1.0, code - 127)


def _e2m1(code: int) -> float:
    return small_float(code & 0xF, 2, 1, 1)


SMALL_FLOATS = {
    "F8_E4M3": _e4m3,
    "F8_E5M2": _e5m2,
    "F8_E4M3FNUZ": _e4m3fnuz,
    "F8_E5M2FNUZ": _e5m2fnuz,
    "F8_E8M0": _e8m0,
    "F4": _e2m1,
}


def _patterns() -> np.ndarray:
    """Float32 patterns [dtype, code]. A NaN keeps its code as payload, so that codes and patterns are one to one."""
    codes = np.arange(256, dtype=np.uint32)
    table = np.zeros((1 + max(DTYPES[name].code for name in SMALL_FLOATS), 256), np.uint32)
    for name, value in SMALL_FLOATS.items():
        values = np.array([value(code) for code in range(256)], np.float32)
        table[DTYPES[name].code] = np.where(np.isnan(values), 0x7FC00000 | codes, values.view(np.uint32))
    return table


PATTERNS = _patterns()

_BY_CODE = [*sorted(DTYPES.values(), key=lambda dtype: dtype.code), BYTES]
BITS = np.array([dtype.bits for dtype in _BY_CODE], np.int64)
FAMILY = np.array([dtype.family for dtype in _BY_CODE], np.int64)
SMALLEST_NORMAL = np.array([dtype.smallest_normal for dtype in _BY_CODE], np.float64)
SINGLE, DOUBLE, INTEGER, COMPLEX, RAW = (int(family) for family in Family)
CODE = {dtype.name: dtype.code for dtype in _BY_CODE}
