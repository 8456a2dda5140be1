"""What measurements hold, computed from arrays with NumPy alone, and whole measurements of small checkpoints.

Arrays are of NumPy's or ml_dtypes' dtypes, one element each (F4 too). Sums are float64 in NumPy's order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffai_dist.checkpoint import Checkpoint, Span, Tensor
from diffai_dist.comparison import Pair, compare_members
from diffai_dist.dtypes import Family, dtype_of
from diffai_dist.grid import column_count, row_elements
from diffai_dist.partials import (
    BITWISE,
    COLUMN,
    COLUMN_SHIFT,
    CONTENT,
    HISTOGRAM,
    MOMENTS,
    ROW,
    ROW_SHIFT,
    SHIFT,
    empty,
)
from diffai_dist.records import Details, Measurements
from diffai_dist.storage import Source
from oracle import NUMPY

NAMES = {np.dtype(kind).name: name for name, kind in NUMPY.items() if name != "BOOL"} | {"bool": "BOOL"}
MANTISSA = {
    "F64": 52, "F32": 23, "F16": 10, "BF16": 7, "F8_E4M3": 3, "F8_E5M2": 2, "F8_E4M3FNUZ": 3, "F8_E5M2FNUZ": 2,
    "F8_E8M0": 0, "F4": 1,
}  # fmt: skip
CASTS_TO = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
CASTS_FROM = ("F64", "F32", "BF16", "F16")


def name_of(array: np.ndarray) -> str:
    """The dtype's name in checkpoints."""
    return NAMES[array.dtype.name]


def codes(array: np.ndarray) -> np.ndarray:
    """Raw bits of each element as uint64."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(f"u{flat.dtype.itemsize}").astype(np.uint64)


def reals(array: np.ndarray) -> np.ndarray:
    """Values as float64, flat; 64-bit integers are rounded."""
    flat = np.ascontiguousarray(array).reshape(-1)
    with np.errstate(invalid="ignore"):
        return flat.astype(np.float32).astype(np.float64) if flat.dtype.itemsize < 4 else flat.astype(np.float64)


def words(array: np.ndarray) -> np.ndarray:
    """Bit patterns as kernels see them: of float32, of float64, or the 64-bit integer itself."""
    family = dtype_of(name_of(array)).family
    if family is Family.INTEGER:
        return codes(array)
    if family is Family.DOUBLE:
        return reals(array).view(np.uint64)
    with np.errstate(invalid="ignore"):
        found = array.reshape(-1).astype(np.float32)
    small = np.isnan(found) & (array.dtype.itemsize == 1)  # such a NaN keeps its code as payload
    return np.where(small, 0x7FC00000 | codes(array) if array.dtype.itemsize == 1 else 0, found.view(np.uint32))


def content(array: np.ndarray) -> np.ndarray:
    """CONTENT, all but the digest; a zero is a word of no bits."""
    row = empty(CONTENT, ())
    row["count"] = array.size
    if not array.size or dtype_of(name_of(array)).family in (Family.COMPLEX, Family.BYTES):
        return row
    found = words(array)
    row["ored"] = np.bitwise_or.reduce(found)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], found == 0, [0]]).astype(np.int8)))
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    if starts.size:
        longest = int(np.argmax(lengths))
        row["zero_run"], row["zero_run_start"] = lengths[longest], starts[longest]
        row["zero_head"] = lengths[0] if starts[0] == 0 else 0
        row["zero_tail"] = lengths[-1] if edges[-1] == array.size else 0
    return row


def places(array: np.ndarray) -> list[int]:
    """Each element's place among the numbers of its dtype, +0 and -0 at 0."""
    name = name_of(array)
    if array.dtype.kind in "iub":
        return [int(x) for x in array.reshape(-1).tolist()]
    sign = np.uint64(0 if name == "F8_E8M0" else 1 << dtype_of(name).bits - 1)
    size = (codes(array) & ~sign).astype(np.int64)
    found: list[int] = np.where(codes(array) & sign, -size, size).tolist()
    return found


def distances(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How many numbers of the dtype the elements are apart: uint64."""
    kind = np.uint64 if name_of(before) == "U64" else np.int64
    one, other = np.array(places(before), kind), np.array(places(after), kind)
    found: np.ndarray = np.maximum(one, other).astype(np.uint64) - np.minimum(one, other).astype(np.uint64)
    return found


@np.errstate(over="ignore", invalid="ignore")
def bitwise(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """BITWISE of two arrays."""
    row = empty(BITWISE, ())
    names = name_of(before), name_of(after)
    families = [dtype_of(name).family for name in names]
    if max(families) > Family.INTEGER:
        return row
    a, b = reals(before), reals(after)
    both = np.isfinite(a) & np.isfinite(b)
    with np.errstate(all="ignore"):
        row["visible"] = np.sum(both & (abs(b - a) * 1024 > np.maximum(abs(a), abs(b))))
    if names[0] == names[1]:
        _same_dtype(row, before, after, both)
    elif names[0] in CASTS_FROM and names[1] in CASTS_TO:
        _cast(row, before, after, a, b)
    return row


def _same_dtype(row: np.ndarray, before: np.ndarray, after: np.ndarray, both: np.ndarray) -> None:
    row["count"] = before.size
    crossed = codes(before) ^ codes(after)
    row["first"] = np.flatnonzero(crossed)[0] if crossed.any() else -1
    far = distances(before, after)[both]
    for limit in (1, 2, 4, 8, 16, 256, 65536):
        row[f"ulps{limit}"] = np.sum(far >= limit)
    row["furthest"] = far.max(initial=0)
    name = name_of(before)
    if name not in MANTISSA:
        return
    bits = dtype_of(name).bits
    mask = np.uint64((1 << bits - (name != "F8_E8M0")) - (1 << MANTISSA[name]))
    row["exponents"] = np.sum(crossed & mask != 0)
    flips = np.flatnonzero((np.bitwise_count(crossed) == 1) & (crossed & mask != 0))
    row["flips"] = flips.size
    if flips.size:
        sizes = np.maximum(abs(reals(before)), abs(reals(after)))[flips]
        sizes = np.where(np.isfinite(sizes), sizes, np.inf)
        row["flip_size"], row["flip_index"] = sizes.max(), flips[np.argmax(sizes)]


def _cast(row: np.ndarray, before: np.ndarray, after: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    row["cast"] = before.size
    good = np.zeros(before.size, bool)
    with np.errstate(over="ignore"):
        narrow = a.astype(np.float32).astype(np.float64)
    for values in (a, narrow) if name_of(before) == "F64" else (a,):
        for expected in rounded(values, after.dtype):
            good |= (codes(expected) == codes(after)) | (np.isnan(reals(expected)) & np.isnan(b))
    row["miscast"] = np.sum(~good)
    row["miscast_index"] = np.flatnonzero(~good)[0] if not good.all() else -1
    row["overflowed"] = np.sum(np.isfinite(a) & ~np.isfinite(b))
    row["underflowed"] = np.sum((a != 0) & (b == 0))


def rounded(values: np.ndarray, dtype: np.dtype) -> list[np.ndarray]:
    """The values rounded to nearest, ties to even, in each way that a dtype has of saying that one is too large."""
    if dtype in (np.float32, np.float64):
        with np.errstate(over="ignore"):
            return [values.astype(dtype)]
    table = np.arange(2 ** (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}").view(dtype)
    with np.errstate(invalid="ignore"):
        numbers = table.astype(np.float64)
    positive = np.flatnonzero(np.isfinite(numbers) & ~np.signbit(numbers))
    positive = positive[np.argsort(numbers[positive])]  # by size, and so by code
    steps = numbers[positive]
    limit = steps[-1] + (steps[-1] - steps[-2]) / 2  # from here on, or beyond where the last code is even: too large
    size = np.where(np.isfinite(values), abs(values), 0)
    above = np.minimum(np.searchsorted(steps, size), len(steps) - 1)
    below = np.maximum(above - 1, 0)
    to_above, to_below = steps[above] - size, size - steps[below]
    up = (to_above < to_below) | ((to_above == to_below) & (positive[above] % 2 == 0)) | (size > steps[-1])
    code = positive[np.where(up, above, below)]
    large = np.isinf(values) | (size > limit) | ((size == limit) & (positive[-1] % 2 == 1))
    sign = 1 << 8 * dtype.itemsize - 1
    fnuz = "fnuz" in dtype.name
    negative = np.signbit(values) & ~((code == 0) & fnuz)
    found = np.where(negative, code | sign, code)
    too_large = np.inf if np.isinf(numbers).any() else np.nan
    one = found.astype(f"u{dtype.itemsize}").view(dtype).copy()
    with np.errstate(invalid="ignore"):
        one[large] = np.copysign(too_large, values[large]).astype(np.float32).astype(dtype)
        one[np.isnan(values)] = np.float32(np.nan).astype(dtype)
    if math.isinf(too_large):
        return [one]
    top = np.where(np.signbit(values), positive[-1] | sign, positive[-1]).astype(f"u{dtype.itemsize}").view(dtype)
    return [one, np.where(large, top, one)]  # no infinity: saturating casts are as common


@np.errstate(over="ignore", invalid="ignore")
def rows(array: np.ndarray, width: int) -> np.ndarray:
    """ROW of each run of `width` elements."""
    x = reals(array).reshape(-1, width)
    finite = np.isfinite(x)
    kept = np.where(finite, x, 0)
    made = empty(ROW, (len(x),))
    made["finite"], made["zeros"] = finite.sum(axis=1), (x == 0).sum(axis=1)
    made["sum"], made["squares"], made["absmax"] = kept.sum(axis=1), (kept**2).sum(axis=1), abs(kept).max(axis=1)
    return made


@np.errstate(over="ignore", invalid="ignore")
def row_shifts(before: np.ndarray, after: np.ndarray, width: int) -> np.ndarray:
    """ROW_SHIFT of each run of `width` elements."""
    a, b = reals(before).reshape(-1, width), reals(after).reshape(-1, width)
    both = np.isfinite(a) & np.isfinite(b)
    with np.errstate(invalid="ignore"):
        a, d = np.where(both, a, 0), np.where(both, b - a, 0)
    made = empty(ROW_SHIFT, (len(a),))
    made["both"], made["d2"], made["along"] = both.sum(axis=1), (d**2).sum(axis=1), (a * d).sum(axis=1)
    made["changed"] = (d != 0).sum(axis=1)
    return made


@np.errstate(over="ignore", invalid="ignore")
def columns(array: np.ndarray, width: int) -> np.ndarray:
    """COLUMN of each column of rows of `width` elements."""
    x = reals(array).reshape(-1, width)
    made = empty(COLUMN, (width,))
    made["squares"] = (np.where(np.isfinite(x), x, 0) ** 2).sum(axis=0)
    return made


@np.errstate(over="ignore", invalid="ignore")
def column_shifts(before: np.ndarray, after: np.ndarray, width: int) -> np.ndarray:
    """COLUMN_SHIFT of each column of rows of `width` elements."""
    a, b = reals(before).reshape(-1, width), reals(after).reshape(-1, width)
    with np.errstate(invalid="ignore"):
        d = np.where(np.isfinite(a) & np.isfinite(b), b - a, 0)
    made = empty(COLUMN_SHIFT, (width,))
    made["d2"] = (d**2).sum(axis=0)
    return made


def histogram(array: np.ndarray) -> np.ndarray:
    """HISTOGRAM of the finite values."""
    x = reals(array)
    x = x[np.isfinite(x)]
    with np.errstate(over="ignore"):
        narrow = x.astype(np.float32)
    largest = np.float32(np.finfo(np.float32).max)
    narrow = np.where(np.isinf(narrow), np.copysign(largest, narrow), narrow).astype(np.float32)
    bins, counts = np.unique(narrow.view(np.uint32) >> 16, return_counts=True)
    made = np.zeros(bins.size, HISTOGRAM)
    made["bin"], made["count"] = bins, counts
    return made


@np.errstate(over="ignore", invalid="ignore")
def moments(array: np.ndarray) -> np.ndarray:
    """MOMENTS of an array of real numbers."""
    row = empty(MOMENTS, ())
    name, x = name_of(array), reals(array)
    finite = np.isfinite(x)
    row["count"], row["finite"], row["nans"] = x.size, finite.sum(), np.isnan(x).sum()
    row["posinfs"], row["neginfs"] = np.sum(x == np.inf), np.sum(x == -np.inf)
    row["zeros"] = np.sum(x == 0)
    row["subnormals"] = np.sum((x != 0) & (abs(x) < dtype_of(name).smallest_normal))
    good = x[finite]
    if not good.size:
        return row
    row["mean"] = good.mean()
    row["m2"], row["abs_sum"] = np.sum((good - good.mean()) ** 2), abs(good).sum()
    row["absmax_index"] = np.flatnonzero(finite & (abs(x) == abs(good).max()))[0]
    if dtype_of(name).family is Family.INTEGER:
        whole, flip = array.reshape(-1), 2**63 if name == "I64" else 0
        row["low"], row["high"] = int(whole.min()) + flip, int(whole.max()) + flip
        row["absmax"] = max(abs(int(whole.min())), abs(int(whole.max())))
        return row
    row["low"], row["high"] = key(good.min()), key(good.max())
    row["absmax"] = abs(good).max().view(np.uint64)
    return row


def key(value: float) -> int:
    """A float64 as an integer of the same order."""
    word = int(np.float64(value).view(np.uint64))
    return ~word & 2**64 - 1 if word >> 63 else word | 2**63


@np.errstate(over="ignore", invalid="ignore")
def shift(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """SHIFT of two arrays of real numbers."""
    row = empty(SHIFT, ())
    x, y = reals(before), reals(after)
    both = np.isfinite(x) & np.isfinite(y)
    moved = (x != y) & ~(np.isnan(x) & np.isnan(y))
    row["count"], row["both"] = x.size, both.sum()
    row["changed"], row["changed_nonfinite"] = moved.sum(), np.sum(moved & ~both)
    row["bits"] = np.sum(codes(before) != codes(after)) if before.dtype == after.dtype else 0
    row["flips"] = np.sum(np.sign(x) * np.sign(y) < 0)
    a, b = x[both], y[both]
    d = b - a
    row["d2"], row["d1"], row["a1"], row["b1"] = d @ d, abs(d).sum(), abs(a).sum(), abs(b).sum()
    row["aa"], row["bb"] = a @ a, b @ b
    row["slope"] = d @ a / (a @ a) if a.any() else 0
    rest = d - row["slope"] * a
    row["rest"] = rest @ rest
    if d.size:
        row["max_abs"] = abs(d).max().view(np.uint64)
        row["max_abs_index"] = np.flatnonzero(both)[np.argmax(abs(d))]
    return row


def checkpoint(arrays: Mapping[str, np.ndarray], url: str = "/run/0.safetensors", start: int = 4096) -> Checkpoint:
    """The arrays one after the other in one object, the first at byte `start`."""
    source, tensors = Source(url, 2**40, f"mtime:{url}"), {}
    for name, array in arrays.items():
        nbytes = array.size * dtype_of(name_of(array)).bits // 8
        tensors[name] = Tensor(name, name_of(array), array.shape, (Span(source, start, start + nbytes),))
        start += nbytes
    return Checkpoint(url, "safetensors", (source,), tensors)


def measured(
    members: Sequence[Mapping[str, np.ndarray]],
    pairs: Sequence[tuple[int, int]] = ((0, 1),),
    checkpoints: Sequence[Checkpoint] | None = None,
) -> Measurements:
    """Complete measurements of checkpoints given as arrays by name, all details with them."""
    made = checkpoints or [checkpoint(arrays, f"/run/{i}.safetensors") for i, arrays in enumerate(members)]
    comparison = compare_members(made, [Pair(*pair) for pair in pairs])
    names = [aligned.name for aligned in comparison.aligned]
    sides, shifts = empty(MOMENTS, (len(names), len(members))), empty(SHIFT, (len(names), len(pairs)))
    for t, name in enumerate(names):
        for m, arrays in enumerate(members):
            if name in arrays:
                sides[t, m] = moments(arrays[name])
        for p, pair in enumerate(comparison.pairs):
            if (both := _both(members, name, pair)) is not None:
                shifts[t, p] = shift(*both)
    return Measurements(comparison, sides, shifts, {}, None, details_of(members, pairs, names))


def details_of(
    members: Sequence[Mapping[str, np.ndarray]], pairs: Sequence[tuple[int, int]], names: Sequence[str]
) -> Details:
    """All details of checkpoints given as arrays by name; `names` in the order of the aligned tensors."""
    contents, bits = empty(CONTENT, (len(names), len(members))), empty(BITWISE, (len(names), len(pairs)))
    tables: dict[str, dict[tuple[int, int], Any]] = {
        field: {} for field in ("rows", "row_shifts", "columns", "column_shifts", "histograms")
    }
    for t, name in enumerate(names):
        for m, arrays in enumerate(members):
            if name not in arrays:
                continue
            one = arrays[name]
            contents[t, m] = content(one)
            tables["histograms"][t, m] = histogram(one)
            if row_elements(one.shape):
                tables["rows"][t, m] = rows(one, row_elements(one.shape))
            if column_count(one.shape):
                tables["columns"][t, m] = columns(one, column_count(one.shape))
        for p, pair in enumerate(pairs):
            if (both := _both(members, name, Pair(*pair))) is None:
                continue
            bits[t, p] = bitwise(*both)
            if width := row_elements(both[0].shape):
                tables["row_shifts"][t, p] = row_shifts(*both, width)
            if width := column_count(both[0].shape):
                tables["column_shifts"][t, p] = column_shifts(*both, width)
    return Details(contents, bits, **tables)


def _both(members: Sequence[Mapping[str, np.ndarray]], name: str, pair: Pair) -> tuple[np.ndarray, np.ndarray] | None:
    """Both sides of a tensor, where their elements can be paired."""
    one, other = members[pair.baseline].get(name), members[pair.candidate].get(name)
    if one is None or other is None or one.shape != other.shape:
        return None
    return one, other
