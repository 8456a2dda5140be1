"""What a configuration says of the codes of one module; nothing in it is trusted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from diffai_dist.checkpoint import Tensor
from diffai_dist.schemes.modules import Modules
from diffai_dist.schemes.stored import Declared, Undecodable

# What a method writes, by how its tensors begin to be called; methods that are not here are not judged.
WRITTEN: Mapping[str, tuple[str, ...]] = {
    "gptq": ("gptq-",),
    "awq": ("awq-",),
    "bitsandbytes": ("bnb-",),
    "fp8": ("fp8-", "mxfp"),
    "fbgemm_fp8": ("fp8-",),
    "mxfp4": ("mxfp4",),
    "compressed-tensors": ("int", "fp8-", "mxfp", "nvfp4"),
    "modelopt": ("int", "fp8-", "mxfp", "nvfp4"),
    "hqq": (),
    "quanto": (),
    "torchao": (),
}
# Models of transformers whose layers are no nn.Linear, by model_type, and what those layers are called.
CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
CONV1D_MODULES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
# Modules that are nn.Embedding, by the last part of their names in transformers. Their weight is [tokens, features],
# and GPTQModel takes tokens for inputs (`pack_original`, `TorchQuantEmbeddings`); nobody else quantises them.
EMBEDDINGS = frozenset({"embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "embeddings"})
ZEROS_APPLIED = " declares weights as symmetric that have zero points, which are applied"
STORED_AS_CODES = frozenset({"gptq", "awq", "fp8", "fbgemm_fp8", "mxfp4", "hqq"})
FORMATS = {"e4m3": 4, "e5m2": 3}  # of FP8, and their significant bits
FINER = {"tensor": ("tensor",), "channel": ("channel", "tensor")}  # scales are for such parts at least, where declared


def weights(declared: Declared) -> Iterator[tuple[Mapping[str, Any], Any]]:
    """What the groups of a configuration of compressed-tensors say of weights, and their targets."""
    groups = declared.fields.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        if isinstance(group, dict) and isinstance(group.get("weights"), dict):
            yield group["weights"], group.get("targets")


def blocks(declared: Declared) -> list[tuple[int, int]]:
    """All blocks that are declared, for whichever module: the shape of the scales says which one is meant."""
    found = [declared.fields.get("weight_block_size")]
    for one, _ in weights(declared):
        found += [one.get("block_structure"), [1, one.get("group_size")]]
    usable = [one for one in found if isinstance(one, list) and len(one) == 2]
    return [(one[0], one[1]) for one in usable if all(type(size) is int and size > 0 for size in one)]


def refuse_rotated(declared: Declared) -> None:
    """Raise Undecodable where a transform is declared: weights are then in another basis than the baseline's."""
    if declared.fields.get("transform_config"):
        raise Undecodable("it is rotated (transform_config): its values are not in the basis of an unrotated model")


def has_codes(declared: Declared, module: str, kind: Literal["float", "int"]) -> bool:
    """Whether the weight of a module is declared to be codes of that kind, so that it must have scales."""
    if left_out(declared, module) is not False or "embed" in module.rpartition(".")[2]:
        return False
    if declared.method == "compressed-tensors":
        return any(
            one.get("type") == kind and (kind == "int" or one.get("num_bits") == 8) and _meant(targets, module)
            for one, targets in weights(declared)
        )
    algorithm = declared.fields.get("quant_algo")
    modelopt = declared.method.startswith("modelopt") and isinstance(algorithm, str) and algorithm.startswith("FP8")
    transformers = declared.method in ("fp8", "fbgemm_fp8") and module.rpartition(".")[2] != "lm_head"
    return kind == "float" and (modelopt or transformers)


def is_conv1d(declared: Declared, module: str) -> bool:
    """Whether the module is a Conv1D of transformers, whose unquantised weight is [inputs, outputs]."""
    return declared.model in CONV1D_MODELS and module.rpartition(".")[2] in CONV1D_MODULES


def rows_are_inputs(declared: Declared, module: str) -> str | None:
    """Why the unquantised weight of GPTQ is [inputs, outputs], as a remark; None where it is not."""
    if is_conv1d(declared, module):
        return f"read as [inputs, outputs], as the layers of {declared.model} are unquantised"
    if module.rpartition(".")[2] in EMBEDDINGS:
        return "embeddings by their names: read as [tokens, features], as GPTQModel packs those"
    return None


def refuse_turned(declared: Declared, module: str) -> None:
    """Raise Undecodable where what is stored is the transpose of the unquantised weight."""
    if is_conv1d(declared, module):
        raise Undecodable(f"it is the transpose of what {declared.model} has unquantised, which is not undone")


def left_out(declared: Declared, module: str) -> bool | None:
    """Whether a module is listed as one without codes; None where a list, or an entry of it, is not understood."""
    found = [modules.lists(module) for modules in declared.left_out]
    return True if True in found else None if None in found else False


def wants_codes(declared: Declared) -> bool:
    """Whether weights must be stored as codes: not those whose caches or activations alone are quantised, nor those of
    methods that quantise plain weights when they are loaded."""
    if declared.method == "compressed-tensors":
        return declared.fields.get("format") != "dense" and any(weights(declared))
    if declared.method == "modelopt":
        return bool(declared.fields.get("quant_algo")) or any(weights(declared))
    return declared.method in STORED_AS_CODES


def otherwise(declared: Declared, tensor: Tensor) -> tuple[str, ...]:
    """What a configuration says otherwise of a tensor than its parts do, which are followed: another method, a module
    without codes, other numbers."""
    if declared.method in WRITTEN and not tensor.dtype.startswith(WRITTEN[declared.method]):
        return (f"{declared.file} declares {declared.method}, but what is stored is {tensor.dtype}, and read as that",)
    if left_out(declared, tensor.name.removesuffix(".weight")):
        return (f"{declared.file} lists modules as not quantised that are {tensor.dtype}, and read as that",)
    return tuple(f"{declared.file} declares {what}: read as stored" for what in _other_numbers(declared, tensor))


def _other_numbers(declared: Declared, tensor: Tensor) -> Iterator[str]:
    """Single modules may be declared apart (`dynamic` of GPTQModel): then nothing is known of one."""
    scheme, groups = tensor.scheme, [one for one, _ in weights(declared)]
    if scheme is None or declared.fields.get("dynamic"):
        return
    said = [one.get("num_bits") for one in groups]
    if declared.method in ("gptq", "awq"):
        said.append(declared.number("bits", "w_bit"))
    if (numbers := [one for one in said if type(one) is int]) and scheme.bits not in numbers:
        yield f"other bits than are stored, {scheme.bits}"
    if _block_differs(declared, tensor, scheme.block):
        yield "another group size than is stored"
    digits = FORMATS.get(str(declared.fields.get("fmt")).lower())
    if digits and tensor.dtype.startswith(("fp8-", "mxfp8")) and digits != scheme.digits:
        yield f"{declared.fields['fmt']}, but codes are stored with {scheme.digits} significant bits"
    finer = [kind for one in groups for kind in FINER.get(str(one.get("strategy")), (tensor.dtype,))]
    if groups and not any(kind in tensor.dtype for kind in finer):
        yield f"scales for larger parts of a weight than {tensor.dtype} has"


def _block_differs(declared: Declared, tensor: Tensor, block: int) -> bool:
    """Whether one scale is for another number of values than is declared for all modules."""
    axes = [max(size, 1) for size in (1, 1, *tensor.shape)[-2:]]
    tile = declared.fields.get("weight_block_size")
    size = declared.number("group_size", "q_group_size")
    if declared.method == "fp8" and tensor.dtype.startswith("fp8-") and isinstance(tile, list):
        sizes = [one for one in tile if type(one) is int]
        return len(sizes) == len(tile) == 2 and block != math.prod(map(min, sizes, axes))
    grouped = declared.method in ("gptq", "awq") and size is not None
    inputs = axes[0] if rows_are_inputs(declared, tensor.name.removesuffix(".weight")) else axes[1]
    return grouped and block != (inputs if size == -1 else min(size or 0, inputs))


def _meant(targets: object, module: str) -> bool:
    """Whether a group is for the module: `Linear` is for all that has a matrix, but for embeddings."""
    return isinstance(targets, list) and ("Linear" in targets or Modules.of(targets).lists(module) is True)
