"""Values in another order than that of their shape: a transpose, a Fortran array, a view of a larger storage."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffai_dist.checkpoint import Span, Tensor

MOST_BYTES = 2**30  # one of them is in memory as a whole, in each thread that measures one


@dataclass(frozen=True, slots=True)
class Strided:
    """Elements of dtype `values` at `strides`, in elements and none negative, from the first byte of the span."""

    values: str
    strides: tuple[int, ...]

    bits = digits = block = 0  # no codes

    @property
    def whole(self) -> bool:
        """Rows of what is compared are no runs of what is stored."""
        return True

    def spans(self, tensor: Tensor, first: int, stop: int) -> tuple[Span, ...]:
        """All of the tensor."""
        return tensor.spans

    def decode(self, tensor: Tensor, parts: Sequence[np.ndarray], first: int, stop: int, out: np.ndarray) -> None:
        """Copy elements [first, stop) in the order of the shape.

        >>> tensor = Tensor("w", "U8", (3, 2), (), Strided("U8", (1, 3)))
        >>> out = np.empty(4, np.uint8)
        >>> tensor.scheme.decode(tensor, [np.arange(6, dtype=np.uint8)], 1, 5, out)
        >>> out
        array([3, 1, 4, 2], dtype=uint8)
        """
        kind = np.dtype(f"V{tensor.decoder.bits // 8}")
        stored = parts[0][: parts[0].size // kind.itemsize * kind.itemsize].view(kind)
        steps = [step * kind.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(stored, tensor.shape, steps, writeable=False)
        row = max(tensor.elements // tensor.shape[0], 1)
        top = first // row
        rows = np.ascontiguousarray(view[top : -(-stop // row)]).reshape(-1)
        out.view(kind)[:] = rows[first - top * row : stop - top * row]


def transposed(tensor: Tensor) -> Tensor | None:
    """The matrix as its transpose; None where it is none, too large, or of elements that share bytes."""
    usable = len(tensor.shape) == 2 and tensor.scheme is None and tensor.decoder.bits % 8 == 0
    if not usable or tensor.nbytes > MOST_BYTES:
        return None
    return dataclasses.replace(tensor, shape=tensor.shape[::-1], scheme=Strided(tensor.dtype, (1, tensor.shape[1])))
