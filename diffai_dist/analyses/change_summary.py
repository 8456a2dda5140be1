"""One screen: how much changed, by how much, where most, and what should not be overlooked."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffai_dist.analyses.base import Kind, threshold
from diffai_dist.analyses.moves import Moves, moves_of
from diffai_dist.analyses.regimes import regime
from diffai_dist.analyses.roles import role
from diffai_dist.analyses.sort_by_change import sort_by_change
from diffai_dist.analyses.sums import (
    LEFT_OUT,
    Shift,
    cosine_distance,
    exact,
    grouped,
    left_out,
    rolled_up,
    share,
    shifts_of,
)
from diffai_dist.records import SEVERITIES, AnalysisRecord, Finding, Measurements, Severity, Side, Status, TensorRecord

STATUSES: tuple[Status, ...] = ("changed", "identical", "added", "removed", "incomparable", "failed")


@dataclass(frozen=True)
class ChangeSummary:
    """Counts, size of the whole change, top movers, share by role, and findings, on one screen."""

    name: ClassVar[str] = "change_summary"
    flag: ClassVar[str] = "--change-summary"
    kind: ClassVar[Kind] = "2"
    partials: ClassVar[tuple[str, ...]] = ()
    in_all: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        **{status: f"tensors that are {status}" for status in STATUSES},
        "renamed": "compared tensors that have another name in the candidate, or are parts of others there",
        "within_epsilon": "identical tensors that are so by --epsilon alone",
        "rel_l2": "sqrt(sum d^2) / sqrt(sum a^2) over all compared tensors",
        "cosine_distance": "1 - cos between all values of both sides, as two vectors",
        "elements": "elements compared value by value",
        "elements_changed": "those with another value",
        "elements_changed_fraction": "elements_changed / elements",
        **LEFT_OUT,
        "regime": "the kind of training that this looks like, as --transfer-learning-analysis defines it; or null",
        "findings": "findings of this analysis by severity",
        "coverage": "tensors, elements and bytes, those compared, and reasons for the others",
        "evidence": "what the regime rests on",
        "dtype_changes": "tensors by dtype before and after, where that changed",
        "top": "the tensors that moved most, by rel_l2",
        "roles": "share of the squared change by role, largest first",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "non-finite-appeared": "a tensor has more NaN and infinities than before: critical; left to anomaly_detection"
        " where that answers, as in every sweep",
        "tensors-incomparable": "tensors of other shapes, or without common values: medium; info where all of them are "
        "embeddings and heads with more rows than before",
        "tensors-removed": "tensors that the candidate lacks: info",
        "tensors-added": "tensors that the baseline lacks: info",
        "dtype-changed": "tensors of another dtype: info",
        "checkpoint-identical": "all bits of all tensors are equal: info",
    }
    sources: ClassVar[tuple[str, ...]] = ("names, shapes, dtypes, bits and counts: exact; severities: judgement",)

    top: int = threshold(10, "tensors listed")

    def __call__(
        self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord], non_finite: bool = True
    ) -> AnalysisRecord:
        """Counts of tensors, sums over all elements that were compared, and the coverage behind them.

        Without `non_finite` there are no findings of NaN and infinities: another analysis tells them.
        """
        from diffai_dist.judging import coverage  # brings NumPy, which --help does not need

        rows = shifts_of(measured, pair_index, records)
        whole = rolled_up(rows)
        counts = Counter(record.status for record in records)
        movers = sort_by_change(record for record in records if record.status == "changed")[: self.top]
        covered = coverage(measured.comparison, measured.comparison.pairs[pair_index], records)
        moves = moves_of(measured, pair_index, records)
        label, evidence = regime(moves)
        findings = (*(_spoiled(records) if non_finite else ()), *_findings(records, moves))
        severities = Counter(finding.severity for finding in findings)
        result: dict[str, Any] = {
            **{status: counts[status] for status in STATUSES},
            "renamed": sum(record.candidate_name is not None for record in records),
            "within_epsilon": sum(record.within_epsilon is not None for record in records),
            "rel_l2": whole["rel_l2"],
            "cosine_distance": cosine_distance(rows),
            "elements": whole["elements"],
            "elements_changed": sum(row.changed for row in rows),
            "elements_changed_fraction": whole["changed_fraction"],
            **left_out(measured, pair_index, records),
            "regime": label,
            "findings": {severity: severities[severity] for severity in SEVERITIES},
            "coverage": {**dataclasses.asdict(covered), "not_compared": dict(covered.not_compared)},
            "evidence": evidence,
            "dtype_changes": _dtype_changes(records),
            "top": [_mover(record) for record in movers],
            "roles": _roles(rows),
        }
        return AnalysisRecord(self.name, result, findings)


def _mover(record: TensorRecord) -> dict[str, Any]:
    change = record.change
    keys = ("rel_l2", "l2", "max_abs", "changed_fraction")
    return {"tensor": record.name, **{key: getattr(change, key) if change else None for key in keys}}


def _roles(rows: Sequence[Shift]) -> list[dict[str, Any]]:
    """Share of the squared displacement by role, largest first."""
    whole = exact(row.d2 for row in rows)
    groups = grouped(rows, role)
    parts = {name: exact(row.d2 for row in group) for name, group in groups.items()}
    ordered = sorted(
        parts, key=lambda name: (parts[name] is not None, -(parts[name] or 0), name)
    )  # infinite ones first
    return [{"role": name, "share": share(parts[name], whole), "tensors": len(groups[name])} for name in ordered]


def _dtype_changes(records: Sequence[TensorRecord]) -> list[dict[str, Any]]:
    sides = [(one.baseline, one.candidate) for one in records if one.baseline and one.candidate]
    pairs = Counter((a.dtype, b.dtype) for a, b in sides if a and b and a.dtype != b.dtype)
    return [{"baseline": a, "candidate": b, "tensors": number} for (a, b), number in sorted(pairs.items())]


def _findings(records: Sequence[TensorRecord], moves: Moves) -> Iterator[Finding]:
    """All but non-finite values, as one count per rule."""
    counts = Counter(record.status for record in records)
    torn = counts["incomparable"] > len(moves.grown)
    counted: tuple[tuple[Status, Severity], ...] = (
        ("incomparable", "medium" if torn else "info"),
        ("removed", "info"),
        ("added", "info"),
    )
    for status, severity in counted:
        if counts[status]:
            yield Finding(f"tensors-{status}", severity, None, counts[status], 0, "names and shapes")
    if retyped := sum(one["tensors"] for one in _dtype_changes(records)):
        yield Finding("dtype-changed", "info", None, retyped, 0, "headers")
    if records and all(record.status == "identical" and record.within_epsilon is None for record in records):
        yield Finding("checkpoint-identical", "info", None, len(records), None, "bits of all tensors")


def _spoiled(records: Sequence[TensorRecord]) -> Iterator[Finding]:
    """Non-finite values, tensor by tensor."""
    yield from (finding for record in records if (finding := _non_finite(record)))


def _non_finite(record: TensorRecord) -> Finding | None:
    before, after = _count_non_finite(record.baseline), _count_non_finite(record.candidate)
    if after <= before:
        return None
    return Finding("non-finite-appeared", "critical", record.name, after, before, "counts of NaN and infinities")


def _count_non_finite(side: Side | None) -> int:
    return sum(int(value or 0) for value in (side.nans, side.posinfs, side.neginfs)) if side else 0
