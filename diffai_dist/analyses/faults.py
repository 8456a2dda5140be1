"""What is wrong with scales and zero points, as far as values tell: cut off, a factor, a shift, factors row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffai_dist.analyses.noise import Noise, Sums, decibels

_MOST = 0.9  # share of the rows that must agree. Judgement
_NEAR = 1.15  # either way, of a largest code: some quantisers leave a code at one end unused. Judgement
_FAR = 4.0  # likewise, of a square, and of blocks whose largest values are not alike. Judgement
_EXACT = 1.05  # likewise, of a number that a scale is off by
_BLOCKS = 2.0  # how much nearer the grid of a block of a row may end than that of another. Judgement

# In NVFP4 the largest code times the largest scale, over which the global scale is the tensor's largest magnitude.
_GLOBAL = 6 * 448.0
# What scales are off by where a largest code is in them twice, or not at all.
NUMBERS = {"halved": 0.5, "doubled": 2.0, "127 of int8": 127.0, "448 of E4M3": 448.0, "6 * 448 of NVFP4": _GLOBAL}


@dataclass(frozen=True, slots=True)
class Fault:
    """What of a tensor's scales is wrong: `value` is a share, a factor, a shift in steps, or dB, as the rule says."""

    tensor: str
    rule: str
    value: float
    like: str

    @property
    def row(self) -> dict[str, Any]:
        """As a row of the result."""
        return {"tensor": self.tensor, "rule": self.rule, "value": self.value, "like": self.like}


def clipped(one: Noise) -> Fault | None:
    """The least share of values that lie beyond the grid, where cutting them off is what the noise is.

    A wrong scale shortens the largest values of a row as much as the row; a grid that ends at e shortens these alone.
    Of those beyond it Σ(|a| - e) = Σ b (a - b) / e and Σ(|a| - e)^2 = Σ(b - a)^2, as rounding goes either way; so they
    are (Σ(|a| - e))^2 / Σ(|a| - e)^2 at least (Cauchy-Schwarz), and none is further off than the row's largest.
    """
    import numpy as np

    rows = one.rows
    if not (one.one.after.quantised or one.one.grid.bits == 8):
        return None
    with np.errstate(all="ignore"):
        ends = rows.top / rows.absmax
        cut = ends * _NEAR < np.minimum(rows.factors, 1)
        beyond = np.where(cut, (rows.ab - rows.bb) / rows.top, 0)
        furthest = float(np.nansum((rows.absmax - rows.top) * beyond))
    lost, sums = float(np.nansum(rows.d2[cut])), float(np.nansum(beyond))
    if sums <= 0 or lost > _BLOCKS * furthest + one.limit or lost < _MOST * (one.noise - one.limit):
        return None
    like = f"a grid that ends at {float(np.median(ends[cut])):.2g} of a row's largest"
    return Fault(one.name, "clipped", sums**2 / lost / float(np.nansum(rows.count)), like)


def factor(one: Noise, least: float, turned: float) -> Fault | None:
    """The factor by which a matrix is too long or too short, if it is that alone in 9 of 10 rows.

    `turned` is the largest 1 - cos of the middle row, beyond what rounding to so few bits makes of it.
    """
    import numpy as np

    factors, angles = one.rows.factors, one.rows.turned
    known = np.isfinite(factors) & np.isfinite(angles)
    limit = turned + one.theory.noise / one.signal
    if len(one.one.after.shape) < 2 or not known.any() or np.median(angles[known]) > limit:
        return None
    factors = factors[known]
    far = (factors > 0) & ((factors > least) | (factors < 1 / least))
    if np.mean(far) < _MOST:
        return None
    middle = float(np.median(factors))
    return Fault(one.name, "missing-or-inverted-scale", middle, _like(one, middle))


def _like(one: Noise, factor: float) -> str:
    """What makes such a factor: values that are codes, codes over scales, or a number that is in a scale or not."""
    import numpy as np

    code, rows = one.one.grid.largest, one.rows
    top, absmax = float(np.nanmax(rows.top)), float(np.nanmax(rows.absmax))
    if _within(top / code, _NEAR):
        return "missing"
    if one.one.grid.digits == 2 and _within(top / _GLOBAL, _NEAR):
        return "global scale missing"
    with np.errstate(all="ignore"):
        squares = rows.top * rows.absmax / code**2
    for name, number in NUMBERS.items():
        if _within(factor / number, _EXACT):
            return name
        if number > 2 and _within(factor * number, _EXACT):
            return f"1 / ({name})"
    if _within(float(np.nanmedian(squares)), _FAR):
        return "inverted"
    if one.one.grid.digits == 2 and _within(top * absmax / _GLOBAL**2, _FAR):
        return "global scale inverted"
    return "wrong"


def _within(ratio: float, factor: float) -> bool:
    return 1 / factor <= ratio <= factor


def zero_point(one: Noise, least: float) -> Fault | None:
    """A shift of at least so many steps, the same way in 9 of 10 rows, as of a zero point that is counted otherwise."""
    import numpy as np

    if one.theory.step is None or not one.one.after.quantised:
        return None
    with np.errstate(all="ignore"):
        steps = one.rows.shift / one.theory.step
    steps = steps[np.isfinite(steps)]
    if not steps.size or max(np.mean(steps > least), np.mean(steps < -least)) < _MOST:
        return None
    return Fault(one.name, "shifted-zero-point", float(np.median(steps)), "zero point")


def misplaced(one: Noise, least: float) -> Fault | None:
    """How many dB a factor for each row, or each column, wins back that one for all does not."""
    import numpy as np

    if not one.one.after.quantised or len(one.one.after.shape) < 2:
        return None
    sides = {"row": one.rows, "column": one.columns}
    elements = one.one.after.elements
    won = {name: _won(one.rows, sums, elements / len(sums.aa)) for name, sums in sides.items() if sums is not None}
    axis = max(won, key=lambda name: won[name])
    if not np.isfinite(won[axis]) or won[axis] <= least:
        return None
    return Fault(one.name, "misplaced-scales", won[axis], f"a factor for each {axis}")


def _won(rows: Sums, sums: Sums, values: float) -> float:
    """Beyond what one number for so many values wins of noise."""
    import numpy as np

    if values < 2:
        return -np.inf
    aa, ab, d2 = (float(np.nansum(values)) for values in (rows.aa, rows.ab, rows.d2))
    single = d2 - (ab - aa) ** 2 / aa if aa else 0.0
    return decibels(single, float(np.nansum(sums.rest)) * values / (values - 1))
