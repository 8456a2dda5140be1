"""The block formats of ggml of one scale whose codes are -1, 0 and 1, or a sign; see `ggml_loops`."""

from __future__ import annotations

import numpy as np

from diffai_dist.schemes.loops import Loop


@Loop
def q1_0(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """d where a bit is set, else -d (ggml-quants.c; gguf.quants 0.19 does not have it)."""
    for n in range(blocks.shape[0]):
        d, values = scales[n, 0], out[n]
        for part in range(16):
            byte = blocks[n, 2 + part]
            for i in range(8):
                values[part * 8 + i] = d if byte >> np.uint8(i) & 1 else -d


@Loop
def tq1_0(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """d * (digit - 1): five digits of base 3 in each of 32 bytes, then of 16, and four in each of 4.

    A byte is the fraction 0.digits of 256, rounded up: times 3, what passes 256 is a digit, the rest has the next ones.
    """
    for n in range(blocks.shape[0]):
        d, values = scales[n, 0], out[n]
        power = np.uint8(1)
        for k in range(5):
            for i in range(32):
                rest = np.uint8(blocks[n, i] * power)
                values[k * 32 + i] = d * np.float32(np.int32(np.uint16(rest) * np.uint16(3) >> 8) - 1)
            for i in range(16):
                rest = np.uint8(blocks[n, 32 + i] * power)
                values[160 + k * 16 + i] = d * np.float32(np.int32(np.uint16(rest) * np.uint16(3) >> 8) - 1)
            if k < 4:
                for i in range(4):
                    rest = np.uint8(blocks[n, 48 + i] * power)
                    values[240 + k * 4 + i] = d * np.float32(np.int32(np.uint16(rest) * np.uint16(3) >> 8) - 1)
            power = np.uint8(power * 3)


@Loop
def tq2_0(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """d * (code - 1), of 2 bits: the lowest of 32 bytes first."""
    for n in range(blocks.shape[0]):
        d, values = scales[n, 0], out[n]
        for part in range(8):
            at, shift = (part >> 2) * 32, np.uint8((part & 3) * 2)
            for i in range(32):
                values[part * 32 + i] = d * np.float32(np.int32(blocks[n, at + i] >> shift & 3) - 1)
