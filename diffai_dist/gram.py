"""Distances and angles of any pair out of the anchored Gram of a group, and how far rounding can have taken them.

With anchor a, δ_i = x_i - a and d = x_j - x_i: ‖d‖² = ‖δ_i‖² + ‖δ_j‖² - 2<δ_i, δ_j>, ‖x_i‖² = ‖a‖² + 2<a, δ_i> + ‖δ_i‖²
and <d, x_i> = <a, δ_j> - <a, δ_i> + <δ_i, δ_j> - ‖δ_i‖². 1 - cos comes from the part of d that is orthogonal to x_i.
Norms that MOMENTS tell do not pass the anchor; of two ways to a number the one with the smaller bound is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffai_dist.comparison import Pair
from diffai_dist.partials import GRAM, empty_gram
from diffai_dist.statistics import NO_FINITE, NO_SQUARES, ZERO_BASELINE, ZERO_BOTH, ZERO_CANDIDATE, sound

LOST = "lost to rounding about the anchor; choose another with --baseline, or measure --elementwise"
TOO_SHORT = "a norm is 0, or lost in the rounding of sums around a far anchor"

_UNIT = 2.0**-53
# A plane is a sum in which no term is rounded more often than: 2 for δ_i and δ_j, 1 for the product, 255 in the lanes
# of a block and its parts, 4 where lanes fold, 256 for the blocks of a leaf, 40 in the tree of leaves, 2 over tensors.
# n roundings take at most n u / (1 - n u) of Σ|terms| (Higham 2002, 3.1), at most the product of both norms.
_ROUNDING = 576 * _UNIT
_TINY = 2.0**-1074  # what each product may lose where it is subnormal, twice
# ‖x‖² of MOMENTS: at most 800 u from the lanes of a block and its mean, 20 u from each of 256 + 40 joins.
_OF_MOMENTS = 8192 * _UNIT


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

    def where(self, condition: Any, other: _Known) -> _Known:
        """The same where the condition holds, else the other."""
        return _Known(np.where(condition, self.value, other.value), np.where(condition, self.error, other.error))

    def or_closer(self, other: _Known) -> _Known:
        """Of two ways to one number the one with the smaller bound."""
        return self.where(self.error <= other.error, other)


def gram_changes(grams: np.ndarray, pair: Pair, norms: np.ndarray | None = None) -> dict[str, list[Any]]:
    """How far each candidate moved, one tensor per row of GRAM [tensors, planes, members, members].

    l2, rel_l2 = ‖d‖/‖x_i‖ and cosine_distance over what is finite in both members, None where a number is not defined;
    `reason` says why one is, or that the distance is lost in its bound. `l2_error`, `rel_l2_error` and `cosine_error`
    are bounds, never exceeded; equal bits have none. `norms` are those of `squared_norms`.
    """
    sums = _sums(grams, pair)
    own = np.full((len(grams), 2), np.nan) if norms is None else norms
    some, same = sums["count"] > 0, sums["differ"] == 0
    with np.errstate(all="ignore"):
        squared = _squared_distance(sums)
        before, after = (_squared_norm(sums, side).or_closer(_of_moments(own[:, k])) for k, side in enumerate("ij"))
        still = _Known(np.where((before.value > 0.0) & (before.value < math.inf), 0.0, np.nan), 0.0)
        distance = _Known(0.0, 0.0).where(same, squared.root())
        relative = still.where(same, distance / before.root())
        cosine = still.where(same, _cosine_distance(sums, squared, before, after))
    finite = np.isfinite(distance.value)
    told, angle = (some & np.isfinite(one.value) & np.isfinite(one.error) for one in (relative, cosine))
    return {
        "l2": _column(distance.value, some & finite),
        "l2_error": _column(distance.error, some & finite),
        "rel_l2": _column(relative.value, told),
        "rel_l2_error": _column(relative.error, told),
        "cosine_distance": _column(cosine.value, angle),
        "cosine_error": _column(cosine.error, angle),
        "reason": _reasons(sums, distance, own, angle),
    }


def squared_norms(grams: np.ndarray, moments: np.ndarray, pair: Pair) -> np.ndarray:
    """Σ x² of both members out of MOMENTS [tensors, members], [tensors, 2].

    NaN where the Gram counts other elements, those that are finite in both, and where squares leave float64.
    """
    own = moments[:, [pair.baseline, pair.candidate]]
    counted = grams[:, GRAM.index("count"), pair.baseline, pair.candidate]
    with np.errstate(all="ignore"):
        squares = own["m2"] + own["finite"] * own["mean"] ** 2
    known = (own["finite"] == counted[:, None]) & sound(squares, own["abs_sum"])
    norms: np.ndarray = np.where(known, squares, np.nan)
    return norms


def grams_of_two(shifts: Mapping[str, np.ndarray] | np.ndarray) -> np.ndarray:
    """Pairs that were measured element by element as Grams of two, [pairs, planes, 2, 2], the baseline the anchor.

    Of columns `both`, `max_abs`, `aa`, `along` = slope * aa and `d2` as in SHIFT, or of their sums over tensors.
    """
    grams = empty_gram(len(shifts["aa"]), 2)
    planes = {name: grams[:, index] for index, name in enumerate(GRAM)}
    planes["count"][:] = shifts["both"][:, None, None]
    planes["differ"][:] = (shifts["max_abs"] > 0)[:, None, None]
    planes["aa"][:] = shifts["aa"][:, None, None]
    planes["along"][:, 1, :] = shifts["along"][:, None]
    planes["norm"][:, 1, :] = shifts["d2"][:, None]
    return grams


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


def _of_moments(squares: np.ndarray) -> _Known:
    return _Known(squares, np.where(np.isnan(squares), math.inf, _OF_MOMENTS * squares))


def _cosine_distance(sums: dict[str, np.ndarray], squared: _Known, before: _Known, after: _Known) -> _Known:
    """sin² / (1 + cos) for acute angles, where it keeps the digits of small ones, else 1 - cos.

    From ‖d‖², ‖x_i‖² and ‖x_j‖², and from the part of d along x_i: <d, x_i> = (‖x_j‖² - ‖x_i‖² - ‖d‖²) / 2.
    """
    growth = _plane(sums, "along_j", "aa", "norm_j") - _plane(sums, "along_i", "aa", "norm_i")
    turn = _plane(sums, "dot", "norm_i", "norm_j") - _plane(sums, "norm_i", "norm_i", "norm_i")
    along = (growth + turn).or_closer((after - before - squared) * _Known(0.5, 0.0))
    rest = (squared - along * along / before).between(0.0, math.inf)
    sine2 = (rest / after).between(0.0, 1.0)
    cosine = ((before + along) / (before.root() * after.root())).between(-1.0, 1.0)
    one = _Known(1.0, 0.0)
    distance = (sine2 / (one + cosine)).where(cosine.value >= 0.0, one - cosine)
    known = np.isfinite(rest.error / after.value) & (before.value > before.error) & (after.value > after.error)
    return _Known(distance.value, np.where(known & (distance.error < 2.0), distance.error, math.inf))


def _reasons(sums: dict[str, np.ndarray], distance: _Known, norms: np.ndarray, angle: np.ndarray) -> list[Any]:
    """Per row the first cause that holds. What is not known though both norms are is lost about the anchor."""
    finite, known = np.isfinite(distance.value), np.isfinite(norms).all(axis=1)
    moved = np.maximum(sums["norm_i"], sums["norm_j"]) > 0.0
    swallowed = moved & (distance.error > 0.0) & (distance.value <= distance.error)
    from_zero, to_zero = norms[:, 0] == 0.0, norms[:, 1] == 0.0
    causes = [
        (sums["count"] == 0, NO_FINITE),
        (~finite & ~known, NO_SQUARES),
        (~finite | swallowed, LOST),
        (from_zero & to_zero, ZERO_BOTH),
        (from_zero, ZERO_BASELINE),
        (to_zero, ZERO_CANDIDATE),
        (~angle & known, LOST),
        (~angle, TOO_SHORT),
    ]
    reasons = [np.array(why, object) for _, why in causes]
    return list(np.select([holds for holds, _ in causes], reasons, np.array(None, object)).tolist())


def _column(values: np.ndarray, defined: np.ndarray) -> list[Any]:
    return [value if known else None for value, known in zip(values.tolist(), defined.tolist(), strict=True)]
