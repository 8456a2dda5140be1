"""Put what units measured together, in whatever order it comes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, MutableMapping, Sequence

import numpy as np

from diffai_dist.comparison import Pair
from diffai_dist.errors import Failure
from diffai_dist.partials import BITWISE, CONTENT, MOMENTS, SHIFT, empty, empty_gram
from diffai_dist.plan import Lane, Plan, Unit, is_real
from diffai_dist.records import Details, Measurements
from diffai_dist.rows import Rows, merged, split

# Tables of Details: their sizes and their source in Rows, and what their columns are.
TABLES = {
    "rows": ("heights", "rows", "members"),
    "row_shifts": ("heights", "row_shifts", "pairs"),
    "columns": ("widths", "columns", "members"),
    "column_shifts": ("widths", "column_shifts", "pairs"),
}


class Tables(MutableMapping[tuple[int, int], np.ndarray]):
    """Tables by tensor and column, as slices of what units gave: an array of each of 100,000 would outweigh them.

    >>> tables = Tables(2, 1)
    >>> tables.put(np.arange(3.0)[:, None], np.array([1, 2]), np.array([1, 0]), np.array([[True], [True]]))
    >>> list(tables), tables[0, 0]
    ([(0, 0), (1, 0)], array([1., 2.]))
    """

    def __init__(self, tensors: int, columns: int) -> None:
        self._parts: list[np.ndarray] = []
        self._where = np.full((tensors, columns, 3), -1, np.int64)  # part, start, stop

    def put(self, table: np.ndarray, sizes: np.ndarray, tensors: np.ndarray, chosen: np.ndarray) -> None:
        """Take a table [rows, columns] that holds so many rows of each of these tensors, of the `chosen` ones."""
        ends = np.cumsum(sizes)
        for column in np.flatnonzero(chosen.any(axis=0)).tolist():
            rows = np.flatnonzero(chosen[:, column] & (sizes > 0))
            part = np.full(len(rows), len(self._parts))
            self._where[tensors[rows], column] = np.stack([part, ends[rows] - sizes[rows], ends[rows]], axis=1)
            self._parts.append(np.ascontiguousarray(table[:, column]))

    def __getitem__(self, key: tuple[int, int]) -> np.ndarray:
        part, start, stop = self._where[key].tolist()
        if part < 0:
            raise KeyError(key)
        found: np.ndarray = self._parts[part][start:stop]
        return found

    def __setitem__(self, key: tuple[int, int], table: np.ndarray) -> None:
        self._where[key] = len(self._parts), 0, len(table)
        self._parts.append(table)

    def __delitem__(self, key: tuple[int, int]) -> None:
        self[key]
        self._where[key] = -1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        tensors, columns = np.nonzero(self._where[..., 0] >= 0)
        yield from zip(tensors.tolist(), columns.tolist(), strict=True)

    def __len__(self) -> int:
        return int(np.count_nonzero(self._where[..., 0] >= 0))


class Collector:
    """Puts outcomes, in whatever order they come, at their places in the lanes' trees."""

    def __init__(self, plan: Plan) -> None:
        comparison = plan.comparison
        tensors, members = len(comparison.aligned), len(comparison.members)
        self.plan = plan
        self.moments = empty(MOMENTS, (tensors, members))
        self.shifts = empty(SHIFT, (tensors, len(comparison.pairs)))
        self.grams = empty_gram(tensors, members) if comparison.anchor is not None else None
        asked = comparison.details
        self.content = empty(CONTENT, self.moments.shape) if "content" in asked else None
        self.bitwise = empty(BITWISE, self.shifts.shape) if "bitwise" in asked else None
        self.histograms: dict[tuple[int, int], np.ndarray] = {}
        widths = {"members": members, "pairs": len(comparison.pairs)}
        self.tables = {name: Tables(tensors, widths[of]) for name, (_, _, of) in TABLES.items()}
        self.failures: dict[tuple[int, int], Failure] = {}
        self.waiting: dict[int, dict[int, Rows]] = {}
        sides = [(pair.baseline, pair.candidate) for pair in comparison.pairs]
        self._sides = np.array(sides, np.int64).reshape(-1, 2).T

    def add(self, unit: Unit, rows: Rows, failures: Iterable[tuple[int, int, Failure]] = ()) -> int:
        """Take what a unit gave; how many tensors it completes."""
        for failed, member, failure in failures:
            for place in self.plan.lanes[unit.subtrees[failed].lane].places:
                self.failures.setdefault((place, member), failure)
        lanes = [self.plan.lanes[subtree.lane] for subtree in unit.subtrees]
        whole = [index for index, lane in enumerate(lanes) if lane.nodes == 1]
        self._settle([lanes[index] for index in whole], rows[whole])
        done = sum(len(lanes[index].places) for index in whole)
        for index, subtree in enumerate(unit.subtrees):
            if lanes[index].nodes > 1:
                nodes = self.waiting.setdefault(subtree.lane, {})
                nodes[subtree.node] = rows[[index]]
                if len(nodes) == lanes[index].nodes:
                    self._settle([lanes[index]], merged(self.waiting.pop(subtree.lane)))
                    done += len(lanes[index].places)
        return done

    def _settle(self, lanes: Sequence[Lane], rows: Rows) -> None:
        """Write finished rows; a member of another shape has a lane of its own, so only what was counted is written."""
        each = [(index, place) for index, lane in enumerate(lanes) for place in lane.places]
        rows, lanes = rows[[index for index, _ in each]], [lanes[index] for index, _ in each]
        places = np.array([place for _, place in each], np.int64)
        for table, found in ((self.moments, rows.moments), (self.shifts, rows.shifts)):
            row, column = np.nonzero(found["count"])
            table[places[row], column] = found[row, column]
        if self.grams is not None and rows.grams is not None:
            np.add.at(self.grams, places, rows.grams)  # lanes of one tensor fill different places
        if self.plan.comparison.details and lanes:
            self._settle_details(lanes, places, rows)

    def _settle_details(self, lanes: Sequence[Lane], places: np.ndarray, rows: Rows) -> None:
        there = np.array([[tensor is not None for tensor in lane.tensors] for lane in lanes], bool)
        real = np.array([[tensor is not None and is_real(tensor) for tensor in one.tensors] for one in lanes], bool)
        paired = np.array([lane.pairs for lane in lanes], bool)[:, None]
        before, after = self._sides
        for table, found, own in (
            (self.content, rows.content, there),
            (self.bitwise, rows.bitwise, there[:, before] & there[:, after] & paired),
        ):
            if table is not None and found is not None:
                row, column = np.nonzero(own)
                table[places[row], column] = found[row, column]
        valued = {"members": real, "pairs": real[:, before] & real[:, after] & paired}
        for name, (counts, source, of) in TABLES.items():
            if (sizes := getattr(rows, counts)) is not None and sizes.any():
                self.tables[name].put(getattr(rows, source), sizes, places, valued[of])
        if rows.bins is not None:
            for at in np.flatnonzero(rows.bins.any(axis=1)).tolist():
                for member, one in enumerate(split(rows, at)):
                    if real[at, member] and len(one):
                        self.histograms[int(places[at]), member] = one.copy()

    def measurements(self) -> Measurements:
        """All that was measured; call it once every unit was added. An element that was not counted is a bug."""
        counts = self.moments["count"].tolist()
        for lane in self.plan.lanes:
            for place, (member, tensor) in itertools.product(lane.places, enumerate(lane.tensors)):
                counted = counts[place][member]
                if tensor and counted != tensor.elements and (place, member) not in self.failures:
                    name = self.plan.comparison.aligned[place].name
                    raise AssertionError(f"tensor {name!r}: {counted} of {tensor.elements} elements were measured")
        return Measurements(self.plan.comparison, self.moments, self.shifts, self.failures, self.grams, self._details())

    def _details(self) -> Details:
        """What was measured of each tensor to its end."""
        pairs = self.plan.comparison.pairs
        spoiled = {
            "members": set(self.failures),
            "pairs": {
                (tensor, index)
                for tensor, member in self.failures
                for index, pair in enumerate(pairs)
                if member in _sides(pair)
            },
        }
        for name, (_, _, of) in TABLES.items():
            for key in spoiled[of] & self.tables[name].keys():
                del self.tables[name][key]
        for key in spoiled["members"] & self.histograms.keys():
            del self.histograms[key]
        if self.content is not None:
            for key in spoiled["members"]:
                self.content[key] = empty(CONTENT, ())
        if self.bitwise is not None:
            for key in spoiled["pairs"]:
                self.bitwise[key] = empty(BITWISE, ())
        return Details(self.content, self.bitwise, **self.tables, histograms=self.histograms)


def _sides(pair: Pair) -> set[int]:
    return {pair.baseline, pair.candidate}
