"""What the kernels must give, computed another way: ml_dtypes decodes, exact sums (`math.fsum`), Python integers."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np

from diffai_dist.dtypes import Family, dtype_of

NUMPY = {
    "F32": np.float32,
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F4": ml_dtypes.float4_e2m1fn,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.uint8,
    "I16": np.int16,
    "U16": np.uint16,
    "F64": np.float64,
    "I32": np.int32,
    "U32": np.uint32,
    "I64": np.int64,
    "U64": np.uint64,
    "C64": np.complex64,
}


def nibbles(packed: bytes) -> bytes:
    """One byte per F4 element, the low nibble first."""
    return bytes(code for byte in packed for code in (byte & 15, byte >> 4))


def codes(name: str, data: bytes) -> list[bytes]:
    """The raw bytes of each element; an F4 element is one byte that holds its nibble."""
    if name == "F4":
        data = nibbles(data)
    size = max(dtype_of(name).bits // 8, 1)
    return [data[i : i + size] for i in range(0, len(data), size)]


def values(name: str, data: bytes) -> list:
    """Python floats, integers or complex numbers; bytes for a dtype without a decoder."""
    if dtype_of(name).family is Family.BYTES:
        return list(data)
    array = np.frombuffer(nibbles(data) if name == "F4" else data, NUMPY[name])
    if dtype_of(name).family is Family.INTEGER:
        return array.tolist()
    wide = np.complex128 if name == "C64" else np.float64
    with np.errstate(invalid="ignore"):  # a signalling NaN is quietened
        return (
            array.astype(np.float32).astype(wide).tolist() if array.dtype.itemsize < 4 else array.astype(wide).tolist()
        )


def parts(x: complex) -> tuple[float, ...]:
    return (x.real, x.imag) if isinstance(x, complex) else (x,)


def finite(x: complex) -> bool:
    return all(isinstance(part, int) or math.isfinite(part) for part in parts(x))


def nan(x: complex) -> bool:
    return any(math.isnan(part) for part in parts(x))


SCALE = 2**1074  # a float64 times this is an integer


def fixed(x: float) -> int:
    """The number in units of 1 / SCALE; sums of such are exact, and faster than those of fractions."""
    above, below = x.as_integer_ratio()
    return above * (SCALE // below)


def total(terms) -> Fraction:
    """The exact sum."""
    return Fraction(sum(map(fixed, terms)), SCALE)


def rounded(exact: Fraction) -> float:
    """The nearest float64; infinite where float64 ends."""
    try:
        return float(exact)
    except OverflowError:
        return -math.inf if exact < 0 else math.inf


def power(xs) -> Fraction:
    """The exact sum of |x|^2."""
    return Fraction(sum(fixed(part) ** 2 for x in xs for part in parts(x)), SCALE**2)


def moments(name: str, data: bytes, base: int = 0) -> dict:
    """The statistics of one member under the names of MOMENTS, with decoded low, high and absmax (None without any)."""
    xs = values(name, data)
    if dtype_of(name).family is Family.BYTES:
        return {"count": len(xs)}
    good = [x for x in xs if finite(x)]
    numbers = [part for x in good for part in parts(x)]
    n = len(numbers)
    mean = total(numbers) / max(n, 1)
    smallest = dtype_of(name).smallest_normal
    sizes = [abs(x) for x in good]
    top = max(sizes, default=None)
    infinities = [x for x in xs if not finite(x) and not nan(x)]
    return {
        "count": len(xs),
        "finite": len(good),
        "nans": sum(nan(x) for x in xs if not finite(x)),
        "posinfs": sum(isinstance(x, complex) or x > 0 for x in infinities),
        "neginfs": sum(not isinstance(x, complex) and x < 0 for x in infinities),
        "zeros": sum(x == 0 for x in good),
        "subnormals": sum(any(0 < abs(part) < smallest for part in parts(x)) for x in good),
        "mean": rounded(mean),
        "m2": rounded((power(numbers) - n * mean**2) / (2 if name == "C64" else 1)),
        "abs_sum": rounded(total(sizes)),
        "low": min(numbers, default=None),
        "high": max(numbers, default=None),
        "absmax": top,
        "absmax_index": next((base + i for i, x in enumerate(xs) if finite(x) and abs(x) == top), -1),
    }


def difference(a: complex, b: complex) -> complex:
    """b - a, of integers with each other exactly, else rounded once."""
    if isinstance(a, complex) or isinstance(a, int) is isinstance(b, int):
        return b - a
    return rounded(Fraction(b) - Fraction(a))


def differ(a: complex, b: complex) -> bool:
    """Whether the values differ; Python compares an int with a float exactly."""
    return not (a == b or (finite(a) is finite(b) is False and nan(a) and nan(b)))


def shift(before: tuple[str, bytes], after: tuple[str, bytes], base: int = 0) -> dict:
    """The statistics of a pair under the names of SHIFT, with a decoded max_abs (None without any)."""
    (name, data), (other, more) = before, after
    xs, ys = values(name, data), values(other, more)
    bits = sum(p != q for p, q in zip(codes(name, data), codes(other, more), strict=True)) if name == other else 0
    if dtype_of(name).family is Family.BYTES:
        return {"count": len(xs), "changed": bits, "bits": bits}
    both = [(i, x, y) for i, (x, y) in enumerate(zip(xs, ys, strict=True)) if finite(x) and finite(y)]
    ds = [difference(x, y) for _, x, y in both]
    sizes = [abs(d) for d in ds]
    aa, d2 = power(x for _, x, _ in both), power(ds)
    products = zip(
        (part for d in ds for part in parts(d)), (part for _, x, _ in both for part in parts(x)), strict=True
    )
    along = Fraction(sum(fixed(p) * fixed(q) for p, q in products), SCALE**2)
    top = max(sizes, default=None)
    ordered = not any(isinstance(x, complex) for x in xs)
    return {
        "count": len(xs),
        "both": len(both),
        "changed": sum(map(differ, xs, ys)),
        "changed_nonfinite": sum(differ(x, y) for x, y in zip(xs, ys, strict=True) if not (finite(x) and finite(y))),
        "bits": bits,
        "flips": sum(x < 0 < y or y < 0 < x for x, y in zip(xs, ys, strict=True)) if ordered else 0,
        "d2": rounded(d2),
        "d1": rounded(total(sizes)),
        "a1": rounded(total(abs(x) for _, x, _ in both)),
        "b1": rounded(total(abs(y) for _, _, y in both)),
        "aa": rounded(aa),
        "bb": rounded(power(y for _, _, y in both)),
        "slope": rounded(along / aa) if aa else 0.0,
        "rest": rounded(d2 - along * along / aa) if aa else rounded(d2),
        "max_abs": top,
        "max_abs_index": next((base + i for (i, _, _), size in zip(both, sizes, strict=True) if size == top), -1),
    }


def key_number(key: int) -> float:
    """The float64 of an order-preserving key."""
    word = key ^ (1 << 63) if key >> 63 else ~key & (1 << 64) - 1
    return float(np.uint64(word).view(np.float64))


def number(name: str, key: int, *, magnitude: bool) -> float:
    """What a key of `low` and `high`, or a magnitude, stands for."""
    if dtype_of(name).family is not Family.INTEGER:
        return float(np.uint64(key).view(np.float64)) if magnitude else key_number(key)
    return key if magnitude or name == "U64" else key - (1 << 63)
