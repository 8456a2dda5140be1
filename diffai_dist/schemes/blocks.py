"""Codes in the order of the weight, with a scale for each block of it: a tensor, a channel, a group or a tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.dtypes import DTYPES
from diffai_dist.schemes.loops import Loop, floats, table

# Significant bits of codes that are floats, the leading one among them.
DIGITS = {"F8_E4M3": 4, "F8_E4M3FNUZ": 4, "F8_E5M2": 3, "F8_E5M2FNUZ": 3, "F4": 2}


@dataclass(frozen=True, slots=True)
class Blocks:
    """value = (table[code] - zero) * scale of its block, in float32; the last block of a row or column may be short.

    Spans: codes, scales, zero points where they have a dtype, then a number for the whole tensor where that has one.
    Codes of 4 bits lie two in a byte, the low one first, and rows begin with a byte. Scales and zero points lie in the
    order of blocks, over all matrices of a stack; one of a block with more rows than a matrix has is for the stack.
    """

    codes: str  # dtype of a code: F8_E4M3, I8, F4
    scales: str  # dtype of the scales
    rows: int  # of a block
    columns: int
    bits: int  # of a code, of which more may be stored
    zeros: str = ""  # dtype of the zero points of codes of 8 bits
    common: str = ""  # dtype of one more factor
    divides: bool = False  # whether scales are divided by that

    values = "F32"
    whole = False

    @property
    def digits(self) -> int:
        """Significant bits of a code that is a float; 0 for integers."""
        return DIGITS.get(self.codes, 0)

    @property
    def block(self) -> int:
        """How many values share a scale."""
        return self.rows * self.columns

    def spans(self, tensor: Tensor, first: int, stop: int) -> tuple[Span, ...]:
        """The codes of the run, and the scales and zero points of all rows of blocks that it touches."""
        codes, *others = tensor.spans
        bits = DTYPES[self.codes].bits
        low, high = self._scale_rows(tensor, first, stop)
        across = -(-self._matrix(tensor)[1] // self.columns)
        per_row = [across * DTYPES[dtype].bits // 8 for dtype in (self.scales, self.zeros) if dtype]
        return (
            codes.part(first * bits // 8, -(-stop * bits // 8)),
            *(span.part(low * size, high * size) for span, size in zip(others, per_row, strict=False)),
            *others[len(per_row) :],
        )

    def decode(self, tensor: Tensor, parts: Sequence[np.ndarray], first: int, stop: int, out: np.ndarray) -> None:
        """Look up each code, take the zero point away, and multiply by the scale of its block."""
        if stop <= first:
            return
        height, width = self._matrix(tensor)
        grid = (-1, -(-width // self.columns))
        scales = self._factors(parts).reshape(grid)
        low, _ = self._scale_rows(tensor, first, stop)
        place = low, height, width, self.rows, self.columns, first, out.view(np.float32)
        if DTYPES[self.codes].bits == 8:
            zeros = floats(parts[2], self.zeros).reshape(grid) if self.zeros else np.zeros_like(scales)
            _bytes(parts[0], table(self.codes), scales, zeros, *place)
        else:
            _nibbles(parts[0], table(self.codes), scales, *place)

    def _factors(self, parts: Sequence[np.ndarray]) -> Any:
        scales = floats(parts[1], self.scales)
        if not self.common:
            return scales
        factor = floats(parts[-1], self.common)[0]
        with np.errstate(all="ignore"):  # a factor of 0 or NaN gives what it gives
            return scales / factor if self.divides else scales * factor

    def _matrix(self, tensor: Tensor) -> tuple[int, int]:
        """Rows and columns of what has its own rows of blocks."""
        height, width = (1, 1, *tensor.shape)[-2:]
        return max(height, self.rows), width

    def _scale_rows(self, tensor: Tensor, first: int, stop: int) -> tuple[int, int]:
        """Rows of blocks that a run touches: each matrix of a stack has its own, of which the last may be short."""
        height, width = self._matrix(tensor)
        if stop <= first:
            return 0, 0
        per_matrix = -(-height // self.rows)
        places = [divmod(element // width, height) for element in (first, stop - 1)]
        low, high = (matrix * per_matrix + row // self.rows for matrix, row in places)
        return low, high + 1


@Loop
def _bytes(
    codes: np.ndarray,
    values: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    low: int,
    height: int,
    width: int,
    rows: int,
    columns: int,
    first: int,
    out: np.ndarray,
) -> None:
    """Row by row, and in it block by block: there scale and zero are constants, and the loop takes vectors."""
    per_matrix = (height + rows - 1) // rows
    at = 0
    while at < out.size:
        row, column = divmod(first + at, width)
        matrix, inside = divmod(row, height)
        line, block = matrix * per_matrix + inside // rows - low, column // columns
        end, edge = min(at + width - column, out.size), at - column + (block + 1) * columns
        while at < end:
            scale, zero = scales[line, block], zeros[line, block]
            for i in range(at, min(edge, end)):
                out[i] = (values[codes[i]] - zero) * scale
            at, edge, block = min(edge, end), edge + columns, block + 1


@Loop
def _nibbles(
    codes: np.ndarray,
    values: np.ndarray,
    scales: np.ndarray,
    low: int,
    height: int,
    width: int,
    rows: int,
    columns: int,
    first: int,
    out: np.ndarray,
) -> None:
    """As `_bytes`, two codes at a time; a run, and a block of odd size, may begin with the high nibble of a byte."""
    per_matrix = (height + rows - 1) // rows
    odd, at = first & 1, 0
    while at < out.size:
        row, column = divmod(first + at, width)
        matrix, inside = divmod(row, height)
        line, block = matrix * per_matrix + inside // rows - low, column // columns
        end, edge = min(at + width - column, out.size), at - column + (block + 1) * columns
        while at < end:
            scale, stop = scales[line, block], min(edge, end)
            if (at + odd) & 1:
                out[at] = values[codes[(at + odd) >> 1] >> 4] * scale
                at += 1
            byte, pairs = (at + odd) >> 1, (stop - at) >> 1
            for i in range(pairs):
                out[at + 2 * i] = values[codes[byte + i] & 15] * scale
                out[at + 2 * i + 1] = values[codes[byte + i] >> 4] * scale
            at += 2 * pairs
            if at < stop:
                out[at] = values[codes[(at + odd) >> 1] & 15] * scale
            at, edge, block = stop, edge + columns, block + 1
