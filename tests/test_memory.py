"""Bytes of weights, estimates against their formulas, and savings that are proven and no others."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import details_oracle
from diffai_dist.analyses.base import thresholds
from diffai_dist.analyses.memory_analysis import FORMULAS, MemoryAnalysis
from diffai_dist.analyses.roles import role
from diffai_dist.analyses.series import Series
from diffai_dist.comparison import Pair, compare_members
from diffai_dist.errors import MissingShard
from diffai_dist.partials import MOMENTS, SHIFT, empty
from diffai_dist.records import AnalysisRecord, Details, Measurements, Member
from results import member

Arrays = Mapping[str, np.ndarray]
Headers = Mapping[str, tuple[str, tuple[int, ...]]]


def record_of(measured: Measurements, **options: Any) -> AnalysisRecord:
    names = tuple(Member(f"m{i}", f"/m{i}") for i in range(len(measured.comparison.members)))
    record = MemoryAnalysis(**options)(Series(measured, names))
    assert json.loads(json.dumps(record.result)) == record.result
    assert set(record.result) == set(MemoryAnalysis.result)
    return record


def of_headers(*members: Headers, configs: Sequence[Any] = ()) -> Measurements:
    """Nothing but headers was looked at."""
    made = [member(**one) for one in members]
    made = [dataclasses.replace(one, config=config) for one, config in zip(made, configs or [None] * 9, strict=False)]
    comparison = compare_members(made, [Pair(i, i + 1) for i in range(len(made) - 1)])
    size = len(comparison.aligned)
    return Measurements(comparison, empty(MOMENTS, (size, len(made))), empty(SHIFT, (size, len(made) - 1)), {})


def of_arrays(*members: Arrays, histograms: bool = False) -> Measurements:
    """Everything was measured, but the histogram only where that is said."""
    measured = details_oracle.measured(members, [(i, i + 1) for i in range(len(members) - 1)])
    chosen = measured.details.histograms if histograms else {}
    return dataclasses.replace(measured, details=Details(measured.details.content, histograms=chosen))


def rows(record: AnalysisRecord, table: str, **fields: Any) -> list[dict[str, Any]]:
    return [row for row in record.result[table] if all(row[key] == value for key, value in fields.items())]


def llama(
    depth: int, hidden: int, ffn: int, heads: int, kv_heads: int, size: int, vocab: int, dtype: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    parts: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (heads * size, hidden), "self_attn.k_proj.weight": (kv_heads * size, hidden),
        "self_attn.v_proj.weight": (kv_heads * size, hidden), "self_attn.o_proj.weight": (hidden, heads * size),
        "mlp.gate_proj.weight": (ffn, hidden), "mlp.up_proj.weight": (ffn, hidden),
        "mlp.down_proj.weight": (hidden, ffn), "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }  # fmt: skip
    found = {f"model.layers.{i}.{part}": (dtype, shape) for i in range(depth) for part, shape in parts.items()}
    return found | {"model.embed_tokens.weight": (dtype, (vocab, hidden)), "lm_head.weight": (dtype, (vocab, hidden))}


WIDTHS = {"F32": 4, "BF16": 2, "F64": 8, "U8": 1}


@given(
    *(st.integers(1, 4) for _ in range(3)), st.integers(1, 4), st.integers(2, 9), st.sampled_from(sorted(WIDTHS)),
    st.integers(1, 5), st.integers(1, 4096), st.sampled_from([2, 4]), st.integers(1, 4), st.integers(1, 16),
    st.integers(0, 3), st.booleans(),
)  # fmt: skip
def test_every_number_follows_from_shapes_and_inputs(
    depth: int, width: int, kv_heads: int, ratio: int, size: int, dtype: str, batch: int, sequence: int,
    gradient_bytes: int, kv_bytes: int, world_size: int, zero_stage: int, fused_attention: bool,
) -> None:  # fmt: skip
    heads, hidden = kv_heads * ratio, 8 * width
    headers = llama(depth, hidden, 3 * hidden, heads, kv_heads, size, 11, dtype)
    config = {"num_attention_heads": heads}
    inputs: dict[str, Any] = {
        "batch": batch, "sequence": sequence, "gradient_bytes": gradient_bytes, "kv_bytes": kv_bytes,
        "world_size": world_size, "zero_stage": zero_stage, "fused_attention": fused_attention,
    }  # fmt: skip
    record = record_of(of_headers(headers, headers, configs=[config, config]), **inputs)
    parameters = sum(math.prod(shape) for _, shape in headers.values())
    nbytes = parameters * WIDTHS[dtype]
    (sizes,), (row,) = record.result["weights"], record.result["estimates"]
    assert (sizes["bytes"], sizes["parameters"], sizes["members"]) == (nbytes, parameters, 2)
    shares = {stage: world_size if zero_stage >= stage else 1 for stage in (1, 2, 3)}
    training = {
        "train_weights": math.ceil(2 * parameters / shares[3]),
        "train_gradients": math.ceil(gradient_bytes * parameters / shares[2]),
        "train_optimizer": math.ceil(12 * parameters / shares[1]),
    }
    assert {key: row[key] for key in training} == training
    assert row["train_total"] == sum(training.values())
    assert row["kv_bytes_per_token"] == 2 * depth * kv_heads * size * kv_bytes
    assert row["kv_bytes"] == batch * sequence * row["kv_bytes_per_token"]
    assert row["serving"] == nbytes + row["kv_bytes"]
    scores = 0 if fused_attention else 5 * heads * sequence / hidden
    assert row["activations"] == pytest.approx(depth * sequence * batch * hidden * (34 + scores), rel=1e-12)
    assert record.result["inputs"] == inputs
    assert set(FORMULAS) <= {"weights", "training", "activations", "kv_bytes_per_token", "serving"}
    assert (record.result["delta_bytes"], record.result["deltas"], record.findings) == (0, [], ())


DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "F8_E4M3": 1, "F64": 8}
headers = st.dictionaries(
    st.sampled_from(["h.0.q_proj.weight", "h.1.q_proj.weight", "wte.weight", "ln_f.weight", "x", "optimizer.state.0"]),
    st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 9), max_size=3).map(tuple)),
)


@given(headers, headers)
def test_bytes_by_dtype_and_role_are_those_of_the_tensors(before: Headers, after: Headers) -> None:
    record = record_of(of_headers(before, after))
    for name, tensors in (("m0", before), ("m1", after)):
        if name == "m1" and before == after:
            continue
        by_dtype, by_role = Counter[str](), Counter[str]()
        for tensor, (dtype, shape) in tensors.items():
            size = math.prod(shape) * DTYPES[dtype]
            by_dtype[dtype] += size
            by_role["optimizer" if tensor.startswith("optimizer") else role(tensor)] += size
        assert {row["dtype"]: row["bytes"] for row in rows(record, "by_dtype", member=name)} == by_dtype
        assert {row["role"]: row["bytes"] for row in rows(record, "by_role", member=name)} == by_role
        (sizes,) = rows(record, "weights", member=name)
        assert sizes["optimizer_bytes"] == by_role["optimizer"]
        assert sizes["bytes"] == sum(by_dtype.values()) - by_role["optimizer"]
    sums = [
        sum(math.prod(shape) * DTYPES[dtype] for tensor, (dtype, shape) in one.items() if tensor[0] != "o")
        for one in (before, after)
    ]
    assert record.result["delta_bytes"] == sums[1] - sums[0]
    changed = [{"baseline": "m0", "candidate": "m1", "delta_bytes": sums[1] - sums[0]}]
    assert record.result["deltas"] == (changed if sums[0] != sums[1] else [])


def test_latent_and_hybrid_attention_keep_less_and_an_encoder_nothing() -> None:
    latent = {
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": ("BF16", (576, 64)),
        "model.layers.1.self_attn.kv_a_proj_with_mqa.weight": ("BF16", (576, 64)),
    }
    assert record_of(of_headers(latent)).result["estimates"][0]["kv_bytes_per_token"] == 2 * 576 * 2
    hybrid = llama(2, 16, 32, 2, 1, 8, 9, "BF16")
    hybrid |= {f"model.layers.{i}.linear_attn.in_proj_qkv.weight": ("BF16", (48, 16)) for i in (2, 3, 4)}
    assert record_of(of_headers(hybrid)).result["estimates"][0]["kv_bytes_per_token"] == 2 * 2 * 8 * 2
    bert = {
        "encoder.layer.0.attention.self.query.weight": ("F32", (8, 8)),
        "encoder.layer.0.attention.self.key.weight": ("F32", (8, 8)),
        "encoder.layer.0.intermediate.dense.weight": ("F32", (32, 8)),
        "encoder.layer.0.output.dense.weight": ("F32", (8, 32)),
    }
    (row,) = record_of(of_headers(bert)).result["estimates"]
    assert (row["kv_bytes_per_token"], row["kv_bytes"], row["serving"]) == (None, None, 4 * (128 + 512))
    assert row["activations"] == 1 * 2048 * 1 * 8 * 34


def test_what_is_not_known_is_null_and_weights_that_were_not_read_have_no_delta() -> None:
    packed = {"h.0.q_proj.qweight": ("I32", (8, 8))}
    (row,) = record_of(of_headers(packed)).result["estimates"]
    assert [row[key] for key in ("train_total", "activations", "kv_bytes_per_token")] == [None] * 3
    whole, part = member(w=("F32", (4,)), v=("F32", (2,))), member(w=("F32", (4,)))
    part = dataclasses.replace(part, unreadable={"v": MissingShard("/s", "missing").failure})
    comparison = compare_members([whole, part], [Pair(0, 1)])
    measured = Measurements(comparison, empty(MOMENTS, (2, 2)), empty(SHIFT, (2, 1)), {})
    record = record_of(measured)
    assert (record.result["delta_bytes"], record.result["deltas"]) == (None, [])
    assert [row["unread"] for row in record.result["weights"]] == [0, 1]


@pytest.mark.parametrize("spare", [-1, 0, 1])
def test_a_device_that_is_too_small_is_high_and_none_is_no_finding(spare: int) -> None:
    measured = of_headers(llama(2, 16, 32, 2, 1, 8, 9, "BF16"))
    needed = record_of(measured).result["estimates"][0]["serving"]
    assert record_of(measured).result["estimates"][0]["fits"] is None
    record = record_of(measured, device_memory=needed + spare)
    assert record.result["estimates"][0]["fits"] is (spare >= 0)
    found = [(one.rule, one.severity, one.value, one.threshold, one.candidate) for one in record.findings]
    assert found == [("exceeds-device", "high", needed, needed - 1, "m0")] * (spare < 0)
    assert thresholds(MemoryAnalysis)["device_memory"].default is None


# What can be saved


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def saved(record: AnalysisRecord) -> dict[str, tuple[str, str, int]]:
    return {row["tensor"]: (row["kind"], row["like"], row["bytes"]) for row in record.result["largest_savings"]}


def test_f32_that_holds_bf16_is_found_and_true_f32_is_not() -> None:
    true = normal(0, 40, 30)
    almost = true.astype(ml_dtypes.bfloat16).astype(np.float32)
    one_bit = almost.copy()
    one_bit.view(np.uint32)[17, 3] |= 1
    highest = almost.copy()
    highest.view(np.uint32)[0, 0] |= 0x8000
    arrays = {
        "true": true,
        "narrow": almost,
        "one_bit": one_bit,
        "highest": highest,
        "bf16": true[:2].astype("bfloat16"),
    }
    record = record_of(of_arrays(arrays, arrays))
    assert saved(record) == {"narrow": ("bf16-in-f32", "BF16", 40 * 30 * 2)}
    assert record.result["savings"] == [
        {"member": "m0", "members": 2, "kind": "bf16-in-f32", "tensors": 1, "bytes": 2400}
    ]
    assert (record.result["not_examined"], record.findings) == (0, ())


@pytest.mark.parametrize(
    ("value", "exact"),
    [
        (1.0009765625, True), (65504.0, True), (65536.0, False), (2.0**-14, True), (2.0**-15, False), (0.0, True),
        (np.inf, False), (np.nan, False), (1.00048828125, False), (-2047.0, True), (2.0**-140, False),
    ],
)  # fmt: skip
def test_f32_that_holds_f16_is_found_from_the_histogram_alone(value: float, exact: bool) -> None:
    values = normal(1, 300).astype(np.float16)
    values = np.where(abs(values) < 1e-3, np.float16(0.5), values).astype(np.float32)
    arrays = {"w": np.append(values, np.float32(value)).astype(np.float32)}
    assert saved(record_of(of_arrays(arrays, histograms=True))) == ({"w": ("f16-in-f32", "F16", 602)} if exact else {})
    assert saved(record_of(of_arrays(arrays))) == {}


def test_equal_tensors_are_stored_once_and_like_ones_are_not() -> None:
    one, other = normal(2, 16, 8), normal(3, 16, 8)
    arrays = {
        "a": one, "b": one.copy(), "c": one.reshape(8, 16), "d": one.view(np.int32), "e": other, "f": one.copy(),
        "g": one[::-1].copy(), "empty": np.zeros((0, 4), np.float32), "empty2": np.zeros((0, 4), np.float32),
    }  # fmt: skip
    moved = arrays | {"b": one + 1}
    record = record_of(of_arrays(arrays, moved))
    assert rows(record, "largest_savings") == [
        {"member": "m0", "members": 1, "kind": "duplicate", "tensor": "b", "like": "a", "bytes": 512},
        {"member": "m0", "members": 2, "kind": "duplicate", "tensor": "f", "like": "a", "bytes": 512},
    ]
    assert {(row["members"], row["tensors"], row["bytes"]) for row in record.result["savings"]} == {
        (2, 1, 512),
        (1, 1, 512),
    }


def test_equal_digests_with_other_moments_are_not_the_same() -> None:
    measured = of_arrays({"a": normal(4, 64), "b": normal(5, 64)})
    measured.details.content["digest"][:] = 7
    assert saved(record_of(measured)) == {}


@pytest.mark.parametrize("seed", range(3))
def test_savings_agree_with_a_count_over_arrays(seed: int) -> None:
    generator = np.random.default_rng(seed)
    arrays = {}
    for i in range(40):
        array = normal(int(generator.integers(6)), *generator.choice([3, 5], 2))
        narrow = generator.random() < 0.5
        arrays[f"w{i:02}"] = array.astype(ml_dtypes.bfloat16).astype(np.float32) if narrow else array
    record = record_of(of_arrays(arrays))
    groups = Counter((one.shape, one.tobytes()) for one in arrays.values())
    wasted = sum((number - 1) * len(data) for (_, data), number in groups.items())
    halved = sum(one.nbytes // 2 for one in arrays.values() if not (one.view(np.uint32) & 0xFFFF).any())
    assert {row["kind"]: row["bytes"] for row in record.result["savings"]} == {
        "duplicate": wasted,
        "bf16-in-f32": halved,
    }
    assert len(record.result["largest_savings"]) == 20


def test_nothing_is_claimed_of_tensors_whose_bits_were_not_measured() -> None:
    one = normal(6, 9).astype(ml_dtypes.bfloat16).astype(np.float32)
    measured = of_arrays({"a": one, "b": one}, {"a": one, "b": one})
    without = dataclasses.replace(measured, details=Details())
    assert (saved(record_of(without)), record_of(without).result["not_examined"]) == ({}, 4)
    failed = dataclasses.replace(measured, failures={(0, 0): MissingShard("/s", "gone").failure})
    record = record_of(failed)
    assert record.result["not_examined"] == 1
    assert rows(record, "savings", kind="duplicate")[0]["member"] == "m1"
    measured.details.content["count"][1] -= 1
    assert record_of(measured).result["not_examined"] == 2
