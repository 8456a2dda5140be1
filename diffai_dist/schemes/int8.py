"""INT8 weights with scales, and zero points if they are asymmetric: of compressed-tensors, and plain ones."""

from __future__ import annotations

from diffai_dist.checkpoint import Tensor
from diffai_dist.schemes.blocks import Blocks
from diffai_dist.schemes.declared import ZEROS_APPLIED, blocks, weights
from diffai_dist.schemes.scales import GROUP_TAKEN, TILE, block_of, in_order, kind, power_of_two, scale_of_weight
from diffai_dist.schemes.stored import Declared, Found, Stored, Undecodable

FLOATS = ("F32", "F16", "BF16", "F64")
ZEROS = ("I8", "I32")
BESIDE = (".weight_scale", ".weight_scale_inv")


def find(prefix: str, codes: Tensor, stored: Stored) -> Found | None:
    """The weight of a module, if scales lie beside it or should; codes that nothing scales are plain integers."""
    scale = scale_of_weight(prefix, codes, "int", BESIDE, stored)
    if scale is None:
        return None
    return _scaled(f"{prefix}.weight", codes, scale, stored.part(f"{prefix}.weight_zero_point"), stored)


def find_parameter(name: str, codes: Tensor, stored: Stored) -> Found | None:
    """A parameter that is no module's weight, if scales lie beside it."""
    scale = stored.part(f"{name}_scale")
    return _scaled(name, codes, scale, stored.part(f"{name}_zero_point"), stored) if scale else None


def _scaled(name: str, codes: Tensor, scale: Tensor, zero: Tensor | None, stored: Stored) -> Found:
    if scale.dtype not in FLOATS:
        raise Undecodable(f"its scales are {scale.dtype}", ", ".join(FLOATS))
    parts = (codes, scale, zero) if zero else (codes, scale)
    in_order(*parts)
    block, remarks = _block(codes, scale, stored.declared)
    symmetric = [one.get("symmetric") for one, _ in weights(stored.declared) if one.get("type") == "int"]
    if zero is None and symmetric and all(one is False for one in symmetric):
        raise Undecodable(f"its weight_zero_point is missing, and {stored.declared.file} declares it as asymmetric")
    if zero and (zero.shape != scale.shape or zero.dtype not in ZEROS):
        raise Undecodable(f"its zero points are {zero.dtype} {list(zero.shape)}", f"I8 {list(scale.shape)}")
    bits = bits_of(stored.declared)
    dtype = f"int{bits}-{kind(codes.shape, block)}"
    applied = zero is not None and symmetric != [] and all(one is True for one in symmetric)
    scheme = Blocks("I8", scale.dtype, *block, bits, zeros=zero.dtype if zero else "")
    tensor = Tensor(name, dtype, codes.shape, tuple(part.spans[0] for part in parts), scheme)
    return Found(tensor, remarks, (stored.declared.file + ZEROS_APPLIED,) * applied)


def _block(codes: Tensor, scale: Tensor, declared: Declared) -> tuple[tuple[int, int], tuple[str, ...]]:
    """The block of a scale; where no group size is declared the only power of two that fits, and a remark."""
    group = None if blocks(declared) else power_of_two(codes.shape, scale)
    block = block_of(codes.shape, scale, declared, [group or TILE])
    if group is None or block[0] != 1 or block[1] == codes.shape[-1]:
        return block, ()
    even, left = divmod(codes.shape[-1], scale.shape[-1])
    if not left and even != block[1]:
        found = f"{scale.shape[-1]:,} groups of {codes.shape[-1]:,} columns are declared nowhere"
        raise Undecodable(f"{found}: their size is {even} or {block[1]}", "a group_size in its config.json")
    return block, (GROUP_TAKEN,)


def bits_of(declared: Declared) -> int:
    """How many bits of a code are used, if all groups of integers say the same; else all 8."""
    said = [one.get("num_bits") for one, _ in weights(declared) if one.get("type") == "int"]
    return said[0] if said and type(said[0]) is int and 1 < said[0] < 8 and said.count(said[0]) == len(said) else 8
