"""Measure a unit: read each range once, take all partials in one pass, and fold what comes back."""

from __future__ import annotations

import itertools
import logging
import mmap
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from diffai_dist import storage
from diffai_dist.checkpoint import Span
from diffai_dist.errors import CheckpointError, Failure, SourceChanged
from diffai_dist.partials import BLOCK, MOMENTS, SHIFT, empty
from diffai_dist.plan import Plan, Subtree, Unit
from diffai_dist.records import Measurements
from diffai_dist.schemes import SCHEMES
from diffai_dist.storage import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one unit gave: a row of partials per subtree, and the subtrees that could not be read."""

    unit: int
    lanes: np.ndarray  # int64 [subtrees]
    nodes: np.ndarray  # int64 [subtrees]
    moments: np.ndarray  # MOMENTS [subtrees, members]
    shifts: np.ndarray  # SHIFT [subtrees, pairs]
    failures: tuple[tuple[int, Failure], ...]  # lane, failure
    nbytes: int
    process: str
    traffic: storage.Traffic  # all that the process has asked of storage so far


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

        A span that begins where the last one ended, or in its last byte, lengthens that read.
        """
        if self.reads:
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


@dataclass(frozen=True, slots=True)
class _Piece:
    """Elements [first, stop) of a subtree, inside one leaf."""

    subtree: int
    slot: int
    first: int
    stop: int


_local = threading.local()


def _arena(size: int) -> np.ndarray:
    """This thread's buffer, page-aligned and reused: a fresh one per read costs more than the read."""
    if getattr(_local, "size", 0) < size:
        _local.arena, _local.size = np.frombuffer(mmap.mmap(-1, size), np.uint8), size
    return _local.arena  # type: ignore[no-any-return]


def measure(unit: Unit) -> Outcome:
    """Read and measure one unit; what cannot be read becomes a failure of its own subtrees only."""
    log.debug("unit %d starts in process %d", unit.index, os.getpid())
    task = _Task(unit)
    task.run()
    moments, shifts = task.nodes()
    log.debug("unit %d done in process %d", unit.index, os.getpid())
    return Outcome(
        unit.index,
        np.array([subtree.lane for subtree in unit.subtrees], np.int64),
        np.array([subtree.node for subtree in unit.subtrees], np.int64),
        moments,
        shifts,
        tuple((unit.subtrees[index].lane, failure) for index, failure in sorted(task.failures.items())),
        unit.nbytes,
        f"{socket.gethostname()}:{os.getpid()}",
        storage.traffic(),
    )


class _Task:
    """One unit under way: its slots (a row per leaf), and the subtrees that failed so far."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.leaves = [-(-(subtree.stop - subtree.first) // subtree.leaf) for subtree in unit.subtrees]
        self.slots = [0, *itertools.accumulate(self.leaves)]  # first slot of each subtree
        self.moments = empty(MOMENTS, (self.slots[-1], unit.members))
        self.shifts = empty(SHIFT, (self.slots[-1], len(unit.pairs)))
        self.failures: dict[int, Failure] = {}
        self.changed: dict[Source, Failure] = {}

    def run(self) -> None:
        """Fill the arena with pieces until it is full, measure them, and begin again."""
        chunk = _Chunk(self.unit)
        for piece in self.pieces():
            if piece.subtree in self.failures:
                continue
            if not chunk.add(piece):
                self.flush(chunk)
                chunk = _chunk_of(self.unit, piece)
        self.flush(chunk)

    def pieces(self) -> Iterator[_Piece]:
        """Whole blocks of one leaf at a time, short enough for the arena."""
        region = self.unit.arena // self.unit.members
        for index, subtree in enumerate(self.unit.subtrees):
            longest = BLOCK  # any subtree of so few elements fits
            if subtree.stop - subtree.first > BLOCK:
                bits = max(tensor.decoder.bits for tensor in subtree.tensors if tensor)
                longest *= max(min(region // 2, storage.chunk_bytes(_source(subtree))) * 8 // bits // BLOCK, 1)
            for leaf in range(self.leaves[index]):
                start = subtree.first + leaf * subtree.leaf
                stop = min(start + subtree.leaf, subtree.stop)
                for first in range(start, stop, longest):
                    yield _Piece(index, self.slots[index] + leaf, first, min(first + longest, stop))

    def flush(self, chunk: _Chunk) -> None:
        """Read and measure a chunk; if it cannot be read, its pieces one by one, so that one spoils only itself."""
        if not chunk.pieces:
            return
        try:
            chunk.fill()
        except CheckpointError as error:
            if len(chunk.pieces) > 1:
                self.one_by_one(chunk.pieces)
            else:
                self.fail(chunk.pieces[0].subtree, error)
            return
        chunk.measure(self.moments, self.shifts)

    def one_by_one(self, pieces: Sequence[_Piece]) -> None:
        """Read each piece alone; an object known to have changed is not asked again."""
        for piece in pieces:
            if piece.subtree in self.failures:
                continue
            sources = {
                span.source for tensor in self.unit.subtrees[piece.subtree].tensors if tensor for span in tensor.spans
            }
            known = next((self.changed[source] for source in sources if source in self.changed), None)
            if known:
                self.failures[piece.subtree] = known
                continue
            self.flush(_chunk_of(self.unit, piece))

    def fail(self, subtree: int, error: CheckpointError) -> None:
        """Record why a subtree could not be read."""
        self.failures[subtree] = error.failure
        if isinstance(error, SourceChanged):
            for tensor in self.unit.subtrees[subtree].tensors:
                for span in tensor.spans if tensor else ():
                    if storage.redact(span.source.url) == error.failure.object:
                        self.changed[span.source] = error.failure

    def nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """A row per subtree: its leaves, merged along the fixed tree."""
        from diffai_dist.kernels import merge_moments, merge_shifts

        moments, shifts = self.moments[self.slots[:-1]], self.shifts[self.slots[:-1]]
        for index, leaves in enumerate(self.leaves):
            if leaves > 1:
                rows = slice(self.slots[index], self.slots[index + 1])
                moments[index] = merge_tree(self.moments[rows], merge_moments)
                shifts[index] = merge_tree(self.shifts[rows], merge_shifts)
        return moments, shifts


def _source(subtree: Subtree) -> Source:
    return next(tensor.spans[0].source for tensor in subtree.tensors if tensor)


class _Chunk:
    """Pieces whose bytes fit the arena together."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.pieces: list[_Piece] = []
        self.bits: list[list[int]] = []
        self.codes: list[list[int]] = []
        size = unit.arena // unit.members
        self.regions = [_Region(member * size, size) for member in range(unit.members)]

    def add(self, piece: _Piece) -> bool:
        """Place a piece's bytes; False where they no longer fit."""
        bits, codes = [], []
        marks = [(region.used, len(region.reads), region.reads[-1:]) for region in self.regions]
        shared: dict[tuple[Source, int], int] = {}
        for region, tensor in zip(self.regions, self.unit.subtrees[piece.subtree].tensors, strict=True):
            if tensor is None:
                bits.append(-1)
                codes.append(-1)
                continue
            scheme = SCHEMES[tensor.scheme]
            (span,) = scheme.spans(tensor, piece.first, piece.stop)
            offset = shared.get((span.source, span.start))
            if offset is None:
                offset = region.place(span, storage.chunk_bytes(span.source))
                if offset is None:
                    self._undo(marks)
                    return False
                shared[span.source, span.start] = offset
            bits.append(offset * 8 + scheme.lead_bits(tensor, piece.first))
            codes.append(tensor.decoder.code)
        self.pieces.append(piece)
        self.bits.append(bits)
        self.codes.append(codes)
        return True

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

    def measure(self, moments: np.ndarray, shifts: np.ndarray) -> None:
        """Take all partials of all pieces in one call."""
        from diffai_dist import kernels

        table = np.array([(piece.slot, piece.first, piece.stop - piece.first) for piece in self.pieces], np.int64)
        kernels.measure(
            _arena(self.unit.arena),
            np.ascontiguousarray(table[:, 0]),
            np.ascontiguousarray(table[:, 1]),
            np.ascontiguousarray(table[:, 2]),
            np.array(self.bits, np.int64),
            np.array(self.codes, np.int64),
            np.array(self.unit.pairs, np.int64).reshape(-1, 2),
            moments,
            shifts,
        )


def _chunk_of(unit: Unit, piece: _Piece) -> _Chunk:
    chunk = _Chunk(unit)
    if not chunk.add(piece):
        raise AssertionError(f"an arena of {unit.arena} bytes does not hold one piece of {unit.members} members")
    return chunk


def lost(unit: Unit, reason: str) -> Outcome:
    """The outcome of a unit that took its workers down: all its subtrees failed, the others go on."""
    lanes = np.array([subtree.lane for subtree in unit.subtrees], np.int64)
    failures = []
    for subtree in unit.subtrees:
        url = storage.redact(_source(subtree).url)
        hint = "Give the workers more memory, or compare with fewer threads"
        failures.append((subtree.lane, CheckpointError(url, reason, hint=hint).failure))
    return Outcome(
        unit.index,
        lanes,
        np.array([subtree.node for subtree in unit.subtrees], np.int64),
        empty(MOMENTS, (len(lanes), unit.members)),
        empty(SHIFT, (len(lanes), len(unit.pairs))),
        tuple(failures),
        unit.nbytes,
        "",
        storage.Traffic(),
    )


def merge_tree(rows: np.ndarray, merge: Callable[[np.ndarray, np.ndarray], None]) -> np.ndarray:
    """Merge neighbours, level by level, the odd one carried up: the tree depends on the number of rows alone."""
    while len(rows) > 1:
        left, right = rows[::2].copy(), rows[1::2]
        merged = left[: len(right)]
        merge(merged, np.ascontiguousarray(right))
        rows = left
    top: np.ndarray = rows[0]
    return top


class Collector:
    """Puts outcomes, in whatever order they come, at their places in the lanes' trees."""

    def __init__(self, plan: Plan) -> None:
        comparison = plan.comparison
        self.plan = plan
        self.moments = empty(MOMENTS, (len(comparison.aligned), len(comparison.members)))
        self.shifts = empty(SHIFT, (len(comparison.aligned), len(comparison.pairs)))
        self.failures: dict[int, Failure] = {}
        self.waiting: dict[int, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
        self.tensor = np.array([lane.tensor for lane in plan.lanes], np.int64)
        self.nodes = np.array([lane.nodes for lane in plan.lanes], np.int64)

    def add(self, outcome: Outcome) -> int:
        """Take one outcome in; how many lanes it completes."""
        for lane, failure in outcome.failures:
            self.failures.setdefault(int(self.tensor[lane]), failure)
        whole = np.flatnonzero(self.nodes[outcome.lanes] == 1)
        self._settle(self.tensor[outcome.lanes[whole]], outcome.moments[whole], outcome.shifts[whole])
        done = len(whole)
        for row in np.flatnonzero(self.nodes[outcome.lanes] != 1).tolist():
            lane = int(outcome.lanes[row])
            nodes = self.waiting.setdefault(lane, {})
            nodes[int(outcome.nodes[row])] = outcome.moments[row], outcome.shifts[row]
            if len(nodes) == self.nodes[lane]:
                self._merge(lane, self.waiting.pop(lane))
                done += 1
        return done

    def _merge(self, lane: int, nodes: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
        from diffai_dist.kernels import merge_moments, merge_shifts

        moments = merge_tree(np.stack([nodes[node][0] for node in range(len(nodes))]), merge_moments)
        shifts = merge_tree(np.stack([nodes[node][1] for node in range(len(nodes))]), merge_shifts)
        self._settle(self.tensor[lane : lane + 1], moments[None], shifts[None])

    def _settle(self, tensors: np.ndarray, moments: np.ndarray, shifts: np.ndarray) -> None:
        """Write finished rows; a member of another shape has a lane of its own, so only what was counted is written."""
        for table, rows in ((self.moments, moments), (self.shifts, shifts)):
            row, column = np.nonzero(rows["count"])
            table[tensors[row], column] = rows[row, column]

    def measurements(self) -> Measurements:
        """All that was measured; call it once every unit was folded. An element that was not counted is a bug."""
        for lane in self.plan.lanes:
            for member, tensor in enumerate(lane.tensors):
                counted = self.moments["count"][lane.tensor, member]
                if tensor and lane.tensor not in self.failures and counted != tensor.elements:
                    name = self.plan.comparison.aligned[lane.tensor].name
                    raise AssertionError(f"tensor {name!r}: {counted} of {tensor.elements} elements were measured")
        return Measurements(self.plan.comparison, self.moments, self.shifts, self.failures)
