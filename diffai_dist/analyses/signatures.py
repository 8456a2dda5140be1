"""What damaged bytes look like in the numbers of one tensor: giants, flipped bits, runs of zeros, rows out of place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diffai_dist.analyses.grids import DIGITS
from diffai_dist.analyses.lines import Lines, row_lines
from diffai_dist.analyses.oddities import LARGEST
from diffai_dist.checkpoint import Tensor
from diffai_dist.records import Details, Measurements

LEAST = 64  # elements; fewer say too little. Judgement, as the next
ROWS, WIDTH = 8, 16  # rows for a median; elements whose cosine does not come near 1 by chance
_ALONE = 2.0**-16  # of a giant: what no more than one row in a thousand comes near
_USUAL = 0.01  # of the median row's size: smaller rows were as good as zero before
_REACH = 64  # a giant is 1/64 of the dtype's range or more, where the range ends before the usual limit. Judgement
_BITS = 64.0  # of surprise in a run of codes: one in 2^64 places, were zeros dealt out at random. Judgement
_CODES = ("I8", "U8")  # whose runs of zeros are looked for
_SAMPLE = 64  # rows of a region that are looked for elsewhere


@dataclass(frozen=True, slots=True)
class Sides:
    """One tensor of a pair, floats or codes: partials of both sides, the baseline's None where it is not compared."""

    name: str
    tensor: Tensor  # the candidate's
    same_dtype: bool
    moments: tuple[np.void | None, np.void]
    contents: tuple[np.void | None, np.void | None]
    rows: tuple[np.ndarray | None, np.ndarray | None]
    shift: np.void
    bitwise: np.void | None
    lines: Lines | None

    @property
    def width(self) -> int:
        """Elements of a row; 0 where no rows were measured."""
        return 0 if self.rows[1] is None or not len(self.rows[1]) else self.tensor.elements // len(self.rows[1])

    @property
    def is_float(self) -> bool:
        """Whether more is looked for than zeros."""
        return self.tensor.decoder.name in DIGITS

    @property
    def bits(self) -> int:
        """Bits of an element, of codes those of one."""
        scheme = self.tensor.scheme
        return scheme.bits if scheme and scheme.bits else self.tensor.decoder.bits

    @property
    def nbytes(self) -> float:
        """Bytes of an element; half of one for F4."""
        return self.bits / 8


@dataclass(frozen=True, slots=True)
class Signature:
    """A run of elements that look damaged. What `value` and `baseline` are depends on the kind."""

    kind: str
    element: int
    elements: int
    value: float | None  # None where it is not finite
    baseline: float | None


def sides_of(measured: Measurements, pair_index: int, index: int, compared: bool) -> Sides | None:
    """The tensor as a pair has it; None where the candidate's is missing, not read to its end, or not `looked_at`."""
    aligned, pair = measured.comparison.aligned[index], measured.comparison.pairs[pair_index]
    before, after = aligned.tensors[pair.baseline], aligned.tensors[pair.candidate]
    found = measured.moments[index, pair.candidate]
    if after is None or not looked_at(after) or found["count"] != after.elements or after.elements < LEAST:
        return None
    if measured.failures.get((index, pair.candidate)):
        return None
    compared = compared and before is not None and looked_at(before)
    details = measured.details
    contents = details.content
    return Sides(
        aligned.name,
        after,
        compared and before is not None and before.dtype == after.dtype,
        (measured.moments[index, pair.baseline] if compared else None, found),
        (
            contents[index, pair.baseline] if contents is not None and compared else None,
            _of(contents, index, pair.candidate),
        ),
        (details.rows.get((index, pair.baseline)) if compared else None, details.rows.get((index, pair.candidate))),
        measured.shifts[index, pair_index],
        _of(details.bitwise, index, pair_index) if compared else None,
        row_lines(measured, index, pair_index) if compared and _has_rows(details, index, pair.candidate) else None,
    )


def _has_rows(details: Details, index: int, member: int) -> bool:
    """Whether there are so many that a few of them may be out of place."""
    rows = details.rows.get((index, member))
    return rows is not None and len(rows) >= ROWS


def looked_at(tensor: Tensor) -> bool:
    """Whether it is of floats, or a matrix of 8-bit codes."""
    return tensor.decoder.name in DIGITS or (tensor.dtype in _CODES and len(tensor.shape) > 1)


def _of(table: np.ndarray | None, index: int, column: int) -> np.void | None:
    found: np.void | None = None if table is None else table[index, column]
    return found


def absmax(moments: np.void) -> float:
    """The largest finite magnitude of a float tensor."""
    return float(np.uint64(moments["absmax"]).view(np.float64))


def _rms(moments: np.void) -> float:
    finite = int(moments["finite"])
    return math.sqrt(moments["m2"] / finite + moments["mean"] ** 2) if finite else 0.0


def ratio_of(sides: Sides) -> float:
    """The largest magnitude / the median RMS of rows that are not zero, or the baseline's RMS; 0 without either."""
    rows, usual = sides.rows[1], 0.0
    if rows is not None:
        squares = rows["squares"]
        live = squares > 0
        if np.count_nonzero(live) >= ROWS:
            usual = float(np.median(np.sqrt(squares[live] / rows["finite"][live])))
    if not usual and sides.moments[0] is not None:
        usual = _rms(sides.moments[0])
    return absmax(sides.moments[1]) / usual if usual else 0.0


def giant_limit(sides: Sides, ratio: float, limit: float) -> float:
    """The limit of a giant's ratio, or 1/64 of the dtype's range where that is less and the baseline's is the same."""
    end = LARGEST.get(sides.tensor.decoder.name)
    largest = absmax(sides.moments[1])
    if end is None or not sides.same_dtype or not largest:
        return limit
    return min(limit, end / _REACH / largest * ratio)


def giant(sides: Sides, ratio: float, limit: float, growth: float) -> Signature | None:
    """One value far beyond all others that the baseline does not have; `ratio` is what it is to the typical one."""
    largest, reach = absmax(sides.moments[1]), giant_limit(sides, ratio, limit)
    if not ratio > reach:
        return None
    before = None if sides.moments[0] is None else absmax(sides.moments[0])
    if before is not None and before * growth >= largest:
        return None
    rows = sides.rows[1]
    if ratio <= limit and (rows is None or np.sum(rows["absmax"] > reach * largest / ratio) > 1):
        return None
    if ratio > limit and rows is not None and np.sum(rows["absmax"] > largest * _ALONE) > max(1, len(rows) // 1000):
        return None
    value = ratio if math.isfinite(ratio) else None
    return Signature("isolated-giant", int(sides.moments[1]["absmax_index"]), 1, value, before)


def flip(sides: Sides, growth: float) -> Signature | None:
    """A bit of an exponent that changed alone, to a value that outgrows the baseline's, or as nothing else changed."""
    bits, before = sides.bitwise, sides.moments[0]
    if bits is None or before is None or not sides.same_dtype or not bits["flips"]:
        return None
    flips, size = int(bits["flips"]), float(bits["flip_size"])
    only = sides.shift["bits"] == flips and flips <= max(1, sides.tensor.elements // 1000)
    if not (only or _outgrows(sides, flips, size, growth * absmax(before))):
        return None
    value = size if math.isfinite(size) else None
    return Signature("bit-flip", int(bits["flip_index"]), 1, value, absmax(before))


def _outgrows(sides: Sides, flips: int, size: float, limit: float) -> bool:
    """Whether the flip, and nothing beside flips, is larger than the limit in the candidate."""
    before, after = sides.moments
    rows = sides.rows[1]
    if before is None or rows is None or not limit > 0.0 or not size >= limit:
        return False
    lost = int(after["count"] - after["finite"])
    if math.isinf(size):
        return before["finite"] == before["count"] and 0 < lost <= flips
    return absmax(after) >= size and int(np.sum(rows["absmax"] >= limit)) <= flips


def zero_runs(sides: Sides, page: int, dense: float) -> Iterator[Signature]:
    """The longest run of zeros, and the one at the end; `baseline` is the longest there, in bytes."""
    content = sides.contents[1]
    if content is None or content["zero_run"] in (0, content["count"]):
        return
    count, zeros = int(content["count"]), int(sides.moments[1]["zeros"])
    longest, tail = int(content["zero_run"]), int(content["zero_tail"])
    start = int(content["zero_run_start"])
    rest = count - longest - (tail if start + longest < count else 0)
    others = zeros - (count - rest)
    odd = others <= dense * rest
    if sides.bits <= 8 and sides.same_dtype:  # a cast to few values makes zeros of what was small
        odd = longest * -math.log2((others + 1) / (rest + 1)) > _BITS + math.log2(count)
    if not odd or _were_there(sides, start, longest):
        return
    known = None if sides.contents[0] is None else float(sides.contents[0]["zero_run"]) * sides.nbytes
    if tail * sides.nbytes >= page:
        yield Signature("tail-not-written", count - tail, tail, 0.0, known)
    if start + longest < count and _holds_page(sides, start, longest, page):
        yield Signature("zero-run", start, longest, 0.0, known)


def _holds_page(sides: Sides, start: int, length: int, page: int) -> bool:
    """Whether a whole page of the tensor, or of the object that it lies in, is zero."""
    begin, end = math.ceil(start * sides.nbytes), math.floor((start + length) * sides.nbytes)
    places = (0, *(span.start for span in sides.tensor.spans[:1]))
    return any(-(-(begin + at) // page) * page + page <= end + at for at in places)


def _were_there(sides: Sides, start: int, length: int) -> bool:
    """Whether the baseline was as good as zero there before."""
    before, rows = sides.contents[0], sides.rows[0]
    if before is not None and 2 * int(before["zero_run"]) >= length:
        return True
    if rows is None or not sides.width:
        return False
    inside = rows["squares"][-(-start // sides.width) : (start + length) // sides.width]
    return bool(len(inside) and np.median(inside) < _USUAL**2 * np.median(rows["squares"]))


def regions(sides: Sides, near: float, far: float, least: int) -> Iterator[Signature]:
    """Rows after each other that turned away while most others kept their direction; `value` is their mean cosine.

    They are shifted where they look like other rows of the baseline, at one distance; `baseline` is the element at
    which those begin.
    """
    lines = sides.lines
    if lines is None or sides.width < WIDTH or len(lines.aa) < ROWS:
        return
    if not (lines.d2 >= (1.0 - far * far) * lines.aa).any():  # no row moved as far as it must have to turn so far
        return
    cosine = lines.cosine
    with np.errstate(invalid="ignore"):
        kept, turned = cosine >= near, cosine < far
    if 2 * np.sum(kept) < np.sum(kept | turned):
        return
    turned[1:-1] |= turned[:-2] & turned[2:]  # a row that looks alike by chance
    edges = np.flatnonzero(np.diff(np.concatenate([[0], turned, [0]])))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if stop - start < least or not _same_size(lines, start, stop):
            continue
        origin = _origin(sides, start, stop, kept)
        value, elements = float(np.nanmean(cosine[start:stop])), (stop - start) * sides.width
        place = None if origin is None else float(origin * sides.width)
        kind = "region-replaced" if origin is None else "shifted-region"
        yield Signature(kind, start * sides.width, elements, value, place)


def _same_size(lines: Lines, start: int, stop: int) -> bool:
    """Whether rows are neither new nor gone: about as large as before, and as other rows are."""
    before, after = np.sum(lines.aa[start:stop]), np.sum(lines.bb[start:stop])
    usual = np.nanmedian(lines.aa) * (stop - start)
    return bool(before < 4 * after and after < 4 * before and before > usual / 16)


def _origin(sides: Sides, start: int, stop: int, kept: np.ndarray) -> int | None:
    """The row of the baseline from which on its rows are like those of the region, as like as kept rows are."""
    before, after = sides.rows
    if before is None or after is None:
        return None
    count = min(stop - start, _SAMPLE)
    a, b = _features(before), _features(after)
    usual = float(np.median(np.abs(b - a).sum(axis=1)[kept]))
    errors = np.zeros(len(a) - count + 1)
    for row in range(count):
        errors += np.abs(b[start + row] - a[row : len(a) - count + 1 + row]).sum(axis=1)
    middle = float(np.median(errors))
    errors[start] = np.inf
    best = int(np.argmin(errors))
    scale = 1e-9 * float(np.median(np.abs(a).sum(axis=1)))
    alike = errors[best] <= count * max(4 * usual, scale) and errors[best] < 0.5 * middle
    return best if alike else None


def _features(rows: np.ndarray) -> np.ndarray:
    """Length, largest magnitude and sum of each row, of one order of magnitude: [rows, 3]."""
    width = np.maximum(rows["finite"], 1)
    return np.stack(
        [np.sqrt(rows["squares"]), rows["absmax"] * np.sqrt(width) / 4, rows["sum"] / np.sqrt(width)], axis=1
    )
