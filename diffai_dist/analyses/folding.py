"""Scales that AWQ and SmoothQuant moved from a weight's columns into what comes before it: a norm, a weight."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffai_dist.analyses.grids import expected
from diffai_dist.analyses.noise import Noise, decibels
from diffai_dist.analyses.roles import block, role
from diffai_dist.records import Measurements

if TYPE_CHECKING:
    import numpy as np

Factors = tuple[str, "np.ndarray"]  # of the tensor of that name
Agreed = tuple[str, float, "np.ndarray"]  # with what, how far off, and the factors

_SPREAD = 0.01  # of factors, relatively, by which they are not all one: BF16 rounds to 2^-9. Judgement
_FEWEST = 8  # factors that agree by chance hardly ever. Judgement


@dataclass(frozen=True, slots=True)
class Folded:
    """The factors of a weight's columns, or rows, that the tensor called `beside` has the inverse of.

    `signal` and `noise` are those of the weight times its factors, `theory` of rounding that. With factors of both
    columns and rows the sums of neither are without the other's, and there is no verdict.
    """

    tensor: str
    axis: str  # columns, rows, or both
    beside: str
    apart: float  # median relative difference of the two
    low: float
    high: float
    signal: float
    noise: float
    theory: float

    @property
    def db(self) -> float:
        """SQNR of the weight times its factors."""
        return decibels(self.signal, self.noise)

    @property
    def shortfall(self) -> float:
        """dB below theory."""
        return decibels(self.noise, self.theory) if self.noise else 0.0

    @property
    def row(self) -> dict[str, Any]:
        """As a row of the result."""
        keys = ("tensor", "axis", "beside", "apart", "low", "high")
        return {**{key: getattr(self, key) for key in keys}, "aligned_db": None if self.axis == "both" else self.db}


def folded(
    measured: Measurements, pair_index: int, known: Sequence[Noise], apart: float, least: float
) -> dict[str, Folded]:
    """By the names of weights: factors that agree with those beside them within `apart`, and win `least` dB back."""
    modules: dict[str, list[Noise]] = {}
    for one in known:
        if one.by_rows and one.one.after.quantised and len(one.one.after.shape) == 2:
            modules.setdefault(parent(parent(one.name)), []).append(one)
    norms = _norms(measured, pair_index, {block(one.name) for weights in modules.values() for one in weights})
    found: dict[str, Folded] = {}
    for weights in modules.values():
        if all(one.sound for one in weights):
            continue
        rows = [(one.name, one.rows.factors) for one in weights]
        columns = [(one.name, one.columns.factors) for one in weights if one.columns]
        for one in weights:
            own = one.columns.factors if one.columns else None
            across = _agreeing(own, [*norms.get(block(one.name), []), *_inverse(rows, one.name)], apart)
            along = _agreeing(one.rows.factors, _inverse(columns, one.name), apart)
            if (fold := _folded(one, across, along)) and (fold.axis == "both" or fold.db - one.db > least):
                found[one.name] = fold
    return found


def parent(name: str) -> str:
    """The path without its last component: of weights the module, then the part of the block that it belongs to.

    >>> parent(parent("h.0.mlp.up_proj.weight")), parent("weight")
    ('h.0.mlp', '')
    """
    return name.rpartition(".")[0]


def _norms(measured: Measurements, pair_index: int, blocks: Collection[str]) -> dict[str, list[Factors]]:
    """By block: baseline / candidate of each element of its norms, as they are and, as Gemma means them, 1 more."""
    import numpy as np

    pair, details = measured.comparison.pairs[pair_index], measured.details
    found: dict[str, list[Factors]] = {}
    for i, aligned in enumerate(measured.comparison.aligned):
        a, b = (details.rows.get((i, member)) for member in (pair.baseline, pair.candidate))
        tensor, where = aligned.tensors[pair.candidate], block(aligned.name)
        if tensor is None or len(tensor.shape) != 1 or where not in blocks or role(aligned.name) != "norm":
            continue
        if a is None or b is None or len(a) != len(b):
            continue
        with np.errstate(all="ignore"):
            ratios = [(a["sum"] + more) / (b["sum"] + more) for more in (0.0, 1.0)]
        found.setdefault(where, []).extend((aligned.name, one) for one in ratios)
    return found


def _inverse(factors: Sequence[Factors], own: str) -> list[Factors]:
    import numpy as np

    with np.errstate(all="ignore"):
        return [(name, 1 / values) for name, values in factors if name != own]


def _agreeing(factors: np.ndarray | None, beside: Sequence[Factors], apart: float) -> Agreed | None:
    """What agrees best, how far it is off, and the factors; a number that all have in common counts not.

    Of rows of fused weights it is the last ones that are the next weight's columns: v of qkv, up of gate and up.
    """
    import numpy as np

    if factors is None:
        return None
    best: Agreed | None = None
    for name, others in beside:
        number = min(len(factors), len(others))
        if number < _FEWEST or max(len(factors), len(others)) % number or _spread(others[-number:]) < _SPREAD:
            continue
        with np.errstate(all="ignore"):
            off = _spread(factors[-number:] / others[-number:])
        if off <= apart and 2 * off < _spread(others[-number:]) and (best is None or off < best[1]):
            best = name, off, factors
    return best


def _spread(values: np.ndarray) -> float:
    """Median relative distance from the median, of positive values; infinite where some are not that."""
    import numpy as np

    known = values[np.isfinite(values)]
    if not known.size or (known <= 0).mean() > _SPREAD:
        return np.inf
    return float(np.median(np.abs(known / np.median(known) - 1)))


def _folded(one: Noise, across: Agreed | None, along: Agreed | None) -> Folded | None:
    import numpy as np

    agreed = across or along
    if agreed is None:
        return None
    name, apart, factors = agreed
    sums = one.columns if across and one.columns else one.rows
    with np.errstate(all="ignore"):
        signal = float(np.nansum(np.where(sums.aa > 0, sums.ab**2 / sums.aa, 0)))
    rows = one.rows
    theory = expected(one.one.grid, one.one.after.elements, rows.bb, rows.top, rows.count)
    low, high = (float(value) for value in np.nanquantile(factors, [0.05, 0.95]))
    axis = "both" if across and along else "columns" if across else "rows"
    noise = float(np.nansum(sums.rest))
    return Folded(one.name, axis, name, apart, low, high, signal, noise, theory.noise if one.telling else theory.worst)


def rotated(one: Noise, length: float) -> float | None:
    """How far, in the middle, rows differ in length that point elsewhere; None unless they are as long as before.

    That they are not all of one length anyhow is what makes it more than chance.
    """
    import numpy as np

    if one.sound or not one.by_rows or not one.one.after.quantised or len(one.one.after.shape) < 2:
        return None
    with np.errstate(all="ignore"):
        ratios = np.sqrt(one.rows.bb / one.rows.aa)
    turned, known = one.rows.turned, np.isfinite(ratios)
    if known.sum() < _FEWEST or np.nanmedian(turned) < 0.5:
        return None
    off = float(np.median(np.abs(ratios[known] - 1)))
    return off if off <= length and _spread(np.sqrt(one.rows.aa)) > 4 * off else None
