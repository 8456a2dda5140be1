"""The anchored Gram of a group: how far all members moved from one of them, and the products of these moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffai_dist.kernels.compiled import Flag, Word, jit
from diffai_dist.kernels.decode import U32, U64, widen
from diffai_dist.kernels.lanes import HITS, SUM, Words, loop, pattern, real
from diffai_dist.kernels.tables import DOUBLE, FAMILY, SINGLE
from diffai_dist.kernels.twins import root_of
from diffai_dist.partials import GRAM

# Elements whose products are summed at a time: the moves of 8 members, 64 KiB, are read again from a near cache.
# Frozen: another number gives other bits. Measured: 1.4 times as fast as whole blocks, and 512 is no faster.
PART = 1024

_COUNT, _DIFFER, _AA, _ALONG, _NORM, _DOT = range(len(GRAM))
_ALL_ONES = np.uint64(2**64 - 1)


def _tile_terms(words: Words) -> Sequence[Any]:
    """Two rows times two others."""
    rows = [words.values(word) for word in words.inputs]
    return [words.builder.fmul(left, right) for left in rows[:2] for right in rows[2:]]


def _shared_terms(words: Words) -> Sequence[Any]:
    """1, a*a, a*d and d*d where both members are live; d are the moves of one of them."""
    builder = words.builder
    live = builder.and_(*words.inputs[2:])
    anchor, moves = (words.values(builder.and_(row, live)) for row in words.inputs[:2])
    products = [builder.fmul(left, right) for left, right in ((anchor, anchor), (anchor, moves), (moves, moves))]
    return [builder.and_(live, words.constant(1)), *products]


tile_sums = loop([SUM] * 4, _tile_terms)
shared_sums = loop([HITS, SUM, SUM, SUM], _shared_terms)


@jit
def add_gram(size: Word, anchor: Word, bits: np.ndarray, codes: np.ndarray, rows: np.ndarray, work: Any) -> None:
    """Add a decoded block of all members to the planes [6, members, members] of its tensor."""
    known, whole = _look_at(size, bits, codes, work.roots, work.blocks)
    if known:
        group = work.group[: _list_roots(anchor, bits, work.roots, work.group)]
        work.planes[:] = 0.0
        for start in range(0, size, PART):
            run = min(PART, size - start)
            _spread(start, run, codes, group, work.words, work.moves)
            if not whole:
                _fill_holes(run, group, work.moves, work.lives)
            _displace(run, group, work.moves)
            _multiply(run, group, work.moves, work.planes[_DOT])
            if not whole:
                _share(run, group, work.moves, work.lives, work.planes)
        _complete(size, whole, group, work.planes)
    _add_planes(known, bits, work.roots, work.planes, rows)


@jit
def _look_at(
    size: Word, bits: np.ndarray, codes: np.ndarray, roots: np.ndarray, blocks: np.ndarray
) -> tuple[Flag, Flag]:
    """Whether there are members, all of dtypes that are exact in float64; and whether all their values are finite."""
    members = unknown = spoiled = 0
    for member in range(bits.size):
        if bits[member] >= 0:
            roots[member] = root_of(roots, member)
            members += 1
            unknown += FAMILY[codes[member]] > DOUBLE
            spoiled += blocks[roots[member]].finite < size
    return members > 0 and unknown == 0, spoiled == 0


@jit
def _list_roots(anchor: Word, bits: np.ndarray, roots: np.ndarray, group: np.ndarray) -> Word:
    """Fill the group with members of different bytes, the anchor first, and return how many there are.

    Where the anchor is absent, the first member there is takes its place.
    """
    for member in range(bits.size):
        if bits[anchor] < 0 and bits[member] >= 0:
            anchor = member
    group[0] = roots[anchor]
    count = 1
    for member in range(bits.size):
        if bits[member] >= 0 and roots[member] == member and member != group[0]:
            group[count] = member
            count += 1
    return count


@jit
def _spread(
    start: Word, size: Word, codes: np.ndarray, group: np.ndarray, words: np.ndarray, moves: np.ndarray
) -> None:
    """Fill the rows of `moves` with a part of the members' values."""
    for member in group:
        if FAMILY[codes[member]] == SINGLE:
            widen(U32, words[member] + 4 * start, size, moves[member])
        else:
            widen(U64, words[member] + 8 * start, size, moves[member])


@jit
def _fill_holes(size: Word, group: np.ndarray, moves: np.ndarray, lives: np.ndarray) -> None:
    """Fill the rows of `lives` with all bits where the member is finite, else with none.

    Elsewhere the anchor becomes 0, from which the others still differ by all of their value, and the others become the
    anchor: they do not move. So a spoiled anchor takes nothing from what the others say of each other.
    """
    base = moves[group[0]]
    for member in group:
        values, live = moves[member], lives[member]
        for i in range(size):
            live[i] = _ALL_ONES if math.isfinite(real(values[i])) else np.uint64(0)
            if not live[i]:
                values[i] = base[i] if member != group[0] else np.uint64(0)


@jit
def _displace(size: Word, group: np.ndarray, moves: np.ndarray) -> None:
    """Subtract the anchor's row from the others."""
    base = moves[group[0]]
    for member in group[1:]:
        row = moves[member]
        for i in range(size):
            row[i] = pattern(real(row[i]) - real(base[i]))


@jit
def _multiply(size: Word, group: np.ndarray, moves: np.ndarray, dots: np.ndarray) -> None:
    """Add the products of each two rows of `moves`, in tiles of two rows by two: so there are fewer loads.

    Measured on AVX-512: 1.6 times as fast as row by row, and larger tiles no faster; those spill on AVX2.
    """
    spare = moves.shape[0] - 1  # a row of zeros, which makes the last tile full
    for top in range(0, group.size, 2):
        a, b = group[top], group[top + 1] if top + 1 < group.size else spare
        for side in range(top, group.size, 2):
            c, d = group[side], group[side + 1] if side + 1 < group.size else spare
            rows = (moves[a].ctypes.data, moves[b].ctypes.data, moves[c].ctypes.data, moves[d].ctypes.data)
            ac, ad, bc, bd = tile_sums(U64, rows, size, 0.0)
            dots[a, c] += ac
            dots[a, d] += ad
            dots[b, c] += bc
            dots[b, d] += bd


@jit
def _share(size: Word, group: np.ndarray, moves: np.ndarray, lives: np.ndarray, planes: np.ndarray) -> None:
    """Add to the other planes what is live in both members; in DOT nothing moves where either is not."""
    anchor = moves[group[0]].ctypes.data
    for left in group:
        for right in group:
            rows = (anchor, moves[left].ctypes.data, lives[left].ctypes.data, lives[right].ctypes.data)
            both, aa, along, norm = shared_sums(U64, rows, size, 0.0)
            planes[_COUNT, left, right] += both
            planes[_AA, left, right] += aa
            planes[_ALONG, left, right] += along
            planes[_NORM, left, right] += norm


@jit
def _complete(size: Word, whole: Flag, group: np.ndarray, planes: np.ndarray) -> None:
    """Mirror DOT, fill the other planes from it where nothing is left out, and let the anchor rest."""
    anchor = group[0]
    for index in range(group.size):
        left = group[index]
        for right in group[:index]:
            planes[_DOT, left, right] = planes[_DOT, right, left]
        if whole:
            for right in group:
                planes[_COUNT, left, right] = size
                planes[_AA, left, right] = planes[_DOT, anchor, anchor]
                planes[_ALONG, left, right] = planes[_DOT, anchor, left]
                planes[_NORM, left, right] = planes[_DOT, left, left]
    for member in group:  # the anchor's row of `moves` holds its values, but it does not move
        planes[_ALONG, anchor, member] = planes[_NORM, anchor, member] = 0.0
        planes[_DOT, anchor, member] = planes[_DOT, member, anchor] = 0.0


@jit
def _add_planes(known: Flag, bits: np.ndarray, roots: np.ndarray, planes: np.ndarray, rows: np.ndarray) -> None:
    """Add the block's planes, which are by roots, to those of all members; of unknown values only DIFFER."""
    for left in range(bits.size):
        for right in range(bits.size):
            if bits[left] < 0 or bits[right] < 0:
                continue
            first, second = roots[left], roots[right]
            if first != second:
                rows[_DIFFER, left, right] += 1.0
            if known:
                for plane in range(rows.shape[0]):
                    rows[plane, left, right] += planes[plane, first, second]
