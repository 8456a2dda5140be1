"""The numbers that a dtype or a scheme has, and what correct rounding to them must cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from diffai_dist.checkpoint import Tensor

if TYPE_CHECKING:
    import numpy as np

# Significant bits of floats, the leading one among them; bits of integers, whose values are evenly spaced.
DIGITS = {
    "F64": 53, "F32": 24, "F16": 11, "BF16": 8, "F8_E4M3": 4, "F8_E4M3FNUZ": 4, "F8_E5M2": 3, "F8_E5M2FNUZ": 3, "F4": 2
}  # fmt: skip
BITS = {"I8": 8, "U8": 8, "I16": 16, "U16": 16}

# An error that is even in ±2^-p of the power of two below, over mantissas that are log-uniform in [1, 2): the mean of
# its square is 4^-p / 3, that of the mantissa's 3 / (2 ln 2). In dB: 6.02 p + 8.12. At worst it is 2^-p of the value.
_LOG_UNIFORM = 2 * math.log(2) / 9
# 2^b - 1 steps between -absmax and absmax, errors even in half a step: absmax^2 / (3 (2^b - 1)^2). In dB of the signal:
# 20 log10(2^b - 1) + 4.77 - 20 log10(crest), some 6.02 b. At worst each error is half a step: three times as much.
_WORST_EVEN = 3.0


@dataclass(frozen=True, slots=True)
class Grid:
    """Codes of so many bits: floats of so many significant digits, or, for 0, evenly spaced; `block` share a scale."""

    bits: int
    digits: int
    block: int

    @property
    def largest(self) -> float:
        """The largest code; of a table, or an even grid, the largest integer.

        >>> Grid(8, 4, 0).largest, Grid(4, 2, 16).largest, Grid(4, 0, 128).largest
        (448.0, 6.0, 7.0)
        """
        return {4: 448.0, 3: 57344.0, 2: 6.0}.get(self.digits, max(2.0 ** (self.bits - 1) - 1, 1.0))


@dataclass(frozen=True, slots=True)
class Expected:
    """Sums of squared errors of correct rounding: on average, at most, and for each row, which has `step` if even."""

    noise: float
    worst: float
    step: np.ndarray | None


def grid_of(tensor: Tensor) -> Grid | None:
    """The numbers that it can hold; None where they are no codes and no floats."""
    scheme = tensor.scheme
    if scheme and scheme.bits:
        return Grid(scheme.bits, scheme.digits, scheme.block)
    if tensor.dtype in DIGITS:
        return Grid(tensor.decoder.bits, DIGITS[tensor.dtype], 0)
    return Grid(BITS[tensor.dtype], 0, 0) if tensor.dtype in BITS else None


def expected(grid: Grid, elements: int, squares: np.ndarray, absmax: np.ndarray, count: np.ndarray) -> Expected:
    """From the sum of squares, the largest magnitude and the number of elements of each row."""
    import numpy as np

    if grid.digits:
        worst = float(np.nansum(squares)) * 4.0**-grid.digits
        return Expected(worst * _LOG_UNIFORM, worst, None)
    peaks = _block_peaks(grid.block, elements, squares, absmax, count)
    theory = float(np.nansum(count * peaks)) / (3 * (2.0**grid.bits - 1) ** 2)
    return Expected(theory, _WORST_EVEN * theory, 2 * np.sqrt(peaks) / (2.0**grid.bits - 1))


def _block_peaks(block: int, elements: int, squares: np.ndarray, absmax: np.ndarray, count: np.ndarray) -> np.ndarray:
    """For each row the mean over its blocks of their largest squares.

    Rows tell no blocks that are shorter than they are: between the mean square and the largest of a row, the largest
    square of a block is taken to grow as that of normal values does, to the power that makes it right for the row.
    That is exact for normal values, and for heavier tails too large rather than too small.
    """
    import numpy as np

    width = max(elements // len(absmax), 1)
    if not block or block >= elements:
        return np.full(absmax.shape, np.nanmax(absmax, initial=0.0) ** 2)
    if block >= width:
        together = np.arange(0, len(absmax), block // width)
        sizes = np.diff([*together, len(absmax)])
        found: np.ndarray = np.repeat(np.maximum.reduceat(absmax, together) ** 2, sizes)
        return found
    with np.errstate(all="ignore"):
        mean = squares / count
        power = np.log(absmax**2 / mean) / math.log(normal_peak(width))
        return np.where(mean > 0, np.minimum(mean * normal_peak(block) ** power, absmax**2), 0.0)


@cache
def normal_peak(number: int) -> float:
    """The expected largest square of so many normal values of variance 1.

    >>> round(normal_peak(1), 3), round(normal_peak(128), 2)
    (1.0, 8.15)
    """
    step, largest = 0.002, 12.0
    points = (step * (i + 0.5) for i in range(int(largest / step)))
    return sum(2 * x * -math.expm1(number * _log_erf(x / math.sqrt(2))) for x in points) * step


def _log_erf(x: float) -> float:
    return math.log1p(-math.erfc(x))
