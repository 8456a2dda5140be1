"""Whether a tensor holds the values of another in another place: transposed, rows in another order, names exchanged.

Sums over rows and columns do not depend on where these stand. That many of them agree to nine digits and more by chance
does not happen to numbers of a training; what is the same in either order proves nothing, and is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from diffai_dist.records import Details, Measurements

Shape = tuple[int, ...]


def is_transpose(a: Shape, b: Shape) -> bool:
    """Whether shapes are those of a matrix, or of a stack of them, and of its transpose."""
    return len(a) == len(b) and len(a) in (2, 3) and (*b[:-2], b[-1], b[-2]) == a


PRECISION = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8}  # bits of the significand
FEWEST = 16  # elements: two scalars can exchange their values by chance
FEWEST_ROUNDED = 16  # rows and columns that must agree where each agrees to two digits only
# Correlations of sums of rows: of the same ones, rounded to two bits or more, and of others by chance. Judgement
ALIKE, UNLIKE = 0.9, 0.5


def rounding(a: str, b: str) -> float:
    """How far, relatively, rounding from one dtype to the other moves Σx² at most; infinite where that is not known.

    >>> rounding("BF16", "BF16"), rounding("F32", "BF16"), rounding("F32", "F4")
    (0.0, 0.0078125, inf)
    """
    if a == b:
        return 0.0
    return 2.0 ** (1 - min(PRECISION[a], PRECISION[b])) if {a, b} <= set(PRECISION) else np.inf


def transposed(details: Details, a: tuple[int, int], b: tuple[int, int], shapes: Sequence[Shape]) -> float | None:
    """How far at most, relatively, the rows' squares of each side are from the columns' squares of the other.

    `a` and `b` are the keys of both sides in the details. None without rows or columns. Of a stack of matrices the sums
    are over all of them.
    """
    sides = []
    for key, shape in zip((a, b), shapes, strict=True):
        rows, columns = details.rows.get(key), details.columns.get(key)
        if rows is None or columns is None:
            return None
        sides.append((rows["squares"].reshape(-1, shape[-2]).sum(axis=0), columns["squares"]))
    (rows_a, columns_a), (rows_b, columns_b) = sides
    return max(furthest(rows_a, columns_b), furthest(columns_a, rows_b))


def furthest(a: np.ndarray, b: np.ndarray) -> float:
    """The largest relative difference; infinite where one is not a finite number.

    >>> furthest(np.array([1.0, 0.0]), np.array([0.5, 0.0])), furthest(np.array([np.nan]), np.array([np.nan]))
    (0.5, inf)
    """
    larger = np.maximum(np.abs(a), np.abs(b))
    with np.errstate(invalid="ignore"):
        apart = np.divide(np.abs(a - b), larger, out=np.zeros(len(a)), where=larger > 0)
    return float(np.where(np.isfinite(larger), apart, np.inf).max(initial=0.0))


def differ(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference between rows of ROW: of squares and absmax relative, of sums in units of √(n Σx²)."""
    scale = np.sqrt(np.maximum(a["finite"] * a["squares"], b["finite"] * b["squares"]))
    with np.errstate(invalid="ignore"):
        sums = np.divide(np.abs(a["sum"] - b["sum"]), scale, out=np.zeros(len(a)), where=scale > 0)
    found = max(furthest(a["squares"], b["squares"]), furthest(a["absmax"], b["absmax"]))
    return max(found, float(np.where(np.isfinite(scale), sums, np.inf).max(initial=0.0)))


def permuted(a: np.ndarray, b: np.ndarray) -> float:
    """The same of rows in the order of their numbers: small where they are the same rows in whatever order."""
    if len(a) != len(b) or (np.sort(a["absmax"]) != np.sort(b["absmax"])).any():
        return np.inf
    orders = [np.lexsort((rows["sum"], rows["squares"], rows["absmax"])) for rows in (a, b)]
    return differ(a[orders[0]], b[orders[1]])


def half_swap(a: np.ndarray, b: np.ndarray, tolerance: float) -> str | None:
    """How rows became those of the other layout of rotary embeddings; None where they did not."""
    for one, other, how in _half_swaps(a, b):
        if np.array_equal(one["absmax"], other["absmax"]) and differ(one, other) <= tolerance:
            return how
    return None


def rounded_half_swap(a: np.ndarray, b: np.ndarray) -> tuple[float, str] | None:
    """The same of rows that were rounded as well: how alike their sums are in that order, and which one it is.

    Rounding of an SQNR of s dB leaves sums a correlation of (1 + 10^(-s / 10))^-0.5, 0.96 for 10 dB; rows that are not
    each other's have that of chance. None where rows agree as they stand, or are too few to tell.
    """
    if len(a) != len(b) or len(a) < FEWEST_ROUNDED or alike(a, b) > UNLIKE:
        return None
    found = [(alike(one, other), how) for one, other, how in _half_swaps(a, b)]
    best = max(found, default=(0.0, ""))
    return best if best[0] >= ALIKE else None


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of the rows' sums; 0 where that is not defined."""
    one, other = (rows["sum"] - rows["sum"].mean() for rows in (a, b))
    with np.errstate(all="ignore"):
        found = (one @ other) / np.sqrt((one @ one) * (other @ other))
    return float(found) if np.isfinite(found) else 0.0


def _half_swaps(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """Rows as they would lie in one layout of rotary embeddings, for each size of a head, and what that swap is called.

    Of each head the rows 2i and 2i + 1 rotate together in the one layout, i and i + D/2 in the other.
    """
    for size in range(4, len(a) + 1, 2):
        if len(a) % size == 0:
            order = np.arange(len(a)).reshape(-1, size // 2, 2).transpose(0, 2, 1).reshape(-1)
            yield a[order], b, f"rotary pairs to halves, {size} rows a head"
            yield a, b[order], f"rotary halves to pairs, {size} rows a head"


Content = tuple[str, Shape, int]  # dtype, shape, digest


def contents(measured: Measurements, member: int, tensors: Sequence[int]) -> dict[int, Content]:
    """What identifies the bits of these tensors in a member, by index; of those that are large enough to tell, and were
    read to their end."""
    table = measured.details.content
    if table is None:
        return {}
    found = {}
    for i in tensors:
        tensor, row = measured.comparison.aligned[i].tensors[member], table[i, member]
        if tensor is not None and tensor.counted >= FEWEST and tensor.counted == row["count"]:
            found[i] = tensor.dtype, tensor.shape, int(row["digest"])
    return found


def held(before: Mapping[int, Content], after: Mapping[int, Content]) -> dict[int, int]:
    """Which tensors after hold what another one held before; what several hold is nobody's."""
    owners, holders = _unique(before), _unique(after)
    return {holders[one]: owners[one] for one in holders if one in owners and holders[one] != owners[one]}


def _unique(contents: Mapping[int, Content]) -> dict[Content, int]:
    found: dict[Content, int | None] = {}
    for i, one in contents.items():
        found[one] = None if one in found else i
    return {one: i for one, i in found.items() if i is not None}


def cycles(moved: Mapping[int, int]) -> Iterator[list[int]]:
    """Tensors that exchanged what they hold, each group in the order in which one holds what the next one held.

    >>> list(cycles({1: 2, 2: 1, 5: 6}))
    [[1, 2]]
    """
    left = dict(moved)
    while left:
        first, one = left.popitem()
        path = [first]
        while one in left:
            path.append(one)
            one = left.pop(one)
        if one == first:
            start = path.index(min(path))
            yield path[start:] + path[:start]
