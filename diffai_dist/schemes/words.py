"""Integers of 1 to 8 bits in words of 32, row by row, with scales and zero points for blocks of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.dtypes import DTYPES
from diffai_dist.schemes.loops import Loop, floats


@dataclass(frozen=True, slots=True)
class Packed:
    """value = (code - zero) * scale of its block, in float32; codes count up from the smallest integer.

    Rows begin with a word, the first code lies in the lowest bits. Codes are a dense stream of bits, or as many as a
    word holds whole. Spans: codes, scales, then zero points if there are any, then the group of each column.
    """

    bits: int
    dense: bool
    scales: str  # dtype of the scales
    rows: int  # of a block
    columns: int
    zeros: str = ""  # dtype of the zero points: I8, laid out as the scales; I32, packed as codes are, down the rows
    ordered: bool = False  # whether a column says which group it is of

    values = "F32"
    digits = 0

    @property
    def whole(self) -> bool:
        """The groups of all columns are up to a quarter of the codes of a run: they are read once."""
        return self.ordered

    @property
    def block(self) -> int:
        """Values that share a scale."""
        return self.rows * self.columns

    def spans(self, tensor: Tensor, first: int, stop: int) -> tuple[Span, ...]:
        """The codes of the run from whole bytes on, the scales and zero points of the blocks that it touches."""
        if self.whole:
            return tensor.spans
        ranges = self._ranges(tensor, first, stop)
        return tuple(span.part(*ends) for span, ends in zip(tensor.spans, ranges, strict=True))

    def decode(self, tensor: Tensor, parts: Sequence[np.ndarray], first: int, stop: int, out: np.ndarray) -> None:
        """Take the codes out of their words, subtract the zero points, multiply by the scales."""
        ranges = self._ranges(tensor, first, stop)
        if self.whole:
            parts = [part[low:high] for part, (low, high) in zip(parts, ranges, strict=True)]
        *_, height, width = tensor.shape
        values = out.view(np.float32)
        scales = floats(parts[1], self.scales).reshape(-1, -(-width // self.columns))
        low, high = self._blocks(tensor, first, stop)
        zeros = self._zeros(tensor, parts, scales.shape, range(low, high))
        place = self.bits, *self._unit(), _row_bytes(tensor), ranges[0][0]
        if self.ordered:
            one = np.ones((1, 1), np.float32)
            _codes(parts[0], *place, one, one - one, 0, height, width, height, width, first, values)
            groups = _groups(parts[-1], width, self.columns, scales.shape[1])
            scales = np.pad(scales, [(0, 0), (0, 1)], constant_values=np.nan)  # of columns that are of no group
            _by_column(groups, scales, np.pad(zeros, [(0, 0), (0, 1)]), low, width, first, values)
        else:
            _codes(parts[0], *place, scales, zeros, low, height, width, self.rows, self.columns, first, values)

    def _ranges(self, tensor: Tensor, first: int, stop: int) -> list[tuple[int, int]]:
        """Of each span the bytes that elements [first, stop) need."""
        low, high = self._blocks(tensor, first, stop)
        across = -(-tensor.shape[-1] // self.columns)
        size = across * DTYPES[self.scales].bits // 8
        ranges = [self._code_bytes(tensor, first, stop), (low * size, high * size)]
        if self.zeros == "I8":
            ranges.append((low * across, high * across))
        if self.zeros == "I32":
            top, bottom = self._words(tensor.shape[-2], low, high)
            ranges.append((top * across * 4, bottom * across * 4))
        if self.ordered:
            ranges.append((0, tensor.shape[-1] * 4))
        return ranges

    def _code_bytes(self, tensor: Tensor, first: int, stop: int) -> tuple[int, int]:
        """Bytes of the codes, rounded outward to 8 codes of a stream, or to words."""
        if stop <= first:
            return 0, 0
        row_bytes, (per, wide) = _row_bytes(tensor), self._unit()
        (top, left), (bottom, right) = (divmod(element, tensor.shape[-1]) for element in (first, stop - 1))
        return top * row_bytes + left // per * wide, bottom * row_bytes + min((right // per + 1) * wide, row_bytes)

    def _unit(self) -> tuple[int, int]:
        """So many codes occupy so many bytes."""
        return (8, self.bits) if self.dense else (32 // self.bits, 4)

    def _blocks(self, tensor: Tensor, first: int, stop: int) -> tuple[int, int]:
        """Rows of scales that a run needs, over all matrices of a stack."""
        *_, height, width = tensor.shape
        if stop <= first:
            return 0, 0
        places = [divmod(element // width, height) for element in (first, stop - 1)]
        low, high = (matrix * -(-height // self.rows) + row // self.rows for matrix, row in places)
        return low, high + 1

    def _words(self, height: int, low: int, high: int) -> tuple[int, int]:
        """Rows of words that hold the zero points of rows [low, high); each matrix begins with a word."""
        if high <= low:
            return 0, 0
        each = packed_words(height, self.bits, self.dense)
        (first, top), (last, bottom) = divmod(low, height), divmod(high - 1, height)
        below = (bottom * self.bits + self.bits - 1) // 32 if self.dense else bottom // (32 // self.bits)
        return first * each + self._place(top)[0], last * each + below + 1

    def _place(self, index: Any) -> tuple[Any, Any]:
        """The word in which a code begins, and the bit of it."""
        if self.dense:
            return index * self.bits // 32, index * self.bits % 32
        return index // (32 // self.bits), index % (32 // self.bits) * self.bits

    def _zeros(self, tensor: Tensor, parts: Sequence[np.ndarray], shape: tuple[int, ...], rows: range) -> np.ndarray:
        """The codes that stand for 0, float32 [rows, groups]."""
        middle = np.float32(2 ** (self.bits - 1))
        if not self.zeros:
            return np.full(shape, middle)
        if self.zeros == "I8":
            return floats(parts[2], "I8").reshape(shape) + middle  # type: ignore[no-any-return]
        height = tensor.shape[-2]
        words = parts[2].view(np.uint32).reshape(-1, shape[1]).astype(np.uint64)
        matrix, row = np.divmod(np.arange(rows.start, rows.stop), height)
        word, bit = self._place(row)
        word += matrix * packed_words(height, self.bits, self.dense) - self._words(height, rows.start, rows.stop)[0]
        both = words[word] | words[np.minimum(word + 1, len(words) - 1)] << np.uint64(32)
        codes: np.ndarray = both >> bit.astype(np.uint64)[:, None] & np.uint64(2**self.bits - 1)
        return codes.astype(np.float32)


def packed_words(count: int, bits: int, dense: bool) -> int:
    """Words that hold so many codes.

    >>> packed_words(4096, 3, dense=True), packed_words(4096, 3, dense=False)
    (384, 410)
    """
    return -(-count * bits // 32) if dense else -(-count // (32 // bits))


def _row_bytes(tensor: Tensor) -> int:
    codes = tensor.spans[0]
    return (codes.stop - codes.start) // math.prod(tensor.shape[:-1])


def _groups(part: np.ndarray, width: int, size: int, count: int) -> np.ndarray:
    """The group of each column, `count` for what is none; -1 anywhere means in order, as in compressed-tensors."""
    order = part.view(np.int32)
    if (order == -1).any():
        return np.arange(width, dtype=np.uint32) // np.uint32(size)
    return np.minimum(order.view(np.uint32), np.uint32(count))


@Loop
def _codes(
    data: np.ndarray,
    bits: int,
    per: int,
    wide: int,
    row_bytes: int,
    start: int,
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
    """Run by run of one row in one block, `per` codes out of `wide` bytes: 8 at once take vectors."""
    mask = np.uint64((1 << bits) - 1)
    per_matrix = (height + rows - 1) // rows
    at = 0
    while at < out.size:
        row, column = divmod(first + at, width)
        matrix, inside = divmod(row, height)
        block = matrix * per_matrix + inside // rows - low
        scale, zero = scales[block, column // columns], zeros[block, column // columns]
        end = at + min(min((column // columns + 1) * columns, width) - column, out.size - at)
        if bits == 8:
            byte = row * row_bytes + column - start
            for i in range(end - at):
                out[at + i] = (np.float32(data[byte + i]) - zero) * scale
            at = end
        while at < end:
            place, skip = divmod(column, per)
            byte = row * row_bytes + place * wide - start
            codes = np.uint64(0)
            for i in range(min(wide, data.size - byte)):
                codes |= np.uint64(data[byte + i]) << np.uint64(8 * i)
            if per == 8 and skip == 0 and end - at >= 8:
                size = 8
                for i in range(8):
                    code = np.int32((codes >> np.uint64(i * bits)) & mask)
                    out[at + i] = (np.float32(code) - zero) * scale
            else:
                size = min(per - skip, end - at)
                for i in range(size):
                    code = np.int32((codes >> np.uint64((skip + i) * bits)) & mask)
                    out[at + i] = (np.float32(code) - zero) * scale
            at += size
            column += size


@Loop
def _by_column(
    groups: np.ndarray, scales: np.ndarray, zeros: np.ndarray, low: int, width: int, first: int, out: np.ndarray
) -> None:
    """Codes become values where neighbours are of different groups."""
    at = 0
    while at < out.size:
        row, column = divmod(first + at, width)
        size = min(width - column, out.size - at)
        of_row, zero_of_row = scales[row - low], zeros[row - low]
        for i in range(size):
            group = groups[column + i]
            out[at + i] = (out[at + i] - zero_of_row[group]) * of_row[group]
        at += size
