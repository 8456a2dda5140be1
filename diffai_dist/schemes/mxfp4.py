"""MXFP4: codes E2M1 and a power of two for 32 columns; of compressed-tensors, DeepSeek-V4, and gpt-oss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.schemes.blocks import Blocks
from diffai_dist.schemes.fp8 import POWERS
from diffai_dist.schemes.loops import Loop, table
from diffai_dist.schemes.scales import groups_of, in_order, refuse_undone
from diffai_dist.schemes.stored import Found, Stored, Undecodable

GROUP = 32
BLOCKS = Blocks("F4", "F8_E8M0", 1, GROUP, 4)


def find_packed(prefix: str, codes: Tensor, stored: Stored) -> Found | None:
    """The weight as compressed-tensors packs it; without scales that are powers of two it is no MXFP4."""
    scale = stored.part(f"{prefix}.weight_scale")
    if scale is None or scale.dtype not in POWERS:
        return None
    refuse_undone(prefix, stored)
    if scale.shape == groups_of(codes.shape, 24) and not any(width % 24 for width in codes.shape[-1:]):
        raise Undecodable("MXFP6, which is not decoded", "MXFP4 or NVFP4")
    return _weight(f"{prefix}.weight", codes, scale, stored)


def find_experts(prefix: str, codes: Tensor, stored: Stored) -> Found | None:
    """The weight of an expert of DeepSeek-V4: two codes in a byte that is declared as I8, scales in F8_E8M0."""
    scale = stored.part(f"{prefix}.scale", f"{prefix}.weight_scale_inv")
    return _weight(f"{prefix}.weight", codes, scale, stored) if scale and scale.dtype == "F8_E8M0" else None


def find_stacked(name: str, codes: Tensor, stored: Stored) -> Found | None:
    """All experts of a layer of gpt-oss: each matrix is the transpose of what transformers stores unquantised."""
    found = _grouped(name, codes, stored, f"{name}_scales")
    if found is None:
        return None
    *stack, rows, columns = found.shape
    return Found(Tensor(name, "mxfp4", (*stack, columns, rows), found.spans, Transposed(rows, columns)))


def find_original(name: str, codes: Tensor, stored: Stored) -> Found | None:
    """The same in the folder `original/`, where the unquantised matrices are not transposed."""
    found = _grouped(name, codes, stored, f"{name}.scales")
    return Found(found) if found else None


def _grouped(name: str, codes: Tensor, stored: Stored, scales: str) -> Tensor | None:
    """Codes [experts, rows, groups, 16] with their scales, as [experts, rows, columns]."""
    scale = stored.part(scales)
    if len(codes.shape) != 4 or codes.shape[-1] * 2 != GROUP or (scale is None and stored.declared.method != "mxfp4"):
        return None
    scale = stored.needed(scales)
    if scale.dtype not in POWERS or scale.shape != codes.shape[:-1] or not codes.elements:
        raise Undecodable(f"its scales are {scale.dtype} {list(scale.shape)}", f"U8 {list(codes.shape[:-1])}")
    in_order(codes, scale)
    shape = (*codes.shape[:2], codes.shape[2] * GROUP)
    return Tensor(name, "mxfp4", shape, (*codes.spans, *scale.spans), BLOCKS)


def _weight(name: str, codes: Tensor, scale: Tensor, stored: Stored) -> Found:
    shape = (*codes.shape[:-1], codes.shape[-1] * 2) if codes.shape else ()
    expected = groups_of(shape, GROUP)
    if len(shape) < 2 or not codes.elements or scale.shape != expected:
        raise Undecodable(f"its scales are {scale.dtype} {list(scale.shape)}", f"U8 {list(expected)}")
    in_order(codes, scale)
    return Found(Tensor(name, "mxfp4", shape, (*codes.spans, *scale.spans), BLOCKS))


@dataclass(frozen=True, slots=True)
class Transposed:
    """MXFP4 matrices of so many rows and columns, each compared as its transpose. Spans: codes, scales."""

    rows: int
    columns: int

    values = "F32"
    whole = True
    bits, digits, block = 4, 2, GROUP

    def spans(self, tensor: Tensor, first: int, stop: int) -> tuple[Span, ...]:
        """All of both."""
        return tensor.spans

    def decode(self, tensor: Tensor, parts: Sequence[np.ndarray], first: int, stop: int, out: np.ndarray) -> None:
        """Look up codes and scales column by column."""
        codes, scales = parts
        values, factors = table("F4"), table("F8_E8M0")
        _columns(codes, values, scales, factors, self.rows, self.columns, first, out.view(np.float32))


@Loop
def _columns(
    codes: np.ndarray,
    values: np.ndarray,
    scales: np.ndarray,
    factors: np.ndarray,
    rows: int,
    columns: int,
    first: int,
    out: np.ndarray,
) -> None:
    """Tiles of 64 rows and the 32 columns of a group: their bytes stay in the cache while all columns are written."""
    line, last = first // rows, (first + out.size - 1) // rows
    while line <= last:
        matrix, column = divmod(line, columns)
        stop = min(last + 1, line - column % 32 + 32)
        for top in range(matrix * rows, (matrix + 1) * rows, 64):
            for one in range(line, stop):
                place = (one - matrix) * rows - first  # of a column in `out`, less the rows of the matrices before it
                inside = one - matrix * columns
                start, end = max(top, -place), min(min(top + 64, (matrix + 1) * rows), out.size - place)
                for row in range(start, end):
                    code = (codes[(row * columns + inside) >> 1] >> ((inside & 1) * 4)) & 15
                    out[place + row] = values[code] * factors[scales[(row * columns + inside) >> 5]]
        line = stop
