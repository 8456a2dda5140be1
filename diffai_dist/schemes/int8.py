"""INT8 weights with scales, and zero points if they are asymmetric: of compressed-tensors, and plain ones."""

from __future__ import annotations

from diffai_dist.checkpoint import Tensor
from diffai_dist.schemes.blocks import Blocks
from diffai_dist.schemes.declared import blocks, disagreements, has_codes, weights
from diffai_dist.schemes.fp8 import OTHERS
from diffai_dist.schemes.scales import OF_ACTIVATIONS, TILE, block_of, in_order, kind, power_of_two, refuse_undone
from diffai_dist.schemes.stored import Declared, Finder, Found, Stored, Undecodable

FLOATS = ("F32", "F16", "BF16", "F64")
ZEROS = ("I8", "I32")


def find(prefix: str, codes: Tensor, stored: Stored) -> Found | None:
    """The weight of a module, if scales lie beside it or should; codes that nothing scales are plain integers."""
    scale = stored.part(f"{prefix}.weight_scale", f"{prefix}.weight_scale_inv", f"{prefix}.scale")
    if scale is None:
        if len(codes.shape) > 1 and has_codes(stored.declared, prefix, "int"):
            raise Undecodable(f"its weight_scale is missing, and {stored.declared.file} declares it as quantised")
        return None
    refuse_undone(prefix, stored)
    return _scaled(f"{prefix}.weight", codes, scale, stored.part(f"{prefix}.weight_zero_point"), stored)


def find_parameter(name: str, codes: Tensor, stored: Stored) -> Found | None:
    """A parameter that is no module's weight, if scales lie beside it."""
    scale = stored.part(f"{name}_scale")
    return _scaled(name, codes, scale, stored.part(f"{name}_zero_point"), stored) if scale else None


def _scaled(name: str, codes: Tensor, scale: Tensor, zero: Tensor | None, stored: Stored) -> Found | None:
    if not codes.elements or not codes.shape:
        return None
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
    if zero and symmetric and all(one is True for one in symmetric):
        remarks += (f"{stored.declared.file} declares weights as symmetric that have zero points, which are applied",)
    bits = bits_of(stored.declared)
    scheme = Blocks("I8", scale.dtype, *block, bits, zeros=zero.dtype if zero else "")
    dtype = f"int{bits}-{kind(codes.shape, block)}"
    remarks += disagreements(stored.declared, name.removesuffix(".weight"), dtype, OTHERS)
    return Found(Tensor(name, dtype, codes.shape, tuple(part.spans[0] for part in parts), scheme), remarks)


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
    return block, ("no group size is declared: the only power of two that fits the scales was taken",)


def bits_of(declared: Declared) -> int:
    """How many bits of a code are used, if all groups of integers say the same; else all 8."""
    said = [one.get("num_bits") for one, _ in weights(declared) if one.get("type") == "int"]
    return said[0] if said and type(said[0]) is int and 1 < said[0] < 8 and said.count(said[0]) == len(said) else 8


FINDER = Finder(
    {".weight": ".weight"},
    frozenset({"I8"}),
    find,
    (".weight_scale", ".weight_scale_inv", ".scale", ".weight_zero_point", ".weight_g_idx", *OF_ACTIVATIONS),
)
PARAMETERS = Finder({"": ""}, frozenset({"I8"}), find_parameter, ("_scale", "_zero_point"))
