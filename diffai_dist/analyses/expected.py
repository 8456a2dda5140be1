"""What the name of a tensor lets one expect of its values. Names are not trusted: they keep rules quiet, no more."""

from __future__ import annotations

import re

from diffai_dist.analyses.roles import block

_TAIL = 256  # characters that are looked at: a hostile name of 1 MB costs no more


def _words(*words: str) -> re.Pattern[str]:
    """Whole components of a name, lower case."""
    return re.compile(rf"(?:^|[._/])(?:{'|'.join(words)})(?:$|[._/])")


# Buffers that hold -inf, or a NaN, or the lowest number, on purpose: causal masks and biases of attention scores.
_MASKS = _words("masks?", "(?:causal|attn|attention|tril|future|bias|alibi)_?mask", "masked_bias", "alibi")

# Computed once and never trained: angles and positions.
_TABLES = _words(
    "rotary_emb", "rope", "rope_freqs", "inv_freq", "freqs?(?:_cis)?", "(?:cos|sin)(?:_cached)?", "pe", "pos",
    "pos(?:ition)?(?:al)?_?(?:ids|enc(?:od[a-z]*)?|emb[a-z]*)", "wpe", "[a-z_]*position_(?:index|embeddings?)",
    "num_batches_tracked", "anchors?", "mel_filters",
)  # fmt: skip

# Zero before training, and some of them for ever: biases, the second half of an adapter, gates of what is added to a
# trained model (ControlNet, DiT), types of tokens that RoBERTa does not use, points of a symmetric quantisation.
_ZERO = _words(
    "[a-z0-9_]*bias(?:es)?(?:_[a-z]+[0-9]*)?", "beta", "running_mean", "[a-z_]*token_type[a-z_]*", "q?zeros?",
    "[a-z_]*zero_point", "lora_b", "lora_up", "lora_embedding_b", "lora_magnitude_vector", "hada_w[12]_b", "lokr_w2_b",
    "ada_?ln[a-z_]*", "zero_convs?", "controlnet_[a-z_]*", "(?:cross_attn_)?(?:attn|mlp|ff)_gate",
)  # fmt: skip

# The same number throughout before training, and close to it after: gains and variances.
_SCALE = _words(
    "[a-z0-9_]*scales?(?:_inv)?", "[a-z0-9_]*gamma(?:_?[0-9])?", "[a-z_]*gain", "ls[12]", "running_var", "d"
)


def is_mask(name: str) -> bool:
    """Whether a tensor's name is that of a mask, which may hold infinities on purpose.

    >>> is_mask("h.0.attn.masked_bias"), is_mask("model.causal_mask"), is_mask("h.0.attn.masking.weight")
    (True, True, False)
    """
    return _has(_MASKS, name)


def is_table(name: str) -> bool:
    """Whether it holds angles, positions or counts, which nobody trains in the way of weights.

    >>> is_table("model.layers.0.self_attn.rotary_emb.inv_freq"), is_table("wpe.weight"), is_table("wte.weight")
    (True, True, False)
    """
    return _has(_TABLES, name)


def may_be_zero(name: str) -> bool:
    """Whether zeros throughout are nothing strange: before training, or for ever.

    >>> [may_be_zero(name) for name in ("h.0.q.lora_B.weight", "fc1.bias", "h.0.v_proj.weight")]
    [True, True, False]
    """
    return _has(_ZERO, name)


def is_scale(name: str) -> bool:
    """Whether it multiplies, and so may be one number throughout: gains, variances, scales of codes.

    >>> is_scale("stages.0.layer_scale.gamma"), is_scale("h.0.up_proj.weight_scale_inv"), is_scale("h.0.up_proj.weight")
    (True, True, False)
    """
    return _has(_SCALE, name)


def in_every_block(name: str) -> str:
    """The name with a star for the number of its block: the same for what is the same in every block.

    >>> in_every_block("model.layers.12.mlp.experts.3.w1.weight"), in_every_block("lm_head.weight")
    ('model.layers.*.mlp.experts.3.w1.weight', 'lm_head.weight')
    """
    path = block(name)
    stack = path.rstrip("0123456789")
    numbered = stack != path and name.startswith(path) and (not stack or stack[-1] in "._/")
    return f"{stack}*{name[len(path) :]}" if numbered else name


def _has(words: re.Pattern[str], name: str) -> bool:
    return bool(words.search(name[-_TAIL:].lower()))
