"""Whether two runs gave the same weights: exactly, within some units in the last place, or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.bounding import MOST
from diffai_dist.analyses.grids import DIGITS
from diffai_dist.analyses.staleness_check import is_state
from diffai_dist.dtypes import Family
from diffai_dist.records import AnalysisRecord, Finding, Measurements, Severity, TensorRecord
from diffai_dist.storage import redact

if TYPE_CHECKING:
    import numpy as np

_FEWEST_DIGITS = 5  # significant bits; with fewer, a few steps lead from any value to any other
_LIMITS = (1, 2, 4, 8, 16, 256, 65536)  # of the counts in BITWISE: elements at least so far apart
NOT_READ = "some tensors could not be read"
NOTHING = "no tensor could be compared"
LIMITS = "equal weights: outputs may still differ by runtime, kernels and configuration"


@dataclass(frozen=True)
class ExperimentReproducibility:
    """Whether a run was reproduced: share of equal bits, distances in units in the last place, first difference.

    The verdict is `exact` where all bits of all tensors are equal, `within k ulps` where k, the largest distance, is at
    most `ulps` and no more than 2^(mantissa bits - 4), 8 in BF16, `within tolerance` where rel_l2 of each tensor is at
    most `tolerance`, else `different`. A tensor that one side lacks, or has in another shape or dtype, makes it
    different, as does one that is not finite where the other is, and any difference of integers or truth values; floats
    of 8 bits and less have too few values for distances to tell. Distances count the numbers that the dtype can hold
    between two values, +0 and -0 being one.
    """

    name: ClassVar[str] = "experiment_reproducibility"
    flag: ClassVar[str] = "--experiment-reproducibility"
    kind: ClassVar[Kind] = "2"
    partials: ClassVar[tuple[str, ...]] = ("bitwise",)
    in_all: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        "verdict": "exact, within k ulps, within tolerance or different; null, with a reason, where that is not known",
        "bit_identical_fraction": "elements with equal bits / elements compared, bytes where there is no decoder",
        "close_fraction": "elements with |b - a| <= 2^-10 max(|a|, |b|) / elements finite on both sides",
        "max_ulps": "largest distance in units in the last place, of equal dtypes",
        "largest_rel_l2": "largest |b - a| / |a| of a tensor",
        "tensors_differing": "tensors with any difference, those that one side lacks among them",
        "only_in": "`optimizer state` or `metadata` where nothing else differs",
        "reason": "why there is no verdict; null where there is one",
        "limits": "what `exact` does not say; null for another verdict",
        "first_difference": "the first tensor that differs, in natural order of names: its first element with other "
        "bits, and where that lies in the candidate's object",
        "metadata": f"keys of the metadata that differ, at most {MOST}",
        "ulps": "elements by distance, over tensors of equal dtypes; not_finite are those that are not on both sides",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "not-reproduced": "where `expected` is set: the verdict, which is the value, is different or not known: high; "
        "it is within ulps or tolerance: info"
    }
    sources: ClassVar[tuple[str, ...]] = (
        "bits and distances: exact; the limits of verdicts: judgement",
        "2^(mantissa bits - 4) units in the last place are at most 1/16 of a value: derived; that this is close: "
        "judgement",
    )

    ulps: int = threshold(16, "largest distance in units in the last place that counts as reproduced within ulps")
    tolerance: float = threshold(1e-5, "largest rel_l2 of a tensor that counts as reproduced within tolerance")
    expected: bool = threshold(False, "whether the candidate is said to reproduce the baseline")

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """Counts over all tensors, and the place of the first difference."""
        differing = [record for record in records if _differs(record)]
        seen = _seen(measured, pair_index, records, self.ulps)
        verdict, reason = self._verdict(records, differing, seen)
        metadata = _metadata(measured, pair_index)
        moves = [one.change.rel_l2 for one in records if one.change and one.change.rel_l2 is not None]
        result: dict[str, Any] = {
            "verdict": verdict,
            "bit_identical_fraction": 1 - seen.differing / seen.elements if seen.elements else None,
            "close_fraction": 1 - seen.visible / seen.both if seen.both else None,
            "max_ulps": seen.furthest,
            "largest_rel_l2": max(moves, default=None),
            "tensors_differing": len(differing),
            "only_in": _only_in(differing, metadata) if verdict else None,
            "reason": reason,
            "limits": LIMITS if verdict == "exact" else None,
            "first_difference": _place(measured, pair_index, differing[0].name) if differing else None,
            "metadata": metadata[:MOST],
            "ulps": [{"distance": distance, "elements": number} for distance, number in seen.distances.items()],
        }
        return AnalysisRecord(self.name, result, tuple(self._findings(verdict, reason, differing)))

    def _verdict(
        self, records: Sequence[TensorRecord], differing: Sequence[TensorRecord], seen: _Seen
    ) -> tuple[str | None, str | None]:
        found = self._of_differences(differing, seen)
        if found != "different" and any(record.status == "failed" for record in records):
            return None, NOT_READ
        return (found, None) if records else (None, NOTHING)

    def _of_differences(self, differing: Sequence[TensorRecord], seen: _Seen) -> str:
        if not differing:
            return "exact"
        if seen.torn or seen.whole_numbers or any(record.change is None for record in differing):
            return "different"
        if seen.furthest is not None and not seen.beyond and not seen.without_ulps:
            return f"within {seen.furthest} ulps"
        moves = [record.change.rel_l2 for record in differing if record.change]
        close = all(move is not None and move <= self.tolerance for move in moves)
        return "within tolerance" if close else "different"

    def _findings(
        self, verdict: str | None, reason: str | None, differing: Sequence[TensorRecord]
    ) -> Iterator[Finding]:
        if self.expected and verdict != "exact":
            severity: Severity = "high" if verdict in (None, "different") else "info"
            tensor, value = differing[0].name if differing else None, verdict or f"not known: {reason}"
            yield finding(self, "not-reproduced", severity, tensor, value, "expected")


def _differs(record: TensorRecord) -> bool:
    """Whether bits are not the same, or a side is missing; --epsilon excuses nothing here."""
    return record.status not in ("identical", "failed") or record.within_epsilon is not None


@dataclass(frozen=True, slots=True)
class _Seen:
    """Counts over the tensors that were compared."""

    elements: int
    differing: int  # in bits; all of those whose dtypes differ
    both: int  # finite on both sides, of real dtypes
    visible: int
    torn: bool  # whether dtypes differ, or an element is finite on one side alone
    whole_numbers: bool  # whether integers or truth values differ
    without_ulps: bool  # whether some that differ have no units in the last place
    beyond: bool  # whether some are further apart than their dtypes allow
    furthest: int | None
    distances: dict[str, int]


def _seen(measured: Measurements, pair_index: int, records: Sequence[TensorRecord], ulps: int) -> _Seen:
    import numpy as np

    chosen, same, real, dtypes = _compared(measured, pair_index, records)
    shifts = measured.shifts[chosen, pair_index]
    bitwise = measured.details.bitwise
    bits = np.where(same, shifts["bits"], shifts["count"])
    torn = bool((~same).any() or (shifts["changed_nonfinite"] > 0).any())
    floats = np.array([dtype in DIGITS for dtype in dtypes], bool)
    whole_numbers = bool((same & real & ~floats & (bits > 0)).any())
    total = int(shifts["count"].sum()), int(bits.sum())
    if bitwise is None:
        return _Seen(*total, 0, 0, torn, whole_numbers, True, False, None, {})
    rows = bitwise[chosen, pair_index]
    counted, both = rows["count"] > 0, int(shifts["both"][real].sum())
    furthest = int(rows["furthest"][counted].max()) if counted.any() else None
    finite = int(shifts["both"][counted].sum())
    distances = _distances(rows[counted], finite, int(rows["count"].sum()) - finite)
    without = bool((~counted & (bits > 0)).any())
    allowed = np.array([_allowed(dtype, ulps) for dtype in dtypes], np.uint64)
    beyond = bool((counted & (rows["furthest"] > allowed)).any())
    visible = int(rows["visible"][real].sum())
    return _Seen(*total, both, visible, torn, whole_numbers, without, beyond, furthest, distances)


def _allowed(dtype: str, ulps: int) -> int:
    """Units in the last place that count as reproduced: a sixteenth of a value at most, none of coarse dtypes.

    >>> [_allowed(dtype, 16) for dtype in ("F32", "F16", "BF16", "F8_E4M3", "F4", "I8")]
    [16, 16, 8, 0, 0, 0]
    """
    digits = DIGITS.get(dtype, 0)
    return min(ulps, 2 ** (digits - 5)) if digits >= _FEWEST_DIGITS else 0


def _compared(
    measured: Measurements, pair_index: int, records: Sequence[TensorRecord]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Indices of tensors with numbers; whether dtypes are equal, whether both are real; candidates' decoders."""
    import numpy as np

    pair = measured.comparison.pairs[pair_index]
    names = {record.name for record in records if record.change is not None}
    chosen, same, real, dtypes = [], [], [], []
    for i, aligned in enumerate(measured.comparison.aligned):
        before, after = aligned.tensors[pair.baseline], aligned.tensors[pair.candidate]
        if aligned.name in names and before and after:
            chosen.append(i)
            same.append(before.dtype == after.dtype)
            dtypes.append(after.decoder.name)
            real.append(max(before.decoder.family, after.decoder.family) < Family.COMPLEX)
    return np.array(chosen, np.int64), np.array(same, bool), np.array(real, bool), dtypes


def _distances(rows: np.ndarray, finite: int, not_finite: int) -> dict[str, int]:
    """Elements by distance, from counts of those that are at least so far apart."""
    least = [finite, *(int(rows[f"ulps{limit}"].sum()) for limit in _LIMITS), 0]
    names = ["0", *map(_between, _LIMITS, [*_LIMITS[1:], None])]
    found = {name: more - less for name, more, less in zip(names, least, least[1:], strict=False)}
    return {**found, "not_finite": not_finite}


def _between(first: int, following: int | None) -> str:
    if following is None:
        return f"{first} and more"
    return str(first) if following == first + 1 else f"{first}-{following - 1}"


def _place(measured: Measurements, pair_index: int, name: str) -> dict[str, Any]:
    """Where the first other bits of a tensor lie; nulls where a side is missing, or bits were not measured."""
    index = next(i for i, one in enumerate(measured.comparison.aligned) if one.name == name)
    tensor = measured.comparison.aligned[index].tensors[measured.comparison.pairs[pair_index].candidate]
    bitwise = measured.details.bitwise
    element = -1 if bitwise is None else int(bitwise["first"][index, pair_index])
    if tensor is None or element < 0:
        return {"tensor": name, "element": None, "object": None, "byte_offset": None}
    url, offset = tensor.place(element) or (None, None)
    return {"tensor": name, "element": element, "object": url and redact(url), "byte_offset": offset}


def _metadata(measured: Measurements, pair_index: int) -> list[str]:
    """Keys of the checkpoints' metadata with other values, or on one side alone."""
    pair, members = measured.comparison.pairs[pair_index], measured.comparison.members
    before, after = members[pair.baseline].metadata, members[pair.candidate].metadata
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _only_in(differing: Sequence[TensorRecord], metadata: Sequence[str]) -> str | None:
    if not differing:
        return "metadata" if metadata else None
    return "optimizer state" if all(is_state(record.name) for record in differing) else None
