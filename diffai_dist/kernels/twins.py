"""Which members hold the same bytes in a block: they share a root, the first of them, and what was measured of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffai_dist.kernels.compiled import Flag, Word, jit
from diffai_dist.kernels.decode import same_bytes
from diffai_dist.kernels.tables import BITS, CODE

_F4 = CODE["F4"]


@jit
def root_of(roots: np.ndarray, member: Word) -> Word:
    """The first member with the same bytes."""
    while roots[member] != member:
        member = roots[member]
    return member


@jit
def find_equal_partners(
    origin: Word, start: Word, size: Word, bits: np.ndarray, codes: np.ndarray, pairs: np.ndarray, roots: np.ndarray
) -> None:
    """Only partners of a pair are looked at."""
    for member in range(bits.size):
        roots[member] = member
    for pair in range(pairs.shape[0]):
        left, right = pairs[pair]
        if _same_block(origin, start, size, bits, codes, left, right):
            left, right = root_of(roots, left), root_of(roots, right)
            roots[max(left, right)] = min(left, right)


@jit
def find_equal_members(
    origin: Word, start: Word, size: Word, bits: np.ndarray, codes: np.ndarray, roots: np.ndarray
) -> None:
    """Every member is held against the roots before it; most that differ are told apart by their first bytes."""
    for member in range(bits.size):
        roots[member] = member
        for earlier in range(member):
            if roots[earlier] == earlier and _same_block(origin, start, size, bits, codes, earlier, member):
                roots[member] = earlier
                break


@jit
def _same_block(
    origin: Word, start: Word, size: Word, bits: np.ndarray, codes: np.ndarray, left: Word, right: Word
) -> Flag:
    """Whether both are there, of one dtype, with equal bytes; false for nibbles that lie across bytes."""
    if bits[left] < 0 or bits[right] < 0 or codes[left] != codes[right]:
        return False
    width = BITS[codes[left]]
    first, second = bits[left] + start * width, bits[right] + start * width
    if (first | second | (size * width)) % 8:
        return False
    return same_bytes(origin + first // 8, origin + second // 8, size * width // 8)


@jit
def find_equal_nibbles(size: Word, bits: np.ndarray, codes: np.ndarray, work: Any) -> None:
    """Join F4 members whose bytes could not tell, by their decoded words, which are one to one with the codes."""
    for member in range(bits.size):
        if bits[member] < 0 or codes[member] != _F4 or work.roots[member] != member:
            continue
        for earlier in range(member):
            if bits[earlier] >= 0 and codes[earlier] == _F4 and work.roots[earlier] == earlier:
                if same_bytes(work.words[earlier], work.words[member], 4 * size):
                    work.roots[member] = earlier
                    break
