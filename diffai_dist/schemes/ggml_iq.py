"""The block formats of ggml whose codes name points of a grid, 4 or 8 elements at a time: IQ1, IQ2 and IQ3.

As in `ggml_loops`, to the bits of gguf.quants 0.19. Of IQ2 and IQ3 a point holds magnitudes, and a byte has the signs
of 8 elements; of IQ1 it holds -1, 0 and 1, which are shifted by an eighth up or down. The loops take the tables too.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from diffai_dist.schemes.loops import Loop

SEVEN_BITS = frozenset({"IQ2_XXS", "IQ2_XS", "IQ3_XXS"})  # of 8 signs: the last one makes their number even
GRIDS = SEVEN_BITS | {"IQ2_S", "IQ3_S", "IQ1_S", "IQ1_M"}


@cache
def tables(kind: str) -> tuple[np.ndarray, ...]:
    """Points, float32 [n, 4 or 8], and but for IQ1 the signs of each pattern, float32 [128 or 256, 8].

    The package gguf holds the grids; without it this raises ImportError.
    """
    from gguf import quants

    grid = getattr(quants, kind)
    grid.init_grid()
    points = np.array(grid.grid, np.float32).reshape(grid.grid_shape)
    if kind in ("IQ1_S", "IQ1_M"):
        return _fixed(points)
    patterns = np.frombuffer(quants.IQ2_XXS.ksigns, np.uint8) if kind in SEVEN_BITS else np.arange(256, dtype=np.uint8)
    negative = np.unpackbits(patterns[:, None], axis=1, bitorder="little")
    return _fixed(points, np.where(negative, np.float32(-1), np.float32(1)))


def _fixed(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same for all threads."""
    for array in arrays:
        array.flags.writeable = False
    return arrays


@Loop
def iq2_xxs(blocks: np.ndarray, scales: np.ndarray, points: np.ndarray, signs: np.ndarray, out: np.ndarray) -> None:
    """d * (scale + 1/2) / 4 * point * sign, for 32 elements at a time: 4 codes, and a word of 4 patterns and scale."""
    for n in range(blocks.shape[0]):
        d, values = scales[n, 0], out[n]
        for part in range(8):
            codes = blocks[n, 2 + part * 8 : 10 + part * 8]
            word = codes[4] | codes[5] << 8 | codes[6] << 16 | codes[7] << 24
            scale = d * (np.float32(0.5) + np.float32(word >> 28)) * np.float32(0.25)
            for j in range(4):
                point, sign, at = points[codes[j]], signs[word >> 7 * j & 127], part * 32 + j * 8
                for i in range(8):
                    values[at + i] = scale * point[i] * sign[i]


@Loop
def iq2_xs(blocks: np.ndarray, scales: np.ndarray, points: np.ndarray, signs: np.ndarray, out: np.ndarray) -> None:
    """As iq2_xxs, with a nibble as scale of 16 elements: codes of 9 bits, and their pattern in 7 bits above."""
    for n in range(blocks.shape[0]):
        d, values = scales[n, 0], out[n]
        for part in range(16):
            nibble = blocks[n, 66 + (part >> 1)] >> (part & 1) * 4 & 15
            scale = d * (np.float32(0.5) + np.float32(nibble)) * np.float32(0.25)
            for j in range(part * 2, part * 2 + 2):
                word = blocks[n, 2 + j * 2] | blocks[n, 3 + j * 2] << 8
                point, sign = points[word & 511], signs[word >> 9]
                for i in range(8):
                    values[j * 8 + i] = scale * point[i] * sign[i]


@Loop
def iq2_s(blocks: np.ndarray, scales: np.ndarray, points: np.ndarray, signs: np.ndarray, out: np.ndarray) -> None:
    """As iq2_xs, with patterns of 8 bits: low bytes of all codes, patterns, two high bits of each code, nibbles."""
    for n in range(blocks.shape[0]):
        d, values = scales[n, 0], out[n]
        for part in range(16):
            nibble = blocks[n, 74 + (part >> 1)] >> (part & 1) * 4 & 15
            scale = d * (np.float32(0.5) + np.float32(nibble)) * np.float32(0.25)
            for j in range(part * 2, part * 2 + 2):
                high = blocks[n, 66 + (j >> 2)] >> (j & 3) * 2 & 3
                point, sign = points[blocks[n, 2 + j] | high << 8], signs[blocks[n, 34 + j]]
                for i in range(8):
                    values[j * 8 + i] = scale * point[i] * sign[i]


@Loop
def iq3_xxs(blocks: np.ndarray, scales: np.ndarray, points: np.ndarray, signs: np.ndarray, out: np.ndarray) -> None:
    """d * (scale + 1/2) / 2 * point * sign: two points of 4 elements for a pattern; words behind all codes."""
    for n in range(blocks.shape[0]):
        d, values = scales[n, 0], out[n]
        for part in range(8):
            four = blocks[n, 66 + part * 4 : 70 + part * 4]
            word = four[0] | four[1] << 8 | four[2] << 16 | four[3] << 24
            scale = d * (np.float32(0.5) + np.float32(word >> 28)) * np.float32(0.5)
            for j in range(4):
                at, sign = part * 32 + j * 8, signs[word >> 7 * j & 127]
                left, right = points[blocks[n, 2 + (at >> 2)]], points[blocks[n, 3 + (at >> 2)]]
                for i in range(4):
                    values[at + i] = scale * left[i] * sign[i]
                    values[at + 4 + i] = scale * right[i] * sign[4 + i]


@Loop
def iq3_s(blocks: np.ndarray, scales: np.ndarray, points: np.ndarray, signs: np.ndarray, out: np.ndarray) -> None:
    """d * (2 * scale + 1) * point * sign: low bytes of codes, their ninth bits, patterns, a nibble for 32 elements."""
    for n in range(blocks.shape[0]):
        d, values = scales[n, 0], out[n]
        for part in range(8):
            nibble, high = blocks[n, 106 + (part >> 1)] >> (part & 1) * 4 & 15, blocks[n, 66 + part]
            scale = d * np.float32(1 + 2 * nibble)
            for j in range(4):
                at, sign = part * 32 + j * 8, signs[blocks[n, 74 + part * 4 + j]]
                left = points[blocks[n, 2 + (at >> 2)] | (high >> 2 * j & 1) << 8]
                right = points[blocks[n, 3 + (at >> 2)] | (high >> 2 * j + 1 & 1) << 8]
                for i in range(4):
                    values[at + i] = scale * left[i] * sign[i]
                    values[at + 4 + i] = scale * right[i] * sign[4 + i]


@Loop
def iq1_s(blocks: np.ndarray, scales: np.ndarray, points: np.ndarray, out: np.ndarray) -> None:
    """d * (2 * scale + 1) * (point + shift), for 32 elements at a time: their word has the high bits of 4 codes."""
    for n in range(blocks.shape[0]):
        d, values = scales[n, 0], out[n]
        for part in range(8):
            word = blocks[n, 34 + part * 2] | blocks[n, 35 + part * 2] << 8
            scale = d * np.float32(2 * (word >> 12 & 7) + 1)
            shift = np.float32(-0.125) if word >> 15 else np.float32(0.125)
            for j in range(4):
                point, at = points[blocks[n, 2 + part * 4 + j] | (word >> 3 * j & 7) << 8], part * 32 + j * 8
                for i in range(8):
                    values[at + i] = scale * (point[i] + shift)


@Loop
def iq1_m(blocks: np.ndarray, scales: np.ndarray, points: np.ndarray, out: np.ndarray) -> None:
    """As iq1_s, with 3 bits as scale of 16 elements, and for each code a nibble of its high bits and its shift."""
    for n in range(blocks.shape[0]):
        d, values = scales[n, 0], out[n]
        for part in range(16):
            word = blocks[n, 48 + (part >> 2) * 2] | blocks[n, 49 + (part >> 2) * 2] << 8
            scale = d * np.float32(2 * (word >> (part & 3) * 3 & 7) + 1)
            for j in range(part * 2, part * 2 + 2):
                high = blocks[n, 32 + part] >> (j & 1) * 4
                shift = np.float32(-0.125) if high & 8 else np.float32(0.125)
                point = points[blocks[n, j] | (high & 7) << 8]
                for i in range(8):
                    values[j * 8 + i] = scale * (point[i] + shift)
