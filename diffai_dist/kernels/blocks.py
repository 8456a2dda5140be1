"""One block of all members: decode once, take each member's moments and each pair's shift, add them to the rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffai_dist.kernels.compiled import Flag, Word, entry, jit
from diffai_dist.kernels.complexes import (
    complex_moments,
    complex_shift,
    first_complex_shift,
    first_modulus,
)
from diffai_dist.kernels.decode import U8, U32, U64, double_at, single_at, widen
from diffai_dist.kernels.gram import add_gram
from diffai_dist.kernels.lanes import load, real
from diffai_dist.kernels.moments import (
    clear_moments,
    float_moments,
    integer_magnitude,
    integer_moments,
    join_moments,
)
from diffai_dist.kernels.shift import (
    clear_shift,
    first_integer_shift,
    first_mixed_shift,
    first_shift,
    float_shift,
    integer_shift,
    join_shift,
    mixed_shift,
    unchanged_shift,
)
from diffai_dist.kernels.tables import BITS, CODE, COMPLEX, DOUBLE, FAMILY, INTEGER, RAW, SINGLE, SMALLEST_NORMAL
from diffai_dist.kernels.twins import find_equal_members, find_equal_nibbles, find_equal_partners, root_of
from diffai_dist.partials import BLOCK

_I64 = CODE["I64"]


@entry
def measure_pieces(
    origin: Word,
    size: Word,
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
    work: Any,
) -> None:
    """All blocks of all pieces, in order, from an arena of `size` bytes at the address `origin`."""
    for piece in range(slots.size):
        begins, kinds, slot = bits[piece], codes[piece], slots[piece]
        check_piece(size, count[piece], begins, kinds)
        check_slot(slot, anchor, moments, shifts, grams)
        for start in range(0, count[piece], BLOCK):
            run, at = min(BLOCK, count[piece] - start), base[piece] + start
            measure_block(origin, start, run, at, begins, kinds, pairs, anchor, slot, moments, shifts, grams, work)


@jit
def check_slot(slot: Word, anchor: Word, moments: np.ndarray, shifts: np.ndarray, grams: np.ndarray) -> None:
    if not (0 <= slot < moments.shape[0] and slot < shifts.shape[0] and (anchor < 0 or slot < grams.shape[0])):
        raise ValueError("a piece has no row to add to")


@jit
def measure_block(
    origin: Word,
    start: Word,
    size: Word,
    at: Word,
    bits: np.ndarray,
    codes: np.ndarray,
    pairs: np.ndarray,
    anchor: Word,
    slot: Word,
    moments: np.ndarray,
    shifts: np.ndarray,
    grams: np.ndarray,
    work: Any,
) -> None:
    """Add one block to a row of each table; leaves it decoded in the scratch, and what was measured of each member."""
    if anchor < 0:
        find_equal_partners(origin, start, size, bits, codes, pairs, work.roots)
    else:
        find_equal_members(origin, start, size, bits, codes, work.roots)
    _add_moments(origin, start, size, at, bits, codes, moments[slot], work)
    if anchor >= 0:
        find_equal_nibbles(size, bits, codes, work)
        add_gram(size, anchor, bits, codes, grams[slot], work)
    _add_shifts(size, at, bits, codes, pairs, shifts[slot], work)


@jit
def check_piece(size: Word, count: Word, bits: np.ndarray, codes: np.ndarray) -> None:
    for member in range(bits.size):
        if bits[member] < -1 or (bits[member] >= 0 and bits[member] + count * BITS[codes[member]] > 8 * size):
            raise ValueError("a piece lies outside the arena")


@jit
def _add_moments(
    origin: Word,
    start: Word,
    size: Word,
    at: Word,
    bits: np.ndarray,
    codes: np.ndarray,
    rows: np.ndarray,
    work: Any,
) -> None:
    for member in range(bits.size):
        if bits[member] < 0:
            continue
        root = root_of(work.roots, member)
        code = codes[member]
        if root == member:
            _measure_block(origin, bits[member] + start * BITS[code], code, size, member, work)
        block, row = work.blocks[root], rows[member]
        if block.finite and (row.absmax_index < 0 or block.absmax > row.absmax):
            block.absmax_index = at + _first_absmax(code, work.words[root], work.raws[root], size, block.absmax)
        join_moments(row, block)


@jit
def _measure_block(origin: Word, begin: Word, code: Word, size: Word, member: Word, work: Any) -> None:
    """Decode one block of a member that is nobody's twin, and fill its row of the scratch."""
    row, family = work.blocks[member], FAMILY[code]
    raw = work.raws[member] = origin + begin // 8
    if family == SINGLE:
        words = single_at(code, origin, begin, size, work.singles[member])
        work.squares[member] = float_moments(row, U32, words, size, SMALLEST_NORMAL[code], work.spare32[0])
    elif family == DOUBLE:
        words = double_at(code, origin, begin, size, work.doubles[member])
        work.squares[member] = float_moments(row, U64, words, size, SMALLEST_NORMAL[code], work.spare64[0])
    elif family == INTEGER:
        words = double_at(code, origin, begin, size, work.doubles[member])
        work.squares[member] = integer_moments(row, raw, size, words, code == _I64)
    else:
        words = raw
        clear_moments(row)
        row.count = size
        if family == COMPLEX:
            work.squares[member] = complex_moments(row, raw, size, SMALLEST_NORMAL[code])
    work.words[member] = words


@jit
def _first_absmax(code: Word, words: Word, raw: Word, size: Word, absmax: Word) -> Word:
    """Offset of the first finite element of that magnitude; it is there."""
    family = FAMILY[code]
    if family == COMPLEX:
        return first_modulus(raw, size, real(absmax))
    for i in range(size):
        if family == SINGLE and abs(real(load(U32, words, i))) == real(absmax):
            return i
        if family == DOUBLE and abs(real(load(U64, words, i))) == real(absmax):
            return i
        if family == INTEGER and integer_magnitude(load(U64, raw, i), code == _I64) == absmax:
            return i
    return -1


@jit
def _add_shifts(
    size: Word, at: Word, bits: np.ndarray, codes: np.ndarray, pairs: np.ndarray, rows: np.ndarray, work: Any
) -> None:
    block = work.shift[0]
    for pair in range(pairs.shape[0]):
        left, right = pairs[pair]
        if bits[left] < 0 or bits[right] < 0 or not _comparable(FAMILY[codes[left]], FAMILY[codes[right]]):
            continue
        root = root_of(work.roots, left)
        if root == root_of(work.roots, right):
            unchanged_shift(block, work.blocks[root], work.squares[root])
            _add_unchanged(rows[pair], block, codes[left], work.words[root], work.raws[root], size, at)
            continue
        _add_shift(rows[pair], block, codes[left], codes[right], root, root_of(work.roots, right), size, at, work)


@jit
def _comparable(left: Word, right: Word) -> Flag:
    return left == right or (left <= INTEGER and right <= INTEGER)


@jit
def _add_unchanged(row: Any, block: Any, code: Word, words: Word, raw: Word, size: Word, at: Word) -> None:
    """Only the first block of a row needs the index of its largest difference, which is 0."""
    family = FAMILY[code]
    if family == RAW:
        block.both = 0
        block.a1 = block.b1 = block.aa = block.bb = 0.0
    elif row.max_abs_index < 0 and block.both:
        offset = 0
        if family == SINGLE:
            offset = first_shift(U32, words, words, size, 0.0)
        elif family == DOUBLE:
            offset = first_shift(U64, words, words, size, 0.0)
        elif family == COMPLEX:
            offset = first_complex_shift(raw, raw, size, 0.0)
        block.max_abs_index = at + offset
    join_shift(row, block)


@jit
def _add_shift(
    row: Any, block: Any, code: Word, other: Word, left: Word, right: Word, size: Word, at: Word, work: Any
) -> None:
    family = max(FAMILY[code], FAMILY[other])
    sides, squares = (work.blocks[left], work.blocks[right]), (work.squares[left], work.squares[right])
    words, raws = (work.words[left], work.words[right]), (work.raws[left], work.raws[right])
    offset = -1
    if family == SINGLE:
        float_shift(block, U32, words[0], words[1], sides, squares, code == other, work.spare32)
        if _leads(row, block):
            offset = first_shift(U32, words[0], words[1], size, real(block.max_abs))
    elif family == INTEGER and code == other:
        integer_shift(block, raws, words[0], sides, squares, code == _I64, work.spare64)
        if _leads(row, block):
            offset = first_integer_shift(raws, size, block.max_abs, code == _I64)
    elif family == COMPLEX:
        complex_shift(block, raws[0], raws[1], size)
        if _leads(row, block):
            offset = first_complex_shift(raws[0], raws[1], size, real(block.max_abs))
    elif family == RAW:
        clear_shift(block)
        block.count = size
        block.bits = block.changed = _differing_bytes(raws[0], raws[1], size)
    else:
        baseline, candidate = words
        if FAMILY[code] == SINGLE:
            baseline = widen(U32, baseline, size, work.spare64[2])
        if FAMILY[other] == SINGLE:
            candidate = widen(U32, candidate, size, work.spare64[3])
        if family == INTEGER:
            wholes = (FAMILY[code] == INTEGER, code == _I64), (FAMILY[other] == INTEGER, other == _I64)
            mixed_shift(block, (baseline, candidate), wholes, raws, sides, squares, work.spare64)
            if _leads(row, block):
                differences = np.int64(work.spare64[4].ctypes.data)
                offset = first_mixed_shift((baseline, candidate), differences, size, real(block.max_abs))
        else:
            float_shift(block, U64, baseline, candidate, sides, squares, code == other, work.spare64)
            if _leads(row, block):
                offset = first_shift(U64, baseline, candidate, size, real(block.max_abs))
    if offset >= 0:
        block.max_abs_index = at + offset
    join_shift(row, block)


@jit
def _leads(row: Any, block: Any) -> Flag:
    return block.both > 0 and (row.max_abs_index < 0 or block.max_abs > row.max_abs)


@jit
def _differing_bytes(left: Word, right: Word, size: Word) -> Word:
    hits: Word = 0
    for i in range(size):
        hits += load(U8, left, i) != load(U8, right, i)
    return hits


@entry
def join_all_moments(left: np.ndarray, right: np.ndarray) -> None:
    """Row by row, 1-D."""
    for i in range(left.size):
        join_moments(left[i], right[i])


@entry
def join_all_shifts(left: np.ndarray, right: np.ndarray) -> None:
    """Row by row, 1-D."""
    for i in range(left.size):
        join_shift(left[i], right[i])
