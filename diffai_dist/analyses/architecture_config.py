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
# The share of each head that rotary embeddings turn, where it is not the whole.
_SHARES = ("partial_rotary_factor", "rotary_pct", "rope_pct", "rotary_emb_fraction")
_LANGUAGE = ("text_config", "language_config", "llm_config", "decoder")  # of a model with several parts


def config_facts(config: Mapping[str, Any]) -> dict[str, Fact]:
    """Facts of the language model, or of the whole; values that cannot be meant are left out.

    >>> {key: one.value for key, one in config_facts({"n_layer": 70, "model_type": "bloom", "n_head": -1}).items()}
    {'depth': 70, 'family': 'bloom'}
    """
    said = whole(config)
    found = {}
    for fact, keys in _KEYS.items():
        for key in keys.split():
            value = said.get(key)
            if type(value) is int and 0 < value < 2**48:
                found[fact] = Fact(value, "config")
                break
    if said.get("multi_query") is True and not said.get("new_decoder_architecture"):
        found["kv_heads"] = Fact(1, "config", "multi_query")  # whatever else Falcon's first models say
    if isinstance(name := config.get("model_type"), str):
        found["family"] = Fact(name[:64], "config")
    tied = said.get("tie_word_embeddings")
    return found | ({"tied": Fact(tied, "config")} if isinstance(tied, bool) else {})


def rotates_in_part(config: Mapping[str, Any]) -> bool:
    """Whether rotary embeddings are said to turn a part of each head only.

    >>> rotates_in_part({"rotary_pct": 0.25}), rotates_in_part({"rotary_pct": 1.0}), rotates_in_part({})
    (True, False, False)
    """
    said = whole(config)
    rope = said.get("rope_parameters")
    shares = [place.get(key) for place in (said, rope) if isinstance(place, Mapping) for key in _SHARES]
    return any(isinstance(one, int | float) and one != 1 for one in shares) or isinstance(said.get("rotary_dim"), int)


def whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of the language model, and of the model as a whole where that says nothing."""
    return {**config, **next((config[key] for key in _LANGUAGE if isinstance(config.get(key), Mapping)), {})}
