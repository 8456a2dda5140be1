"""Put what units measured together, in whatever order it comes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from diffai_dist.errors import Failure
from diffai_dist.partials import MOMENTS, SHIFT, empty, empty_gram
from diffai_dist.plan import Plan, Unit
from diffai_dist.records import Measurements
from diffai_dist.rows import Rows, merged


class Collector:
    """Puts outcomes, in whatever order they come, at their places in the lanes' trees."""

    def __init__(self, plan: Plan) -> None:
        comparison = plan.comparison
        tensors, members = len(comparison.aligned), len(comparison.members)
        self.plan = plan
        self.moments = empty(MOMENTS, (tensors, members))
        self.shifts = empty(SHIFT, (tensors, len(comparison.pairs)))
        self.grams = empty_gram(tensors, members) if comparison.anchor is not None else None
        self.failures: dict[tuple[int, int], Failure] = {}
        self.waiting: dict[int, dict[int, Rows]] = {}

    def add(self, unit: Unit, rows: Rows, failures: Iterable[tuple[int, int, Failure]] = ()) -> int:
        """Take what a unit gave; how many lanes it completes."""
        for failed, member, failure in failures:
            self.failures.setdefault((self.plan.lanes[unit.subtrees[failed].lane].tensor, member), failure)
        lanes = [self.plan.lanes[subtree.lane] for subtree in unit.subtrees]
        whole = [index for index, lane in enumerate(lanes) if lane.nodes == 1]
        self._settle([lanes[index].tensor for index in whole], rows[whole])
        done = len(whole)
        for index, subtree in enumerate(unit.subtrees):
            if lanes[index].nodes > 1:
                nodes = self.waiting.setdefault(subtree.lane, {})
                nodes[subtree.node] = rows[[index]]
                if len(nodes) == lanes[index].nodes:
                    self._settle(
                        [lanes[index].tensor],
                        merged(self.waiting.pop(subtree.lane)),
                    )
                    done += 1
        return done

    def _settle(self, tensors: Sequence[int], rows: Rows) -> None:
        """Write finished rows; a member of another shape has a lane of its own, so only what was counted is written."""
        places = np.array(tensors, np.int64)
        for table, found in ((self.moments, rows.moments), (self.shifts, rows.shifts)):
            row, column = np.nonzero(found["count"])
            table[places[row], column] = found[row, column]
        if self.grams is not None and rows.grams is not None:
            np.add.at(self.grams, places, rows.grams)  # lanes of one tensor fill different places

    def measurements(self) -> Measurements:
        """All that was measured; call it once every unit was added. An element that was not counted is a bug."""
        for lane in self.plan.lanes:
            for member, tensor in enumerate(lane.tensors):
                counted = self.moments["count"][lane.tensor, member]
                if tensor and (lane.tensor, member) not in self.failures and counted != tensor.elements:
                    name = self.plan.comparison.aligned[lane.tensor].name
                    raise AssertionError(f"tensor {name!r}: {counted} of {tensor.elements} elements were measured")
        return Measurements(self.plan.comparison, self.moments, self.shifts, self.failures, self.grams)
