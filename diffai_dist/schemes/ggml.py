"""The block types of ggml, as GGUF stores them: 32 to 256 elements of a row with their scales, then the next."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.dtypes import DTYPES
from diffai_dist.errors import UnknownScheme
from diffai_dist.schemes import ggml_loops
from diffai_dist.schemes.stored import Undecodable
from diffai_dist.storage import redact


class Block(NamedTuple):
    """Elements and bytes of a block; bits of a code, and how many elements share a scale."""

    elements: int
    nbytes: int
    bits: int
    shared: int


# gguf.constants.GGML_QUANT_SIZES of gguf 0.19, without what is never stored.
BLOCKS = {
    "Q4_0": Block(32, 18, 4, 32),
    "Q4_1": Block(32, 20, 4, 32),
    "Q5_0": Block(32, 22, 5, 32),
    "Q5_1": Block(32, 24, 5, 32),
    "Q8_0": Block(32, 34, 8, 32),
    "Q2_K": Block(256, 84, 2, 16),
    "Q3_K": Block(256, 110, 3, 16),
    "Q4_K": Block(256, 144, 4, 32),
    "Q5_K": Block(256, 176, 5, 32),
    "Q6_K": Block(256, 210, 6, 16),
    "IQ2_XXS": Block(256, 66, 2, 32),
    "IQ2_XS": Block(256, 74, 2, 16),
    "IQ2_S": Block(256, 82, 2, 16),
    "IQ3_XXS": Block(256, 98, 3, 32),
    "IQ3_S": Block(256, 110, 3, 32),
    "IQ1_S": Block(256, 50, 1, 32),
    "IQ1_M": Block(256, 56, 1, 16),
    "IQ4_NL": Block(32, 18, 4, 32),
    "IQ4_XS": Block(256, 136, 4, 32),
    "TQ1_0": Block(256, 54, 2, 256),
    "TQ2_0": Block(256, 66, 2, 256),
    "MXFP4": Block(32, 17, 4, 32),
    "NVFP4": Block(64, 36, 4, 16),
    "Q1_0": Block(128, 18, 1, 128),
}

# Decoded here, and where in a block its F16 scales lie; the others are decoded by the package gguf.
LOOPS: dict[str, tuple[Callable[[np.ndarray, np.ndarray, np.ndarray], None], tuple[int, ...]]] = {
    "Q4_0": (ggml_loops.q4_0, (0,)),
    "Q4_1": (ggml_loops.q4_1, (0, 2)),
    "Q5_0": (ggml_loops.q5_0, (0,)),
    "Q5_1": (ggml_loops.q5_1, (0, 2)),
    "Q8_0": (ggml_loops.q8_0, (0,)),
    "Q2_K": (ggml_loops.q2_k, (80, 82)),
    "Q3_K": (ggml_loops.q3_k, (108,)),
    "Q4_K": (ggml_loops.q4_k, (0, 2)),
    "Q5_K": (ggml_loops.q5_k, (0, 2)),
    "Q6_K": (ggml_loops.q6_k, (208,)),
    "IQ4_NL": (ggml_loops.iq4_nl, (0,)),
    "IQ4_XS": (ggml_loops.iq4_xs, (0,)),
    "MXFP4": (ggml_loops.mxfp4, ()),  # its scale is a power of two in the first byte
}

AT_ONCE = 65536  # elements that the package decodes together: it makes some ten arrays of that size
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


def check_decodable(kind: str) -> None:
    """Raise Undecodable for blocks that nothing here decodes."""
    if kind == "Q1_0":
        raise Undecodable(f"{kind} blocks, which the package gguf does not decode either")
    if kind in BLOCKS and kind not in LOOPS and not importlib.util.find_spec("gguf"):
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
    if kind in LOOPS:
        loop, places = LOOPS[kind]
        loop(blocks, _scales(blocks, places), decoded)
    else:
        _by_package(kind, blocks, decoded, where)
    if not whole:
        values[:] = decoded.reshape(-1)[lead : lead + stop - first]


def _scales(blocks: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """float32 [blocks, 1 or 2] of the scales in each; half of E8M0 where it has none in F16, as codes are doubled."""
    if not places:
        exponents = blocks[:, :1].astype(np.uint32)
        tiny = np.uint32(0x200000) << np.minimum(exponents, 1)  # 2^-128 and 2^-127 are subnormal
        return np.where(exponents < 2, tiny, (exponents - 1) << 23).astype(np.uint32).view(np.float32)
    scales = np.empty((len(blocks), len(places)), np.float32)
    with np.errstate(invalid="ignore"):  # of signalling NaN
        for column, at in enumerate(places):
            scales[:, column] = np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)[:, 0]
    return scales


def _by_package(kind: str, blocks: np.ndarray, out: np.ndarray, where: str) -> None:
    quants, constant = _package(kind, where)
    step = AT_ONCE // out.shape[1]
    with np.errstate(all="ignore"):
        for at in range(0, len(blocks), step):
            some = quants.dequantize(blocks[at : at + step].reshape(-1), constant)
            out[at : at + step] = some.reshape(-1, out.shape[1])


def _package(kind: str, where: str) -> tuple[Any, Any]:
    """gguf.quants and its constant of the type; this machine may be another than the one that opened the file."""
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError as error:
        raise UnknownScheme(where, f"{kind} blocks need the package gguf", hint=INSTALL) from error
    return quants, GGMLQuantizationType[kind]
