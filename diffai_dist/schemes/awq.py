"""AWQ as AutoAWQ's gemm kernels want it: codes of 4 bits, eight outputs in a word, [inputs, outputs / 8]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffai_dist.checkpoint import Tensor
from diffai_dist.schemes.grouped import SCALES, Whole, group_size, scales_of, sizes
from diffai_dist.schemes.loops import Loop
from diffai_dist.schemes.stored import Declared, Found, Stored, Undecodable

EIGHT = 8  # codes in a word
MODES = ("", "gemm")


@dataclass(frozen=True, slots=True)
class Awq(Whole):
    """W[o, i] = (code - zero point) * scale of output o in the group of input i; in float32, all but the product exact.

    Spans: codes, zero points, scales. Of eight outputs in a row, those with even numbers lie in the lower half of their
    word, those with odd ones in the upper: from the lowest bits on 0 2 4 6 1 3 5 7.
    """

    block: int  # inputs that share a scale
    scales: str  # their dtype

    bits = 4

    def decode(self, tensor: Tensor, parts: Sequence[np.ndarray], first: int, stop: int, out: np.ndarray) -> None:
        """Turn the words of the run, then decode row by row: a row is one place in each of its words."""
        if stop <= first:
            return
        outputs, inputs = tensor.shape
        low, high = first // inputs, -(-stop // inputs)
        begin, end = (first - low * inputs, stop - low * inputs) if high == low + 1 else (0, inputs)
        scales = scales_of(parts[2], self.scales, outputs, low, high)
        zeros = zero_points(parts[1].view(np.uint32).reshape(len(scales), -1), low, high)
        words = parts[0].view(np.uint32).reshape(inputs, -1)[begin:end, low // EIGHT : -(-high // EIGHT)]
        turned = np.ascontiguousarray(words.T)
        _rows(turned, zeros, scales, self.block, inputs, begin, low, first, out.view(np.float32))


def zero_points(words: np.ndarray, low: int, high: int) -> np.ndarray:
    """float32 [groups, high - low]: those of outputs [low, high) in uint32 [groups, words].

    >>> zero_points(np.array([[0x76543210]], np.uint32), 0, 8)
    array([[0., 4., 1., 5., 2., 6., 3., 7.]], dtype=float32)
    """
    outputs = np.arange(low, high)
    shifts = (outputs % EIGHT // 2 * 4 + outputs % 2 * 16).astype(np.uint32)
    return (words.take(outputs // EIGHT, axis=1) >> shifts & np.uint32(15)).astype(np.float32)


@Loop
def _rows(
    words: np.ndarray,
    zeros: np.ndarray,
    scales: np.ndarray,
    group: int,
    width: int,
    begin: int,
    low: int,
    first: int,
    out: np.ndarray,
) -> None:
    """Run by run of one row in one group: there scale and zero point are constants, and the loop takes vectors."""
    at = 0
    while at < out.size:
        row, column = divmod(first + at, width)
        size = min(min((column // group + 1) * group, width) - column, out.size - at)
        zero, scale = zeros[column // group, row - low], scales[column // group, row - low]
        shift = np.uint32(row % 8 // 2 * 4 + row % 2 * 16)
        line, run = words[row // 8 - low // 8, column - begin : column - begin + size], out[at : at + size]
        for i in range(size):
            run[i] = (np.float32(np.int32(line[i] >> shift & np.uint32(15))) - zero) * scale
        at += size


def find(prefix: str, codes: Tensor, stored: Stored) -> Found | None:
    """The weight [outputs, inputs], if the codes lie eight outputs in a word, which GPTQ's never do."""
    declared, scales = stored.declared, stored.part(f"{prefix}.scales")
    if declared.method != "awq" and not (scales and _eight_in_a_word(codes, scales)):
        return None
    if scales and codes.shape[1:] == scales.shape[1:] and not _mode(declared).startswith("gemv"):
        return None  # whatever is declared, it is GPTQ's
    _refuse(prefix, codes, stored)
    zeros, scales = stored.needed(f"{prefix}.qzeros"), stored.needed(f"{prefix}.scales")
    (inputs, columns), (groups, outputs) = sizes(codes, "I32"), sizes(scales, *SCALES)
    if columns * EIGHT != outputs or sizes(zeros, "I32") != (groups, columns):
        shapes = f"qweight {list(codes.shape)}, qzeros {list(zeros.shape)}, scales {list(scales.shape)}"
        raise Undecodable(f"shapes that do not fit each other: {shapes}", "codes of 4 bits, eight outputs in a word")
    scheme = Awq(group_size(inputs, groups, declared), scales.dtype)
    spans = (*codes.spans, *zeros.spans, *scales.spans)
    tensor = Tensor(f"{prefix}.weight", "awq-4bit", (outputs, inputs), spans, scheme)
    unwanted = (f"{declared.file} declares no zero points, but they are stored, and used",)
    return Found(tensor, otherwise=unwanted if declared.fields.get("zero_point") is False else ())


def _eight_in_a_word(codes: Tensor, scales: Tensor) -> bool:
    return len(codes.shape) == len(scales.shape) == 2 and codes.shape[1] * EIGHT == scales.shape[1]


def _refuse(prefix: str, codes: Tensor, stored: Stored) -> None:
    """Layouts of other kernels, by their names, and what no library writes."""
    mode = _mode(stored.declared)
    if stored.declared.method == "awq" and mode not in MODES:
        raise Undecodable(f"AWQ's layout {mode[:40]!r}", "gemm")
    if codes.dtype == "I16":
        raise Undecodable("AWQ's layout 'gemv_fast', with words of 16 bits", "gemm, with words of I32")
    if stored.declared.method == "paroquant":
        raise Undecodable("the layout of paroquant, whose weights are rotated", "AWQ's gemm")
    if stored.part(f"{prefix}.g_idx"):
        raise Undecodable("a g_idx beside codes packed as AWQ's", "none")


def _mode(declared: Declared) -> str:
    """The declared layout in lower case; "" where there is none."""
    names = ("version", "checkpoint_format", "format")
    text = next((declared.fields[name] for name in names if declared.fields.get(name)), "")
    return text.lower() if isinstance(text, str) else "unknown"
