"""bitsandbytes 8 bit (LLM.int8): a scale for each row, which is the row's largest magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.dtypes import DTYPES
from diffai_dist.schemes.declared import refuse_turned
from diffai_dist.schemes.loops import Loop, floats
from diffai_dist.schemes.scales import in_order
from diffai_dist.schemes.stored import Found, Stored, Undecodable

# weight_format: in which order a kernel wanted the codes. What is saved today is always in rows.
FORMATS = {0: "row", 1: "col32", 2: "col_turing", 3: "col_ampere"}
SCALES = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class EightBit:
    """value = code * scale of its row * float32(1/127), rounded after each step as in bitsandbytes.

    Spans: codes, scales.
    """

    scales: str  # dtype of the scales
    block: int  # values in a row

    values = "F32"
    whole = False
    bits = 8
    digits = 0

    def spans(self, tensor: Tensor, first: int, stop: int) -> tuple[Span, ...]:
        """The codes of the run and the scales of its rows."""
        (codes, scales), width = tensor.spans, DTYPES[self.scales].bits // 8
        return codes.part(first, stop), scales.part(first // self.block * width, -(-stop // self.block) * width)

    def decode(self, tensor: Tensor, parts: Sequence[np.ndarray], first: int, stop: int, out: np.ndarray) -> None:
        """Multiply each code by the scale of its row."""
        scales = floats(parts[1], self.scales)
        _multiply(parts[0].view(np.int8), scales, self.block, first, out.view(np.float32))


@Loop
def _multiply(codes: np.ndarray, scales: np.ndarray, width: int, first: int, out: np.ndarray) -> None:
    """Row by row."""
    at, row = 0, 0
    left = width - first % width
    while at < out.size:
        scale, end = scales[row], min(at + left, out.size)
        for i in range(at, end):
            out[i] = np.float32(codes[i]) * scale * np.float32(1 / 127)
        at, row, left = end, row + 1, width


def find(prefix: str, codes: Tensor, stored: Stored) -> Found | None:
    """The weight, if its SCB lies beside it."""
    scale = stored.part(f"{prefix}.SCB")
    if scale is None:
        return None
    refuse_turned(stored.declared, prefix)
    if len(codes.shape) != 2 or codes.elements == 0:
        raise Undecodable(f"its codes have shape {list(codes.shape)}", "rows and columns")
    height, width = codes.shape
    if scale.dtype not in SCALES or scale.shape not in ((height,), (height, 1), (1, height)):
        raise Undecodable(f"its SCB is {scale.dtype} {list(scale.shape)}", f"F32 [{height}]")
    _check_format(stored.part(f"{prefix}.weight_format"), stored)
    in_order(codes, scale)
    scheme = EightBit(scale.dtype, width)
    return Found(Tensor(f"{prefix}.weight", "bnb-int8", codes.shape, (*codes.spans, *scale.spans), scheme))


def _check_format(told: Tensor | None, stored: Stored) -> None:
    """Raise Undecodable unless codes lie in rows, as where no format is stored."""
    if told is None:
        return
    if told.dtype != "U8" or told.elements != 1:
        raise Undecodable(f"its weight_format is {told.dtype} {list(told.shape)}", "U8 []")
    if code := stored.content[told.name][0]:
        raise Undecodable(f"codes in the order {FORMATS.get(code, code)}, which is not read", FORMATS[0])
