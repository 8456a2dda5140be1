"""Put what units measured together, in whatever order it comes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
        self.tables = {name: dict[tuple[int, int], np.ndarray]() for name in TABLES}
        self.failures: dict[tuple[int, int], Failure] = {}
        self.waiting: dict[int, dict[int, Rows]] = {}

    def add(self, unit: Unit, rows: Rows, failures: Iterable[tuple[int, int, Failure]] = ()) -> int:
        """Take what a unit gave; how many lanes it completes."""
        for failed, member, failure in failures:
            self.failures.setdefault((self.plan.lanes[unit.subtrees[failed].lane].tensor, member), failure)
        lanes = [self.plan.lanes[subtree.lane] for subtree in unit.subtrees]
        whole = [index for index, lane in enumerate(lanes) if lane.nodes == 1]
        self._settle([lanes[index] for index in whole], rows[whole])
        done = len(whole)
        for index, subtree in enumerate(unit.subtrees):
            if lanes[index].nodes > 1:
                nodes = self.waiting.setdefault(subtree.lane, {})
                nodes[subtree.node] = rows[[index]]
                if len(nodes) == lanes[index].nodes:
                    self._settle([lanes[index]], merged(self.waiting.pop(subtree.lane)))
                    done += 1
        return done

    def _settle(self, lanes: Sequence[Lane], rows: Rows) -> None:
        """Write finished rows; a member of another shape has a lane of its own, so only what was counted is written."""
        places = np.array([lane.tensor for lane in lanes], np.int64)
        for table, found in ((self.moments, rows.moments), (self.shifts, rows.shifts)):
            row, column = np.nonzero(found["count"])
            table[places[row], column] = found[row, column]
        if self.grams is not None and rows.grams is not None:
            np.add.at(self.grams, places, rows.grams)  # lanes of one tensor fill different places
        if self.plan.comparison.details:
            self._settle_details(lanes, rows)

    def _settle_details(self, lanes: Sequence[Lane], rows: Rows) -> None:
        pairs = self.plan.comparison.pairs
        ends = {counts: [0, *np.cumsum(sizes).tolist()] for counts, _, _ in TABLES.values()
                if (sizes := getattr(rows, counts)) is not None}  # fmt: skip
        for at, lane in enumerate(lanes):
            there = {member for member, tensor in enumerate(lane.tensors) if tensor}
            sides = [index for index, pair in enumerate(pairs) if _sides(pair) <= there]
            own = {"members": sorted(there), "pairs": sides if lane.pairs else []}
            real = {member for member, tensor in enumerate(lane.tensors) if tensor and is_real(tensor)}
            if self.content is not None and rows.content is not None:
                self.content[lane.tensor, own["members"]] = rows.content[at, own["members"]]
            if self.bitwise is not None and rows.bitwise is not None:
                self.bitwise[lane.tensor, own["pairs"]] = rows.bitwise[at, own["pairs"]]
            for name, (counts, source, of) in TABLES.items():
                if counts in ends and ends[counts][at] < ends[counts][at + 1]:
                    table = getattr(rows, source)[ends[counts][at] : ends[counts][at + 1]]
                    for column in own[of]:
                        if ({column} if of == "members" else _sides(pairs[column])) <= real:
                            self.tables[name][lane.tensor, column] = np.ascontiguousarray(table[:, column])
            if rows.bins is not None:
                for member, found in enumerate(split(rows, at)):
                    if member in real and len(found):
                        self.histograms[lane.tensor, member] = found.copy()

    def measurements(self) -> Measurements:
        """All that was measured; call it once every unit was added. An element that was not counted is a bug."""
        for lane in self.plan.lanes:
            for member, tensor in enumerate(lane.tensors):
                counted = self.moments["count"][lane.tensor, member]
                if tensor and (lane.tensor, member) not in self.failures and counted != tensor.elements:
                    name = self.plan.comparison.aligned[lane.tensor].name
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
