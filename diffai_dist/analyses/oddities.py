"""What is odd about the values of one tensor in one member: dead, constant, exploding, out of line, near the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from diffai_dist.analyses.expected import in_every_block, is_mask, is_scale, is_table, may_be_zero
from diffai_dist.analyses.robust import robust_z
from diffai_dist.analyses.roles import role
from diffai_dist.analyses.series import Series
from diffai_dist.analyses.staleness_check import is_state
from diffai_dist.checkpoint import Tensor
from diffai_dist.dtypes import Family
from diffai_dist.records import Severity

if TYPE_CHECKING:
    from diffai_dist.analyses.anomaly_detection import AnomalyDetection

FEWEST_BLOCKS = 5  # with the same tensor, whose median and spread mean something
BATCH = 2**18  # norms that are looked at together
SHORTEST = 8  # values in a row, or a column, that are not all tiny by chance

# The largest finite number: IEEE 754, bfloat16, OCP 8-bit formats, Arm/AMD/Graphcore FNUZ.
LARGEST = {
    "F64": float(np.finfo(np.float64).max),
    "F32": (2 - 2.0**-23) * 2.0**127,
    "BF16": (2 - 2.0**-7) * 2.0**127,
    "F16": 65504.0,
    "F8_E4M3": 448.0,
    "F8_E5M2": 57344.0,
    "F8_E4M3FNUZ": 240.0,
    "F8_E5M2FNUZ": 57344.0,
}
_NO_WEIGHTS = ("BOOL", "F8_E8M0")  # truth values, and powers of two: a scale's
NARROW = ("F16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")  # whose subnormals are not far from weights


@dataclass(frozen=True, slots=True)
class Oddity:
    """One rule broken by one tensor in one member; `option` names the threshold that `value` passed, None for none."""

    rule: str
    severity: Severity
    tensor: int
    member: int
    value: float
    option: str | None
    note: str
    axis: str | None = None  # of `index`: row, column or element, the first or the furthest of `count`
    index: int | None = None
    count: int = 1


class Oddities:
    """The tensors of a series as the rules see them: [tensors, members] arrays, and words about their names."""

    def __init__(self, series: Series, limits: AnomalyDetection) -> None:
        self.series, self.limits, self.moments = series, limits, series.measured.moments
        names = series.tensors
        self.masks, self.tables, self.states, self.zero, self.scales = (
            np.array([is_one(name) for name in names], bool)[:, None]
            for is_one in (is_mask, is_table, is_state, may_be_zero, is_scale)
        )
        self.roles = [role(name) for name in names]
        self.quiet = self.masks | self.tables | self.states  # not judged as weights are

    def found(self) -> Iterator[Oddity]:
        """All of them, rule by rule."""
        yield from self.all_zero()
        yield from self.lines("row")
        yield from self.lines("column")
        yield from self.constant()
        yield from self.layers()
        yield from self.near_overflow()
        yield from self.subnormal()

    @cached_property
    def largest(self) -> np.ndarray:
        """The largest finite number of the dtype where the tensor was measured and is of floats that are, else NaN."""
        aligned = self.series.measured.comparison.aligned
        table = [[LARGEST.get(one.decoder.name, np.nan) if one else np.nan for one in a.tensors] for a in aligned]
        found = np.array(table, np.float64).reshape(self.series.read.shape)
        return np.where(self.series.decoded & (self.moments["finite"] > 0), found, np.nan)

    @cached_property
    def magnitudes(self) -> np.ndarray:
        """The largest |x| of floats."""
        found: np.ndarray = np.ascontiguousarray(self.moments["absmax"]).view(np.float64)
        return found

    @cached_property
    def wide(self) -> np.ndarray:
        """Which tensors have two dimensions and more, and more than one value: matrices, kernels, stacks."""
        return self._table(lambda one: len(one.shape) > 1 and one.elements > 1)

    @cached_property
    def weights(self) -> np.ndarray:
        """Which tensors are floats with values other than 0."""
        found: np.ndarray = np.isfinite(self.largest) & ~self.zeros
        return found

    @cached_property
    def empty(self) -> np.ndarray:
        """Which tensors of more than one number hold nothing but zeros."""
        full = (self.moments["zeros"] == self.moments["count"]) & (self.moments["count"] > 1)
        found: np.ndarray = full & self.series.decoded
        return found

    @property
    def zeros(self) -> np.ndarray:
        """Those of them that are floats."""
        found: np.ndarray = self.empty & np.isfinite(self.largest)
        return found

    @cached_property
    def integers(self) -> np.ndarray:
        """Which are matrices of integers that stand for weights: other members tell of that."""
        kinds = self._table(
            lambda one: one.decoder.name not in (*LARGEST, *_NO_WEIGHTS) and one.decoder.family < Family.COMPLEX
        )
        filled = self.series.decoded & ~self.empty
        elsewhere = filled.sum(axis=1, keepdims=True) > filled
        expected = self.quiet | self.zero | self.scales
        found: np.ndarray = kinds & self.series.decoded & self.wide & elsewhere & ~expected
        return found

    @property
    def expected_zeros(self) -> np.ndarray:
        """Those of them that are nothing strange."""
        found: np.ndarray = self.zeros & (self.quiet | self.zero | self.scales)
        return found

    def all_zero(self) -> Iterator[Oddity]:
        """Vectors of zeros may be gains that are stored less 1."""
        for tensor, member in _places((self.zeros & ~self.expected_zeros) | (self.empty & self.integers)):
            severity: Severity = "high" if self.wide[tensor, member] else "low"
            number = int(self.moments["count"][tensor, member])
            yield Oddity("all-zero", severity, tensor, member, number, None, "zeros, all its values")

    def constant(self) -> Iterator[Oddity]:
        """One value throughout, which is not 0, where none is expected."""
        norms = np.array([one == "norm" for one in self.roles], bool)[:, None]
        same = (self.moments["low"] == self.moments["high"]) & (self.moments["finite"] == self.moments["count"])
        odd = self.weights & same & (self.moments["count"] > 1)
        for tensor, member in _places(odd & ~(self.quiet | self.zero | self.scales | norms)):
            severity: Severity = "medium" if self.wide[tensor, member] else "low"
            value = math.copysign(self.magnitudes[tensor, member], self.moments["mean"][tensor, member])
            yield Oddity("constant", severity, tensor, member, value, None, "the one value of all its elements")

    def near_overflow(self) -> Iterator[Oddity]:
        """Values that a little more would make infinite, or NaN."""
        with np.errstate(invalid="ignore"):
            share = self.magnitudes / self.largest
            odd = (share > self.limits.overflow_share) & ~self.masks
        for tensor, member in _places(odd):
            index, value = int(self.moments["absmax_index"][tensor, member]), float(share[tensor, member])
            size, end = self.magnitudes[tensor, member], self.largest[tensor, member]
            note = f"|x| of {size:.6g} at {index}, the dtype ends at {end:.6g}"
            yield Oddity("near-overflow", "high", tensor, member, value, "overflow_share", note, "element", index)

    def subnormal(self) -> Iterator[Oddity]:
        """Where the numbers of a dtype are furthest apart for their size."""
        narrow = self._table(lambda one: one.decoder.name in NARROW)
        with np.errstate(invalid="ignore"):
            share = self.moments["subnormals"] / self.moments["count"]
        odd = narrow & self.weights & (share > self.limits.subnormal_share) & ~self.quiet
        for tensor, member in _places(odd):
            note, value = "of values that are subnormal", float(share[tensor, member])
            yield Oddity("subnormal-share", "low", tensor, member, value, "subnormal_share", note)

    def layers(self) -> Iterator[Oddity]:
        """Matrices whose RMS is out of line with the same one of other blocks."""
        for tensors in self.stacks:
            for member in range(len(self.series.members)):
                chosen = [tensor for tensor in tensors if self._rms[tensor, member] > 0.0]
                if len(chosen) >= FEWEST_BLOCKS:
                    yield from self._out_of_line(chosen, member)

    def _out_of_line(self, tensors: list[int], member: int) -> Iterator[Oddity]:
        logs = np.log(self._rms[tensors, member])
        factors = np.exp(np.abs(logs - np.median(logs)))
        odd = (np.abs(robust_z(logs)) > self.limits.outlier_z) & (factors > self.limits.layer_least)
        for place in np.flatnonzero(odd).tolist():
            factor, z = float(factors[place]), float(robust_z(logs)[place])
            far = factor > self.limits.layer_far
            severity: Severity = "medium" if far else "low"
            note = f"RMS a factor of {factor:.3g} from the median of {len(tensors)} blocks, robust z {z:.3g}"
            option, value = ("layer_far", factor) if far else ("outlier_z", abs(z))
            yield Oddity("layer-outlier", severity, tensors[place], member, value, option, note)

    def lines(self, axis: str) -> Iterator[Oddity]:
        """Rows, or columns, that are dead beside the others, and rows that are far longer."""
        details = self.series.measured.details
        tables = details.rows if axis == "row" else details.columns
        for tensor, member in self._suspicious(tables, self.judged[axis]):
            table = tables[tensor, member]
            if self.integers[tensor, member]:
                filled, known = (
                    (table["squares"] > 0.0).astype(np.float64),
                    self._filled_elsewhere(tables, tensor, member),
                )
                yield from self._dead(tensor, member, filled, known, axis)
            elif axis == "row":
                yield from self._rows(tensor, member, table)
            elif not self.series.non_finite[tensor, member]:  # else a column of NaN has no squares either
                yield from self._dead(tensor, member, np.sqrt(table["squares"]), np.ones(len(table), bool), "column")

    def _filled_elsewhere(self, tables: Mapping[tuple[int, int], np.ndarray], tensor: int, member: int) -> np.ndarray:
        """Which rows, or columns, of integers should not be zero: those that another member fills."""
        own = tables[tensor, member]
        found = np.zeros(len(own), bool)
        for other in range(len(self.series.members)):
            table = tables.get((tensor, other))
            if other != member and table is not None and len(table) == len(own):
                found |= table["squares"] > 0.0
        return found

    def _suspicious(
        self, tables: Mapping[tuple[int, int], np.ndarray], judged: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        """Those with a norm far from the median one, looked for in many tables of one length at a time."""
        lengths: dict[int, list[tuple[int, int]]] = {}
        for key in judged:
            lengths.setdefault(len(tables[key]), []).append(key)
        for length, keys in lengths.items():
            size = max(BATCH // length, 1)
            for batch in (keys[start : start + size] for start in range(0, len(keys), size)):
                norms = np.sqrt(np.stack([tables[key]["squares"] for key in batch]))
                middle, least, most = np.median(norms, axis=1), norms.min(axis=1), norms.max(axis=1)
                far = (
                    (least == 0.0)
                    | (least < self.limits.dead_ratio * middle)
                    | (most > self.limits.row_factor * middle)
                )
                yield from (batch[place] for place in np.flatnonzero(far).tolist())

    @cached_property
    def judged(self) -> dict[str, list[tuple[int, int]]]:
        """By axis, of which tensors, in which members, rows or columns are long enough to be judged."""
        details, sizes = self.series.measured.details, np.where(self.telling, self.series.sizes, -1).tolist()
        return {
            axis: [(t, member) for t, member in sorted(tables) if sizes[t][member] >= SHORTEST * len(tables[t, member])]
            for axis, tables in (("row", details.rows), ("column", details.columns))
        }

    @cached_property
    def telling(self) -> np.ndarray:
        """Which tensors have rows and columns that should not be dead."""
        found: np.ndarray = (self.weights & self.wide & ~self.quiet) | (self.integers & ~self.empty)
        return found

    def without_rows(self) -> list[int]:
        """Tensors whose rows were not judged in some member: too many of them, or too short ones."""
        missed = self.telling.copy()
        for tensor, member in self.judged["row"]:
            missed[tensor, member] = False
        return [int(tensor) for tensor in np.flatnonzero(missed.any(axis=1))]

    def _rows(self, tensor: int, member: int, table: np.ndarray) -> Iterator[Oddity]:
        known = table["finite"] > 0
        norms = np.where(table["absmax"] > 0.0, np.sqrt(table["squares"]), 0.0)
        yield from self._dead(tensor, member, norms, known, "row")
        yield from self._exploding(tensor, member, norms, known)

    def _dead(self, tensor: int, member: int, norms: np.ndarray, known: np.ndarray, axis: str) -> Iterator[Oddity]:
        median = float(np.median(norms[known])) if known.any() else 0.0
        dead = np.flatnonzero(known & ((norms == 0.0) | (norms < self.limits.dead_ratio * median)))
        if not dead.size or len(norms) < 2:
            return
        share, least = dead.size / len(norms), float(norms[dead].min()) / median if median else 0.0
        note = f"{dead.size:,} of {len(norms):,} {axis}s, the first {dead[0]}; intended where the model was pruned"
        many = share > self.limits.dead_share
        severity: Severity = "high" if many else "medium"
        if axis == "row" and self.roles[tensor] in ("embed", "head"):  # padding, and tokens that no text has
            severity = "medium" if many and dead.size > 1 else "low"
        option, value = ("dead_share", share) if many else ("dead_ratio", least)
        rule, place = f"dead-{axis}s", int(dead[0])
        yield Oddity(rule, severity, tensor, member, value, option, note, axis, place, int(dead.size))

    def _exploding(self, tensor: int, member: int, norms: np.ndarray, known: np.ndarray) -> Iterator[Oddity]:
        median = float(np.median(norms[known])) if known.any() else 0.0
        if not median:
            return
        far = known & (norms > self.limits.row_factor * median)
        if not far.any():
            return
        scores = np.zeros(norms.shape)
        scores[known] = robust_z(norms[known])
        odd = far & (scores > self.limits.outlier_z)
        if odd.any():
            place = int(np.argmax(np.where(odd, norms, -np.inf)))
            severity: Severity = "low" if self.roles[tensor] in ("embed", "head") else "medium"
            number, value = int(odd.sum()), float(norms[place]) / median
            note = f"{number:,} of {len(norms):,} rows, the longest {place}, robust z {scores[place]:.3g}"
            yield Oddity("exploding-norm", severity, tensor, member, value, "row_factor", note, "row", place, number)

    @cached_property
    def stacks(self) -> list[list[int]]:
        """The same matrix of every block, for each."""
        found: dict[str, list[int]] = {}
        for tensor, name in enumerate(self.series.tensors):
            if self.wide[tensor].any() and not self.quiet[tensor, 0]:
                found.setdefault(in_every_block(name), []).append(tensor)
        return [tensors for tensors in found.values() if len(tensors) >= FEWEST_BLOCKS]

    @cached_property
    def _rms(self) -> np.ndarray:
        with np.errstate(all="ignore"):
            found = np.sqrt(self.series.norms2 / self.moments["finite"])
        return np.where(self.weights & self.wide & np.isfinite(found), found, 0.0)

    def _table(self, of: Callable[[Tensor], bool]) -> np.ndarray:
        rows = [[one is not None and of(one) for one in a.tensors] for a in self.series.measured.comparison.aligned]
        return np.array(rows, bool).reshape(self.series.read.shape)


def _places(odd: np.ndarray) -> Iterator[tuple[int, int]]:
    rows, members = np.nonzero(odd)
    yield from zip(rows.tolist(), members.tolist(), strict=True)
