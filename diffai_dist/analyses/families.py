"""Which model families spell their tensors how. Names tell a layout, which several families may share; no shapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """A family as transformers calls its `model_type`, known by paths that occur in its names, and paths that do not.

    Paths are lower case, whole components, with `#` for a number; those of `also` have the same names.
    """

    name: str
    kind: str
    has: str
    lacks: str = ""
    also: tuple[str, ...] = ()


# The first one that fits is taken: what has more marks stands before what has some of them.
FAMILIES = (
    Family("qwen3_next", "decoder", "linear_attn.in_proj_qkvz"),
    Family("qwen3_5_moe", "decoder", "linear_attn.in_proj_qkv mlp.experts"),
    Family("qwen3_5", "decoder", "linear_attn.in_proj_qkv"),
    Family("glm4_moe", "decoder", "mlp.shared_experts self_attn.q_proj.bias"),
    Family("deepseek", "decoder", "self_attn.kv_a_proj_with_mqa", "", ("deepseek_v2", "deepseek_v3", "kimi_k2")),
    Family("deepseek", "decoder", "mlp.shared_experts self_attn.q_proj", "", ("dots1",)),
    Family("qwen2_moe", "decoder", "mlp.shared_expert self_attn.q_proj"),
    Family("qwen3_moe", "decoder", "mlp.experts self_attn.q_norm", "", ("olmoe",)),
    Family("gpt_oss", "decoder", "self_attn.sinks"),
    Family("llama4", "decoder", "feed_forward.router feed_forward.experts"),
    Family("phimoe", "decoder", "block_sparse_moe.experts self_attn.q_proj.bias"),
    Family("mixtral", "decoder", "block_sparse_moe.experts"),
    Family("granitemoe", "decoder", "block_sparse_moe.input_linear"),
    Family("gemma3", "decoder", "pre_feedforward_layernorm self_attn.q_norm"),
    Family("gemma2", "decoder", "pre_feedforward_layernorm"),
    Family("olmo2", "decoder", "post_feedforward_layernorm self_attn.q_norm"),
    Family("glm4", "decoder", "post_self_attn_layernorm mlp.gate_up_proj"),
    Family("qwen3", "decoder", "self_attn.q_norm mlp.gate_proj"),
    Family("phi3", "decoder", "self_attn.qkv_proj mlp.gate_up_proj", "", ("phi4",)),
    Family("phi", "decoder", "self_attn.dense mlp.fc1"),
    Family("persimmon", "decoder", "self_attn.query_key_value"),
    Family("starcoder2", "decoder", "self_attn.q_proj mlp.c_fc"),
    Family("qwen2", "decoder", "self_attn.q_proj.bias mlp.gate_proj", "self_attn.o_proj.bias"),
    Family("stablelm", "decoder", "self_attn.q_proj mlp.gate_proj input_layernorm.bias"),
    Family("jamba", "hybrid", "mamba.a_log feed_forward"),
    Family("bamba", "hybrid", "mamba.a_log self_attn"),
    Family(
        "llama",
        "decoder",
        "self_attn.q_proj mlp.gate_proj input_layernorm post_attention_layernorm",
        "",
        ("mistral", "yi", "gemma", "granite"),
    ),
    Family("cohere", "decoder", "self_attn.q_proj mlp.gate_proj input_layernorm"),
    Family("olmo", "decoder", "self_attn.q_proj mlp.gate_proj"),
    Family("clip", "vision", "resblocks.#.attention.wq"),
    Family("clip", "vision", "resblocks.#.attn.in_proj_weight"),
    Family("llama", "decoder", "attention.wq feed_forward.w1", "", ("mistral",)),
    Family("internlm2", "decoder", "attention.wqkv feed_forward.w1"),
    Family("baichuan", "decoder", "self_attn.w_pack"),
    Family("molmo", "decoder", "att_proj ff_proj vision_backbone"),
    Family("olmo", "decoder", "att_proj ff_proj"),
    Family("bloom", "decoder", "self_attention.query_key_value word_embeddings_layernorm"),
    Family("falcon", "decoder", "h.#.self_attention.query_key_value"),
    Family("chatglm", "decoder", "layers.#.self_attention.query_key_value"),
    Family("megatron", "decoder", "self_attention.linear_qkv"),
    Family("gpt_neox", "decoder", "attention.query_key_value"),
    Family("gptj", "decoder", "attn.q_proj mlp.fc_in"),
    Family("codegen", "decoder", "attn.qkv_proj mlp.fc_in"),
    Family("gpt_neo", "decoder", "attn.attention.q_proj"),
    Family("qwen", "decoder", "attn.c_attn mlp.w1"),
    Family("gpt2", "decoder", "attn.c_attn mlp.c_fc", "", ("gpt_bigcode",)),
    Family("dbrx", "decoder", "norm_attn_norm.attn.wqkv"),
    Family("mpt", "decoder", "attn.wqkv ffn.up_proj"),
    Family("whisper", "encoder-decoder", "encoder_attn encoder.conv1"),
    Family("bart", "encoder-decoder", "encoder_attn", "", ("mbart", "marian", "pegasus", "m2m_100")),
    Family("t5", "encoder-decoder", "selfattention.q densereludense", "", ("mt5", "umt5")),
    Family("opt", "decoder", "decoder.layers.#.self_attn.out_proj decoder.layers.#.fc1"),
    Family("mamba", "state-space", "mixer.a_log mixer.x_proj", "", ("falcon_mamba",)),
    Family("mamba2", "state-space", "mixer.a_log"),
    Family("rwkv", "state-space", "att.time_decay"),
    Family("modernbert", "encoder", "attn.wqkv mlp.wi"),
    Family("nomic_bert", "encoder", "attn.wqkv mlp.fc11"),
    Family("swin", "vision", "attention.self.relative_position_bias_table"),
    Family("swin", "vision", "attn.relative_position_bias_table"),
    Family("electra", "encoder", "attention.self.query embeddings_project"),
    Family("deberta", "encoder", "attention.self.query_proj", "", ("deberta_v2",)),
    Family("bert", "encoder", "attention.self.query intermediate.dense", "", ("roberta", "xlm_roberta", "electra")),
    Family("albert", "encoder", "albert_layer_groups"),
    Family("distilbert", "encoder", "attention.q_lin"),
    Family("mpnet", "encoder", "attention.attn.q"),
    Family("wav2vec2", "encoder", "feature_extractor.conv_layers attention.k_proj", "", ("hubert",)),
    Family("sam", "vision", "attn.rel_pos_h"),
    Family("dinov2", "vision", "layer_scale1"),
    Family("vit", "vision", "attention.attention.query", "", ("deit",)),
    Family("clip", "vision", "self_attn.out_proj layer_norm1 visual_projection"),
    Family("clip", "vision", "self_attn.out_proj layer_norm1 pre_layrnorm"),
    Family("siglip", "vision", "self_attn.out_proj layer_norm1 mlp.fc1"),
    Family("convnext", "vision", "dwconv"),
    Family("flux", "diffusion", "double_blocks.#.img_attn"),
    Family("flux", "diffusion", "single_blocks.#.linear1"),
    Family("sd3", "diffusion", "transformer_blocks.#.attn.add_q_proj"),
    Family("dit", "diffusion", "adaln_modulation"),
    Family("unet", "diffusion", "resnets.#.time_emb_proj"),
    Family("unet", "diffusion", "time_embed in_layers"),
    Family("vae", "diffusion", "resnets.#.conv1"),
    Family("vit", "vision", "blocks.#.attn.qkv patch_embed.proj", "", ("deit",)),
    Family("resnet", "vision", "layer1.#.conv1"),
)

# Rotary embeddings that turn only a part of each head: their inverse frequencies do not give its size.
PARTIAL_ROTARY = {"gpt_neox", "phi", "gptj", "codegen", "stablelm", "chatglm", "glm4", "glm4_moe", "persimmon"}


def family_of(patterns: Iterable[str]) -> Family | None:
    """The first family whose marks are all among these names, whose numbers are `#`.

    >>> family_of(["h.#.attn.c_attn.weight", "h.#.mlp.c_fc.weight"]).name
    'gpt2'
    """
    text = "\n".join(f".{pattern}." for pattern in patterns).replace("/", ".").lower()
    return next((one for one in FAMILIES if _fits(one, text)), None)


def _fits(family: Family, text: str) -> bool:
    there = all(f".{path}." in text for path in family.has.split())
    return there and not any(f".{path}." in text for path in family.lacks.split())
