"""GPTQ: codes of 2, 3, 4 or 8 bits in 32-bit words down the inputs, [inputs, outputs], so that rows are no ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffai_dist.checkpoint import Tensor
from diffai_dist.schemes.declared import rows_are_inputs
from diffai_dist.schemes.gptq_rows import GptqRows
from diffai_dist.schemes.grouped import (
    SCALES,
    V1,
    V1_WORDS,
    V2,
    WORD,
    Whole,
    declared_group,
    group_size,
    groups_of,
    scales_of,
    sizes,
    zero_points,
)
from diffai_dist.schemes.loops import Loop
from diffai_dist.schemes.scales import in_order
from diffai_dist.schemes.stored import Declared, Found, Stored, Undecodable

BITS = (2, 3, 4, 8)  # 5 to 7 exist, but only as planes of bits (gptq_p)
TILE = 256, 32  # inputs and outputs that are decoded and turned at a time: 32 KiB, a first-level cache
FORMATS = {"gptq": V1, "gptq_v2": V2}
OTHERS = frozenset({"marlin", "bitblas", "qqq", "exl2", "exl3", "vptq", "paroquant"})  # methods of other layouts


@dataclass(frozen=True, slots=True)
class Gptq(Whole):
    """W[o, i] = (code - zero point) * scale of output o in the group of input i; in float32, all but the product exact.

    Spans: codes, zero points, scales, and g_idx, the group of each input, where it is stored.
    """

    bits: int
    block: int  # inputs that share a scale; with g_idx about so many, and anywhere
    scales: str  # their dtype
    zeros: str  # V2, V1 or V1_WORDS

    def decode(self, tensor: Tensor, parts: Sequence[np.ndarray], first: int, stop: int, out: np.ndarray) -> None:
        """Decode tile by tile along the outputs, as codes lie, and write along the inputs."""
        if stop <= first:
            return
        outputs, inputs = tensor.shape
        low, high = first // inputs, -(-stop // inputs)
        scales = scales_of(parts[2], self.scales, outputs, low, high)
        words = parts[1].view(np.uint32).reshape(len(scales), -1)
        zeros = zero_points(words, self.bits, self.zeros, low, high)
        groups = groups_of(tensor, parts, inputs, self.block, len(scales))
        codes = parts[0].view(np.uint32).reshape(-1, outputs)
        _tiles(codes, zeros, scales, groups, self.bits, low, first, np.empty(TILE, np.float32), out.view(np.float32))


@Loop
def _tiles(
    words: np.ndarray,
    zeros: np.ndarray,
    scales: np.ndarray,
    groups: np.ndarray,
    bits: int,
    low: int,
    first: int,
    tile: np.ndarray,
    out: np.ndarray,
) -> None:
    """Elements of rows from `low` on; of a single row only those that are asked for."""
    (deep, wide), rows, width = tile.shape, zeros.shape[1], groups.size
    begin, end = (first - low * width, first - low * width + out.size) if rows == 1 else (0, width)
    mask = np.uint32((1 << bits) - 1)
    for left in range(0, rows, wide):
        across = min(wide, rows - left)
        for top in range(begin, end, deep):
            down = min(deep, end - top)
            for i in range(down):
                place, group = (top + i) * bits, groups[top + i]
                near = words[place >> 5, low + left : low + left + across]
                far = words[(place + bits - 1) >> 5, low + left : low + left + across]
                zero, scale = zeros[group, left : left + across], scales[group, left : left + across]
                # A shift by 32 has no result: where a code begins with its word, both halves are that word.
                right, back, line = np.uint32(place & 31), np.uint32(-place & 31), tile[i]
                for o in range(across):
                    code = (near[o] >> right | far[o] << back) & mask
                    line[o] = (np.float32(np.int32(code)) - zero[o]) * scale[o]
            for o in range(across):
                at = (low + left + o) * width + top - first
                skipped = max(0, -at)
                size = min(down, out.size - at) - skipped
                if size > 0:
                    run, turned = out[at + skipped : at + skipped + size], tile[skipped : skipped + size, o]
                    for i in range(size):
                        run[i] = turned[i]


def find(prefix: str, codes: Tensor, stored: Stored) -> Found | None:
    """The weight [outputs, inputs]; sizes and bits from the shapes, and how zero points are meant as it is declared."""
    declared = stored.declared
    names = [f"{prefix}.{part}" for part in ("qzeros", "scales", "g_idx")]
    if declared.method != "gptq" and not stored.part(*(names if codes.dtype == "I32" else names[:1])):
        return None
    _refuse(codes, declared)
    zeros, scales, order = stored.needed(names[0]), stored.needed(names[1]), stored.part(names[2])
    bits, inputs = _bits_and_inputs(codes, zeros, scales, order, declared)
    groups, outputs = scales.shape
    if order:
        block = declared_group(inputs, groups, declared) or -(-inputs // groups)
    else:
        block = group_size(inputs, groups, declared)
    version, remarks, otherwise = (_declared_version if declared.method == "gptq" else _seen_version)(
        bits, zeros, stored
    )
    spans = tuple(span for part in (codes, zeros, scales, order) if part for span in part.spans)
    scheme: Gptq | GptqRows = Gptq(bits, block, scales.dtype, version)
    shape = outputs, inputs
    if why := rows_are_inputs(declared, prefix):
        scheme, shape = GptqRows(bits, block, scales.dtype, version), (inputs, outputs)
        remarks = (*remarks, why)
    return Found(Tensor(f"{prefix}.weight", f"gptq-{bits}bit", shape, spans, scheme), remarks, otherwise)


def _refuse(codes: Tensor, declared: Declared) -> None:
    """Layouts that kernels want, by their names: the same parts, with the codes in other places."""
    expected = " or ".join(FORMATS)
    if declared.method in OTHERS:
        raise Undecodable(f"the layout of {declared.method}", expected)
    if declared.method == "gptq" and declared.fields.get("is_marlin_format"):
        raise Undecodable("the layout of marlin", expected)
    if declared.method == "gptq" and _format(declared) not in FORMATS:
        raise Undecodable(f"the layout that its checkpoint_format calls {_format(declared)[:40]!r}", expected)
    if codes.dtype != "I32":
        raise Undecodable(f"codes packed in words of {codes.dtype} (pack_dtype)", "I32")
    if declared.method == "gptq" and (declared.fields.get("pack_dtype") or "int32") != "int32":
        raise Undecodable("words of another size than I32 are declared (pack_dtype)", "int32")


def _format(declared: Declared) -> str:
    """The declared checkpoint_format in lower case; "gptq" where there is none, as before there were two."""
    text = declared.fields.get("checkpoint_format") or declared.fields.get("format") or "gptq"
    return text.lower() if isinstance(text, str) else ""


def _bits_and_inputs(
    codes: Tensor, zeros: Tensor, scales: Tensor, order: Tensor | None, declared: Declared
) -> tuple[int, int]:
    """Bits of a code and inputs of the weight, from shapes that must all fit each other; a last word may be padded."""
    (rows, columns), (groups, outputs) = sizes(codes, "I32"), sizes(scales, *SCALES)
    zero_rows, zero_columns = sizes(zeros, "I32")
    if order and (order.dtype != "I32" or len(order.shape) != 1):
        raise Undecodable(f"its g_idx is {order.dtype} of shape {list(order.shape)}", "I32 of one axis")
    if order:
        in_order(order)
    fits = {}
    for bits in BITS:
        inputs = order.shape[0] if order else rows * WORD // bits if rows * WORD % bits == 0 else 0
        if 0 < inputs < 2**31 and rows == -(-inputs * bits // WORD) and zero_columns == -(-outputs * bits // WORD):
            fits[bits] = inputs
    if columns != outputs or zero_rows != groups or not fits:
        parts = [part for part in (codes, zeros, scales, order) if part]
        shapes = ", ".join(f"{part.name.rpartition('.')[2]} {list(part.shape)}" for part in parts)
        raise Undecodable(f"shapes that do not fit each other: {shapes}", "codes of 2, 3, 4 or 8 bits")
    asked = declared.number("bits")
    if len(fits) > 1 and asked in fits:
        fits = {asked: fits[asked]}
    if len(fits) > 1:
        found = f"{' or '.join(map(str, fits))} bits fit the shapes"
        raise Undecodable(found, "one of them", "Say bits in the quantization_config of its config.json")
    return fits.popitem()


def _declared_version(bits: int, zeros: Tensor, stored: Stored) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """How zero points are stored, as declared, no remark, and what their first words say otherwise."""
    declared, head = stored.declared, stored.content.get(zeros.name, b"")
    version, seen = FORMATS[_format(declared)], _told_by(head, bits)
    if seen and seen != version:
        word, step = int.from_bytes(head[:4], "little"), "higher" if version == V1 else "lower"
        otherwise = (
            f"{declared.file} declares {_format(declared)}, but zero points begin with words of 0x{word:08X}, those of "
            f"symmetric {_named(seen)}: read as declared, each is one {step} than that"
        )
        return version, (), (otherwise,)
    return V1_WORDS if version == V1 and bits != 3 and _by_gptqmodel(declared) else version, (), ()


def _seen_version(bits: int, zeros: Tensor, stored: Stored) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """How zero points are stored, from the first words of those of a few tensors, and a remark: nothing else tells."""
    heads = [head for name, head in stored.content.items() if f".{name}".endswith(".qzeros")]
    match [one for one in (V1, V2) if one in {_told_by(head, bits) for head in heads}]:
        case [version]:
            remark = f"no config declares it GPTQ: its zero points are read as those of symmetric {_named(version)}"
            return version, (remark,), ()
    raise Undecodable(
        "nothing declares whether zero points are stored as they are (gptq_v2) or one less (gptq)",
        "a quantize_config.json with checkpoint_format",
        "Put one beside the weights, or compare what is stored with --raw",
    )


def _told_by(head: bytes, bits: int) -> str | None:
    r"""The version in which these are zero points of a symmetric weight, all 2^(bits-1), or one less in v1.

    >>> _told_by(b"\x77" * 64, 4), _told_by(b"\x88" * 64, 4), _told_by(b"\x78" * 64, 4)
    ('v1', 'v2', None)
    """
    for version, zero in ((V1, 2 ** (bits - 1) - 1), (V2, 2 ** (bits - 1))):
        period = sum(zero << place for place in range(0, 3 * WORD, bits)).to_bytes(12, "little")
        if head and head == (period * len(head))[: len(head)]:
            return version
    return None


def _named(version: str) -> str:
    return next(name for name, one in FORMATS.items() if one == version)


def _by_gptqmodel(declared: Declared) -> bool:
    """Whether GPTQModel wrote it: `meta` lists the quantisers with their versions."""
    meta = declared.fields.get("meta")
    names = meta.get("quantizer") if isinstance(meta, dict) else None
    every = names if isinstance(names, list) else [names]
    return any(isinstance(name, str) and name.startswith("gptqmodel") for name in every)
