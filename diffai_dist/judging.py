"""From merged partials to records: what is the same, what changed, what could not be compared and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from diffai_dist.comparison import Aligned, Comparison, Pair
from diffai_dist.dtypes import Family
from diffai_dist.errors import Failure
from diffai_dist.gram import gram_changes, squared_norms
from diffai_dist.partials import GRAM
from diffai_dist.records import Change, Coverage, ErrorBound, Measurements, Side, Status, TensorRecord
from diffai_dist.statistics import change_columns, side_columns

WHY_NOT = {
    "added": "only in the candidate",
    "removed": "only in the baseline",
    "incomparable": "shapes or dtypes without common values",
    "failed": "could not be read",
}
ONLY_PRODUCTS = "from the Gram of the group; --elementwise measures the rest"


@dataclass(frozen=True, slots=True)
class _Moved:
    """What was measured between the two sides of one tensor."""

    change: Change
    reason: str | None
    differs: bool  # in bits; only meaningful for equal dtypes
    products: bool = False  # whether it comes from the Gram
    bound: ErrorBound | None = None  # where it does, and there is a number


def tensor_records(measured: Measurements, pair_index: int, epsilon: float | None = None) -> tuple[TensorRecord, ...]:
    """One record per aligned tensor that either side of the pair has, or should have."""
    pair = measured.comparison.pairs[pair_index]
    sides = [_sides(measured, member) for member in (pair.baseline, pair.candidate)]
    moved = _moved(measured, pair, pair_index)
    quiet = (measured.shifts["changed_nonfinite"][:, pair_index] == 0).tolist()
    records = []
    for i, tensor in enumerate(measured.comparison.aligned):
        failure = measured.failure(i, pair) or _failed_side(tensor, pair) or _failed_anchor(measured, i, moved.get(i))
        if failure is None and tensor.tensors[pair.baseline] is None and tensor.tensors[pair.candidate] is None:
            continue
        record = _record(tensor, pair, failure, [column[i] for column in sides], moved.get(i))
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


def _moved(measured: Measurements, pair: Pair, pair_index: int) -> dict[int, _Moved]:
    both = [
        i
        for i, one in enumerate(measured.comparison.aligned)
        if one.tensors[pair.baseline] and one.tensors[pair.candidate] and not one.incomparable(pair)
    ]
    products = [i for i in both if comes_from_gram(measured, i, pair_index)]
    chosen = set(products)
    elements = [i for i in both if i not in chosen]
    found = dict(zip(elements, _by_elements(measured, elements, pair_index), strict=True))
    return found | dict(zip(products, _by_products(measured, products, pair), strict=True))


def comes_from_gram(measured: Measurements, tensor: int, pair_index: int) -> bool:
    """Whether the pair's numbers of that tensor come from the Gram, because it was not measured element by element."""
    if measured.grams is None or measured.comparison.elementwise or measured.shifts["count"][tensor, pair_index]:
        return False
    pair = measured.comparison.pairs[pair_index]
    return any(measured.moments["count"][tensor, member] > 0 for member in (pair.baseline, pair.candidate))


def _by_elements(measured: Measurements, tensors: Sequence[int], pair_index: int) -> Iterator[_Moved]:
    pair, aligned = measured.comparison.pairs[pair_index], measured.comparison.aligned
    shifts = measured.shifts[tensors, pair_index]
    decoders = [
        [one.decoder for i in tensors if (one := aligned[i].tensors[member])]
        for member in (pair.baseline, pair.candidate)
    ]
    columns = change_columns(shifts, *decoders)
    rows = zip(*(columns[field.name] for field in dataclasses.fields(Change)), strict=True)
    for row, reason, bits in zip(rows, columns["reason"], shifts["bits"].tolist(), strict=True):
        yield _Moved(Change(*row), reason, bits > 0)


def _by_products(measured: Measurements, tensors: Sequence[int], pair: Pair) -> Iterator[_Moved]:
    if not tensors or measured.grams is None:
        return
    grams = measured.grams[tensors]
    columns = gram_changes(grams, pair, squared_norms(grams, measured.moments[tensors], pair))
    unknown = [field.name for field in dataclasses.fields(Change) if field.name not in columns]
    differ = (grams[:, GRAM.index("differ"), pair.baseline, pair.candidate] > 0).tolist()
    for i, differs in enumerate(differ):
        known = {name: columns[name][i] for name in ("l2", "rel_l2", "cosine_distance")}
        error, angle, relative = (columns[name][i] for name in ("l2_error", "cosine_error", "rel_l2_error"))
        bound = None if error is None else ErrorBound(error, angle, relative)
        reason = _name_anchor(columns["reason"][i], measured.comparison) or ONLY_PRODUCTS
        yield _Moved(Change(**known, **dict.fromkeys(unknown)), reason, differs, True, bound)


def _name_dtype(reason: str | None, dtype: str) -> str | None:
    return reason.replace("the dtype has", f"dtype {dtype} has") if reason else None


def _name_anchor(reason: str | None, comparison: Comparison) -> str | None:
    if reason is None or comparison.anchor is None:
        return reason
    return reason.replace("the anchor;", f"the anchor {comparison.members[comparison.anchor].url};")


def _failed_side(tensor: Aligned, pair: Pair) -> Failure | None:
    return tensor.unreadable[pair.baseline] or tensor.unreadable[pair.candidate]


def _failed_anchor(measured: Measurements, tensor: int, moved: _Moved | None) -> Failure | None:
    """Products of differences from an anchor that was not read to its end mean nothing."""
    anchor = measured.comparison.anchor
    return None if moved is None or not moved.products or anchor is None else measured.failures.get((tensor, anchor))


def _record(
    tensor: Aligned,
    pair: Pair,
    failure: Failure | None,
    sides: Sequence[tuple[Side, str | None] | None],
    moved: _Moved | None,
) -> TensorRecord:
    baseline, candidate = (side[0] if side else None for side in sides)
    if failure is not None:
        before = Side(baseline.dtype, baseline.shape) if baseline else None
        after = Side(candidate.dtype, candidate.shape) if candidate else None
        return TensorRecord(tensor.name, "failed", before, after, None, failure.sentence())
    reason = "; ".join(dict.fromkeys(side[1] for side in sides if side and side[1])) or None
    if baseline is None or candidate is None:
        return TensorRecord(tensor.name, "added" if baseline is None else "removed", baseline, candidate, None, reason)
    found = tensor.tensors[pair.candidate]
    other = found.name if found and found.name != tensor.name else None
    if moved is None:
        why = tensor.incomparable(pair)
        return TensorRecord(tensor.name, "incomparable", baseline, candidate, None, why, candidate_name=other)
    status: Status = "changed" if moved.differs or baseline.dtype != candidate.dtype else "identical"
    reason = reason or moved.reason
    return TensorRecord(tensor.name, status, baseline, candidate, moved.change, reason, None, moved.bound, other)


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
