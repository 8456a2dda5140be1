"""A GGUF checkpoint as the model it was converted from: its names, its order of rows, one tensor per expert.

Names of Hugging Face for the families whose converters in llama.cpp (conversion/*.py of 2026) were read; what those
change besides is undone here. Other architectures keep the names of the file, which is told.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from diffai_dist.checkpoint import Checkpoint, Tensor
from diffai_dist.errors import BadHeader, Failure, UnknownScheme
from diffai_dist.formats.names import listed, quoted
from diffai_dist.schemes.ggml import BLOCKS, Ggml, check_decodable
from diffai_dist.schemes.stored import Undecodable
from diffai_dist.schemes.strided import MOST_BYTES
from diffai_dist.storage import redact

MAX_EXPERTS = 1_000_000  # of all stacks, which become a tensor each; the largest published models have some 150,000


@dataclass(frozen=True, slots=True)
class Family:
    """What the converter of some architectures does: names for `{stem}` and `blk.N.{stem}`, without `.weight`."""

    names: Mapping[str, str]
    experts: Mapping[str, str] = field(default_factory=dict)  # of stacks, which have one tensor for each expert
    permuted: bool = False  # whether rows of query and key heads were put in another order
    added: int = 0  # to the weights of norms


_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MIXTRAL = {"ffn_gate_exps": "w1", "ffn_down_exps": "w2", "ffn_up_exps": "w3"}
_QWEN = {"ffn_gate_exps": "gate_proj", "ffn_down_exps": "down_proj", "ffn_up_exps": "up_proj"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_ROUTER = {"ffn_gate_inp": "mlp.gate"}
_SHARED = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI2 = {
    "output_norm": "model.final_layernorm",
    "attn_output": "self_attn.dense",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_PHI3 = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}


def _each(block: str, experts: Mapping[str, str]) -> dict[str, str]:
    """Names with a place for the number of the expert."""
    return {stem: f"{block}.experts.{{}}.{name}" for stem, name in experts.items()}


_LLAMAS = Family(_LLAMA | {"ffn_gate_inp": "block_sparse_moe.gate"}, _each("block_sparse_moe", _MIXTRAL), permuted=True)
FAMILIES = {
    "llama": _LLAMAS,  # also Mistral and Mixtral
    "mistral3": _LLAMAS,
    "granite": _LLAMAS,
    "qwen2": Family(_LLAMA),
    "qwen2moe": Family(_LLAMA | _ROUTER | _SHARED, _each("mlp", _QWEN)),
    "qwen3": Family(_LLAMA | _HEAD_NORMS),
    "qwen3moe": Family(_LLAMA | _HEAD_NORMS | _ROUTER, _each("mlp", _QWEN)),
    "gemma": Family(_LLAMA, added=1),
    "gemma2": Family(_LLAMA | _FOUR_NORMS, added=1),
    "gemma3": Family(_LLAMA | _FOUR_NORMS | _HEAD_NORMS, added=1),
    "phi2": Family(_LLAMA | _PHI2),
    "phi3": Family(_LLAMA | _PHI3),
}

# Keys of the metadata behind the architecture, as a config.json calls them.
_CONFIG = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "vocab_size": "vocab_size",
}

_NAME = re.compile(r"(?:blk\.(?P<layer>[0-9]{1,6})\.)?(?P<stem>[a-z0-9_]+)\.(?P<ending>weight|bias)")
_HEADS = {"attn_q": ("head_count",), "attn_k": ("head_count_kv", "head_count")}

NO_FAMILY = (
    "names, order of rows and values are those of the file, which llama.cpp may have changed: {} is none of the "
    "architectures that are undone"
)
LESS_PRECISE = "1 was taken off norms, to which the converter had added it: exact to 1e-7"


def as_model(checkpoint: Checkpoint, with_config: bool) -> Checkpoint:
    """The checkpoint with values in the place of blocks, and the names and order its architecture has elsewhere.

    `with_config` asks for what a config.json would say, too, where there is none.
    """
    config = config_of(checkpoint.metadata) if with_config else None
    return dataclasses.replace(_as_family(checkpoint), config=checkpoint.config or config)


def _as_family(checkpoint: Checkpoint) -> Checkpoint:
    architecture = checkpoint.metadata.get("general.architecture", "")
    family = FAMILIES.get(architecture)
    if family is None:
        what = f"the architecture {quoted(architecture)}" if architecture else "a file without an architecture"
        return _converted(checkpoint, Family({}), (NO_FAMILY.format(what),))
    experts = sum(tensor.shape[0] for tensor in checkpoint.tensors.values() if _each_name(tensor, family))
    if experts > MAX_EXPERTS:
        raise BadHeader(checkpoint.url, f"stacks of {experts:,} experts", expected=f"at most {MAX_EXPERTS:,}")
    return _converted(checkpoint, family, (LESS_PRECISE,) if family.added else ())


def _converted(checkpoint: Checkpoint, family: Family, warnings: tuple[str, ...]) -> Checkpoint:
    tensors: dict[str, Tensor] = {}
    unreadable: dict[str, Failure] = {}
    twice = []
    for name, failure in checkpoint.unreadable.items():
        logical = logical_name(name, family)
        unreadable[logical] = dataclasses.replace(failure, tensor=logical)
    for stored in checkpoint.tensors.values():
        factors = {f"{stored.name}.scale", f"{stored.name.removesuffix('.weight')}.scale"} - {stored.name}
        for one in _pieces(stored, family):
            if one.name in tensors or one.name in unreadable:
                twice.append(one.name)
                continue
            try:
                if stored.dtype == "NVFP4" and not factors.isdisjoint(checkpoint.tensors):
                    raise Undecodable("NVFP4 blocks with a scale for the whole tensor beside them, which is not read")
                tensors[one.name] = _decoded(one, stored.name, family, checkpoint.metadata)
            except Undecodable as error:
                unreadable[one.name] = _failure(one, error)
    if twice and family.names:
        told = f"tensors of the file have the same name in the model, the names are those of the file: {listed(twice)}"
        return _converted(checkpoint, Family({}), (told,))
    return dataclasses.replace(
        checkpoint, tensors=tensors, unreadable=unreadable, warnings=(*checkpoint.warnings, *warnings)
    )


def logical_name(name: str, family: Family) -> str:
    """The name in the model; that of the file where the family has no other.

    >>> logical_name("blk.3.attn_q.weight", FAMILIES["llama"]), logical_name("rope_freqs.weight", FAMILIES["llama"])
    ('model.layers.3.self_attn.q_proj.weight', 'rope_freqs.weight')
    """
    match = _NAME.fullmatch(name)
    found = family.names.get(match["stem"]) if match else None
    if not match or not found:
        return name
    layer = f"model.layers.{match['layer']}." if match["layer"] else ""
    return f"{layer}{found}.{match['ending']}"


def _pieces(tensor: Tensor, family: Family) -> Iterator[Tensor]:
    """The tensor under its logical name, or one for each expert: rows are whole blocks, so a stack is cut anywhere."""
    pattern = _each_name(tensor, family)
    if pattern is None:
        yield dataclasses.replace(tensor, name=logical_name(tensor.name, family))
        return
    (span,), count = tensor.spans, tensor.shape[0]
    size = tensor.nbytes // count
    for expert in range(count):
        part = span.part(expert * size, (expert + 1) * size)
        yield Tensor(pattern.format(expert), tensor.dtype, tensor.shape[1:], (part,))


def _each_name(tensor: Tensor, family: Family) -> str | None:
    """The name of each expert in a stack, with a place for its number; None for what is no stack."""
    match = _NAME.fullmatch(tensor.name)
    found = family.experts.get(match["stem"]) if match else None
    if not match or not match["layer"] or not found or len(tensor.shape) < 2 or not tensor.shape[0]:
        return None
    return f"model.layers.{match['layer']}.{found}.{match['ending']}"


def _decoded(tensor: Tensor, stored: str, family: Family, metadata: Mapping[str, str]) -> Tensor:
    """The tensor with what makes values of its blocks; raises Undecodable where those are not known."""
    check_decodable(tensor.dtype)
    match = _NAME.fullmatch(stored)
    stem = match["stem"] if match else ""
    heads = _heads(tensor, stem, metadata) if family.permuted and stem in _HEADS else 0
    added = family.added if stem.endswith("_norm") else 0
    if added and tensor.dtype != "F32":
        raise Undecodable(f"a norm of {tensor.dtype}, to which the converter had added {added}", expected="F32")
    coded = heads or added or tensor.dtype in BLOCKS
    return dataclasses.replace(tensor, scheme=Ggml(tensor.dtype, heads, added)) if coded else tensor


def _heads(tensor: Tensor, stem: str, metadata: Mapping[str, str]) -> int:
    """How many heads the rows of a query or key projection have."""
    keys = [f"{metadata['general.architecture']}.attention.{key}" for key in _HEADS[stem]]
    text = next((metadata[key] for key in keys if key in metadata), "missing")
    heads = int(text) if _is_number(text) else 0
    if len(tensor.shape) != 2 and (len(tensor.shape) != 1 or tensor.dtype in BLOCKS):
        raise Undecodable(f"rows in another order, of {tensor.dtype} and shape {list(tensor.shape)}", "a matrix")
    if not heads or tensor.shape[0] % (2 * heads):
        found = f"its rows were put in another order by heads, and {keys[0]} is {quoted(text)}"
        raise Undecodable(found, f"a number of heads, each with an even number of the {list(tensor.shape)[:1]} rows")
    if tensor.nbytes > MOST_BYTES:
        raise Undecodable(f"{tensor.nbytes:,} bytes of rows in another order", f"at most {MOST_BYTES:,}")
    return heads


def _failure(tensor: Tensor, error: Undecodable) -> Failure:
    where = redact(tensor.spans[0].source.url)
    return UnknownScheme(where, error.found, expected=error.expected, hint=error.hint, tensor=tensor.name).failure


def config_of(metadata: Mapping[str, str]) -> Mapping[str, int]:
    """What a config.json would say, as far as the metadata have it.

    >>> config_of({"general.architecture": "llama", "llama.block_count": "32", "llama.vocab_size": "x"})
    {'num_hidden_layers': 32}
    """
    texts = {name: metadata.get(f"{metadata.get('general.architecture')}.{key}", "") for key, name in _CONFIG.items()}
    return {name: int(text) for name, text in texts.items() if _is_number(text)}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20
