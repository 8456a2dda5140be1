"""From merged partials to records: what is the same, what changed, what could not be compared and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from diffai_dist.comparison import Aligned, Comparison, Pair
from diffai_dist.dtypes import Family
from diffai_dist.errors import Failure
from diffai_dist.records import Change, Coverage, Measurements, Side, Status, TensorRecord
from diffai_dist.statistics import change_columns, side_columns

WHY_NOT = {
    "added": "only in the candidate",
    "removed": "only in the baseline",
    "incomparable": "shapes or dtypes without common values",
    "failed": "could not be read",
}


def tensor_records(measured: Measurements, pair_index: int, epsilon: float | None = None) -> tuple[TensorRecord, ...]:
    """One record per aligned tensor that either side of the pair has, or should have."""
    pair = measured.comparison.pairs[pair_index]
    aligned = measured.comparison.aligned
    sides = [_sides(measured, member) for member in (pair.baseline, pair.candidate)]
    changes = _changes(measured, pair, pair_index)
    shifts = measured.shifts[:, pair_index]
    quiet = (shifts["changed_nonfinite"] == 0).tolist()
    bits = shifts["bits"].tolist()
    records = []
    for i, tensor in enumerate(aligned):
        failure = measured.failures.get(i) or _failed_side(tensor, pair)
        if failure is None and tensor.tensors[pair.baseline] is None and tensor.tensors[pair.candidate] is None:
            continue
        record = _record(tensor, pair, failure, [column[i] for column in sides], changes.get(i), bits[i])
        records.append(_apply_epsilon(record, epsilon) if epsilon is not None and quiet[i] else record)
    return tuple(records)


def _sides(measured: Measurements, member: int) -> list[tuple[Side, str | None] | None]:
    tensors = [aligned.tensors[member] for aligned in measured.comparison.aligned]
    present = [i for i, tensor in enumerate(tensors) if tensor is not None]
    chosen = [tensor for tensor in tensors if tensor is not None]
    columns = side_columns(measured.moments[present, member], [tensor.decoder for tensor in chosen])
    reasons = columns.pop("reason")
    names = [field.name for field in dataclasses.fields(Side)][2:]
    rows = zip(*(columns[name] for name in names), strict=True)
    found: list[tuple[Side, str | None] | None] = [None] * len(tensors)
    for i, tensor, row, reason in zip(present, chosen, rows, reasons, strict=True):
        found[i] = Side(tensor.dtype, tensor.shape, *row), _name_dtype(reason, tensor.dtype)
    return found


def _changes(measured: Measurements, pair: Pair, pair_index: int) -> dict[int, tuple[Change, str | None]]:
    aligned = measured.comparison.aligned
    both = [
        i
        for i, one in enumerate(aligned)
        if one.tensors[pair.baseline] and one.tensors[pair.candidate] and not one.incomparable(pair)
    ]
    decoders = [
        [one.decoder for i in both if (one := aligned[i].tensors[member])] for member in (pair.baseline, pair.candidate)
    ]
    columns = change_columns(measured.shifts[both, pair_index], *decoders)
    reasons = columns.pop("reason")
    rows = zip(*(columns[field.name] for field in dataclasses.fields(Change)), strict=True)
    return {i: (Change(*row), reason) for i, row, reason in zip(both, rows, reasons, strict=True)}


def _name_dtype(reason: str | None, dtype: str) -> str | None:
    return reason.replace("the dtype has", f"dtype {dtype} has") if reason else None


def _failed_side(tensor: Aligned, pair: Pair) -> Failure | None:
    return tensor.unreadable[pair.baseline] or tensor.unreadable[pair.candidate]


def _record(
    tensor: Aligned,
    pair: Pair,
    failure: Failure | None,
    sides: Sequence[tuple[Side, str | None] | None],
    change: tuple[Change, str | None] | None,
    bits: int,
) -> TensorRecord:
    baseline, candidate = (side[0] if side else None for side in sides)
    if failure is not None:
        before = Side(baseline.dtype, baseline.shape) if baseline else None
        after = Side(candidate.dtype, candidate.shape) if candidate else None
        return TensorRecord(tensor.name, "failed", before, after, None, failure.sentence())
    reason = "; ".join(dict.fromkeys(side[1] for side in sides if side and side[1])) or None
    if baseline is None or candidate is None:
        return TensorRecord(tensor.name, "added" if baseline is None else "removed", baseline, candidate, None, reason)
    if change is None:
        return TensorRecord(tensor.name, "incomparable", baseline, candidate, None, tensor.incomparable(pair))
    status: Status = "changed" if bits or baseline.dtype != candidate.dtype else "identical"
    return TensorRecord(tensor.name, status, baseline, candidate, change[0], reason or change[1])


def _apply_epsilon(record: TensorRecord, epsilon: float) -> TensorRecord:
    largest = record.change.max_abs if record.change else None
    if record.status != "changed" or largest is None or largest > epsilon:
        return record
    return dataclasses.replace(record, status="identical", within_epsilon=epsilon)


def coverage(comparison: Comparison, pair: Pair, records: Sequence[TensorRecord]) -> Coverage:
    """Sum up what the records compare; elements are those of the larger side."""
    by_name = {record.name: record for record in records}
    total = np.zeros(3, np.int64)
    compared = np.zeros(3, np.int64)
    byte_by_byte, reasons = 0, dict[str, int]()
    for aligned in comparison.aligned:
        record = by_name.get(aligned.name)
        if record is None:
            continue
        tensors = [one for one in (aligned.tensors[pair.baseline], aligned.tensors[pair.candidate]) if one]
        size = (1, max((one.elements for one in tensors), default=0), sum(one.nbytes for one in tensors))
        total += size
        if record.status in ("changed", "identical"):
            compared += size
            byte_by_byte += tensors[0].decoder.family == Family.BYTES
        else:
            reason = WHY_NOT[record.status]
            reasons[reason] = reasons.get(reason, 0) + 1
    if comparison.left_out:
        reasons["left out by the selection"] = comparison.left_out
    return Coverage(
        int(total[0]), int(compared[0]), int(total[1]), int(compared[1]), int(total[2]), int(compared[2]),
        int(byte_by_byte), dict(sorted(reasons.items())),
    )  # fmt: skip
