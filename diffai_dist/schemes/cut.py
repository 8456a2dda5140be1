"""A run of the values of a tensor as a tensor of its own: a part of what is fused or stacked, decoded as inside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from diffai_dist.checkpoint import Scheme, Span, Tensor


@dataclass(frozen=True, slots=True)
class Cut:
    """Elements from `first` on of a tensor of that scheme and shape, which is not whole: each run has its own bytes."""

    scheme: Scheme
    shape: tuple[int, ...]
    first: int
    of: tuple[Span, ...] = field(repr=False)  # of all of that tensor; a key must not change with where it lies

    whole = False

    @property
    def values(self) -> str:
        """What the tensor is decoded to."""
        return self.scheme.values

    @property
    def bits(self) -> int:
        """Of a code of the tensor."""
        return self.scheme.bits

    @property
    def digits(self) -> int:
        """Of a code of the tensor."""
        return self.scheme.digits

    @property
    def block(self) -> int:
        """How many values share a scale in the tensor."""
        return self.scheme.block

    def spans(self, tensor: Tensor, first: int, stop: int) -> tuple[Span, ...]:
        """What the run needs in the tensor that this is a part of."""
        return self.scheme.spans(self._uncut(tensor), self.first + first, self.first + stop)

    def decode(self, tensor: Tensor, parts: Sequence[np.ndarray], first: int, stop: int, out: np.ndarray) -> None:
        """Decode the run as one of that tensor."""
        self.scheme.decode(self._uncut(tensor), parts, self.first + first, self.first + stop, out)

    def _uncut(self, tensor: Tensor) -> Tensor:
        return Tensor(tensor.name, tensor.dtype, self.shape, self.of, self.scheme)


def part_of(tensor: Tensor, name: str, first: int, stop: int, shape: tuple[int, ...]) -> Tensor:
    """Elements [first, stop) of a tensor whose scheme is not whole, in that shape, with the bytes that they need."""
    if tensor.scheme is None:
        raise ValueError("values that are stored as they are need no scheme")
    scheme = Cut(tensor.scheme, tensor.shape, first, tensor.spans)
    return Tensor(name, tensor.dtype, shape, tensor.ranges(first, stop), scheme)
