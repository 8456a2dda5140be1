"""How distributions moved, against SciPy-free NumPy on the sorted values themselves."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from details_oracle import histogram, measured, name_of, reals
from diffai_dist.analyses.distribution_shift import NOT_COUNTED, QUANTILES, DistributionShift
from diffai_dist.analyses.distributions import distribution
from diffai_dist.judging import tensor_records
from diffai_dist.records import AnalysisRecord, Details, Measurements

BF16, F8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
SHARES = list(QUANTILES.values())
EXACT, ROUNDED = [BF16, F8, np.int8, np.uint8], [np.float32, np.float64, np.float16, np.int32]


def judged(measurements: Measurements, **options: Any) -> AnalysisRecord:
    """The answer in strict JSON, with the keys and rules that the analysis declares."""
    answer = DistributionShift(**options)(measurements, 0, tensor_records(measurements, 0, None))
    json.dumps(answer.result, allow_nan=False)
    assert list(answer.result) == list(DistributionShift.result)
    for one in answer.findings:
        assert one.severity in DistributionShift.rules[one.rule]
    return answer


def ask(before: np.ndarray, after: np.ndarray, **options: Any) -> dict[str, Any]:
    (row,) = judged(measured([{"w": before}, {"w": after}]), **options).result["shifts"]
    return dict(row)


def values(kind: Any, seed: int, size: int = 5000, scale: float = 1.0) -> np.ndarray:
    made = np.random.default_rng(seed).normal(0.1, scale, size)
    if np.dtype(kind).kind in "iu":
        return np.clip(made * 30 + 60, 0, 127).astype(kind)
    return made.astype(kind)


def gap(a: np.ndarray, b: np.ndarray) -> float:
    """The largest gap of the cumulative distributions, at every value there is."""
    at = np.concatenate([a, b])
    p, q = (np.searchsorted(np.sort(side), at, "right") / len(side) for side in (a, b))
    return float(abs(p - q).max())


def transport(a: np.ndarray, b: np.ndarray) -> float:
    """Of equally many values: the mean distance of those of the same rank."""
    return float(abs(np.sort(a) - np.sort(b)).mean())


def binned(x: np.ndarray) -> np.ndarray:
    """Which bin of the histogram each value lies in, as the float32 it begins with; one zero."""
    return (x.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64) + 0.0


def psi(a: np.ndarray, b: np.ndarray) -> float:
    """Over tenths of a: a bin belongs to the one in which it begins."""
    a, b = binned(a), binned(b)
    at = np.union1d(a, b)
    first = np.searchsorted(np.sort(a), at, "left") * 10 // len(a)
    tenth = dict(zip(at.tolist(), np.minimum(first, 9).tolist(), strict=True))
    found = 0.0
    for one in range(10):
        p = sum(tenth[x] == one for x in a.tolist()) / len(a)
        q = sum(tenth[x] == one for x in b.tolist()) / len(b) or 0.5 / len(b)
        found += (q - p) * math.log(q / p) if p else 0.0
    return found


def divergence(a: np.ndarray, b: np.ndarray) -> float:
    """In bits, over the sign, the exponent and two bits of the mantissa."""
    sides = []
    for x in (a, b):
        bins = binned(x).astype(np.float32).view(np.uint32) >> 21
        sides.append(np.bincount(np.where(bins == 0x400, 0, bins), minlength=2048) / len(x))
    p, q = sides
    m = (p + q) / 2
    terms = [side[side > 0] * np.log2(side[side > 0] / m[side > 0]) for side in (p, q)]
    return float(terms[0].sum() + terms[1].sum()) / 2


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("seed", [1, 2])
def test_numbers_of_narrow_dtypes_are_exact(kind: Any, seed: int) -> None:
    before, after = values(kind, seed), values(kind, seed + 10, scale=1.1)
    a, b = reals(before), reals(after)
    row = ask(before, after)
    assert (row["ks_error"], row["w1_error"]) == (0, 0)
    assert row["ks"] == pytest.approx(gap(a, b), abs=1e-12)
    assert row["w1"] == pytest.approx(transport(a, b) / a.std(), rel=1e-9)
    for side, found in ((a, row["baseline"]), (b, row["candidate"])):
        assert list(found.values()) == np.quantile(side, SHARES, method="inverted_cdf").tolist()


@pytest.mark.parametrize("kind", ROUNDED)
@pytest.mark.parametrize("seed", [3, 4])
def test_numbers_of_wide_dtypes_are_right_to_the_error_that_is_told(kind: Any, seed: int) -> None:
    before, after = values(kind, seed), values(kind, seed + 10, scale=1.1)
    a, b = reals(before), reals(after)
    row = ask(before, after)
    assert 0 < row["ks_error"] < 0.1
    assert row["ks"] - 1e-12 <= gap(a, b) <= row["ks"] + row["ks_error"] + 1e-12
    assert 0 < row["w1_error"] < 0.02
    assert abs(row["w1"] - transport(a, b) / a.std()) <= row["w1_error"]
    for side, found in ((a, row["baseline"]), (b, row["candidate"])):
        exact = np.quantile(side, SHARES, method="inverted_cdf")
        assert (abs(np.array(list(found.values())) - exact) <= 2.0**-8 * abs(exact) + 1e-40).all()


@pytest.mark.parametrize("kind", [*EXACT, *ROUNDED])
def test_divergences_are_those_of_the_bins(kind: Any) -> None:
    before, after = values(kind, 5), values(kind, 15, scale=1.3)
    a, b = reals(before), reals(after)
    row = ask(before, after)
    assert row["psi"] == pytest.approx(psi(a, b), rel=1e-9)
    assert row["js"] == pytest.approx(divergence(a, b), rel=1e-9)
    d = b - a
    assert row["dz"] == pytest.approx(d.mean() / d.std(), rel=1e-6)
    cosine = a @ b / math.sqrt((a @ a) * (b @ b))
    assert row["cosine_distance"] == pytest.approx(1 - cosine, rel=1e-9)


def test_a_cast_moves_no_distribution() -> None:
    before = values(np.float32, 6)
    row = ask(before, before.astype(BF16))
    assert row["ks"] <= row["ks_error"]
    assert row["w1"] <= row["w1_error"]
    assert row["psi"] < 0.01


def test_permuted_weights_have_the_distribution_they_had() -> None:
    before = values(BF16, 7)
    row = ask(before, np.random.default_rng(8).permutation(before))
    assert (row["ks"], row["w1"], row["js"], row["psi"]) == (0, 0, 0, 0)
    assert row["cosine_distance"] > 0.5


def test_distributions_without_a_common_value_are_as_far_apart_as_can_be() -> None:
    row = ask(np.linspace(1, 2, 1000).astype(BF16), -np.linspace(1, 2, 1000).astype(BF16))
    assert (row["ks"], row["js"]) == (1, pytest.approx(1))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([np.float32, BF16]), st.floats(0.1, 10))
def test_swapping_sides_keeps_what_is_symmetric_and_mirrors_the_effect(seed: int, kind: Any, scale: float) -> None:
    before, after = values(kind, seed, 300), values(kind, seed + 1, 300, scale)
    one, other = ask(before, after), ask(after, before)
    assert one["ks"] == pytest.approx(other["ks"])
    assert one["js"] == pytest.approx(other["js"], abs=1e-12)
    assert one["dz"] == pytest.approx(-other["dz"])
    assert one["w1"] * reals(before).std() == pytest.approx(other["w1"] * reals(after).std())
    assert 0 <= one["ks"] <= 1
    assert 0 <= one["js"] <= 1


def test_zeros_of_both_signs_are_one_value() -> None:
    row = ask(np.zeros(100, np.float32), -np.zeros(100, np.float32))
    assert (row["ks"], row["js"], row["psi"], row["baseline"]) == (0, 0, 0, dict.fromkeys(QUANTILES, 0.0))
    assert (row["w1"], row["dz"]) == (None, None)


def test_what_is_not_finite_is_left_out() -> None:
    before, after = values(np.float32, 9), values(np.float32, 19)
    after[:7] = math.nan
    row = ask(before, after)
    assert row["dz"] is None
    assert row["ks"] == pytest.approx(gap(binned(before), binned(after[7:])), abs=1e-12)


def test_a_value_beyond_float32_is_its_largest() -> None:
    found = distribution(histogram(np.array([1e300, -1e300])), "F64").values
    assert found == pytest.approx([-3.4e38, 3.4e38], rel=0.01)


# Findings


def psi_of(answer: AnalysisRecord) -> float:
    return float(answer.result["shifts"][0]["psi"])


@pytest.mark.parametrize(("option", "severity"), [("moderate", "info"), ("significant", "low")])
def test_a_finding_begins_at_its_threshold(option: str, severity: str) -> None:
    found = measured([{"w": values(BF16, 1)}, {"w": values(BF16, 2, scale=1.3)}])
    value = psi_of(judged(found))
    others = {"moderate": {"significant": 1e9}, "significant": {"moderate": 0.0}}[option]
    below, above = np.nextafter(value, [0.0, 9.0]).tolist()
    told = [judged(found, **others, **{option: limit}).findings for limit in (below, value, above)]
    severities = [[one.severity for one in findings] for findings in told]
    at, beyond = (["info"], []) if option == "moderate" else (["info"], ["info"])  # from the one on, above the other
    assert severities == [[severity], at, beyond]
    assert (told[0][0].value, told[0][0].threshold, told[0][0].source) == (value, below, f"setting of {option}")


def test_bands_are_counted_and_few_elements_are_no_finding() -> None:
    before = {f"w{i}": values(BF16, i) for i in range(3)} | {
        "few": values(BF16, 9, 999),
        "enough": values(BF16, 9, 1000),
    }
    scales = {"w0": 1.01, "w1": 1.4, "w2": 4.0, "few": 4.0, "enough": 4.0}
    after = {name: (reals(array) * scales[name]).astype(BF16) for name, array in before.items()}
    answer = judged(measured([before, after]))
    counts = {row["tensor"]: (row["psi"] >= 0.1) + (row["psi"] > 0.25) for row in answer.result["shifts"]}
    for band, name in enumerate(("stable", "moderate", "significant")):
        assert answer.result[name] == list(counts.values()).count(band)
    assert {one.tensor for one in answer.findings} == {name for name, band in counts.items() if band} - {"few"}
    assert counts["w0"] == 0
    assert [row["psi"] for row in answer.result["shifts"]] == sorted(
        (row["psi"] for row in answer.result["shifts"]), reverse=True
    )


def test_rows_are_bounded_and_all_tensors_counted() -> None:
    before: Mapping[str, np.ndarray] = {f"w{i}": values(F8, i, 200) for i in range(25)}
    after = {name: values(F8, 99, 200) for name in before}
    answer = judged(measured([before, after]))
    assert (len(answer.result["shifts"]), answer.result["tensors"], answer.result["elements"]) == (20, 25, 5000)


def test_without_bins_it_says_so() -> None:
    found = measured([{"w": values(BF16, 1)}, {"w": values(BF16, 2)}])
    answer = judged(dataclasses.replace(found, details=Details()))
    assert (answer.result["tensors"], answer.result["reason"], answer.findings) == (0, NOT_COUNTED, ())
    assert judged(found).result["reason"] is None
    assert name_of(values(BF16, 1)) == "BF16"
