"""Roles and blocks of names, the order by change, layer impact, change summary."""

from __future__ import annotations

import doctest
import json
import math
import os
import random
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffai_dist.analyses import ANALYSES, change_summary, roles
from diffai_dist.analyses.change_summary import ChangeSummary
from diffai_dist.analyses.layer_impact import LayerImpact
from diffai_dist.analyses.roles import ROLES, block, role
from diffai_dist.analyses.sort_by_change import sort_by_change
from diffai_dist.analyses.sums import Shift, cosine_distance, exact, grouped, shifts_of, whole_rel_l2
from diffai_dist.comparison import Pair, compare_members
from diffai_dist.partials import SHIFT, empty
from diffai_dist.records import AnalysisRecord, Measurements, TensorRecord
from results import HOSTILE, change, measured, member, of, side, tensor

ANY_TEXT = st.text(st.characters(), max_size=40)
SHARED = Path(os.environ.get("DIFFAI_DIST_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "real-indexes"


@pytest.mark.parametrize("module", [roles, change_summary])
def test_the_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("name", "expected_block", "expected_role"),
    [
        ("model.layers.12.self_attn.q_proj.weight", "model.layers.12", "q"),
        ("model.layers.0.self_attn.qkv_proj.weight", "model.layers.0", "qkv"),
        ("model.layers.0.mlp.gate_up_proj.weight", "model.layers.0", "gate_up"),
        ("model.layers.0.self_attn.q_norm.weight", "model.layers.0", "norm"),
        ("model.layers.3.self_attn.q_proj.lora_A.weight", "model.layers.3", "q"),
        ("model.layers.3.self_attn.kv_b_proj.weight", "model.layers.3", "kv"),
        ("model.layers.1.mlp.experts.63.down_proj.weight", "model.layers.1", "expert"),
        ("model.layers.1.mlp.shared_expert.up_proj.weight", "model.layers.1", "expert"),
        ("model.layers.1.mlp.shared_expert_gate.weight", "model.layers.1", "router"),
        ("model.layers.1.mlp.gate.e_score_correction_bias", "model.layers.1", "router"),
        ("model.layers.1.block_sparse_moe.gate.weight", "model.layers.1", "router"),
        ("experts.7.w1.weight", "experts.7", "expert"),
        ("h.3.attn.c_attn.weight", "h.3", "qkv"),
        ("h.3.attn.c_proj.weight", "h.3", "o"),
        ("h.3.mlp.c_proj.weight", "h.3", "down"),
        ("h.3.mlp.c_fc.bias", "h.3", "up"),
        ("transformer.h.3.self_attention.dense.weight", "transformer.h.3", "o"),
        ("transformer.blocks.7.norm_1.weight", "transformer.blocks.7", "norm"),
        ("model.transformer.blocks.2.att_proj.weight.quant_map", "model.transformer.blocks.2", "qkv"),
        ("model.transformer.blocks.2.ff_out.weight", "model.transformer.blocks.2", "down"),
        ("model.transformer.ff_out.weight", "head", "head"),
        ("bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.0", "q"),
        ("bert.encoder.layer.0.attention.output.dense.weight", "bert.encoder.layer.0", "o"),
        ("bert.encoder.layer.0.attention.output.LayerNorm.weight", "bert.encoder.layer.0", "norm"),
        ("bert.encoder.layer.0.intermediate.dense.weight", "bert.encoder.layer.0", "up"),
        ("bert.encoder.layer.0.output.dense.weight", "bert.encoder.layer.0", "down"),
        ("encoder.block.0.layer.0.SelfAttention.o.weight", "encoder.block.0", "o"),
        ("encoder.block.0.layer.1.DenseReluDense.wo.weight", "encoder.block.0", "down"),
        ("encoder/layers_3/attn/query/kernel", "encoder/layers_3", "q"),
        ("blk.0.ffn_down.weight", "blk.0", "down"),
        ("layer1.0.conv1.weight", "layer1.0", "other"),
        ("model.embed_tokens.weight", "embed", "embed"),
        ("word_embeddings_layernorm.weight", "norm", "norm"),
        ("lm_head.weight", "head", "head"),
        ("output.weight", "head", "head"),
        ("transformer.ln_f.bias", "norm", "norm"),
        ("fc1.bias", "fc1", "other"),
        ("encoder/layers_3/mlp/fc1/kernel", "encoder/layers_3", "up"),
        ("projector.linear_2.bias", "projector.linear_2", "other"),
        ("conv.weight", "conv", "other"),
        ("weight", "weight", "other"),
        ("0.weight", "0", "other"),
        ("", "", "other"),
        (".", ".", "other"),
    ],
)
def test_names_tell_their_block_and_role(name: str, expected_block: str, expected_role: str) -> None:
    assert (block(name), role(name)) == (expected_block, expected_role)


@given(ANY_TEXT)
def test_any_name_has_a_role_and_a_block(name: str) -> None:
    assert role(name) in ROLES
    assert block(name) in ("embed", "head", "norm") or name.startswith(block(name))


LONG = ("dense." * 150_000, "1" * 500_000, "layers." * 150_000)


@pytest.mark.parametrize("name", [*HOSTILE, *LONG], ids=range(len(HOSTILE) + len(LONG)))
def test_hostile_names_have_a_role_and_a_block(name: str) -> None:
    assert role(name) in ROLES
    assert isinstance(block(name), str)


# Blocks as the configuration beside each index names them; tensors of no known role are few and known.
REAL = {
    "bloom-176b": ({"h": 70}, set()),
    "deepseek-ocr2": (
        {
            "model.sam_model.blocks": 12,
            "model.sam_model.neck": 4,
            "model.qwen2_model.model.model.layers": 24,
            "model.layers": 12,
        },
        {"neck", "net_", "query_", "projector", "view_seperator"},
    ),
    "falcon-180b": ({"transformer.h": 80}, set()),
    "gemma3-27b-multimodal": (
        {"language_model.model.layers": 62, "vision_tower.vision_model.encoder.layers": 27},
        {"mm_input_projection"},
    ),
    "gptneox-1.4b-reward": ({"gpt_neox.layers": 24}, set()),
    "llama-2": ({"model.layers": 32}, {"rotary_emb.inv_freq"}),
    "mixtral-8x22b": ({"model.layers": 56}, set()),
    "molmo-7b-bnb-nf4": (
        {"model.transformer.blocks": 28, "model.vision_backbone.image_vit.transformer.resblocks": 23},
        set(),
    ),
    "phi3-3b": ({"model.layers": 32}, set()),
    "qwen3.5-moe-18b-a3b": (
        {"model.language_model.layers": 40},
        {"A_log", "conv1d", "dt_bias", "in_proj_a", "in_proj_b", "in_proj_z"},
    ),
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the indexes of public models are not at hand")
@pytest.mark.parametrize("model", REAL)
def test_blocks_and_roles_of_published_models_are_found(model: str) -> None:
    text = (SHARED / model / "model.safetensors.index.json").read_text()
    names = json.JSONDecoder().raw_decode(text)[0]["weight_map"]  # one index is followed by a second document
    depths, unknown = REAL[model]
    blocks = {found for name in names if re.search(r"\.\d+$", found := block(name))}
    assert Counter(found.rpartition(".")[0] for found in blocks) == depths
    others = {name for name in names if role(name) == "other"}
    assert {word for word in unknown if any(word in name for name in others)} == unknown
    assert not [name for name in others if not any(word in name for word in unknown)]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the indexes of public models are not at hand")
def test_every_expert_of_a_published_mixture_is_an_expert() -> None:
    text = (SHARED / "qwen3.5-moe-18b-a3b" / "model.safetensors.index.json").read_text()
    counts = Counter(map(role, json.loads(text)["weight_map"]))
    assert counts["expert"] == 40 * 3 * 129  # 128 routed ones and the shared one
    assert counts["router"] == 2 * 40
    assert (counts["qkv"], counts["q"], counts["o"]) == (30, 10, 40)


def names_by_change(*records: TensorRecord) -> list[str]:
    return [record.name for record in sort_by_change(records)]


def test_the_largest_relative_change_comes_first_and_what_has_no_size_last() -> None:
    assert names_by_change(
        tensor("identical", "identical"),
        tensor("failed", "failed"),
        tensor("removed", "removed"),
        tensor("added", "added"),
        tensor("reshaped", "incomparable"),
        tensor("no decoder", change=change(l2=None, rel_l2=None)),
        tensor("retyped only", change=change(l2=0.0, rel_l2=0.0)),
        tensor("small", change=change(rel_l2=1e-9)),
        tensor("large", change=change(rel_l2=7.0)),
        tensor("from zero", change=change(l2=0.1, rel_l2=None)),
    ) == [
        *("from zero", "large", "small", "retyped only", "no decoder"),
        *("reshaped", "added", "removed", "failed", "identical"),
    ]


def test_ties_go_by_natural_name() -> None:
    assert names_by_change(tensor("h.10"), tensor("h.9"), tensor("h.2")) == ["h.2", "h.9", "h.10"]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), max_size=8), st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_the_order_before(sizes: list[float | None], shuffled: random.Random) -> None:
    records = [tensor(f"t{i}", change=change(rel_l2=size)) for i, size in enumerate(sizes)]
    before = names_by_change(*records)
    shuffled.shuffle(records)
    assert names_by_change(*records) == before


SOME = {
    "model.embed_tokens.weight": {"d2": 0.5, "aa": 2.0, "changed": 1},
    "model.layers.0.self_attn.q_proj.weight": {"d2": 1.0, "aa": 4.0, "changed": 4},
    "model.layers.0.mlp.up_proj.weight": {"d2": 2.0, "aa": 4.0, "changed": 6},
    "model.layers.1.self_attn.q_proj.weight": {"d2": 0.5, "aa": 0.0, "changed": 10},
    "model.norm.weight": {},
}


def records_of(measurements: Measurements) -> list[TensorRecord]:
    return [
        tensor(one.name, "changed" if row["changed"] else "identical")
        for one, row in zip(measurements.comparison.aligned, measurements.shifts[:, 0], strict=True)
    ]


def ask(analysis: LayerImpact | ChangeSummary, measurements: Measurements) -> AnalysisRecord:
    return analysis(measurements, 0, records_of(measurements))


def test_layer_impact_rolls_up_blocks_and_roles() -> None:
    answer = ask(LayerImpact(), measured(**SOME))
    blocks = {row["block"]: row for row in answer.result["blocks"]}
    assert list(blocks) == ["embed", "model.layers.0", "model.layers.1", "norm"]
    assert blocks["model.layers.0"] == {
        "block": "model.layers.0", "share": 0.75, "rel_l2": math.sqrt(3) / math.sqrt(8), "changed_fraction": 0.5,
        "l2": math.sqrt(3), "d2": 3.0, "tensors": 2, "elements": 20,
    }  # fmt: skip
    assert {row["role"]: row["share"] for row in answer.result["roles"]} == {
        "embed": 0.125, "q": 0.375, "up": 0.5, "norm": 0.0,
    }  # fmt: skip
    assert (answer.result["d2"], answer.result["tensors"], answer.result["elements"]) == (4.0, 5, 50)


def test_what_is_not_defined_is_null() -> None:
    answer = ask(LayerImpact(), measured(**SOME))
    assert [row["rel_l2"] for row in answer.result["blocks"]][2:] == [None, None]
    nothing = ask(LayerImpact(), measured())
    assert nothing.result["blocks"] == []
    assert nothing.result["rel_l2"] is None
    still = ask(LayerImpact(), measured(w={"aa": 1.0}))
    assert still.result["blocks"][0]["share"] is None


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=30))
def test_the_parts_add_to_the_whole_exactly(squares: list[float]) -> None:
    """Blocks and roles alike, as rationals; what is published is each of them rounded once."""
    kinds = ("mlp.up_proj", "self_attn.q_proj", "norm")
    names = [f"h.{i % 4}.{kinds[i % 3]}.{i}" for i in range(len(squares))]
    measurements = measured(**{name: {"d2": d2, "aa": 1.0} for name, d2 in zip(names, squares, strict=True)})
    result = ask(LayerImpact(), measurements).result
    rows = shifts_of(measurements, 0, records_of(measurements))
    whole = sum(map(Fraction, squares))
    assert result["d2"] == float(whole)
    for table, key, label in (("blocks", block, "block"), ("roles", role, "role")):
        parts = {name: exact(row.d2 for row in group) for name, group in grouped(rows, key).items()}
        assert sum(parts.values()) == whole
        for row in result[table]:
            part = parts[row[label]]
            assert part is not None
            assert row["d2"] == float(part)
            assert row["share"] == (float(part / whole) if whole else None)
        if whole:
            assert abs(math.fsum(row["share"] for row in result[table]) - 1.0) <= 2.0**-52


def test_shares_of_an_infinite_whole_are_null() -> None:
    for d2 in (math.inf, 1.7e308):  # the sum of the latter overflows
        measurements = measured(**{f"h.{i}.w": {"d2": d2 if i else 1.0, "aa": 1.0} for i in range(3)})
        impact, summary = (ask(one, measurements).result for one in (LayerImpact(), ChangeSummary()))
        assert (impact["d2"], impact["l2"], impact["rel_l2"]) == (None, None, None)
        assert {row["share"] for table in (impact["blocks"], impact["roles"], summary["roles"]) for row in table} == {
            None
        }


def test_bytes_are_not_mixed_with_elements() -> None:
    measurements = measured(
        a={"d2": 1.0, "aa": 4.0, "changed": 5}, b={"dtype": "F6_E2M3", "count": 10**6, "changed": 10**6}
    )
    for analysis in (LayerImpact(), ChangeSummary()):
        result = ask(analysis, measurements).result
        assert [result[key] for key in ("elements", "undecoded", "rel_l2")] == [10, 1, 0.5]
    assert ask(LayerImpact(), measurements).result["changed_fraction"] == 0.5
    assert ask(ChangeSummary(), measurements).result["elements_changed"] == 5


def test_the_change_of_the_whole_is_that_of_the_elements_compared() -> None:
    measurements = measured(**SOME)
    records = records_of(measurements)
    assert whole_rel_l2(measurements, 0, records) == math.sqrt(4) / math.sqrt(10)
    failed = [tensor(one.name, "failed") for one in records]
    assert whole_rel_l2(measurements, 0, failed) is None
    assert whole_rel_l2(measured(w={"d2": 1.0}), 0, [tensor("w")]) is None
    far = measured(w={"d2": 1.0, "aa": 1.0}, x={"d2": math.inf, "aa": 1.0})
    assert whole_rel_l2(far, 0, records_of(far)) is None
    lost = measured(w={"d2": 0.0, "d1": 1e-200, "aa": 1.0})  # squares below float64
    assert whole_rel_l2(lost, 0, records_of(lost)) is None


def test_the_angle_of_the_whole_is_refused_where_that_of_a_tensor_is() -> None:
    a = np.array([1.0, 2.0, 3.0]) * 2.0**26
    assert cosine_distance([regression("t", a, np.array([3.0, 1.0, 2.0]))]) is None
    assert cosine_distance([regression("t", a * 1e-170, a * 1e-170 + 1.0)]) is None


def test_sums_that_overflow_are_null_rather_than_infinite() -> None:
    rows = {f"h.{i}.w": {"d2": 1.7e308, "aa": 1.7e308} for i in range(3)}
    for analysis in (LayerImpact(), ChangeSummary()):
        json.dumps(ask(analysis, measured(**rows)).result, allow_nan=False)


def test_one_block_with_most_of_the_change_is_a_finding() -> None:
    (finding,) = ask(LayerImpact(), measured(**SOME)).findings
    assert (finding.rule, finding.severity, finding.tensor, finding.value, finding.threshold) == (
        "dominant-block", "low", "model.layers.0", 0.75, 0.5,
    )  # fmt: skip
    assert not ask(LayerImpact(dominant_share=0.8), measured(**SOME)).findings
    assert not ask(LayerImpact(), measured(**{"h.0.w": {"d2": 1.0}})).findings


def test_only_tensors_that_were_compared_are_rolled_up() -> None:
    measurements = measured(a={"d2": 1.0}, b={"d2": 1.0})
    records = [tensor("a"), tensor("b", "incomparable")]
    assert LayerImpact()(measurements, 0, records).result["tensors"] == 1


@given(st.lists(ANY_TEXT, unique=True, max_size=12))
def test_layer_impact_of_any_names_adds_up(names: list[str]) -> None:
    answer = ask(LayerImpact(), measured(**{name: {"d2": 1.0, "aa": 1.0} for name in names}))
    for table in ("blocks", "roles"):
        assert sum(row["tensors"] for row in answer.result[table]) == len(names)
        assert sum(row["d2"] for row in answer.result[table]) == len(names)


def regression(name: str, a: np.ndarray, b: np.ndarray) -> Shift:
    """The sums of d = b - a that the kernels return."""
    d, aa = b - a, float(a @ a)
    slope = float(d @ a) / aa if aa else 0.0
    rest = d - slope * a
    sizes = [float(abs(x).sum()) for x in (d, a, b)]
    changed = int((a != b).sum())
    return Shift(name, len(a), len(a), changed, float(d @ d), *sizes, aa, float(b @ b), slope, float(rest @ rest))


def shift(slope: float, rest: float, bb: float) -> Shift:
    """A baseline of length 1."""
    return Shift("t", 1, 1, 1, slope * slope + rest, 1.0, 1.0, bb, 1.0, bb, slope, rest)


VECTORS = st.lists(st.floats(-100, 100, width=16), min_size=2, max_size=6)


@given(st.lists(VECTORS, min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_the_cosine_of_the_parts_is_that_of_the_whole(parts: list[list[float]], seed: int) -> None:
    noise = np.random.default_rng(seed)
    baselines = [np.array(part) for part in parts]
    candidates = [a * noise.normal(1, 0.5) + noise.normal(0, 1, len(a)) for a in baselines]
    a, b = np.concatenate(baselines), np.concatenate(candidates)
    found = cosine_distance([regression("t", *pair) for pair in zip(baselines, candidates, strict=True)])
    if not a.any():
        assert found is None
    else:
        # A part whose baseline is zero is all rest, so it counts as well.
        assert found == pytest.approx(1 - a @ b / math.sqrt((a @ a) * (b @ b)), abs=1e-9)


def test_a_tiny_angle_survives() -> None:
    assert cosine_distance([shift(0.0, 1e-20, 1.0)]) == pytest.approx(5e-21, rel=1e-12)


def test_a_scaled_checkpoint_points_the_same_way_and_a_negated_one_opposite() -> None:
    assert cosine_distance([shift(1.0, 0.0, 4.0)] * 3) == 0.0
    assert cosine_distance([shift(-2.0, 0.0, 1.0)] * 3) == 2.0
    assert cosine_distance([shift(-1.0, 1.0, 1.0)]) == 1.0
    assert cosine_distance([shift(-1.0, 0.0, 0.0)]) is None
    assert cosine_distance([]) is None


def test_the_summary_counts_and_sums() -> None:
    answer = ask(ChangeSummary(), measured(**SOME))
    result = answer.result
    assert [result[key] for key in ("changed", "identical", "added", "elements", "elements_changed")] == [
        4,
        1,
        0,
        50,
        21,
    ]
    assert result["rel_l2"] == math.sqrt(4) / math.sqrt(10)
    assert result["roles"] == [
        {"role": "up", "share": 0.5, "tensors": 1},
        {"role": "q", "share": 0.375, "tensors": 2},
        {"role": "embed", "share": 0.125, "tensors": 1},
        {"role": "norm", "share": 0.0, "tensors": 1},
    ]
    assert len(result["top"]) == 4
    assert result["coverage"]["tensors_compared"] == 5
    assert answer.findings == ()


def test_the_top_movers_are_ten_and_sorted() -> None:
    measurements = measured(**{f"t{i}": {"d2": 1.0, "aa": 1.0, "changed": 1} for i in range(15)})
    records = [tensor(f"t{i}", change=change(rel_l2=i / 100)) for i in range(15)]
    top = ChangeSummary()(measurements, 0, records).result["top"]
    assert [row["tensor"] for row in top] == [f"t{i}" for i in range(14, 4, -1)]


def rules(*records: TensorRecord) -> dict[str, tuple[str, Any, Any]]:
    """The findings about these records: rule -> (severity, tensor, value)."""
    measurements = measured(**{record.name: {} for record in records})
    found = ChangeSummary()(measurements, 0, records).findings
    return {one.rule: (one.severity, one.tensor, one.value) for one in found}


def test_non_finite_values_that_appear_are_critical() -> None:
    worse = tensor("w", baseline=side(nans=1), candidate=side(nans=2, posinfs=1))
    assert rules(worse) == {"non-finite-appeared": ("critical", "w", 3)}
    assert rules(tensor("new", "added", candidate=side(neginfs=1)))["non-finite-appeared"][0] == "critical"
    assert rules(tensor("w", baseline=side(nans=2), candidate=side(nans=2))) == {}


def test_other_findings_are_one_count_per_rule() -> None:
    found = rules(
        tensor("a", "added"),
        tensor("b", "removed"),
        tensor("c", "removed"),
        tensor("d", "incomparable"),
        tensor("e", candidate=side(dtype="BF16")),
    )
    assert found == {
        "tensors-incomparable": ("medium", None, 1),
        "tensors-removed": ("info", None, 2),
        "tensors-added": ("info", None, 1),
        "dtype-changed": ("info", None, 1),
    }


def test_only_a_bitwise_equal_checkpoint_is_called_identical() -> None:
    same = tensor("a", "identical")
    assert rules(same, tensor("b", "identical")) == {"checkpoint-identical": ("info", None, 2)}
    assert rules(same, tensor("b", "identical", within_epsilon=1e-6)) == {}
    assert rules(same, tensor("b", "failed")) == {}
    assert rules() == {}


def test_the_shifts_belong_to_the_pair_that_was_asked_for() -> None:
    one = member(w=("F32", (10,)))
    comparison = compare_members((one, one, one), (Pair(0, 1), Pair(0, 2)))
    rows = empty(SHIFT, (1, 2))
    rows["d2"][0] = [1.0, 2.0]
    assert [shifts_of(of(comparison, rows), pair, [tensor("w")])[0].d2 for pair in (0, 1)] == [1.0, 2.0]


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_has_a_name_a_flag_and_help(name: str) -> None:
    kind = ANALYSES[name]
    assert kind.name == name
    assert kind.flag.startswith("--")
    assert len((kind.__doc__ or "").splitlines()[0]) > 20


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_answers_for_an_empty_comparison_in_strict_json(name: str) -> None:
    answer = ANALYSES[name]()(measured(), 0, [])
    assert answer.name == name
    json.dumps(answer.result, allow_nan=False)
