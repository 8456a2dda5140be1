"""The block types of ggml, as GGUF stores them: 32 to 256 elements of a row with their scales, then the next."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.dtypes import DTYPES
from diffai_dist.errors import UnknownScheme
from diffai_dist.schemes import ggml_iq, ggml_loops, ggml_ternary
from diffai_dist.schemes.ggml_scales import Scales, halved_floats, halved_powers, halves, scattered
from diffai_dist.schemes.stored import Undecodable
from diffai_dist.storage import redact


class Block(NamedTuple):
    """Elements and bytes of a block; bits of a code, and how many elements share a scale; how it is decoded."""

    elements: int
    nbytes: int
    bits: int
    shared: int
    loop: Callable[..., None]
    scales: Scales


# Sizes are gguf.constants.GGML_QUANT_SIZES of gguf 0.19, without what is never stored.
BLOCKS = {
    "Q4_0": Block(32, 18, 4, 32, ggml_loops.q4_0, halves(0)),
    "Q4_1": Block(32, 20, 4, 32, ggml_loops.q4_1, halves(0, 2)),
    "Q5_0": Block(32, 22, 5, 32, ggml_loops.q5_0, halves(0)),
    "Q5_1": Block(32, 24, 5, 32, ggml_loops.q5_1, halves(0, 2)),
    "Q8_0": Block(32, 34, 8, 32, ggml_loops.q8_0, halves(0)),
    "Q2_K": Block(256, 84, 2, 16, ggml_loops.q2_k, halves(80, 82)),
    "Q3_K": Block(256, 110, 3, 16, ggml_loops.q3_k, halves(108)),
    "Q4_K": Block(256, 144, 4, 32, ggml_loops.q4_k, halves(0, 2)),
    "Q5_K": Block(256, 176, 5, 32, ggml_loops.q5_k, halves(0, 2)),
    "Q6_K": Block(256, 210, 6, 16, ggml_loops.q6_k, halves(208)),
    "IQ2_XXS": Block(256, 66, 2, 32, ggml_iq.iq2_xxs, halves(0)),
    "IQ2_XS": Block(256, 74, 2, 16, ggml_iq.iq2_xs, halves(0)),
    "IQ2_S": Block(256, 82, 2, 16, ggml_iq.iq2_s, halves(0)),
    "IQ3_XXS": Block(256, 98, 3, 32, ggml_iq.iq3_xxs, halves(0)),
    "IQ3_S": Block(256, 110, 3, 32, ggml_iq.iq3_s, halves(0)),
    "IQ1_S": Block(256, 50, 1, 32, ggml_iq.iq1_s, halves(0)),
    "IQ1_M": Block(256, 56, 1, 16, ggml_iq.iq1_m, scattered),
    "IQ4_NL": Block(32, 18, 4, 32, ggml_loops.iq4_nl, halves(0)),
    "IQ4_XS": Block(256, 136, 4, 32, ggml_loops.iq4_xs, halves(0)),
    "TQ1_0": Block(256, 54, 2, 256, ggml_ternary.tq1_0, halves(52)),
    "TQ2_0": Block(256, 66, 2, 256, ggml_ternary.tq2_0, halves(64)),
    "MXFP4": Block(32, 17, 4, 32, ggml_loops.mxfp4, halved_powers),
    "NVFP4": Block(64, 36, 4, 16, ggml_loops.nvfp4, halved_floats),
    "Q1_0": Block(128, 18, 1, 128, ggml_ternary.q1_0, halves(0)),
}

INSTALL = "Install the package gguf where this runs, `pip install 'diffai-dist[gguf]'`, or compare with --raw"


@dataclass(frozen=True, slots=True)
class Ggml:
    """Rows of whole blocks of a type, or of plain values, in the order of the file or with heads to be put in order.

    With `heads`, the rows of each head are stored in llama.cpp's order of rotary pairs: of row j and row j + d/2 of d
    next to each other. With `added`, the converter added that number to the values.
    """

    type: str  # a block type, or a plain dtype
    heads: int = 0
    added: int = 0

    @property
    def values(self) -> str:
        """float32 for blocks; plain values keep their dtype."""
        return "F32" if self.type in BLOCKS else self.type

    @property
    def whole(self) -> bool:
        """A run of a head's rows is every other row of what is stored, and heads are no leaves."""
        return self.heads > 0

    @property
    def bits(self) -> int:
        """Bits of a code, 0 for plain values."""
        return BLOCKS[self.type].bits if self.type in BLOCKS else 0

    @property
    def digits(self) -> int:
        """Significant bits of a code that is a float."""
        return 2 if self.type in ("MXFP4", "NVFP4") else 0

    @property
    def block(self) -> int:
        """Values that share a scale."""
        return BLOCKS[self.type].shared if self.type in BLOCKS else 0

    def spans(self, tensor: Tensor, first: int, stop: int) -> tuple[Span, ...]:
        """The blocks that hold the run; all of them where rows have another order."""
        if self.whole:
            return tensor.spans
        return (tensor.spans[0].part(*_bytes_of(self.type, first, stop)),)

    def decode(self, tensor: Tensor, parts: Sequence[np.ndarray], first: int, stop: int, out: np.ndarray) -> None:
        """Put rows in order, decode their blocks, and take off what was added."""
        data = self._in_order(tensor, parts[0], first, stop) if self.heads else parts[0]
        if self.type not in BLOCKS:
            out[:] = data
        elif stop > first:
            _decode(self.type, data, first, stop, out.view(np.float32), redact(tensor.spans[0].source.url))
        if self.added:
            values = out.view(np.float32)
            values -= np.float32(self.added)

    def _in_order(self, tensor: Tensor, data: np.ndarray, first: int, stop: int) -> np.ndarray:
        """The blocks of a run, gathered row by row."""
        height = tensor.shape[0]
        width = tensor.elements // height
        low, high = first // width, -(-stop // width)
        rows: np.ndarray = data.reshape(height, -1)[stored_rows(low, high, height // self.heads)].reshape(-1)
        return rows[slice(*_bytes_of(self.type, first - low * width, stop - low * width))]


def stored_rows(low: int, high: int, head: int) -> np.ndarray:
    """Where rows [low, high) of a model lie in llama.cpp's order, with heads of so many rows, an even number.

    The inverse of LlamaModel.permute in its converter: `w.reshape(heads, 2, head // 2, -1).swapaxes(1, 2)`.

    >>> stored_rows(0, 8, 4)
    array([0, 2, 1, 3, 4, 6, 5, 7])
    """
    rows = np.arange(low, high)
    inside = rows % head
    found: np.ndarray = rows - inside + inside % (head // 2) * 2 + inside // (head // 2)
    return found


def block_of(kind: str) -> tuple[int, int]:
    """Elements and bytes of a block; a plain value is a block of its own."""
    return BLOCKS[kind][:2] if kind in BLOCKS else (1, DTYPES[kind].bits // 8)


def lacks_package(kind: str) -> bool:
    """Whether nothing here knows the grid of a type: the package gguf has it."""
    return kind in ggml_iq.GRIDS and not importlib.util.find_spec("gguf")


def check_decodable(kind: str) -> None:
    """Raise Undecodable for blocks that nothing here decodes."""
    if lacks_package(kind):
        raise Undecodable(f"{kind} blocks need the package gguf", hint=INSTALL)


def _bytes_of(kind: str, first: int, stop: int) -> tuple[int, int]:
    """First byte, and last + 1, of the blocks of elements [first, stop)."""
    elements, nbytes = block_of(kind)
    return first // elements * nbytes, -(-stop // elements) * nbytes


def _decode(kind: str, data: np.ndarray, first: int, stop: int, values: np.ndarray, where: str) -> None:
    """Values [first, stop) out of the blocks that hold them; runs that cut a block are decoded aside."""
    elements, nbytes = block_of(kind)
    blocks, lead = data.reshape(-1, nbytes), first % elements
    whole = not lead and values.size % elements == 0
    decoded = values.reshape(-1, elements) if whole else np.empty((len(blocks), elements), np.float32)
    BLOCKS[kind].loop(blocks, BLOCKS[kind].scales(blocks), *_tables(kind, where), decoded)
    if not whole:
        values[:] = decoded.reshape(-1)[lead : lead + stop - first]


def _tables(kind: str, where: str) -> tuple[np.ndarray, ...]:
    """What a loop looks codes up in; this machine may be another than the one that opened the file."""
    if kind not in ggml_iq.GRIDS:
        return ()
    try:
        return ggml_iq.tables(kind)
    except ImportError as error:
        raise UnknownScheme(where, f"{kind} blocks need the package gguf", hint=INSTALL) from error
