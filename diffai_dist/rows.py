"""What units measure: rows of partials, and the fixed tree along which they merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Rows:
    """What a unit measured, a row per subtree; all that is stored of it. Members that failed have neutral rows."""

    moments: np.ndarray  # MOMENTS [subtrees, members]
    shifts: np.ndarray  # SHIFT [subtrees, pairs]
    grams: np.ndarray | None  # float64 [subtrees, planes, members, members]

    def __getitem__(self, chosen: Sequence[int]) -> Rows:
        """Some of the subtrees."""
        rows = list(chosen)
        return Rows(self.moments[rows], self.shifts[rows], None if self.grams is None else self.grams[rows])


def merge_tree(rows: np.ndarray, merge: Callable[[np.ndarray, np.ndarray], None]) -> np.ndarray:
    """Merge neighbours, level by level, the odd one carried up: the tree depends on the number of rows alone."""
    while len(rows) > 1:
        left, right = rows[::2].copy(), rows[1::2]
        merge(left[: len(right)], np.ascontiguousarray(right))
        rows = left
    top: np.ndarray = rows[0]
    return top


def add(left: np.ndarray, right: np.ndarray) -> None:
    """How Grams merge."""
    left += right


def merged(nodes: Mapping[int, Rows]) -> Rows:
    """One row from those of nodes 0, 1, ...; the order in which they were put in tells nothing."""
    from diffai_dist.kernels import merge_moments, merge_shifts

    rows = [nodes[node] for node in range(len(nodes))]
    grams = [row.grams for row in rows if row.grams is not None]
    return Rows(
        merge_tree(np.concatenate([row.moments for row in rows]), merge_moments)[None],
        merge_tree(np.concatenate([row.shifts for row in rows]), merge_shifts)[None],
        merge_tree(np.concatenate(grams), add)[None] if grams else None,
    )
