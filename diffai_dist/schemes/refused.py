"""Layouts of quantised weights that are known by the names of their parts and not read: each is refused by its name."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from diffai_dist.checkpoint import Tensor
from diffai_dist.schemes.stored import Finder, Found, Stored, Undecodable

INTEGERS = frozenset({"U8", "I8", "I16", "U16", "I32", "U32", "I64"})
FP8 = frozenset({"F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ"})
BARE = frozenset({"F4", "F6_E2M3", "F6_E3M2", "F8_E5M2FNUZ"})  # values by themselves, and scales that nobody reads
ANY = INTEGERS | FP8 | {"F4", "F16", "BF16", "F32"}


class Layout(NamedTuple):
    """Codes of one of `dtypes` whose name ends with `codes`, with all of `beside` behind the same prefix."""

    name: str
    codes: str
    beside: tuple[str, ...] = ()
    dtypes: frozenset[str] = INTEGERS
    parts: tuple[str, ...] = ()  # what else lies there
    weight: str = ".weight"  # ending of the logical name


# Of two with the same codes, the one that asks for more comes first.
LAYOUTS = (
    Layout("of torchao, tile-packed", "._weight_qdata", ("._weight_scale_and_zero",), ANY, ("._weight_act_pre_scale",)),
    Layout(
        "of torchao",
        "._weight_qdata",
        ("._weight_scale",),
        ANY,
        (
            "._weight_zero_point",
            "._weight_act_pre_scale",
            "._weight_act_quant_scale",
            "._weight_act_quant_zero_point",
            "._weight_per_tensor_scale",
            "._weight_act_per_tensor_scale",
            "._weight_sparse_metadata",
        ),
    ),
    Layout(
        "of HQQ",
        ".W_q",
        (".scale", ".zero"),
        ANY,
        (
            ".nbits",
            ".group_size",
            ".shape",
            ".axis",
            ".packing",
            ".unpack_view_dtype",
            ".view_as_float",
            ".quant_scale",
            ".quant_zero",
            ".compute_dtype",
            ".offload_meta",
            ".encoded_state_dict",
            ".stores_quant_config",
            ".channel_wise",
            ".optimize",
            ".round_zero",
        ),
    ),
    Layout("of quanto", "._data._data", ("._scale",), INTEGERS, ("._shift",), ""),
    Layout("of quanto", "._data", ("._scale",), INTEGERS | FP8, (), ""),
    Layout("EXL2", ".q_weight", (), INTEGERS, (".q_scale", ".q_scale_max", ".q_groups", ".q_perm", ".q_invperm")),
    Layout("EXL3", ".trellis", (), INTEGERS, (".suh", ".svh", ".su", ".sv", ".mcg", ".mul1")),
    Layout("QQQ", ".B", (".s_channel",), INTEGERS, (".s_group", ".workspace")),
    Layout("Marlin", ".B", (".s",), INTEGERS, (".workspace", ".g_idx", ".perm")),
    Layout("of BitBLAS", ".qweight", (".scales",), frozenset({"I8", "U8"}), (".zeros", ".qzeros", ".g_idx")),
    Layout("of AQLM", ".codes", (".codebooks", ".scales")),
    Layout("of VPTQ", ".indices", (".centroids.weight",), INTEGERS, (".res_centroids.weight", ".perm")),
    Layout("of QuIP#", ".Qidxs", (), INTEGERS, (".SU", ".SV", ".codebook_id", ".Wscale")),
    Layout(
        "sparse-bitmask of compressed-tensors",
        ".bitmask",
        (".compressed",),
        frozenset({"U8"}),
        (".shape", ".row_offsets"),
        "",
    ),
    Layout("of EETQ", ".weight", (".weight_scales",), frozenset({"I8"})),
    Layout("of TensorRT-LLM", ".weight", (".weights_scaling_factor",), INTEGERS | FP8, (".activation_scaling_factor",)),
    Layout("of MLX", ".weight", (".scales",), frozenset({"U32"}), (".biases",)),
    Layout(
        "F4, F6 or F8_E5M2FNUZ with scales", ".weight", (".weight_scale",), BARE, (".weight_scale_2", ".input_scale")
    ),
    Layout("of BitNet or Quark", ".weight", (".weight_scale",), frozenset({"U8"}), (".weight_zero_point",)),
)


def _refuse(layout: Layout, prefix: str, codes: Tensor, stored: Stored) -> Found | None:
    """Raise Undecodable if all the parts are there, or would be if their shard were."""
    if all(stored.has(stored.name(prefix + part)) for part in layout.beside):
        raise Undecodable(f"it is in the layout {layout.name}, which is not read")
    return None


FINDERS = tuple(
    Finder({layout.codes: layout.weight}, layout.dtypes, partial(_refuse, layout), (*layout.beside, *layout.parts))
    for layout in LAYOUTS
)
