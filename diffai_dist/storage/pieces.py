"""How the ranges that a caller wants become requests: neighbours together, long ones cut. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from diffai_dist.storage.source import Read, Source


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One request: [start, stop) of an object, received into buffers one after the other."""

    source: Source
    start: int
    stop: int
    buffers: tuple[memoryview, ...]


def pieces(reads: Iterable[Read], size: int) -> list[Piece]:
    """Requests of at most `size` bytes that fill all reads; every byte is asked for once.

    Reads that follow each other without a gap share a request, so that a hundred small tensors in a row do not cost a
    hundred round trips. Empty reads cost none.
    """
    found: list[Piece] = []
    run: list[tuple[Read, int, int]] = []  # parts of reads: read, first and last byte of it
    for part in _cut(reads, size):
        read, first, last = part
        if run and not (_adjoins(run[-1], part) and read.start + last - _start(run[0]) <= size):
            found.append(_piece(run))
            run = []
        run.append((read, first, last))
    return [*found, _piece(run)] if run else found


def _cut(reads: Iterable[Read], size: int) -> Iterator[tuple[Read, int, int]]:
    for read in reads:
        for first in range(0, read.wanted, size):
            yield read, first, min(first + size, read.wanted)


def _start(part: tuple[Read, int, int]) -> int:
    return part[0].start + part[1]


def _adjoins(left: tuple[Read, int, int], right: tuple[Read, int, int]) -> bool:
    return left[0].source == right[0].source and left[0].start + left[2] == _start(right)


def _piece(run: Sequence[tuple[Read, int, int]]) -> Piece:
    buffers = tuple(read.buffer[first:last] for read, first, last in run)
    last_read, _, stop = run[-1]
    return Piece(last_read.source, _start(run[0]), last_read.start + stop, buffers)


class Filler:
    """Copies a stream of blocks into buffers, one after the other."""

    def __init__(self, buffers: Iterable[memoryview]) -> None:
        self._waiting = iter(buffers)
        self._target = memoryview(b"")
        self.received = 0

    def add(self, block: bytes) -> bool:
        """Copy one block; False if it does not fit any more."""
        self.received += len(block)
        rest = memoryview(block)
        while rest:
            if not self._target:
                target = next(self._waiting, None)
                if target is None:
                    return False
                self._target = target
            size = min(len(rest), len(self._target))
            self._target[:size] = rest[:size]
            self._target, rest = self._target[size:], rest[size:]
        return True
