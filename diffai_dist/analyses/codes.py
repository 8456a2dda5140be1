"""Which tensors are codes with a scale on one side and numbers on the other, so that no number compares the two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from diffai_dist.analyses.noise import may_be_codes, places_of
from diffai_dist.analyses.scales import companions, has_scale
from diffai_dist.checkpoint import Tensor
from diffai_dist.comparison import Pair
from diffai_dist.records import Measurements


def scaled(measured: Measurements, pair_index: int) -> frozenset[int]:
    """Indices of aligned tensors that one side alone holds as codes, with a scale beside them."""
    return frozenset(i for _, i, _, _ in _codes(measured, measured.comparison.pairs[pair_index]))


def beside_codes(measured: Measurements, pair_index: int) -> frozenset[int]:
    """Indices of the scales of such tensors, of their zero points, and of what else a quantiser writes beside them."""
    found = _codes(measured, measured.comparison.pairs[pair_index])
    return frozenset(one for pair, _, codes, places in found for one in companions(measured, pair, codes, places))


def _codes(measured: Measurements, pair: Pair) -> Iterator[tuple[Pair, int, Tensor, Mapping[str, int]]]:
    """The pair with the codes as its candidate, index and codes, and where that side's names are."""
    for way in (pair, Pair(pair.candidate, pair.baseline)):
        places: dict[str, int] = {}
        for i, one in enumerate(measured.comparison.aligned):
            numbers, codes = one.tensors[way.baseline], one.tensors[way.candidate]
            if numbers and codes and may_be_codes(numbers, codes):
                places = places or places_of(measured, way.candidate)
                if has_scale(measured, way, codes, places):
                    yield way, i, codes, places
