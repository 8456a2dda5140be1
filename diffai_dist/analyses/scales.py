"""Scales beside quantised weights: found by the names that quantisers give them, read from what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffai_dist.checkpoint import Tensor
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


@dataclass(frozen=True, slots=True)
class Scale:
    """What multiplies the codes of a tensor: float64 [1], or [rows], one per row; None, with a reason, if unknown."""

    name: str
    nbytes: int
    values: np.ndarray | None
    reason: str | None = None


def find_scale(measured: Measurements, pair: Pair, weight: Tensor, places: Mapping[str, int]) -> Scale | None:
    """The scale that the candidate has beside a tensor of its own, and the baseline has not; None if there is none.

    `places` are indices of aligned tensors by the candidate's names.
    """
    for name, factor in _names(weight.name):
        sides = measured.comparison.aligned[places[name]].tensors if name in places else ()
        scale = sides[pair.candidate] if sides and sides[pair.baseline] is None else None
        if scale is not None:
            reason = _zero_points(measured, pair.candidate, weight.name, places)
            values = None if reason else _values(measured, places[name], pair.candidate, scale)
            found = None if values is None else _spread(values * factor, scale.shape, weight.shape)
            return Scale(name, scale.nbytes, found, reason or (_reason(values, scale) if found is None else None))
    return None


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
