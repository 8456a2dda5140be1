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
    number = len(series.members)
    ends = np.indices((number, number)).reshape(2, -1).T
    gram = series.grams(tensors)[0]
    norms = _norms(series, tensors)
    sides = np.stack([norms, norms.T], axis=-1).reshape(-1, 2)
    cells = _cells(np.moveaxis(gram[:, ends[:, :, None], ends[:, None, :]], 1, 0), Pair(0, 1), sides)
    found = {name: column.reshape(number, number) for name, column in cells.items()}
    _put_measured(series, tensors, found)
    return Closeness(**found)


def _cells(grams: np.ndarray, pair: Pair, norms: np.ndarray) -> dict[str, np.ndarray]:
    columns = gram_changes(grams, pair, norms)
    return {name: np.array(columns[name], np.float64) for name in COLUMNS}


def _norms(series: Series, tensors: Sequence[int]) -> np.ndarray:
    """Σ x² of the row's member over the tensors of a pair; NaN where the Gram counts other elements than MOMENTS."""
    if series.measured.grams is None:
        raise ValueError("no Gram was measured")
    chosen = np.asarray(tensors, np.int64)
    there, finite = series.products[chosen], series.measured.moments["finite"][chosen]
    counted = series.measured.grams[chosen, GRAM.index("count")]
    own = np.where(counted == finite[:, :, None], series.norms2[chosen][:, :, None], np.nan)
    both = there[:, :, None] & there[:, None, :]
    norms: np.ndarray = np.where(both, own, 0.0).sum(axis=0)
    return norms


def _put_measured(series: Series, tensors: Sequence[int], cells: dict[str, np.ndarray]) -> None:
    """Put the pairs all of whose tensors were measured element by element in place of what the Gram tells."""
    pairs = np.array([(one.baseline, one.candidate) for one in series.measured.comparison.pairs], np.int64).reshape(
        -1, 2
    )
    chosen = np.asarray(tensors, np.int64)
    there = series.products[chosen]
    both = there[:, pairs[:, 0]] & there[:, pairs[:, 1]]
    closer = np.flatnonzero((series.by_elements[chosen] | ~both).all(axis=0) & both.any(axis=0))
    shifts, both = series.measured.shifts[chosen][:, closer], both[:, closer]
    i, j = pairs[closer].T
    forth, norms = _as_grams(shifts, both)
    for (row, column), pair, sides in (((i, j), Pair(0, 1), norms), ((j, i), Pair(1, 0), norms[:, ::-1])):
        for name, values in _cells(forth, pair, sides).items():
            cells[name][row, column] = values


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
