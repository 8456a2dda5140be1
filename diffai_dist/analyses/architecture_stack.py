"""Depth, widths, heads, experts and norms of one stack of blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffai_dist.analyses.architecture_config import config_facts
from diffai_dist.analyses.architecture_facts import NOTHING, Fact, Origin
from diffai_dist.analyses.architecture_heads import Attention, head_size, rotates_whole
from diffai_dist.analyses.architecture_names import FREQUENCIES, Group
from diffai_dist.analyses.families import Family
from diffai_dist.analyses.roles import role

HEAD_DIMS = (64, 80, 96, 128, 192, 256)  # of published models: candidates where nothing tells

# Attention that has no heads of its own kind, or not over the same tokens; low-rank factors of MLA.
_OTHER_ATTENTION = re.compile(r"linear_attn|mamba|mixer|encoder_attn|encdecattention|crossattention|attn2|lora_")
_LOW_RANK = re.compile(r"(?:_a_proj|wq_a|wkv_a|_with_mqa)(?:[./]|$)")
_HEAD_NORM = re.compile(r"(?:^|[./_])[qk]_?(?:layer)?norm|kv_a|q_a|linear_attn|mamba|mixer")
_OF_ONE_HEAD = re.compile(r"(?P<side>[qk])_?(?:layer)?norm$")
_BATCH_NORM = re.compile(r"(?:^|[./])bn[0-9]*(?:[./]|$)|batch_?norm")
_NEXT_TOKENS = re.compile(r"(?:^|[./])(?:eh_proj|enorm|hnorm)(?:[./]|$)")  # blocks that predict further tokens


def stack_facts(groups: Sequence[Group], family: Family | None, config: Mapping[str, Any]) -> dict[str, Fact]:
    """Everything that can be said of these blocks; None where shapes are not known. `config` cuts heads alone."""
    transposed = _is_transposed(groups)
    hidden = _hidden(groups, transposed)
    facts = {"depth": _depth(groups), "hidden": hidden, "ffn": _ffn(groups, hidden, transposed)}
    facts |= _attention(groups, family, config, hidden, transposed)
    facts |= _experts(groups, hidden)
    facts["norm_kind"] = _norm_kind(groups)
    return facts


def _depth(groups: Iterable[Group]) -> Fact:
    blocks, further = set[int](), set[int]()
    for one in groups:
        blocks |= one.blocks
        if _NEXT_TOKENS.search(one.part):
            further |= one.blocks
    own = blocks - further or blocks
    depth = 1 + max(own)
    return Fact(depth, "name", None if len(own) == depth else f"{len(own):,} of them have tensors")


def _is_transposed(groups: Iterable[Group]) -> bool:
    """Whether matrices are stored [in, out]: Flax's kernels; GPT-2's Conv1D, told by c_attn of [d, 3 d]."""
    for one in groups:
        if one.pattern.endswith("kernel"):
            return True
        if "c_attn" in one.pattern and one.shape and len(one.shape) == 2 and one.shape[1] == 3 * one.shape[0]:
            return True
    return False


def _matrix(groups: Iterable[Group], kind: str, transposed: bool) -> tuple[int, int] | None:
    """[out, in] of the commonest weight of that role."""
    found = [one for one in groups if one.role == kind and one.weight and not _LOW_RANK.search(one.part)]
    return _sides(max(found, key=lambda one: one.count), transposed) if found else None


def _sides(group: Group, transposed: bool) -> tuple[int, int] | None:
    if group.shape is None or len(group.shape) < 2:
        return None
    rows, columns = group.shape[0], math.prod(group.shape[1:])
    return (columns, rows) if transposed else (rows, columns)


def _hidden(groups: Sequence[Group], transposed: bool) -> Fact:
    for kind in ("down", "o"):
        if (found := _matrix(_self_attention(groups), kind, transposed)) and found[0]:
            return Fact(found[0], "shape")
    norms = [one for one in groups if one.role == "norm" and one.shape and len(one.shape) == 1]
    plain = [one for one in norms if not _HEAD_NORM.search(one.part)]
    widest = max(plain, key=lambda one: (one.count, one.elements or 0), default=None)
    return Fact(widest.elements, "shape", "width of its norms") if widest and widest.elements else NOTHING


def _ffn(groups: Sequence[Group], hidden: Fact, transposed: bool) -> Fact:
    """What the second matrix of a feed-forward part takes in: a gated one's first matrix gives twice as much."""
    for kind, side, share in (("down", 1, 1), ("up", 0, 1), ("gate", 0, 1), ("gate_up", 0, 2)):
        if found := _matrix(groups, kind, transposed):
            return Fact(found[side] // share, "shape") if found[side] else NOTHING
    width = _packed(groups, "down", hidden) or _packed(groups, "up", hidden)
    return Fact(width, "shape") if width else NOTHING


def _packed(groups: Iterable[Group], kind: str, hidden: Fact) -> int | None:
    """The other side of a matrix of which only the number of elements is known, and that one side is hidden."""
    found = [one for one in groups if one.role == kind and one.weight and one.shape is None and one.elements]
    if not found or not hidden.value:
        return None
    elements = max(found, key=lambda one: one.count).elements or 0
    return elements // hidden.value if elements % hidden.value == 0 else None


def _self_attention(groups: Iterable[Group]) -> list[Group]:
    """Without cross attention and linear attention, unless there is nothing else."""
    groups = list(groups)
    own = [one for one in groups if not _OTHER_ATTENTION.search(one.part.lower())]
    return own or groups


def _attention(
    groups: Sequence[Group], family: Family | None, config: Mapping[str, Any], hidden: Fact, transposed: bool
) -> dict[str, Fact]:
    own = _self_attention(groups)
    if mla := _latent(own):
        return mla
    q_dim, kv_dim = _widths(own, hidden, transposed)
    blocks = frozenset().union(*(one.blocks for one in own if one.role in ("k", "qkv")))
    found = {
        "q_dim": Fact(q_dim, "shape") if q_dim else NOTHING,
        "kv_dim": Fact(kv_dim, "shape") if kv_dim else NOTHING,
        "attention_blocks": Fact(len(blocks), "name") if blocks else NOTHING,
    }
    if q_dim and kv_dim:
        found["gqa_ratio"] = Fact(q_dim // kv_dim if q_dim % kv_dim == 0 else q_dim / kv_dim, "shape")
    turned = _turned(own) if rotates_whole(family.name if family else None, config) else None
    return found | _heads(Attention(q_dim, kv_dim, _normed(own), turned), config)


def _widths(groups: Sequence[Group], hidden: Fact, transposed: bool) -> tuple[int | None, int | None]:
    """Widths of all query heads and all key heads; what leaves the heads tells the first: a gated query has twice."""
    matrices = {kind: _matrix(groups, kind, transposed) for kind in ("q", "k", "v", "qkv", "o")}
    q, k, fused, out = (matrices[kind] for kind in ("q", "k", "qkv", "o"))
    q_dim = (out[1] if out else None) or (q[0] if q else None) or _packed(groups, "o", hidden)
    k = k or matrices["v"]
    if k and k[0]:
        return q_dim, k[0]
    rows = fused[0] if fused else _packed(groups, "qkv", hidden) or _packed(groups, "k", hidden)
    if fused and q_dim is None:
        q_dim = rows // 3 if rows and rows % 3 == 0 else None
    if not rows or not q_dim or rows <= q_dim or (rows - q_dim) % 2:
        return q_dim, None
    return q_dim, (rows - q_dim) // 2


def _heads(own: Attention, config: Mapping[str, Any]) -> dict[str, Fact]:
    found = head_size(own, config_facts(config))
    if found is None:
        fitting = [one for one in HEAD_DIMS if own.fits(one)]
        assumed = {"head_dim_candidates": Fact(fitting, "assumed")} if fitting else {}
        return {"head_dim": NOTHING, "q_heads": NOTHING, "kv_heads": NOTHING, **assumed}
    size, basis = found
    source: Origin = "config" if basis == "config" else "shape"
    return {
        "head_dim": Fact(size, source),
        "q_heads": Fact(own.q_dim // size, source) if own.q_dim else NOTHING,
        "kv_heads": Fact(own.kv_dim // size, source) if own.kv_dim else NOTHING,
    }


def _normed(groups: Sequence[Group]) -> int | None:
    """Length of the norms of queries and keys, which is the same where they are of single heads; or the second side of
    relative positions, [places, head]."""
    lengths: dict[str, int] = {}
    for one in groups:
        last = one.part.removesuffix(".weight")
        if one.shape and len(one.shape) == 2 and last.endswith("rel_pos_h"):
            return one.shape[1]
        if one.shape and len(one.shape) == 1 and (norm := _OF_ONE_HEAD.search(last)):
            lengths.setdefault(norm["side"], one.shape[0])
    return lengths["q"] if lengths.keys() == {"q", "k"} and lengths["q"] == lengths["k"] else None


def _turned(groups: Sequence[Group]) -> int | None:
    """A frequency of rotary embeddings turns two elements."""
    found = (one.shape for one in groups if one.part.endswith(FREQUENCIES) and one.shape and len(one.shape) == 1)
    return next((2 * shape[0] for shape in found), None)


def _latent(groups: Sequence[Group]) -> dict[str, Fact] | None:
    """Multi-head latent attention: what is cached is the low-rank latent with the rotary part, for all heads."""
    latent = next((one for one in groups if _LOW_RANK.search(one.part) and one.role == "kv" and one.weight), None)
    if latent is None:
        return None
    norms = [one for one in groups if re.search(r"kv_a_(?:layer)?norm", one.part) and one.elements]
    query = next((one for one in groups if _LOW_RANK.search(one.part) and one.role == "q" and one.weight), None)
    return {
        "kv_latent": Fact(latent.shape[0], "shape") if latent.shape else NOTHING,
        "kv_rank": Fact(norms[0].elements, "shape") if norms else NOTHING,
        "q_rank": Fact(query.shape[0], "shape") if query and query.shape else NOTHING,
        "attention_blocks": Fact(len(latent.blocks), "name"),
    }


def _experts(groups: Sequence[Group], hidden: Fact) -> dict[str, Fact]:
    routed = [one for one in groups if one.role == "expert" and "shared_expert" not in one.part]
    if not routed:
        return {}
    shared = [one for one in groups if one.role == "expert" and "shared_expert" in one.part]
    numbered = max(one.experts for one in routed)
    ffn, shared_ffn = _expert_ffn(routed, hidden), _expert_ffn(shared, hidden)
    blocks = frozenset().union(*(one.blocks for one in routed))
    found = {
        "experts": Fact(numbered, "name") if numbered else _stacked(routed, groups, hidden),
        "expert_ffn": ffn,
        "moe_blocks": Fact(len(blocks), "name"),
        "shared_experts": NOTHING if shared else Fact(0, "name"),
    }
    if shared and ffn.value and shared_ffn.value and shared_ffn.value % ffn.value == 0:
        found["shared_experts"] = Fact(shared_ffn.value // ffn.value, "shape", "by width")
    return found


def _stacked(routed: Iterable[Group], groups: Iterable[Group], hidden: Fact) -> Fact:
    """How many experts are in one tensor of three dimensions, or have a row in the router."""
    for one in routed:
        if one.shape and len(one.shape) == 3:
            return Fact(one.shape[0], "shape")
    for one in groups:
        if one.role == "router" and "shared" not in one.part and one.shape and one.shape[1:] == (hidden.value,):
            return Fact(one.shape[0], "shape", "rows of the router")
    return NOTHING


def _expert_ffn(experts: Iterable[Group], hidden: Fact) -> Fact:
    for one in experts:
        part = re.split(r"experts?[./]", one.part)[-1]
        if one.shape and one.weight and role(f"h.0.{part}") == "down":
            last = one.shape[-2:]
            other = [side for side in last if side != hidden.value] or [last[1]]
            return Fact(other[0] if len(one.shape) == 3 else last[1], "shape")
    return NOTHING


def _norm_kind(groups: Iterable[Group]) -> Fact:
    norms = [one.part for one in groups if one.role == "norm" and not _HEAD_NORM.search(one.part)]
    if not norms:
        return NOTHING
    if any(map(_BATCH_NORM.search, norms)):
        return Fact("batchnorm", "name")
    return Fact("layernorm" if any(part.endswith(("bias", "beta")) for part in norms) else "rmsnorm", "name")
