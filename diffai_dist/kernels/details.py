"""One block of all members once more, for what only some analyses need: content, bits, rows, columns; and bins."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diffai_dist.kernels.bitwise import (
    bf16_bits,
    cast_bits,
    clear_bitwise,
    codes_at,
    exponent_of,
    first_difference,
    first_flip,
    float_bits,
    integer_bits,
    join_bitwise,
    visible_count,
)
from diffai_dist.kernels.blocks import check_piece, check_slot, measure_block
from diffai_dist.kernels.channels import (
    add_channels,
    add_equal_rows,
    add_shift_channels,
)
from diffai_dist.kernels.compiled import Word, entry, jit
from diffai_dist.kernels.content import clear_content, digest_of, fill_content, join_content
from diffai_dist.kernels.decode import U16, U32, U64, double_at, single_at, widen
from diffai_dist.kernels.lanes import LANES, load, pattern, real
from diffai_dist.kernels.tables import BITS, CODE, DOUBLE, FAMILY, INTEGER, SINGLE
from diffai_dist.kernels.twins import root_of
from diffai_dist.partials import BLOCK

_F32, _BF16, _F4, _F64 = (CODE[name] for name in ("F32", "BF16", "F4", "F64"))
_LARGEST = np.uint32(0x7F7FFFFF)  # of F32


@entry
def measure_pieces_in_detail(
    origin: Word,
    arena: Word,
    slots: np.ndarray,
    base: np.ndarray,
    count: np.ndarray,
    bits: np.ndarray,
    codes: np.ndarray,
    pairs: np.ndarray,
    anchor: Word,
    moments: np.ndarray,
    shifts: np.ndarray,
    grams: np.ndarray,
    rows_at: np.ndarray,
    widths: np.ndarray,
    columns_at: np.ndarray,
    out: Any,
    blocks: tuple[np.ndarray, np.ndarray],
    work: Any,
) -> None:
    """What `measure_pieces` does, and the details of each block while it lies decoded in the scratch."""
    for piece in range(slots.size):
        begins, kinds, slot, width = bits[piece], codes[piece], slots[piece], widths[piece]
        check_piece(arena, count[piece], begins, kinds)
        check_slot(slot, anchor, moments, shifts, grams)
        _check_rows(slot, base[piece], count[piece], rows_at[piece], width, columns_at[piece], out)
        for start in range(0, count[piece], BLOCK):
            size, at = min(BLOCK, count[piece] - start), base[piece] + start
            measure_block(origin, start, size, at, begins, kinds, pairs, anchor, slot, moments, shifts, grams, work)
            if out.content.shape[0]:
                _add_content(size, at, begins, kinds, out.content[slot], blocks[0][0], work)
            inside = base[piece] % max(width, 1) + start
            place = rows_at[piece] + inside // max(width, 1), inside % max(width, 1), width, columns_at[piece]
            if width:
                _add_channels(size, begins, kinds, place, out, work)
            _add_pairs(start, size, at, begins, kinds, pairs, slot, place, out, blocks[1][0], work)


@jit
def _check_rows(slot: Word, base: Word, count: Word, rows_at: Word, width: Word, columns_at: Word, out: Any) -> None:
    for rows in (out.content.shape[0], out.bitwise.shape[0]):
        if rows and not 0 <= slot < rows:
            raise ValueError("a piece has no row to add to")
    if width:
        last = rows_at + (base % width + max(count, 1) - 1) // width
        if not 0 <= rows_at <= last < min(out.rows.shape[0], out.row_shifts.shape[0]):
            raise ValueError("a piece has rows beyond the last")
        if columns_at + width > min(out.columns.shape[1], out.column_shifts.shape[1]) and columns_at >= 0:
            raise ValueError("a piece has columns beyond the last")


@jit
def _add_content(
    size: Word, at: Word, bits: np.ndarray, codes: np.ndarray, rows: np.ndarray, block: Any, work: Any
) -> None:
    for member in range(bits.size):
        if bits[member] < 0:
            continue
        root, code = root_of(work.roots, member), codes[member]
        words, raw = work.words[root], work.raws[root]
        if FAMILY[code] == SINGLE:
            fill_content(block, U32, words, size)
        elif FAMILY[code] == DOUBLE:
            fill_content(block, U64, words, size)
        elif FAMILY[code] == INTEGER:
            fill_content(block, U64, widen(U64, raw, size, work.spare64[0]), size)
        else:
            clear_content(block)
            block.count = size
        nibbles = code == _F4  # may lie across bytes: their words are one to one with them
        block.digest = digest_of(words if nibbles else raw, 4 * size if nibbles else size * BITS[code] // 8, at)
        join_content(rows[member], block)


@jit
def _add_channels(size: Word, bits: np.ndarray, codes: np.ndarray, place: Any, out: Any, work: Any) -> None:
    """Add the block to the rows and columns of members."""
    for member in range(bits.size):
        if bits[member] < 0:
            continue
        root, family = root_of(work.roots, member), FAMILY[codes[member]]
        words, rows, columns, block = work.words[root], out.rows[:, member], out.columns[member], work.blocks[root]
        if family == SINGLE:
            add_channels(rows, columns, U32, words, size, place, block.finite == size, block.zeros > 0, work.spare32[0])
        elif family <= INTEGER:
            add_channels(rows, columns, U64, words, size, place, block.finite == size, block.zeros > 0, work.spare64[0])


@jit
def _add_pairs(
    start: Word,
    size: Word,
    at: Word,
    bits: np.ndarray,
    codes: np.ndarray,
    pairs: np.ndarray,
    slot: Word,
    place: Any,
    out: Any,
    block: Any,
    work: Any,
) -> None:
    for pair in range(pairs.shape[0]):
        left, right = pairs[pair]
        code, other = codes[left], codes[right]
        if bits[left] < 0 or bits[right] < 0 or max(FAMILY[code], FAMILY[other]) > INTEGER:
            continue
        roots = root_of(work.roots, left), root_of(work.roots, right)
        finite = work.blocks[roots[0]].finite == size and work.blocks[roots[1]].finite == size
        if roots[0] == roots[1]:
            if out.bitwise.shape[0]:
                out.bitwise[slot, pair].count += size
            _add_equal(out.row_shifts[:, pair], work.words[roots[0]], size, place, code, finite)
            continue
        words = work.words[roots[0]], work.words[roots[1]]
        if code != other:
            words = _widened(words, code, other, size, work)
        if out.bitwise.shape[0]:
            odd = (bits[left] + start * BITS[code]) % 8, (bits[right] + start * BITS[other]) % 8
            _fill_bits(block, words, (work.raws[roots[0]], work.raws[roots[1]]), odd, size, at, code, other, work)
            join_bitwise(out.bitwise[slot, pair], block)
        rows, columns = out.row_shifts[:, pair], out.column_shifts[pair]
        if place[2] and code == other and FAMILY[code] == SINGLE:
            add_shift_channels(rows, columns, U32, words, size, place, finite, work.spare32)
        elif place[2]:
            add_shift_channels(rows, columns, U64, words, size, place, finite, work.spare64)


@jit
def _add_equal(rows: np.ndarray, words: Word, size: Word, place: Any, code: Word, finite: bool) -> None:
    if place[2] and FAMILY[code] == SINGLE:
        add_equal_rows(rows, U32, words, size, place, finite)
    elif place[2]:
        add_equal_rows(rows, U64, words, size, place, finite)


@jit
def _widened(words: tuple[Word, Word], code: Word, other: Word, size: Word, work: Any) -> tuple[Word, Word]:
    """Addresses of float64 patterns of both sides."""
    left, right = words
    if FAMILY[code] == SINGLE:
        left = widen(U32, left, size, work.spare64[2])
    if FAMILY[other] == SINGLE:
        right = widen(U32, right, size, work.spare64[3])
    return left, right


@jit
def _fill_bits(
    block: Any,
    words: tuple[Word, Word],
    raws: tuple[Word, Word],
    odd: tuple[Word, Word],
    size: Word,
    at: Word,
    code: Word,
    other: Word,
    work: Any,
) -> None:
    """Fill the row of one block of a pair that is not known to be equal."""
    mask = exponent_of(code)
    if code != other:
        clear_bitwise(block)
        block.visible = visible_count(U64, words, size, 0.0)[0]
        cast_bits(block, words, size, code, other)
    elif code == _BF16 and size % LANES == 0:
        bf16_bits(block, raws, size)
        block.first = first_difference(U16, raws, size)
        if block.flips:
            block.flip_index = first_flip(U32, words, U16, raws, size, mask, block.flip_size)
    elif FAMILY[code] == SINGLE:
        kept = words
        if code != _F32:
            codes_at(code, raws[0], odd[0], size, work.spare32[0])
            codes_at(code, raws[1], odd[1], size, work.spare32[1])
            kept = np.int64(work.spare32[0].ctypes.data), np.int64(work.spare32[1].ctypes.data)
        float_bits(block, U32, words, kept, size, code)
        block.first = first_difference(U32, kept, size)
        if block.flips:
            block.flip_index = first_flip(U32, words, U32, kept, size, mask, block.flip_size)
    elif code == _F64:
        float_bits(block, U64, words, words, size, code)
        block.first = first_difference(U64, words, size)
        if block.flips:
            block.flip_index = first_flip(U64, words, U64, words, size, mask, block.flip_size)
    else:
        integer_bits(block, raws, size, code)
        block.visible = visible_count(U64, words, size, 0.0)[0]
    block.first += at if block.first >= 0 else 0
    block.flip_index += at if block.flip_index >= 0 else 0
    block.miscast_index += at if block.miscast_index >= 0 else 0


@entry
def count_piece(
    origin: Word, arena: Word, count: Word, bits: np.ndarray, codes: np.ndarray, into: np.ndarray, work: Any
) -> None:
    """Count the finite values of one piece of each member by the upper half of their F32 patterns."""
    check_piece(arena, count, bits, codes)
    for member in range(bits.size):
        code = codes[member]
        if bits[member] < 0 or FAMILY[code] > INTEGER:
            continue
        for start in range(0, count, BLOCK):
            size, begin = min(BLOCK, count - start), bits[member] + start * BITS[code]
            if FAMILY[code] == SINGLE:
                words = single_at(code, origin, begin, size, work.singles[member])
                _count_singles(into[member], words, size)
            else:
                words = double_at(code, origin, begin, size, work.doubles[member])
                _count_doubles(into[member], words, size)


@jit
def _count_singles(bins: np.ndarray, words: Word, size: Word) -> None:
    for i in range(size):
        word = load(U32, words, i)
        if word & np.uint32(0x7F800000) != np.uint32(0x7F800000):
            bins[word >> np.uint32(16)] += 1


@jit
def _count_doubles(bins: np.ndarray, words: Word, size: Word) -> None:
    """A value beyond F32 counts as its largest."""
    for i in range(size):
        value = real(load(U64, words, i))
        if math.isfinite(value):
            word = pattern(np.float32(value))
            if word & np.uint32(0x7F800000) == np.uint32(0x7F800000):
                word = (word & np.uint32(0x80000000)) | _LARGEST
            bins[word >> np.uint32(16)] += 1


@entry
def join_all_content(left: np.ndarray, right: np.ndarray) -> None:
    """Row by row, 1-D."""
    for i in range(left.size):
        join_content(left[i], right[i])


@entry
def join_all_bitwise(left: np.ndarray, right: np.ndarray) -> None:
    """Row by row, 1-D."""
    for i in range(left.size):
        join_bitwise(left[i], right[i])
