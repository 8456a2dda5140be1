"""What a config.json says of an architecture, in the words that the families have for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffai_dist.analyses.architecture_facts import Fact

_KEYS = {
    "depth": "num_hidden_layers n_layer n_layers num_layers",
    "hidden": "hidden_size n_embd n_embed d_model",
    "ffn": "intermediate_size n_inner ffn_dim d_ff ffn_hidden_size",
    "q_heads": "num_attention_heads n_head n_heads num_heads",
    "kv_heads": "num_key_value_heads num_kv_heads n_head_kv multi_query_group_num",
    "head_dim": "head_dim",
    "vocab": "vocab_size",
    "experts": "num_local_experts num_experts n_routed_experts",
    "experts_per_token": "num_experts_per_tok num_experts_per_token moe_topk",
    "shared_experts": "n_shared_experts",
}
_LANGUAGE = ("text_config", "language_config", "llm_config", "decoder")  # of a model with several parts


def config_facts(config: Mapping[str, Any]) -> dict[str, Fact]:
    """Facts of the language model, or of the whole; values that cannot be meant are left out.

    >>> {key: one.value for key, one in config_facts({"n_layer": 70, "model_type": "bloom", "n_head": -1}).items()}
    {'depth': 70, 'family': 'bloom'}
    """
    inner: Mapping[str, Any] = next((config[key] for key in _LANGUAGE if isinstance(config.get(key), Mapping)), {})
    found = {}
    for fact, keys in _KEYS.items():
        for key in keys.split():
            value = inner.get(key, config.get(key))
            if type(value) is int and 0 < value < 2**48:
                found[fact] = Fact(value, "config")
                break
    if isinstance(name := config.get("model_type"), str):
        found["family"] = Fact(name[:64], "config")
    tied = inner.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    return found | ({"tied": Fact(tied, "config")} if isinstance(tied, bool) else {})
