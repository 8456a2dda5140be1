"""What a tensor is for, read from its name: the block it belongs to and its role there. Names are not trusted."""

from __future__ import annotations

import re
from functools import lru_cache

# Path components, lower case, as published checkpoints spell them. LLaMA's own w1, w2, w3 are gate, down and up.
_SPELLINGS = {
    "q": "q q_proj query query_proj wq to_q q_lin attn_q q_a_proj q_b_proj wq_a wq_b linear_q",
    "k": "k k_proj key key_proj wk to_k k_lin attn_k linear_k",
    "v": "v v_proj value value_proj wv to_v v_lin attn_v linear_v",
    "kv": "kv kv_proj wkv to_kv kv_a_proj_with_mqa kv_b_proj wkv_a wkv_b",
    "qkv": "qkv qkv_proj query_key_value wqkv c_attn attn_qkv att_proj in_proj_qkv in_proj_weight in_proj_bias to_qkv",
    "o": "o o_proj to_out out_lin attn_out attn_output",
    "gate": "gate_proj w1 wi_0 ffn_gate",
    "up": "up up_proj fc1 c_fc fc_in dense_h_to_4h lin1 linear1 linear_1 wi wi_1 w3 ffn_up intermediate",
    "down": "down down_proj fc2 fc_out dense_4h_to_h lin2 linear2 linear_2 w2 ffn_down ffn_output",
    "gate_up": "gate_up_proj gate_up w13 ff_proj wi_fused",
    "router": "gate router shared_expert_gate gate_inp ffn_gate_inp",
    "head": "lm_head head heads embed_out score classifier qa_outputs value_head v_head cls",
    "embed": "wte wpe token_embd position_embd shared emb",
}
_ROLES = {spelling: role for role, spellings in _SPELLINGS.items() for spelling in spellings.split()}

# The output of attention where they stand in it; else this, or nothing.
_BY_PLACE = {
    "dense": "down",
    "c_proj": "down",
    "wo": "down",
    "output": "down",
    "ff_out": "down",
    "proj": None,
    "out_proj": None,
}
_OUTSIDE = {"output": "head", "out_proj": "head", "ff_out": "head", "wo": "o"}  # where no block is around them

# The two halves of a feed-forward part, but only inside a block: elsewhere they number the layers of a small network.
_ORDINALS = {"fc1", "fc2", "lin1", "lin2", "linear1", "linear2", "linear_1", "linear_2"}

_EXPERTS = {"experts", "expert", "local_experts", "shared_expert", "shared_experts"}
_ATTENTION = re.compile(r"attn|attention|^mha$")
_NORM = re.compile(r"(?:^|_|layer|rms|batch|group|instance)norms?_?\d*(?:_|$)|^ln(?:_|\d|$)|_ln\d*$|^bn\d*$")
_EMBED = re.compile(r"embed|^rel_pos|^pos_emb|^cls_token$")
_BUFFERS = {"rotary_emb", "inv_freq"}

_NUMBER = re.compile(r"[0-9]+")
_NUMBERED = re.compile(r"(?:^|(?<=[./]))[0-9]+(?=[./]|$)")
_JOINED = re.compile(r"(?:^|(?<=[./]))(?:layers?|blocks?|h|stages?)_?[0-9]+(?=[./]|$)")  # flax: layers_3/attn
_SEPARATOR = re.compile(r"[./]")

DEEPEST = 64  # components that are looked at: a hostile name of 1 MB costs no more
KEPT = 2**17  # names whose answer is kept: each analysis asks for all of them anew
LONGEST = 1024  # characters of a name whose numbers are looked at

ROLES = (*_SPELLINGS, "norm", "expert", "other")


@lru_cache(KEPT)
def role(name: str) -> str:
    """One of ROLES. The last component that says something decides; parts of an expert are "expert", router apart.

    >>> role("model.layers.3.self_attn.q_proj.weight"), role("h.0.mlp.c_proj.bias"), role("lm_head.weight")
    ('q', 'down', 'head')
    """
    parts = _SEPARATOR.split(name.lower())[-DEEPEST:]
    if not _EXPERTS.isdisjoint(parts):
        return "expert"
    for i in range(len(parts) - 1, -1, -1):
        found = _role_of(parts, i)
        if found:
            return found
    return "other"


def _role_of(parts: list[str], i: int) -> str | None:
    part = parts[i]
    if _NORM.search(part):
        return "norm"
    if part in _BUFFERS:
        return "other"
    if part in _BY_PLACE:
        return _by_place(parts, i)
    if part in _ROLES:
        return _ROLES[part] if part not in _ORDINALS or _in_block(parts[:i]) else None
    return "embed" if _EMBED.search(part) else None


def _by_place(parts: list[str], i: int) -> str | None:
    part, before = parts[i], parts[:i]
    if part == "dense" and before[-1:] == ["intermediate"]:
        return "up"
    # BERT: attention.output.dense leaves the attention, output.dense the feed-forward part.
    if any(map(_ATTENTION.search, before)):
        return "o"
    return _BY_PLACE[part] if _in_block(before) else _OUTSIDE.get(part)


def _in_block(before: list[str]) -> bool:
    return any(_NUMBER.fullmatch(part) or _JOINED.fullmatch(part) for part in before)


@lru_cache(KEPT)
def block(name: str) -> str:
    """The path through the first numbered component; without one the role, or the path without its last component.

    >>> block("model.layers.12.mlp.experts.3.w1.weight"), block("model.norm.weight"), block("fc1.bias")
    ('model.layers.12', 'norm', 'fc1')
    """
    found = _NUMBERED.search(name) or _JOINED.search(name)
    if found:
        return name[: found.end()]
    kind = role(name)
    if kind in ("embed", "head", "norm"):
        return kind
    cut = max(name.rfind("."), name.rfind("/"))
    return name[:cut] if cut > 0 else name


def pattern(name: str) -> tuple[str, tuple[int, ...]]:
    """The name with `#` for each number that is a component, and these numbers. A longer one than LONGEST has none.

    Nor has one with a `#` of its own, so that patterns of one text have equally many numbers.

    >>> pattern("model.layers.12.mlp.experts.3.w1.weight"), pattern("layers_3/mlp/kernel"), pattern("net_2.weight")
    (('model.layers.#.mlp.experts.#.w1.weight', (12, 3)), ('layers_#/mlp/kernel', (3,)), ('net_2.weight', ()))
    """
    if len(name) > LONGEST or "#" in name:
        return name.replace("#", "\\#"), ()
    if found := _NUMBERED.findall(name):
        return _NUMBERED.sub("#", name), tuple(map(int, found))
    joined = _JOINED.search(name)
    if joined is None:
        return name, ()
    word = joined[0].rstrip("0123456789")
    return f"{name[: joined.start()]}{word}#{name[joined.end() :]}", (int(joined[0][len(word) :]),)
