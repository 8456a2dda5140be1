"""A matrix that is stored the other way round: rows of what is compared are columns of what is stored."""

from __future__ import annotations

import dataclasses

import numpy as np

from diffai_dist.checkpoint import Span, Tensor

MOST_BYTES = 2**30  # one of them is in memory as a whole, in each thread that measures one


def transposed(tensor: Tensor) -> Tensor | None:
    """The matrix as its transpose; None where it is none, too large, or of elements that share bytes."""
    usable = len(tensor.shape) == 2 and tensor.scheme == "plain" and tensor.decoder.bits % 8 == 0
    if not usable or tensor.nbytes > MOST_BYTES:
        return None
    return dataclasses.replace(tensor, shape=tensor.shape[::-1], scheme="transposed")


class TransposedScheme:
    """Any run of elements needs all bytes, from which it is cut."""

    whole = True

    def spans(self, tensor: Tensor, first: int, stop: int) -> tuple[Span, ...]:
        """All of the tensor."""
        return tensor.spans

    def lead_bits(self, tensor: Tensor, first: int) -> int:
        """None: what is cut begins with the first element."""
        return 0

    def cut(self, tensor: Tensor, data: np.ndarray, first: int, stop: int) -> np.ndarray:
        """The bytes, uint8, of elements [first, stop), in the order of the transpose.

        >>> tensor = Tensor("w", "U8", (3, 2), (), "transposed")
        >>> TransposedScheme().cut(tensor, np.arange(6, dtype=np.uint8), 1, 5)
        array([3, 1, 4, 2], dtype=uint8)
        """
        rows, columns = tensor.shape
        width = tensor.decoder.bits // 8
        stored = data.reshape(columns, rows, width)
        top = first // columns
        block = np.ascontiguousarray(stored[:, top : -(-stop // columns)].transpose(1, 0, 2)).reshape(-1)
        return block[(first - top * columns) * width : (stop - top * columns) * width]
