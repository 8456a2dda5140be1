"""How many weights an update really changed: in bits, visibly, in sign, in which rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.bounding import MOST
from diffai_dist.analyses.grids import DIGITS
from diffai_dist.analyses.roles import role
from diffai_dist.dtypes import Family
from diffai_dist.records import AnalysisRecord, Finding, Measurements, TensorRecord

NO_BITS = "bits were not measured"


@dataclass(frozen=True, slots=True)
class _Touched:
    """Counts of one tensor, or of several. Each is over its own elements: `of_bits` those whose bits tell."""

    elements: int = 0
    bits: int = 0
    flips: int = 0
    both: int = 0
    visible: int = 0
    of_floats: int = 0
    exponents: int = 0
    rows: int = 0
    rows_touched: int = 0


@dataclass(frozen=True)
class UpdateSparsity:
    """Which share of the weights changed, and how much of that is more than rounding would show.

    Bits count where dtypes are equal, values where they are not. A change is visible where |b - a| is more than 2^-10
    of the larger of |a| and |b|. An update below half a unit in the last place vanishes, in BF16 2^-9 to 2^-8 of a
    weight, so that small learning rates make sparse updates.
    """

    name: ClassVar[str] = "update_sparsity"
    flag: ClassVar[str] = "--update-sparsity"
    kind: ClassVar[Kind] = "2"
    partials: ClassVar[tuple[str, ...]] = ("bitwise", "rows")
    in_all: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        "bits_changed_fraction": "elements whose bits, or values where dtypes differ, changed / elements",
        "visible_fraction": "elements with |b - a| > 2^-10 max(|a|, |b|) / elements finite on both sides",
        "sign_flip_fraction": "elements negative on one side and positive on the other / elements",
        "exponent_changed_fraction": "elements with another exponent / elements of equal float dtypes",
        "rows_touched_fraction": "rows with a changed value / rows, of tensors of two axes and more",
        "tensors": "tensors compared value by value",
        "unchanged": "those of them in which nothing changed",
        "elements": "their elements",
        "reason": "why visible and exponent_changed are null; null where they are not",
        "roles": "the same by role",
        "sparsest": f"tensors that changed in part, those that changed least first, at most {MOST}",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "nothing-changed": "no element of any tensor changed: info; critical where trained is set",
        "few-changed": "less than `few` of the elements changed, where trained is set: low",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "reinforcement learning changes 5 to 30 % of parameters: 2505.11711, published",
        "a relative limit of visibility that BF16 can hold: the idea of 2511.08567, published; 2^-10: judgement",
        "BF16 drops updates below 2^-9 to 2^-8 of a weight: derived",
    )

    trained: bool = threshold(False, "whether the candidate is said to have been trained")
    few: float = threshold(0.01, "share of changed elements below which a training is odd")

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """Counts of all tensors, by role, and of those that changed least."""
        counted = list(_counted(measured, pair_index, records))
        whole = _sum([one for _, one in counted])
        roles: dict[str, list[_Touched]] = {}
        for name, one in counted:
            roles.setdefault(role(name), []).append(one)
        sparse = [(name, one) for name, one in counted if 0 < one.bits < one.elements]
        sparse.sort(key=lambda row: (row[1].bits / row[1].elements, row[0]))
        result: dict[str, Any] = {
            **_fractions(whole),
            "tensors": len(counted),
            "unchanged": sum(not one.bits for _, one in counted),
            "elements": whole.elements,
            "reason": NO_BITS if measured.details.bitwise is None else None,
            "roles": [
                {"role": kind, "tensors": len(group), **_fractions(_sum(group))} for kind, group in roles.items()
            ],
            "sparsest": [{"tensor": name, **_fractions(one)} for name, one in sparse[:MOST]],
        }
        return AnalysisRecord(self.name, result, tuple(self._findings(whole)))

    def _findings(self, whole: _Touched) -> Iterator[Finding]:
        if not whole.elements:
            return
        if not whole.bits:
            yield finding(self, "nothing-changed", "critical" if self.trained else "info", None, 0, "trained")
        elif self.trained and whole.bits < self.few * whole.elements:
            yield finding(self, "few-changed", "low", None, whole.bits / whole.elements, "few")


def _counted(
    measured: Measurements, pair_index: int, records: Sequence[TensorRecord]
) -> Iterator[tuple[str, _Touched]]:
    pair, details = measured.comparison.pairs[pair_index], measured.details
    compared = {record.name for record in records if record.change is not None}
    shifts = measured.shifts[:, pair_index]
    columns = {key: shifts[key].tolist() for key in ("count", "both", "bits", "changed", "flips")}
    known = {} if details.bitwise is None else {key: details.bitwise[key][:, pair_index].tolist() for key in _BITWISE}
    for i, aligned in enumerate(measured.comparison.aligned):
        before, after = aligned.tensors[pair.baseline], aligned.tensors[pair.candidate]
        if aligned.name not in compared or before is None or after is None or before.decoder.family == Family.BYTES:
            continue
        count, both, bits, changed, flips = (columns[key][i] for key in ("count", "both", "bits", "changed", "flips"))
        same = before.dtype == after.dtype
        seen = {"both": both, "visible": known["visible"][i]} if known and _is_real(before, after) else {}
        if known and same and before.decoder.name in DIGITS:
            seen |= {"of_floats": known["count"][i], "exponents": known["exponents"][i]}
        rows = details.row_shifts.get((i, pair_index)) if len(after.shape) > 1 else None
        if rows is not None:
            seen |= {"rows": len(rows), "rows_touched": int((rows["changed"] > 0).sum())}
        yield aligned.name, _Touched(elements=count, bits=bits if same else changed, flips=flips, **seen)


_BITWISE = ("count", "visible", "exponents")


def _is_real(*tensors: Any) -> bool:
    return all(one.decoder.family < Family.COMPLEX for one in tensors)


def _sum(parts: Sequence[_Touched]) -> _Touched:
    keys = _Touched.__slots__
    return _Touched(*(sum(getattr(one, key) for one in parts) for key in keys))


def _fractions(one: _Touched) -> dict[str, float | None]:
    return {
        "bits_changed_fraction": _share(one.bits, one.elements),
        "visible_fraction": _share(one.visible, one.both),
        "sign_flip_fraction": _share(one.flips, one.elements),
        "exponent_changed_fraction": _share(one.exponents, one.of_floats),
        "rows_touched_fraction": _share(one.rows_touched, one.rows),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
