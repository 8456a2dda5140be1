"""Who is near whom: average linkage over a matrix of distances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Merge:
    """Two clusters that become one, each named by its leaves in order."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    distance: float


def average_linkage(distances: np.ndarray) -> list[Merge]:
    """Join the two nearest clusters, again and again, by the mean distance of their members (Sokal, Michener 1958).

    Ties go to the first pair; the cluster with the earlier first leaf stands left.

    >>> [(merge.left, merge.right) for merge in average_linkage(np.array([[0, 9, 1], [9, 0, 8], [1, 8, 0.0]]))]
    [((0,), (2,)), ((0, 2), (1,))]
    """
    clusters: list[tuple[int, ...]] = [(leaf,) for leaf in range(len(distances))]
    gaps = distances.astype(np.float64)
    np.fill_diagonal(gaps, np.inf)
    merges = []
    while len(clusters) > 1:
        i, j = sorted(divmod(int(np.argmin(gaps)), len(gaps)))
        merges.append(Merge(clusters[i], clusters[j], float(gaps[i, j])))
        weights = len(clusters[i]), len(clusters[j])
        gaps[i] = gaps[:, i] = (weights[0] * gaps[i] + weights[1] * gaps[j]) / sum(weights)
        gaps[i, i] = np.inf
        gaps = np.delete(np.delete(gaps, j, 0), j, 1)
        clusters[i] += clusters.pop(j)
    return merges


def order(merges: list[Merge], leaves: int) -> list[int]:
    """The leaves so that each cluster stands together."""
    return [*merges[-1].left, *merges[-1].right] if merges else list(range(leaves))
