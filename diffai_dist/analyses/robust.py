"""How far a number stands out from its like, judged by medians, which outliers do not move."""

from __future__ import annotations

import numpy as np

OUTLIER = 3.5  # Iglewicz and Hoaglin 1993
_MAD = 0.6745  # median absolute deviation of a normal distribution, in standard deviations
_MEAN = 1.253314  # standard deviation in mean absolute deviations of a normal distribution: √(π/2)


def spread(values: np.ndarray) -> float:
    """The standard deviation as the median absolute deviation tells it, or where that is 0 the mean one; 0 for none.

    >>> round(spread(np.array([1.0, 2.0, 3.0, 4.0, 100.0])), 3), round(spread(np.array([0.0, 0.0, 0.0, 1.0])), 3)
    (1.483, 0.313)
    """
    if not values.size:
        return 0.0
    deviations = np.abs(values - np.median(values))
    middle = float(np.median(deviations))
    return middle / _MAD if middle else _MEAN * float(np.mean(deviations))


def robust_z(values: np.ndarray, least: float = 0.0) -> np.ndarray:
    """How many spreads, `least` at least, each value lies from the median; 0 where nothing spreads at all."""
    width = max(spread(values), least)
    if not width or not values.size:
        return np.zeros(values.shape)
    scores: np.ndarray = (values - np.median(values)) / width
    return scores
