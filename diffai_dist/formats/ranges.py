"""The bytes of an object that were read so far: small ones from many places, asked for together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from diffai_dist.storage import Profile, Read, Source, fill, is_remote

THREADS = 8  # that ask at once: some file systems answer the reads of one call one after the other
NEAR = 4096  # bytes between two ranges that are read along, which costs less than one request more


class Ranges:
    """Bytes [start, stop) of a pinned object, each read once; neighbours share a request."""

    def __init__(self, source: Source, profile: Profile, head: bytes = b"") -> None:
        self.source, self._profile = source, profile
        self._starts: list[int] = [0] if head else []
        self._parts: list[bytes] = [head] if head else []

    def get(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), with one request if they are not there yet; ShortRead outside of the object."""
        if (held := self._held(start, stop)) is None:
            self.load([(start, stop)])
            held = self._held(start, stop)
        return held or b""

    def load(self, wanted: Iterable[tuple[int, int]]) -> None:
        """Read all that is not there yet."""
        missing = _joined(sorted(pair for pair in wanted if self._held(*pair) is None))
        if not missing:
            return
        reads = [Read(self.source, start, np.empty(stop - start, np.uint8)) for start, stop in missing]
        if is_remote(self.source.url) and len(reads) > 1:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(lambda turn: fill(reads[turn::THREADS], self._profile), range(THREADS)))
        else:
            fill(reads, self._profile)
        self._keep([(read.start, bytes(read.buffer)) for read in reads])

    def _keep(self, new: list[tuple[int, bytes]]) -> None:
        """Parts in order, without those that lie inside another: then the last that begins before a byte has it."""
        parts = [*zip(self._starts, self._parts, strict=True), *new]
        self._starts, self._parts, reached = [], [], -1
        for start, part in sorted(parts, key=lambda one: (one[0], -len(one[1]))):
            if start + len(part) > reached:
                self._starts.append(start)
                self._parts.append(part)
                reached = start + len(part)

    def _held(self, start: int, stop: int) -> bytes | None:
        if start >= stop:
            return b""
        place = bisect_right(self._starts, start) - 1
        if place < 0 or stop > self._starts[place] + len(self._parts[place]):
            return None
        offset = start - self._starts[place]
        return self._parts[place][offset : offset + stop - start]


def _joined(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in order, those that overlap or lie near each other as one.

    >>> _joined([(0, 10), (5, 20), (1000, 1010), (9000, 9010)])
    [(0, 1010), (9000, 9010)]
    """
    found: list[tuple[int, int]] = []
    for start, stop in pairs:
        if found and start <= found[-1][1] + NEAR:
            found[-1] = found[-1][0], max(found[-1][1], stop)
        else:
            found.append((start, stop))
    return found
