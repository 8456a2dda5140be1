"""What the bytes of a block are like, and how rows of CONTENT join: bits in use, digest, runs of zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types

from diffai_dist.kernels.compiled import Word, jit
from diffai_dist.kernels.decode import U8, U64
from diffai_dist.kernels.lanes import HITS, Fold, Words, load, loop
from diffai_dist.partials import BLOCK

OR = Fold(types.uint64, lambda bits: 0, lambda builder, left, right: builder.or_(left, right))

_HALF = np.uint64(32)
# splitmix64 (Steele, Lea, Flood 2014): its constants, and 4096 of its numbers made odd.
_STEP, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _keys() -> np.ndarray:
    state = np.arange(1, BLOCK + 1, dtype=np.uint64) * _STEP
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        state = (state ^ (state >> np.uint64(shift))) * factor
    return (state ^ (state >> np.uint64(31))) | np.uint64(1)


_KEYS = _keys()


def _content_terms(words: Words) -> Sequence[Any]:
    """The words, and which are 0."""
    return [words.first, words.hits(words.builder.icmp_unsigned("==", words.first, words.constant(0)))]


content_bits = loop([OR, HITS], _content_terms)


@jit
def clear_content(row: Any) -> None:
    """Make the row neutral."""
    row.count = row.zero_run = row.zero_head = row.zero_tail = 0
    row.ored = row.digest = np.uint64(0)
    row.zero_run_start = -1


@jit
def fill_content(row: Any, kind: Word, address: Word, count: Word) -> None:
    """Fill the row from the words of one block, all but the digest."""
    clear_content(row)
    row.count = count
    row.ored, zeros = content_bits(kind, (address,), count, 0.0)
    if zeros == count:
        row.zero_run = row.zero_head = row.zero_tail = count
        row.zero_run_start = 0
    elif zeros:
        _fill_runs(row, kind, address, count)


@jit
def _fill_runs(row: Any, kind: Word, address: Word, count: Word) -> None:
    run, longest, start = 0, 0, -1
    while load(kind, address, row.zero_head) == 0:
        row.zero_head += 1
    for i in range(count):
        run = run + 1 if load(kind, address, i) == 0 else 0
        if run > longest:
            longest, start = run, i + 1 - run
    row.zero_run, row.zero_run_start, row.zero_tail = longest, start, run


@jit
def digest_of(address: Word, size: Word, at: Word) -> Word:
    """Digest of a block of `size` bytes whose first element has the flat index `at`.

    Multilinear: words times keys, added; the upper half of a word is folded onto the lower one before, since the
    product of a word's top bit with any two keys is the same.
    """
    whole = size // 8
    total = np.uint64(size)
    for i in range(whole):
        word = load(U64, address, i)
        total += (word ^ (word >> _HALF)) * _KEYS[i]
    last = np.uint64(0)
    for i in range(8 * whole, size):
        last |= np.uint64(load(U8, address, i)) << np.uint64(8 * (i - 8 * whole))
    if size % 8:
        total += (last ^ (last >> _HALF)) * _KEYS[whole]
    return _mixed(total ^ _mixed(np.uint64(at) + _STEP))


@jit
def _mixed(word: Word) -> Word:
    word = (word ^ (word >> np.uint64(30))) * _FIRST
    word = (word ^ (word >> np.uint64(27))) * _SECOND
    return word ^ (word >> np.uint64(31))


@jit
def join_content(row: Any, other: Any) -> None:
    """Add the content of elements that lie behind those of the row."""
    bridge = row.zero_tail + other.zero_head
    if bridge > row.zero_run:
        row.zero_run, row.zero_run_start = bridge, row.count - row.zero_tail
    if other.zero_run > row.zero_run:
        row.zero_run, row.zero_run_start = other.zero_run, row.count + other.zero_run_start
    if row.zero_head == row.count:
        row.zero_head += other.zero_head
    row.zero_tail = other.zero_tail + (row.zero_tail if other.zero_tail == other.count else 0)
    row.count += other.count
    row.ored |= other.ored
    row.digest += other.digest
