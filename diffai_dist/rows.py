"""What units measure: rows of partials, and the fixed tree along which they merge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffai_dist.partials import BITWISE, COLUMN, COLUMN_SHIFT, CONTENT, HISTOGRAM, MOMENTS, ROW, ROW_SHIFT, SHIFT


@dataclass(frozen=True, slots=True)
class Rows:
    """What a unit measured, a row per subtree; all that is stored of it. Members that failed have neutral rows.

    Those of the first block have a row per subtree, the tables of the second lie one behind the other: `heights` rows,
    `widths` columns, and for each member `bins` bins. None where it was not asked for.
    """

    moments: np.ndarray  # MOMENTS [subtrees, members]
    shifts: np.ndarray  # SHIFT [subtrees, pairs]
    grams: np.ndarray | None = None  # float64 [subtrees, planes, members, members]
    content: np.ndarray | None = None  # CONTENT [subtrees, members]
    bitwise: np.ndarray | None = None  # BITWISE [subtrees, pairs]

    heights: np.ndarray | None = None  # int64 [subtrees]
    rows: np.ndarray | None = None  # ROW [sum of heights, members]
    row_shifts: np.ndarray | None = None  # ROW_SHIFT [sum of heights, pairs]
    widths: np.ndarray | None = None  # int64 [subtrees]
    columns: np.ndarray | None = None  # COLUMN [sum of widths, members]
    column_shifts: np.ndarray | None = None  # COLUMN_SHIFT [sum of widths, pairs]
    bins: np.ndarray | None = None  # int64 [subtrees, members]
    histograms: np.ndarray | None = None  # HISTOGRAM [sum of bins], member after member

    def __getitem__(self, chosen: Sequence[int]) -> Rows:
        """Some of the subtrees; all of them are no copy."""
        rows = list(chosen)
        if rows == list(range(len(self.moments))):
            return self
        found = {name: _take(getattr(self, name), rows) for name in _BY_SUBTREE}
        for counts, tables in _TABLES.items():
            if (sizes := getattr(self, counts)) is not None:
                places = _places(sizes, rows)
                found |= {name: _take(getattr(self, name), places) for name in tables}
        return Rows(**found)  # type: ignore[arg-type]


# Every array of Rows: what its elements are.
DTYPES: Mapping[str, np.dtype] = {
    "moments": MOMENTS,
    "shifts": SHIFT,
    "grams": np.dtype(np.float64),
    "content": CONTENT,
    "bitwise": BITWISE,
    "heights": np.dtype(np.int64),
    "rows": ROW,
    "row_shifts": ROW_SHIFT,
    "widths": np.dtype(np.int64),
    "columns": COLUMN,
    "column_shifts": COLUMN_SHIFT,
    "bins": np.dtype(np.int64),
    "histograms": HISTOGRAM,
}
_TABLES = {"heights": ("rows", "row_shifts"), "widths": ("columns", "column_shifts"), "bins": ("histograms",)}
_MERGED = ("moments", "shifts", "grams", "content", "bitwise")
_BY_SUBTREE = [name for name in DTYPES if not any(name in tables for tables in _TABLES.values())]


def _take(array: np.ndarray | None, rows: Sequence[int] | np.ndarray) -> np.ndarray | None:
    return None if array is None else array[rows]


def _places(sizes: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """Where in a table the rows of the chosen subtrees lie."""
    totals = sizes.reshape(len(sizes), -1).sum(axis=1)
    starts, lengths = (np.cumsum(totals) - totals)[chosen], totals[chosen]
    behind = np.cumsum(lengths) - lengths  # where each begins among those that are taken
    return np.repeat(starts - behind, lengths) + np.arange(lengths.sum())


def merge_tree(rows: np.ndarray, merge: Callable[[np.ndarray, np.ndarray], None]) -> np.ndarray:
    """Merge neighbours, level by level, the odd one carried up: the tree depends on the number of rows alone."""
    while len(rows) > 1:
        left, right = rows[::2].copy(), rows[1::2]
        merge(left[: len(right)], np.ascontiguousarray(right))
        rows = left
    top: np.ndarray = rows[0]
    return top


def add(left: np.ndarray, right: np.ndarray) -> None:
    """How Grams merge, and columns: they are float64 throughout."""
    if left.dtype.names:
        for name in left.dtype.names:
            left[name] += right[name]
    else:
        left += right


def merge_of(name: str) -> Callable[[np.ndarray, np.ndarray], None]:
    """How the array of that name merges, which has a row per subtree."""
    from diffai_dist import kernels

    found: Callable[[np.ndarray, np.ndarray], None] = add if name == "grams" else getattr(kernels, f"merge_{name}")
    return found


def merged(nodes: Mapping[int, Rows]) -> Rows:
    """One row from those of nodes 0, 1, ...; the order in which they were put in tells nothing."""
    parts = [nodes[node] for node in range(len(nodes))]
    found: dict[str, np.ndarray | None] = dict.fromkeys(DTYPES)
    for name in (name for name in DTYPES if getattr(parts[0], name) is not None):
        arrays = [getattr(part, name) for part in parts]
        if name in _MERGED:
            found[name] = merge_tree(np.concatenate(arrays), merge_of(name))[None]
        elif name in ("rows", "row_shifts"):
            found[name] = np.concatenate(arrays)
        elif name in ("columns", "column_shifts"):
            found[name] = merge_tree(np.stack(arrays), add)
    if parts[0].heights is not None:
        found["heights"] = np.sum([part.heights for part in parts if part.heights is not None], axis=0)
    found["widths"] = parts[0].widths
    found["bins"], found["histograms"] = _histograms(parts)
    return Rows(**found)  # type: ignore[arg-type]


def _histograms(parts: Sequence[Rows]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The bins of each member, added up over all parts."""
    if parts[0].bins is None:
        return None, None
    found = [add_histograms(split(part, 0)[member] for part in parts) for member in range(parts[0].bins.shape[1])]
    return np.array([[len(one) for one in found]], np.int64), np.concatenate([np.zeros(0, HISTOGRAM), *found])


def split(rows: Rows, subtree: int) -> list[np.ndarray]:
    """The histogram of each member in one subtree."""
    if rows.bins is None or rows.histograms is None:
        raise ValueError("no histograms were measured")
    start = int(rows.bins[:subtree].sum())
    return np.split(rows.histograms[start:], np.cumsum(rows.bins[subtree]))[:-1]


def add_histograms(parts: Iterable[np.ndarray]) -> np.ndarray:
    """One sparse histogram from several."""
    every = np.concatenate([np.zeros(0, HISTOGRAM), *parts])
    bins, places = np.unique(every["bin"], return_inverse=True)
    found = np.zeros(len(bins), HISTOGRAM)
    found["bin"] = bins
    np.add.at(found["count"], places, every["count"])
    return found
