"""How codes become values: which byte ranges a run of elements needs, and where in them it begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.schemes.plain import PlainScheme
from diffai_dist.schemes.transposed import TransposedScheme


class Scheme(Protocol):
    """The seam for encodings: plain values today, quantised weights with scales and zero points beside it.

    Elements are counted as the tensor's decoder counts them: values, or bytes for dtypes without a decoder. `whole`
    says that any run of elements needs all bytes: they are read once, and runs are cut from them.
    """

    whole: bool

    def spans(self, tensor: Tensor, first: int, stop: int) -> tuple[Span, ...]:
        """The byte ranges that elements [first, stop) need, in scheme order, rounded outward to whole bytes.

        A scheme that cannot be split returns all spans of the tensor for any run.
        """
        ...

    def lead_bits(self, tensor: Tensor, first: int) -> int:
        """How many bits of the first range precede element `first`."""
        ...

    def cut(self, tensor: Tensor, data: np.ndarray, first: int, stop: int) -> np.ndarray:
        """The bytes of elements [first, stop) out of all of the tensor; uint8. Only asked of a scheme that is whole."""
        ...


SCHEMES: Mapping[str, Scheme] = {"plain": PlainScheme(), "transposed": TransposedScheme()}
