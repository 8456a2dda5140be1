"""Distances and angles of any pair out of the anchored Gram of a group, and how far rounding can have taken them.

With anchor a, δ_i = x_i - a and d = x_j - x_i: ‖d‖² = ‖δ_i‖² + ‖δ_j‖² - 2<δ_i, δ_j>, ‖x_i‖² = ‖a‖² + 2<a, δ_i> + ‖δ_i‖²
and <d, x_i> = <a, δ_j> - <a, δ_i> + <δ_i, δ_j> - ‖δ_i‖². 1 - cos comes from the part of d that is orthogonal to x_i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffai_dist.comparison import Pair
from diffai_dist.partials import GRAM
from diffai_dist.statistics import NO_FINITE, NO_SQUARES

TOO_SHORT = "a norm is 0, or lost in the rounding of sums around a far anchor"

_UNIT = 2.0**-53
# A plane is a sum in which no term is rounded more often than: 2 for δ_i and δ_j, 1 for the product, 255 in the lanes
# of a block and its parts, 4 where lanes fold, 256 for the blocks of a leaf, 40 in the tree of leaves, 2 over tensors.
# n roundings take at most n u / (1 - n u) of Σ|terms| (Higham 2002, 3.1), at most the product of both norms.
_ROUNDING = 576 * _UNIT
_TINY = 2.0**-1074  # what each product may lose where it is subnormal, twice


@dataclass(frozen=True, slots=True)
class _Known:
    """Numbers and how far at most each may be from the truth; arithmetic rounds once and says so."""

    value: Any
    error: Any

    def __add__(self, other: _Known) -> _Known:
        value = self.value + other.value
        return _Known(value, self.error + other.error + _UNIT * np.abs(value))

    def __sub__(self, other: _Known) -> _Known:
        return self + _Known(-other.value, other.error)

    def __mul__(self, other: _Known) -> _Known:
        value = self.value * other.value
        spread = np.abs(self.value) * other.error + np.abs(other.value) * self.error + self.error * other.error
        return _Known(value, spread + _UNIT * np.abs(value) + _TINY)

    def __truediv__(self, other: _Known) -> _Known:
        """Unknown, an infinite error, where the divisor may be 0."""
        value, least = self.value / other.value, np.abs(other.value) - other.error
        spread = (self.error + np.abs(value) * other.error) / least
        return _Known(value, np.where(least > 0.0, spread + _UNIT * np.abs(value) + _TINY, math.inf))

    def root(self) -> _Known:
        """√ of what cannot be negative: |√x - √y| = |x - y| / (√x + √y), and at most √|x - y| where y may be 0."""
        value = np.sqrt(self.value)
        spread = self.error / (value + np.sqrt(np.maximum(self.value - self.error, 0.0)))
        return _Known(value, np.where(self.value > self.error, spread, np.sqrt(self.error)) + _UNIT * value)

    def between(self, low: float, high: float) -> _Known:
        """The same where the truth is known to lie between two numbers."""
        return _Known(np.clip(self.value, low, high), np.minimum(self.error, high - low))


def gram_changes(grams: np.ndarray, pair: Pair) -> dict[str, list[Any]]:
    """How far each candidate moved, one tensor per row of GRAM [tensors, planes, members, members].

    l2, rel_l2 = ‖d‖/‖x_i‖ and cosine_distance over what is finite in both members and the anchor, None where a number
    is not defined, with `reason`. `l2_error` and `cosine_error` are bounds, never exceeded; equal bits have none.
    """
    sums = _sums(grams, pair)
    with np.errstate(all="ignore"):
        distance = _squared_distance(sums).root()
        norm = _squared_norm(sums, "i").root()
        relative, cosine = distance / norm, _cosine_distance(sums)
        finite = np.isfinite(distance.value) & np.isfinite(norm.value)
    some = sums["count"] > 0
    told = some & finite & np.isfinite(relative.error)
    angle = told & np.isfinite(cosine.error) & np.isfinite(cosine.value)
    bound = np.where(sums["differ"] == 0, 0.0, distance.error), np.where(sums["differ"] == 0, 0.0, cosine.error)
    short = np.where(finite, TOO_SHORT, NO_SQUARES).astype(object)
    short[angle] = None
    return {
        "l2": _column(distance.value, some & finite),
        "l2_error": _column(bound[0], some & finite),
        "rel_l2": _column(relative.value, told),
        "cosine_distance": _column(cosine.value, angle),
        "cosine_error": _column(bound[1], angle),
        "reason": np.where(some, short, NO_FINITE).tolist(),
    }


def whole(grams: np.ndarray) -> np.ndarray:
    """GRAM of all tensors together, [1, planes, members, members]; NaN where a sum leaves float64.

    What each addition loses is added at the end (Neumaier 1974). The bounds hold for the whole as for one tensor: by
    Cauchy-Schwarz those of the parts add up to less.
    """
    summed, lost = np.zeros(grams.shape[1:]), np.zeros(grams.shape[1:])
    with np.errstate(all="ignore"):
        for plane in grams:
            longer = summed + plane
            lost += np.where(np.abs(summed) >= np.abs(plane), (summed - longer) + plane, (plane - longer) + summed)
            summed = longer
        summed = summed + lost
    return np.where(np.isfinite(summed), summed, np.nan)[None]


def squared_distances(grams: np.ndarray) -> np.ndarray:
    """‖x_j - x_i‖² of all pairs, [tensors, members, members]."""
    norm, dot = (grams[:, GRAM.index(name)] for name in ("norm", "dot"))
    with np.errstate(all="ignore"):
        distances: np.ndarray = np.maximum(norm + norm.swapaxes(1, 2) - 2.0 * dot, 0.0)
    return distances


def update_products(grams: np.ndarray) -> np.ndarray:
    """<u_s, u_t> of the updates u_t = x_{t+1} - x_t between neighbours, [tensors, members - 1, members - 1]."""
    with np.errstate(all="ignore"):
        products: np.ndarray = np.diff(np.diff(grams[:, GRAM.index("dot")], axis=1), axis=2)
    return products


def _sums(grams: np.ndarray, pair: Pair) -> dict[str, np.ndarray]:
    i, j = pair.baseline, pair.candidate
    planes = {name: grams[:, index] for index, name in enumerate(GRAM)}
    sums = {name: planes[name][:, i, j] for name in ("count", "differ", "aa", "dot")}
    for name in ("along", "norm"):
        sums[f"{name}_i"], sums[f"{name}_j"] = planes[name][:, i, j], planes[name][:, j, i]
    return sums


def _plane(sums: dict[str, np.ndarray], name: str, *squares: str) -> _Known:
    """One sum with the error of summing it, its terms being products of vectors of these squared norms."""
    terms = np.sqrt(sums[squares[0]]) * np.sqrt(sums[squares[1]])
    return _Known(sums[name], _ROUNDING * terms + _TINY * sums["count"])


def _squared_distance(sums: dict[str, np.ndarray]) -> _Known:
    before, after = (_plane(sums, name, name, name) for name in ("norm_i", "norm_j"))
    dot = _plane(sums, "dot", "norm_i", "norm_j")
    return (before + after - (dot + dot)).between(0.0, math.inf)


def _squared_norm(sums: dict[str, np.ndarray], side: str) -> _Known:
    along = _plane(sums, f"along_{side}", "aa", f"norm_{side}")
    own = _plane(sums, f"norm_{side}", f"norm_{side}", f"norm_{side}")
    return (_plane(sums, "aa", "aa", "aa") + (along + along) + own).between(0.0, math.inf)


def _cosine_distance(sums: dict[str, np.ndarray]) -> _Known:
    """sin² / (1 + cos) for acute angles, where it keeps the digits of small ones, else 1 - cos."""
    before, after = _squared_norm(sums, "i"), _squared_norm(sums, "j")
    growth = _plane(sums, "along_j", "aa", "norm_j") - _plane(sums, "along_i", "aa", "norm_i")
    turn = _plane(sums, "dot", "norm_i", "norm_j") - _plane(sums, "norm_i", "norm_i", "norm_i")
    along = growth + turn  # <d, x_i>
    rest = (_squared_distance(sums) - along * along / before).between(0.0, math.inf)
    sine2 = (rest / after).between(0.0, 1.0)
    cosine = ((before + along) / (before.root() * after.root())).between(-1.0, 1.0)
    one = _Known(1.0, 0.0)
    acute, obtuse = sine2 / (one + cosine), one - cosine
    error = np.where(cosine.value >= 0.0, acute.error, obtuse.error)
    value = np.where(cosine.value >= 0.0, acute.value, obtuse.value)
    lost = ~(np.isfinite(rest.error / after.value) & (before.value > before.error) & (after.value > after.error))
    return _Known(value, np.where(lost, math.inf, np.minimum(error, 2.0)))


def _column(values: np.ndarray, defined: np.ndarray) -> list[Any]:
    return [value if known else None for value, known in zip(values.tolist(), defined.tolist(), strict=True)]
