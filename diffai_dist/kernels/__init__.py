"""Bytes of all members in, MOMENTS, SHIFT, GRAM and details out; strict IEEE: every processor gives the same bits."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np

from diffai_dist.partials import (
    BITWISE,
    BLOCK,
    COLUMN,
    COLUMN_SHIFT,
    CONTENT,
    GRAM,
    MOMENTS,
    ROW,
    ROW_SHIFT,
    SHIFT,
    empty,
    empty_gram,
)

_ROW = BLOCK + 16  # words; a row of scratch ends in room for one vector, and rows do not alias in the cache


class Work(NamedTuple):
    """Scratch of one thread: a block of each member decoded, and its results."""

    roots: np.ndarray  # int64 [members]: first member with the same bytes in this block
    words: np.ndarray  # int64 [members]: address of the decoded block
    raws: np.ndarray  # int64 [members]: address of its bytes
    squares: np.ndarray  # float64 [members]: sum of squares of the block
    blocks: np.ndarray  # MOMENTS [members]
    shift: np.ndarray  # SHIFT [1]
    singles: np.ndarray  # uint32 [members, _ROW]
    doubles: np.ndarray  # uint64 [members, _ROW]
    spare32: np.ndarray  # uint32 [2, _ROW]: blocks with holes filled
    spare64: np.ndarray  # uint64 [5, _ROW]: likewise, widened blocks, differences
    group: np.ndarray  # int64 [members + 1]: the roots, the anchor's first
    moves: np.ndarray  # uint64 [members + 1, _ROW]: a part of the anchor, of the others minus the anchor; zeros
    lives: np.ndarray  # uint64 [members, _ROW]: all bits where the member is finite
    planes: np.ndarray  # float64 [6, members + 1, members + 1]: GRAM of the block, by roots


def measure(
    arena: np.ndarray,
    slots: np.ndarray,
    base: np.ndarray,
    count: np.ndarray,
    bits: np.ndarray,
    codes: np.ndarray,
    pairs: np.ndarray,
    moments: np.ndarray,
    shifts: np.ndarray,
    anchor: int = -1,
    grams: np.ndarray | None = None,
) -> None:
    """Add pieces of aligned tensors to rows of moments [slots, members] and shifts [slots, pairs], in order.

    With a member as the anchor, also to grams [slots, 6, members, members] (partials.GRAM).

    `bits` [pieces, members] says at which bit of the uint8 arena a member's piece starts (-1: absent), `codes` its
    dtype, `base` and `count` [pieces] which elements of the tensor it holds. A piece starts at a multiple of BLOCK
    elements behind its leaf, so that the cutting into pieces does not change the result.
    """
    from diffai_dist.kernels.blocks import measure_pieces

    members = bits.shape[1]
    grams = _grams(grams, members, anchor)
    work = _workspace(members)
    slots, base, count, bits, codes, pairs = map(_integers, (slots, base, count, bits, codes, pairs))
    address, size = _address(arena), arena.size
    rows = _rows(moments), _rows(shifts), _rows(grams)
    measure_pieces(address, size, slots, base, count, bits, codes, pairs, anchor, *rows, work)


class DetailRows(NamedTuple):
    """Rows that details are added to; None for what was not asked for.

    Columns are walked along: their arrays are in Fortran order, so that those of a member or pair are contiguous.
    """

    content: np.ndarray | None = None  # CONTENT [slots, members]
    bitwise: np.ndarray | None = None  # BITWISE [slots, pairs]
    rows: np.ndarray | None = None  # ROW [rows, members]
    row_shifts: np.ndarray | None = None  # ROW_SHIFT [rows, pairs]
    columns: np.ndarray | None = None  # COLUMN [columns, members]
    column_shifts: np.ndarray | None = None  # COLUMN_SHIFT [columns, pairs]


def measure_details(
    arena: np.ndarray,
    slots: np.ndarray,
    base: np.ndarray,
    count: np.ndarray,
    bits: np.ndarray,
    codes: np.ndarray,
    pairs: np.ndarray,
    moments: np.ndarray,
    shifts: np.ndarray,
    anchor: int,
    grams: np.ndarray | None,
    rows_at: np.ndarray,
    widths: np.ndarray,
    columns_at: np.ndarray,
    out: DetailRows,
) -> None:
    """What `measure` does, to the bit, and what only some analyses need, while each block is at hand.

    `widths` [pieces] are the elements of a row, 0 where no rows are taken; `rows_at` is the index of the row in which
    element `base` lies, `columns_at` that of the first column of its slot, -1 where no columns are taken. Leaves that
    have rows start with one.
    """
    from diffai_dist.kernels.details import measure_pieces_in_detail

    members = bits.shape[1]
    slots, base, count, bits, codes, pairs = map(_integers, (slots, base, count, bits, codes, pairs))
    tables = anchor, _rows(moments), _rows(shifts), _rows(_grams(grams, members, anchor))
    places = _integers(rows_at), _integers(widths), _integers(columns_at)
    rows, blocks = _arrays(out, members, len(pairs)), (empty(CONTENT, (1,)), empty(BITWISE, (1,)))
    pieces = _address(arena), arena.size, slots, base, count, bits, codes, pairs
    measure_pieces_in_detail(*pieces, *tables, *places, rows, blocks, _workspace(members))


def count_bins(arena: np.ndarray, count: int, bits: np.ndarray, codes: np.ndarray, into: np.ndarray) -> None:
    """Add the finite values of a piece of each member to int64 [members, 65536]: partials.HISTOGRAM, dense."""
    from diffai_dist.kernels.details import count_piece

    if into.shape != (bits.size, 2**16) or into.dtype != np.int64:
        raise ValueError(f"bins of shape {into.shape} do not hold {bits.size} members")
    place = _address(arena), arena.size, int(count), _integers(bits), _integers(codes)
    count_piece(*place, _rows(into), _workspace(bits.size))


def is_byte(codes: np.ndarray) -> np.ndarray:
    """Which codes are those of real dtypes of 8 bits or fewer, whose values have a bin each."""
    from diffai_dist.kernels.tables import BITS, FAMILY, INTEGER

    found: np.ndarray = (BITS[codes] <= 8) & (FAMILY[codes] <= INTEGER)
    return found


def merge_moments(left: np.ndarray, right: np.ndarray) -> None:
    """Add MOMENTS rows to those of the elements before them, in place; equal shapes."""
    from diffai_dist.kernels.blocks import join_all_moments

    _merge(join_all_moments, left, right)


def merge_shifts(left: np.ndarray, right: np.ndarray) -> None:
    """Add SHIFT rows to those of the elements before them, in place; equal shapes."""
    from diffai_dist.kernels.blocks import join_all_shifts

    _merge(join_all_shifts, left, right)


def merge_content(left: np.ndarray, right: np.ndarray) -> None:
    """Add CONTENT rows to those of the elements before them, in place; equal shapes."""
    from diffai_dist.kernels.details import join_all_content

    _merge(join_all_content, left, right)


def merge_bitwise(left: np.ndarray, right: np.ndarray) -> None:
    """Add BITWISE rows to those of the elements before them, in place; equal shapes."""
    from diffai_dist.kernels.details import join_all_bitwise

    _merge(join_all_bitwise, left, right)


def warm() -> None:
    """Compile the kernels, or load them from disk."""
    one = np.zeros((1, 1), np.int64)
    moments, shifts = empty(MOMENTS, (1, 1)), empty(SHIFT, (1, 0))
    measure(np.zeros(0, np.uint8), one[0], one[0], one[0], one, one, np.zeros((0, 2), np.int64), moments, shifts)
    merge_moments(moments, moments.copy())
    merge_shifts(shifts, shifts.copy())


_threads = threading.local()


def _address(arena: np.ndarray) -> int:
    if arena.dtype != np.uint8 or not arena.flags.c_contiguous:
        raise ValueError("the arena must be contiguous uint8")
    return int(arena.ctypes.data)


def _grams(grams: np.ndarray | None, members: int, anchor: int) -> np.ndarray:
    grams = empty_gram(0, members) if grams is None else grams
    if anchor >= members or (anchor >= 0 and grams.shape[1:] != (len(GRAM), members, members)):
        raise ValueError(f"grams of shape {grams.shape} do not hold {members} members about member {anchor}")
    return grams


def _integers(part: np.ndarray) -> np.ndarray:
    """The one layout that is compiled for: int64, contiguous, writable."""
    return part if part.dtype == np.int64 and part.flags.carray else np.array(part, np.int64)


def _rows(rows: np.ndarray) -> np.ndarray:
    if not rows.flags.carray:
        raise ValueError("rows that are added to must be contiguous and writable")
    return rows


def _arrays(out: DetailRows, members: int, pairs: int) -> DetailRows:
    """All arrays, empty for None; the columns of a member or pair as a row."""
    kinds = (CONTENT, BITWISE, ROW, ROW_SHIFT, COLUMN, COLUMN_SHIFT)
    found = []
    for rows, kind, width in zip(out, kinds, (members, pairs) * 3, strict=True):
        rows = np.zeros((0, width), kind) if rows is None else rows
        if rows.dtype != kind or rows.shape[1:] != (width,):
            raise ValueError(f"details of shape {rows.shape} and dtype {rows.dtype} do not fit")
        found.append(_rows(rows.T if kind in (COLUMN, COLUMN_SHIFT) else rows))
    return DetailRows(*found)


def _workspace(members: int) -> Work:
    """This thread's scratch: kept, because fresh memory costs a page fault every 4 KiB."""
    work: Work | None = getattr(_threads, "work", None)
    if work is None or work.roots.size != members:
        work = _threads.work = Work(
            roots=np.zeros(members, np.int64),
            words=np.zeros(members, np.int64),
            raws=np.zeros(members, np.int64),
            squares=np.zeros(members),
            blocks=empty(MOMENTS, (members,)),
            shift=empty(SHIFT, (1,)),
            singles=_words(members, np.uint32),
            doubles=_words(members, np.uint64),
            spare32=_words(2, np.uint32),
            spare64=_words(5, np.uint64),
            group=np.zeros(members + 1, np.int64),
            moves=_words(members + 1, np.uint64),
            lives=_words(members, np.uint64),
            planes=empty_gram(1, members + 1)[0],
        )
    return work


def _words(rows: int, kind: Any) -> np.ndarray:
    """Rows of words that start on cache lines."""
    size = rows * _ROW * np.dtype(kind).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    words: np.ndarray = memory[start : start + size].view(kind).reshape(rows, _ROW)
    return words


def _merge(join: Any, left: np.ndarray, right: np.ndarray) -> None:
    if left.shape != right.shape:
        raise ValueError(f"rows of shape {right.shape} cannot be merged into rows of shape {left.shape}")
    flat = np.ascontiguousarray(left).reshape(-1)
    join(flat, np.ascontiguousarray(right).reshape(-1))
    if not np.shares_memory(flat, left):
        left[...] = flat.reshape(left.shape)
