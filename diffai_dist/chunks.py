"""Pieces of tensors whose bytes fit a thread's buffer together: placed, read once each, measured in one call."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from diffai_dist import storage
from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.details import DetailTables
from diffai_dist.errors import Failure
from diffai_dist.plan import Unit
from diffai_dist.storage import Source

_local = threading.local()


def _arena(size: int) -> np.ndarray:
    """This thread's buffer, page-aligned and reused: a fresh one per read costs more than the read."""
    if getattr(_local, "size", 0) < size:
        _local.arena, _local.size = np.frombuffer(mmap.mmap(-1, size), np.uint8), size
    return _local.arena  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements [first, stop) of a subtree, inside one leaf."""

    subtree: int
    slot: int
    first: int
    stop: int


class Chunk:
    """Pieces whose bytes fit the arena together."""

    def __init__(
        self, unit: Unit, failures: Mapping[tuple[int, int], Failure], held: dict[tuple[Span, ...], list[np.ndarray]]
    ) -> None:
        self.unit = unit
        self.held = held  # bytes of codes by their spans: of a tensor that is read as a whole, from chunk to chunk
        self.coded: list[tuple[int, Tensor, int, int]] = []  # place in the arena, tensor, elements [first, stop)
        self.failures = failures  # members that are left out
        self.pieces: list[Piece] = []
        self.bits: list[list[int]] = []
        self.codes: list[list[int]] = []
        size = unit.arena // unit.members
        self.regions = [_Region(member * size, size) for member in range(unit.members)]

    def add(self, piece: Piece) -> bool:
        """Place a piece's bytes; False where they no longer fit."""
        bits, codes = [], []
        marks = [(region.used, len(region.reads), region.reads[-1:]) for region in self.regions]
        coded = len(self.coded)
        shared: dict[object, int] = {}
        tensors = self.unit.subtrees[piece.subtree].tensors
        for member, (region, tensor) in enumerate(zip(self.regions, tensors, strict=True)):
            if tensor is None or (piece.subtree, member) in self.failures:
                bits.append(-1)
                codes.append(-1)
                continue
            offset = (self._decoded if tensor.scheme else _place)(region, tensor, piece, shared)
            if offset is None:
                self._undo(marks)
                del self.coded[coded:]
                return False
            lead = 0 if tensor.scheme else piece.first * tensor.decoder.bits % 8  # of two F4 in a byte, the second
            bits.append(offset * 8 + lead)
            codes.append(tensor.decoder.code)
        if max(bits) < 0:
            return True  # no member is left that could be read: there is nothing to measure
        self.pieces.append(piece)
        self.bits.append(bits)
        self.codes.append(codes)
        return True

    def _decoded(self, region: _Region, tensor: Tensor, piece: Piece, shared: dict[object, int]) -> int | None:
        """Room for the values of a run of codes, or where a member's equal ones lie; None if the region is full."""
        key = tensor.scheme, tensor.spans
        if key not in shared:
            start, size = -(-region.used // 8) * 8, (piece.stop - piece.first) * tensor.decoder.bits // 8
            if start + size > region.size:
                return None
            region.used = start + size
            shared[key] = region.start + start
            self.coded.append((shared[key], tensor, piece.first, piece.stop))
        return shared[key]

    def _undo(self, marks: Sequence[tuple[int, int, list[tuple[Source, int, int]]]]) -> None:
        for region, (used, count, last) in zip(self.regions, marks, strict=True):
            region.used = used
            del region.reads[count:], region.places[count:]
            if last:
                region.reads[-1] = last[0]

    def fill(self) -> None:
        """Read every range once."""
        arena = _arena(self.unit.arena)
        reads = [
            storage.Read(source, first, arena[place : place + last - first])
            for region in self.regions
            for (source, first, last), place in zip(region.reads, region.places, strict=True)
        ]
        storage.fill(reads, self.unit.profile)
        needed = [tensor.ranges(first, stop) for _, tensor, first, stop in self.coded]
        self._hold(needed)
        for spans, (place, tensor, first, stop) in zip(needed, self.coded, strict=True):
            if tensor.scheme:
                out = arena[place : place + (stop - first) * tensor.decoder.bits // 8]
                tensor.scheme.decode(tensor, self.held[spans], first, stop, out)

    def _hold(self, needed: Sequence[tuple[Span, ...]]) -> None:
        """Read the bytes of codes that are not there, in the order in which they lie; forget those of other chunks."""
        for spans in self.held.keys() - set(needed):
            del self.held[spans]
        missing = {
            spans: [np.empty(span.stop - span.start, np.uint8) for span in spans]
            for spans in needed
            if spans not in self.held
        }
        reads = [
            storage.Read(span.source, span.start, part)
            for spans, parts in missing.items()
            for span, part in zip(spans, parts, strict=True)
        ]
        storage.fill(sorted(reads, key=lambda read: (read.source.url, read.start)), self.unit.profile)
        self.held |= missing

    def measure(
        self, moments: np.ndarray, shifts: np.ndarray, grams: np.ndarray | None, details: DetailTables | None
    ) -> None:
        """Take all partials of all pieces, in one call for those of every comparison, one for the others."""
        from diffai_dist import kernels

        arena = _arena(self.unit.arena)
        pieces = [(piece.subtree, piece.slot, piece.first, piece.stop - piece.first) for piece in self.pieces]
        slots, base, count = (np.array(column, np.int64) for column in list(zip(*pieces, strict=True))[1:])
        bits, codes = np.array(self.bits, np.int64), np.array(self.codes, np.int64)
        pairs = np.array(self.unit.pairs, np.int64).reshape(-1, 2)
        place, tables = (arena, slots, base, count, bits, codes, pairs), (moments, shifts, self.unit.anchor, grams)
        if details is None:
            kernels.measure(*place, *tables)
        else:
            details.measure(pieces, *place, *tables)


def _place(region: _Region, tensor: Tensor, piece: Piece, shared: dict[object, int]) -> int | None:
    """Room for the bytes of a run, or where another member's of the same place lie; None if the region is full."""
    (span,) = tensor.ranges(piece.first, piece.stop)
    offset = shared.get(span)
    if offset is None:
        offset = region.place(span, storage.chunk_bytes(span.source))
        if offset is not None:
            shared[span] = offset
    return offset


@dataclass(slots=True)
class _Region:
    """One member's part of the arena, and the reads that fill it."""

    start: int
    size: int
    used: int = 0
    reads: list[tuple[Source, int, int]] = field(default_factory=list)  # source, first byte, last byte + 1
    places: list[int] = field(default_factory=list)  # where each read begins in the arena

    def place(self, span: Span, longest: int) -> int | None:
        """Offset in the arena at which the span's bytes will lie; None where the region is full.

        A span that begins where the last one ended, or in its last byte, lengthens that read, unless values that are
        decoded have taken the room behind it.
        """
        if self.reads and self.places[-1] + self.reads[-1][2] - self.reads[-1][1] == self.start + self.used:
            source, first, last = self.reads[-1]
            if source is span.source and first <= span.start <= last and span.stop - first <= longest:
                grown = max(span.stop - last, 0)
                if self.used + grown > self.size:
                    return None
                self.reads[-1] = source, first, max(last, span.stop)
                self.used += grown
                return self.places[-1] + span.start - first
        if self.used + span.stop - span.start > self.size:
            return None
        self.reads.append((span.source, span.start, span.stop))
        self.places.append(self.start + self.used)
        self.used += span.stop - span.start
        return self.places[-1]
