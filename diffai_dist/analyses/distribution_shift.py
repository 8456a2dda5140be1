"""How the distribution of each tensor's values moved, whichever element has which."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.bounding import MOST, bounded
from diffai_dist.dtypes import Family
from diffai_dist.records import AnalysisRecord, Finding, Measurements, Number, TensorRecord

NOT_COUNTED = "values were not counted into bins"
QUANTILES = {
    "p0.1": 0.001, "p1": 0.01, "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99,
    "p99.9": 0.999,
}  # fmt: skip


@dataclass(frozen=True)
class DistributionShift:
    """How far the distribution of values moved: KS, Wasserstein, Jensen-Shannon, PSI, effect size, quantiles.

    Finite values are counted into bins of sign, exponent and 7 bits of the mantissa. Those hold the values of BF16 and
    of dtypes of 8 bits and less exactly; of the others a quantile is right to 2^-8 of itself, and the errors beside KS
    and Wasserstein bound what bins hide. Permuted weights have the distribution they had: 1 - cos stands beside it.
    There are no p-values, since with millions of elements each is 0. --all leaves this out: counting takes as long as
    everything that is measured by default, 0.5 to 0.8 ns per element of one core.
    """

    name: ClassVar[str] = "distribution_shift"
    flag: ClassVar[str] = "--distribution-shift"
    kind: ClassVar[Kind] = "2"
    partials: ClassVar[tuple[str, ...]] = ("histogram",)
    in_all: ClassVar[bool] = False
    result: ClassVar[Mapping[str, str]] = {
        "tensors": "tensors whose values were counted on both sides",
        "elements": "their elements",
        "stable": "those with a PSI below `moderate`",
        "moderate": "those from `moderate` to `significant`",
        "significant": "those above `significant`",
        "reason": "why there are no tensors; null where there are",
        "shifts": f"the largest PSI first, at most {MOST}: tensor; ks, the largest gap of the cumulative "
        "distributions, 0 to 1, and ks_error, how much larger it may be inside a bin; w1, the integral of the gap / "
        "standard deviation of the baseline, and w1_error likewise; js, the Jensen-Shannon divergence in bits, over "
        "bins of sign, exponent and two bits of the mantissa; psi, sum (q - p) ln(q / p) over tenths of the baseline, "
        "an empty one with half an element; dz, mean of d / its standard deviation, null where not all is finite or d "
        "is constant; cosine_distance, 1 - cos; baseline and candidate, their quantiles in percent",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "distribution-moved": "the PSI of a tensor of `least` elements or more is above `significant`: low; from "
        "`moderate` on: info"
    }
    sources: ClassVar[tuple[str, ...]] = (
        "PSI below 0.1, to 0.25 and above: convention, without mathematical standing",
        "bins of 2^-7 of a value, and what they hide: derived",
        "1000 elements: judgement",
    )

    moderate: float = threshold(0.1, "PSI from which a distribution moved", "convention")
    significant: float = threshold(0.25, "PSI above which it moved much", "convention")
    least: int = threshold(1000, "elements; the PSI of fewer is moved by chance")

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """A row per tensor that was counted, the largest PSI first."""
        rows = list(_rows(measured, pair_index, records))
        rows.sort(key=lambda row: (-row["psi"], row["tensor"]))
        bands = [(row["psi"] >= self.moderate) + (row["psi"] > self.significant) for row in rows]
        result = {
            "tensors": len(rows),
            "elements": sum(row["elements"] for row in rows),
            **{name: bands.count(band) for band, name in enumerate(("stable", "moderate", "significant"))},
            "reason": None if rows else NOT_COUNTED,
            "shifts": [{key: value for key, value in row.items() if key != "elements"} for row in rows[:MOST]],
        }
        return AnalysisRecord(self.name, result, tuple(bounded(self._findings(rows))))

    def _findings(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
        for row in rows:
            if row["elements"] < self.least or row["psi"] < self.moderate:
                continue
            if row["psi"] > self.significant:
                yield finding(self, "distribution-moved", "low", row["tensor"], row["psi"], "significant")
            else:
                yield finding(self, "distribution-moved", "info", row["tensor"], row["psi"], "moderate")


def _rows(measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> Iterator[dict[str, Any]]:
    from diffai_dist.analyses.distributions import (
        distribution,
        jensen_shannon,
        kolmogorov_smirnov,
        quantiles,
        stability_index,
        wasserstein,
    )

    pair, changes = measured.comparison.pairs[pair_index], {one.name: one.change for one in records if one.change}
    for i, aligned in enumerate(measured.comparison.aligned):
        tensors = aligned.tensors[pair.baseline], aligned.tensors[pair.candidate]
        counted = [measured.details.histograms.get((i, member)) for member in (pair.baseline, pair.candidate)]
        if aligned.name not in changes or any(one is None or not len(one) for one in counted):
            continue
        if any(one is None or one.decoder.family >= Family.COMPLEX for one in tensors):
            continue
        a, b = (distribution(one, tensor.dtype) for one, tensor in zip(counted, tensors, strict=True))  # type: ignore
        sides, shares = {"baseline": a, "candidate": b}, list(QUANTILES.values())
        ks, inside = kolmogorov_smirnov(a, b)
        width, error = _scales(measured, i, pair_index, a.exact, b.exact)
        yield {
            "tensor": aligned.name,
            "elements": min(a.total, b.total),
            "ks": ks,
            "ks_error": inside,
            "w1": wasserstein(a, b) / width if width else None,
            "w1_error": error / width if width else None,
            "js": jensen_shannon(a, b),
            "psi": stability_index(a, b),
            "dz": _effect(measured, i, pair_index),
            "cosine_distance": changes[aligned.name].cosine_distance,
            **{key: dict(zip(QUANTILES, quantiles(side, shares), strict=True)) for key, side in sides.items()},
        }


def _scales(measured: Measurements, index: int, pair_index: int, *exact: bool) -> tuple[float | None, float]:
    """The baseline's standard deviation, None where it is 0 or unknown, and how far bins may take W1."""
    from diffai_dist.analyses.distributions import HALF_BIN

    pair = measured.comparison.pairs[pair_index]
    sides = [measured.moments[index, member] for member in (pair.baseline, pair.candidate)]
    spread = math.sqrt(sides[0]["m2"] / sides[0]["finite"]) if sides[0]["finite"] else 0.0
    sizes = [
        0.0 if known else float(side["abs_sum"] / side["finite"]) for known, side in zip(exact, sides, strict=True)
    ]
    return (spread if 0.0 < spread < math.inf else None), HALF_BIN * sum(sizes)


def _effect(measured: Measurements, index: int, pair_index: int) -> Number:
    """Mean of d in its standard deviations; None where not all is finite, or all moved alike."""
    pair, shift = measured.comparison.pairs[pair_index], measured.shifts[index, pair_index]
    count = int(shift["count"])
    if not count or shift["both"] != count:
        return None
    mean = float(measured.moments[index, pair.candidate]["mean"] - measured.moments[index, pair.baseline]["mean"])
    variance = float(shift["d2"]) / count - mean * mean
    # What a difference of means has lost to rounding is no spread.
    if not 1e-12 * mean * mean < variance < math.inf:
        return None
    return mean / math.sqrt(variance)
