"""The GGUF container of llama.cpp: its table of tensors, checked, as tensors at byte ranges. A file may be in parts.

Tensors have the names and blocks of the file. Those of types that are not known are unreadable, and they alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.errors import BadHeader, Failure, UnknownScheme
from diffai_dist.formats.gguf_header import AGAIN, Contents, Entry, read_contents
from diffai_dist.formats.heads import Head, Header
from diffai_dist.formats.index import MAX_SHARDS
from diffai_dist.formats.names import quoted
from diffai_dist.formats.safetensors import MAX_ELEMENTS
from diffai_dist.schemes.ggml import block_of
from diffai_dist.storage import Profile, Source, redact

TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
NOT_STORED = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip

_PART = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<total>[0-9]{5})\.gguf", re.DOTALL)


def read_gguf(head: Head, profile: Profile) -> Header:
    """The tensors of one file, or of one part of a file, under the names that are stored."""
    return header_of(head.source, read_contents(head, profile))


def parts_of(name: str) -> tuple[str, ...]:
    """The names of all parts of a split file, from that of one; of any other file its own.

    >>> parts_of("m-00002-of-00002.gguf"), parts_of("m.gguf")
    (('m-00001-of-00002.gguf', 'm-00002-of-00002.gguf'), ('m.gguf',))
    """
    match = _PART.fullmatch(name)
    total = int(match["total"]) if match else 0
    if not match or not 1 <= int(match["number"]) <= total <= MAX_SHARDS:
        return (name,)
    return tuple(f"{match['stem']}-{number:05}-of-{total:05}.gguf" for number in range(1, total + 1))


def header_of(source: Source, contents: Contents) -> Header:
    """Tensors in order of their bytes, and those of unknown types; raises BadHeader for impossible places."""
    where = redact(source.url)
    tensors: dict[str, Tensor] = {}
    unreadable: dict[str, Failure] = {}
    reached, before = 0, ""
    for entry in sorted(contents.entries, key=lambda entry: entry.offset):
        _check_place(entry, contents, source.size, where)
        if entry.type not in TYPES:
            unreadable[entry.name] = _of_unknown_type(entry, where)
            continue
        tensor = _tensor(entry, contents.data, source, where)
        (span,) = tensor.spans
        if span.start < reached and tensor.nbytes:
            raise BadHeader(where, f"tensors {quoted(before)} and {quoted(entry.name)} overlap", hint=AGAIN)
        if tensor.nbytes:
            reached, before = span.stop, entry.name
        tensors[entry.name] = tensor
    return Header(source, tensors, _told(contents.metadata), "gguf", unreadable)


def _told(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """Without what is true of one part alone."""
    return {key: text for key, text in metadata.items() if not key.startswith("split.")}


def _check_place(entry: Entry, contents: Contents, size: int, where: str) -> None:
    if entry.offset % contents.alignment:
        found = f"tensor {quoted(entry.name)} begins at byte {entry.offset:,} of the data"
        raise BadHeader(where, found, expected=f"a multiple of {contents.alignment:,}", hint=AGAIN)
    if contents.data + entry.offset > size:
        raise _too_short(entry, contents.data + entry.offset, size, where)


def _too_short(entry: Entry, needed: int, size: int, where: str) -> BadHeader:
    found = f"tensor {quoted(entry.name)} needs {needed:,} bytes of the file, which has {size:,}"
    return BadHeader(where, found, hint="Incomplete upload or download? Fetch it again")


def _of_unknown_type(entry: Entry, where: str) -> Failure:
    name = NOT_STORED.get(entry.type)
    found = (
        f"blocks of type {name}, which no current llama.cpp writes or reads from a file"
        if name
        else f"the unknown type {entry.type:,}"
    )
    hint = "Quantise the model again with a current llama.cpp"
    return UnknownScheme(where, found, hint=hint, tensor=entry.name).failure


def _tensor(entry: Entry, data: int, source: Source, where: str) -> Tensor:
    kind = TYPES[entry.type]
    elements, nbytes = block_of(kind)
    shape = entry.dims[::-1]
    if any(n > MAX_ELEMENTS for n in shape) or math.prod(filter(None, shape)) > MAX_ELEMENTS:
        raise BadHeader(where, f"tensor {quoted(entry.name)}: the shape {list(shape)} overflows", hint=AGAIN)
    if (shape or (1,))[-1] % elements:
        found = f"tensor {quoted(entry.name)}: rows of {(shape or (1,))[-1]:,} elements are no whole {kind} blocks"
        raise BadHeader(where, found, expected=f"a multiple of {elements}", hint=AGAIN)
    start = data + entry.offset
    stop = start + math.prod(shape) // elements * nbytes
    if stop > source.size:
        raise _too_short(entry, stop, source.size, where)
    return Tensor(entry.name, kind, shape, (Span(source, start, stop),))
