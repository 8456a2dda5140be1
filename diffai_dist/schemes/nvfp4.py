"""NVFP4: codes E2M1, a scale E4M3 for 16 columns, and one number for the tensor."""

from __future__ import annotations

from diffai_dist.checkpoint import Tensor
from diffai_dist.schemes.blocks import Blocks
from diffai_dist.schemes.scales import groups_of, in_order, refuse_undone
from diffai_dist.schemes.stored import Found, Stored, Undecodable

GROUP = 16
COMMON = ("F32", "F16", "BF16", "F64")


def find_packed(prefix: str, codes: Tensor, stored: Stored) -> Found | None:
    """The weight as compressed-tensors packs it: its scales are divided by weight_global_scale."""
    scale = stored.needed(f"{prefix}.weight_scale")
    if stored.part(f"{prefix}.weight_zero_point"):
        raise Undecodable("its weight_zero_point belongs to no layout of NVFP4 that is known")
    return _weight(prefix, codes, scale, stored.needed(f"{prefix}.weight_global_scale"), stored, divides=True)


def find(prefix: str, codes: Tensor, stored: Stored) -> Found | None:
    """The weight as ModelOpt packs it: its scales are multiplied by weight_scale_2."""
    scale, common = stored.part(f"{prefix}.weight_scale"), stored.part(f"{prefix}.weight_scale_2")
    if common is None and (scale is None or scale.dtype != "F8_E4M3"):
        return None
    scale = stored.needed(f"{prefix}.weight_scale")
    return _weight(prefix, codes, scale, stored.needed(f"{prefix}.weight_scale_2"), stored, divides=False)


def _weight(prefix: str, codes: Tensor, scale: Tensor, common: Tensor, stored: Stored, divides: bool) -> Found | None:
    refuse_undone(prefix, stored)
    if not codes.elements or len(codes.shape) < 2:
        raise Undecodable(f"its codes have shape {list(codes.shape)}", "[rows, columns / 2]")
    shape = (*codes.shape[:-1], codes.shape[-1] * 2)
    expected = groups_of(shape, GROUP)
    if scale.dtype != "F8_E4M3" or scale.shape != expected:
        raise Undecodable(f"its scales are {scale.dtype} {list(scale.shape)}", f"F8_E4M3 {list(expected)}")
    if common.dtype not in COMMON or common.elements != 1:
        what = common.name.rpartition(".")[2]
        raise Undecodable(f"its {what} is {common.dtype} {list(common.shape)}", "one number, F32")
    in_order(codes, scale, common)
    scheme = Blocks("F4", scale.dtype, 1, GROUP, 4, common=common.dtype, divides=divides)
    spans = (*codes.spans, *scale.spans, *common.spans)
    return Found(Tensor(f"{prefix}.weight", "nvfp4", shape, spans, scheme))
