"""What a checkpoint's names and shapes tell of its architecture, and where each fact comes from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffai_dist.analyses.architecture_config import config_facts, whole
from diffai_dist.analyses.architecture_facts import NOTHING, Fact
from diffai_dist.analyses.architecture_heads import Attention, untrue
from diffai_dist.analyses.architecture_names import (
    Group,
    Named,
    Shapes,
    groups_of,
    is_narrowed,
    lora_ranks,
    named,
    stored_elements,
)
from diffai_dist.analyses.architecture_stack import stack_facts
from diffai_dist.analyses.families import Family, family_of
from diffai_dist.analyses.roles import role

# Towers that serve a language model; a model that has nothing else is described by them.
_TOWER = re.compile(r"vision|visual|image|sam_model|audio|clip|projector|(?:^|[._])(?:vit|mtp)(?:[._]|$)")
_TOKENS = re.compile(r"word_embeddings?|embed_tokens|wte|tok_embeddings|token_embd|embed_in|shared|tokens?|embedding")
_NO_TOKENS = re.compile(r"pos|type|patch|class|cls|query|rel_|time|norm|layernorm")
_CLASSIFIERS = re.compile(r"(?:^|[./])(?:score|classifier|out_proj|qa_outputs|v(?:alue)?_head)(?:[./]|$)")

_ROTATION = re.compile(r"(?:^|[./])rotary_emb\.inv_freq$")  # of all blocks
_NESTED = re.compile(r"[./]")
_MOST_STACKS = 32  # published models have up to a dozen
_MOST_OUTSIDE = 1000  # names outside of blocks that are looked at for marks of a family

_COMPARED = ("depth", "hidden", "q_heads", "kv_heads", "head_dim", "experts", "vocab")
_SERIOUS = ("depth", "hidden", "q_heads", "kv_heads")
_OF_HEADS = ("q_heads", "kv_heads", "head_dim")
_VARIED = ("vision", "diffusion", "convolution", "adapter")  # kinds whose blocks may differ in width
_PADDED = 2  # times the vocabulary, beyond which rows are no padding; judgement

_SPEAKING = ("decoder", "encoder-decoder", "hybrid", "state-space")  # kinds that give logits of tokens


@dataclass(frozen=True)
class Stack:
    """Blocks of one model that follow one another."""

    path: str
    tensors: int
    family: Family | None
    facts: Mapping[str, Fact]


@dataclass(frozen=True)
class Architecture:
    """The facts of the main stack and of the model as a whole, then every stack by itself."""

    facts: Mapping[str, Fact]
    stacks: tuple[Stack, ...]
    narrowed: bool = False  # columns of weights hold several elements each

    def value(self, fact: str) -> Any:
        """What is known of it; None for nothing."""
        return self.facts.get(fact, NOTHING).value


def describe(shapes: Shapes, config: Mapping[str, Any] | None = None) -> Architecture:
    """Family, depth, widths, heads, experts and vocabulary from names, from shapes where they are known, and from the
    configuration where neither tells nor contradicts it.

    >>> described = describe({"h.0.attn.c_attn.weight": (8, 24), "h.0.mlp.c_fc.weight": (8, 32), "wte.weight": (99, 8)})
    >>> [described.value(fact) for fact in ("family", "depth", "hidden", "ffn", "vocab")]
    ['gpt2', 1, 8, 32, 99]
    """
    names = named(shapes)
    groups = groups_of(names)
    stacks = _stacks(groups, config or {})
    main = _main(stacks)
    family = main.family if main else family_of(one.pattern for one in groups)
    facts = {**_layout(family, groups, lora_ranks(names)), **(main.facts if main else {})}
    facts |= _tokens(groups, family, facts)
    told = config_facts(config or {})
    wrong = untrue(_attention(facts), told)
    for key in (key for key in told if key not in wrong):
        if facts.get(key, NOTHING).value is None or key == "family":
            facts[key] = told[key]
    facts |= _parameters(names, groups, facts)
    return Architecture(facts, tuple(stacks), is_narrowed(names))


def contradictions(architecture: Architecture, config: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Where the configuration says something else than names and shapes do, among what both must agree on."""
    told = config_facts(config or {})
    notes = _unequal(architecture, told) | _vocabulary(architecture, told)
    notes |= untrue(_attention(architecture.facts), told)
    if architecture.narrowed or _is_double(architecture) or "v_head_dim" in whole(config or {}):
        notes = {key: note for key, note in notes.items() if key not in _OF_HEADS}  # widths are not of equal heads
    if "num_hidden_groups" in (config or {}):
        notes.pop("depth", None)  # ALBERT runs one block many times
    serious = _SERIOUS if _is_uniform(architecture) else ()
    return [
        {
            "field": key,
            "value": architecture.value(key),
            "config": told[key].value,
            "severity": "high" if key in serious else "low",
            "note": notes[key],
        }
        for key in sorted(notes, key=_COMPARED.index)
    ]


def _unequal(architecture: Architecture, told: Mapping[str, Fact]) -> dict[str, str | None]:
    """What tensors and configuration count alike; config.json tells the depth and the heads of either of two stacks."""
    keys = ("hidden", "experts") if _is_double(architecture) else _COMPARED[:-1]
    sure = {key: architecture.facts.get(key, NOTHING) for key in keys if key in told}
    return {
        key: None
        for key, own in sure.items()
        if own.source in ("shape", "name") and own.value not in (None, told[key].value)
    }


def _vocabulary(architecture: Architecture, told: Mapping[str, Fact]) -> dict[str, str]:
    """A table may be padded, and never be shorter than the vocabulary."""
    rows, size = architecture.facts.get("vocab", NOTHING), told.get("vocab", NOTHING).value
    if rows.source != "shape" or not size or size <= rows.value <= _PADDED * size:
        return {}
    return {"vocab": "the table is too short" if rows.value < size else "more than padding"}


def _is_double(architecture: Architecture) -> bool:
    return bool(architecture.value("kind") == "encoder-decoder")


def _is_uniform(architecture: Architecture) -> bool:
    """Whether there is one stack beside towers, of blocks that are all alike: what a configuration is surely about."""
    stacks = [one for one in architecture.stacks if not _TOWER.search(one.path.lower())]
    alike = len(stacks) == 1 or _is_double(architecture)
    return alike and architecture.value("kind") not in _VARIED


def _stacks(groups: Sequence[Group], config: Mapping[str, Any]) -> list[Stack]:
    """Numbered blocks that have parts of their own: what is numbered otherwise are the layers of a small network. The
    configuration is about the main one."""
    inside: dict[str, list[Group]] = {}
    for one in groups:
        if one.stack is not None:
            inside.setdefault(one.stack, []).append(one)
    nested = {path for path, own in inside.items() if any(_NESTED.search(one.part) for one in own)}
    largest = sorted(nested or inside, key=lambda path: -_tensors(inside[path]))[:_MOST_STACKS]
    outside = [one.pattern for one in groups if one.stack is None][:_MOST_OUTSIDE]
    kept = [path for path in inside if path in set(largest)]
    main = max(kept, key=lambda path: _rank(path, _tensors(inside[path])), default=None)
    turning = [
        one
        for one in groups
        if one.stack is None and _ROTATION.search(one.pattern) and not _TOWER.search(one.pattern.lower())
    ]
    found = []
    for path in kept:
        family = family_of([*(one.pattern for one in inside[path]), *outside])
        own, told = ([*inside[path], *turning], config) if path == main else (inside[path], {})
        found.append(Stack(path, _tensors(inside[path]), family, stack_facts(own, family, told)))
    return found


def _tensors(groups: Iterable[Group]) -> int:
    return sum(one.count for one in groups)


def _main(stacks: Sequence[Stack]) -> Stack | None:
    """That of the language model, or the one with the most tensors."""
    return max(stacks, key=lambda one: _rank(one.path, one.tensors), default=None)


def _rank(path: str, tensors: int) -> tuple[bool, int]:
    return not _TOWER.search(path.lower()), tensors


def _layout(family: Family | None, groups: Sequence[Group], ranks: set[int] | None) -> dict[str, Fact]:
    """`ranks` are those of an adapter, None for what is none."""
    if ranks is not None:
        several = f"the largest of {len(ranks):,}, the smallest is {min(ranks):,}" if len(ranks) > 1 else None
        few = Fact(None, None, "an adapter has too few of the names")
        rank = Fact(max(ranks), "shape", several) if ranks else NOTHING
        return {"family": few, "layout": few, "kind": Fact("adapter", "name"), "lora_rank": rank}
    kind = Fact(family.kind, "name") if family else NOTHING
    if family is None and _is_convolution(groups):
        kind = Fact("convolution", "shape")
    note = f"same names: {', '.join(family.also)}" if family and family.also else None
    return {
        "family": Fact(family.name, "name", note) if family else NOTHING,
        "layout": Fact(family.name, "name") if family else NOTHING,
        "kind": kind,
    }


def _is_convolution(groups: Iterable[Group]) -> bool:
    """Whether most weights have the four or five dimensions of a convolution."""
    sizes = [(len(one.shape), one.count) for one in groups if one.shape and len(one.shape) >= 2]
    return sum(count if rank in (4, 5) else -count for rank, count in sizes) > 0


def _tokens(groups: Sequence[Group], family: Family | None, facts: Mapping[str, Fact]) -> dict[str, Fact]:
    embeddings = [one for one in groups if one.role == "embed" and one.weight and holds_tokens(one.pattern)]
    known = [one.shape for one in embeddings if one.shape and len(one.shape) == 2]
    found = {"vocab": Fact(max(known)[0], "shape") if known else NOTHING}
    if facts.get("hidden", NOTHING).value is None and known:
        found["hidden"] = Fact(max(known)[1], "shape", "width of the embedding")
    if embeddings and family and family.kind in _SPEAKING and facts["kind"].value != "adapter":
        found["tied"] = _tied(groups)
    return found


def holds_tokens(name: str) -> bool:
    """Whether a tensor has a row for each token: an embedding of tokens, or the head.

    >>> holds_tokens("model.embed_tokens.weight"), holds_tokens("lm_head.bias"), holds_tokens("wpe.weight")
    (True, True, False)
    """
    kind, path = role(name), name.lower()
    return kind == "head" or (kind == "embed" and bool(_TOKENS.search(path)) and not _NO_TOKENS.search(path))


def _tied(groups: Sequence[Group]) -> Fact:
    heads = [one.pattern for one in groups if one.role == "head" and not _TOWER.search(one.pattern.lower())]
    if not heads:
        return Fact(True, "name", "no head is stored")
    if all(map(_CLASSIFIERS.search, heads)):
        return Fact(None, None, "the head gives no logits of tokens")
    return Fact(False, "name", "a head is stored beside the embedding")


def _attention(facts: Mapping[str, Fact]) -> Attention:
    return Attention(*(facts.get(key, NOTHING).value for key in ("q_dim", "kv_dim")))


def _parameters(names: Named, groups: Iterable[Group], facts: Mapping[str, Fact]) -> dict[str, Fact]:
    total = stored_elements(names)
    if total is None:
        reason = Fact(None, None, "not all shapes are known")
        return {"params_total": reason, "params_active": reason}
    experts, top_k = (facts.get(key, NOTHING).value for key in ("experts", "experts_per_token"))
    found = {"params_total": Fact(total, "shape")}
    if facts["kind"].value == "adapter":
        return found
    if not experts:
        return found | {"params_active": Fact(total, "shape")}
    if not isinstance(top_k, int) or not 0 < top_k <= experts:
        return found | {"params_active": Fact(None, None, "only a config.json tells the experts per token")}
    routed = sum(one.count * (one.elements or 0) for one in groups if is_routed(one))
    return found | {"params_active": Fact(total - routed * (experts - top_k) // experts, "config")}


def is_routed(group: Group) -> bool:
    """Whether it is a part of experts that a router chooses among, each by itself or all in one tensor."""
    return group.role == "expert" and "shared_expert" not in group.pattern
