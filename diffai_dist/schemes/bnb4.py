"""bitsandbytes 4 bit: nf4 and fp4, whose scales may be quantised themselves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.dtypes import DTYPES
from diffai_dist.schemes.declared import refuse_turned
from diffai_dist.schemes.loops import Loop, floats
from diffai_dist.schemes.scales import in_order
from diffai_dist.schemes.stored import Found, Stored, Undecodable

STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", *STATES)
SIZES = frozenset({32, 64, 128, 256, 512, 1024, 2048, 4096})  # of a block: those that the library takes


@dataclass(frozen=True, slots=True)
class FourBit:
    """value = map[code] * scale of its block, in float32; blocks are runs of the flat weight, the last may be short.

    Spans: codes, the first of two in the high bits of a byte; scales; their map of 16. Nested scales are
    map[code] * scale of their own block + offset: their scales and their map of 256 follow.
    """

    size: int  # of a block
    scales: str  # dtype of the scales; U8 if they are nested
    nested: int = 0  # scales in a block of nested ones
    offset: float = 0.0

    values = "F32"
    whole = False
    bits = 4
    digits = 0

    @property
    def block(self) -> int:
        """Values that share a scale."""
        return self.size

    def spans(self, tensor: Tensor, first: int, stop: int) -> tuple[Span, ...]:
        """The codes of the run, the scales of its blocks, the scales of those."""
        codes, scales, table, *nested = tensor.spans
        low, high = first // self.size, -(-stop // self.size)
        width = DTYPES[self.scales].bits // 8
        found = codes.part(first // 2, -(-stop // 2)), scales.part(low * width, high * width), table
        if not nested:
            return found
        return *found, nested[0].part(low // self.nested * 4, -(-high // self.nested) * 4), nested[1]

    def decode(self, tensor: Tensor, parts: Sequence[np.ndarray], first: int, stop: int, out: np.ndarray) -> None:
        """Look up each code and multiply by the scale of its block."""
        codes, scales, table, *nested = parts
        values = floats(scales, self.scales)
        if nested:
            low = first // self.size
            block = np.arange(low, low + scales.size) // self.nested - low // self.nested
            with np.errstate(all="ignore"):  # what overflows is infinite, as it is in the library
                values = nested[1].view(np.float32)[scales] * nested[0].view(np.float32)[block]
                values += np.float32(self.offset)
        _look_up(codes, table.view(np.float32), values, self.size, first, out.view(np.float32))


@Loop
def _look_up(codes: np.ndarray, table: np.ndarray, scales: np.ndarray, size: int, first: int, out: np.ndarray) -> None:
    """Block by block, two codes of a byte at once; the run may begin with the second of them, and so may blocks."""
    odd, at, block = first & 1, 0, 0
    left = size - first % size
    while at < out.size:
        scale, end = scales[block], min(at + left, out.size)
        if (at + odd) & 1:
            out[at] = table[codes[(at + odd) >> 1] & 15] * scale
            at += 1
        byte, pairs = (at + odd) >> 1, (end - at) >> 1
        for i in range(pairs):
            out[at + 2 * i] = table[codes[byte + i] >> 4] * scale
            out[at + 2 * i + 1] = table[codes[byte + i] & 15] * scale
        if (end - at) & 1:
            out[end - 1] = table[codes[byte + pairs] >> 4] * scale
        at, block, left = end, block + 1, size


def find(prefix: str, state: Tensor, stored: Stored) -> Found | None:
    """The weight that a quant_state describes."""
    refuse_turned(stored.declared, prefix.removesuffix(".weight"))
    fields = _fields(stored.content.get(state.name, b""), state.name.rpartition("__")[2])
    codes, shape, size = stored.needed(prefix), tuple(fields["shape"]), fields["blocksize"]
    elements = math.prod(shape)
    if codes.nbytes != -(-elements // 2):
        raise Undecodable(f"{codes.nbytes:,} bytes of codes", f"{-(-elements // 2):,}, for the shape {list(shape)}")
    blocks, nested = -(-elements // size), fields["nested_blocksize"]
    scales = _part(stored, f"{prefix}.absmax", blocks, *(["U8"] if nested else ["F32", "F16", "BF16"]))
    parts = [codes, scales, _part(stored, f"{prefix}.quant_map", 16, "F32")]
    if nested:
        parts.append(_part(stored, f"{prefix}.nested_absmax", -(-blocks // nested), "F32"))
        parts.append(_part(stored, f"{prefix}.nested_quant_map", 256, "F32"))
    in_order(*parts)
    scheme = FourBit(size, scales.dtype, nested, float(fields["nested_offset"]))
    spans = tuple(span for part in parts for span in part.spans)
    return Found(Tensor(prefix, f"bnb-{fields['quant_type']}", shape, spans, scheme))


def find_lost(prefix: str, codes: Tensor, stored: Stored) -> Found | None:
    """Raise Undecodable if codes have other parts and no quant_state."""
    names = [codes.name + part for part in PARTS]
    if any(map(stored.has, names)):
        stored.needed(*names[-2:])
    return None


def _part(stored: Stored, name: str, elements: int, *dtypes: str) -> Tensor:
    part = stored.needed(name)
    if part.elements != elements or part.dtype not in dtypes:
        found = f"its {name.rpartition('.')[2]} is {part.dtype} {list(part.shape)}"
        raise Undecodable(found, f"{' or '.join(dtypes)} [{elements}]")
    return part


def _fields(content: bytes, kind: str) -> dict[str, Any]:
    """The fields of a quant_state, each of the type and in the range that it must have."""
    fields = {"nested_blocksize": 0, "nested_offset": 0.0, "nested_dtype": "float32", **_object(content)}
    shape, offset = fields.get("shape"), fields["nested_offset"]
    checks = {
        "quant_type": fields.get("quant_type") == kind,
        "shape": isinstance(shape, list) and shape != [] and all(type(one) is int and one > 0 for one in shape),
        "blocksize": type(fields.get("blocksize")) is int and fields["blocksize"] in SIZES,
        "nested_blocksize": type(fields["nested_blocksize"]) is int and fields["nested_blocksize"] in SIZES | {0},
        "nested_offset": type(offset) in (int, float) and abs(offset) < 2**127,
        "nested_dtype": fields["nested_dtype"] == "float32",
    }
    for name, good in checks.items():
        if not good:
            raise Undecodable(f"{name} of its quant_state is {fields.get(name)!r:.40}")
    return fields


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Undecodable("its quant_state is not a JSON object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name twice")
    return dict(pairs)


def _no_number(name: str) -> None:
    raise ValueError(name)
