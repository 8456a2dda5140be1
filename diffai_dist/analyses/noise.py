"""What a narrower dtype took from a tensor: signal and noise, of the whole and of its rows, and what theory expects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffai_dist.analyses.grids import BITS, DIGITS, Expected, Grid, expected, grid_of
from diffai_dist.checkpoint import Checkpoint, Tensor
from diffai_dist.dtypes import dtype_of
from diffai_dist.records import Measurements, TensorRecord

if TYPE_CHECKING:
    import numpy as np

_TELLING = 1024  # elements; the mean error of fewer may be far from the expected one by chance. Judgement
_SOUND = 1.0  # dB below theory in which nothing needs an explanation. Judgement
_STEPS = 4  # standard deviations of a narrower spread lie between few neighbouring numbers, likewise. Judgement

NO_VALUES = "nothing finite that is not 0"
STORED = "codes as they are stored, with a scale beside them; without --raw they are values"


@dataclass(frozen=True, slots=True)
class Narrowed:
    """A tensor, by index and name, that the candidate holds in fewer digits, or as codes, and the numbers they have."""

    index: int
    name: str
    before: Tensor
    after: Tensor
    grid: Grid
    stored: bool  # whether these are codes that a scale beside them multiplies

    @property
    def bare(self) -> bool:
        """Whether its integers stand for no other values that are known."""
        return not self.after.quantised and self.after.dtype in BITS


@dataclass(frozen=True, slots=True)
class Sums:
    """Of each row or column of baseline a and candidate b: sums of a^2, a*b, b^2 and (b - a)^2; NaN where not known."""

    aa: np.ndarray
    ab: np.ndarray
    bb: np.ndarray
    d2: np.ndarray

    @property
    def factors(self) -> np.ndarray:
        """k of b = k a + rest; NaN where a side is 0."""
        import numpy as np

        with np.errstate(all="ignore"):
            found: np.ndarray = np.where((self.bb > 0) & (self.aa > 0), self.ab / self.aa, np.nan)
        return found

    @property
    def turned(self) -> np.ndarray:
        """1 - cos; NaN where a side is 0."""
        import numpy as np

        with np.errstate(all="ignore"):
            cosine = self.ab / (np.sqrt(self.aa) * np.sqrt(self.bb))
            found: np.ndarray = np.where(np.isfinite(cosine), 1 - cosine, np.nan)
        return found

    @property
    def rest(self) -> np.ndarray:
        """Sums of (b - k a)^2 with the best k of each: d2 less what k explains, so that little of it cancels."""
        import numpy as np

        with np.errstate(all="ignore"):
            found: np.ndarray = np.maximum(self.d2 - (self.ab - self.aa) * ((self.ab - self.aa) / self.aa), 0)
        return np.where(self.aa > 0, found, self.bb)


@dataclass(frozen=True, slots=True)
class Rows(Sums):
    """Rows with their numbers of elements, largest magnitudes on both sides, and mean(b - a)."""

    count: np.ndarray
    absmax: np.ndarray
    top: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True, slots=True)
class Noise:
    """Sums over a tensor's elements: signal = sum a^2, noise = sum (b - a)^2, `peak` n * absmax^2; and its rows.

    Without measured rows the whole tensor is one. `theory` is of correct rounding of the baseline's values.
    """

    one: Narrowed
    signal: float
    noise: float
    theory: Expected
    peak: float
    telling: bool
    rows: Rows
    by_rows: bool  # whether rows were measured
    columns: Sums | None

    @property
    def name(self) -> str:
        """Of the tensor."""
        return self.one.name

    @property
    def db(self) -> float:
        """SQNR; infinite where nothing was lost."""
        return decibels(self.signal, self.noise)

    @property
    def shortfall(self) -> float:
        """dB below theory; below the worst case where elements are too few, or too much alike, to be average."""
        return decibels(self.noise, self.limit) if self.noise else 0.0

    @property
    def sound(self) -> bool:
        """Whether it lost about what correct rounding costs, or less."""
        return self.shortfall <= _SOUND

    @property
    def limit(self) -> float:
        """The noise that correct rounding may have."""
        return self.theory.noise if self.telling else self.theory.worst

    @property
    def rows_db(self) -> np.ndarray | None:
        """SQNR of each row that is not 0, infinite where nothing was lost; None where no rows were measured."""
        import numpy as np

        if not self.by_rows or len(self.one.after.shape) < 2:
            return None
        with np.errstate(all="ignore"):
            found: np.ndarray = np.where(self.rows.aa > 0, 10 * np.log10(self.rows.aa / self.rows.d2), np.nan)
        return found


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
    found = []
    for i, aligned in enumerate(measured.comparison.aligned):
        before, after = aligned.tensors[pair.baseline], aligned.tensors[pair.candidate]
        if aligned.name not in compared or not before or not after or not _is_narrower(before, after):
            continue
        stored = _is_stored(measured.comparison.members[pair.candidate], after)
        lossless = after.dtype in BITS and not stored and not measured.shifts["changed"][i, pair_index]
        if (grid := grid_of(after)) and not lossless:  # numbers of positions, masks
            found.append(Narrowed(i, aligned.name, before, after, grid, stored))
    return found


def uncompared(measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> Iterator[tuple[str, str]]:
    """Tensors that were not compared and that the candidate holds narrower, or may, and why they were not."""
    pair = measured.comparison.pairs[pair_index]
    told = {one.name: one.reason or "" for one in records if one.status in ("failed", "incomparable")}
    for i, aligned in enumerate(measured.comparison.aligned):
        if aligned.name not in told:
            continue
        before, after = aligned.tensors[pair.baseline], aligned.tensors[pair.candidate]
        lost = aligned.unreadable[pair.baseline] or aligned.unreadable[pair.candidate] or measured.failure(i, pair)
        if (before and after and _is_narrower(before, after)) or (lost and not (before and after)):
            yield aligned.name, lost.found if lost else told[aligned.name]


def _is_narrower(before: Tensor, after: Tensor) -> bool:
    """Whether values become codes of fewer bits, or floats of fewer digits, or integers."""
    a, b = grid_of(before), grid_of(after)
    if a is None or b is None or not (before.quantised or before.dtype in DIGITS):
        return False
    if after.quantised:
        return b.bits < a.bits
    return not before.quantised and (after.dtype in BITS or b.digits < a.digits)


def _is_stored(member: Checkpoint, tensor: Tensor) -> bool:
    """Whether it is codes, whose scale is a tensor beside it, as under --raw."""
    if tensor.scheme or dtype_of(tensor.dtype).bits > 8:
        return False
    head, dot, _ = tensor.name.rpartition(".")
    beside = (f"{tensor.name}_scale", f"{tensor.name}_scale_inv", f"{head}{dot}scale", f"{head}{dot}SCB")
    return any(name in member.tensors for name in beside)


def noise_of(measured: Measurements, pair_index: int, one: Narrowed) -> Noise | str:
    """What it lost, or why that is not known."""
    shift = measured.shifts[one.index, pair_index]
    sums = {key: float(shift[key]) for key in ("both", "aa", "bb", "d2")}
    if one.stored:
        return STORED
    if not (sums["aa"] > 0 and all(map(math.isfinite, sums.values()))):
        return NO_VALUES
    moments = measured.moments[one.index, measured.comparison.pairs[pair_index].baseline]
    rows = _rows(measured, pair_index, one)
    each = rows or _as_one_row(measured, pair_index, one)
    theory = expected(one.grid, one.after.elements, each.aa, each.absmax, each.count)
    spread = math.sqrt(moments["m2"] / moments["finite"]) if moments["finite"] else 0.0
    step = 2.0**-one.grid.digits if one.grid.digits else 0.0
    telling = sums["both"] >= _TELLING and spread > _STEPS * step * abs(float(moments["mean"]))
    peak = sums["both"] * _magnitude(moments) ** 2
    columns = _columns(measured, pair_index, one)
    return Noise(one, sums["aa"], sums["d2"], theory, peak, telling, each, rows is not None, columns)


def _magnitude(moments: np.void) -> float:
    return float(moments["absmax"].view("float64"))


def _rows(measured: Measurements, pair_index: int, one: Narrowed) -> Rows | None:
    """NaN in rows that are not finite throughout, whose sums are not over the same elements."""
    import numpy as np

    pair, details = measured.comparison.pairs[pair_index], measured.details
    a, b = (details.rows.get((one.index, member)) for member in (pair.baseline, pair.candidate))
    shift = details.row_shifts.get((one.index, pair_index))
    if a is None or b is None or shift is None:
        return None
    whole = (shift["both"] == a["finite"]) & (shift["both"] == b["finite"])
    aa = np.where(whole, a["squares"], np.nan)
    with np.errstate(all="ignore"):
        moved = np.where(whole, (b["sum"] - a["sum"]) / shift["both"], np.nan)
    sums = aa, shift["along"] + aa, b["squares"], np.where(whole, shift["d2"], np.nan)
    return Rows(*sums, shift["both"], a["absmax"], b["absmax"], moved)


def _as_one_row(measured: Measurements, pair_index: int, one: Narrowed) -> Rows:
    import numpy as np

    pair, shift = measured.comparison.pairs[pair_index], measured.shifts[one.index, pair_index]
    a, b = (measured.moments[one.index, member] for member in (pair.baseline, pair.candidate))
    sums = shift["aa"], (1 + shift["slope"]) * shift["aa"], shift["bb"], shift["d2"]
    moved = b["mean"] - a["mean"] if shift["both"] == a["finite"] == b["finite"] else math.nan
    return Rows(
        *(np.array([value], np.float64) for value in (*sums, shift["both"], _magnitude(a), _magnitude(b), moved))
    )


def _columns(measured: Measurements, pair_index: int, one: Narrowed) -> Sums | None:
    """<a, b> = (|a|^2 + |b|^2 - |b - a|^2) / 2; None where something is not finite, for which columns keep no count."""
    pair, details = measured.comparison.pairs[pair_index], measured.details
    a, b = (details.columns.get((one.index, member)) for member in (pair.baseline, pair.candidate))
    shift = details.column_shifts.get((one.index, pair_index))
    if a is None or b is None or shift is None:
        return None
    if measured.shifts["both"][one.index, pair_index] != one.after.elements:
        return None
    aa, bb, d2 = a["squares"], b["squares"], shift["d2"]
    return Sums(aa, (aa + bb - d2) / 2, bb, d2)
