"""One block of all members once more, for what only some analyses need: content, bits, rows, columns; and bins."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diffai_dist.kernels.bitwise import (
    cast_bits,
    clear_bitwise,
    codes_at,
    first_difference,
    first_flip,
    float_bits,
    integer_bits,
    join_bitwise,
    visible_count,
)
from diffai_dist.kernels.blocks import check_piece
from diffai_dist.kernels.channels import (
    add_column_shifts,
    add_columns,
    add_equal_rows,
    add_row_shifts,
    add_rows,
)
from diffai_dist.kernels.compiled import Word, entry, jit
from diffai_dist.kernels.content import clear_content, digest_of, fill_content, join_content
from diffai_dist.kernels.decode import U32, U64, decode_single, double_at, single_at, widen
from diffai_dist.kernels.lanes import LANES, load, pattern, real
from diffai_dist.kernels.tables import BITS, CODE, DOUBLE, FAMILY, INTEGER, SINGLE
from diffai_dist.kernels.twins import find_equal_partners, root_of
from diffai_dist.partials import BLOCK

_F32, _F4, _F64 = CODE["F32"], CODE["F4"], CODE["F64"]
_LARGEST = np.uint32(0x7F7FFFFF)  # of F32


@entry
def measure_detail_pieces(
    origin: Word,
    arena: Word,
    slots: np.ndarray,
    base: np.ndarray,
    count: np.ndarray,
    bits: np.ndarray,
    codes: np.ndarray,
    pairs: np.ndarray,
    rows_at: np.ndarray,
    widths: np.ndarray,
    columns_at: np.ndarray,
    out: Any,
    blocks: tuple[np.ndarray, np.ndarray],
    work: Any,
) -> None:
    """All blocks of all pieces, in order, from an arena of so many bytes at the address `origin`."""
    for piece in range(slots.size):
        begins, kinds, slot, width = bits[piece], codes[piece], slots[piece], widths[piece]
        check_piece(arena, count[piece], begins, kinds)
        _check_rows(slot, base[piece], count[piece], rows_at[piece], width, columns_at[piece], out)
        for start in range(0, count[piece], BLOCK):
            size, at = min(BLOCK, count[piece] - start), base[piece] + start
            find_equal_partners(origin, start, size, begins, kinds, pairs, work.roots)
            _decode(origin, start, size, at, width, begins, kinds, work)
            if out.content.shape[0]:
                _add_content(size, at, begins, kinds, out.content[slot], blocks[0][0], work)
            place = rows_at[piece], 0, 0
            if width:
                inside = base[piece] % width + start
                place = rows_at[piece] + inside // width, inside % width, width
                _add_channels(size, begins, kinds, place, columns_at[piece], out, work)
            _add_pairs(origin, start, size, at, begins, kinds, pairs, slot, place, columns_at[piece], out, blocks[1][0], work)


@jit
def _check_rows(
    slot: Word, base: Word, count: Word, rows_at: Word, width: Word, columns_at: Word, out: Any
) -> None:
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
def _decode(
    origin: Word, start: Word, size: Word, at: Word, width: Word, bits: np.ndarray, codes: np.ndarray, work: Any
) -> None:
    """Decode the members that are nobody's twins. Rows that end inside a vector are read beyond, so in the scratch."""
    inside = width == 0 or (width | at) % LANES == 0
    for member in range(bits.size):
        if bits[member] < 0 or work.roots[member] != member:
            continue
        code = codes[member]
        begin = bits[member] + start * BITS[code]
        raw = words = origin + begin // 8
        if FAMILY[code] == SINGLE:
            if code == _F32 and not inside:
                decode_single(code, raw, 0, size, work.singles[member])
                words = np.int64(work.singles[member].ctypes.data)
            else:
                words = single_at(code, origin, begin, size, work.singles[member])
        elif code == _F64 and not inside:
            words = widen(U64, raw, size, work.doubles[member])
        elif FAMILY[code] <= INTEGER:
            words = double_at(code, origin, begin, size, work.doubles[member])
        work.raws[member], work.words[member] = raw, words


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
def _add_channels(
    size: Word, bits: np.ndarray, codes: np.ndarray, place: tuple[Word, Word, Word], columns_at: Word, out: Any, work: Any
) -> None:
    for member in range(bits.size):
        if bits[member] < 0:
            continue
        family, words = FAMILY[codes[member]], work.words[root_of(work.roots, member)]
        if family == SINGLE:
            add_rows(out.rows, member, U32, words, size, place, work.spare32[0])
            if columns_at >= 0:
                add_columns(out.columns[member], columns_at, U32, words, size, place[1], place[2])
        elif family <= INTEGER:
            add_rows(out.rows, member, U64, words, size, place, work.spare64[0])
            if columns_at >= 0:
                add_columns(out.columns[member], columns_at, U64, words, size, place[1], place[2])


@jit
def _add_pairs(
    origin: Word,
    start: Word,
    size: Word,
    at: Word,
    bits: np.ndarray,
    codes: np.ndarray,
    pairs: np.ndarray,
    slot: Word,
    place: tuple[Word, Word, Word],
    columns_at: Word,
    out: Any,
    block: Any,
    work: Any,
) -> None:
    for pair in range(pairs.shape[0]):
        left, right = pairs[pair]
        if bits[left] < 0 or bits[right] < 0 or max(FAMILY[codes[left]], FAMILY[codes[right]]) > INTEGER:
            continue
        roots = root_of(work.roots, left), root_of(work.roots, right)
        code, other = codes[left], codes[right]
        if roots[0] == roots[1]:
            if out.bitwise.shape[0]:
                out.bitwise[slot, pair].count += size
            if place[2] and FAMILY[code] == SINGLE:
                add_equal_rows(out.row_shifts, pair, U32, work.words[roots[0]], size, place)
            elif place[2]:
                add_equal_rows(out.row_shifts, pair, U64, work.words[roots[0]], size, place)
            continue
        words = work.words[roots[0]], work.words[roots[1]]
        single = FAMILY[code] == SINGLE and FAMILY[other] == SINGLE
        if not single or code != other:
            words = _widened(roots, code, other, size, work)
        if out.bitwise.shape[0]:
            odd = (bits[left] + start * BITS[code]) % 8, (bits[right] + start * BITS[other]) % 8
            _fill_bits(block, words, roots, odd, size, at, code, other, work)
            join_bitwise(out.bitwise[slot, pair], block)
        if place[2] and single and code == other:
            add_row_shifts(out.row_shifts, pair, U32, words, size, place, work.spare32)
            if columns_at >= 0:
                add_column_shifts(out.column_shifts[pair], columns_at, U32, words, size, place[1], place[2])
        elif place[2]:
            add_row_shifts(out.row_shifts, pair, U64, words, size, place, work.spare64)
            if columns_at >= 0:
                add_column_shifts(out.column_shifts[pair], columns_at, U64, words, size, place[1], place[2])


@jit
def _widened(roots: tuple[Word, Word], code: Word, other: Word, size: Word, work: Any) -> tuple[Word, Word]:
    """Addresses of float64 patterns of both sides."""
    left, right = work.words[roots[0]], work.words[roots[1]]
    if FAMILY[code] == SINGLE:
        left = widen(U32, left, size, work.spare64[2])
    if FAMILY[other] == SINGLE:
        right = widen(U32, right, size, work.spare64[3])
    return left, right


@jit
def _fill_bits(
    block: Any,
    words: tuple[Word, Word],
    roots: tuple[Word, Word],
    odd: tuple[Word, Word],
    size: Word,
    at: Word,
    code: Word,
    other: Word,
    work: Any,
) -> None:
    """Fill the row of one block of a pair that is not known to be equal."""
    raws = work.raws[roots[0]], work.raws[roots[1]]
    if code != other:
        clear_bitwise(block)
        block.visible = visible_count(U64, words, size, 0.0)[0]
        cast_bits(block, words, size, code, other)
    elif FAMILY[code] == SINGLE:
        kept = words
        if code != _F32:
            codes_at(code, raws[0], odd[0], size, work.spare32[0])
            codes_at(code, raws[1], odd[1], size, work.spare32[1])
            kept = np.int64(work.spare32[0].ctypes.data), np.int64(work.spare32[1].ctypes.data)
        float_bits(block, U32, words, kept, size, code)
        block.first = first_difference(U32, kept, size)
        if block.flips:
            block.flip_index = first_flip(U32, words, kept, size, code, block.flip_size)
    elif code == _F64:
        float_bits(block, U64, words, words, size, code)
        block.first = first_difference(U64, words, size)
        if block.flips:
            block.flip_index = first_flip(U64, words, words, size, code, block.flip_size)
    else:
        integer_bits(block, raws, size, code)
        block.visible = visible_count(U64, words, size, 0.0)[0]
    block.first = block.first + at if block.first >= 0 else -1
    block.flip_index = block.flip_index + at if block.flip_index >= 0 else -1
    block.miscast_index = block.miscast_index + at if block.miscast_index >= 0 else -1


@entry
def count_piece(origin: Word, arena: Word, count: Word, bits: np.ndarray, codes: np.ndarray, into: np.ndarray, work: Any) -> None:
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
