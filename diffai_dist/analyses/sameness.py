"""Which tensors hold the same bits in which members, out of what was measured for other questions."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from diffai_dist.comparison import Pair
from diffai_dist.partials import GRAM, MOMENTS
from diffai_dist.records import Measurements

SAME, DIFFERENT, UNKNOWN = 1, 0, -1
ABSENT, UNREAD = -1, -2  # classes of what cannot be compared: not in the member; in it, but not measured


@dataclass(frozen=True)
class Sameness:
    """Arrays as in Series, [tensors, members]."""

    measured: Measurements
    sizes: np.ndarray
    read: np.ndarray
    decoded: np.ndarray
    unread: np.ndarray

    def between(self, i: int, j: int) -> np.ndarray:
        """SAME, DIFFERENT or UNKNOWN for each tensor.

        Equal bits have equal statistics, so unequal ones settle it; equal ones do not.
        """
        found = self._known.get((i, j))
        if found is None:
            found = self._known[i, j] = self._compare(i, j)
        return found

    @cached_property
    def equal(self) -> np.ndarray:
        """For each tensor and member the first member with the same bits, as far as pairs that were compared tell.

        What equals the same is equal. Negative where it cannot be compared: ABSENT where there is no such tensor, a
        number of its own below UNREAD where it was not measured.
        """
        places = np.arange(self.read.shape[1])
        classes: np.ndarray = np.where(self.read, places, np.where(self.unread, UNREAD - places, ABSENT))
        for i, j in self._told:
            rows = np.flatnonzero(self.between(i, j) == SAME)
            ends = classes[rows][:, [i, j]]
            earlier, later = ends.min(axis=1, keepdims=True), ends.max(axis=1, keepdims=True)
            classes[rows] = np.where(classes[rows] == later, earlier, classes[rows])
        return classes

    @cached_property
    def alike(self) -> np.ndarray:
        """The same where equal dtype, shape and statistics count, too, unless bits were compared and differ."""
        classes = self.equal.copy()
        for tensor in np.flatnonzero(self._looks_alike).tolist():
            members: dict[int, list[int]] = {}
            for member, first in enumerate(self.equal[tensor].tolist()):
                if first >= 0:
                    members.setdefault(first, []).append(member)
            looks: dict[Hashable, list[int]] = {}
            for first, own in members.items():
                firsts = looks.setdefault((self.kinds[tensor, first], self._statistics[tensor, first]), [])
                others = firsts if self.decoded[tensor, first] else []
                same = next((other for other in others if self._may_be_same(tensor, members[other], own)), None)
                if same is None:
                    firsts.append(first)
                else:
                    members[same] += own
                    classes[tensor, own] = same
        return classes

    @property
    def _looks_alike(self) -> np.ndarray:
        """Which tensors have two classes of equal bits, known by their first members, of one kind and statistics."""
        places = np.arange(self.read.shape[1])
        looks = np.where(self.equal == places, len(places) * self.kinds + self._statistics, -1 - places)
        looks.sort(axis=1)
        found: np.ndarray = (looks[:, 1:] == looks[:, :-1]).any(axis=1)
        return found

    def pairs_of(self, i: int, j: int) -> list[int]:
        """Indices of the pairs measured between two members: distances and bits have no direction."""
        return [self._pairs[pair] for pair in (Pair(j, i), Pair(i, j)) if pair in self._pairs]

    def _may_be_same(self, tensor: int, some: Sequence[int], others: Sequence[int]) -> bool:
        return all(self.between(i, j)[tensor] != DIFFERENT for i in some for j in others)

    @property
    def _told(self) -> Iterable[tuple[int, int]]:
        """Pairs of members about which more than statistics may be known."""
        if self.measured.grams is not None:
            return itertools.combinations(range(self.read.shape[1]), 2)
        rows, members = np.nonzero(self._places != np.arange(self.read.shape[1]))
        shared = zip(self._places[rows, members].tolist(), members.tolist(), strict=True)
        return sorted({*shared, *((one.baseline, one.candidate) for one in self._pairs)})

    def _compare(self, i: int, j: int) -> np.ndarray:
        found = np.full(len(self.read), UNKNOWN, np.int8)
        if self.measured.grams is not None:
            count, differ = (self.measured.grams[:, GRAM.index(name), i, j] for name in ("count", "differ"))
            found[(count > 0) & (differ == 0)] = SAME
            found[differ > 0] = DIFFERENT
        for pair in self.pairs_of(i, j):
            rows = self.measured.shifts[:, pair]
            compared = rows["count"] == self.sizes[:, i]
            found[compared] = np.where(rows["bits"][compared] == 0, SAME, DIFFERENT)
        found[self.kinds[:, i] != self.kinds[:, j]] = DIFFERENT
        found[self._statistics[:, i] != self._statistics[:, j]] = DIFFERENT
        found[self._places[:, i] == self._places[:, j]] = SAME
        found[~(self.read[:, i] & self.read[:, j])] = UNKNOWN
        return found

    @cached_property
    def _known(self) -> dict[tuple[int, int], np.ndarray]:
        return {}

    @cached_property
    def _pairs(self) -> dict[Pair, int]:
        return {pair: index for index, pair in enumerate(self.measured.comparison.pairs)}

    @cached_property
    def kinds(self) -> np.ndarray:
        """For each tensor and member the first member that holds it with that dtype, shape and bytes."""
        aligned = self.measured.comparison.aligned
        rows = ([one and (one.dtype, one.shape, one.nbytes) for one in a.tensors] for a in aligned)
        return _labels(rows, self.read.shape[1])

    @cached_property
    def _places(self) -> np.ndarray:
        """Of the bytes: one pinned object may serve several members."""
        aligned = self.measured.comparison.aligned
        return _labels(([one and (one.spans, one.scheme) for one in a.tensors] for a in aligned), self.read.shape[1])

    @cached_property
    def _statistics(self) -> np.ndarray:
        tensors, members = self.read.shape
        size = (tensors, members, MOMENTS.itemsize // 8)
        words = np.ascontiguousarray(self.measured.moments).view(np.int64).reshape(size)
        found = np.tile(np.arange(members), (tensors, 1))
        for member in range(1, members):
            same = (words[:, :member] == words[:, member, None]).all(axis=2)
            found[:, member] = np.where(same.any(axis=1), same.argmax(axis=1), member)
        return found


def _labels(rows: Iterable[Iterable[Hashable]], width: int) -> np.ndarray:
    """For each cell the first place in its row where the same stands."""
    found = []
    for row in rows:
        first: dict[Hashable, int] = {}
        found.append([first.setdefault(cell, place) for place, cell in enumerate(row)])
    return np.array(found, np.int64).reshape(len(found), width)
