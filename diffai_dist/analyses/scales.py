"""Scales beside quantised weights: found by the names that quantisers give them, read from what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffai_dist.checkpoint import Checkpoint, Tensor
from diffai_dist.comparison import Pair
from diffai_dist.grid import row_elements
from diffai_dist.records import Measurements

if TYPE_CHECKING:
    import numpy as np

# What follows the name of a weight, or stands in place of its last part, and what its values are multiplied by: int8 of
# bitsandbytes keeps the largest magnitude of a row, which is code 127. `scale_inv` multiplies, in spite of its name.
_BESIDE = (("_scale", 1.0), ("_scale_inv", 1.0), (".scale", 1.0), (".SCB", 1 / 127))
_INSTEAD = (("scale", 1.0), ("scales", 1.0), ("SCB", 1 / 127))
_ZEROS = ("_zero_point", ".zero_point")
# What else quantisers write beside a weight, in place of the last part of its name: of activations, and of layouts.
_OTHERS = ("input_scale", "input_zero_point", "output_scale", "weight_format")

# Packed codes, by the last part of their names: shapes are not those of the weights they stand for.
PACKED = {
    "qweight": "GPTQ or AWQ",
    "weight_packed": "compressed-tensors, packed",
    "W_q": "HQQ",
    "_data": "quanto",
    "weight_qdata": "torchao",
    "weight_blocks": "MXFP4",
}

BLOCKS = "scales of blocks"
ZERO_POINTS = "zero points, which are not decoded"
TOO_MANY = "more scales than partials are kept of"
NOT_MEASURED = "the scale was not measured"
LEFT_OUT = "the scale was left out"
NOT_READ = "the scale could not be read"


@dataclass(frozen=True, slots=True)
class Scale:
    """What multiplies the codes of a tensor: float64 [1], or [rows], one per row; None, with a reason, if unknown.

    Of the bytes of a scale of several tensors that lie in one, each has its share.
    """

    name: str
    nbytes: float
    values: np.ndarray | None
    reason: str | None = None


def find_scale(measured: Measurements, pair: Pair, weight: Tensor, places: Mapping[str, int]) -> Scale | None:
    """The scale that the candidate has beside a tensor of its own, and the baseline has not; None if there is none.

    `places` are indices of aligned tensors by the candidate's names.
    """
    whole = _uncut(measured.comparison.members[pair.candidate], weight)
    for name, factor in _names(whole.name):
        if _is_beside(measured, pair, name, places):
            return _scale(measured, pair.candidate, weight, whole, name, factor, places)
    return None


def has_scale(measured: Measurements, pair: Pair, weight: Tensor, places: Mapping[str, int]) -> bool:
    """Whether find_scale finds one."""
    whole = _uncut(measured.comparison.members[pair.candidate], weight)
    return any(_is_beside(measured, pair, name, places) for name, _ in _names(whole.name))


def companions(measured: Measurements, pair: Pair, weight: Tensor, places: Mapping[str, int]) -> Iterator[int]:
    """Indices of the tensors that a quantiser wrote beside the candidate's codes, where the baseline has none."""
    name = _uncut(measured.comparison.members[pair.candidate], weight).name
    head, dot, _ = name.rpartition(".")
    others = (*(name + suffix for suffix in _ZEROS), *(head + dot + last for last in _OTHERS if dot))
    for one in (*(scale for scale, _ in _names(name)), *others):
        if one in places and _is_beside(measured, pair, one, places):
            yield places[one]


def _uncut(member: Checkpoint, weight: Tensor) -> Tensor:
    """The tensor that the weight was cut from, whose name is before a [; the weight itself if it was not cut."""
    if weight.name in member.tensors or not weight.name.endswith("]"):
        return weight
    return member.tensors.get(weight.name.rpartition("[")[0], weight)


def _is_beside(measured: Measurements, pair: Pair, name: str, places: Mapping[str, int]) -> bool:
    """Whether the candidate has such a tensor, be it left out or unreadable, and the baseline has not."""
    if name in places:
        return measured.comparison.aligned[places[name]].tensors[pair.baseline] is None
    before, after = (measured.comparison.members[member] for member in (pair.baseline, pair.candidate))
    return _has(after, name) and not _has(before, name)


def _has(member: Checkpoint, name: str) -> bool:
    return name in member.tensors or name in member.unreadable


def _scale(
    measured: Measurements,
    member: int,
    weight: Tensor,
    whole: Tensor,
    name: str,
    factor: float,
    places: Mapping[str, int],
) -> Scale:
    """What is known of a scale that is there."""
    if name not in places:
        return Scale(name, 0, None, LEFT_OUT if name in measured.comparison.members[member].tensors else NOT_READ)
    scale = measured.comparison.aligned[places[name]].tensors[member]
    if scale is None:
        return Scale(name, 0, None, NOT_READ)
    reason = _zero_points(measured, member, whole.name, places)
    values = None if reason else _values(measured, places[name], member, scale)
    found = None if values is None else _spread(values * factor, scale.shape, whole.shape)
    if found is not None and whole is not weight:
        found = _cut(found, weight, whole)
    share = scale.nbytes * weight.elements / whole.elements if whole.elements else 0
    return Scale(name, share, found, reason or (_reason(values, scale) if found is None else None))


def _cut(values: np.ndarray, weight: Tensor, whole: Tensor) -> np.ndarray:
    """Those of the rows that a part was cut from, which the place of its bytes tells."""
    if values.size == 1:
        return values
    first = (weight.spans[0].start - whole.spans[0].start) * 8 // whole.decoder.bits
    row = whole.elements // values.size
    return values[first // row : -(-(first + weight.elements) // row)]


def _names(name: str) -> Iterator[tuple[str, float]]:
    yield from ((name + suffix, factor) for suffix, factor in _BESIDE)
    head, dot, _ = name.rpartition(".")
    yield from ((head + dot + last, factor) for last, factor in _INSTEAD if dot)


def _zero_points(measured: Measurements, member: int, name: str, places: Mapping[str, int]) -> str | None:
    """Codes that are counted from a zero point need it; one that is 0 everywhere changes nothing."""
    for suffix in _ZEROS:
        index = places.get(name + suffix)
        if index is not None:
            moments = measured.moments[index, member]
            return None if moments["zeros"] == moments["count"] > 0 else ZERO_POINTS
        if _has(measured.comparison.members[member], name + suffix):
            return ZERO_POINTS
    return None


def _values(measured: Measurements, index: int, member: int, tensor: Tensor) -> np.ndarray | None:
    """The values of a small tensor: its mean if there is one, else the sums of rows of one element; NaN for NaN."""
    import numpy as np

    if tensor.elements == 1:
        moments = measured.moments[index, member]
        return np.array([moments["mean"] if moments["finite"] else np.nan]) if moments["count"] else None
    rows = measured.details.rows.get((index, member))
    if rows is None or row_elements(tensor.shape) != 1:
        return None
    values: np.ndarray = np.where(rows["finite"] > 0, rows["sum"], np.nan)
    return values


def _spread(values: np.ndarray, shape: tuple[int, ...], weight: tuple[int, ...]) -> np.ndarray | None:
    """One value per row of the weight, or one for all; None for any other layout.

    An [out] or [out, 1] scale belongs to rows of [out, in], an [experts, 1, 1] one to experts of [experts, out, in].
    """
    import numpy as np

    if values.size == 1:
        return values
    outer = weight[:1] if len(weight) > 3 else weight[: max(len(weight) - 1, 1)]
    kept = tuple(shape[: len(shape) - _ones(shape)])
    if kept != outer[: len(kept)]:
        return None
    spread: np.ndarray = np.repeat(values, math.prod(outer[len(kept) :]))
    return spread


def _ones(shape: tuple[int, ...]) -> int:
    """How many axes of length 1 end the shape."""
    return next((i for i, length in enumerate(reversed(shape)) if length != 1), len(shape))


def _reason(values: np.ndarray | None, scale: Tensor) -> str:
    if values is None and (scale.elements == 1 or row_elements(scale.shape) == 1):
        return NOT_MEASURED
    flat = len(scale.shape) - _ones(scale.shape) == 1
    return TOO_MANY if flat and not row_elements(scale.shape) else f"{BLOCKS}: {list(scale.shape)}"
