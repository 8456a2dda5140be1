"""Which dtypes hold the values of a series: what each member stores, what would be enough, what casts changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from diffai_dist.analyses.expected import in_every_block, is_table
from diffai_dist.analyses.roles import role
from diffai_dist.analyses.series import Series
from diffai_dist.dtypes import dtype_of

# Digits and exponents of the floats, in bits: what a value must fit to be kept by a cast.
_BITS = {
    "F64": (52, 11), "F32": (23, 8), "F16": (10, 5), "BF16": (7, 8), "F8_E4M3": (3, 4), "F8_E5M2": (2, 5),
    "F8_E4M3FNUZ": (3, 4), "F8_E5M2FNUZ": (2, 5),
}  # fmt: skip

# Stored dtype, dtype that is enough, low bits of a word that are 0 then, largest number, and whether small numbers
# fit, too, whatever they are. The narrowest first.
_HELD = (
    ("F32", "BF16", 16, None, True),
    ("F16", "BF16", 16, None, True),
    ("F32", "F16", 13, 65504.0, False),
    ("F64", "BF16", 45, 3.3895313892515355e38, False),
    ("F64", "F32", 29, 3.4028234663852886e38, False),
)


@dataclass(frozen=True)
class Held:
    """Tensors of one member whose values would fit another dtype."""

    stored: str
    holds: str
    proven: bool
    tensors: tuple[int, ...]
    nbytes: int
    saved: int


@dataclass(frozen=True)
class Cast:
    """Tensors of a pair that went from one float dtype to another; None where a number was not measured."""

    stored: str
    cast_to: str
    tensors: tuple[int, ...]
    elements: int
    changed: int
    miscast: int | None
    overflowed: int | None
    underflowed: int | None

    @property
    def narrower(self) -> bool:
        """Whether the new dtype lacks digits or exponents of the old one."""
        return any(after < before for before, after in zip(_BITS[self.stored], _BITS[self.cast_to], strict=True))


@dataclass(frozen=True)
class Mixed:
    """Tensors of one role in all blocks of a member, `common` their most frequent dtype, `tensors` those of others."""

    role: str
    common: str
    others: tuple[tuple[str, int], ...]  # dtype and number of tensors
    tensors: tuple[int, ...]


def dtypes_of(series: Series, member: int) -> dict[str, tuple[int, int, int]]:
    """Tensors, elements and bytes of each dtype."""
    found: dict[str, tuple[int, int, int]] = {}
    for aligned in series.measured.comparison.aligned:
        if (one := aligned.tensors[member]) is not None:
            tensors, elements, nbytes = found.get(one.dtype, (0, 0, 0))
            found[one.dtype] = (tensors + 1, elements + one.elements, nbytes + one.nbytes)
    return found


def audited(series: Series) -> np.ndarray:
    """Which tensors have words that were looked at, and more than one value, of which one is not 0."""
    content, moments = series.measured.details.content, series.measured.moments
    if content is None:
        return np.zeros(series.read.shape, bool)
    found: np.ndarray = series.decoded & (content["count"] == series.sizes) & (moments["low"] < moments["high"])
    return found


def held(series: Series, member: int) -> Iterator[Held]:
    """The narrowest dtype that holds each tensor, those of one together."""
    content = series.measured.details.content
    if content is None:
        return
    rest = audited(series)[:, member]
    words, sizes = content["ored"][:, member], series.measured.moments["absmax"][:, member]
    magnitudes = np.ascontiguousarray(sizes).view(np.float64)
    tensors = [aligned.tensors[member] for aligned in series.measured.comparison.aligned]
    dtypes = np.array([one.dtype if one else "" for one in tensors], object)
    for stored, holds, bits, largest, proven in _HELD:
        fits = rest & (dtypes == stored) & (words & np.uint64(2**bits - 1) == 0)
        if largest is not None:
            fits &= magnitudes <= largest
        if fits.any():
            nbytes = int(series.nbytes[fits, member].sum())
            saved = nbytes - nbytes * dtype_of(holds).bits // dtype_of(stored).bits
            yield Held(stored, holds, proven, tuple(np.flatnonzero(fits).tolist()), nbytes, saved)
        rest &= ~fits


def casts(series: Series) -> Iterator[tuple[int, int, Cast]]:
    """Pair, how many float tensors kept their dtype in it, and each cast."""
    for index, pair in enumerate(series.measured.comparison.pairs):
        groups: dict[tuple[str, str], list[int]] = {}
        kept = 0
        for tensor, aligned in enumerate(series.measured.comparison.aligned):
            a, b = aligned.tensors[pair.baseline], aligned.tensors[pair.candidate]
            if a is None or b is None or a.dtype not in _BITS or b.dtype not in _BITS or is_table(aligned.name):
                continue
            if a.dtype == b.dtype:
                kept += 1
            elif series.by_elements[tensor, index] and a.elements:
                groups.setdefault((a.dtype, b.dtype), []).append(tensor)
        for (stored, to), tensors in groups.items():
            yield index, kept, _cast(series, index, stored, to, tensors)


def _cast(series: Series, pair: int, stored: str, to: str, tensors: Sequence[int]) -> Cast:
    chosen = list(tensors)
    shifts, bits = series.measured.shifts[chosen, pair], series.measured.details.bitwise
    numbers: list[int | None] = [None, None, None]
    if bits is not None and (bits["cast"][chosen, pair] == shifts["count"]).all():
        numbers = [int(bits[key][chosen, pair].sum()) for key in ("miscast", "overflowed", "underflowed")]
    elements, changed = int(shifts["count"].sum()), int(shifts["changed"].sum())
    return Cast(stored, to, tuple(tensors), elements, changed, *numbers)


def mixed(series: Series, member: int) -> Iterator[Mixed]:
    """Roles whose same tensor has several dtypes in different blocks."""
    stacks: dict[str, list[tuple[int, str]]] = {}
    for tensor, aligned in enumerate(series.measured.comparison.aligned):
        if (one := aligned.tensors[member]) is not None and (stack := in_every_block(aligned.name)) != aligned.name:
            stacks.setdefault(stack, []).append((tensor, one.dtype))
    groups: dict[str, list[tuple[int, str]]] = {}
    for stack, found in stacks.items():
        if len({dtype for _, dtype in found}) > 1:
            groups.setdefault(role(stack), []).extend(found)
    for kind, found in groups.items():
        common, *others = Counter(dtype for _, dtype in found).most_common()
        strange = tuple(tensor for tensor, dtype in found if dtype != common[0])
        yield Mixed(kind, common[0], tuple(others), strange)
