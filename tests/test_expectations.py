"""What was expected of a pair holds, or a finding names each tensor that breaks it; a cast is proven bit for bit."""

from __future__ import annotations

import dataclasses
import doctest
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import details_oracle
import models
import results
from diffai_dist import compare
from diffai_dist.analyses import expectations
from diffai_dist.analyses.expectations import CASTS, NO_CAST, Expectations, float_dtype
from diffai_dist.errors import Failure, UsageError
from diffai_dist.judging import tensor_records
from diffai_dist.records import AnalysisRecord, Measurements

Arrays = Mapping[str, np.ndarray]
BF16 = ml_dtypes.bfloat16


def record_of(asked: Expectations, measured: Measurements, epsilon: float | None = None) -> AnalysisRecord:
    return asked(measured, 0, tensor_records(measured, 0, epsilon))


def expected(baseline: Arrays, candidate: Arrays, epsilon: float | None = None, **asked: object) -> AnalysisRecord:
    """What is found of two checkpoints of arrays."""
    measured = details_oracle.measured([baseline, candidate])
    return record_of(Expectations(**asked), measured, epsilon)  # type: ignore[arg-type]


def told(record: AnalysisRecord) -> list[tuple[str, str, str | None, object]]:
    return [(one.rule, one.severity, one.tensor, one.value) for one in record.findings]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(expectations) == (0, 1)


def test_frozen_tensors_keep_their_bits() -> None:
    before = {"embed.w": normal(4), "embed.b": normal(8), "head.w": normal(4)}
    after = {"embed.w": before["embed.w"].copy(), "embed.b": before["embed.b"].copy(), "head.w": normal(4, seed=1)}
    after["embed.b"][3] += 1
    record = expected(before, after, frozen=("embed.*",))
    assert told(record) == [("expected-frozen", "critical", "embed.b", 1 / 8)]
    assert record.result["frozen"] == {"globs": ["embed.*"], "tensors": 2, "broken": 1}
    assert told(expected(before, after, frozen=("embed.w",))) == []


def test_a_zero_of_another_sign_is_no_frozen_zero() -> None:
    record = expected({"w": np.zeros(4, np.float32)}, {"w": np.array([0, 0, -0.0, 0], np.float32)}, frozen=("w",))
    assert told(record) == [("expected-frozen", "critical", "w", 0.25)]


def test_epsilon_does_not_make_a_moved_tensor_frozen() -> None:
    before = {"w": normal(4)}
    after = {"w": before["w"] + np.float32(1e-6)}
    assert told(expected(before, after, 1e-3, frozen=("w",))) == [("expected-frozen", "critical", "w", 1.0)]
    assert told(expected(before, after, 1e-3, changed=("w",))) == [("expected-changed", "critical", "w", 1.0)]


def test_another_dtype_of_equal_values_is_not_frozen() -> None:
    record = expected({"w": np.ones(4, np.float32)}, {"w": np.ones(4, BF16)}, frozen=("w",))
    assert told(record) == [("expected-frozen", "critical", "w", "F32 -> BF16")]


def test_changed_tensors_change() -> None:
    before = {"lora_A": normal(4), "lora_B": np.zeros(4, np.float32), "base": normal(4)}
    after = before | {"lora_A": normal(4, seed=1)}
    record = expected(before, after, changed=("lora_*",))
    assert told(record) == [("expected-changed", "critical", "lora_B", "identical")]
    assert record.result["changed"] == {"globs": ["lora_*"], "tensors": 2, "broken": 1}


@pytest.mark.parametrize("kind", ["frozen", "changed"])
def test_a_tensor_that_is_not_on_both_sides_breaks_both(kind: str) -> None:
    before, after = {"w": normal(4), "only.before": normal(2)}, {"w": normal(5), "only.after": normal(2)}
    record = expected(before, after, **{kind: ("*",)})
    found = {"only.after": "added", "only.before": "removed", "w": "incomparable"}
    assert told(record) == [(f"expected-{kind}", "critical", name, found[name]) for name in sorted(found)]


def test_a_tensor_that_could_not_be_read_breaks_all() -> None:
    arrays = {"w": normal(4), "x": normal(3)}
    failures = {(0, 1): Failure("E1103", "b", "w", "", "short", "")}
    measured = dataclasses.replace(details_oracle.measured([arrays, arrays]), failures=failures)
    record = record_of(Expectations(("*",), ("w",), "F32"), measured)
    assert [one for one in told(record) if one[2] == "w"] == [
        ("expected-frozen", "critical", "w", "failed"),
        ("expected-changed", "critical", "w", "failed"),
        ("cast-unproven", "high", "w", "failed"),
    ]
    assert record.result["cast"]["tensors_proven"] == 1


def test_a_glob_that_matches_nothing_is_a_finding() -> None:
    record = expected({"w": normal(4)}, {"w": normal(4)}, frozen=("w", "v", "W"), changed=("u*",))
    unmatched = [(one.threshold, one.source) for one in record.findings if one.rule == "expectation-unmatched"]
    assert unmatched == [("v", "setting of expect.frozen"), ("W", "setting of expect.frozen"),
                         ("u*", "setting of expect.changed")]  # fmt: skip
    assert {one.severity for one in record.findings} == {"high"}


def test_a_tensor_of_two_globs_is_told_once() -> None:
    record = expected({"a.w": normal(4)}, {"a.w": normal(4, seed=1)}, frozen=("a.*", "*.w"))
    assert told(record) == [("expected-frozen", "critical", "a.w", 1.0)]


@pytest.mark.parametrize("arrays", [{}, {"ids": np.arange(4), "mask": np.ones(3, np.uint8)}], ids=["none", "ids"])
def test_a_cast_of_no_float_tensor_is_not_proven(arrays: Arrays) -> None:
    record = expected(arrays, arrays, cast="BF16")
    assert told(record) == [("expectation-unmatched", "high", None, 0)]
    assert (record.findings[0].threshold, record.findings[0].source) == ("BF16", "setting of expect.cast")
    one = {"w": np.ones(2, np.float32)}
    assert told(expected(arrays | one, arrays | {"w": np.ones(2, BF16)}, cast="BF16")) == []


def rounded(array: np.ndarray) -> np.ndarray:
    return array.astype(BF16)


def test_a_cast_is_proven_over_all_tensors() -> None:
    before = {"a": normal(33, 5), "half": rounded(normal(7)), "ids": np.arange(9), "d": normal(6).astype(np.float64)}
    after = {"a": rounded(before["a"]), "half": before["half"], "ids": before["ids"], "d": rounded(before["d"])}
    record = expected(before, after, cast="BF16")
    assert record.findings == ()
    assert record.result["cast"] == {
        "dtype": "BF16",
        "tensors": 4,
        "tensors_proven": 4,
        "elements": 33 * 5 + 7 + 9 + 6,
        "elements_proven": 33 * 5 + 7 + 9 + 6,
        "miscast": 0,
    }


def test_one_element_that_was_cut_and_not_rounded_is_found() -> None:
    before = {"a": np.array([1.0, 1.0 + 2**-8 + 2**-9, 3.0], np.float32), "b": normal(5)}
    after = {name: rounded(array) for name, array in before.items()}
    after["a"][1] = BF16(1.0)  # towards zero; nearest is 1 + 2^-7
    record = expected(before, after, cast="BF16")
    (finding,) = record.findings
    assert (finding.rule, finding.severity, finding.tensor) == ("expected-cast", "critical", "a")
    assert (finding.value, finding.threshold) == (1, 0)
    assert finding.source.endswith("the first at index 1")
    cast = record.result["cast"]
    assert (cast["tensors_proven"], cast["elements_proven"], cast["miscast"]) == (1, 5, 1)


WRONG = {
    "kept its dtype": ({"w": normal(4)}, {"w": normal(4)}, "dtype F32"),
    "another dtype": ({"w": normal(4)}, {"w": normal(4).astype(np.float16)}, "dtype F16"),
    "moved at equal dtype": ({"w": rounded(np.ones(4))}, {"w": rounded(np.array([1, 1, 2, 1.0]))}, 0.25),
    "a number of another kind": ({"w": np.arange(4)}, {"w": np.arange(4) + 1}, 1.0),
    "a whole number became a float": ({"w": np.arange(4)}, {"w": rounded(np.arange(4))}, "I64 -> BF16"),
    "missing": ({"w": normal(4)}, {}, "removed"),
    "new": ({}, {"w": rounded(normal(4))}, "added"),
    "another shape": ({"w": normal(4)}, {"w": rounded(normal(5))}, "incomparable"),
}


@pytest.mark.parametrize(("before", "after", "value"), WRONG.values(), ids=WRONG)
def test_what_is_no_cast_is_found(before: Arrays, after: Arrays, value: object) -> None:
    also = {"also": normal(3)}
    record = expected(also | before, {"also": rounded(also["also"])} | after, cast="BF16")
    assert told(record) == [("expected-cast", "critical", "w", value)]
    assert record.result["cast"]["tensors_proven"] == 1


def test_what_the_kernels_do_not_round_is_not_proven() -> None:
    before = {"w": normal(4).astype(ml_dtypes.float8_e4m3fn)}
    after = {"w": before["w"].astype(BF16)}
    assert told(expected(before, after, cast="BF16")) == [("cast-unproven", "high", "w", "0 of 4 elements")]
    measured = details_oracle.measured([{"w": normal(4)}, {"w": rounded(normal(4))}])
    without = dataclasses.replace(measured, details=dataclasses.replace(measured.details, bitwise=None))
    assert told(record_of(Expectations(cast="BF16"), without)) == [("cast-unproven", "high", "w", "0 of 4 elements")]


def test_what_was_compared_as_bytes_is_not_proven() -> None:
    measured = results.measured(odd={"dtype": "F6_E2M3"}, w={})
    record = record_of(Expectations(cast="F32"), measured)
    assert told(record) == [("cast-unproven", "high", "odd", "F6_E2M3 -> F6_E2M3, compared as bytes")]


def test_what_the_selection_left_out_is_said() -> None:
    measured = details_oracle.measured([{"w": normal(4)}, {"w": normal(4)}])
    comparison = dataclasses.replace(measured.comparison, left_out=3)
    measured = dataclasses.replace(measured, comparison=comparison)
    assert record_of(Expectations(cast="F32"), measured).result["left_out"] == 3


@given(st.integers(0, 2**32 - 1), st.sampled_from([BF16, np.float16, ml_dtypes.float8_e5m2]), st.integers(0, 3))
def test_as_many_elements_are_found_as_were_moved(seed: int, dtype: type, moved: int) -> None:
    generator = np.random.default_rng(seed)
    before = (generator.standard_normal(17) * 10.0 ** generator.integers(-5, 3)).astype(np.float32)
    after = before.astype(dtype)
    after.view(f"u{after.dtype.itemsize}")[generator.permutation(17)[:moved]] ^= 1
    record = expected({"w": before}, {"w": after}, cast=details_oracle.name_of(after))
    assert [one.value for one in record.findings] == [moved] * bool(moved)
    assert record.result["cast"]["miscast"] == moved
    assert record.result["cast"]["elements_proven"] == (0 if moved else 17)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("BFF16", "cast wants a float dtype, found 'BFF16' (did you mean 'BF16'?)"),
        ("I64", "cast wants a float dtype, found 'I64' (did you mean 'F64'?)"),
        ("x", f"cast wants a float dtype, found 'x' (there are {', '.join(CASTS)}; {NO_CAST})"),
    ],
)
def test_a_cast_is_to_a_float(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        float_dtype(name)
    assert str(caught.value) == message


def test_a_real_cast_is_proven_by_what_is_measured(tmp_path: Path) -> None:
    before = {"a": normal(300, 257), "ids": np.arange(5)}
    after = {"a": rounded(before["a"]), "ids": before["ids"]}
    a, b = models.write(tmp_path / "a.safetensors", before), models.write(tmp_path / "b.safetensors", after)
    report = compare(str(a), str(b), expect_cast="bf16", expect_frozen="ids")
    (record,) = report.result.analyses
    assert record.name == "expectations"
    assert record.findings == ()
    assert record.result["cast"]["elements_proven"] == 300 * 257 + 5
    assert report.settings.digest_part()["expect"] == {"frozen": ["ids"], "changed": [], "cast": "BF16"}
    after["a"].view(np.uint16)[299, 256] ^= 1
    models.write(tmp_path / "b.safetensors", after)
    (finding,) = compare(str(a), str(b), expect_cast="BF16").findings
    assert (finding.rule, finding.tensor, finding.value) == ("expected-cast", "a", 1)
    assert finding.source.endswith(f"index {300 * 257 - 1}")


def test_what_is_expected_is_part_of_the_question(pair: tuple[Path, Path]) -> None:
    a, b = map(str, pair)
    plain, frozen = compare(a, b), compare(a, b, expect_frozen=["embed.*"])
    assert plain.id != frozen.id
    assert plain.result.analyses == ()
    assert [one.tensor for one in frozen.findings] == ["embed.weight"]
