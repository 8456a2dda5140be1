"""How alike the members of a group are: distances and angles between all of them, and of what they learned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.roles import role
from diffai_dist.records import AnalysisRecord, Finding

if TYPE_CHECKING:
    import numpy as np

    from diffai_dist.analyses.closeness import Closeness
    from diffai_dist.analyses.series import Series

_FEWEST = 5  # members, from which on the others say what is ordinary

Cells = list[list[float | None]]


@dataclass(frozen=True)
class SimilarityMatrix:
    """How alike the checkpoints of a group are: cosine and relative distance of each two, overall and per role.

    cosine_distance is 1 - cos of the angle between all weights of two members, relative_distance ‖x_j - x_i‖ / ‖x_i‖ of
    row i and column j, task_cosine the cosine between what two members have moved from the anchor. They come from the
    Gram of the group, but for pairs that were measured element by element; bounds of their rounding are the largest of
    each matrix, and a cell that may be nothing but rounding is null. The order puts clusters together, by average
    linkage of ‖x_j - x_i‖ / sqrt(‖x_i‖ ‖x_j‖). A cell is over the tensors that both members have; task_cosine leaves
    out those that are not finite in the anchor.
    A small task cosine is no alarm: task vectors of different tasks are close to orthogonal.
    """

    name: ClassVar[str] = "similarity_matrix"
    flag: ClassVar[str] = "--similarity-matrix"
    kind: ClassVar[Kind] = "N"
    partials: ClassVar[tuple[str, ...]] = ("gram",)
    in_all: ClassVar[bool] = True
    always: ClassVar[bool] = False
    result: ClassVar[Mapping[str, str]] = {
        "checkpoint": "whose layers are compared, in place of members; only there in a comparison of two",
        "anchor": "the member from which the products were taken; null for none",
        "tensors": "tensors with products in some member",
        "tensors_not_in_all": "those among them without products in some other",
        "tensors_left_out": "tensors without products",
        "largest_cosine_distance_error": "how far rounding may have taken a cell of cosine_distance at most",
        "largest_l2_error": "how far rounding may have taken a distance ‖x_j - x_i‖ at most",
        "pairs_lost_to_rounding": "pairs whose distance may be nothing but rounding",
        "order": "members, clusters side by side: average linkage of ‖x_j - x_i‖ / sqrt(‖x_i‖ ‖x_j‖)",
        "clusters": "runs of that order: from, to, checkpoints, mean distance at which the two parts were joined",
        "nearest": "of each checkpoint the nearest other, relative_distance and cosine_distance between them",
        "cosine_distance": "1 - cos of the angle between row and column, one column per member",
        "relative_distance": "‖x_j - x_i‖ / ‖x_i‖ of row i and column j",
        "task_cosine": "cosine between what row and column have moved from the anchor",
        "role_cosine_distance": "cosine_distance over the tensors of each role, a matrix for each",
        "reason": "why there is no matrix; only there where there is none",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "outlier": "robust z of a member's mean distance to all others above `outlier`, and its nearest further than"
        " `apart` of that mean: low",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "robust z and 3.5: Iglewicz and Hoaglin 1993 (published)",
        "distances and angles from the Gram of differences from the anchor: derived",
        "0.9, and five members to judge by: judgement",
    )

    outlier: float = threshold(3.5, "robust z of a member's mean distance to all others", "Iglewicz and Hoaglin 1993")
    apart: float = threshold(0.9, "of that mean, which an outlier keeps from its nearest")

    def __call__(self, series: Series) -> AnalysisRecord:
        """Matrices as rows that begin with their checkpoint, and one column per checkpoint."""
        if not series.products.any():
            return AnalysisRecord(self.name, {"reason": "no products of the group were measured"})
        from diffai_dist.analyses.closeness import closeness

        near = closeness(series, range(len(series.tensors)))
        gaps = _gaps(near)
        anchor = series.measured.comparison.anchor
        result: dict[str, Any] = {
            "anchor": None if anchor is None else series.names[anchor],
            "tensors": int(series.products.any(axis=1).sum()),
            "tensors_not_in_all": int((series.products.any(axis=1) & ~series.products.all(axis=1)).sum()),
            "tensors_left_out": int((~series.products.any(axis=1)).sum()),
            "largest_cosine_distance_error": _largest(near.cosine_error),
            "largest_l2_error": _largest(near.l2_error),
            "pairs_lost_to_rounding": int(near.lost.sum()) // 2,
            **_clusters(series, gaps, near),
            "nearest": _nearest(series, gaps, near),
            "cosine_distance": _rows(series, _angles(near)),
            "relative_distance": _rows(series, _distances(near)),
            "task_cosine": _rows(series, _task_cosines(series)),
            "role_cosine_distance": list(_roles(series)),
        }
        return AnalysisRecord(self.name, result, tuple(self._findings(series, gaps)))

    def _findings(self, series: Series, gaps: np.ndarray) -> Iterator[Finding]:
        """Members far from all others: by z, and about as far from the nearest one as from all.

        The second keeps the first checkpoints of a training out: they lie at the end of a path, but on it.
        """
        import numpy as np

        from diffai_dist.analyses.robust import robust_z

        known = _complete(gaps)
        if len(known) < _FEWEST:
            return
        inner = gaps[np.ix_(known, known)]
        means = inner.sum(axis=1) / (len(known) - 1)
        scores = robust_z(means)
        nearest = np.where(np.eye(len(known), dtype=bool), np.inf, inner).min(axis=1)
        for place, member in enumerate(known):
            if scores[place] > self.outlier and nearest[place] > self.apart * means[place]:
                name = series.names[member]
                found = finding(self, "outlier", "low", None, float(scores[place]), "outlier", None, name)
                yield replace(found, source=f"robust z of the mean distance to all others; {found.source}")


def _gaps(near: Closeness) -> np.ndarray:
    """Symmetric distances without a unit; NaN where a pair has no number. What is lost to rounding is near."""
    import numpy as np

    gaps: np.ndarray = np.sqrt(near.rel_l2 * near.rel_l2.T)
    return gaps


def _distances(near: Closeness) -> Cells:
    return _cells(near.rel_l2, near.lost)


def _angles(near: Closeness) -> Cells:
    return _cells(near.cosine_distance, near.blurred)


def _cells(values: np.ndarray, unknown: np.ndarray) -> Cells:
    rows = zip(values.tolist(), unknown.tolist(), strict=True)
    return [
        [None if lost or not math.isfinite(cell) else cell for cell, lost in zip(*row, strict=True)] for row in rows
    ]


def _largest(values: np.ndarray) -> float | None:
    return max((one for one in values.ravel().tolist() if math.isfinite(one)), default=None)


def _rows(series: Series, cells: Cells) -> list[dict[str, Any]]:
    return [_row(series, name, row) for name, row in zip(series.names, cells, strict=True)]


def _row(series: Series, name: str, row: Sequence[float | None]) -> dict[str, Any]:
    """A column per member, beside those that say what the row is: a member of such a name gets a slash."""
    columns = [f"{one}/" if one in ("checkpoint", "role", "layer") else one for one in series.names]
    return {"checkpoint": name, **dict(zip(columns, row, strict=True))}


def _clusters(series: Series, gaps: np.ndarray, near: Closeness) -> dict[str, Any]:
    """Each cluster is a run of the order, told by its first and last checkpoint; no distance where one is lost."""
    import numpy as np

    from diffai_dist.analyses.clustering import average_linkage, order

    known = _complete(gaps)
    merges, lost = average_linkage(gaps[np.ix_(known, known)]), near.lost[np.ix_(known, known)]
    rows = [
        {
            "from": series.names[known[merge.left[0]]],
            "to": series.names[known[merge.right[-1]]],
            "checkpoints": len(merge.left) + len(merge.right),
            "distance": None if lost[np.ix_(merge.left, merge.right)].any() else merge.distance,
        }
        for merge in merges
    ]
    return {"order": [series.names[known[i]] for i in order(merges, len(known))], "clusters": rows}


def _complete(gaps: np.ndarray) -> list[int]:
    """Members with a distance to each other; who has fewest is left out first, not placed by guess."""
    import numpy as np

    known = list(range(len(gaps)))
    while known and not np.isfinite(gaps[np.ix_(known, known)]).all():
        lost = [int((~np.isfinite(gaps[i, known])).sum()) for i in known]
        del known[int(np.argmax(lost))]
    return known


def _nearest(series: Series, gaps: np.ndarray, near: Closeness) -> list[dict[str, Any]]:
    import numpy as np

    rows, distances, angles = [], _distances(near), _angles(near)
    for i, name in enumerate(series.names):
        others = [j for j in range(len(series.names)) if j != i and np.isfinite(gaps[i, j])]
        if others:
            j = min(others, key=lambda other: float(gaps[i, other]))
            numbers = {"relative_distance": distances[i][j], "cosine_distance": angles[i][j]}
            rows.append({"checkpoint": name, "nearest": series.names[j], **numbers})
    return rows


def _task_cosines(series: Series) -> Cells:
    """Over the tensors that are finite in the anchor: elsewhere another member, or 0, stood in for it."""
    import numpy as np

    from diffai_dist.partials import GRAM

    anchor = series.measured.comparison.anchor
    usable = series.products & (series.products & (series.non_finite == 0))[:, [anchor or 0]]
    gram = series.grams(range(len(series.tensors)), usable)[0]
    norm, dot, differ = (gram[GRAM.index(name)] for name in ("norm", "dot", "differ"))
    with np.errstate(all="ignore"):
        cosines = np.clip(dot / np.sqrt(norm) / np.sqrt(norm.T), -1.0, 1.0)
    cosines[(differ == 0.0) & np.isfinite(cosines)] = 1.0  # the roots are rounded
    return [[float(cell) if math.isfinite(cell) else None for cell in row] for row in cosines.tolist()]


def _roles(series: Series) -> Iterator[dict[str, Any]]:
    """The matrix of cosine distances once more for each role that has products."""
    from diffai_dist.analyses.closeness import closeness

    groups: dict[str, list[int]] = {}
    for tensor, name in enumerate(series.tensors):
        if series.products[tensor].any():
            groups.setdefault(role(name), []).append(tensor)
    for label, tensors in groups.items():
        cells = _angles(closeness(series, tensors))
        yield from ({"role": label, **row} for row in _rows(series, cells))
