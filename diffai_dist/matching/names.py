"""What a name is without the wrappers around it, and in words that families of models share. Names are not trusted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from diffai_dist.analyses.roles import LONGEST, role

# What PyTorch's DataParallel, torch.compile, FSDP, activation checkpointing, DeepSpeed, Opacus and PEFT put around a
# module, anywhere in the tree.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_module"}
_WRAPPERS |= {"base_layer"}
# Attributes under which a model with a head, or with an encoder of images, keeps the one without: at the front alone.
_NESTING = {"model", "language_model", "transformer", "base_model", "gpt_neox", "bert", "roberta", "distilbert"}

_VALUES = {"weight": "weight", "kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}
_NORMS = {
    **dict.fromkeys(("input_layernorm", "attention_norm", "attn_norm", "ln_1", "norm1", "ln_attn"), "first"),
    **dict.fromkeys(("post_attention_layernorm", "ffn_norm", "ff_norm", "ln_2", "norm2", "ln_mlp"), "second"),
    **dict.fromkeys(("norm", "ln_f", "final_layer_norm", "final_layernorm", "output_norm"), "last"),
}
_EXPERTS = ("expert", "experts")  # how such parts end
_TOWER = re.compile(r"vis|image|audio|speech|encoder|decoder|cross")
_SEPARATOR = re.compile(r"[./]")


class Canonical(NamedTuple):
    """What a tensor is, whoever names it: two of equal fields in one model are not told apart."""

    tower: tuple[str, ...]  # parts of the path that tell one of several networks from the others
    numbers: tuple[int, ...]  # of the block, then of the expert
    experts: tuple[str, ...]
    role: str
    value: str  # weight, bias, or the last part of the name as it is


def unwrapped(name: str) -> str:
    """The name without what wraps a module at run time.

    >>> unwrapped("_orig_mod.module.h.0.w"), unwrapped("base_model.model.h.0.q.base_layer.weight"), unwrapped("module")
    ('h.0.w', 'h.0.q.weight', 'module')
    """
    parts = name.removeprefix("base_model.model.").split(".")
    if _WRAPPERS.isdisjoint(parts[:-1]):
        return ".".join(parts)
    return ".".join([part for part in parts[:-1] if part not in _WRAPPERS] + parts[-1:])


def bare(name: str) -> str:
    """The name without wrappers, and without what a model is nested in.

    >>> bare("model.language_model.layers.0.w"), bare("language_model.model.layers.0.w"), bare("model.visual.w")
    ('layers.0.w', 'layers.0.w', 'visual.w')
    """
    parts = unwrapped(name).lstrip(".").split(".")
    first = next((i for i, part in enumerate(parts) if part not in _NESTING), len(parts) - 1)
    return ".".join(parts[min(first, len(parts) - 1) :])


def canonical(name: str, norms: bool = True) -> Canonical | None:
    """Role, block and the rest of the path; None where the name says too little.

    Without `norms` their names are taken as they are: blocks with norms behind each half, too, share names with others
    for norms that are not the same.

    >>> canonical("model.layers.3.self_attn.q_proj.weight") == canonical("layers.3.attention.wq.weight")
    True
    >>> canonical("model.layers.3.mlp.experts.7.down_proj.weight")
    Canonical(tower=(), numbers=(3, 7), experts=('experts',), role='down', value='weight')
    """
    if len(name) > LONGEST:
        return None
    parts = _SEPARATOR.split(bare(name))
    experts = [part for part in parts if part.endswith(_EXPERTS)]
    numbers = tuple(int(part) for part in parts if part.isascii() and part.isdigit())
    words = [part for part in parts if not part.endswith(_EXPERTS)]
    named = words[:-1] if words[-1] in _VALUES and words[1:] else words
    kind = role(".".join(named)) if not experts else role(".".join(("h", "0", *named[-1:])))
    if kind == "norm":
        norm = named[-1] if not norms else _NORMS.get(named[-1], named[-1])
        kind = f"norm {norm}"
    value = _VALUES.get(words[-1], "weight" if named is words and _speaks(kind, words) else words[-1])
    tower = tuple(part for part in parts[:-1] if _TOWER.search(part)) if _TOWER.search(name) else ()
    return None if kind in ("other", "expert") else Canonical(tower, numbers, tuple(experts), kind, value)


def _speaks(kind: str, words: list[str]) -> bool:
    """Whether the last part is the role itself: stacked experts have no `weight` behind it."""
    return role(words[-1]) == kind


def has_norms_behind(names: Iterable[str]) -> bool:
    """Whether blocks have norms behind their halves, as Gemma's do."""
    return any("feedforward_layernorm" in name or "post_ffw_norm" in name for name in names)
