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

    def places(self, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of pieces (subtree, slot, first): their rows' index and elements, 0 for none; the first columns', or -1."""
        subtree, slot, first = pieces[:, :3].T
        rows_from, columns_from, slots = (
            np.array(starts, np.int64)[subtree] for starts in (self.rows_from, self.columns_from, self.slots)
        )
        row, width, begins = (
            np.array([getattr(one, name) for one in self.unit.subtrees], np.int64)[subtree]
            for name in ("row", "width", "first")
        )
        inside = np.where(row > 0, rows_from + (first - begins) // np.maximum(row, 1), 0)
        return inside, row, np.where(width > 0, columns_from + (slot - slots) * width, -1)

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

        rows_at, widths, columns_at = self.places(np.array(pieces, np.int64))
        out = kernels.DetailRows(
            self.content, self.bitwise, self.rows, self.row_shifts, self.columns, self.column_shifts
        )
        tables = moments, shifts, anchor, grams
        kernels.measure_details(
            arena, slots, base, count, bits, codes, pairs, *tables, rows_at, widths, columns_at, out
        )
        if self._counts is not None:
            own = bits if self._all_counted else np.where(kernels.is_byte(codes), bits, -1)
            for piece in np.flatnonzero((own >= 0).any(axis=1)).tolist():
                self._count(arena, pieces[piece][0], int(count[piece]), own[piece], codes[piece])

    def _count(self, arena: np.ndarray, subtree: int, count: int, bits: np.ndarray, codes: np.ndarray) -> None:
        from diffai_dist import kernels

        if self._counts is None:
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
                found[name] = rows[list(self.slots[:-1])]
                for subtree, (a, b) in enumerate(runs):
                    if b - a > 1:
                        found[name][subtree] = merge_tree(rows[a:b], merge_of(name))
        if {"rows", "columns"}.intersection(self.unit.details):
            found |= {"heights": np.array(self.heights, np.int64), "rows": self.rows, "row_shifts": self.row_shifts}
        if "columns" in self.unit.details:
            found["widths"] = np.array(self.widths, np.int64)
            found |= {name: self._summed(getattr(self, name)) for name in ("columns", "column_shifts")}
        if self._counts is not None:
            self._keep_counts()
            counted = sorted(self.histograms.items(), key=lambda item: item[0])
            found["bins"] = np.zeros((len(runs), self.unit.members), np.int64)
            for place, one in counted:
                found["bins"][place] = len(one)
            found["histograms"] = np.concatenate([np.zeros(0, HISTOGRAM), *(one for _, one in counted)])
        self._forget(found, failures)
        return found

    def _summed(self, columns: np.ndarray) -> np.ndarray:
        """Columns of whole subtrees from those of their leaves."""
        if self.columns_from[-1] == sum(self.widths):  # each has one leaf
            return columns
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
