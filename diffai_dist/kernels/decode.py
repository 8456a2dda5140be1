"""From bytes at any offset to words: float32 patterns of the SINGLE family, float64 patterns of the others."""

from __future__ import annotations

import numpy as np

from diffai_dist.kernels.compiled import Flag, Word, jit
from diffai_dist.kernels.lanes import LANES, load, pattern, real
from diffai_dist.kernels.tables import CODE, PATTERNS

U8, U16, U32, U64 = np.uint8(0), np.uint16(0), np.uint32(0), np.uint64(0)
_F32, _BF16, _F16, _F4, _F64 = (CODE[name] for name in ("F32", "BF16", "F16", "F4", "F64"))
_I8, _I16, _U16, _I32, _U32, _I64 = (CODE[name] for name in ("I8", "I16", "U16", "I32", "U32", "I64"))
_FIRST_BYTE, _LAST_TABLE = CODE["F8_E4M3"], CODE["F8_E8M0"]


@jit
def single_at(code: Word, origin: Word, start: Word, count: Word, scratch: np.ndarray) -> Word:
    """Address of `count` float32 patterns; `start` in bits. Whole vectors of F32 stay where they are."""
    address = origin + start // 8
    if code == _F32 and count % LANES == 0:  # else the last vector would be read beyond the buffer
        return address
    _decode_single(code, address, start % 8, count, scratch)
    return np.int64(scratch.ctypes.data)


@jit
def _decode_single(code: Word, address: Word, odd: Word, count: Word, words: np.ndarray) -> None:
    if code == _F32:
        for i in range(count):
            words[i] = load(U32, address, i)
    elif code == _BF16:
        for i in range(count):
            words[i] = np.uint32(load(U16, address, i)) << np.uint32(16)
    elif code == _F16:
        for i in range(count):
            words[i] = half(np.uint32(load(U16, address, i)))
    elif _FIRST_BYTE <= code <= _LAST_TABLE:
        for i in range(count):
            words[i] = PATTERNS[code, load(U8, address, i)]
    elif code == _F4:
        for i in range(count):
            at = i + odd // 4
            words[i] = PATTERNS[code, (load(U8, address, at >> 1) >> (4 * (at & 1))) & 0xF]
    else:
        _decode_integers(code, address, count, words)


@jit
def _decode_integers(code: Word, address: Word, count: Word, words: np.ndarray) -> None:
    if code == _I8:
        for i in range(count):
            words[i] = pattern(np.float32(np.int8(load(U8, address, i))))
    elif code == _I16:
        for i in range(count):
            words[i] = pattern(np.float32(np.int16(load(U16, address, i))))
    elif code == _U16:
        for i in range(count):
            words[i] = pattern(np.float32(load(U16, address, i)))
    else:  # U8, BOOL
        for i in range(count):
            words[i] = pattern(np.float32(load(U8, address, i)))


@jit
def half(code: Word) -> Word:
    """Float32 pattern of an F16 code, without branches, so that the loop takes vectors."""
    sign = np.uint32(code << 16) & np.uint32(0x80000000)
    body = np.int32(code & 0x7FFF)
    tiny = pattern(np.float32(body) * np.float32(2.0**-24))  # exponent 0: m * 2^-24
    usual = np.uint32((body << 13) + 0x38000000)
    special = np.uint32((body << 13) | 0x7F800000)  # inf, NaN with its payload
    value = tiny if body < 0x0400 else usual
    return np.uint32(sign | (special if body >= 0x7C00 else value))


@jit
def double_at(code: Word, origin: Word, start: Word, count: Word, scratch: np.ndarray) -> Word:
    """Address of `count` float64 patterns of the DOUBLE and INTEGER families; 64-bit integers are rounded once."""
    address = origin + start // 8
    if code == _F64 and count % LANES == 0:
        return address
    if code == _F64:
        for i in range(count):
            scratch[i] = load(U64, address, i)
    elif code == _I32:
        for i in range(count):
            scratch[i] = pattern(np.float64(np.int32(load(U32, address, i))))
    elif code == _U32:
        for i in range(count):
            scratch[i] = pattern(np.float64(load(U32, address, i)))
    elif code == _I64:
        for i in range(count):
            scratch[i] = pattern(np.float64(np.int64(load(U64, address, i))))
    else:
        for i in range(count):
            scratch[i] = pattern(np.float64(load(U64, address, i)))
    return np.int64(scratch.ctypes.data)


@jit
def widen(kind: Word, address: Word, count: Word, scratch: np.ndarray) -> Word:
    """Float64 patterns of patterns, which is exact."""
    for i in range(count):
        scratch[i] = pattern(real(load(kind, address, i)))
    return np.int64(scratch.ctypes.data)


@jit
def same_bytes(left: Word, right: Word, size: Word) -> Flag:
    """Whether two runs of bytes are equal, in steps of 512 so that different ones are told apart at once."""
    at = 0
    while at + 512 <= size:
        differing = np.uint64(0)
        for i in range(64):
            differing |= load(U64, left + at, i) ^ load(U64, right + at, i)
        if differing:
            return False
        at += 512
    for i in range(at, size):
        if load(U8, left, i) != load(U8, right, i):
            return False
    return True
