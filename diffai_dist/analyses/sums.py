"""Exact sums over tensors, which do not depend on their order, and the numbers made of them, rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from diffai_dist.dtypes import Family
from diffai_dist.records import Measurements, TensorRecord

LEFT_OUT = {"undecoded": "tensors compared as bytes, which are in no sum"}


@dataclass(frozen=True, slots=True)
class Shift:
    """The sums of one compared tensor that roll up; fields as in partials.SHIFT, `elements` from its shape."""

    name: str
    elements: int
    count: int
    changed: int
    d2: float
    d1: float
    a1: float
    b1: float
    aa: float
    bb: float
    slope: float
    rest: float


_SUMS = ("count", "changed", "d2", "d1", "a1", "b1", "aa", "bb", "slope", "rest")


def shifts_of(measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> list[Shift]:
    """One row for each tensor of the pair whose numbers were compared, in the order of the comparison.

    Not those that `left_out` counts: bytes of dtypes without a decoder are no values.
    """
    compared = [(i, elements) for i, elements, known in _compared(measured, pair_index, records) if known]
    chosen, sizes = [i for i, _ in compared], [elements for _, elements in compared]
    rows = measured.shifts[chosen, pair_index]
    columns = [rows[key].tolist() for key in _SUMS]
    names = [measured.comparison.aligned[i].name for i in chosen]
    return [Shift(*row) for row in zip(names, sizes, *columns, strict=True)]


def left_out(measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> dict[str, int]:
    """How many compared tensors are in no sum, by the keys of LEFT_OUT."""
    return {"undecoded": sum(not known for _, _, known in _compared(measured, pair_index, records))}


def _compared(
    measured: Measurements, pair_index: int, records: Sequence[TensorRecord]
) -> Iterator[tuple[int, int, bool]]:
    """Index, elements, and whether its values are known, of each tensor with a change."""
    compared = {record.name for record in records if record.change is not None}
    baseline = measured.comparison.pairs[pair_index].baseline
    for i, aligned in enumerate(measured.comparison.aligned):
        if aligned.name in compared and (tensor := aligned.tensors[baseline]) is not None:
            yield i, tensor.elements, tensor.decoder.family != Family.BYTES


def exact(values: Iterable[float]) -> Fraction | None:
    """The sum without any rounding; None where a value, or the sum, is not a finite float64."""
    try:
        parts = [value.as_integer_ratio() for value in values]
        unit = max((below for _, below in parts), default=1)  # all are powers of 2
        found = Fraction(sum(above * (unit // below) for above, below in parts), unit)
        float(found)
    except (OverflowError, ValueError):  # infinite or too large; not a number
        return None
    return found


def rounded(values: Sequence[float]) -> float | None:
    """The same as a float64, rounded once: fsum does so unless a part of the sum leaves float64."""
    try:
        found = math.fsum(values)
    except (OverflowError, ValueError):
        whole = exact(values)
        return None if whole is None else float(whole)
    return found if math.isfinite(found) else None


def share(part: Fraction | None, whole: Fraction | None) -> float | None:
    """part / whole, correctly rounded; None where that is not defined."""
    return float(part / whole) if part is not None and whole else None


def relative(rows: Sequence[Shift]) -> float | None:
    """rel_l2 = sqrt(sum d2) / sqrt(sum aa); None without a baseline, or where squares left float64."""
    from diffai_dist.statistics import sound  # brings NumPy, which --help does not need

    norms = []
    for squares, sizes in (("d2", "d1"), ("aa", "a1")):
        square, size = (rounded([getattr(row, key) for row in rows]) for key in (squares, sizes))
        if square is None or not sound(square, math.inf if size is None else size):
            return None
        norms.append(math.sqrt(square))
    moved, norm = norms
    return moved / norm if norm else None


def whole_rel_l2(measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> float | None:
    """rel_l2 of the whole checkpoint, over all elements of compared tensors that are finite on both sides."""
    return relative(shifts_of(measured, pair_index, records))


def grouped(rows: Iterable[Shift], key: Callable[[str], str]) -> dict[str, list[Shift]]:
    """Rows by the key of their names, in order of appearance."""
    groups: dict[str, list[Shift]] = {}
    for row in rows:
        groups.setdefault(key(row.name), []).append(row)
    return groups


def rolled_up(rows: Sequence[Shift]) -> dict[str, Any]:
    """How far a group of tensors moved."""
    square = rounded([row.d2 for row in rows])
    count = sum(row.count for row in rows)
    return {
        "rel_l2": relative(rows),
        "changed_fraction": sum(row.changed for row in rows) / count if count else None,
        "l2": None if square is None else math.sqrt(square),
        "d2": square,
        "tensors": len(rows),
        "elements": sum(row.elements for row in rows),
    }


def cosine_distance(rows: Sequence[Shift]) -> float | None:
    """1 - cos of the angle between all baseline and all candidate values, each put into one long vector.

    From the regression d = slope*a + rest, whose sums merge as in Chan et al. 1979; here for all tensors at once, so
    that their order does not matter. The angle is then found, or refused, as that of one tensor is.
    """
    import numpy as np

    from diffai_dist.statistics import cosine_distances

    keys = ("a1", "b1", "aa", "bb")
    sums = {key: _total([getattr(row, key) for row in rows]) for key in keys}
    slope = _total([row.slope * row.aa for row in rows]) / sums["aa"] if sums["aa"] else 0.0
    rest = _total([row.rest + (row.slope - slope) ** 2 * row.aa for row in rows])
    columns = {key: np.array([value]) for key, value in {**sums, "slope": slope, "rest": rest}.items()}
    distance, known = cosine_distances(columns)
    return float(distance[0]) if known[0] and math.isfinite(distance[0]) else None


def _total(values: Sequence[float]) -> float:
    found = rounded(values)
    return math.nan if found is None else found
