"""Bytes that a checkpoint could do without and hold the same numbers: proven from its bits, or not told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

    from diffai_dist.records import Measurements

Kind = Literal["duplicate", "bf16-in-f32", "f16-in-f32"]

_BF16_EMPTY = 0xFFFF  # bits of an F32 that a BF16 does not have
_F16_EMPTY = 0x1FFF
_F16_EXPONENTS = (127 - 14, 127 + 15)  # biased, of F32: those of normal F16


@dataclass(frozen=True, slots=True)
class Saving:
    """One tensor that is stored again, or wider than what it holds; `like` says as what. Members by index."""

    kind: Kind
    tensor: str
    like: str
    nbytes: int
    members: tuple[int, ...]


def savings(measured: Measurements) -> tuple[list[Saving], int]:
    """Each saving once, with its members, the largest first; how many tensors of members were not examined."""
    examined = _examined(measured)
    found: dict[tuple[Kind, str, str, int], list[int]] = {}
    for member in range(len(measured.comparison.members)):
        chosen = examined[:, member].nonzero()[0].tolist()
        for one in (*_duplicates(measured, member, chosen), *_narrower(measured, member, chosen)):
            found.setdefault(one, []).append(member)
    made = [Saving(*one, tuple(members)) for one, members in found.items()]
    there = sum(one is not None for aligned in measured.comparison.aligned for one in aligned.tensors)
    return sorted(made, key=lambda one: -one.nbytes), there - int(examined.sum())


def _examined(measured: Measurements) -> np.ndarray:
    """Which tensors [tensors, members] had all their bits looked at."""
    import numpy as np

    aligned = measured.comparison.aligned
    sizes = [[-1 if one is None else one.counted for one in tensor.tensors] for tensor in aligned]
    counted = np.array(sizes, np.int64).reshape(len(aligned), len(measured.comparison.members))
    content = measured.details.content
    if content is None:
        return np.zeros(counted.shape, bool)
    found: np.ndarray = (content["count"] == counted) & (measured.moments["count"] == counted)
    for tensor, member in measured.failures:
        found[tensor, member] = False
    return found


def _duplicates(measured: Measurements, member: int, chosen: list[int]) -> Iterator[tuple[Kind, str, str, int]]:
    """Tensors after the first of equal dtype, shape, digest and moments."""
    import numpy as np

    content = measured.details.content
    if content is None or not chosen:
        return
    digests = content["digest"][chosen, member]
    _, inverse, counts = np.unique(digests, return_inverse=True, return_counts=True)
    first: dict[tuple[object, ...], str] = {}
    for place in (counts[inverse] > 1).nonzero()[0].tolist():
        index = chosen[place]
        tensor = measured.comparison.aligned[index].tensors[member]
        if tensor is None or not tensor.nbytes:
            continue
        moments = measured.moments[index, member].tobytes()
        key = (tensor.dtype, tensor.shape, int(digests[place]), moments)
        if (kept := first.setdefault(key, tensor.name)) != tensor.name:
            yield "duplicate", tensor.name, kept, tensor.nbytes


def _narrower(measured: Measurements, member: int, chosen: list[int]) -> Iterator[tuple[Kind, str, str, int]]:
    content = measured.details.content
    if content is None or not chosen:
        return
    words = content["ored"][chosen, member]
    empty = (words & words.dtype.type(_F16_EMPTY) == 0).nonzero()[0].tolist()
    for index, bits in ((chosen[place], int(words[place])) for place in empty):
        tensor = measured.comparison.aligned[index].tensors[member]
        if tensor is None or tensor.dtype != "F32" or not tensor.nbytes:
            continue
        if not bits & _BF16_EMPTY:
            yield "bf16-in-f32", tensor.name, "BF16", tensor.nbytes // 2
        elif _in_range_of_f16(measured, index, member):
            yield "f16-in-f32", tensor.name, "F16", tensor.nbytes // 2


def _in_range_of_f16(measured: Measurements, index: int, member: int) -> bool:
    """Whether all values are 0 or normal F16, as far as the histogram was measured; what is not finite is not told."""
    histogram = measured.details.histograms.get((index, member))
    moments = measured.moments[index, member]
    if histogram is None or moments["finite"] != moments["count"]:
        return False
    exponents = (histogram["bin"].astype("int64") & 0x7FFF) >> 7
    low, high = _F16_EXPONENTS
    normal = histogram["count"][(exponents >= low) & (exponents <= high)].sum()
    return bool(normal + moments["zeros"] == moments["count"])
