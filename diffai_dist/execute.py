"""Measure a unit: what its tasks read, what fails alone, and the rows that come back."""

from __future__ import annotations

import itertools
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from diffai_dist import storage
from diffai_dist.checkpoint import Span
from diffai_dist.chunks import Chunk, Piece
from diffai_dist.details import DetailTables
from diffai_dist.errors import CheckpointError, Failure, SourceChanged
from diffai_dist.partials import BLOCK, MOMENTS, SHIFT, empty, empty_gram
from diffai_dist.plan import Subtree, Unit
from diffai_dist.rows import Rows, add, merge_tree
from diffai_dist.storage import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one unit gave: rows of partials, and what of which member could not be read."""

    unit: int
    rows: Rows
    failures: tuple[tuple[int, int, Failure], ...]  # subtree of the unit, member, failure
    nbytes: int
    process: str = ""
    traffic: storage.Traffic = field(default_factory=storage.Traffic)  # all that the process has asked for so far


def measure(unit: Unit) -> Outcome:
    """Read and measure one unit; what cannot be read becomes a failure of its own subtrees and member only."""
    log.debug("unit %d starts in process %d", unit.index, os.getpid())
    task = _Task(unit)
    task.run()
    rows = task.rows()
    log.debug("unit %d done in process %d", unit.index, os.getpid())
    failures = tuple((subtree, member, failure) for (subtree, member), failure in sorted(task.failures.items()))
    process = f"{socket.gethostname()}:{os.getpid()}"
    return Outcome(unit.index, rows, failures, unit.nbytes, process, storage.traffic())


class _Task:
    """One unit under way: its slots (a row per leaf), and what failed so far, by subtree and member."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.leaves = [-(-(subtree.stop - subtree.first) // subtree.leaf) for subtree in unit.subtrees]
        self.slots = [0, *itertools.accumulate(self.leaves)]  # first slot of each subtree
        self.moments = empty(MOMENTS, (self.slots[-1], unit.members))
        self.shifts = empty(SHIFT, (self.slots[-1], len(unit.pairs)))
        self.grams = empty_gram(self.slots[-1], unit.members) if unit.anchor >= 0 else None
        self.details = DetailTables(unit, self.slots) if unit.details else None
        self.held: dict[tuple[Span, ...], list[np.ndarray]] = {}
        self.failures: dict[tuple[int, int], Failure] = {}
        self.changed: dict[Source, Failure] = {}

    def run(self) -> None:
        """Fill the arena with pieces until it is full, measure them, and begin again."""
        chunk = Chunk(self.unit, self.failures, self.held)
        for piece in self.pieces():
            if not chunk.add(piece):
                self.flush(chunk)
                chunk = self.chunk_of(piece)
        self.flush(chunk)

    def chunk_of(self, piece: Piece) -> Chunk:
        """A chunk that holds nothing else yet."""
        chunk = Chunk(self.unit, self.failures, self.held)
        if not chunk.add(piece):
            raise AssertionError(f"an arena of {self.unit.arena} bytes does not hold a piece of each member")
        return chunk

    def pieces(self) -> Iterator[Piece]:
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
                    yield Piece(index, self.slots[index] + leaf, first, min(first + longest, stop))

    def flush(self, chunk: Chunk) -> None:
        """Read and measure a chunk; if it cannot be read, its pieces one by one, so that one spoils only itself."""
        if not chunk.pieces:
            return
        try:
            chunk.fill()
        except CheckpointError as error:
            if len(chunk.pieces) > 1:
                for piece in chunk.pieces:
                    self.fail_known(piece)
                    self.flush(self.chunk_of(piece))
            else:  # once more, without the member that cannot be read
                self.fail(chunk.pieces[0].subtree, error)
                self.flush(self.chunk_of(chunk.pieces[0]))
            return
        chunk.measure(self.moments, self.shifts, self.grams, self.details)

    def fail_known(self, piece: Piece) -> None:
        """An object known to have changed is not asked again."""
        for member, sources in self.sources(piece.subtree):
            known = next((self.changed[source] for source in sources if source in self.changed), None)
            if known:
                self.failures[piece.subtree, member] = known
                self.fail_lonely(piece.subtree, known)

    def fail(self, subtree: int, error: CheckpointError) -> None:
        """Record why a subtree could not be read, for the members whose object it was; for all where nobody knows."""
        members = self.sources(subtree)
        guilty = [
            (member, source)
            for member, sources in members
            for source in sources
            if storage.redact(source.url) == error.failure.object
        ] or [(member, source) for member, sources in members for source in sources]
        for member, source in guilty:
            self.failures[subtree, member] = error.failure
            if isinstance(error, SourceChanged):
                self.changed[source] = error.failure
        self.fail_lonely(subtree, error.failure)

    def fail_lonely(self, subtree: int, failure: Failure) -> None:
        """What is left without a member to be compared with is not read any more."""
        if self.unit.anchor >= 0:
            return
        for member, _ in self.sources(subtree):
            partners = {one for pair in self.unit.pairs if member in pair for one in pair} - {member}
            if all((subtree, partner) in self.failures for partner in partners):
                self.failures[subtree, member] = failure

    def sources(self, subtree: int) -> list[tuple[int, set[Source]]]:
        """The members that are still to be read there, each with its objects."""
        return [
            (member, {span.source for span in tensor.spans})
            for member, tensor in enumerate(self.unit.subtrees[subtree].tensors)
            if tensor and (subtree, member) not in self.failures
        ]

    def rows(self) -> Rows:
        """A row per subtree: its leaves, merged along the fixed tree; what failed in part tells nothing."""
        from diffai_dist.kernels import merge_moments, merge_shifts

        moments, shifts = self.moments[self.slots[:-1]], self.shifts[self.slots[:-1]]
        grams = None if self.grams is None else self.grams[self.slots[:-1]]
        for index, leaves in enumerate(self.leaves):
            if leaves > 1:
                rows = slice(self.slots[index], self.slots[index + 1])
                moments[index] = merge_tree(self.moments[rows], merge_moments)
                shifts[index] = merge_tree(self.shifts[rows], merge_shifts)
                if grams is not None and self.grams is not None:
                    grams[index] = merge_tree(self.grams[rows], add)
        for subtree, member in self.failures:
            moments[subtree, member] = empty(MOMENTS, ())
            for pair, sides in enumerate(self.unit.pairs):
                if member in sides:
                    shifts[subtree, pair] = empty(SHIFT, ())
        return Rows(moments, shifts, grams, **(self.details.merged(self.failures) if self.details else {}))


def _source(subtree: Subtree) -> Source:
    return next(tensor.spans[0].source for tensor in subtree.tensors if tensor)


def lost(unit: Unit, reason: str) -> Outcome:
    """The outcome of a unit that took its workers down: all its subtrees failed, the others go on."""
    hint = "Give the workers more memory, or compare with fewer threads"
    failures = tuple(
        (index, member, CheckpointError(storage.redact(tensor.spans[0].source.url), reason, hint=hint).failure)
        for index, subtree in enumerate(unit.subtrees)
        for member, tensor in enumerate(subtree.tensors)
        if tensor
    )
    moments = empty(MOMENTS, (len(unit.subtrees), unit.members))
    shifts = empty(SHIFT, (len(unit.subtrees), len(unit.pairs)))
    grams = empty_gram(len(unit.subtrees), unit.members) if unit.anchor >= 0 else None
    slots = range(len(unit.subtrees) + 1)
    details = DetailTables(unit, slots).merged({}) if unit.details else {}
    return Outcome(unit.index, Rows(moments, shifts, grams, **details), failures, unit.nbytes)
