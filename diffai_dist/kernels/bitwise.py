"""How the bits of a block of a pair differ, and how rows of BITWISE join.

Distances are counted on magnitudes with a sign, so that +0 and -0 are one number, 0 apart from each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffai_dist.kernels.casts import MANTISSA_BITS, is_cast, is_castable
from diffai_dist.kernels.compiled import Word, jit
from diffai_dist.kernels.decode import U8, U16, U32, U64
from diffai_dist.kernels.lanes import HITS, UNSIGNED_MAX, Words, load, loop, real, real_of, splat
from diffai_dist.kernels.shift import integer_distance
from diffai_dist.kernels.tables import BITS, CODE

LIMITS = (1, 2, 4, 8, 16, 256, 65536)  # as in the names of the fields
_VISIBLE = 1024.0  # 2^10: the difference times that is exact, and so is the comparison

_F32, _BF16, _F16, _F4, _F64 = (CODE[name] for name in ("F32", "BF16", "F16", "F4", "F64"))
_I8, _I16, _U16, _I32, _U32, _I64 = (CODE[name] for name in ("I8", "I16", "U16", "I32", "U32", "I64"))
_E4M3, _LAST_SIGNED = CODE["F8_E4M3"], CODE["F8_E5M2FNUZ"]


def _exponents() -> np.ndarray:
    """Bits of the exponent in codes whose sign is the top bit of the word; as float64, exactly. 0 for integers."""
    masks = np.zeros(1 + max(CODE.values()))
    for name, mantissa in MANTISSA_BITS.items():
        top = 8 if name == "F8_E8M0" else int(BITS[CODE[name]]) - 1
        masks[CODE[name]] = float((1 << top) - (1 << mantissa))
    return masks


_EXPONENTS = _exponents()


def _finite(words: Words, word: Any) -> Any:
    limit = words.constant(0x7F800000 if words.bits == 32 else 0x7FF0000000000000)
    return words.builder.icmp_unsigned("<", words.magnitude(word), limit)


def _seen(words: Words) -> tuple[Any, Any, Any]:
    """Masks: both finite, and those apart by more than 2^-10 of the larger; the larger magnitude.

    Float32 suffices: near the limit the difference is exact, further away its rounding is far from mattering.
    """
    builder = words.builder
    kind = words.floats
    both = builder.and_(_finite(words, words.first), _finite(words, words.second))
    sizes = words.magnitude(words.first), words.magnitude(words.second)
    larger = builder.select(builder.icmp_unsigned(">", *sizes), *sizes)
    distance = builder.fsub(builder.bitcast(words.second, kind), builder.bitcast(words.first, kind))
    distance = builder.bitcast(words.magnitude(builder.bitcast(distance, words.first.type)), kind)
    scaled = builder.fmul(distance, splat(kind, _VISIBLE))
    far = builder.fcmp_ordered(">", scaled, builder.bitcast(larger, kind))
    return both, builder.and_(both, far), larger


def _place(words: Words, code: Any) -> Any:
    """A code as a signed integer."""
    builder = words.builder
    sign = builder.ashr(code, words.constant(words.bits - 1))
    return builder.sub(builder.xor(words.magnitude(code), sign), sign)


def _distance(words: Words, codes: Sequence[Any], both: Any) -> Any:
    """How many numbers lie between the codes; 0 where one is not finite."""
    builder = words.builder
    places = [_place(words, code) for code in codes]
    above = builder.icmp_signed(">", *places)
    size = builder.sub(builder.select(above, *places), builder.select(above, places[1], places[0]))
    return builder.select(both, size, words.constant(0))


def _flips(words: Words, codes: Sequence[Any], mask: Any, larger: Any) -> list[Any]:
    """Other exponents, those among them where no other bit differs, and how large these are."""
    builder, zero = words.builder, words.constant(0)
    crossed = builder.xor(*codes)
    exponents = builder.icmp_unsigned("!=", builder.and_(crossed, mask), zero)
    single = builder.icmp_unsigned("==", builder.and_(crossed, builder.sub(crossed, words.constant(1))), zero)
    flips = builder.and_(exponents, single)
    return [words.hits(exponents), words.hits(flips), builder.select(flips, larger, zero)]


def _near(words: Words, distance: Any, limits: Sequence[int]) -> list[Any]:
    return [words.hits(words.builder.icmp_unsigned(">=", distance, words.constant(limit))) for limit in limits]


def _code_terms(words: Words) -> Sequence[Any]:
    """Of words and codes of both sides; the number masks the exponent."""
    both, seen, larger = _seen(words)
    distance = _distance(words, words.inputs[2:], both)
    mask = words.builder.fptoui(words.number, distance.type)
    return [
        *_near(words, distance, LIMITS),
        distance,
        words.hits(seen),
        *_flips(words, words.inputs[2:], mask, larger),
    ]


def _bf16_terms(words: Words) -> Sequence[Any]:
    """Of BF16 codes of both sides. Any other value of 8 bits is further away than 2^-10, and none 65536 places."""
    builder = words.builder
    limit, sizes = words.constant(0x7F80), (words.magnitude(words.first), words.magnitude(words.second))
    both = builder.and_(*(builder.icmp_unsigned("<", size, limit) for size in sizes))
    distance = _distance(words, words.inputs, both)
    larger = builder.select(builder.icmp_unsigned(">", *sizes), *sizes)
    return [*_near(words, distance, LIMITS[:-1]), distance, *_flips(words, words.inputs, limit, larger)]


def _visible_terms(words: Words) -> Sequence[Any]:
    return [words.hits(_seen(words)[1])]


code_counts = loop([*[HITS] * len(LIMITS), UNSIGNED_MAX, HITS, HITS, HITS, UNSIGNED_MAX], _code_terms)
bf16_counts = loop([*[HITS] * (len(LIMITS) - 1), UNSIGNED_MAX, HITS, HITS, UNSIGNED_MAX], _bf16_terms)
visible_count = loop([HITS], _visible_terms)


@jit
def clear_bitwise(row: Any) -> None:
    """Make the row neutral."""
    row.count = row.ulps1 = row.ulps2 = row.ulps4 = row.ulps8 = row.ulps16 = row.ulps256 = row.ulps65536 = 0
    row.furthest = np.uint64(0)
    row.visible = row.exponents = row.flips = row.cast = row.miscast = row.overflowed = row.underflowed = 0
    row.flip_size = 0.0
    row.first = row.flip_index = row.miscast_index = -1


@jit
def float_bits(
    row: Any, kind: Word, words: tuple[Word, Word], codes: tuple[Word, Word], count: Word, code: Word
) -> None:
    """Fill the row from one block of one dtype that is no 64-bit integer, all but the indices."""
    clear_bitwise(row)
    row.count = count
    counts = code_counts(kind, (words[0], words[1], codes[0], codes[1]), count, _EXPONENTS[code])
    row.ulps1, row.ulps2, row.ulps4, row.ulps8, row.ulps16, row.ulps256, row.ulps65536 = counts[:7]
    row.furthest, row.visible, row.exponents, row.flips, largest = counts[7:]
    if row.flips:
        size = real_of(kind, largest)
        row.flip_size = size if math.isfinite(size) else math.inf


@jit
def bf16_bits(row: Any, raws: tuple[Word, Word], count: Word) -> None:
    """Fill the row from one block of BF16 as it lies in the file, whole vectors of it, all but the indices."""
    clear_bitwise(row)
    row.count = count
    counts = bf16_counts(U16, raws, count, 0.0)
    row.ulps1, row.ulps2, row.ulps4, row.ulps8, row.ulps16, row.ulps256 = counts[:6]
    row.visible = row.ulps1
    row.furthest, row.exponents, row.flips, largest = counts[6:]
    if row.flips:
        size = real(np.uint32(largest << np.uint64(16)))
        row.flip_size = size if math.isfinite(size) else math.inf


@jit
def first_difference(kind: Word, codes: tuple[Word, Word], count: Word) -> Word:
    """Offset of the first code that differs; -1 for none."""
    for i in range(count):
        if load(kind, codes[0], i) != load(kind, codes[1], i):
            return i
    return -1


@jit
def first_flip(
    kind: Word,
    words: tuple[Word, Word],
    coded: Word,
    codes: tuple[Word, Word],
    count: Word,
    mask: Word,
    size: Word,
) -> Word:
    """Offset of the first flip of that size, which is there; words of the kind, codes of the other."""
    for i in range(count):
        crossed = np.uint64(load(coded, codes[0], i)) ^ np.uint64(load(coded, codes[1], i))
        if crossed & mask and crossed & (crossed - np.uint64(1)) == 0:
            before, after = abs(real(load(kind, words[0], i))), abs(real(load(kind, words[1], i)))
            larger = max(before, after) if math.isfinite(before) and math.isfinite(after) else math.inf
            if larger == size:
                return i
    return -1


@jit
def exponent_of(code: Word) -> Word:
    """Mask of the exponent in the codes of a dtype."""
    return np.uint64(_EXPONENTS[code])


@jit
def integer_bits(row: Any, raws: tuple[Word, Word], count: Word, code: Word) -> None:
    """Fill the row from one block of 32- or 64-bit integers of one dtype, all but `visible`; `first` is an offset."""
    clear_bitwise(row)
    row.count = count
    signed = code == _I32 or code == _I64
    for i in range(count):
        distance = integer_distance(_whole(code, raws[0], i), _whole(code, raws[1], i), signed)[0]
        if distance and row.first < 0:
            row.first = i
        row.furthest = max(row.furthest, distance)
        row.ulps1 += distance >= np.uint64(1)
        row.ulps2 += distance >= np.uint64(2)
        row.ulps4 += distance >= np.uint64(4)
        row.ulps8 += distance >= np.uint64(8)
        row.ulps16 += distance >= np.uint64(16)
        row.ulps256 += distance >= np.uint64(256)
        row.ulps65536 += distance >= np.uint64(65536)


@jit
def _whole(code: Word, address: Word, i: Word) -> Word:
    """An integer of 32 or 64 bits as the 64 bits of its value."""
    if code == _I32:
        return np.uint64(np.int64(np.int32(load(U32, address, i))))
    if code == _U32:
        return np.uint64(load(U32, address, i))
    return load(U64, address, i)


@jit
def cast_bits(row: Any, words: tuple[Word, Word], count: Word, code: Word, other: Word) -> None:
    """Count in the row what is no rounding of the baseline; float64 patterns of both. `miscast_index` is an offset."""
    if not is_castable(code, other):
        return
    row.cast = count
    for i in range(count):
        before, after = real(load(U64, words[0], i)), real(load(U64, words[1], i))
        row.overflowed += math.isfinite(before) and not math.isfinite(after)
        row.underflowed += before != 0.0 and after == 0.0
        if not is_cast(before, after, code, other):
            row.miscast += 1
            if row.miscast_index < 0:
                row.miscast_index = i


@jit
def codes_at(code: Word, address: Word, odd: Word, count: Word, words: np.ndarray) -> None:
    """Raw codes of the SINGLE family but F32: magnitudes, with the sign in the top bit; integers likewise."""
    if code == _BF16 or code == _F16:
        for i in range(count):
            raw = np.uint32(load(U16, address, i))
            words[i] = ((raw & np.uint32(0x8000)) << np.uint32(16)) | (raw & np.uint32(0x7FFF))
    elif _E4M3 <= code <= _LAST_SIGNED:
        for i in range(count):
            raw = np.uint32(load(U8, address, i))
            words[i] = ((raw & np.uint32(0x80)) << np.uint32(24)) | (raw & np.uint32(0x7F))
    elif code == _F4:
        for i in range(count):
            at = i + odd // 4
            raw = np.uint32(load(U8, address, at >> 1) >> (4 * (at & 1)))
            words[i] = ((raw & np.uint32(8)) << np.uint32(28)) | (raw & np.uint32(7))
    elif code == _I8:
        for i in range(count):
            words[i] = _signed(np.int32(np.int8(load(U8, address, i))))
    elif code == _I16:
        for i in range(count):
            words[i] = _signed(np.int32(np.int16(load(U16, address, i))))
    elif code == _U16:
        for i in range(count):
            words[i] = load(U16, address, i)
    else:  # E8M0, U8, BOOL: without a sign
        for i in range(count):
            words[i] = load(U8, address, i)


@jit
def _signed(value: Word) -> Word:
    return np.uint32(abs(value)) | (np.uint32(value) & np.uint32(0x80000000))


@jit
def join_bitwise(row: Any, other: Any) -> None:
    """Add the row of elements that lie behind those of the row."""
    row.count += other.count
    row.ulps1 += other.ulps1
    row.ulps2 += other.ulps2
    row.ulps4 += other.ulps4
    row.ulps8 += other.ulps8
    row.ulps16 += other.ulps16
    row.ulps256 += other.ulps256
    row.ulps65536 += other.ulps65536
    row.furthest = max(row.furthest, other.furthest)
    row.visible += other.visible
    row.exponents += other.exponents
    row.flips += other.flips
    row.cast += other.cast
    row.miscast += other.miscast
    row.overflowed += other.overflowed
    row.underflowed += other.underflowed
    if row.first < 0:
        row.first = other.first
    if row.miscast_index < 0:
        row.miscast_index = other.miscast_index
    if other.flip_index >= 0 and (row.flip_index < 0 or other.flip_size > row.flip_size):
        row.flip_size, row.flip_index = other.flip_size, other.flip_index
