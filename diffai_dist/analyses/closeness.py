"""How far every two members are apart over the same tensors: out of the Gram, or closer, where a pair was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffai_dist.analyses.lengths import squared_errors
from diffai_dist.analyses.series import Series
from diffai_dist.comparison import Pair
from diffai_dist.gram import gram_changes, grams_of_two
from diffai_dist.partials import GRAM
from diffai_dist.statistics import sound

COLUMNS = ("l2", "l2_error", "rel_l2", "cosine_distance", "cosine_error")


@dataclass(frozen=True, slots=True)
class Closeness:
    """COLUMNS of gram.gram_changes as [members, members], from row to column; NaN where a pair has no number."""

    l2: np.ndarray
    l2_error: np.ndarray
    rel_l2: np.ndarray
    cosine_distance: np.ndarray
    cosine_error: np.ndarray

    @property
    def lost(self) -> np.ndarray:
        """Where the distance may be nothing but rounding."""
        found: np.ndarray = (self.l2 <= self.l2_error) & (self.l2_error > 0.0)
        return found

    @property
    def blurred(self) -> np.ndarray:
        """Where the angle may be nothing but rounding."""
        found: np.ndarray = (self.cosine_distance <= self.cosine_error) & (self.cosine_error > 0.0)
        return found

    @property
    def squares(self) -> np.ndarray:
        """‖x_j - x_i‖²."""
        found: np.ndarray = self.l2**2
        return found

    @property
    def square_errors(self) -> np.ndarray:
        """Bounds of their errors."""
        return squared_errors(self.l2, self.l2_error)


def closeness(series: Series, tensors: Sequence[int]) -> Closeness:
    """Each pair over those of the tensors that both members have."""
    found = closenesses(series, np.asarray(tensors, np.int64)[:, None])
    return Closeness(**{name: getattr(found, name)[0] for name in COLUMNS})


def closenesses(series: Series, groups: np.ndarray) -> Closeness:
    """The same of groups of equally many tensors, [tensors, groups], at once: arrays [groups, members, members]."""
    number = len(series.members)
    ends = np.indices((number, number)).reshape(2, -1).T
    gram = series.grams(groups)[0]
    norms = _norms(series, groups)
    sides = np.stack([norms, norms.swapaxes(1, 2)], axis=-1).reshape(-1, 2)
    grams = np.moveaxis(gram[:, :, ends[:, :, None], ends[:, None, :]], 2, 1)
    cells = _cells(grams.reshape(-1, *grams.shape[2:]), Pair(0, 1), sides)
    found = {name: column.reshape(-1, number, number) for name, column in cells.items()}
    _put_measured(series, groups, found)
    return Closeness(**found)


def _cells(grams: np.ndarray, pair: Pair, norms: np.ndarray) -> dict[str, np.ndarray]:
    columns = gram_changes(grams, pair, norms)
    return {name: np.array(columns[name], np.float64) for name in COLUMNS}


def _norms(series: Series, groups: np.ndarray) -> np.ndarray:
    """Σ x² of the row's member over the tensors of a pair; NaN where the Gram counts other elements than MOMENTS."""
    if series.measured.grams is None:
        raise ValueError("no Gram was measured")
    there, finite = series.products[groups], series.measured.moments["finite"][groups]
    counted = series.measured.grams[groups, GRAM.index("count")]
    own = np.where(counted == finite[..., None], series.norms2[groups][..., None], np.nan)
    both = there[..., :, None] & there[..., None, :]
    norms: np.ndarray = np.where(both, own, 0.0).sum(axis=0)
    return norms


def _put_measured(series: Series, groups: np.ndarray, cells: dict[str, np.ndarray]) -> None:
    """Put the pairs all of whose tensors were measured element by element in place of what the Gram tells."""
    pairs = np.array([(one.baseline, one.candidate) for one in series.measured.comparison.pairs], np.int64).reshape(
        -1, 2
    )
    there = series.products[groups]
    both = there[..., pairs[:, 0]] & there[..., pairs[:, 1]]
    closer = (series.by_elements[groups] | ~both).all(axis=0) & both.any(axis=0)
    group, pair = np.nonzero(closer)
    i, j = pairs[pair].T
    forth, norms = _as_grams(series.measured.shifts[groups[:, group], pair], both[:, group, pair])
    for (row, column), way, sides in (((i, j), Pair(0, 1), norms), ((j, i), Pair(1, 0), norms[:, ::-1])):
        for name, values in _cells(forth, way, sides).items():
            cells[name][group, row, column] = values


def _as_grams(shifts: np.ndarray, both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs measured element by element, SHIFT [tensors, pairs], as Grams of two whose anchor is the baseline."""

    def summed(values: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.where(both, values, 0.0).sum(axis=0)
        return found

    with np.errstate(all="ignore"):
        sums = {name: summed(shifts[name]) for name in ("both", "max_abs", "aa", "d2")}
        grams = grams_of_two(sums | {"along": summed(shifts["slope"] * shifts["aa"])})
        sides = [(summed(shifts[two]), summed(shifts[one])) for two, one in (("aa", "a1"), ("bb", "b1"))]
        norms = np.stack([np.where(sound(*side), side[0], np.nan) for side in sides], axis=-1)
    return grams, norms
