"""The block formats of ggml (ggml-quants.c, gguf.quants 0.19): whole blocks become float32, in the order of operations
of gguf.quants, so that the bits are the same.

Each loop takes blocks, uint8 [n, bytes of a block]; their float scales, float32 [n, 1 to 4]; and writes float32 [n,
elements of a block]. K types have sub-blocks of 16 or 32 with small integer scales of their own.
"""

from __future__ import annotations

import numpy as np

from diffai_dist.schemes.loops import Loop

# Of IQ4_NL and IQ4_XS: uneven levels, denser near 0.
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


@Loop
def q4_0(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """d * (code - 8); the first half of the elements in the low nibbles, the second in the high ones."""
    for n in range(blocks.shape[0]):
        d, codes, values = scales[n, 0], blocks[n, 2:], out[n]
        for i in range(16):
            values[i] = d * np.float32(np.int32(codes[i] & 15) - 8)
            values[i + 16] = d * np.float32(np.int32(codes[i] >> 4) - 8)


@Loop
def q4_1(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """d * code + m."""
    for n in range(blocks.shape[0]):
        d, m, codes, values = scales[n, 0], scales[n, 1], blocks[n, 4:], out[n]
        for i in range(16):
            values[i] = d * np.float32(codes[i] & 15) + m
            values[i + 16] = d * np.float32(codes[i] >> 4) + m


@Loop
def q5_0(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """d * (code - 16); the fifth bits are those of a 32-bit word before the nibbles."""
    for n in range(blocks.shape[0]):
        d, high, codes, values = scales[n, 0], blocks[n, 2:6], blocks[n, 6:], out[n]
        low = np.uint32(high[0]) | np.uint32(high[1]) << np.uint32(8)
        top = np.uint32(high[2]) | np.uint32(high[3]) << np.uint32(8)
        for i in range(16):
            fifth = (low >> np.uint32(i) & np.uint32(1)) << np.uint32(4)
            values[i] = d * np.float32(np.int32(np.uint32(codes[i] & 15) | fifth) - 16)
            fifth = (top >> np.uint32(i) & np.uint32(1)) << np.uint32(4)
            values[i + 16] = d * np.float32(np.int32(np.uint32(codes[i] >> 4) | fifth) - 16)


@Loop
def q5_1(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """d * code + m, codes as in q5_0."""
    for n in range(blocks.shape[0]):
        d, m, high, codes, values = scales[n, 0], scales[n, 1], blocks[n, 4:8], blocks[n, 8:], out[n]
        low = np.uint32(high[0]) | np.uint32(high[1]) << np.uint32(8)
        top = np.uint32(high[2]) | np.uint32(high[3]) << np.uint32(8)
        for i in range(16):
            fifth = (low >> np.uint32(i) & np.uint32(1)) << np.uint32(4)
            values[i] = d * np.float32(np.int32(np.uint32(codes[i] & 15) | fifth)) + m
            fifth = (top >> np.uint32(i) & np.uint32(1)) << np.uint32(4)
            values[i + 16] = d * np.float32(np.int32(np.uint32(codes[i] >> 4) | fifth)) + m


@Loop
def q8_0(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """d * code, signed."""
    for n in range(blocks.shape[0]):
        d, codes, values = scales[n, 0], blocks[n, 2:], out[n]
        for i in range(32):
            values[i] = np.float32(np.int8(codes[i])) * d


@Loop
def q2_k(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """d * scale * code - dmin * least, for 16 elements at a time: nibbles of a byte are their scale and least."""
    for n in range(blocks.shape[0]):
        d, dmin, values = scales[n, 0], scales[n, 1], out[n]
        for part in range(16):
            pair = blocks[n, part]
            scale, least = d * np.float32(pair & 15), dmin * np.float32(pair >> 4)
            at, shift = 16 + (part >> 3) * 32 + (part & 1) * 16, np.uint8((part >> 1 & 3) * 2)
            for i in range(16):
                values[part * 16 + i] = scale * np.float32(blocks[n, at + i] >> shift & 3) - least


@Loop
def q3_k(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """d * (scale - 32) * (code - 4 where its high bit is not set); 6-bit scales of 16 elements each."""
    for n in range(blocks.shape[0]):
        d, values = scales[n, 0], out[n]
        for part in range(16):
            low = blocks[n, 96 + (part & 7)] >> np.uint8((part >> 3) * 4) & 15
            high = blocks[n, 104 + (part & 3)] >> np.uint8((part >> 2) * 2) & 3
            scale = d * np.float32(np.int32(low | high << 4) - 32)
            at, shift = 32 + (part >> 3) * 32 + (part & 1) * 16, np.uint8((part >> 1 & 3) * 2)
            mask, bit = (part & 1) * 16, np.uint8(part >> 1)
            for i in range(16):
                code = np.int32(blocks[n, at + i] >> shift & 3)
                unset = np.int32(~blocks[n, mask + i] >> bit & 1)
                values[part * 16 + i] = scale * np.float32(code - unset * 4)


@Loop
def q4_k(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """d * scale * code - dmin * least, for 32 elements at a time: two parts share 32 bytes, low nibbles first."""
    for n in range(blocks.shape[0]):
        d, dmin, values, six = scales[n, 0], scales[n, 1], out[n], blocks[n, 4:16]
        for part in range(8):
            k = part & 3
            if part < 4:
                scale, least = d * np.float32(six[k] & 63), dmin * np.float32(six[k + 4] & 63)
            else:
                scale = d * np.float32(six[k + 8] & 15 | six[k] >> 2 & 48)
                least = dmin * np.float32(six[k + 8] >> 4 | six[k + 4] >> 2 & 48)
            at, shift = 16 + (part >> 1) * 32, np.uint8((part & 1) * 4)
            for i in range(32):
                values[part * 32 + i] = scale * np.float32(blocks[n, at + i] >> shift & 15) - least


@Loop
def q5_k(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """As q4_k, with a fifth bit: that of part k is bit k of 32 bytes before the nibbles."""
    for n in range(blocks.shape[0]):
        d, dmin, values, six = scales[n, 0], scales[n, 1], out[n], blocks[n, 4:16]
        for part in range(8):
            k = part & 3
            if part < 4:
                scale, least = d * np.float32(six[k] & 63), dmin * np.float32(six[k + 4] & 63)
            else:
                scale = d * np.float32(six[k + 8] & 15 | six[k] >> 2 & 48)
                least = dmin * np.float32(six[k + 8] >> 4 | six[k + 4] >> 2 & 48)
            at, shift, bit = 48 + (part >> 1) * 32, np.uint8((part & 1) * 4), np.uint8(part)
            for i in range(32):
                code = blocks[n, at + i] >> shift & 15 | (blocks[n, 16 + i] >> bit & 1) << 4
                values[part * 32 + i] = scale * np.float32(code) - least


@Loop
def q6_k(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """d * scale * (code - 32), for 16 elements at a time: signed scales, codes of a nibble and two high bits."""
    for n in range(blocks.shape[0]):
        d, values = scales[n, 0], out[n]
        for part in range(16):
            scale = d * np.float32(np.int8(blocks[n, 192 + part]))
            half, quarter, inner = part >> 3, part >> 1 & 3, (part & 1) * 16
            at, shift = half * 64 + (quarter & 1) * 32 + inner, np.uint8((quarter >> 1) * 4)
            high, place = 128 + half * 32 + inner, np.uint8(quarter * 2)
            for i in range(16):
                code = blocks[n, at + i] >> shift & 15 | (blocks[n, high + i] >> place & 3) << 4
                values[part * 16 + i] = scale * np.float32(np.int32(code) - 32)


def mxfp4(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """d * doubled E2M1; `scales` are 2^(e-128). As in ggml, code 8 is 0 without a sign."""
    _levels(blocks, 1, scales, DOUBLED, out)


@Loop
def nvfp4(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """d * doubled E2M1, for 16 elements at a time, halves as in q4_0; as in ggml, code 8 is 0 without a sign."""
    for n in range(blocks.shape[0]):
        values = out[n]
        for part in range(4):
            d, at, byte = scales[n, part], part * 16, 4 + part * 8
            for i in range(8):
                values[at + i] = d * DOUBLED[blocks[n, byte + i] & 15]
                values[at + i + 8] = d * DOUBLED[blocks[n, byte + i] >> 4]


def iq4_nl(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """d * the level of a code."""
    _levels(blocks, 2, scales, LEVELS, out)


@Loop
def _levels(blocks: np.ndarray, begin: int, scales: np.ndarray, levels: np.ndarray, out: np.ndarray) -> None:
    """d * levels[code], of nibbles from byte `begin` on; halves as in q4_0."""
    for n in range(blocks.shape[0]):
        d, codes, values = scales[n, 0], blocks[n, begin:], out[n]
        for i in range(16):
            values[i] = d * levels[codes[i] & 15]
            values[i + 16] = d * levels[codes[i] >> 4]


@Loop
def iq4_xs(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """d * (scale - 32) * the level of a code, for 32 elements at a time: scales of a nibble and two high bits."""
    for n in range(blocks.shape[0]):
        d, values = scales[n, 0], out[n]
        for part in range(8):
            low = blocks[n, 4 + (part >> 1)] >> np.uint8((part & 1) * 4) & 15
            high = blocks[n, 2 + (part >> 2)] >> np.uint8((part & 3) * 2) & 3
            scale = d * np.float32(np.int32(low | high << 4) - 32)
            for i in range(16):
                code = blocks[n, 8 + part * 16 + i]
                values[part * 32 + i] = scale * LEVELS[code & 15]
                values[part * 32 + i + 16] = scale * LEVELS[code >> 4]
