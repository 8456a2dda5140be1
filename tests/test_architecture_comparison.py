"""Architectures from names, shapes and configurations: published models, made ones, and what neighbours differ in."""

from __future__ import annotations

import dataclasses
import doctest
import json
import os
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import write_sharded, write_sparse
from diffai_dist import opening
from diffai_dist.analyses import (
    architecture,
    architecture_config,
    architecture_heads,
    architecture_names,
    families,
)
from diffai_dist.analyses.architecture import Architecture, contradictions, describe
from diffai_dist.analyses.architecture_comparison import ArchitectureComparison
from diffai_dist.analyses.base import thresholds
from diffai_dist.analyses.roles import pattern
from diffai_dist.analyses.series import Series
from diffai_dist.comparison import Pair, compare_members
from diffai_dist.errors import BadIndex, MissingShard
from diffai_dist.formats import model_config, open_checkpoint
from diffai_dist.formats.strict_json import NotStrict
from diffai_dist.matching import Matching, match_members
from diffai_dist.partials import MOMENTS, SHIFT, empty
from diffai_dist.records import AnalysisRecord, Measurements, Member
from diffai_dist.storage import Profile
from results import HOSTILE, member

SHARED = Path(os.environ.get("DIFFAI_DIST_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "real-indexes"
AT_HAND = pytest.mark.skipif(not SHARED.is_dir(), reason="the indexes of public models are not at hand")

Shapes = dict[str, tuple[int, ...] | None]


@pytest.mark.parametrize(
    "module", [architecture, architecture_config, architecture_heads, architecture_names, families, model_config]
)
def test_the_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


# Nine published models, and a tenth whose index is broken

# Families as config.json names them, where it names a version or a wrapper around the same language model.
NAMED = {"gpt_neox_reward_model": "gpt_neox", "qwen3_5_moe_text": "qwen3_5_moe", "deepseek_vl_v2": "deepseek"}
TOWERS = {  # stacks beside the language model's: vision_config of gemma3 and DeepSeek-OCR2, which names qwen2-0.5b
    "gemma3-27b-multimodal": {"vision_tower.vision_model.encoder.layers": ("siglip", 27)},
    "deepseek-ocr2": {"model.sam_model.blocks": ("sam", 12), "model.qwen2_model.model.model.layers": ("qwen2", 24)},
    "molmo-7b-bnb-nf4": {"model.vision_backbone.image_vit.transformer.resblocks": ("clip", 23)},
}
REAL = (
    *("deepseek-ocr2", "falcon-180b", "gemma3-27b-multimodal", "gptneox-1.4b-reward", "llama-2", "mixtral-8x22b"),
    *("molmo-7b-bnb-nf4", "phi3-3b", "qwen3.5-moe-18b-a3b"),
)


def published(model: str) -> tuple[list[str], dict[str, Any]]:
    """Names of the tensors, and the configuration."""
    names = json.loads((SHARED / model / "model.safetensors.index.json").read_text())["weight_map"]
    return list(names), json.loads((SHARED / model / "config.json").read_text())


def language(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, **config.get("text_config", {}), **config.get("language_config", {})}


def truth(config: Mapping[str, Any]) -> dict[str, Any]:
    """Family, depth and experts as the configuration has them."""
    inner = language(config)
    experts = inner.get("num_local_experts", inner.get("num_experts", inner.get("n_routed_experts")))
    family = NAMED.get(config["model_type"], config["model_type"])
    return {"family": family, "depth": inner["num_hidden_layers"], "experts": experts}


def known(found: Architecture, keys: Sequence[str]) -> dict[str, Any]:
    return {key: found.value(key) for key in keys}


@AT_HAND
@pytest.mark.parametrize("model", REAL)
def test_names_alone_tell_family_depth_and_experts_of_published_models(model: str) -> None:
    names, config = published(model)
    found = describe(dict.fromkeys(names))
    assert known(found, ("family", "depth", "experts")) == truth(config)
    assert {found.facts[key].source for key in ("family", "depth")} == {"name"}
    towers = {one.path: (one.family and one.family.name, one.facts["depth"].value) for one in found.stacks}
    main = [path for path in towers if path not in TOWERS.get(model, {})]
    assert {path: told for path, told in towers.items() if path not in main} == TOWERS.get(model, {})
    assert len(main) == 1
    assert known(found, ("hidden", "ffn", "vocab", "q_dim", "params_total")) == dict.fromkeys(
        ("hidden", "ffn", "vocab", "q_dim", "params_total")
    )


@AT_HAND
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("model", REAL)
def test_the_order_of_names_and_wrappers_around_them_change_nothing(model: str, seed: int) -> None:
    names, _ = published(model)
    mixed = [f"module._orig_mod.{name}" for name in names]
    random.Random(seed).shuffle(mixed)
    before, after = describe(dict.fromkeys(names)), describe(dict.fromkeys(mixed))
    assert after.facts == before.facts
    assert {f"module._orig_mod.{one.path}" for one in before.stacks} == {one.path for one in after.stacks}


def headers(names: Sequence[str], config: Mapping[str, Any]) -> Shapes:
    """Shapes that a model of this configuration has, by what its family calls its tensors."""
    inner = language(config)
    d, f, v, q, k, size = widths(inner)
    expert_ffn = inner.get("moe_intermediate_size", f)
    gate = 2 if inner.get("attn_output_gate") else 1
    linear = [inner.get(f"linear_{key}", 0) for key in ("num_key_heads", "key_head_dim", "num_value_heads")]
    keys, values = linear[0] * linear[1], linear[2] * inner.get("linear_value_head_dim", 0)
    shared = inner.get("shared_expert_intermediate_size", inner.get("n_shared_experts", 0) * expert_ffn)
    experts = truth(config)["experts"]
    rules: list[tuple[str, tuple[int, ...]]] = [
        (r"experts\.#\.(gate_proj|up_proj|w1|w3)", (expert_ffn, d)),
        (r"experts\.#\.(down_proj|w2)", (d, expert_ffn)),
        (r"shared_experts?\.(gate_proj|up_proj)", (shared, d)),
        (r"shared_experts?\.down_proj", (d, shared)),
        (r"shared_expert_gate", (1, d)),
        (r"(mlp|block_sparse_moe)\.gate\.", (experts or 0, d)),
        (r"linear_attn\.in_proj_qkv", (2 * keys + values, d)),
        (r"linear_attn\.in_proj_z", (values, d)),
        (r"linear_attn\.in_proj_[ab]\.", (linear[2], d)),
        (r"linear_attn\.(A_log|dt_bias)", (linear[2],)),
        (r"linear_attn\.conv1d", (2 * keys + values, 1, 4)),
        (r"linear_attn\.norm", (inner.get("linear_value_head_dim", 0),)),
        (r"linear_attn\.out_proj", (d, values)),
        (r"self_attn\.[qk]_norm", (size,)),
        (r"inv_freq", (size // 2,)),
        (r"self_attn\.q_proj\.weight", (gate * q, d)),
        (r"self_attn\.[kv]_proj\.weight", (k, d)),
        (r"self_attn\.o_proj", (d, q)),
        (r"(qkv_proj|query_key_value)\.weight", (q + 2 * k, d)),
        (r"query_key_value\.bias", (q + 2 * k,)),
        (r"(attention|self_attention)\.dense\.weight", (d, q)),
        (r"gate_up_proj", (2 * f, d)),
        (r"mlp\.(gate_proj|up_proj|dense_h_to_4h)\.weight", (f, d)),
        (r"mlp\.dense_h_to_4h\.bias", (f,)),
        (r"mlp\.(down_proj|dense_4h_to_h)\.weight", (d, f)),
        (r"embed_tokens|word_embeddings|embed_in|lm_head", (v, d)),
        (r"(layer_?norm|\.norm|\.ln_\w+)[.\w]*$|dense\.bias|dense_4h_to_h\.bias", (d,)),
        (r"^out_proj\.weight", (1, d)),
        (r"^out_proj\.bias", (1,)),
    ]
    towers = ("vision", "sam_model", "qwen2_model", "projector", "seperator")
    shapes: Shapes = {}
    for name in names:
        if any(tower in name for tower in towers):
            shapes[name] = (7,)  # of no interest to the language model
            continue
        text = pattern(name)[0]
        shapes[name] = next(shape for rule, shape in rules if re.search(rule, text))
    return shapes


def widths(inner: Mapping[str, Any]) -> tuple[int, int, int, int, int, int]:
    """hidden, ffn, vocab, q_dim, kv_dim, head_dim of a configuration."""
    heads = inner["num_attention_heads"]
    d = inner["hidden_size"]
    size = inner.get("head_dim", d // heads)
    kv = inner.get("num_kv_heads", inner.get("num_key_value_heads", heads))
    return d, inner.get("intermediate_size", 4 * d), inner["vocab_size"], heads * size, kv * size, size


def packed(names: Sequence[str], config: Mapping[str, Any]) -> Shapes:
    """Shapes of Molmo in bitsandbytes' NF4: 4-bit codes in one column of bytes, one scale for 64 of them."""
    d, f, v, q, k, _ = widths(config)
    matrices = {"att_proj": (q + 2 * k) * d, "attn_out": q * d, "ff_proj": f * d, "ff_out": f // 2 * d}
    shapes: Shapes = {}
    for name in names:
        part = next((part for part in matrices if f".{part}.weight" in name and ".blocks." in name), None)
        if "vision" in name:
            shapes[name] = (7,)
        elif part:
            size = matrices[part]
            kind = name.rpartition(f"{part}.weight")[2]
            sizes = {"": (size // 2, 1), ".absmax": (size // 64,), ".quant_map": (16,)}
            shapes[name] = sizes.get(kind, (88,))
        elif name.endswith("att_proj.bias"):
            shapes[name] = (q + 2 * k,)
        elif name.endswith(("transformer.ff_out.weight", "wte.embedding")):
            shapes[name] = (v, d)
        else:
            shapes[name] = (128, d) if name.endswith("new_embedding") else (d,)
    return shapes


@AT_HAND
@pytest.mark.parametrize("model", REAL)
def test_headers_tell_the_widths_of_published_models(model: str) -> None:
    names, config = published(model)
    molmo = model.startswith("molmo")
    shapes = packed(names, config) if molmo else headers(names, config)
    found = describe(shapes)
    inner = language(config)
    d, f, v, q, k, size = widths(inner)
    assert known(found, ("family", "depth", "experts")) == truth(config)
    assert known(found, ("hidden", "q_dim", "kv_dim")) == {"hidden": d, "q_dim": q, "kv_dim": k}
    assert found.value("gqa_ratio") == q // k
    assert found.value("vocab") == v
    dense = {
        "molmo-7b-bnb-nf4": f // 2,
        "mixtral-8x22b": None,
        "qwen3.5-moe-18b-a3b": None,
    }  # Molmo's counts both halves
    assert found.value("ffn") == dense.get(model, f)
    if model.startswith("mixtral"):
        assert found.value("expert_ffn") == f
    if "moe_intermediate_size" in inner:
        assert found.value("expert_ffn") == inner["moe_intermediate_size"]
        assert found.value("shared_experts") == inner.get("n_shared_experts", 1)
    told = model in ("gemma3-27b-multimodal", "llama-2", "qwen3.5-moe-18b-a3b")  # q_norm, inv_freq
    assert found.value("head_dim") == (size if told else None)
    if told:
        assert known(found, ("q_heads", "kv_heads")) == {"q_heads": q // size, "kv_heads": k // size}
    else:
        assert found.facts["head_dim_candidates"].source == "assumed"
        assert (size in found.value("head_dim_candidates")) == (size in (64, 80, 96, 128, 192, 256))
    with_config = describe(shapes, config)
    heads = {"q_heads": q // size, "kv_heads": k // size, "head_dim": size}
    assert known(with_config, tuple(heads)) == heads
    assert contradictions(with_config, config) == []


@AT_HAND
@pytest.mark.parametrize(("model", "width"), [("mixtral-8x22b", 2), ("llama-2", 4), ("falcon-180b", 2), ("phi3-3b", 2)])
def test_parameters_of_published_models_are_those_that_their_index_counts(model: str, width: int) -> None:
    names, config = published(model)
    shapes = headers(names, config)
    nbytes = json.loads((SHARED / model / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    buffers = 32 * 64 if model == "llama-2" else 0  # inv_freq
    total = nbytes // width - buffers
    assert describe(shapes).value("params_total") == total
    idle = 56 * 6 * 3 * 6144 * 16384 if model.startswith("mixtral") else 0  # 6 of 8 experts of three matrices
    assert describe(shapes, config).value("params_active") == total - idle
    assert describe(shapes).value("params_active") == (None if idle else total)


@AT_HAND
def test_the_published_index_of_two_documents_is_refused_with_its_name_and_place() -> None:
    with pytest.raises(BadIndex, match=r"index\.json: index: text after the end .* at line 2") as caught:
        open_checkpoint(str(SHARED / "bloom-176b"), Profile())
    assert caught.value.exit_code == 3


# Made ones, of every kind


def blocks(count: int, parts: Mapping[str, tuple[int, ...] | None], stack: str = "model.layers") -> Shapes:
    return {f"{stack}.{i}.{part}": shape for i in range(count) for part, shape in parts.items()}


GPT2 = blocks(
    3,
    {
        "ln_1.weight": (48,), "ln_1.bias": (48,), "attn.bias": (1, 1, 9, 9), "attn.c_attn.weight": (48, 144),
        "attn.c_attn.bias": (144,), "attn.c_proj.weight": (48, 48), "mlp.c_fc.weight": (48, 192),
        "mlp.c_proj.weight": (192, 48),
    },
    "h",
) | {"wte.weight": (77, 48), "wpe.weight": (9, 48), "ln_f.weight": (48,), "ln_f.bias": (48,)}  # fmt: skip
BERT = blocks(
    6,
    {
        "attention.self.query.weight": (384, 384), "attention.self.key.weight": (384, 384),
        "attention.self.value.weight": (384, 384), "attention.output.dense.weight": (384, 384),
        "attention.output.LayerNorm.weight": (384,), "attention.output.LayerNorm.bias": (384,),
        "intermediate.dense.weight": (1536, 384), "output.dense.weight": (384, 1536),
    },
    "encoder.layer",
) | {
    "embeddings.word_embeddings.weight": (30522, 384), "embeddings.position_embeddings.weight": (512, 384),
    "embeddings.token_type_embeddings.weight": (2, 384), "embeddings.position_ids": (1, 512),
}  # fmt: skip
T5 = {
    **blocks(
        2,
        {f"layer.0.SelfAttention.{one}.weight": (64, 32) for one in "qkv"}
        | {"layer.0.SelfAttention.o.weight": (32, 64), "layer.1.DenseReluDense.wi.weight": (128, 32)}
        | {"layer.1.DenseReluDense.wo.weight": (32, 128)},
        "encoder.block",
    ),
    **blocks(
        2,
        {f"layer.0.SelfAttention.{one}.weight": (64, 32) for one in "qkv"}
        | {f"layer.1.EncDecAttention.{one}.weight": (64, 16) for one in "qkv"}
        | {"layer.0.SelfAttention.o.weight": (32, 64), "layer.1.EncDecAttention.o.weight": (32, 64)}
        | {"layer.2.DenseReluDense.wo.weight": (32, 128)},
        "decoder.block",
    ),
    "shared.weight": (100, 32),
}
DEEPSEEK = {
    **blocks(
        3,
        {
            "self_attn.q_a_proj.weight": (24, 40), "self_attn.q_b_proj.weight": (96, 24),
            "self_attn.kv_a_proj_with_mqa.weight": (20, 40), "self_attn.kv_a_layernorm.weight": (16,),
            "self_attn.kv_b_proj.weight": (128, 16), "self_attn.o_proj.weight": (40, 64),
            "input_layernorm.weight": (40,), "mlp.gate.weight": (4, 40),
            "mlp.shared_experts.down_proj.weight": (40, 20),
        }
        | {f"mlp.experts.{i}.down_proj.weight": (40, 10) for i in range(4)},
    ),
    **blocks(1, {"eh_proj.weight": (40, 80), "mlp.experts.0.down_proj.weight": (40, 10)}, "model.layers.3")
    | {"model.layers.3.eh_proj.weight": (40, 80)},
    "model.embed_tokens.weight": (50, 40), "lm_head.weight": (50, 40),
}  # fmt: skip
GPT_OSS = blocks(
    2,
    {
        "self_attn.sinks": (4,), "self_attn.q_proj.weight": (64, 24), "self_attn.k_proj.weight": (16, 24),
        "self_attn.o_proj.weight": (24, 64), "mlp.router.weight": (8, 24), "mlp.experts.gate_up_proj": (8, 24, 36),
        "mlp.experts.down_proj": (8, 18, 24), "input_layernorm.weight": (24,),
    },
)  # fmt: skip
MAMBA = blocks(
    4,
    {
        "mixer.A_log": (64, 16), "mixer.x_proj.weight": (40, 64), "mixer.dt_proj.weight": (64, 8),
        "mixer.conv1d.weight": (64, 1, 4), "norm.weight": (32,),
    },
    "backbone.layers",
) | {"backbone.embeddings.weight": (90, 32)}  # fmt: skip
VIT = blocks(
    5,
    {f"attention.attention.{one}.weight": (48, 48) for one in ("query", "key", "value")}
    | {"attention.output.dense.weight": (48, 48), "intermediate.dense.weight": (96, 48)}
    | {"output.dense.weight": (48, 96), "layernorm_before.weight": (48,), "layernorm_before.bias": (48,)},
    "vit.encoder.layer",
) | {"vit.embeddings.patch_embeddings.projection.weight": (48, 3, 16, 16), "classifier.weight": (10, 48)}
UNET = blocks(
    4,
    {"resnets.0.time_emb_proj.weight": (32, 64), "resnets.0.conv1.weight": (32, 32, 3, 3)},
    "down_blocks",
) | {"conv_in.weight": (32, 4, 3, 3), "mid_block.resnets.0.conv1.weight": (32, 32, 3, 3)}
RESNET = blocks(2, {"conv1.weight": (8, 8, 3, 3), "bn1.weight": (8,), "bn1.bias": (8,)}, "layer1") | {
    "conv1.weight": (8, 3, 7, 7), "fc.weight": (10, 8), "bn1.running_mean": (8,),
}  # fmt: skip
LORA = blocks(
    2,
    {
        "self_attn.q_proj.lora_A.weight": (8, 40), "self_attn.q_proj.lora_B.weight": (64, 8),
        "self_attn.k_proj.lora_B.default.weight": (16, 4), "self_attn.k_proj.lora_A.default.weight": (4, 40),
    },
    "base_model.model.model.layers",
)  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "facts"),
    [
        pytest.param(
            GPT2,
            {"family": "gpt2", "kind": "decoder", "depth": 3, "hidden": 48, "ffn": 192, "q_dim": 48, "kv_dim": 48,
             "vocab": 77, "tied": True, "norm_kind": "layernorm", "experts": None, "head_dim": None,
             "params_total": 3 * (96 + 48 * 144 + 144 + 48 * 48 + 2 * 48 * 192) + 77 * 48 + 9 * 48 + 96},
            id="conv1d",
        ),
        pytest.param(
            BERT,
            {"family": "bert", "kind": "encoder", "depth": 6, "hidden": 384, "ffn": 1536, "q_dim": 384, "kv_dim": 384,
             "vocab": 30522, "tied": None, "norm_kind": "layernorm", "head_dim_candidates": [64, 96, 128, 192],
             "params_total": 6 * (4 * 384**2 + 2 * 384 + 2 * 384 * 1536) + (30522 + 512 + 2) * 384},
            id="encoder",
        ),
        pytest.param(
            T5,
            {"family": "t5", "kind": "encoder-decoder", "depth": 2, "hidden": 32, "ffn": 128, "q_dim": 64, "kv_dim": 64,
             "vocab": 100, "tied": True},
            id="encoder-decoder",
        ),
        pytest.param(
            DEEPSEEK,
            {"family": "deepseek", "depth": 3, "hidden": 40, "q_rank": 24, "kv_rank": 16, "kv_latent": 20,
             "experts": 4, "shared_experts": 2, "expert_ffn": 10, "moe_blocks": 4, "vocab": 50, "tied": False,
             "attention_blocks": 3, "q_dim": None},
            id="latent-attention",
        ),
        pytest.param(
            GPT_OSS,
            {"family": "gpt_oss", "depth": 2, "experts": 8, "expert_ffn": 18, "hidden": 24, "q_dim": 64, "kv_dim": 16,
             "gqa_ratio": 4, "shared_experts": 0, "vocab": None},
            id="stacked-experts",
        ),
        pytest.param(
            MAMBA,
            {"family": "mamba", "kind": "state-space", "depth": 4, "hidden": 32, "vocab": 90, "q_dim": None,
             "norm_kind": "rmsnorm"},
            id="state-space",
        ),
        pytest.param(
            VIT, {"family": "vit", "kind": "vision", "depth": 5, "hidden": 48, "ffn": 96, "vocab": None}, id="vision"
        ),
        pytest.param(UNET, {"family": "unet", "kind": "diffusion", "depth": 4}, id="unet"),
        pytest.param(
            RESNET,
            {"family": "resnet", "kind": "vision", "depth": 2, "norm_kind": "batchnorm",
             "params_total": 2 * (8 * 72 + 16) + 8 * 3 * 49 + 80},
            id="convolution",
        ),
        pytest.param(
            LORA,
            {"kind": "adapter", "family": None, "depth": 2, "lora_rank": 8, "q_dim": 64, "kv_dim": 16,
             "params_total": 2 * (8 * 40 + 64 * 8 + 16 * 4 + 4 * 40), "params_active": None},
            id="adapter",
        ),
        pytest.param({"c.weight": (8, 3, 3, 3), "d.weight": (9, 8, 3, 3)}, {"kind": "convolution"}, id="plain-conv"),
        pytest.param(
            {"fc1.weight": (3, 2), "fc1.bias": (3,)},
            {"family": None, "depth": None, "params_total": 9},
            id="perceptron",
        ),
        pytest.param({}, {"family": None, "depth": None, "params_total": 0}, id="nothing"),
        pytest.param(
            {"model.layers.0.self_attn.q_proj.qweight": (8, 64), "model.layers.0.self_attn.q_proj.scales": (1, 64)},
            {"params_total": None, "depth": 1, "q_dim": None},
            id="packed",
        ),
    ],
)  # fmt: skip
def test_made_models_are_described(shapes: Shapes, facts: dict[str, Any]) -> None:
    assert known(describe(shapes), tuple(facts)) == facts
    unknown = describe(dict.fromkeys(shapes))
    for key in ("family", "depth", "norm_kind", "tied"):
        assert unknown.value(key) == describe(shapes).value(key)
    assert not shapes or all(one.source != "shape" for one in unknown.facts.values())


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda one: f"{one.name}: {one.has}")
def test_no_family_hides_behind_one_with_fewer_marks(family: families.Family) -> None:
    assert families.family_of(family.has.split()) is family
    assert families.family_of([f"module.{mark}.weight" for mark in family.has.split()]) is family
    assert families.family_of([f"{mark}s" for mark in family.has.split()]) is not family


def test_a_size_of_heads_comes_from_what_has_it_and_partial_rotations_do_not() -> None:
    parts = {
        "self_attn.q_proj.weight": (256, 64),
        "self_attn.k_proj.weight": (128, 64),
        "mlp.gate_proj.weight": (9, 64),
    }
    parts |= {"input_layernorm.weight": (64,), "post_attention_layernorm.weight": (64,)}
    assert describe(blocks(1, parts)).value("head_dim") is None
    rotary = describe(blocks(1, parts | {"self_attn.rotary_emb.inv_freq": (16,)}))
    assert known(rotary, ("head_dim", "q_heads", "kv_heads")) == {"head_dim": 32, "q_heads": 8, "kv_heads": 4}
    both = {"self_attn.q_norm.weight": (64,), "self_attn.k_norm.weight": (64,)}
    normed = describe(blocks(1, parts | both))
    assert known(normed, ("family", "head_dim", "q_heads")) == {"family": "qwen3", "head_dim": 64, "q_heads": 4}
    for lengths in ((256, 128), (256, 256), (64, 32), (64, None)):
        sides = zip(both, lengths, strict=True)
        whole = describe(blocks(1, parts | {name: (length,) for name, length in sides if length}))
        assert whole.value("head_dim") is None
    half = describe(blocks(1, parts | {"self_attn.rotary_emb.inv_freq": (16,)}), {"partial_rotary_factor": 0.5})
    assert half.value("head_dim") is None
    neox = {"attention.query_key_value.weight": (192, 64), "attention.dense.weight": (64, 64)}
    partial = describe(blocks(1, neox | {"attention.rotary_emb.inv_freq": (4,)}, "gpt_neox.layers"))
    assert known(partial, ("family", "q_dim", "kv_dim", "head_dim")) == {
        "family": "gpt_neox", "q_dim": 64, "kv_dim": 64, "head_dim": None,
    }  # fmt: skip


@given(
    st.integers(1, 5), st.integers(1, 9), st.integers(1, 6), st.integers(1, 4), st.integers(1, 8), st.integers(1, 300)
)
def test_widths_of_any_model_of_a_known_family_are_found(
    depth: int, width: int, kv_heads: int, ratio: int, size: int, vocab: int
) -> None:
    hidden, q_dim, kv_dim = 8 * width, kv_heads * ratio * size, kv_heads * size
    parts = {
        "self_attn.q_proj.weight": (q_dim, hidden), "self_attn.k_proj.weight": (kv_dim, hidden),
        "self_attn.v_proj.weight": (kv_dim, hidden), "self_attn.o_proj.weight": (hidden, q_dim),
        "mlp.gate_proj.weight": (3 * width, hidden), "mlp.up_proj.weight": (3 * width, hidden),
        "mlp.down_proj.weight": (hidden, 3 * width), "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }  # fmt: skip
    split = blocks(depth, parts) | {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
    fused = {
        "self_attn.qkv_proj.weight": (q_dim + 2 * kv_dim, hidden), "mlp.gate_up_proj.weight": (6 * width, hidden),
        **{name: shape for name, shape in parts.items() if "_proj" not in name or name.count("o_proj")},
    }  # fmt: skip
    fused.pop("mlp.down_proj.weight", None)
    config = {"num_attention_heads": kv_heads * ratio}
    for shapes in (split, blocks(depth, fused) | {"model.embed_tokens.weight": (vocab, hidden)}):
        facts = {"depth": depth, "hidden": hidden, "ffn": 3 * width, "q_dim": q_dim, "kv_dim": kv_dim, "vocab": vocab}
        assert known(describe(shapes), tuple(facts)) == facts
        heads = known(describe(shapes, config), ("q_heads", "kv_heads", "head_dim"))
        assert heads == {"q_heads": kv_heads * ratio, "kv_heads": kv_heads, "head_dim": size}


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_described(name: str) -> None:
    for shape in (None, (), (2**40, 0)):
        json.dumps([one.value for one in describe({name: shape, f"h.0.{name}": shape}).facts.values()])
    describe({name: (2, 2)}, {name: name, "model_type": name, "n_layer": -1, "n_head": True, "vocab_size": 1e9})
    forged = ("a.#.w", "a.0.w", "0.#.experts.#.w", "#", "h.0.experts.#.1.w", "\\\\#.0.w", "#.0")
    assert describe(dict.fromkeys(forged)).value("family") is None
    assert describe({f"{'1.' * 300}w": (1,), f"layers.{10**17}.a.w": (1,)}).value("depth") in (2, 10**17 + 1)


# What neighbours differ in


def series_of(*members: Shapes, configs: Sequence[Any] = (), lost: Mapping[int, Sequence[str]] | None = None) -> Series:
    """Headers alone; `lost` names by member what could not be read."""
    failure = MissingShard("/s", "this shard is missing").failure
    made = []
    for i, shapes in enumerate(members):
        one = member(**{name: ("BF16", shape) for name, shape in shapes.items() if shape is not None})
        unreadable = dict.fromkeys((lost or {}).get(i, ()), failure)
        config = configs[i] if configs else None
        made.append(dataclasses.replace(one, unreadable=unreadable, config=config))
    comparison = compare_members(made, [Pair(i, i + 1) for i in range(len(made) - 1)])
    size = len(comparison.aligned)
    measured = Measurements(comparison, empty(MOMENTS, (size, len(made))), empty(SHIFT, (size, len(made) - 1)), {})
    return Series(measured, tuple(Member(f"m{i}", f"/m{i}") for i in range(len(made))))


def record_of(*members: Shapes, **options: Any) -> AnalysisRecord:
    record = ArchitectureComparison()(series_of(*members, **options))
    assert json.loads(json.dumps(record.result)) == record.result
    assert set(record.result) == set(ArchitectureComparison.result)
    assert {one.rule for one in record.findings} <= set(ArchitectureComparison.rules)
    return record


def told(record: AnalysisRecord) -> list[tuple[Any, ...]]:
    return [(one.rule, one.severity, one.tensor, one.value, one.threshold) for one in record.findings]


LLAMA = blocks(
    2,
    {
        "self_attn.q_proj.weight": (16, 8), "self_attn.k_proj.weight": (4, 8), "self_attn.o_proj.weight": (8, 16),
        "mlp.gate_proj.weight": (24, 8), "mlp.down_proj.weight": (8, 24), "input_layernorm.weight": (8,),
        "post_attention_layernorm.weight": (8,),
    },
) | {"model.embed_tokens.weight": (100, 8), "lm_head.weight": (100, 8)}  # fmt: skip


@pytest.mark.parametrize("shapes", [LLAMA, GPT2, BERT, DEEPSEEK, LORA, {}], ids=range(6))
def test_members_of_one_architecture_are_described_once_and_without_a_finding(shapes: Shapes) -> None:
    record = record_of(shapes, shapes, shapes)
    assert (record.result["architectures"], record.findings) == (1, ())
    assert {(row["member"], row["members"]) for row in record.result["fields"]} == {("m0", 3)}
    assert {key: record.result[key] for key in ("differences", "changes", "added", "removed", "reshaped")} == {
        key: [] for key in ("differences", "changes", "added", "removed", "reshaped")
    }


def test_every_field_says_its_source_and_what_is_not_known_says_why() -> None:
    for shapes in (LLAMA, GPT2, DEEPSEEK, LORA, dict.fromkeys(LLAMA, (1,))):
        result = record_of(shapes, shapes).result
        assert {row["source"] for row in result["fields"]} <= {"shape", "name", "config", "assumed"}
        unknown = {field for row in result["unknown"] for field in row["fields"]}
        assert all(row["reason"] for row in result["unknown"])
        assert unknown | {row["field"] for row in result["fields"]} == set(describe(shapes).facts)


def test_what_was_matched_is_neither_added_nor_removed() -> None:
    apart = {name.replace("k_proj", "v_proj"): shape for name, shape in LLAMA.items() if "k_proj" in name}
    whole = LLAMA | apart
    fused = {name: shape for name, shape in whole.items() if not re.search(r"[qkv]_proj|gate_proj|up_proj", name)}
    for i in range(2):
        fused[f"model.layers.{i}.self_attn.qkv_proj.weight"] = (24, 8)
        fused[f"model.layers.{i}.mlp.gate_up_proj.weight"] = (48, 8)
        whole[f"model.layers.{i}.mlp.up_proj.weight"] = (24, 8)
    series = series_of(whole, {f"module.{name}": shape for name, shape in fused.items()})
    made = series.measured.comparison
    matched = match_members(made.members, made.pairs, matching=Matching(names=True))
    size = len(matched.aligned)
    measured = Measurements(matched, empty(MOMENTS, (size, 2)), empty(SHIFT, (size, 1)), {})
    record = ArchitectureComparison()(Series(measured, series.members))
    assert (record.result["added"], record.result["removed"], record.result["reshaped"]) == ([], [], [])
    assert record.result["changes"][0]["renamed"] == len(whole)


def test_a_changed_shape_is_high_and_beyond_the_limit_counted() -> None:
    limit = ArchitectureComparison().listed
    many = {f"w{i}": (4, 4) for i in range(limit + 1)}
    for changed in (1, limit, limit + 1):
        other = many | {f"w{i}": (4, 5) for i in range(changed)}
        record = record_of(many, other)
        assert record.result["changes"] == [
            {"baseline": "m0", "candidate": "m1", "added": 0, "removed": 0, "renamed": 0, "reshaped": changed}
        ]
        if changed <= limit:
            names = sorted((f"w{i}" for i in range(changed)), key=lambda name: int(name[1:]))
            assert told(record) == [("shape-changed", "high", name, "[4, 5]", "[4, 4]") for name in names]
        else:
            assert told(record) == [("shape-changed", "high", None, limit + 1, limit)]
        assert len(record.result["reshaped"]) == min(changed, 20)
    assert thresholds(ArchitectureComparison)["listed"].default == limit


def test_more_rows_for_tokens_are_a_resize_and_nothing_else_is() -> None:
    grown = LLAMA | {"model.embed_tokens.weight": (104, 8), "lm_head.weight": (104, 8)}
    assert told(record_of(LLAMA, grown)) == [("token-resize", "info", None, 104, 100)]
    shape = ("shape-changed", "high")
    fewer = told(record_of(grown, LLAMA))
    assert [one[:3] for one in fewer] == [(*shape, "lm_head.weight"), (*shape, "model.embed_tokens.weight")]
    uneven = grown | {"lm_head.weight": (105, 8)}
    assert [one[:2] for one in told(record_of(LLAMA, uneven))] == [shape] * 2
    beside = grown | {"model.layers.0.mlp.gate_proj.weight": (25, 8)}
    assert [one[:2] for one in told(record_of(LLAMA, beside))] == [shape] * 3
    longer = GPT2 | {"wpe.weight": (18, 48)}
    assert [one[:3] for one in told(record_of(GPT2, longer))] == [(*shape, "wpe.weight")]


def test_another_depth_and_other_experts_are_high_and_say_what_is_gone() -> None:
    shallow = {name: shape for name, shape in LLAMA.items() if "layers.1." not in name}
    record = record_of(LLAMA, shallow)
    assert told(record) == [("depth-changed", "high", None, 1, 2)]
    assert record.result["changes"][0] | {"baseline": "", "candidate": ""} == {
        "baseline": "", "candidate": "", "added": 0, "removed": 7, "renamed": 0, "reshaped": 0,
    }  # fmt: skip
    assert {row["tensor"] for row in record.result["removed"]} == set(LLAMA) - set(shallow)
    assert [row["field"] for row in record.result["differences"]] == ["depth", "attention_blocks", "params_total",
                                                                      "params_active"]  # fmt: skip
    pruned = {name: shape for name, shape in DEEPSEEK.items() if "experts.3." not in name}
    assert told(record_of(DEEPSEEK, pruned)) == [("experts-changed", "high", None, 3, 4)]
    assert told(record_of(pruned, DEEPSEEK)) == [("experts-changed", "high", None, 4, 3)]


def test_a_change_is_told_once_in_a_series_of_many() -> None:
    grown = LLAMA | {"lm_head.weight": (101, 9)}
    record = record_of(LLAMA, LLAMA, grown, grown, grown)
    assert [(one.baseline, one.candidate, one.tensor) for one in record.findings] == [("m1", "m2", "lm_head.weight")]
    assert record.result["architectures"] == 2
    assert {(row["member"], row["members"]) for row in record.result["fields"]} == {("m0", 2), ("m2", 3)}


def test_names_with_more_in_front_are_the_same_tensors() -> None:
    wrapped = {f"module.{name}": shape for name, shape in LLAMA.items()}
    for sides in ((LLAMA, wrapped), (wrapped, LLAMA)):
        record = record_of(*sides)
        assert record.findings == ()
        assert record.result["changes"][0]["renamed"] == len(LLAMA)
        assert record.result["added"] == record.result["removed"] == record.result["differences"] == []
    reshaped = wrapped | {"module.lm_head.weight": (7, 8)}
    assert [one[:3] for one in told(record_of(LLAMA, reshaped))] == [("shape-changed", "high", "module.lm_head.weight")]
    twice = {"a.w": (1,), "b.w": (1,)}
    assert record_of(twice, {"w": (1,)}).result["changes"][0] | {"baseline": "", "candidate": ""} == {
        "baseline": "", "candidate": "", "added": 1, "removed": 2, "renamed": 0, "reshaped": 0,
    }  # fmt: skip


def test_what_could_not_be_read_is_neither_removed_nor_missing_from_the_depth() -> None:
    first = {name: shape for name, shape in LLAMA.items() if "layers.1." not in name}
    rest = [name for name in LLAMA if name not in first]
    record = record_of(LLAMA, first, lost={1: rest})
    assert record.findings == ()
    assert record.result["changes"] == []
    assert {row["value"] for row in record.result["fields"] if row["field"] == "depth"} == {2}


def test_a_configuration_that_contradicts_the_tensors_is_named() -> None:
    right = {"num_hidden_layers": 2, "hidden_size": 8, "model_type": "mistral"}
    record = record_of(LLAMA, LLAMA, configs=[right, right])
    assert record.findings == ()
    family = next(row for row in record.result["fields"] if row["field"] == "family")
    assert (family["value"], family["source"]) == ("mistral", "config")
    for key, value in (("num_hidden_layers", 3), ("hidden_size", 9)):
        record = record_of(LLAMA, LLAMA, configs=[right, right | {key: value}])
        assert [one[:2] for one in told(record)] == [("config-mismatch", "high")]
        assert record.findings[0].candidate == "m1"
        assert record.result["contradictions"][0]["config"] == value


def wrong(shapes: Shapes, config: dict[str, Any]) -> list[tuple[str, Any, str]]:
    found = contradictions(describe(shapes, config), config)
    return [(row["field"], row["value"], row["severity"]) for row in found]


OLMO = LLAMA | blocks(2, {"self_attn.q_norm.weight": (16,), "self_attn.k_norm.weight": (4,)})  # over all heads


@pytest.mark.parametrize(
    ("config", "rows", "heads"),
    [
        ({"num_attention_heads": 8, "num_key_value_heads": 2}, [], (8, 2, 2)),
        ({"num_attention_heads": 4}, [], (4, 1, 4)),
        ({"num_attention_heads": 5}, [("q_heads", None, "high")], (None, None, None)),
        ({"num_attention_heads": 5, "num_key_value_heads": 2}, [("q_heads", 8, "high")], (8, 2, 2)),
        ({"num_attention_heads": 8, "num_key_value_heads": 3}, [("kv_heads", 2, "high")], (8, 2, 2)),
        (
            {"num_attention_heads": 4, "num_key_value_heads": 2},
            [("q_heads", None, "high"), ("kv_heads", None, "high")],
            (None, None, None),
        ),
        ({"num_attention_heads": 2}, [("q_heads", None, "high")], (None, None, None)),
        ({"head_dim": 3, "num_attention_heads": 8}, [("head_dim", 2, "low")], (8, 2, 2)),
        ({"head_dim": 4, "num_attention_heads": 8}, [("head_dim", 2, "low")], (8, 2, 2)),
        ({"num_attention_heads": 8, "num_key_value_heads": 3, "v_head_dim": 9}, [], (8, 2, 2)),
        ({"num_attention_heads": 4, "num_key_value_heads": 9, "multi_query": True}, [], (4, 1, 4)),
    ],
)
def test_heads_that_the_widths_rule_out_are_named_and_not_believed(
    config: dict[str, Any], rows: list[Any], heads: tuple[int | None, ...]
) -> None:
    found = describe(OLMO, config)
    assert wrong(OLMO, config) == rows
    assert tuple(known(found, ("q_heads", "kv_heads", "head_dim")).values()) == heads
    sources = [found.facts[key].source for key in ("q_heads", "kv_heads", "head_dim")]
    assert sources == [None if value is None else "config" for value in heads]


def test_norms_of_single_heads_prove_a_number_of_heads_wrong() -> None:
    shapes = LLAMA | blocks(2, {"self_attn.q_norm.weight": (2,), "self_attn.k_norm.weight": (2,)})
    lie = {"num_attention_heads": 4, "num_key_value_heads": 1}
    assert wrong(shapes, lie) == [("q_heads", 8, "high"), ("kv_heads", 2, "high")]
    assert {describe(shapes, lie).facts[key].source for key in ("q_heads", "kv_heads", "head_dim")} == {"shape"}


@pytest.mark.parametrize(("size", "known_as"), [(101, 1), (100, 0), (99, 0), (50, 0), (49, 1)])
def test_a_vocabulary_larger_than_its_table_or_less_than_half_of_it_is_named(size: int, known_as: int) -> None:
    assert wrong(LLAMA, {"vocab_size": size}) == [("vocab", 100, "low")] * known_as


def test_a_contradiction_is_low_where_the_configuration_may_be_about_something_else() -> None:
    beside = blocks(2, {"mlp.down_proj.weight": (8, 24)}, "other.layers")
    assert wrong(LLAMA | beside, {"num_hidden_layers": 3}) == [("depth", 2, "low")]
    assert wrong(VIT, {"hidden_size": 96}) == [("hidden", 48, "low")]
    assert wrong(LLAMA, {"num_hidden_layers": 3, "num_hidden_groups": 1}) == []
    narrowed = LLAMA | blocks(2, {"self_attn.o_proj.weight_scale_2": ()})
    assert wrong(narrowed, {"num_attention_heads": 5}) == []
    normed = blocks(2, {"self_attn.q_norm.weight": (2,), "self_attn.k_norm.weight": (2,)})
    assert wrong(narrowed | normed, {"num_attention_heads": 16, "num_key_value_heads": 2}) == []
    assert wrong(LLAMA, {"text_config": {"num_attention_heads": 5, "v_head_dim": 2}}) == []


def test_the_depth_of_either_stack_of_two_is_no_contradiction() -> None:
    config = {"num_layers": 7, "d_model": 32}
    assert record_of(T5, T5, configs=[config, config]).findings == ()
    (row,) = contradictions(describe(T5), {"d_model": 33, "num_heads": 7})
    assert (row["field"], row["value"], row["config"], row["severity"]) == ("hidden", 32, 33, "high")


# config.json


def write_model(folder: Path, config: bytes | None) -> Path:
    write_sharded(folder, {"model-00001-of-00001.safetensors": {"model.layers.0.w": ("F32", (2,))}})
    if config is not None:
        (folder / "config.json").write_bytes(config)
    return folder


@pytest.mark.parametrize("inside", ["", "model.safetensors.index.json"], ids=["folder", "index"])
def test_the_configuration_beside_the_weights_is_read_where_it_is_asked_for(tmp_path: Path, inside: str) -> None:
    folder = write_model(tmp_path, b'{"num_hidden_layers": 1}')
    url = str(folder / inside)
    assert open_checkpoint(url, Profile()).config is None
    assert open_checkpoint(url, Profile(), with_config=True).config == {"num_hidden_layers": 1}
    (folder / "config.json").unlink()
    without = open_checkpoint(url, Profile(), with_config=True)
    assert (without.config, without.warnings, without.failures) == (None, (), ())


def test_a_group_asks_for_configurations_where_it_says_so(tmp_path: Path) -> None:
    group = opening.one_alone(str(write_model(tmp_path, b'{"n_layer": 1}')))
    assert [one and one.config for one in opening.open_group(group, Profile()).checkpoints] == [None]
    asked = dataclasses.replace(group, with_config=True)
    assert [one and one.config for one in opening.open_group(asked, Profile()).checkpoints] == [{"n_layer": 1}]


def test_a_single_file_of_weights_has_no_configuration(tmp_path: Path) -> None:
    file = write_sparse(tmp_path / "model.safetensors", {"w": ("F32", (1,))})
    (tmp_path / "config.json").write_text("{}")
    assert open_checkpoint(str(file), Profile(), with_config=True).config is None
    assert open_checkpoint(str(tmp_path), Profile(), with_config=True).config == {}


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (b"[]", "not a JSON object"),
        (b"{", "invalid JSON"),
        (b"\xff", "invalid UTF-8"),
        (b'{"a":1,"a":2}', "duplicate key"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"a":[' + b"{}," * 20_001 + b"{}]}", "more than 20,000 entries"),
        (b" " * (model_config.MAX_BYTES + 1), "4,194,305 bytes, expected at most 4,194,304"),
    ],
)
def test_a_broken_configuration_is_a_warning_and_never_a_failure(tmp_path: Path, text: bytes, warning: str) -> None:
    found = open_checkpoint(str(write_model(tmp_path, text)), Profile(), with_config=True)
    assert (found.config, found.failures) == (None, ())
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("config.json was not used: ")
    assert warning in found.warnings[0]
    if len(text) <= model_config.MAX_BYTES:
        with pytest.raises(NotStrict, match=warning):
            model_config.parse_config(text)
