"""FP8 weights with scales: of a tensor, of channels, of tiles as in DeepSeek-V3 and Qwen3, of 32 columns (MXFP8)."""

from __future__ import annotations

from diffai_dist.checkpoint import Tensor
from diffai_dist.dtypes import DTYPES
from diffai_dist.schemes.blocks import Blocks
from diffai_dist.schemes.declared import disagreements, has_codes
from diffai_dist.schemes.loops import SCALES
from diffai_dist.schemes.scales import MX, OF_ACTIVATIONS, TILE, block_of, in_order, kind, refuse_undone
from diffai_dist.schemes.stored import Finder, Found, Stored, Undecodable

CODES = frozenset({"F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2"})
POWERS = ("F8_E8M0", "U8")  # dtypes of scales that are powers of two; U8 as the bytes of the other
BESIDE = (".weight_scale_inv", ".weight_scale", ".scale", ".scale_weight")  # the last is ComfyUI's; all multiply
OTHERS = frozenset({"gptq", "awq", "bitsandbytes", "mxfp4", "hqq", "quanto", "torchao"})  # methods without such weights


def find(prefix: str, codes: Tensor, stored: Stored) -> Found | None:
    """The weight of a module, if scales lie beside it or should; one that nothing scales is a plain cast to FP8."""
    scale = stored.part(*(prefix + ending for ending in BESIDE))
    if scale is None:
        if len(codes.shape) > 1 and has_codes(stored.declared, prefix, "float"):
            raise Undecodable(f"its weight_scale is missing, and {stored.declared.file} declares it as quantised")
        return None
    if several := [ending for ending in BESIDE if prefix + ending in stored.tensors][1:]:
        raise Undecodable(f"{', '.join(several)} lie beside its {scale.name.rpartition('.')[2]}", "one of them")
    refuse_undone(prefix, stored)
    return _scaled(f"{prefix}.weight", codes, scale, stored.part(f"{prefix}.weight_zero_point"), stored)


def find_parameter(name: str, codes: Tensor, stored: Stored) -> Found | None:
    """A parameter that is no module's weight, as stacked experts are, if scales lie beside it."""
    scale = stored.part(f"{name}_scale_inv", f"{name}_scale")
    return _scaled(name, codes, scale, None, stored) if scale else None


def _scaled(name: str, codes: Tensor, scale: Tensor, zero: Tensor | None, stored: Stored) -> Found | None:
    if not codes.elements or not codes.shape:
        return None
    if scale.dtype not in SCALES and scale.dtype not in POWERS:
        raise Undecodable(f"its scales are {scale.dtype}", "F32, F16, BF16, F8_E8M0 or U8")
    parts = (codes, scale, zero) if zero else (codes, scale)
    in_order(*parts)
    powers = scale.dtype in POWERS
    rows, columns = block_of(codes.shape, scale, stored.declared, [MX, TILE] if powers else [TILE])
    if zero and (zero.shape != scale.shape or zero.dtype not in ("I8", codes.dtype)):
        raise Undecodable(f"its zero points are {zero.dtype} {list(zero.shape)}", f"I8 {list(scale.shape)}")
    scheme = Blocks(
        codes.dtype, "F8_E8M0" if powers else scale.dtype, rows, columns, DTYPES[codes.dtype].bits,
        zeros=zero.dtype if zero else "",
    )  # fmt: skip
    dtype = "mxfp8" if powers and (rows, columns) == MX else f"fp8-{kind(codes.shape, (rows, columns))}"
    spans = tuple(part.spans[0] for part in parts)
    remarks = disagreements(stored.declared, name.removesuffix(".weight"), dtype, OTHERS)
    return Found(Tensor(name, dtype, codes.shape, spans, scheme), remarks)


FINDER = Finder(
    {".weight": ".weight"},
    CODES,
    find,
    (*BESIDE, ".weight_zero_point", ".weight_g_idx", ".scale_input", *OF_ACTIVATIONS),
)
PARAMETERS = Finder({"": ""}, CODES, find_parameter, ("_scale_inv", "_scale", "_input_scale", "_activation_scale"))
