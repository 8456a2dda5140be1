"""The scales of blocks of ggml, in float32, as the loops take them: each type has them elsewhere, or otherwise."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from diffai_dist.schemes.loops import table

Scales = Callable[[np.ndarray], np.ndarray]  # uint8 [blocks, bytes of one] to float32 [blocks, 1 to 4]


def halves(*places: int) -> Scales:
    """Of F16, at these bytes of each block."""

    def scales(blocks: np.ndarray) -> np.ndarray:
        found = np.empty((len(blocks), len(places)), np.float32)
        with np.errstate(invalid="ignore"):  # of signalling NaN
            for column, at in enumerate(places):
                found[:, column] = np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)[:, 0]
        return found

    return scales


def scattered(blocks: np.ndarray) -> np.ndarray:
    """The F16 of IQ1_M: its nibbles, lowest first, are the highest of the four words at the end of a block."""
    nibbles = np.ascontiguousarray(blocks[:, -8:]).view(np.uint16) >> 12 << np.array([0, 4, 8, 12], np.uint16)
    words = np.bitwise_or.reduce(nibbles, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # of signalling NaN
        return words.view(np.float16).astype(np.float32)


def halved_powers(blocks: np.ndarray) -> np.ndarray:
    """Of E8M0, in the first byte; half of it, as codes are doubled."""
    exponents = blocks[:, :1].astype(np.uint32)
    tiny = np.uint32(0x200000) << np.minimum(exponents, 1)  # 2^-128 and 2^-127 are subnormal
    return np.where(exponents < 2, tiny, (exponents - 1) << 23).astype(np.uint32).view(np.float32)


def halved_floats(blocks: np.ndarray) -> np.ndarray:
    """Of NVFP4: four E4M3 without sign, in the first bytes; half of them, as codes are doubled."""
    found: np.ndarray = _unsigned()[blocks[:, :4]]
    return found


@cache
def _unsigned() -> np.ndarray:
    """Half of each E4M3, whose sign is ignored; of the two codes of NaN, ggml takes one as 0 and the other as 480."""
    values: np.ndarray = np.abs(table("F8_E4M3")) / np.float32(2)
    values[[0x7F, 0xFF]] = 0, 240
    values.flags.writeable = False
    return values
