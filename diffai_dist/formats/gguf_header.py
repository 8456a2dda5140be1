"""The header of a GGUF file, versions 2 and 3: keys and values, and a table of tensors.

It says nothing of its length, so it is read as a growing prefix until the table is complete. What is accepted here is
accepted by GGUFReader of gguf 0.19 with the same meaning. Refused here and not there, as in llama.cpp: arrays of
arrays, and more than 4 dimensions.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import numpy as np

from diffai_dist.errors import BadHeader, UnknownFormat
from diffai_dist.formats.heads import Head
from diffai_dist.formats.names import quoted
from diffai_dist.storage import Profile, read, redact

MAGIC = b"GGUF"
FIRST_READ = 1024 * 1024  # holds the header of a model without a vocabulary; with one of 128 k tokens it has 9 MB
GROWTH = 4
MAX_HEADER_BYTES = 64 * 1024 * 1024
MAX_FIELDS = 10_000  # usually 30
MAX_TENSORS = 100_000  # the largest published models have some 2,000
MAX_NAME = 65_535  # bytes; the limit of the format for keys, 63 in llama.cpp for tensors
MAX_DIMENSIONS = 4
MAX_SHOWN = 4096  # characters of a text: templates and licences are longer, and no one's question
AGAIN = "Get the file from its origin again, or convert the model anew"

# Formats of the types of values.
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9


class Entry(NamedTuple):
    """A row of the table of tensors: dimensions as stored, the innermost first; where its data begin."""

    name: str
    dims: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What a header says: values for people, and tensors; `data` is where offsets count from."""

    metadata: Mapping[str, str]
    entries: tuple[Entry, ...]
    alignment: int
    data: int


def read_contents(head: Head, profile: Profile) -> Contents:
    """Read on until the header is complete: to 1 MB, and four times as much as long as that is not enough."""
    source, data, stop = head.source, head.data, FIRST_READ
    while True:
        try:
            return parse_contents(data, source.size, redact(source.url))
        except Short:
            data += read(source, len(data), min(stop, source.size, MAX_HEADER_BYTES), profile)
            stop *= GROWTH


class Short(Exception):
    """The header goes on behind the bytes that are there."""


class _Cursor:
    """Reads on in a prefix of an object."""

    def __init__(self, data: bytes, size: int, where: str) -> None:
        self.data, self.size, self.where, self.at = data, size, where, 0

    def skip(self, count: int) -> int:
        """Step over some bytes, and say where they begin."""
        begin, self.at = self.at, self.at + count
        if self.at > len(self.data):
            self.ended(self.at)
        return begin

    def ended(self, needed: int) -> NoReturn:
        """Ask for more, unless there is none, or it would be too much."""
        if needed > self.size:
            hint = "Incomplete upload or download? Fetch it again"
            raise BadHeader(self.where, f"the header ends behind the file, which has {self.size:,} bytes", hint=hint)
        if needed > MAX_HEADER_BYTES:
            raise BadHeader(self.where, f"a header of more than {MAX_HEADER_BYTES:,} bytes")
        raise Short

    def number(self, form: str) -> int | float:
        """The next value of a format of `struct`."""
        found: int | float = struct.unpack_from(form, self.data, self.skip(struct.calcsize(form)))[0]
        return found

    def count(self, form: str = "<Q") -> int:
        """The next unsigned integer."""
        return int(self.number(form))

    def text(self, length: int) -> bytes:
        """The bytes of a string behind its length."""
        begin = self.skip(length)
        return self.data[begin : self.at]

    def name(self) -> str:
        """The next string, of a key or a tensor."""
        if (length := self.count()) > MAX_NAME:
            self.refuse(f"a name of {length:,} bytes", f"at most {MAX_NAME:,}")
        try:
            return self.text(length).decode()
        except UnicodeDecodeError:
            self.refuse("a name that is not UTF-8")

    def refuse(self, found: str, expected: str = "") -> NoReturn:
        """End with what is wrong."""
        raise BadHeader(self.where, f"header: {found}, before byte {self.at:,}", expected=expected, hint=AGAIN)


def parse_contents(head: bytes, size: int, where: str) -> Contents:
    """What the first bytes of an object of `size` bytes say; raises Short where they are too few."""
    cursor = _Cursor(head, size, where)
    tensors, fields = _counts(cursor)
    metadata: dict[str, str] = {}
    alignment = 32
    for _ in range(fields):
        key = cursor.name()
        if key in metadata:
            cursor.refuse(f"the key {quoted(key)} twice")
        kind = cursor.count("<I")
        metadata[key] = _value(cursor, kind)
        if key == "general.alignment":
            alignment = _alignment(cursor, kind, metadata[key])
    entries = tuple(_entry(cursor) for _ in range(tensors))
    if len({entry.name for entry in entries}) < tensors:
        cursor.refuse("two tensors of the same name")
    return Contents(metadata, entries, alignment, -(-cursor.at // alignment) * alignment)


def _counts(cursor: _Cursor) -> tuple[int, int]:
    if cursor.data[:4] != MAGIC:
        raise UnknownFormat(cursor.where, "this is no GGUF file", expected="GGUF as its first bytes")
    cursor.skip(4)
    version = cursor.count("<I")
    if version not in (2, 3):
        what = "big-endian GGUF" if version and version % 2**16 == 0 else f"GGUF version {version:,}"
        hint = "Convert the model anew with a current llama.cpp"
        raise UnknownFormat(cursor.where, f"this is {what}", expected="version 2 or 3, little-endian", hint=hint)
    tensors, fields = cursor.count(), cursor.count()
    if tensors > MAX_TENSORS or fields > MAX_FIELDS:
        cursor.refuse(f"{tensors:,} tensors and {fields:,} keys", f"at most {MAX_TENSORS:,} and {MAX_FIELDS:,}")
    return tensors, fields


def _value(cursor: _Cursor, kind: int) -> str:
    """A value for people: of an array how many of what it has."""
    if kind == STRING:
        text = cursor.text(cursor.count()).decode(errors="backslashreplace")
        return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
    if kind == ARRAY:
        return _array(cursor)
    if kind not in SCALARS:
        cursor.refuse(f"a value of the unknown type {kind:,}")
    value = cursor.number(SCALARS[kind])
    if kind == BOOL:
        return str(bool(value))
    return str(np.float32(value)) if kind == F32 else str(value)


def _array(cursor: _Cursor) -> str:
    kind, count = cursor.count("<I"), cursor.count()
    if kind == STRING:
        _skip_strings(cursor, count)
        return f"[{count:,} strings]"
    if kind not in SCALARS:
        cursor.refuse("an array of arrays" if kind == ARRAY else f"an array of the unknown type {kind:,}")
    cursor.skip(struct.calcsize(SCALARS[kind]) * count)
    return f"[{count:,} numbers]"


def _skip_strings(cursor: _Cursor, count: int) -> None:
    """Step from length to length: a vocabulary has some 400,000."""
    if cursor.at + 8 * count > cursor.size:
        cursor.ended(cursor.at + 8 * count)
    data, at, last = cursor.data, cursor.at, len(cursor.data) - 8
    length = struct.Struct("<Q").unpack_from
    for _ in range(count):
        if at > last:
            cursor.ended(at + 8)
        at += 8 + length(data, at)[0]
    cursor.at = at
    cursor.skip(0)


def _alignment(cursor: _Cursor, kind: int, value: str) -> int:
    alignment = int(value) if kind == U32 else 0
    if alignment.bit_count() != 1:
        cursor.refuse(f"an alignment of {quoted(value)}", "an unsigned 32-bit integer that is a power of two")
    return alignment


def _entry(cursor: _Cursor) -> Entry:
    name, rank = cursor.name(), cursor.count("<I")
    if rank > MAX_DIMENSIONS:
        cursor.refuse(f"tensor {quoted(name)} of {rank:,} dimensions", f"at most {MAX_DIMENSIONS}")
    dims = tuple(cursor.count() for _ in range(rank))
    return Entry(name, dims, cursor.count("<I"), cursor.count())
