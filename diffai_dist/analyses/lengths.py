"""How far two members are apart in some of their tensors, and how far at most rounding has taken that astray."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffai_dist.comparison import Pair
from diffai_dist.gram import gram_changes
from diffai_dist.statistics import sound

BLURRED = 0.01  # of a cosine or a share: where rounding may have moved it by more, it is not told. Judgement

# Of a sum of squared differences, each rounded three times, that is taken like those of the Gram: no term is rounded
# more than 576 times there.
_RELATIVE = 2.0**-43


@dataclass(frozen=True, slots=True)
class Length:
    """A distance by its square and the bound of the square's error; NaN where nobody measured it."""

    square: float
    error: float

    @property
    def known(self) -> bool:
        """Whether it is more than rounding: equal bits are known to be 0 apart."""
        return self.square > self.error or self.square == self.error == 0.0

    @property
    def value(self) -> float:
        """NaN where it is not known.

        >>> Length(4.0, 0.1).value, Length(0.0, 0.0).value, Length(1e-9, 1e-8).value
        (2.0, 0.0, nan)
        """
        return math.sqrt(self.square) if self.known else math.nan

    @property
    def value_error(self) -> float:
        """Of the value: |√x - √y| = |x - y| / (√x + √y)."""
        if not self.known or not self.square:
            return self.value
        return self.error / (self.value + math.sqrt(max(self.square - self.error, 0.0)))


@dataclass(frozen=True, slots=True)
class Distances:
    """‖x_j - x_i‖² of each tensor and the bounds of their errors, NaN where nobody measured them."""

    squares: np.ndarray
    errors: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """The squares that are more than rounding, NaN for the others."""
        found: np.ndarray = np.where((self.squares > self.errors) | (self.errors == 0.0), self.squares, np.nan)
        return found

    def of(self, tensors: Sequence[int] | np.ndarray) -> Length:
        """Of all these tensors together."""
        chosen = np.asarray(tensors, np.int64)
        return Length(total(self.squares[chosen]), total(self.errors[chosen]))

    def where(self, better: np.ndarray, other: Distances) -> Distances:
        """The other's where those are better."""
        pairs = ((other.squares, self.squares), (other.errors, self.errors))
        return Distances(*(np.where(better, there, here) for there, here in pairs))


def from_elements(shifts: np.ndarray) -> Distances:
    """Of rows of SHIFT; NaN where squares left float64."""
    squares = np.where(sound(shifts["d2"], shifts["d1"]), shifts["d2"], np.nan)
    return Distances(squares, _RELATIVE * squares)


def from_gram(grams: np.ndarray, i: int, j: int) -> Distances:
    """Of GRAM [tensors, planes, members, members]."""
    columns = gram_changes(grams[:, :, [i, j]][:, :, :, [i, j]], Pair(0, 1))
    lengths, errors = (np.array(columns[name], np.float64) for name in ("l2", "l2_error"))
    return Distances(lengths**2, squared_errors(lengths, errors))


def squared_errors(lengths: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Bounds of the squares of lengths with such bounds, which are those of roots of these squares."""
    found: np.ndarray = np.where(lengths > errors, 2.0 * lengths * errors, errors**2)
    return found


def cosine(before: Length, after: Length, across: Length) -> tuple[float, float] | None:
    """Between a move and the next one, with the bound of its error, from what lies between the ends of both.

    None where one of the moves is 0 or not known. |x_k - x_i|² = |u|² + |v|² + 2 <u, v>.

    >>> cosine(Length(9.0, 0.0), Length(16.0, 0.0), Length(25.0, 0.0))
    (0.0, 0.0)
    """
    if not before.value * after.value > 0.0 or math.isnan(across.square):
        return None
    sides = before.value * after.value
    found = (across.square - before.square - after.square) / 2.0 / sides
    shortest = math.sqrt(before.square - before.error) * math.sqrt(after.square - after.error)
    error = (across.error + before.error + after.error) / 2.0 / shortest + abs(found) * (sides / shortest - 1.0)
    return min(max(found, -1.0), 1.0), min(error, 2.0)


def total(values: np.ndarray) -> float:
    """The sum, rounded once; NaN where it is no finite float64, or where there is nothing to add."""
    try:
        return math.fsum(values.tolist()) if values.size else math.nan
    except (OverflowError, ValueError):
        return math.nan
