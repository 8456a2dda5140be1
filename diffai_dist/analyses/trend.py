"""Whether a short series rises or falls: Mann-Kendall's test, corrected for series that remember, and Sen's slope."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

EXACT = 10  # below so many points the distribution of S is counted out; it is discrete there, and not yet normal
_SIGNIFICANT = 1.959964  # two-sided 5 % of the normal distribution, for autocorrelations that count


@dataclass(frozen=True)
class Trend:
    """S counts the pairs that rise less those that fall; p is two-sided; `slope` is per unit of time."""

    s: int
    p: float
    slope: float
    points: int


def mann_kendall(values: np.ndarray, times: np.ndarray) -> Trend:
    """The trend of values at growing times: Kendall 1975, Sen 1968; from 10 points on Hamed and Rao 1998."""
    rises = np.sign(np.subtract.outer(values, values))
    s = int(np.tril(rises, -1).sum())
    ties = np.unique(values, return_counts=True)[1]
    slope = sen_slope(values, times)
    if len(values) < EXACT and (ties == 1).all():
        return Trend(s, exact_p(s, len(values)), slope, len(values))
    variance = _variance(len(values), ties)
    if len(values) >= EXACT:
        variance *= _memory(values, times, slope)
    return Trend(s, _normal_p(s, variance), slope, len(values))


def sen_slope(values: np.ndarray, times: np.ndarray) -> float:
    """The median slope of all pairs.

    >>> sen_slope(np.array([1.0, 2.0, 30.0, 4.0]), np.arange(4.0))
    1.0
    """
    first, second = np.triu_indices(len(values), 1)
    slopes = (values[second] - values[first]) / (times[second] - times[first])
    return float(np.median(slopes)) if slopes.size else 0.0


def exact_p(s: int, points: int) -> float:
    """How likely |S| is so large if all orders of so many distinct values are equally likely.

    >>> round(exact_p(10, 5), 4), exact_p(0, 4)
    (0.0167, 1.0)
    """
    orders = [1]  # of the points so far, by their number of inversions
    for point in range(2, points + 1):
        sums = [0, *itertools.accumulate(orders + [0] * (point - 1))]
        orders = [sums[i + 1] - sums[max(i + 1 - point, 0)] for i in range(len(sums) - 1)]
    pairs = points * (points - 1) // 2
    extreme = sum(number for inversions, number in enumerate(orders) if abs(pairs - 2 * inversions) >= abs(s))
    return extreme / math.factorial(points)


def _variance(points: int, ties: np.ndarray) -> float:
    tied = float((ties * (ties - 1) * (2 * ties + 5)).sum())
    return (points * (points - 1) * (2 * points + 5) - tied) / 18.0


def _normal_p(s: int, variance: float) -> float:
    if not s or variance <= 0.0:
        return 1.0
    return math.erfc((abs(s) - 1) / math.sqrt(2.0 * variance))


def _memory(values: np.ndarray, times: np.ndarray, slope: float) -> float:
    """By how much autocorrelated ranks of what the trend leaves over widen the distribution of S.

    Never narrower than without memory, which estimates from so few points can suggest.
    """
    points = len(values)
    ranks = _ranks(values - slope * times)
    centred = ranks - ranks.mean()
    square = float(centred @ centred)
    if not square:
        return 1.0
    widened = 0.0
    for lag in range(1, points - 1):
        correlation = float(centred[lag:] @ centred[:-lag]) / square
        if abs(correlation) > _SIGNIFICANT / math.sqrt(points):
            widened += (points - lag) * (points - lag - 1) * (points - lag - 2) * correlation
    return max(1.0 + 2.0 * widened / (points * (points - 1) * (points - 2)), 1.0)


def _ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = (last - (counts - 1) / 2.0)[place]
    return ranks
