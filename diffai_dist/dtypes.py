"""The dtypes of checkpoints: sizes, and the family of numbers each one decodes to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Family(IntEnum):
    """How the values of a dtype are held once decoded; each family has its own kernel."""

    SINGLE = 0  # exact in float32
    DOUBLE = 1  # exact in float64, not in float32
    INTEGER = 2  # 64-bit integers, exact in neither
    COMPLEX = 3  # two float32 parts
    BYTES = 4  # no decoder: compared byte by byte, no statistics


@dataclass(frozen=True, slots=True)
class DType:
    """One dtype; `code` names its decoder in the kernels and is part of the algorithm version."""

    name: str
    bits: int  # per element; for BYTES the size of the unit that is compared, 8
    code: int
    family: Family
    smallest_normal: float = 0.0  # smaller non-zero magnitudes are subnormal; 0 where there are none


# Sizes and codes: the safetensors crate 0.8.0, OCP 8-bit and microscaling formats v1.0, Arm/AMD/Graphcore FNUZ.
DTYPES = {
    dtype.name: dtype
    for dtype in (
        DType("F32", 32, 0, Family.SINGLE, 2.0**-126),
        DType("BF16", 16, 1, Family.SINGLE, 2.0**-126),
        DType("F16", 16, 2, Family.SINGLE, 2.0**-14),
        DType("F8_E4M3", 8, 3, Family.SINGLE, 2.0**-6),
        DType("F8_E5M2", 8, 4, Family.SINGLE, 2.0**-14),
        DType("F8_E4M3FNUZ", 8, 5, Family.SINGLE, 2.0**-7),
        DType("F8_E5M2FNUZ", 8, 6, Family.SINGLE, 2.0**-15),
        DType("F8_E8M0", 8, 7, Family.SINGLE),
        DType("F4", 4, 8, Family.SINGLE, 1.0),
        DType("I8", 8, 9, Family.SINGLE),
        DType("U8", 8, 10, Family.SINGLE),
        DType("BOOL", 8, 11, Family.SINGLE),
        DType("I16", 16, 12, Family.SINGLE),
        DType("U16", 16, 13, Family.SINGLE),
        DType("F64", 64, 14, Family.DOUBLE, 2.0**-1022),
        DType("I32", 32, 15, Family.DOUBLE),
        DType("U32", 32, 16, Family.DOUBLE),
        DType("I64", 64, 17, Family.INTEGER),
        DType("U64", 64, 18, Family.INTEGER),
        DType("C64", 64, 19, Family.COMPLEX, 2.0**-126),
    )
}

# Known sizes whose bit order inside the bytes is not defined: checked against the header, compared as bytes.
BITS = {dtype.name: dtype.bits for dtype in DTYPES.values()} | {"F6_E2M3": 6, "F6_E3M2": 6}

BYTES = DType("bytes", 8, 20, Family.BYTES)


def dtype_of(name: str) -> DType:
    """The dtype of that name; one without a decoder is compared as bytes.

    >>> dtype_of("BF16").bits, dtype_of("F6_E2M3").family.name, dtype_of("F3").family.name
    (16, 'BYTES', 'BYTES')
    """
    return DTYPES.get(name, BYTES)


def comparable(a: DType, b: DType) -> bool:
    """Whether elements of the two have common values; dtypes without a decoder are bytes, comparable with bytes."""
    special = {Family.COMPLEX, Family.BYTES}
    return a.family == b.family or not special & {a.family, b.family}
