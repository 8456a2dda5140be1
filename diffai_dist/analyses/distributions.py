"""How far two distributions of values are apart, and their quantiles, out of their histograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# What 8 significant bits hold: a bin is one value of these. A bin of the others is 2^-7 of its value wide.
EXACT = frozenset({"BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "F4", "I8", "U8", "BOOL"})
HALF_BIN = 2.0**-8  # of a value: what the middle of a bin may be off
_COARSE = 5  # bits of a bin that Jensen-Shannon leaves out: sign, exponent and two bits of the mantissa stay
_ZERO = np.uint32(0x8000)


@dataclass(frozen=True)
class Distribution:
    """Counts of finite values by bin, in the order of the values; +0 and -0 are one bin."""

    keys: np.ndarray  # int64, ascending: magnitude of the bin, negative for negative values
    counts: np.ndarray  # int64
    values: np.ndarray  # float64: the value, or the middle of the bin
    exact: bool

    @property
    def total(self) -> int:
        """How many values there are."""
        return int(self.counts.sum())


def distribution(histogram: np.ndarray, dtype: str) -> Distribution:
    """Of HISTOGRAM rows, in any order."""
    bins = histogram["bin"]
    magnitudes = (bins & ~_ZERO).astype(np.int64)
    keys, inverse = np.unique(np.where(bins & _ZERO, -magnitudes, magnitudes), return_inverse=True)
    counts = np.zeros(len(keys), np.int64)
    np.add.at(counts, inverse, histogram["count"])
    exact = dtype in EXACT
    patterns = np.abs(keys).astype(np.uint32) << np.uint32(16)
    if not exact:
        patterns = np.where(keys == 0, patterns, patterns | _ZERO).astype(np.uint32)
    return Distribution(keys, counts, np.sign(keys) * patterns.view(np.float32).astype(np.float64), exact)


def shares(a: Distribution, b: Distribution) -> tuple[np.ndarray, np.ndarray]:
    """The share of each side in every bin that either has, in the order of the values."""
    keys = np.union1d(a.keys, b.keys)
    found = np.zeros((2, len(keys)))
    for row, side in zip(found, (a, b), strict=True):
        row[np.searchsorted(keys, side.keys)] = side.counts / side.total
    return found[0], found[1]


def kolmogorov_smirnov(a: Distribution, b: Distribution) -> tuple[float, float]:
    """The largest gap of the cumulative distributions at edges of bins, and how much larger it may be inside one."""
    p, q = shares(a, b)
    gap = float(np.abs(np.cumsum(p) - np.cumsum(q)).max(initial=0.0))
    inside = 0.0 if a.exact and b.exact else float(np.maximum(p, q).max(initial=0.0))
    return min(gap, 1.0), min(inside, 1.0 - min(gap, 1.0))


def wasserstein(a: Distribution, b: Distribution) -> float:
    """The integral of the gap of the cumulative distributions: how far values move at least, on average."""
    values = np.concatenate([a.values, b.values])
    steps = np.concatenate([a.counts / a.total, -b.counts / b.total])
    order = np.argsort(values, kind="stable")
    return float(np.abs(np.cumsum(steps[order])[:-1]) @ np.diff(values[order]))


def jensen_shannon(a: Distribution, b: Distribution) -> float:
    """The divergence in bits, 0 to 1, over bins of sign, exponent and two bits of the mantissa."""
    coarse = [np.sign(side.keys) * (np.abs(side.keys) >> _COARSE) for side in (a, b)]
    groups, inverse = np.unique(np.concatenate(coarse), return_inverse=True)
    p, q = (
        np.bincount(where, side.counts, len(groups)) / side.total
        for where, side in zip(np.split(inverse, [len(a.keys)]), (a, b), strict=True)
    )
    middle = (p + q) / 2
    with np.errstate(all="ignore"):
        terms = [np.where(side > 0, side * np.log2(side / middle), 0.0) for side in (p, q)]
    return float(min(max((terms[0].sum() + terms[1].sum()) / 2, 0.0), 1.0))


def stability_index(a: Distribution, b: Distribution) -> float:
    """PSI = sum (q - p) ln(q / p) over tenths of the baseline, as far as bins can be cut into them.

    A bin belongs to the tenth in which it begins. Nothing of the candidate in a tenth counts as half an element.
    """
    p, q = shares(a, b)
    counts = np.rint(p * a.total).astype(np.int64)
    tenths = np.minimum(10 * (np.cumsum(counts) - counts) // a.total, 9)
    expected, found = np.bincount(tenths, p, 10), np.bincount(tenths, q, 10)
    some = expected > 0
    expected, found = expected[some], np.maximum(found[some], 0.5 / b.total)
    return float(((found - expected) * np.log(found / expected)).sum())


def quantiles(side: Distribution, at: Sequence[float]) -> list[float]:
    """The smallest values that at least these shares of all do not exceed."""
    ranks = np.ceil(np.array(at) * side.total * (1 - 2.0**-50)).astype(np.int64)  # 0.001 * 1000 is a whole number
    places = np.searchsorted(np.cumsum(side.counts), np.maximum(ranks, 1))
    found: list[float] = side.values[places].tolist()
    return found
