"""The safetensors container: a header, checked once and fully, becomes tensors at byte ranges.

Everything accepted here is accepted by the safetensors crate 0.8.0 with the same meaning, except dtypes that it
does not know: those are compared as bytes. Refused here and not there: duplicate names, a leading space, fields
beyond the three, entries written as arrays, and sizes beyond the limits below.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator, Mapping
from typing import Any

from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.dtypes import BITS
from diffai_dist.errors import BadHeader
from diffai_dist.formats.heads import Head, Header
from diffai_dist.formats.names import listed, quoted, shown
from diffai_dist.formats.sniff import refuse_strangers
from diffai_dist.formats.strict_json import NotStrict, parse
from diffai_dist.storage import Profile, Source, read, redact

FIRST_READ = 128 * 1024  # holds most headers: one request a file
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_TENSORS = 1_000_000
MAX_METADATA_CHARACTERS = 32 * 1024 * 1024
MAX_DIMENSIONS = 64  # NumPy's limit
MAX_ELEMENTS = 2**56  # times 64 bits stays below 2^63: no reader can overflow
MAX_OFFSET = 2**63

Entry = tuple[int, int, str, str, list[int]]  # start and stop in the buffer, name, dtype, shape; sorts by place


def read_header(head: Head, profile: Profile) -> Header:
    """The header of an object whose first bytes were read: one request more for headers above 128 KiB."""
    source, data = head.source, head.data
    where = redact(source.url)
    if not may_begin_a_file(data):
        refuse_strangers(data, where)
    stop = _header_stop(data, source.size, where)
    if stop > len(data):
        data += read(source, len(data), stop, profile)
    return Header(source, *parse_header(data[:stop], source.size, source))


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Without cyclic garbage collection: a header becomes a million objects and no cycle, and looking for one takes
    half of the time. Threads that overlap here may end the pause early, never leave it on."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


@_collector_paused()
def parse_header(head: bytes, size: int, source: Source) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors in order of their bytes, and the metadata, of the first 8+N bytes of an object of `size` bytes."""
    where = redact(source.url)
    stop = _header_stop(head, size, where)
    if len(head) < stop:
        raise BadHeader(where, f"{len(head):,} bytes of the header", expected=f"{stop:,}")
    try:
        # The header itself and its metadata are objects, too; a tensor has 4 colons, names and metadata have some.
        fields = parse(head[8:stop], max_objects=MAX_TENSORS + 2, max_fields=5 * MAX_TENSORS)
    except NotStrict as error:
        raise BadHeader(where, f"header: {error}", hint="Save the file again with a current safetensors") from error
    assert isinstance(fields, dict)  # noqa: S101 - its first byte is `{`
    metadata = _metadata(fields.pop("__metadata__", None), where)
    entries = sorted(_entries(fields, where))
    _check_places(entries, size - stop, where)
    tensors = {
        name: Tensor(name, dtype, tuple(shape), (Span(source, stop + begin, stop + end),))
        for begin, end, name, dtype, shape in entries
    }
    return tensors, metadata


def may_begin_a_file(head: bytes) -> bool:
    """Whether these can be the first bytes of a safetensors file."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES


def _header_stop(head: bytes, size: int, where: str) -> int:
    """Where the header ends, from the first 9 bytes and the size of the whole object."""
    if size < 8:
        raise BadHeader(
            where, f"{size} bytes are too small for a header", expected="at least 10", hint="Is the upload complete?"
        )
    length = int.from_bytes(head[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise BadHeader(
            where,
            f"the first 8 bytes announce a header of {length:,} bytes",
            expected=f"at most {MAX_HEADER_BYTES:,}",
            hint="This is probably no safetensors file",
        )
    if 8 + length > size:
        raise BadHeader(
            where,
            f"the header ends at byte {8 + length:,}, the file at {size:,}: it is {8 + length - size:,} bytes short",
            hint="Incomplete upload or download? Fetch it again",
        )
    if head[8:9] != b"{" or not length:
        raise BadHeader(
            where,
            f"invalid header start: {head[8:9]!r}" if length else "invalid header start: its length is 0",
            expected="'{' at byte 8",
            hint="Save the file again with a current safetensors",
        )
    return 8 + length


def _metadata(value: object, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or any(type(text) is not str for text in value.values()):
        raise BadHeader(where, "__metadata__ is not a map of strings to strings", hint="Save it with string values")
    characters = sum(map(len, value)) + sum(map(len, value.values()))
    if characters > MAX_METADATA_CHARACTERS:
        raise BadHeader(
            where,
            f"__metadata__ of {characters:,} characters",
            expected=f"at most {MAX_METADATA_CHARACTERS:,}",
            hint="Keep data of that size in a file of their own",
        )
    return value


def _entries(fields: Mapping[str, Any], where: str) -> Iterator[Entry]:
    """Each tensor's entry, checked by itself. One expression for all that can be wrong: a header may hold 100,000."""
    for name, entry in fields.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise _fault(name, entry, where) from None
        # Sizes are bounded before they are multiplied: 10,000 dimensions of 4,000 digits would take hours.
        if not (
            type(entry) is dict
            and len(entry) == 3
            and type(dtype) is str
            and type(entry["data_offsets"]) is list
            and type(begin) is type(end) is int
            and 0 <= begin <= end < MAX_OFFSET
            and _is_shape(shape)
            and (dtype not in BITS or math.prod(shape) * BITS[dtype] == 8 * (end - begin))
        ):
            raise _fault(name, entry, where)
        yield begin, end, name, dtype, shape


def _is_shape(shape: object) -> bool:
    """Whether it is a list of counts whose product fits, also without its zeros: the crate multiplies in order."""
    return (
        type(shape) is list
        and len(shape) <= MAX_DIMENSIONS
        and all(type(n) is int and 0 <= n <= MAX_ELEMENTS for n in shape)
        and math.prod(filter(None, shape)) <= MAX_ELEMENTS
    )


def _fault(name: str, entry: Any, where: str) -> BadHeader:
    """What is wrong with an entry that `_entries` refused."""
    what, expected = _finding(entry)
    hint = "Save the file again with a current safetensors"
    return BadHeader(where, f"tensor {quoted(name)}: {what}", expected=expected, hint=hint)


def _finding(entry: Any) -> tuple[str, str]:
    if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
        fields = listed(sorted(entry)) or "none" if type(entry) is dict else shown(entry)
        return f"wrong fields: {fields}", "dtype, shape and data_offsets, nothing else"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str:
        return f"wrong type of dtype: {shown(dtype)}", "a string"
    if (
        type(offsets) is not list
        or len(offsets) != 2
        or any(type(n) is not int or not 0 <= n < MAX_OFFSET for n in offsets)
    ):
        return f"wrong type of data_offsets: {shown(offsets)}", "two integers from 0 to 2^63"
    if offsets[0] > offsets[1]:
        return f"it begins at byte {offsets[0]:,} and ends before, at {offsets[1]:,}", ""
    if type(shape) is not list or any(type(n) is not int or n < 0 for n in shape):
        return f"wrong type of shape: {shown(shape)}", "a list of integers that are not negative"
    if len(shape) > MAX_DIMENSIONS:
        return f"{len(shape):,} dimensions", f"at most {MAX_DIMENSIONS}"
    if not _is_shape(shape):
        return f"the shape {shown(shape)} overflows", f"at most 2^{MAX_ELEMENTS.bit_length() - 1} elements"
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8:
        return f"misaligned: {math.prod(shape):,} elements of {dtype} are {bits:,} bits, not whole bytes", ""
    return (
        f"shape {shown(shape)} of {dtype} needs {bits // 8:,} bytes, data_offsets give {offsets[1] - offsets[0]:,}",
        "",
    )


def _check_places(entries: list[Entry], buffer: int, where: str) -> None:
    """Tensors must cover the bytes after the header once: no hole, no overlap, nothing left over."""
    reached, before = 0, ""
    for begin, end, name, _, _ in entries:
        if begin < reached:
            raise BadHeader(
                where,
                f"tensors {quoted(before)} and {quoted(name)} overlap: one ends at byte {reached:,} of the data, "
                f"the other begins at {begin:,}",
                hint="No safetensors library writes this: get the file from its origin again",
            )
        if begin > reached:
            raise BadHeader(
                where,
                f"a hole of {begin - reached:,} bytes before tensor {quoted(name)}",
                expected=f"its data at byte {reached:,}",
                hint="Save the file again with a current safetensors",
            )
        reached, before = end, name
    if reached > buffer:
        raise BadHeader(
            where,
            f"the file is {reached - buffer:,} bytes short",
            expected=f"{reached:,} bytes of data instead of {buffer:,}",
            hint="Incomplete upload or download? Fetch it again",
        )
    if reached < buffer:
        raise BadHeader(
            where,
            f"{buffer - reached:,} bytes after the last tensor",
            expected=f"{reached:,} bytes of data instead of {buffer:,}",
            hint="Save the file again with a current safetensors, which leaves them out",
        )
