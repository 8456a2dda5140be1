"""A task's share of what only some analyses need: arrays for bits, rows, columns and bins, filled piece by piece."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from diffai_dist.errors import Failure
from diffai_dist.partials import BITWISE, COLUMN, COLUMN_SHIFT, CONTENT, HISTOGRAM, ROW, ROW_SHIFT, empty
from diffai_dist.plan import Unit
from diffai_dist.rows import add, add_histograms, merge_of, merge_tree

BINS = 2**16
COUNTED = {"histogram", "codes"}


class DetailTables:
    """Content and bits have a row per slot (a leaf), rows of tensors a run per subtree, columns a run per slot."""

    def __init__(self, unit: Unit, slots: Sequence[int]) -> None:
        self.unit, self.slots = unit, slots
        members, pairs = unit.members, len(unit.pairs)
        leaves = [after - before for before, after in itertools.pairwise(slots)]
        asked = set(unit.details)
        self.heights = [(one.stop - one.first) // one.row if one.row else 0 for one in unit.subtrees]
        self.widths = [one.width for one in unit.subtrees]
        self.rows_from = [0, *itertools.accumulate(self.heights)]
        runs = [number * width for number, width in zip(leaves, self.widths, strict=True)]
        self.columns_from = [0, *itertools.accumulate(runs)]
        self.content = empty(CONTENT, (slots[-1], members)) if "content" in asked else None
        self.bitwise = empty(BITWISE, (slots[-1], pairs)) if "bitwise" in asked else None
        self.rows = np.zeros((self.rows_from[-1], members), ROW)
        self.row_shifts = np.zeros((self.rows_from[-1], pairs), ROW_SHIFT)
        self.columns = np.zeros((self.columns_from[-1], members), COLUMN, "F")  # as the kernel walks
        self.column_shifts = np.zeros((self.columns_from[-1], pairs), COLUMN_SHIFT, "F")
        self.histograms: dict[tuple[int, int], np.ndarray] = {}  # by subtree and member
        self._counts = np.zeros((members, BINS), np.int64) if asked & COUNTED else None
        self._counting: int | None = None  # the subtree whose bins they are
        self._all_counted = "histogram" in asked

    def places(self, subtree: int, slot: int, first: int) -> tuple[int, int, int]:
        """Index of the row that holds the element, elements of a row, index of its first column; 0 and -1 for none."""
        one = self.unit.subtrees[subtree]
        row = self.rows_from[subtree] + (first - one.first) // one.row if one.row else 0
        column = self.columns_from[subtree] + (slot - self.slots[subtree]) * one.width if one.width else -1
        return row, one.row, column

    def measure(
        self,
        pieces: Sequence[tuple[int, int, int, int]],
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
    ) -> None:
        """Measure pieces (the subtree, slot, first element and number of elements of each) in full."""
        from diffai_dist import kernels

        where = np.array([self.places(subtree, slot, first) for subtree, slot, first, _ in pieces], np.int64)
        rows_at, widths, columns_at = (np.ascontiguousarray(where[:, column]) for column in range(3))
        out = kernels.DetailRows(
            self.content, self.bitwise, self.rows, self.row_shifts, self.columns, self.column_shifts
        )
        tables = moments, shifts, anchor, grams
        kernels.measure_details(
            arena, slots, base, count, bits, codes, pairs, *tables, rows_at, widths, columns_at, out
        )
        if self._counts is not None:
            for piece, (subtree, *_) in enumerate(pieces):
                own = bits[piece] if self._all_counted else np.where(kernels.is_byte(codes[piece]), bits[piece], -1)
                self._count(arena, subtree, int(count[piece]), own, codes[piece])

    def _count(self, arena: np.ndarray, subtree: int, count: int, bits: np.ndarray, codes: np.ndarray) -> None:
        from diffai_dist import kernels

        if self._counts is None or not (bits >= 0).any():
            return
        if subtree != self._counting:
            self._keep_counts()
            self._counting = subtree
        kernels.count_bins(arena, count, bits, codes, self._counts)

    def _keep_counts(self) -> None:
        """Put the filled bins of the subtree that was counted last aside: looking at all takes as long as a block."""
        if self._counts is None or self._counting is None:
            return
        for member, counts in enumerate(self._counts):
            if len(filled := np.flatnonzero(counts)):
                found = np.zeros(len(filled), HISTOGRAM)
                found["bin"], found["count"] = filled, counts[filled]
                counts[filled] = 0
                before = self.histograms.get((self._counting, member), found[:0])
                self.histograms[self._counting, member] = add_histograms([before, found])

    def merged(self, failures: Mapping[tuple[int, int], Failure]) -> dict[str, np.ndarray]:
        """The arrays of Rows, leaves merged along the fixed tree; what failed in part tells nothing."""
        found: dict[str, np.ndarray] = {}
        runs = list(itertools.pairwise(self.slots))
        for name, rows in (("content", self.content), ("bitwise", self.bitwise)):
            if rows is not None:
                trees = [merge_tree(rows[a:b], merge_of(name)) if b - a > 1 else rows[a] for a, b in runs]
                found[name] = np.stack(trees) if trees else rows[:0]
        if {"rows", "columns"}.intersection(self.unit.details):
            found |= {"heights": np.array(self.heights, np.int64), "rows": self.rows, "row_shifts": self.row_shifts}
        if "columns" in self.unit.details:
            found["widths"] = np.array(self.widths, np.int64)
            found |= {name: self._summed(getattr(self, name)) for name in ("columns", "column_shifts")}
        if self._counts is not None:
            self._keep_counts()
            members = range(self.unit.members)
            none = np.zeros(0, HISTOGRAM)
            every = [[self.histograms.get((subtree, m), none) for m in members] for subtree in range(len(runs))]
            found["bins"] = np.array([[len(one) for one in row] for row in every], np.int64)
            found["histograms"] = np.concatenate([none, *(one for row in every for one in row)])
        self._forget(found, failures)
        return found

    def _summed(self, columns: np.ndarray) -> np.ndarray:
        """Columns of whole subtrees from those of their leaves."""
        parts = [columns[:0]]
        for start, stop, width in zip(self.columns_from, self.columns_from[1:], self.widths, strict=False):
            if width:
                parts.append(
                    merge_tree(columns[start:stop].reshape((stop - start) // width, width, columns.shape[1]), add)
                )
        return np.concatenate(parts)

    def _forget(self, found: Mapping[str, np.ndarray], failures: Mapping[tuple[int, int], Failure]) -> None:
        for subtree, member in failures:
            touched = [pair for pair, sides in enumerate(self.unit.pairs) if member in sides]
            if "content" in found:
                found["content"][subtree, member] = empty(CONTENT, ())
            if "bitwise" in found:
                found["bitwise"][subtree, touched] = empty(BITWISE, (len(touched),))
