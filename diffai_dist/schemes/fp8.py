"""FP8 weights with scales: of a tensor, of channels, of tiles as in DeepSeek-V3 and Qwen3, of 32 columns (MXFP8)."""

from __future__ import annotations

from diffai_dist.checkpoint import Tensor
from diffai_dist.dtypes import DTYPES
from diffai_dist.schemes.blocks import Blocks
from diffai_dist.schemes.loops import SCALES
from diffai_dist.schemes.scales import MX, TILE, block_of, in_order, kind, scale_of_weight
from diffai_dist.schemes.stored import Found, Stored, Undecodable

POWERS = ("F8_E8M0", "U8")  # dtypes of scales that are powers of two; U8 as the bytes of the other
BESIDE = (".weight_scale", ".weight_scale_inv", ".scale_weight")  # the last is ComfyUI's; all multiply


def find(prefix: str, codes: Tensor, stored: Stored) -> Found | None:
    """The weight of a module, if scales lie beside it or should; one that nothing scales is a plain cast to FP8."""
    scale = scale_of_weight(prefix, codes, "float", BESIDE, stored)
    if scale is None:
        return None
    return _scaled(f"{prefix}.weight", codes, scale, stored.part(f"{prefix}.weight_zero_point"), stored)


def find_parameter(name: str, codes: Tensor, stored: Stored) -> Found | None:
    """A parameter that is no module's weight, as stacked experts are, if scales lie beside it."""
    endings = ("_scale_inv", "_scale")
    scale = stored.part(*(name + ending for ending in endings))
    if all(stored.has(name + ending) for ending in endings):
        raise Undecodable(f"{' and '.join(endings)} lie beside it", "one of them")
    return _scaled(name, codes, scale, None, stored) if scale else None


def _scaled(name: str, codes: Tensor, scale: Tensor, zero: Tensor | None, stored: Stored) -> Found:
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
    return Found(Tensor(name, dtype, codes.shape, spans, scheme))
