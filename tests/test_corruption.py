"""Damage that is planted is found where it lies, and what training does to healthy checkpoints is none."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import transformer
from details_oracle import checkpoint, measured
from diffai_dist.analyses.corruption_check import NO_BITS, NO_CONTENT, NO_ROWS, CorruptionCheck
from diffai_dist.judging import tensor_records
from diffai_dist.records import AnalysisRecord, Details, Measurements

Arrays = Mapping[str, np.ndarray]
BF16, F8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
FLOATS = [np.float64, np.float32, np.float16, BF16]
PAGE = 4096


def judged(measurements: Measurements, **options: Any) -> AnalysisRecord:
    """The answer in strict JSON, with the keys and rules that the analysis declares."""
    answer = CorruptionCheck(**options)(measurements, 0, tensor_records(measurements, 0, None))
    json.dumps(answer.result, allow_nan=False)
    assert list(answer.result) == list(CorruptionCheck.result)
    for one in answer.findings:
        assert one.severity in CorruptionCheck.rules[one.rule]
    return answer


def ask(before: np.ndarray, after: np.ndarray, **options: Any) -> AnalysisRecord:
    return judged(measured([{"w": before}, {"w": after}]), **options)


def told(answer: AnalysisRecord) -> list[tuple[str, str, str | None]]:
    return [(one.rule, one.severity, one.tensor) for one in answer.findings]


def only(answer: AnalysisRecord) -> dict[str, Any]:
    (row,) = answer.result["signatures"]
    return dict(row)


def weights(shape: tuple[int, ...] = (96, 64), seed: int = 0, kind: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(kind)


def trained(array: np.ndarray, size: float = 0.01, seed: int = 1) -> np.ndarray:
    """The array after a step of that relative length."""
    move = size * array.astype(np.float64).std() * np.random.default_rng(seed).normal(size=array.shape)
    return (array.astype(np.float64) + move).astype(array.dtype)


# Giants


def row_rms(array: np.ndarray) -> float:
    return float(np.median(np.sqrt((array.astype(np.float64) ** 2).mean(axis=1))))


@pytest.mark.parametrize(("factor", "found"), [(0.999, False), (1.001, True)])
def test_a_giant_is_more_than_the_limit_times_the_median_row(factor: float, found: bool) -> None:
    before = weights(kind=np.float64)
    after = trained(before)
    after[40, 7] = -factor * 2.0**32 * row_rms(after)  # the row with the giant does not move the median by much
    answer = ask(before, after)
    assert told(answer) == ([("isolated-giant", "critical", "w")] if found else [])
    assert answer.result["largest_ratio"] == pytest.approx(abs(after).max() / row_rms(after), rel=1e-12)
    if found:
        row = only(answer)
        assert (row["element"], row["byte_offset"], row["length"]) == (40 * 64 + 7, 4096 + 8 * (40 * 64 + 7), 8)
        assert (row["value"], row["baseline"]) == (answer.result["largest_ratio"], abs(before).max())


def test_a_limit_that_is_set_is_kept_exactly() -> None:
    before = weights(kind=np.float64)
    after = trained(before)
    after[40, 7] = 1e6
    ratio = ask(before, after).result["largest_ratio"]
    assert ask(before, after, giant=float(ratio)).findings == ()
    (found,) = ask(before, after, giant=float(np.nextafter(ratio, 0))).findings
    assert (found.rule, found.source) == ("isolated-giant", "setting of giant")


def test_a_giant_that_the_baseline_has_is_not_new() -> None:
    before = weights()
    before[3, 3] = 1e30
    after = trained(before, 0)
    after[5, 5] += 0.01
    assert ask(before, after).findings == ()
    after[3, 3] = 15.9e30
    assert ask(before, after).findings == ()
    after[3, 3] = 17e30
    assert told(ask(before, after)) == [("isolated-giant", "critical", "w")]


def test_a_ratio_beyond_float64_is_said_not_to_be_finite() -> None:
    before = weights(kind=np.float64) * 1e-150
    after = trained(before)
    after[40, 7] = 1e300
    answer = ask(before, after)
    assert (only(answer)["value"], answer.findings[0].value, answer.result["largest_ratio"]) == (
        None,
        "not finite",
        None,
    )
    assert answer.result["largest_tensor"] == "w"


def test_a_heavy_tail_has_no_giant() -> None:
    """Second moments of an optimizer span many orders of magnitude without one that stands alone."""
    generator = np.random.default_rng(2)
    before = np.exp(generator.normal(-40, 12, (2000, 1)) + generator.normal(size=(2000, 16))).astype(np.float32)
    after = (before * np.exp(generator.normal(0, 3, before.shape))).astype(np.float32)
    answer = ask(before, after)
    assert answer.result["largest_ratio"] > 2.0**32
    assert answer.findings == ()


def test_a_tensor_without_a_baseline_may_have_a_giant() -> None:
    after = weights()
    after[0, 1] = 3e37
    answer = judged(measured([{"x": weights()}, {"x": weights(), "w": after}]))
    assert told(answer) == [("isolated-giant", "critical", "w")]
    assert only(answer)["baseline"] is None


def test_masks_hold_giants_on_purpose() -> None:
    before = weights()
    after = trained(before)
    after[0, 0] = -3e38
    assert judged(measured([{"attn.causal_mask": before}, {"attn.causal_mask": after}])).findings == ()


# Flips


@pytest.mark.parametrize("kind", FLOATS)
def test_each_high_bit_of_an_exponent_is_found_when_it_flips_alone(kind: Any) -> None:
    array = weights((64, 64), kind=kind)
    width = array.dtype.itemsize
    mantissa = {2: 10, 4: 23, 8: 52}[width] if kind is not BF16 else 7
    for bit in range(8 * width):
        flipped = array.copy()
        flipped.view(f"u{width}")[9, 11] ^= np.uint64(1 << bit).astype(f"u{width}")
        answer = ask(array, flipped)
        exponent = mantissa <= bit < 8 * width - 1
        flips = [one for one in answer.result["signatures"] if one["kind"] == "bit-flip"]
        assert len(flips) == exponent
        if exponent:
            assert (flips[0]["element"], flips[0]["byte_offset"]) == (587, 4096 + 587 * width)


@pytest.mark.parametrize("kind", [np.float32, BF16])
def test_a_flip_is_found_in_a_tensor_that_was_trained(kind: Any) -> None:
    before = weights((64, 64), kind=kind)
    after = trained(before)
    after[:, 11] = before[:, 11]
    after.view(f"u{after.dtype.itemsize}")[9, 11] ^= np.uint64(1 << (8 * after.dtype.itemsize - 2)).astype(
        f"u{after.dtype.itemsize}"
    )
    assert ("bit-flip", "critical", "w") in told(ask(before, after))


def test_a_flip_that_gives_a_nan_is_found() -> None:
    before = weights()
    before[9, 11] = 1.5
    after = trained(before)
    after[9, 11] = 1.5
    after.view(np.uint32)[9, 11] ^= 1 << 30
    assert np.isnan(after[9, 11])
    answer = ask(before, after)
    assert told(answer) == [("bit-flip", "critical", "w")]
    assert (only(answer)["value"], answer.findings[0].value) == (None, "not finite")


@pytest.mark.parametrize(("factor", "found"), [(15.9, False), (16.0, True), (256.0, True)])
def test_a_flip_outgrows_the_baseline_by_sixteen(factor: float, found: bool) -> None:
    """The highest bit of the exponent makes 2^128 times the value; the largest of the baseline is 1."""
    before = np.clip(weights(), -0.5, 0.5)
    before[0, 0] = 1.0
    after = trained(before)
    after[0, 0], after[2, 2] = 1.0, factor
    before[2, 2] = factor * 2.0**-128
    assert told(ask(before, after)) == ([("bit-flip", "critical", "w")] if found else [])


def test_doubling_a_tensor_or_stepping_a_counter_flips_no_bit() -> None:
    before = weights()
    assert ask(before, 2 * before).findings == ()
    assert ask(np.float32([2.0]), np.float32([4.0])).findings == ()


# Runs of zeros


@pytest.mark.parametrize(
    ("start", "stop", "found"),
    [
        (1024, 2048, True),
        (1024, 2047, False),
        (1025, 2048, False),
        (1000, 2048, True),
        (1, 2047, False),
        (1, 3000, True),
    ],
)
def test_a_run_of_zeros_holds_a_whole_page(start: int, stop: int, found: bool) -> None:
    before = weights((4096,))
    after = trained(before)
    after[start:stop] = 0
    answer = ask(before, after)
    assert told(answer) == ([("zero-run", "high", "w")] if found else [])
    if found:
        row = only(answer)
        assert (row["element"], row["length"]) == (start, 4 * (stop - start))
        assert row["byte_offset"] == 4096 + 4 * start


def test_a_page_of_the_object_counts_as_one_of_the_tensor_does() -> None:
    before = weights((4096,))
    after = trained(before)
    after[1030:2054] = 0
    for start, found in ((4096 - 24, [("zero-run", "high", "w")]), (4096 - 20, [])):
        both = (
            checkpoint({"w": before}, "/run/0.safetensors", start),
            checkpoint({"w": after}, "/run/1.safetensors", start),
        )
        assert told(judged(measured([{"w": before}, {"w": after}], checkpoints=both))) == found


@pytest.mark.parametrize(("length", "found"), [(1023, False), (1024, True), (2000, True)])
def test_a_tail_of_a_page_was_not_written(length: int, found: bool) -> None:
    before = weights((5001,))
    after = trained(before)
    after[-length:] = 0
    answer = ask(before, after)
    assert told(answer) == ([("tail-not-written", "high", "w")] if found else [])
    if found:
        assert (only(answer)["element"], only(answer)["length"]) == (5001 - length, 4 * length)


def test_a_run_and_a_tail_are_two() -> None:
    before = weights((20000,), kind=BF16)
    after = trained(before)
    after[4096:9000] = 0
    after[-2048:] = 0
    assert sorted(told(ask(before, after))) == [("tail-not-written", "high", "w"), ("zero-run", "high", "w")]


@pytest.mark.parametrize(("extra", "found"), [(50, True), (51, False)])
def test_zeros_elsewhere_make_a_tensor_sparse(extra: int, found: bool) -> None:
    """One in a hundred of the rest, 5000 elements."""
    before = weights((6024,))
    after = trained(before)
    after[1024:2048] = 0
    after[3000 : 3000 + 2 * extra : 2] = 0
    assert bool(ask(before, after).findings) == found


def test_zeros_that_the_baseline_has_are_padding() -> None:
    before = weights((128, 256))
    before[100:] = 0
    after = trained(before)
    after[100:] = 0
    assert ask(before, after).findings == ()
    before[100:] = 1e-9 * weights((28, 256), 5)
    assert ask(before, after).findings == ()
    assert told(ask(weights((128, 256)), after)) == [("tail-not-written", "high", "w")]


def test_an_added_tensor_may_be_padded() -> None:
    after = weights((128, 256))
    after[100:] = 0
    answer = judged(measured([{"x": weights()}, {"x": weights(), "w": after}]))
    assert told(answer) == [("tail-not-written", "low", "w")]


# Regions


def test_regions_that_changed_places_are_found_with_their_origin() -> None:
    before = weights((400, 64))
    after = trained(before)
    moved = after.copy()
    moved[20:60], moved[200:240] = after[200:240], after[20:60]
    answer = ask(before, moved)
    assert told(answer) == [("shifted-region", "critical", "w")] * 2
    assert [(row["element"], row["length"], row["baseline"]) for row in answer.result["signatures"]] == [
        (20 * 64, 40 * 64 * 4, 200 * 64), (200 * 64, 40 * 64 * 4, 20 * 64),
    ]  # fmt: skip
    a, b = before[20:60].astype(np.float64), moved[20:60].astype(np.float64)
    cosine = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    assert answer.result["signatures"][0]["value"] == pytest.approx(cosine.mean(), rel=1e-9)


def test_a_region_that_slipped_by_rows_is_found() -> None:
    before = weights((300, 128), kind=BF16)
    after = trained(before, 0.001)
    after[200:] = after[197:297].copy()
    assert ("shifted-region", "critical", "w") in told(ask(before, after))


@pytest.mark.parametrize(("rows", "found"), [(3, []), (4, ["shifted-region"] * 2)])
def test_a_region_has_four_rows(rows: int, found: list[str]) -> None:
    before = weights((200, 64))
    after = trained(before)
    after[50 : 50 + rows], after[90 : 90 + rows] = after[90 : 90 + rows].copy(), after[50 : 50 + rows].copy()
    assert [one.rule for one in ask(before, after).findings] == found


def test_rows_that_were_made_anew_are_a_hint_alone() -> None:
    before = weights((200, 64))
    after = trained(before)
    after[100:120] = weights((20, 64), 9)
    answer = ask(before, after)
    assert told(answer) == [("region-replaced", "low", "w")]
    assert only(answer)["baseline"] is None


# Healthy


@pytest.mark.parametrize("seed", transformer.TUNING)
def test_a_training_raises_nothing(seed: int) -> None:
    members = transformer.training(seed)
    for before, after in ((0, 1), (0, -1), (5, 6), (-2, -1)):
        answer = judged(measured([members[before], members[after]]))
        assert told(answer) == []
        assert answer.result["tensors"] > 10


@pytest.mark.parametrize("kind", [*FLOATS, F8])
@pytest.mark.parametrize("size", [1e-3, 0.1, 3.0])
def test_steps_of_any_size_raise_nothing(kind: Any, size: float) -> None:
    before = weights((256, 128), kind=np.float32).astype(kind)
    assert ask(before, trained(before, size)).findings == ()


def test_what_is_pruned_made_anew_or_starts_at_zero_raises_nothing() -> None:
    generator = np.random.default_rng(3)
    before = weights((256, 128))
    sparse = np.where(generator.random(before.shape) < 0.3, 0, before)
    rows = before.copy()
    rows[generator.random(256) < 0.2] = 0
    for after in (sparse, rows, weights((256, 128), 8), 10 * weights((256, 128), 8), np.zeros_like(before)):
        assert ask(before, after).findings == ()
    assert ask(np.zeros_like(before), before).findings == ()
    assert ask(sparse, trained(sparse)).findings == ()


def test_what_is_equal_is_only_counted() -> None:
    array = weights()
    array[3, 3], array[50:] = 1e30, 0
    answer = ask(array, array.copy())
    assert (answer.findings, answer.result["equal"], answer.result["elements"]) == ((), 1, array.size)


def test_integers_and_small_tensors_are_not_looked_at() -> None:
    before = {"i": np.arange(9000), "s": np.ones(63, np.float32)}
    after = {"i": np.where(np.arange(9000) < 4000, 0, 7), "s": np.float32([1e30] * 63)}
    assert judged(measured([before, after])).result["tensors"] == 0


# What is missing


def test_without_details_it_says_so() -> None:
    found = measured([{"w": weights()}, {"w": trained(weights())}])
    answer = judged(dataclasses.replace(found, details=Details()))
    assert answer.result["reason"] == "; ".join((NO_CONTENT, NO_BITS, NO_ROWS))
    assert (answer.result["without_rows"], answer.findings) == (1, ())
    kept = dataclasses.replace(found.details, rows={}, row_shifts={})
    assert judged(dataclasses.replace(found, details=kept)).result["reason"] == NO_ROWS


def test_findings_and_rows_are_bounded() -> None:
    before = {f"w{i}": weights(seed=i) for i in range(30)}
    after = {name: trained(array) for name, array in before.items()}
    for array in after.values():
        array[1, 1] = 1e30
    answer = judged(measured([before, after]))
    assert len(answer.result["signatures"]) == 20
    assert answer.result["found"] == {"isolated-giant": 30}
    assert (len(answer.findings), answer.findings[-1].value) == (21, 10)


# What other dtypes need


@pytest.mark.parametrize(("row", "found"), [(1023.0, False), (1024.0, True), (40000.0, True)])
def test_a_giant_of_a_short_range_is_held_against_that_range(row: float, found: bool) -> None:
    """65504 / 64 is 1023.5; 2^32 times the usual is beyond what F16 can hold."""
    before = weights((400, 64), kind=np.float16)
    after = trained(before)
    after[40, 7] = row
    answer = ask(before, after)
    assert told(answer) == ([("isolated-giant", "critical", "w")] if found else [])
    if found:
        (one,) = answer.findings
        assert one.value == pytest.approx(row / row_rms(after), rel=1e-6)
        assert one.threshold == pytest.approx(65504 / 64 / row_rms(after), rel=1e-6)
        assert "F16" in one.source
    after[90, 3] = row
    assert ask(before, after).findings == ()
    assert ask(before.astype(np.float32), trained(before)).findings == ()


def codes(kind: Any, seed: int = 0, shape: tuple[int, ...] = (256, 256)) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * 20).astype(np.int8).astype(kind)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, F8])
def test_a_run_of_zeros_among_codes_is_one_too_long_for_chance(kind: Any) -> None:
    """One code in forty or so is zero."""
    before = codes(kind)
    after = codes(kind, 1)
    share = np.mean(after.astype(np.float32) == 0)
    assert share > 0.01
    assert ask(before, after).findings == ()
    after.reshape(-1)[10000:30000] = 0
    answer = ask(before, after)
    assert told(answer) == [("zero-run", "high", "w")]
    assert only(answer)["element"] <= 10000
    assert answer.result["not_float"] == 0
    after[-40:] = 0
    assert ("tail-not-written", "high", "w") in told(ask(before, after))


@pytest.mark.parametrize(("share", "found"), [(0.99, False), (0.9, True)])
def test_the_surprise_of_a_run_depends_on_the_zeros_beside_it(share: float, found: bool) -> None:
    generator = np.random.default_rng(3)
    before, after = (np.where(generator.random((256, 256)) < share, 0, 5).astype(np.int8) for _ in range(2))
    after[96:113] = 0
    assert (17 * 256 * -np.log2(share) > 64 + 16) == found
    assert bool(ask(before, after).findings) == found


def test_a_cast_to_codes_makes_zeros_of_what_was_small() -> None:
    before = codes(np.float32)
    before[100:150] *= 0.01
    assert ask(before, np.rint(before).astype(np.int8)).findings == ()


def test_what_is_not_looked_at_is_counted() -> None:
    arrays = {
        "w": weights(), "i": np.ones((9, 9), np.int32), "v": np.ones(99, np.int8), "attn.mask": np.ones((9, 9)),
        "flags": np.ones((9, 9), bool),
    }  # fmt: skip
    answer = judged(measured([arrays, arrays]))
    assert (answer.result["not_float"], answer.result["tensors"]) == (3, 1)
