"""How far rows, and groups of them, moved: relative length, angle and ratio of norms, out of their sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffai_dist.records import Measurements


@dataclass(frozen=True)
class Lines:
    """Sums per row, or group of rows, of a pair; NaN where something is not finite on both sides, or not measured."""

    aa: np.ndarray  # Σ a²
    bb: np.ndarray  # Σ b²
    d2: np.ndarray  # Σ (b - a)²
    along: np.ndarray  # Σ a (b - a)

    def grouped(self, size: int) -> Lines:
        """Sums of each `size` rows that follow each other."""
        return Lines(*(one.reshape(-1, size).sum(axis=1) for one in (self.aa, self.bb, self.d2, self.along)))

    def repeated(self, times: int) -> Lines:
        """Each row so many times."""
        return Lines(*(one.repeat(times) for one in (self.aa, self.bb, self.d2, self.along)))

    def __add__(self, other: Lines) -> Lines:
        return Lines(self.aa + other.aa, self.bb + other.bb, self.d2 + other.d2, self.along + other.along)

    @property
    def rel_l2(self) -> np.ndarray:
        """‖d‖ / ‖a‖; NaN for a = 0."""
        with np.errstate(all="ignore"):
            return np.where(self.aa > 0.0, np.sqrt(self.d2) / np.sqrt(self.aa), np.nan)

    @property
    def norm_ratio(self) -> np.ndarray:
        """‖b‖ / ‖a‖; NaN for a = 0."""
        with np.errstate(all="ignore"):
            return np.where(self.aa > 0.0, np.sqrt(self.bb) / np.sqrt(self.aa), np.nan)

    @property
    def cosine(self) -> np.ndarray:
        """Of a and b; NaN where one is 0."""
        with np.errstate(all="ignore"):
            return np.clip(np.where(self._both, (self.aa + self.along) / np.sqrt(self.aa * self.bb), np.nan), -1.0, 1.0)

    @property
    def cosine_distance(self) -> np.ndarray:
        """1 - cos, of small angles from sin² = (d²a² - (a·d)²) / (a²b²), which keeps their digits."""
        cosine = self.cosine
        with np.errstate(all="ignore"):
            sine2 = np.maximum(self.d2 / self.bb - self.along / self.aa * (self.along / self.bb), 0.0)
            return np.where(cosine >= 0.0, sine2 / (1.0 + cosine), 1.0 - cosine)

    @property
    def _both(self) -> np.ndarray:
        found: np.ndarray = (self.aa > 0.0) & (self.bb > 0.0)
        return found


def row_lines(measured: Measurements, tensor: int, pair_index: int) -> Lines | None:
    """The rows of a tensor in a pair; None where they were not measured."""
    details, pair = measured.details, measured.comparison.pairs[pair_index]
    a, b = (details.rows.get((tensor, member)) for member in (pair.baseline, pair.candidate))
    shift = details.row_shifts.get((tensor, pair_index))
    if a is None or b is None or shift is None:
        return None
    whole = (shift["both"] == a["finite"]) & (shift["both"] == b["finite"])
    return Lines(*(np.where(whole, one, np.nan) for one in (a["squares"], b["squares"], shift["d2"], shift["along"])))


def tensor_lines(measured: Measurements, tensor: int, pair_index: int) -> Lines:
    """A whole tensor as one row, over what is finite on both sides."""
    shift = measured.shifts[tensor, pair_index]
    aa, bb, d2 = (np.array([shift[key]]) for key in ("aa", "bb", "d2"))
    return Lines(aa, bb, d2, np.array([shift["slope"] * shift["aa"]]))


def number(value: Any) -> float | None:
    """A Python number; None for what is not finite.

    >>> number(np.float64(0.5)), number(np.nan)
    (0.5, None)
    """
    return float(value) if np.isfinite(value) else None
