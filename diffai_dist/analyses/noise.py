"""What a narrower dtype took from a tensor: signal and noise, of the whole and of its rows, and what theory expects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from diffai_dist.analyses.scales import Scale, find_scale
from diffai_dist.checkpoint import Tensor
from diffai_dist.records import Measurements, TensorRecord

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
# Steps of 2 absmax / 2^b, errors even in half a step: absmax^2 / (3 * 4^b). In dB: 6.02 b + 4.77 - 20 log10(crest). At
# worst each error is half a step, which makes the mean of its square three times as large.
_WORST_EVEN = 3.0
_TELLING = 1024  # elements; the mean error of fewer may be far from the expected one by chance. Judgement
_STEPS = 4  # standard deviations of a narrower spread lie between few neighbouring numbers, likewise. Judgement
_ROUNDING = 2.0**-40  # of the signal: 120 dB

NO_VALUES = "nothing finite that is not 0"
NO_ROWS = "a scale for each row, and more rows than partials are kept of"
BAD_SCALE = "the scale is no finite number"


@dataclass(frozen=True, slots=True)
class Narrowed:
    """A tensor, by index and name, that the candidate holds in fewer digits, or as codes that a scale multiplies."""

    index: int
    name: str
    before: Tensor
    after: Tensor
    scale: Scale | None

    @property
    def coded(self) -> bool:
        """Whether its integers stand for other values."""
        return self.after.dtype in BITS

    @property
    def nbytes(self) -> float:
        """What the candidate stores for it, its scale included."""
        return self.after.nbytes + (self.scale.nbytes if self.scale else 0)


@dataclass(frozen=True, slots=True)
class Noise:
    """Sums over a tensor's elements, float64, and what its rows say: dB, factor k and 1 - cos of each, NaN if unknown.

    With values s*c in place of a: signal = sum a^2, noise = sum (s*c - a)^2, k = s <a, c> / |a|^2. `theory` and `worst`
    are the noise of correct rounding, on average and at most; `peak` is n * absmax^2.
    """

    one: Narrowed
    signal: float
    noise: float
    theory: float
    worst: float
    peak: float
    telling: bool
    factors: np.ndarray
    turned: np.ndarray
    rows_db: np.ndarray | None

    @property
    def db(self) -> float:
        """SQNR; infinite where nothing was lost."""
        return decibels(self.signal, self.noise)

    @property
    def shortfall(self) -> float:
        """dB below theory; below the worst case where elements are too few, or too much alike, to be average."""
        return decibels(self.noise, self.theory if self.telling else self.worst) if self.noise else 0.0


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise).

    >>> round(decibels(4.0, 2.0), 3), decibels(1.0, 0.0)
    (3.01, inf)
    """
    return 10 * (math.log10(signal) - math.log10(noise)) if signal and noise else math.inf if signal else -math.inf


def narrowed(measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> list[Narrowed]:
    """The tensors whose values were compared and that the candidate holds narrower, in the order of the comparison."""
    pair = measured.comparison.pairs[pair_index]
    compared = {record.name for record in records if record.change is not None}
    places = places_of(measured, pair.candidate)
    found = []
    for i, aligned in enumerate(measured.comparison.aligned):
        before, after = aligned.tensors[pair.baseline], aligned.tensors[pair.candidate]
        if aligned.name in compared and before and after and _is_narrower(before.dtype, after.dtype):
            coded = may_be_codes(before, after)
            scale = find_scale(measured, pair, after, places) if coded else None
            lossless = after.dtype in BITS and scale is None and not measured.shifts["changed"][i, pair_index]
            if not lossless:  # numbers of positions, masks
                found.append(Narrowed(i, aligned.name, before, after, scale))
    return found


def places_of(measured: Measurements, member: int) -> dict[str, int]:
    """Indices of aligned tensors by the member's names."""
    return {tensor.name: i for i, one in enumerate(measured.comparison.aligned) if (tensor := one.tensors[member])}


def may_be_codes(before: Tensor, after: Tensor) -> bool:
    """Whether a scale may belong to a narrower dtype: one beside a wider float is a layer's own, as in "norm.scale"."""
    return _is_narrower(before.dtype, after.dtype) and (after.decoder.bits <= 8 or after.dtype in BITS)


@lru_cache
def _is_narrower(before: str, after: str) -> bool:
    return before in DIGITS and (after in BITS or DIGITS.get(after, 53) < DIGITS[before])


def noise_of(measured: Measurements, pair_index: int, one: Narrowed) -> Noise | str:
    """What it lost, or why that is not known."""
    import numpy as np

    if one.scale and one.scale.values is None:
        return one.scale.reason or ""
    scale = one.scale.values if one.scale and one.scale.values is not None else np.ones(1)
    sums = {key: float(measured.shifts[key][one.index, pair_index]) for key in ("both", "aa", "bb", "slope", "rest")}
    if not (sums["aa"] > 0 and all(map(math.isfinite, sums.values()))):
        return NO_VALUES
    rows = _rows(measured, pair_index, one)
    if scale.size > 1:
        return NO_ROWS if rows is None else _by_rows(one, rows, scale)
    return _as_a_whole(measured, pair_index, one, sums, rows, float(scale[0]))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Of each row of baseline and codes: sums of a^2, a*c, c^2 and (c - a)^2; elements, and the largest |a|."""

    aa: np.ndarray
    ac: np.ndarray
    cc: np.ndarray
    d2: np.ndarray
    count: np.ndarray
    absmax: np.ndarray


def _rows(measured: Measurements, pair_index: int, one: Narrowed) -> _Rows | None:
    """NaN in rows that are not finite throughout, whose sums are not over the same elements."""
    import numpy as np

    pair, details = measured.comparison.pairs[pair_index], measured.details
    a, c = (details.rows.get((one.index, member)) for member in (pair.baseline, pair.candidate))
    shift = details.row_shifts.get((one.index, pair_index))
    if a is None or c is None or shift is None:
        return None
    whole = (shift["both"] == a["finite"]) & (shift["both"] == c["finite"])
    aa = np.where(whole, a["squares"], np.nan)
    return _Rows(aa, shift["along"] + aa, c["squares"], shift["d2"], shift["both"], a["absmax"])


def _noise_of_rows(rows: _Rows, scale: np.ndarray) -> np.ndarray:
    """|s c - a|^2 = |a|^2 - 2 s <a, c> + s^2 |c|^2, of sums that are right to some 2^-50.

    At 50 dB five of the fifteen digits cancel; what is left at 120 dB may be rounding and counts as none.
    """
    import numpy as np

    noise = rows.aa - 2 * scale * rows.ac + scale**2 * rows.cc
    noise = np.where(noise <= _ROUNDING * rows.aa, 0.0, noise)
    found: np.ndarray = np.where((scale == 1) & ~np.isnan(noise), rows.d2, noise)
    return found


def _by_rows(one: Narrowed, rows: _Rows, scale: np.ndarray) -> Noise | str:
    """With a scale for each row the whole is the sum of the rows whose values are known."""
    import numpy as np

    noise = _noise_of_rows(rows, scale)
    known = np.isfinite(noise)
    signal = math.fsum(rows.aa[known])
    if not signal:
        return BAD_SCALE if not np.isfinite(scale).all() else NO_VALUES
    peak = math.fsum((rows.count * rows.absmax**2)[known])
    expected = _expected(one, signal, peak)
    factors, turned = _ratios(rows, scale)
    whole_peak = float(rows.count[known].sum()) * float(rows.absmax[known].max()) ** 2
    telling = int(rows.count.sum()) >= _TELLING
    decibel = _row_decibels(rows, noise)
    return Noise(one, signal, math.fsum(noise[known]), *expected, whole_peak, telling, factors, turned, decibel)


def _as_a_whole(
    measured: Measurements, pair_index: int, one: Narrowed, sums: dict[str, float], rows: _Rows | None, scale: float
) -> Noise | str:
    """With one scale, or none: s c - a = (k - 1) a + s rest, which are orthogonal, so that nothing cancels."""
    import numpy as np

    if not math.isfinite(scale):
        return BAD_SCALE
    factor = scale * (1 + sums["slope"])
    noise = (factor - 1) ** 2 * sums["aa"] + scale**2 * sums["rest"]
    moments = measured.moments[one.index, measured.comparison.pairs[pair_index].baseline]
    peak = sums["both"] * float(moments["absmax"].view(np.float64)) ** 2
    spread = math.sqrt(moments["m2"] / moments["finite"]) if moments["finite"] else 0.0
    step = 2.0 ** -DIGITS[one.after.dtype] if one.after.dtype in DIGITS else 0.0
    telling = sums["both"] >= _TELLING and spread > _STEPS * step * abs(float(moments["mean"]))
    if rows is None:
        length = math.sqrt(sums["bb"]) * scale
        cosine = factor * math.sqrt(sums["aa"]) / length if length else 0.0
        ratios, decibel = (np.array([factor]), np.array([1 - cosine])), None
    else:
        each = np.full(rows.aa.shape, scale)
        ratios, decibel = _ratios(rows, each), _row_decibels(rows, _noise_of_rows(rows, each))
    return Noise(one, sums["aa"], noise, *_expected(one, sums["aa"], peak), peak, telling, *ratios, decibel)


def _expected(one: Narrowed, signal: float, peak: float) -> tuple[float, float]:
    """The noise of correct rounding, on average and at worst."""
    if one.coded:
        theory = peak / (3 * 4.0 ** BITS[one.after.dtype])
        return theory, _WORST_EVEN * theory
    worst = signal * 4.0 ** -DIGITS[one.after.dtype]
    return worst * _LOG_UNIFORM, worst


def _ratios(rows: _Rows, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """k and 1 - cos of each row; NaN where a side is 0."""
    import numpy as np

    with np.errstate(all="ignore"):
        factors = np.where(rows.cc > 0, scale * rows.ac / rows.aa, np.nan)
        turned = 1 - np.sign(scale) * rows.ac / np.sqrt(rows.aa * rows.cc)
    return np.where(np.isfinite(factors), factors, np.nan), np.where(np.isfinite(turned), turned, np.nan)


def _row_decibels(rows: _Rows, noise: np.ndarray) -> np.ndarray | None:
    """SQNR of each row that is not 0; infinite where nothing was lost."""
    import numpy as np

    with np.errstate(all="ignore"):
        found: np.ndarray = np.where(rows.aa > 0, 10 * np.log10(rows.aa / noise), np.nan)
    return found
