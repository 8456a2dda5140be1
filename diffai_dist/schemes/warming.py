"""Compile every decoder, for images whose containers keep nothing: their cache on disk is made when they are built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from diffai_dist.checkpoint import Scheme, Span, Tensor
from diffai_dist.schemes.awq import Awq
from diffai_dist.schemes.blocks import Blocks
from diffai_dist.schemes.bnb4 import FourBit
from diffai_dist.schemes.bnb8 import EightBit
from diffai_dist.schemes.ggml import BLOCKS, Ggml, lacks_package
from diffai_dist.schemes.gptq import Gptq
from diffai_dist.schemes.gptq_rows import GptqRows
from diffai_dist.schemes.grouped import V2
from diffai_dist.schemes.mxfp4 import Transposed
from diffai_dist.schemes.words import Packed
from diffai_dist.storage import Source

# A weight of 8 x 32 zeros, and the bytes of each of its parts.
EXAMPLES: tuple[tuple[Scheme, tuple[int, ...]], ...] = (
    (Blocks("F8_E4M3", "F32", 1, 32, 8), (256, 32)),
    (Blocks("F4", "F8_E8M0", 1, 32, 4), (128, 8)),
    (Gptq(4, 32, "F16", V2), (128, 4, 16)),
    (GptqRows(4, 32, "F16", V2), (128, 16, 64)),
    (Awq(32, "F16"), (128, 4, 16)),
    (Packed(4, True, "F32", 1, 32), (128, 32)),
    (Packed(4, True, "F32", 1, 32, ordered=True), (128, 32, 128)),
    (FourBit(64, "F32"), (128, 16, 64)),
    (EightBit("F32", 32), (256, 32)),
)


def warm() -> None:
    """Decode a small weight of each scheme."""
    for scheme, shape, sizes in examples():
        tensor = Tensor("", "", shape, (Span(Source("", 0, ""), 0, 0),) * len(sizes), scheme)
        parts = [np.zeros(size, np.uint8) for size in sizes]
        scheme.decode(tensor, parts, 0, tensor.elements, np.empty(4 * tensor.elements, np.uint8))


def examples() -> Iterator[tuple[Scheme, tuple[int, ...], Sequence[int]]]:
    """Schemes that can be decoded here, each with the shape of a weight and the bytes of its parts."""
    for scheme, sizes in EXAMPLES:
        yield scheme, (8, 32), sizes
    yield Transposed(8, 32), (1, 32, 8), (128, 8)
    for kind, block in BLOCKS.items():
        if not lacks_package(kind):
            yield Ggml(kind), (1, 256), (256 // block.elements * block.nbytes,)
