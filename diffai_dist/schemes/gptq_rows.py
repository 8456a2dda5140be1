"""GPTQ of embeddings: their rows are the inputs, so that a word holds codes of several rows, and a group is of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffai_dist.checkpoint import Tensor
from diffai_dist.dtypes import DTYPES
from diffai_dist.schemes.grouped import Whole, groups_of, zero_points
from diffai_dist.schemes.loops import Loop, floats


@dataclass(frozen=True, slots=True)
class GptqRows(Whole):
    """W[i, o] = (code - zero point) * scale of column o in the group of row i; all else as in Gptq, whose transpose
    it is."""

    bits: int
    block: int  # rows that share the scale of a column; with g_idx about so many, and anywhere
    scales: str  # their dtype
    zeros: str  # V2, V1 or V1_WORDS

    def decode(self, tensor: Tensor, parts: Sequence[np.ndarray], first: int, stop: int, out: np.ndarray) -> None:
        """Decode row by row, with the scales and zero points of those groups alone that the rows are of."""
        if stop <= first:
            return
        rows, columns = tensor.shape
        size = columns * DTYPES[self.scales].bits // 8
        stored: Any = parts[2].reshape(-1, size)
        low, high = first // columns, -(-stop // columns)
        groups = groups_of(tensor, parts, rows, self.block, len(stored))
        used, places = np.unique(groups[low:high], return_inverse=True)
        scales = floats(stored[used].reshape(-1), self.scales).reshape(-1, columns)
        words = parts[1].view(np.uint32).reshape(len(stored), -1)[used]
        zeros = zero_points(words, self.bits, self.zeros, 0, columns)
        codes = parts[0].view(np.uint32).reshape(-1, columns)
        _rows(codes, zeros, scales, places, self.bits, low, first, out.view(np.float32))


@Loop
def _rows(
    words: np.ndarray,
    zeros: np.ndarray,
    scales: np.ndarray,
    groups: np.ndarray,
    bits: int,
    low: int,
    first: int,
    out: np.ndarray,
) -> None:
    """Codes of a row lie at one place of their words."""
    mask, width, at = np.uint32((1 << bits) - 1), words.shape[1], 0
    while at < out.size:
        row, column = divmod(first + at, width)
        size, place, group = min(width - column, out.size - at), row * bits, groups[row - low]
        near = words[place >> 5, column : column + size]
        far = words[(place + bits - 1) >> 5, column : column + size]
        zero, scale = zeros[group, column : column + size], scales[group, column : column + size]
        # As in Gptq: where a code begins with its word, both halves are that word.
        right, back, line = np.uint32(place & 31), np.uint32(-place & 31), out[at : at + size]
        for o in range(size):
            code = (near[o] >> right | far[o] << back) & mask
            line[o] = (np.float32(np.int32(code)) - zero[o]) * scale[o]
        at += size
