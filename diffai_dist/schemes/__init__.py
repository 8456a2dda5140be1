"""How codes become values. A scheme is one file: what finds its weights, which bytes a run of rows needs, the decoder.

Which tensors a scheme is asked about stands here, so that the file is loaded only for checkpoints that have such ones.
"""

from __future__ import annotations

from diffai_dist.schemes import refused
from diffai_dist.schemes.stored import Finder, Late

# What is stored beside a weight for activations, caches and outputs: it is not compared for itself.
OF_ACTIVATIONS = (
    ".input_scale",
    ".input_scale_ub",
    ".input_zero_point",
    ".input_global_scale",
    ".activation_scale",
    ".output_scale",
    ".output_zero_point",
    ".k_scale",
    ".v_scale",
    ".pre_quant_scale",  # refused where it lies beside codes, see scales.refuse_undone
)

WEIGHT, PACKED, QWEIGHT = {".weight": ".weight"}, {".weight_packed": ".weight"}, {".qweight": ".weight"}
PARAMETER = {"": ""}  # which is no module's weight, as stacked experts are
U8, I8, I32 = frozenset({"U8"}), frozenset({"I8"}), frozenset({"I32"})
FP8 = frozenset({"F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2"})

# Of bitsandbytes. Codes may be stored as any dtype, so that the state is what a weight of 4 bits is known by.
STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
NESTED = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", *STATES)

# Asked in this order, each about tensors of its suffixes and dtypes; the first that knows one decides.
SCHEMES: tuple[Finder, ...] = (
    Finder(dict.fromkeys(STATES, ""), U8, Late("bnb4:find"), ("", *NESTED), told=STATES),
    # Where a shard is missing that holds the state, codes are there alone: as bytes, unless somebody chose otherwise.
    Finder(WEIGHT, U8, Late("bnb4:find_lost"), tuple(f".weight{part}" for part in NESTED)),
    Finder(WEIGHT, I8, Late("bnb8:find"), (".SCB", ".weight_format"), told=(".weight_format",)),
    Finder(
        PACKED,
        I32,
        Late("packed:find"),
        (
            ".weight_scale",
            ".weight_zero_point",
            ".weight_shape",
            ".weight_g_idx",
            ".scale_packed",
            ".meta",
            *OF_ACTIVATIONS,
        ),
        told=(".weight_shape",),
    ),
    Finder(
        WEIGHT,
        FP8,
        Late("fp8:find"),
        (
            ".weight_scale_inv",
            ".weight_scale",
            ".scale",
            ".scale_weight",
            ".weight_zero_point",
            ".weight_g_idx",
            ".scale_input",
            *OF_ACTIVATIONS,
        ),
    ),
    Finder(WEIGHT, I8, Late("mxfp4:find_experts"), (".scale", ".weight_scale_inv", *OF_ACTIVATIONS)),
    Finder(
        WEIGHT,
        I8,
        Late("int8:find"),
        (".weight_scale", ".weight_scale_inv", ".scale", ".weight_zero_point", ".weight_g_idx", *OF_ACTIVATIONS),
    ),
    Finder(PACKED, U8, Late("mxfp4:find_packed"), (".weight_scale", ".weight_shape", ".weight_g_idx", *OF_ACTIVATIONS)),
    Finder(
        PACKED,
        U8,
        Late("nvfp4:find_packed"),
        (
            ".weight_scale",
            ".weight_global_scale",
            ".weight_zero_point",
            ".weight_shape",
            ".weight_g_idx",
            *OF_ACTIVATIONS,
        ),
    ),
    Finder(WEIGHT, U8, Late("nvfp4:find"), (".weight_scale", ".weight_scale_2", *OF_ACTIVATIONS)),
    Finder({"_blocks": ""}, U8, Late("mxfp4:find_stacked"), ("_scales",)),
    Finder({".blocks": ""}, U8, Late("mxfp4:find_original"), (".scales",)),
    Finder(PARAMETER, FP8, Late("fp8:find_parameter"), ("_scale_inv", "_scale", "_input_scale", "_activation_scale")),
    Finder(PARAMETER, I8, Late("int8:find_parameter"), ("_scale", "_zero_point")),
    Finder(QWEIGHT, frozenset({"I32", "I16"}), Late("awq:find"), (".qzeros", ".scales", ".g_idx")),
    Finder(
        QWEIGHT,
        frozenset({"I32", "I8", "U8", "I16", "I64"}),
        Late("gptq:find"),
        (".qzeros", ".scales", ".g_idx"),
        heads=(".qzeros",),
    ),
    *refused.FINDERS,
)
