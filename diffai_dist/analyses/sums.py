"""Sums over tensors that do not depend on their order, and the ratios made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from diffai_dist.records import Measurements, TensorRecord


@dataclass(frozen=True, slots=True)
class Shift:
    """The sums of one compared tensor that roll up; fields as in partials.SHIFT, `elements` from its shape."""

    name: str
    elements: int
    count: int
    changed: int
    d2: float
    aa: float
    slope: float
    rest: float


def shifts_of(measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> list[Shift]:
    """One row for each tensor of the pair whose elements were compared, in the order of the comparison."""
    compared = {record.name for record in records if record.change is not None}
    baseline = measured.comparison.pairs[pair_index].baseline
    rows = measured.shifts[:, pair_index]
    columns = [rows[key].tolist() for key in ("count", "changed", "d2", "aa", "slope", "rest")]
    return [
        Shift(aligned.name, tensor.elements, *row)
        for aligned, *row in zip(measured.comparison.aligned, *columns, strict=True)
        if aligned.name in compared and (tensor := aligned.tensors[baseline]) is not None
    ]


def total(values: Iterable[float]) -> float:
    """The exactly rounded sum (Shewchuk), infinite where it overflows."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def ratio(part: float, whole: float) -> float | None:
    """part / whole; None where that is not a finite number."""
    share = part / whole if whole else math.nan
    return share if math.isfinite(share) else None


def root(square: float) -> float | None:
    """The square root; None where it is not a finite number."""
    return math.sqrt(square) if math.isfinite(square) else None


def rolled_up(rows: Sequence[Shift], d2: float) -> dict[str, Any]:
    """How far a group of tensors moved, `d2` being its sum of squared differences."""
    relative = ratio(d2, total(row.aa for row in rows))
    return {
        "rel_l2": None if relative is None else math.sqrt(relative),
        "changed_fraction": ratio(sum(row.changed for row in rows), sum(row.count for row in rows)),
        "l2": root(d2),
        "d2": d2 if math.isfinite(d2) else None,
        "tensors": len(rows),
        "elements": sum(row.elements for row in rows),
    }
