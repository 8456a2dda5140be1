"""Values stored as they are, one after the other, in one byte range."""

from __future__ import annotations

import numpy as np

from diffai_dist.checkpoint import Span, Tensor


class PlainScheme:
    """Any dtype of the container, F4 included: two elements share a byte, so a run may begin inside one."""

    whole = False

    def spans(self, tensor: Tensor, first: int, stop: int) -> tuple[Span, ...]:
        """One range, rounded outward to whole bytes."""
        (whole,) = tensor.spans
        bits = tensor.decoder.bits
        return (Span(whole.source, whole.start + first * bits // 8, whole.start - (-stop * bits // 8)),)

    def lead_bits(self, tensor: Tensor, first: int) -> int:
        """4 for an F4 run that begins at an odd element, else 0."""
        return first * tensor.decoder.bits % 8

    def cut(self, tensor: Tensor, data: np.ndarray, first: int, stop: int) -> np.ndarray:
        """Its own bytes; of sub-byte dtypes it is not asked."""
        width = tensor.decoder.bits // 8
        return data[first * width : stop * width]
