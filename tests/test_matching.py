"""Which tensor is which under other names: wrappers, roles, fused and stacked tensors, and what values show."""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from details_oracle import details_of, measured
from diffai_dist import compare, sweep
from diffai_dist.analyses.rearranged import half_swap, transposed
from diffai_dist.analyses.tensor_matching import TensorMatching
from diffai_dist.checkpoint import Checkpoint, Span, Tensor
from diffai_dist.comparison import Comparison, Pair, Selection, compare_members
from diffai_dist.errors import Failure
from diffai_dist.judging import tensor_records
from diffai_dist.matching import Matching, match_members, pairing
from diffai_dist.matching.names import canonical
from diffai_dist.matching.pairing import paired
from diffai_dist.matching.parts import Fusion, fusion
from diffai_dist.records import AnalysisRecord, Details
from diffai_dist.storage import Source
from models import Arrays, write

SHARED = Path(os.environ.get("DIFFAI_DIST_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "real-indexes"


def indexes() -> list[Path]:
    """The real models whose index can be read: one is broken as published."""
    found = []
    for path in sorted(SHARED.glob("*/model.safetensors.index.json")):
        try:
            json.loads(path.read_text())
        except ValueError:
            continue
        found.append(path)
    return found


def member(shapes: Mapping[str, tuple[int, ...]], url: str = "/m.safetensors") -> Checkpoint:
    """A checkpoint of F32 tensors of these shapes, one after the other."""
    source, start, tensors = Source(url, 2**40, "v"), 0, {}
    for name, shape in shapes.items():
        stop = start + 4 * int(np.prod(shape))
        tensors[name] = Tensor(name, "F32", shape, (Span(source, start, stop),))
        start = stop
    return Checkpoint(url, "safetensors", (source,), tensors)


def matched(*members: Mapping[str, tuple[int, ...]], **options: Any) -> Comparison:
    """The comparison of the first with each other one, names matched."""
    made = [member(shapes, f"/{i}.safetensors") for i, shapes in enumerate(members)]
    pairs = [Pair(0, i) for i in range(1, len(made))]
    return match_members(made, pairs, matching=Matching(True), **options)


def names(comparison: Comparison, of: int = 1) -> dict[str, str | None]:
    """What the tensors are called in a member, by the name under which they are compared."""
    return {one.name: one.tensors[of].name if one.tensors[of] else None for one in comparison.aligned}  # type: ignore[union-attr]


# Names


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real indexes are not at hand")
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "base_model.model.", "language_model.", "module._orig_mod."]
)
def test_wrappers_of_real_models_are_undone(prefix: str) -> None:
    found = indexes()
    assert len(found) == 9
    for path in found:
        own = list(json.loads(path.read_text())["weight_map"])
        comparison = matched(dict.fromkeys(own, (4,)), {prefix + name: (4,) for name in own})
        assert names(comparison) == {name: prefix + name for name in own}
        assert set(comparison.matches.values()) == {("exact", "wrapper")}
        assert comparison.ambiguous == ()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real indexes are not at hand")
@pytest.mark.parametrize("model", ["gemma3-27b-multimodal", "qwen3.5-moe-18b-a3b", "llama-2"])
def test_real_models_are_found_again_in_another_nesting(model: str) -> None:
    own = list(json.loads((SHARED / model / "model.safetensors.index.json").read_text())["weight_map"])
    nestings = {
        "gemma3-27b-multimodal": lambda name: f"model.{name}".replace(
            "model.language_model.model.", "model.language_model."
        ),
        "qwen3.5-moe-18b-a3b": lambda name: name.replace("model.language_model.", "language_model.model."),
        "llama-2": lambda name: name.removeprefix("model."),
    }
    other = [nestings[model](name) for name in own]
    comparison = matched(dict.fromkeys(own, (4,)), dict.fromkeys(other, (4,)))
    assert names(comparison) == dict(zip(own, other, strict=True))


def test_names_that_would_become_one_are_told_and_left_alone() -> None:
    comparison = matched({"a.w": (4,), "b.w": (4,)}, {"module.a.w": (4,), "_orig_mod.a.w": (4,), "module.b.w": (4,)})
    assert names(comparison) == {
        "_orig_mod.a.w": "_orig_mod.a.w",
        "a.w": None,
        "b.w": "module.b.w",
        "module.a.w": "module.a.w",
    }
    assert comparison.ambiguous == ((1, ("module.a.w", "_orig_mod.a.w", "a.w")),)


def test_equal_names_go_before_all_others() -> None:
    comparison = matched({"model.norm.w": (4,), "norm.w": (4,)}, {"module.norm.w": (4,), "model.norm.w": (4,)})
    assert names(comparison) == {"model.norm.w": "model.norm.w", "norm.w": "module.norm.w"}


def test_a_wrapper_is_undone_whatever_the_shape_a_role_is_not() -> None:
    assert names(matched({"h.0.w": (4,)}, {"module.h.0.w": (5,)})) == {"h.0.w": "module.h.0.w"}
    embed = {"model.embed_tokens.weight": (100, 8)}
    assert names(matched(embed, {"tok_embeddings.weight": (100, 8)})) == {
        "model.embed_tokens.weight": "tok_embeddings.weight"
    }
    assert len(names(matched(embed, {"tok_embeddings.weight": (99, 8)}))) == 2
    assert len(names(matched(embed, {"tok_embeddings.weight": (8, 100)}))) == 1  # stored as its transpose


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "layers.3.attention.wq.weight"),
        ("model.layers.3.self_attn.o_proj.weight", "transformer.h.3.attn.c_proj.weight"),
        ("model.layers.3.mlp.down_proj.weight", "layers.3.feed_forward.w2.weight"),
        ("model.layers.3.mlp.experts.5.up_proj.weight", "layers.3.block_sparse_moe.experts.5.w3.weight"),
        ("model.layers.3.input_layernorm.weight", "layers.3.attention_norm.weight"),
        ("model.layers.3.post_attention_layernorm.weight", "layers.3.ffn_norm.weight"),
        ("transformer.h.3.ln_1.bias", "h.3.norm1.beta"),
        ("model.norm.weight", "transformer.ln_f.weight"),
        ("lm_head.weight", "output.weight"),
    ],
)
def test_families_have_words_for_the_same(one: str, other: str) -> None:
    assert canonical(one) is not None
    assert canonical(one) == canonical(other)
    comparison = matched({one: (4, 4)}, {other: (4, 4)})
    assert names(comparison) == {one: other}
    assert set(comparison.matches.values()) == {("exact", "role")}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("layers.3.self_attn.q_proj.weight", "layers.4.self_attn.q_proj.weight"),
        ("layers.3.self_attn.q_proj.weight", "layers.3.self_attn.k_proj.weight"),
        ("layers.3.self_attn.q_proj.weight", "layers.3.self_attn.q_proj.bias"),
        ("layers.3.self_attn.q_proj.weight", "vision_tower.layers.3.self_attn.q_proj.weight"),
        ("layers.3.self_attn.q_proj.weight", "layers.3.cross_attn.q_proj.weight"),
        ("layers.3.mlp.experts.5.up_proj.weight", "layers.3.mlp.shared_expert.up_proj.weight"),
        ("layers.3.mlp.experts.5.up_proj.weight", "layers.3.mlp.experts.6.up_proj.weight"),
        ("layers.3.input_layernorm.weight", "layers.3.post_layernorm.weight"),
    ],
)
def test_what_is_not_the_same_is_not_matched(one: str, other: str) -> None:
    assert len(names(matched({one: (4, 4)}, {other: (4, 4)}))) == 2


def test_norms_behind_the_halves_keep_their_own_names() -> None:
    gemma = {f"layers.0.{name}_layernorm.weight": (4,) for name in ("post_attention", "pre_feedforward")}
    assert len(names(matched(gemma, {"layers.0.ffn_norm.weight": (4,)}))) == 3


def test_what_is_nearly_alike_is_assigned_if_nothing_else_is() -> None:
    own = {f"stack.{i}.mixer.in_projection.table": (4, i + 1) for i in range(3)}
    other = {name.replace("in_projection", "in_projections"): shape for name, shape in own.items()}
    comparison = matched(own, other)
    assert names(comparison) == dict(zip(own, other, strict=True))
    assert set(comparison.matches.values()) == {("exact", "assigned")}
    rival = {name.replace("in_projection", "in_projection2"): shape for name, shape in own.items()}
    assert len(matched(own, other | rival).aligned) == 9
    assert len(matched(own, dict(list(other.items())[1:])).aligned) == 3  # the others are families of their own
    assert len(matched(own, {name.replace("mixer", "memory"): shape for name, shape in own.items()}).aligned) == 6


@pytest.mark.parametrize(("more", "found"), [(-1e-9, True), (0, True), (1e-9, False)])
def test_how_alike_names_must_be_is_a_limit(monkeypatch: pytest.MonkeyPatch, more: float, found: bool) -> None:
    monkeypatch.setattr(pairing, "LIKE", 2 * 6 / 13 + more)  # six letters of seven and six are the same
    assert len(matched({"x.mixing.table": (4,)}, {"x.mixin.table": (4,)}).aligned) == 2  # 10 of 11: below
    assert len(matched({"x.mixings.table": (4,)}, {"x.mixing.table": (4,)}).aligned) == (1 if found else 2)


def test_blocks_that_are_not_the_same_are_not_assigned() -> None:
    own = {f"stack.{i}.mixer.in_projection.table": (4,) for i in range(3)}
    other = {f"stack.{i}.mixer.in_projections.table": (4,) for i in range(4)}
    assert len(matched(own, other).aligned) == 7


def test_hostile_names_are_names() -> None:
    odd = [
        "",
        ".",
        "..",
        "module",
        "module.",
        ".module",
        "model.model.model",
        "[0]",
        "a" * 5000,
        "\x1b[2J.weight",
        "\ud800.w",
    ]
    other = [f"module.{name}" for name in odd]
    comparison = matched(dict.fromkeys(odd, (4,)), dict.fromkeys(other, (4,)))
    assert {own for one in comparison.aligned for own in (t.name for t in one.tensors if t)} == {*odd, *other}


def test_a_hundred_thousand_names_do_not_take_long() -> None:
    own = {f"model.layers.{i}.mlp.experts.{j}.up_proj.weight": (4, 4) for i in range(100) for j in range(200)}
    many = {f"odd{i}.w": (4,) for i in range(5000)}
    found = paired(
        own | many, {f"module.{name}": shape for name, shape in own.items()} | {f"x{name}": (4,) for name in many}
    )
    assert len(found.found) == len(own)


def test_what_cannot_be_read_is_matched_too() -> None:
    failure = Failure("E1203", "/b", "module.a.w", "", "missing", "")
    broken = dataclasses.replace(member({"module.b.w": (4,)}), unreadable={"module.a.w": failure})
    comparison = match_members([member({"a.w": (4,), "b.w": (4,)}), broken], [Pair(0, 1)], None, Matching(True))
    assert [(one.name, one.unreadable[1]) for one in comparison.aligned] == [("a.w", failure), ("b.w", None)]


def test_the_reference_is_the_anchor_or_the_first_baseline() -> None:
    shapes: list[dict[str, tuple[int, ...]]] = [{"module.a.w": (4,)}, {"a.w": (4,)}, {"_orig_mod.a.w": (4,)}]
    made = [member(one) for one in shapes]
    for pairs, anchor, name in (
        ([(0, 1), (1, 2)], None, "module.a.w"),
        ([(1, 2)], None, "a.w"),
        ([(0, 1)], 2, "_orig_mod.a.w"),
    ):
        comparison = match_members(made, [Pair(*pair) for pair in pairs], None, Matching(True), anchor)
        assert [one.name for one in comparison.aligned] == [name]
        assert [one.name for one in comparison.aligned[0].tensors if one] == [*shapes[0], *shapes[1], *shapes[2]]


def test_the_selection_is_by_the_names_of_the_reference() -> None:
    pair = [member({"a.w": (4,), "b.w": (4,)}), member({"module.a.w": (4,), "module.b.w": (4,)})]
    comparison = match_members(pair, [Pair(0, 1)], Selection(include=("a.*",)), Matching(True))
    assert (names(comparison), comparison.left_out) == ({"a.w": "module.a.w"}, 1)


def test_without_it_names_are_what_they_are() -> None:
    pair = [member({"a.w": (4,)}), member({"module.a.w": (4,)})]
    assert match_members(pair, [Pair(0, 1)]) == compare_members(pair, [Pair(0, 1)])
    same = match_members([pair[0], pair[0]], [Pair(0, 1)], None, Matching(True))
    assert same == compare_members([pair[0], pair[0]], [Pair(0, 1)])


# Fused tensors

ATTENTION: dict[str, tuple[int, ...]] = {
    "layers.0.self_attn.q_proj.weight": (8, 6),
    "layers.0.self_attn.k_proj.weight": (2, 6),
    "layers.0.self_attn.v_proj.weight": (2, 6),
}


@pytest.mark.parametrize("turned", [False, True])
def test_fused_tensors_are_compared_as_their_parts(turned: bool) -> None:
    fused = {"layers.0.self_attn.qkv_proj.weight": (12, 6)}
    comparison = matched(*((fused, ATTENTION) if turned else (ATTENTION, fused)))
    found = {one.name: one.tensors[0 if turned else 1] for one in comparison.aligned}
    places = {name: (t.name, t.shape, t.spans[0].start, t.spans[0].stop) for name, t in found.items() if t}
    name = "layers.0.self_attn.qkv_proj.weight"
    assert places == {
        "layers.0.self_attn.q_proj.weight": (f"{name}[0:8]", (8, 6), 0, 192),
        "layers.0.self_attn.k_proj.weight": (f"{name}[8:10]", (2, 6), 192, 240),
        "layers.0.self_attn.v_proj.weight": (f"{name}[10:12]", (2, 6), 240, 288),
    }
    assert all(one.tensors[0] and one.tensors[1] for one in comparison.aligned)
    assert comparison.members[0].tensors.keys() == (fused if turned else ATTENTION).keys()


def test_biases_are_fused_like_weights() -> None:
    biases = {name.replace("weight", "bias"): shape[:1] for name, shape in ATTENTION.items()}
    found = names(matched(ATTENTION | biases, {"layers.0.self_attn.qkv_proj.bias": (12,)} | ATTENTION))
    assert found["layers.0.self_attn.v_proj.bias"] == "layers.0.self_attn.qkv_proj.bias[10:12]"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real indexes are not at hand")
def test_a_real_model_is_found_again_in_its_parts() -> None:
    own = list(json.loads((SHARED / "phi3-3b" / "model.safetensors.index.json").read_text())["weight_map"])
    shapes: dict[str, tuple[int, ...]] = {name: (12, 6) if "_proj" in name else (6,) for name in own}
    parts: dict[str, tuple[int, ...]] = {}
    made_of = {"qkv": {"q": 8, "k": 2, "v": 2}, "gate_up": {"gate": 6, "up": 6}, None: {"": 0}}
    for name, shape in shapes.items():
        fused = next((one for one in ("qkv", "gate_up") if f"{one}_proj" in name), None)
        for part, rows in made_of[fused].items():
            parts[name.replace(f"{fused}_proj", f"{part}_proj")] = (rows, 6) if fused else shape
    comparison = matched(shapes, {f"module.{name}": shape for name, shape in parts.items()})
    assert sum(all(one.tensors) for one in comparison.aligned) == len(comparison.aligned) == len(parts) == 195 + 32 * 3


def test_stacked_experts_are_compared_one_by_one() -> None:
    fine: dict[str, tuple[int, ...]] = {}
    for e in range(3):
        fine |= {f"layers.0.mlp.experts.{e}.{name}_proj.weight": (5, 4) for name in ("gate", "up")}
        fine |= {f"layers.0.mlp.experts.{e}.down_proj.weight": (4, 5)}
    stacked = {"layers.0.mlp.experts.gate_up_proj": (3, 10, 4), "layers.0.mlp.experts.down_proj": (3, 4, 5)}
    found = names(matched(fine, stacked))
    assert found["layers.0.mlp.experts.2.up_proj.weight"] == "layers.0.mlp.experts.gate_up_proj[2,5:10]"
    assert found["layers.0.mlp.experts.1.down_proj.weight"] == "layers.0.mlp.experts.down_proj[1]"
    assert found.keys() == fine.keys()


@pytest.mark.parametrize(
    "fused",
    [
        {"layers.0.self_attn.query_key_value.weight": (12, 6)},  # in which order nobody knows
        {"layers.0.self_attn.qkv_proj.weight": (13, 6)},
        {"layers.0.self_attn.qkv_proj.weight": (6, 12)},
        {"layers.1.self_attn.qkv_proj.weight": (12, 6)},
        {"layers.0.self_attn.qkv_proj.weight": (12, 6), "layers.0.attn.c_attn.weight": (12, 6)},
    ],
)
def test_what_is_not_surely_fused_stays_whole(fused: dict[str, tuple[int, ...]]) -> None:
    comparison = matched(ATTENTION, fused)
    assert comparison.matches == {}
    assert names(comparison) == dict.fromkeys(ATTENTION) | {name: name for name in fused}


def test_what_cannot_be_cut_stays_whole() -> None:
    fused = member({"layers.0.self_attn.qkv_proj.weight": (12, 6)})
    for dtype in ("F4", "F6_E2M3"):
        tensors = {name: dataclasses.replace(one, dtype=dtype) for name, one in fused.tensors.items()}
        other = dataclasses.replace(fused, tensors=tensors)
        assert len(match_members([member(ATTENTION), other], [Pair(0, 1)], None, Matching(True)).aligned) == 4


def test_all_members_are_cut_or_none() -> None:
    fused: dict[str, tuple[int, ...]] = {"layers.0.self_attn.qkv_proj.weight": (12, 6)}
    three = matched(fused, ATTENTION, fused)
    assert [one.name for one in three.aligned] == sorted(ATTENTION)
    assert {t.name.partition("[")[0] for one in three.aligned if (t := one.tensors[2])} == set(fused)
    odd: dict[str, tuple[int, ...]] = {"layers.0.self_attn.qkv_proj.weight": (12, 7)}
    assert len(matched(fused, ATTENTION, odd).aligned) == 4


def test_the_elements_of_a_fusion_are_those_of_its_parts() -> None:
    generator = np.random.default_rng(0)
    q, k = generator.standard_normal((8, 3)), generator.standard_normal((4, 3))
    whole = np.concatenate([x for g in range(4) for x in (q[2 * g : 2 * g + 2], k[g : g + 1])])
    made = fusion("qk", whole.shape, [("q", q.shape), ("k", k.shape)], 4)
    assert isinstance(made, Fusion)
    assert [piece.name for piece in made.pieces][:3] == ["q[0:2]", "k[0:1]", "q[2:4]"]
    for piece in made.pieces:
        part, size = {"q": q, "k": k}[piece.part].reshape(-1), int(np.prod(piece.shape))
        assert (whole.reshape(-1)[piece.first : piece.first + size] == part[piece.offset : piece.offset + size]).all()


@pytest.mark.parametrize(
    ("parts", "groups", "reason"),
    [
        ([("a", (4, 3)), ("a", (4, 3))], 1, "named twice"),
        ([("a", (0, 3)), ("b", (8, 3))], 1, "nothing in it"),
        ([("a", (4, 3)), ("b", (3, 3))], 1, "21 elements"),
        ([("a", (4, 3)), ("b", (3, 4))], 1, "not as long"),
        ([("a", (5, 3)), ("b", (3, 3))], 2, "2 groups"),
    ],
)
def test_what_makes_no_fusion_is_said(parts: list[tuple[str, tuple[int, ...]]], groups: int, reason: str) -> None:
    assert reason in str(fusion("w", (8, 3), parts, groups))


def test_a_part_lies_in_one_matrix_of_a_stack() -> None:
    assert "ends in another" in str(fusion("w", (2, 6, 3), [("a", (4, 3)), ("b", (4, 3)), ("c", (4, 3))]))


# Values


def noise(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def asked(before: Arrays, after: Arrays, **thresholds: Any) -> AnalysisRecord:
    """The record of a pair whose names are matched, its partials computed with NumPy."""
    found = measured([before, after])
    for t, one in enumerate(found.comparison.aligned):
        for m, arrays in enumerate((before, after)):
            if one.name in arrays and found.details.content is not None:
                found.details.content[t, m]["digest"] = zlib.crc32(np.ascontiguousarray(arrays[one.name]).tobytes())
    return TensorMatching(**thresholds)(found, 0, tensor_records(found, 0))


def rules(record: AnalysisRecord) -> list[tuple[str, str, str | None]]:
    return [(one.rule, one.severity, one.tensor) for one in record.findings]


def halves(x: np.ndarray, heads: int) -> np.ndarray:
    """As the script does that turns LLaMA's own weights into those of transformers."""
    return x.reshape(heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, ml_dtypes.bfloat16, np.float16, np.int8])
def test_a_transpose_is_told_by_values_where_shapes_are_silent(dtype: Any) -> None:
    w = (noise(24, 24) * 20).astype(dtype)
    record = asked({"w": w, "v": w}, {"w": np.ascontiguousarray(w.T), "v": w})
    assert rules(record) == [("transposed", "high", "w")]
    assert record.result["rearranged"] == [{"tensor": "w", "transform": "transposed", "detail": None}]
    assert record.findings[0].value <= 1e-9


def test_experts_transposed_at_equal_dims_are_told_stacked_and_apart() -> None:
    experts = noise(4, 16, 16)
    apart = {f"experts.{e}.w": experts[e] for e in range(4)}
    turned = {name: np.ascontiguousarray(w.T) for name, w in apart.items()}
    assert rules(asked(apart, turned)) == [("transposed", "high", f"experts.{e}.w") for e in range(4)]
    swapped_axes = np.ascontiguousarray(experts.swapaxes(1, 2))
    assert rules(asked({"experts.w": experts}, {"experts.w": swapped_axes})) == [("transposed", "high", "experts.w")]


def test_a_transpose_that_shapes_show_is_low_and_proven() -> None:
    w = noise(12, 20)
    assert rules(asked({"w": w}, {"w": np.ascontiguousarray(w.T)})) == [("transposed", "low", "w")]
    assert rules(asked({"w": w}, {"w": noise(20, 12)})) == []
    assert rules(asked({"w": noise(3, 12, 20)}, {"w": noise(3, 20, 12)})) == []


@pytest.mark.parametrize("narrow", [ml_dtypes.bfloat16, np.float16])
def test_a_transpose_is_told_behind_a_cast(narrow: Any) -> None:
    w = noise(64, 64)
    record = asked({"w": w}, {"w": np.ascontiguousarray(w.T).astype(narrow)})
    assert rules(record) == [("transposed", "high", "w")]
    assert 1e-9 < record.findings[0].value <= record.findings[0].threshold < 0.01
    assert rules(asked({"w": w}, {"w": w.astype(narrow)})) == []
    small = noise(15, 15)
    assert rules(asked({"w": small}, {"w": np.ascontiguousarray(small.T).astype(narrow)})) == []


def test_what_proves_nothing_is_passed_over() -> None:
    symmetric = noise(16, 16) + noise(16, 16).T
    orthogonal = np.linalg.qr(noise(16, 16, dtype=np.float64))[0]
    for before, after in ((symmetric, -symmetric), (np.eye(16), 1 - 2 * np.eye(16)), (orthogonal, -orthogonal)):
        assert rules(asked({"w": before}, {"w": after})) == []


@pytest.mark.parametrize("factor", [0.999, 1.0, 1.001])
def test_the_tolerance_is_a_limit_that_counts_as_equal(factor: float) -> None:
    w = noise(8, 8, dtype=np.float64)
    turned = np.ascontiguousarray(w.T)
    turned[2, 5] *= 1 + 1e-4
    apart = transposed(details_of([{"w": w}, {"w": turned}], [(0, 1)], ["w"]), (0, 0), (0, 1), [(8, 8), (8, 8)])
    rows, columns = ((x**2).sum(axis=1) for x in (w, turned)), ((x**2).sum(axis=0) for x in (turned, w))
    expected = max(float((abs(r - c) / np.maximum(r, c)).max()) for r, c in zip(rows, columns, strict=True))
    assert apart == pytest.approx(expected, rel=1e-9)
    assert apart is not None
    found = rules(asked({"w": w}, {"w": turned}, tolerance=apart * factor))
    assert found == ([] if factor < 1 else [("transposed", "high", "w")])


def test_permuted_rows_are_told() -> None:
    w, b = noise(40, 9), noise(40)
    order = np.random.default_rng(1).permutation(40)
    record = asked({"w": w, "b": b}, {"w": w[order], "b": b[order]})
    assert rules(record) == [("permuted-rows", "medium", "b"), ("permuted-rows", "medium", "w")]
    assert [row["detail"] for row in record.result["rearranged"]] == [None, None]
    changed = w[order].copy()
    changed[3, 4] += 1e-3
    assert rules(asked({"w": w}, {"w": changed})) == []


@pytest.mark.parametrize(("heads", "dtype"), [(4, np.float32), (1, np.float32), (8, ml_dtypes.bfloat16)])
def test_the_half_swap_of_rotary_embeddings_is_named(heads: int, dtype: Any) -> None:
    w, b = noise(64, 24, dtype=dtype), noise(64, dtype=dtype)
    before, after = {"q": w, "b": b}, {"q": halves(w, heads), "b": halves(b, heads)}
    there, back = asked(before, after), asked(after, before)
    size = 64 // heads
    assert [row["detail"] for row in there.result["rearranged"]] == [f"rotary pairs to halves, {size} rows a head"] * 2
    assert [row["detail"] for row in back.result["rearranged"]] == [f"rotary halves to pairs, {size} rows a head"] * 2


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("heads", [1, 4])
def test_a_half_swap_is_named_behind_rounding(heads: int, bits: int) -> None:
    """As where llama.cpp's order was not undone before weights were quantised."""
    w = noise(64, 128)

    def rounded(values: np.ndarray) -> np.ndarray:
        step = 2 * abs(values).reshape(64, -1, 32).max(axis=2).repeat(32, axis=1) / (2**bits - 1)
        return ((np.floor(values / step) + 0.5) * step).astype(np.float32)

    size = 64 // heads
    for before, after, how in (
        (w, rounded(halves(w, heads)), "pairs to halves"),
        (halves(w, heads), rounded(w), "halves to pairs"),
    ):
        record = asked({"q": before}, {"q": after})
        assert rules(record) == [("permuted-rows", "medium", "q")]
        assert [row["detail"] for row in record.result["rearranged"]] == [f"rotary {how}, {size} rows a head"]
        assert record.findings[0].value >= 0.9
    assert rules(asked({"q": w}, {"q": rounded(w)})) == []
    assert rules(asked({"q": w}, {"q": noise(64, 128, seed=9)})) == []


def test_no_half_swap_is_named_where_none_fits() -> None:
    rows = details_of([{"w": noise(12, 5)}, {"w": noise(12, 5)[::-1].copy()}], [(0, 1)], ["w"]).rows
    assert half_swap(rows[0, 0], rows[0, 1], 1e-9) is None


def test_exchanged_contents_are_told() -> None:
    experts = {f"experts.{e}.{name}": noise(6, 6, seed=e) for e in range(4) for name in ("up", "down")}
    after = dict(experts)
    after["experts.1.up"], after["experts.2.up"] = experts["experts.2.up"], experts["experts.1.up"]
    record = asked(experts, after)
    assert rules(record)[-1:] == [("swapped", "high", "experts.1.up")]
    assert record.findings[-1].value == "experts.2.up"
    assert record.result["rearranged_of"] == 1


def test_a_round_of_exchanges_names_each() -> None:
    before = {name: noise(6, 6, seed=i) for i, name in enumerate("abcd")}
    after = {"a": before["b"], "b": before["c"], "c": before["a"], "d": before["d"]}
    record = asked(before, after)
    assert rules(record) == [("swapped", "high", name) for name in "abc"]
    assert [one.value for one in record.findings] == ["b", "c", "a"]


def test_what_moved_on_without_an_exchange_is_low() -> None:
    before = {name: noise(6, 6, seed=i) for i, name in enumerate("abc")}
    after = {"a": before["b"], "b": before["c"], "c": noise(6, 6, seed=9)}
    assert rules(asked(before, after)) == [("moved", "low", "a"), ("moved", "low", "b")]


def test_contents_that_several_tensors_have_prove_no_exchange() -> None:
    ones, zeros = np.ones((4, 4), np.float32), np.zeros((4, 4), np.float32)
    assert rules(asked({"a": ones, "b": zeros, "c": zeros}, {"a": zeros, "b": ones, "c": ones})) == []


def test_names_are_counted_and_listed() -> None:
    w = {f"h.{i}.w": noise(3, 3, seed=i) for i in range(30)}
    before = w | {"old": noise(16), "kept": noise(15), "gone": noise(7)}
    after = w | {"new": noise(16), "fresh": noise(9)}
    result = asked(before, after).result
    assert (result["tensors"], result["exact"], result["content"], result["unmatched_of"]) == (30, 30, 1, 3)
    assert result["pairs"] == [
        {"tensor": "old", "baseline": "old", "candidate": "new", "confidence": "content", "transform": None, "alike": 1}
    ]
    assert result["unmatched"] == [
        {"tensor": "fresh", "side": "candidate"},
        {"tensor": "gone", "side": "baseline"},
        {"tensor": "kept", "side": "baseline"},
    ]


@pytest.mark.parametrize(("most", "told"), [(1, True), (2, False), (3, False)])
def test_unmatched_tensors_beyond_the_limit_are_medium(most: int, told: bool) -> None:
    record = asked({"a": noise(3), "gone": noise(7)}, {"a": noise(3), "new": noise(9)}, unmatched_most=most)
    assert rules(record) == ([("unmatched", "medium", None)] if told else [])


@pytest.mark.parametrize(("elements", "told"), [(15, 0), (16, 2)])
def test_what_is_small_can_be_equal_by_chance(elements: int, told: int) -> None:
    w = {name: noise(elements, seed=i) for i, name in enumerate("abc")}
    after = {"a": w["b"], "b": w["a"], "c": w["c"][::-1].copy()}
    assert len(asked(w, after).findings) == told


def test_the_record_is_as_it_is_explained() -> None:
    w = {f"{i}": noise(16, seed=i) for i in range(60)}
    record = asked(w, {name: w[str(int(name) ^ 1)] for name in w})
    assert record.result.keys() == TensorMatching.result.keys()
    assert {one.rule for one in record.findings} == {"swapped"} <= TensorMatching.rules.keys()
    assert (len(record.result["rearranged"]), record.result["rearranged_of"]) == (20, 30)
    assert [one.value for one in record.findings][-1] == 10  # beyond the first 20


def test_a_healthy_pair_raises_nothing() -> None:
    before = {f"h.{i}.w": noise(16, 16, seed=i, dtype=ml_dtypes.bfloat16) for i in range(5)} | {
        "n": np.ones(16, np.float32)
    }
    after = {
        name: (w.astype(np.float32) * 1.001 + 0.01 * noise(*w.shape, seed=7)).astype(w.dtype)
        for name, w in before.items()
    }
    record = asked(before, after)
    assert record.findings == ()
    assert (record.result["by_rows"], record.result["without_rows"]) == (6, 0)


def test_without_details_it_tells_names_alone() -> None:
    found = measured([{"w": noise(6, 6), "v": noise(6, 6)}, {"w": noise(6, 6).T.copy(), "v": noise(6, 6, seed=1)}])
    bare = dataclasses.replace(found, details=Details())
    record = TensorMatching()(bare, 0, tensor_records(bare, 0))
    assert (record.findings, record.result["without_rows"], record.result["by_rows"]) == ((), 2, 0)


def test_a_nan_passes_no_limit() -> None:
    w = noise(8, 8)
    odd = w.copy()
    odd[2, 3] = np.nan
    assert rules(asked({"w": odd}, {"w": np.ascontiguousarray(odd.T)})) == [("transposed", "high", "w")]
    found = measured([{"w": w}, {"w": np.ascontiguousarray(w.T)}])
    found.details.rows[0, 1]["squares"][0] = np.nan
    assert rules(TensorMatching()(found, 0, tensor_records(found, 0))) == []


# End to end


def model() -> Arrays:
    arrays: Arrays = {"model.embed_tokens.weight": noise(50, 16), "lm_head.weight": noise(50, 16, seed=1)}
    for layer in range(3):
        start = f"model.layers.{layer}."
        shapes = {"q": (32, 16), "k": (8, 16), "v": (8, 16), "o": (16, 32)}
        arrays |= {f"{start}self_attn.{n}_proj.weight": noise(*s, seed=ord(n) + layer) for n, s in shapes.items()}
        arrays |= {f"{start}mlp.{n}_proj.weight": noise(40, 16, seed=len(n) + layer) for n in ("gate", "up")}
        arrays[f"{start}mlp.down_proj.weight"] = noise(16, 40, seed=layer)
    return arrays


def fused(arrays: Arrays, prefix: str = "") -> Arrays:
    """As a library for inference saves it, wrapped."""
    made: Arrays = {}
    for name, array in arrays.items():
        start, _, rest = name.rpartition("self_attn." if "self_attn" in name else "mlp.")
        kinds = {
            "q_proj.weight": ("self_attn.qkv_proj.weight", "qkv"),
            "gate_proj.weight": ("mlp.gate_up_proj.weight", ("gate", "up")),
        }
        if rest in kinds:
            new, parts = kinds[rest]
            group = "self_attn" if rest[0] == "q" else "mlp"
            made[prefix + start + new] = np.concatenate([arrays[f"{start}{group}.{one}_proj.weight"] for one in parts])
        elif not rest.startswith(("k_", "v_", "up_")):
            made[prefix + name] = array
    return made


@pytest.mark.parametrize("turned", [False, True])
def test_a_wrapped_and_fused_checkpoint_is_the_same(tmp_path: Path, turned: bool) -> None:
    arrays = model()
    files = [
        str(write(tmp_path / "a.safetensors", arrays)),
        str(write(tmp_path / "b.safetensors", fused(arrays, "module."))),
    ]
    plain = compare(*files)
    assert plain.result.statuses == {"added": 14, "removed": 23}
    report = compare(*(files[::-1] if turned else files), analyses=["tensor_matching"])
    assert report.result.statuses == {"identical": 23}
    assert report.findings == ()
    assert report.coverage.complete
    (found,) = (one.result for one in report.result.analyses)
    assert (found["tensors"], found["role"], found["wrapper"], found["unmatched_of"]) == (23, 15, 8, 0)
    assert sum(row["alike"] for row in found["pairs"]) == 23
    # Every byte once, whatever it is compared with.
    assert report.reading.nbytes == 2 * sum(array.nbytes for array in arrays.values())


def test_a_change_in_a_fused_tensor_is_told_of_its_part(tmp_path: Path) -> None:
    arrays = model()
    moved = {name: array.copy() for name, array in arrays.items()}
    moved["model.layers.1.self_attn.k_proj.weight"][3, 5] += 1
    files = [str(write(tmp_path / "a.safetensors", arrays)), str(write(tmp_path / "b.safetensors", fused(moved)))]
    report = compare(*files, analyses=["tensor_matching"])
    (record,) = (one for one in report.result.tensors if one.status == "changed")
    assert record.name == "model.layers.1.self_attn.k_proj.weight"
    assert record.candidate_name == "model.layers.1.self_attn.qkv_proj.weight[32:40]"
    assert record.change is not None
    assert (record.change.max_abs_index, record.change.changed_fraction) == (3 * 16 + 5, 1 / 128)
    (shown,) = (one for one in report.records if one["kind"] == "tensor")
    assert shown["candidate_name"] == record.candidate_name


def test_ambiguous_names_are_a_finding(tmp_path: Path) -> None:
    files = [
        str(write(tmp_path / "a.safetensors", {"h.w": noise(4)})),
        str(write(tmp_path / "b.safetensors", {"module.h.w": noise(4), "_orig_mod.h.w": noise(5)})),
    ]
    report = compare(*files, analyses=["tensor_matching"])
    assert [(one.rule, one.severity, one.value) for one in report.findings] == [
        ("unmatched", "medium", 3),
        ("ambiguous", "low", 1),
    ]
    (row,) = report.result.analyses[0].result["ambiguous"]
    assert sorted(row["names"].split(", ")) == ["_orig_mod.h.w", "h.w", "module.h.w"]


def test_values_are_looked_at_end_to_end(tmp_path: Path) -> None:
    arrays = {f"experts.{e}.w": noise(48, 48, seed=e, dtype=ml_dtypes.bfloat16) for e in range(5)} | {
        "q": noise(64, 24)
    }
    after = dict(arrays) | {"experts.0.w": np.ascontiguousarray(arrays["experts.0.w"].T), "q": halves(arrays["q"], 4)}
    after["experts.1.w"], after["experts.3.w"] = arrays["experts.3.w"], arrays["experts.1.w"]
    files = [str(write(tmp_path / "a.safetensors", arrays)), str(write(tmp_path / "b.safetensors", after))]
    report = compare(*files, analyses=["tensor_matching"])
    assert [(one.rule, one.tensor) for one in report.findings] == [
        ("transposed", "experts.0.w"), ("swapped", "experts.1.w"), ("permuted-rows", "q"),
    ]  # fmt: skip
    assert report.result.analyses[0].result["rearranged"][2]["detail"] == "rotary pairs to halves, 16 rows a head"


def test_a_sweep_matches_all_with_its_first_baseline_and_keeps_what_it_found(tmp_path: Path) -> None:
    arrays = model()
    for step, made in enumerate((arrays, fused(arrays, "module."), {f"_orig_mod.{n}": a for n, a in arrays.items()})):
        write(tmp_path / "run" / f"step-{step}.safetensors", made)
    settings = {"checkpoints": str(tmp_path / "run" / "step-*"), "store": str(tmp_path / "store")}
    report = sweep(**settings, analyses=("tensor_matching",))
    assert [result.statuses for result in report.sweep.results] == [{"identical": 23}] * 2
    again = sweep(**settings, analyses=("tensor_matching",))
    assert [result.tensors for result in again.sweep.results] == [result.tensors for result in report.sweep.results]
    named = {one.candidate_name for one in again.sweep.results[1].tensors}
    assert "_orig_mod.model.layers.2.self_attn.v_proj.weight" in named
    plain = sweep(**settings)  # nothing of what was kept under other names is taken for what is there
    assert [result.statuses for result in plain.sweep.results] == [
        {"added": 14, "removed": 23},
        {"added": 23, "removed": 14},
    ]
