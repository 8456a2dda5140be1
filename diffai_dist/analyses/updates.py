"""How far the blocks of a model move from member to member of a series, and by how much that jumps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from diffai_dist.analyses.lengths import BLURRED, cosine, total
from diffai_dist.analyses.roles import block
from diffai_dist.analyses.series import Series

FEWEST = 5  # members: four updates, three differences between them


class Updates:
    """The updates of a series by block; jumps [blocks, updates - 1] lead from one to the next, NaN where unknown."""

    def __init__(self, series: Series) -> None:
        self.series = series
        self.groups: dict[str, list[int]] = {}
        for tensor, name in enumerate(series.tensors):
            if self.usable[tensor].any():
                self.groups.setdefault(block(name), []).append(tensor)
        self.blocks = list(self.groups)

    @cached_property
    def squares(self) -> np.ndarray:
        """‖u_t‖² of each tensor, [tensors, updates]; NaN also where rounding may be all that there is."""
        columns = [self.series.distances(t, t + 1).known for t in self.series.intervals]
        return np.array(columns, np.float64).reshape(len(columns), len(self.series.tensors)).T

    @cached_property
    def explained(self) -> np.ndarray:
        """Which tensors are stale or spoiled at either end of an update."""
        found: np.ndarray = self.series.old | self.series.spoiled
        found[:, list(self.series.duplicates)] = True
        explained: np.ndarray = found[:, :-1] | found[:, 1:]
        return explained

    @cached_property
    def usable(self) -> np.ndarray:
        """Which tensors take part in which updates."""
        known = np.isfinite(self.squares) & np.isfinite(self.series.norms2[:, :-1])
        usable: np.ndarray = known & ~self.explained & ~self.series.frozen[:, None]
        return usable

    @property
    def left_out(self) -> dict[str, int]:
        """Updates of single tensors that take no part, by reason."""
        held = (self.series.sizes > 0) | self.series.unread
        there = held[:, :-1] & held[:, 1:]
        explained = there & self.explained & ~self.series.frozen[:, None]
        unmeasured = there & ~explained & ~np.isfinite(self.squares)
        return {"stale_or_non_finite": int(explained.sum()), "not_measured": int(unmeasured.sum())}

    @property
    def measurable(self) -> bool:
        """Whether there are enough updates to say what is ordinary."""
        return len(self.series.members) >= FEWEST and bool(self.blocks)

    @property
    def reason(self) -> str:
        """Why not."""
        if len(self.series.members) < FEWEST:
            return f"{len(self.series.members)} checkpoints: jumps are judged from {FEWEST} on"
        return "no tensor was measured from one checkpoint to the next, or none moved"

    @cached_property
    def jumps(self) -> np.ndarray:
        """Differences of log u of each block, beyond what unequal steps explain."""
        rows = [self._jumps_of(tensors) for tensors in self.groups.values()]
        return np.array(rows).reshape(len(rows), len(self.series.intervals) - 1)

    @cached_property
    def whole(self) -> np.ndarray:
        """Those of all tensors together."""
        return self._jumps_of([tensor for tensors in self.groups.values() for tensor in tensors])

    @cached_property
    def common(self) -> np.ndarray:
        """The jump of the median block: what a schedule does to all."""
        known = np.isfinite(self.jumps)
        columns = [self.jumps[known[:, t], t] for t in range(self.jumps.shape[1])]
        return np.array([np.median(column) if column.size else np.nan for column in columns])

    def turn(self, tensors: Sequence[int], t: int) -> float | None:
        """Cosine of update t with the one after it; None where it is not known, or rounding may have moved it."""
        if not 0 <= t < len(self.series.intervals) - 1:
            return None
        before, after, across = (self.series.distances(*ends) for ends in ((t, t + 1), (t + 1, t + 2), (t, t + 2)))
        usable = self.usable[:, t] & self.usable[:, t + 1] & np.isfinite(across.squares)
        chosen = np.array(tensors)[usable[tensors]]
        found = cosine(before.of(chosen), after.of(chosen), across.of(chosen))
        return None if found is None or found[1] > BLURRED else found[0]

    def share(self, tensors: Sequence[int], t: int) -> float | None:
        """Of the block in the squared update of all."""
        rows = np.array(tensors)
        every = self.squares[self.usable[:, t], t]
        part, whole = total(self.squares[rows[self.usable[rows, t]], t]), total(every)
        return part / whole if whole > 0.0 and math.isfinite(part) else None

    def _jumps_of(self, tensors: Sequence[int]) -> np.ndarray:
        """Each from the latest update before it with tensors that take part in both, over all of those."""
        rows = np.array(tensors)
        found = np.full(len(self.series.intervals) - 1, np.nan)
        gaps = np.diff(self.series.axis)
        for t in range(1, len(gaps)):
            shared = (self.usable[rows, :t] & self.usable[rows, t : t + 1]).T
            if shared.any():
                last = int(np.flatnonzero(shared.any(axis=1))[-1])
                jump = self._log_u(rows[shared[last]], t) - self._log_u(rows[shared[last]], last)
                found[t - 1] = beyond(jump, gaps[last], gaps[t])
        return found

    def _log_u(self, tensors: np.ndarray, t: int) -> float:
        square, norm = total(self.squares[tensors, t]), total(self.series.norms2[tensors, t])
        return 0.5 * (math.log(square) - math.log(norm)) if square > 0.0 and norm > 0.0 else math.nan


def beyond(jump: float, before: float, after: float) -> float:
    """What is left of a jump of log u once steps of unequal length explain what they can.

    >>> beyond(1.0, 10.0, 10.0), beyond(math.log(2.0), 10.0, 20.0)
    (1.0, 0.0)
    """
    expected = math.log(after / before)
    low, high = sorted((0.5 * expected, expected))
    return jump - min(max(jump, low), high)
