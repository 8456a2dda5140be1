"""Simple laws fitted to a series in log scale, and which of them says most with least: corrected Akaike criterion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

_LARGEST = 709.0  # logarithm of the largest float64
_FLOOR = 2.0**-104  # squared rounding of a logarithm: residuals below it tell nothing
_GRID, _ROUNDS = 33, 9  # points of a search, and how often it goes on between the neighbours of the best one


@dataclass(frozen=True)
class Fit:
    """One law with its parameters, None where one leaves float64; `aicc` is None where points are too few."""

    law: str
    parameters: Mapping[str, float | None]
    aicc: float | None = None


def distance_fits(distances: np.ndarray, times: np.ndarray, error: float = 0.0) -> list[Fit]:
    """D = c t^p (p = 0.5 is a random walk, 1 a straight line) and D = a + b log t; all numbers above 0.

    None where distances differ by no more than their relative error.

    >>> fit, _ = distance_fits(3 * np.arange(1.0, 9.0) ** 0.5, np.arange(1.0, 9.0))
    >>> {name: round(value, 6) for name, value in fit.parameters.items()}
    {'c': 3.0, 'p': 0.5}
    """
    logs, least = np.log(distances), _least_square(error)
    if len(times) < 2 or np.ptp(logs) <= 2.0 * error:
        return []
    return [_power(logs, np.log(times), least), _logarithm(logs, np.log(times), least)]


def update_fits(updates: np.ndarray, times: np.ndarray, error: float = 0.0) -> list[Fit]:
    """u = u_mean, and u = u0 exp(-t/tau) + u_inf; all updates above 0, times from 0 on, `error` is relative."""
    if len(times) < 2:
        return []
    logs, least = np.log(updates), _least_square(error)
    constant = Fit("u = u_mean", {"u_mean": math.exp(logs.mean())}, _aicc(logs - logs.mean(), 1, least))
    return [constant, _decay(logs, times, least)]


def best(fits: list[Fit]) -> str | None:
    """The law with the smallest criterion; None where not all of them can be judged."""
    judged = [(fit.aicc, fit.law) for fit in fits if fit.aicc is not None]
    return min(judged)[1] if judged and len(judged) == len(fits) else None


def _power(logs: np.ndarray, log_times: np.ndarray, least: float) -> Fit:
    spread = log_times - log_times.mean()
    p = float(spread @ logs / (spread @ spread))
    level = float(logs.mean() - p * log_times.mean())
    c = math.exp(level) if level < _LARGEST else None
    return Fit("D = c t^p", {"c": c, "p": p}, _aicc(logs - level - p * log_times, 2, least))


def _logarithm(logs: np.ndarray, log_times: np.ndarray, least: float) -> Fit:
    """b sets the level, so that only the ratio r = a/b needs a search, among those with all distances above 0."""
    start = -float(log_times.min())

    def shapes(offsets: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.log(start + np.exp(offsets)[..., None] + log_times)
        return found

    offset = float(_least(lambda offsets: _squares(logs - shapes(offsets)), np.array(-12.0), np.array(12.0)))
    ratio = start + math.exp(offset)
    b = math.exp(float((logs - np.log(ratio + log_times)).mean()))
    residuals = _centred(logs - shapes(np.array(offset)))
    return Fit("D = a + b log t", {"a": b * ratio, "b": b}, _aicc(residuals, 2, least))


def _decay(logs: np.ndarray, times: np.ndarray, least: float) -> Fit:
    """u0 sets the level, so that only tau and the ratio u_inf/u0 need a search."""
    span = float(times[-1] - times[0])

    def shapes(rates: np.ndarray, floors: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.logaddexp(-times / (span * np.exp(rates))[..., None], floors[..., None])
        return found

    def best_floors(rates: np.ndarray) -> np.ndarray:
        outside = np.full(rates.shape, -12.0), np.full(rates.shape, 4.0)
        return _least(lambda floors: _squares(logs - shapes(rates[..., None], floors)), *outside)

    found = _least(lambda rates: _squares(logs - shapes(rates, best_floors(rates))), np.array(-4.0), np.array(4.0))
    rate, floor = float(found), float(best_floors(found))
    shape = shapes(np.array(rate), np.array(floor))
    first = math.exp(float((logs - shape).mean()))
    parameters = {"u0": first, "tau": span * math.exp(rate), "u_inf": first * math.exp(floor)}
    return Fit("u = u0 exp(-t/tau) + u_inf", parameters, _aicc(_centred(logs - shape), 3, least))


def _centred(values: np.ndarray) -> np.ndarray:
    centred: np.ndarray = values - values.mean(axis=-1, keepdims=True)
    return centred


def _squares(residuals: np.ndarray) -> np.ndarray:
    squares: np.ndarray = (_centred(residuals) ** 2).sum(axis=-1)
    return squares


def _least(squares: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where a function with one valley is smallest, for many at once: points get one axis more, the last."""
    for _ in range(_ROUNDS):
        points = np.linspace(low, high, _GRID, axis=-1)
        best = np.take_along_axis(points, np.argmin(squares(points), axis=-1)[..., None], -1)[..., 0]
        cell = (high - low) / (_GRID - 1)
        low, high = best - cell, best + cell
    return best


def _least_square(error: float) -> float:
    """What residuals may be by rounding alone: their own, and that of the numbers whose logarithms they are of."""
    return max(_FLOOR, error * error)


def _aicc(residuals: np.ndarray, parameters: int, least: float) -> float | None:
    """n log(RSS/n) + 2k + 2k(k+1)/(n-k-1), the variance counted among the k (Hurvich and Tsai 1989)."""
    points, k = len(residuals), parameters + 1
    if points <= k + 1:
        return None
    mean_square = max(float(residuals @ residuals) / points, least)
    return points * math.log(mean_square) + 2 * k + 2 * k * (k + 1) / (points - k - 1)
