"""The .npy format of NumPy, versions 1 to 3: a short text that says dtype, order and shape, then the values.

Read without NumPy's parser, which warns about texts of Python 2, and without pickle. What is accepted, it accepts too.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from typing import NamedTuple, NoReturn

from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.dtypes import DTYPES
from diffai_dist.errors import BadHeader, UnknownFormat
from diffai_dist.formats.heads import Head, Header
from diffai_dist.formats.names import quoted
from diffai_dist.formats.safetensors import MAX_DIMENSIONS, MAX_ELEMENTS
from diffai_dist.schemes.strided import MOST_BYTES, Strided
from diffai_dist.storage import Profile, redact

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000  # NumPy's own limit
PREFIX = 12  # bytes of magic, version and length
NAME = "array"  # of the one array of a file: the same in all files, so that two of them are compared

# What NumPy calls the dtypes; <f1 is how ml_dtypes 0.6 saves float8_e5m2. The order of bytes comes before.
_DTYPES = {
    "f8": "F64", "f4": "F32", "f2": "F16", "f1": "F8_E5M2", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8",
    "u8": "U64", "u4": "U32", "u2": "U16", "u1": "U8", "b1": "BOOL", "c8": "C64",
}  # fmt: skip
_OTHERS = {"V": "untyped", "f": "float", "c": "complex"}  # without a decoder: compared as bytes
_OTHER = re.compile(r"V[0-9]+|f12|f16|c16|c24|c32")  # the sizes that NumPy has, on one machine or another

_KEY = r"""\s*(?P<quote>['"])(?P<key>descr|fortran_order|shape)(?P=quote)\s*:\s*"""
_VALUE = r"""(?P<value>'[^']*'|"[^"]*"|True|False|\([^()]*\)|\[.*\])\s*(?:,|(?=\}))"""
_ITEM = re.compile(_KEY + _VALUE, re.DOTALL)
_NUMBER = re.compile(r"\s*(0|[1-9][0-9]{0,18})L?\s*")
_TYPE = re.compile(r"(?P<order>[<>|=]?)(?P<kind>[a-zA-Z])(?P<size>[0-9]{1,9})")

SAVE_AGAIN = "Save it again with a current NumPy"
UNTYPED = "{} is compared as bytes: NumPy saves bfloat16 and other types of ml_dtypes without their names"


class Described(NamedTuple):
    """What the text at the beginning says, and where the values begin."""

    descr: str
    fortran: bool
    shape: tuple[int, ...]
    start: int


def read_npy(head: Head, profile: Profile) -> Header:
    """The array of a file, as a tensor called `array`."""
    where = redact(head.source.url)
    tensor, warnings = array_of(NAME, describe(head.data, where), Span(head.source, 0, head.source.size))
    return Header(head.source, {NAME: tensor}, {}, "npy", warnings=warnings)


def describe(data: bytes, where: str) -> Described:
    """Read the text in the first bytes of a file, at least as many as it has; raises BadHeader."""
    start = header_stop(data, where)
    if start > len(data):
        _refuse(f"it ends at byte {start:,}, the file at {len(data):,}", where)
    text = data[_begin(data) : start].decode("utf-8" if data[6] == 3 else "latin-1", errors="replace")
    found: dict[str, str] = {}
    at = 1
    while text[:1] == "{" and (item := _ITEM.match(text, at)) and item["key"] not in found:
        found[item["key"]], at = item["value"], item.end()
    if text[at:].strip() != "}" or len(found) != 3:
        raise BadHeader(
            where, f"header: {quoted(text.strip())}", expected="descr, fortran_order, shape", hint=SAVE_AGAIN
        )
    shape = _shape(found["shape"])
    if shape is None or found["fortran_order"] not in ("True", "False"):
        _refuse(f"shape {found['shape']} and fortran_order {found['fortran_order']}", where)
    return Described(_unquoted(found["descr"]), found["fortran_order"] == "True", shape, start)


def _unquoted(text: str) -> str:
    return text[1:-1] if text[0] in "'\"" else text


def header_stop(data: bytes, where: str) -> int:
    """Where the header ends, from the first PREFIX bytes of a file."""
    version = tuple(data[6:8])
    if data[:6] != MAGIC or version not in ((1, 0), (2, 0), (3, 0)):
        raise UnknownFormat(where, f"first bytes {data[:8]!r}", expected="a .npy file of version 1, 2 or 3")
    begin = _begin(data)
    stop = begin + int.from_bytes(data[8:begin], "little")
    if stop - begin > MAX_HEADER_BYTES:
        _refuse(f"a header of {stop - begin:,} bytes", where)
    return stop


def _begin(data: bytes) -> int:
    return 10 if data[6] == 1 else PREFIX


def _shape(text: str) -> tuple[int, ...] | None:
    """The numbers of a tuple; None for what is none, or too large."""
    if text[:1] != "(":
        return None
    parts = text[1:-1].split(",")
    if len(parts) > 1 and not parts[-1].strip() and parts[0].strip():
        parts.pop()
    elif len(parts) == 1:
        return None if parts[0].strip() else ()
    numbers = [_NUMBER.fullmatch(part) for part in parts]
    shape = tuple(int(number[1]) for number in numbers if number)
    usable = len(shape) == len(parts) <= MAX_DIMENSIONS and max(shape) <= MAX_ELEMENTS
    return shape if usable and math.prod(filter(None, shape)) <= MAX_ELEMENTS else None


def array_of(name: str, described: Described, span: Span) -> tuple[Tensor, tuple[str, ...]]:
    """The tensor of a .npy file in these bytes of an object, and what is odd about it."""
    where = redact(span.source.url)
    dtype, width = _dtype(described.descr, name, where)
    stop = described.start + math.prod(described.shape) * width
    rest = span.stop - span.start - stop
    if rest < 0:
        hint = "Incomplete upload or download? Fetch it again"
        raise BadHeader(where, f"{-rest:,} bytes of the array are missing", hint=hint, tensor=name)
    warnings = [f"{rest:,} bytes behind the array {quoted(name)} are not read"] if rest else []
    if dtype not in DTYPES:
        warnings.append(UNTYPED.format(f"{quoted(name)}, of dtype {quoted(described.descr)},"))
    values = span.part(described.start, stop)
    scheme = _scheme(described, dtype, stop - described.start, name, where)
    return Tensor(name, dtype, described.shape, (values,), scheme), tuple(warnings)


def _dtype(descr: str, name: str, where: str) -> tuple[str, int]:
    """Our name of a dtype, and bytes of an element."""
    match = _TYPE.fullmatch(descr)
    kind, size = (match["kind"], int(match["size"])) if match else ("", 0)
    if not match or not size or (kind + str(size) not in _DTYPES and not _OTHER.fullmatch(kind + str(size))):
        what = "pickled objects" if "O" in descr else "no numbers, or records of several"
        hint = "Save arrays of one numeric dtype"
        raise UnknownFormat(where, f"an array of dtype {quoted(descr)}: {what}", hint=hint, tensor=name)
    if match["order"] == ">" and size > 1:
        hint = "Save it in the order of this machine, `array.astype(array.dtype.newbyteorder('<'))`"
        raise UnknownFormat(where, f"an array of dtype {quoted(descr)}: big-endian", hint=hint, tensor=name)
    return _DTYPES.get(kind + str(size), f"{_OTHERS.get(kind)}{8 * size}"), size


def _scheme(described: Described, dtype: str, nbytes: int, name: str, where: str) -> Strided | None:
    """The order of values, where that is not the order of the shape."""
    if not described.fortran or sum(n != 1 for n in described.shape) < 2:
        return None
    if dtype not in DTYPES or nbytes > MOST_BYTES:
        found = f"{nbytes:,} bytes of {dtype} in Fortran order"
        expected = f"at most {MOST_BYTES:,}, of a dtype that is known"
        hint = "Save it in C order, `numpy.ascontiguousarray(array)`"
        raise UnknownFormat(where, found, expected=expected, hint=hint, tensor=name)
    return Strided(dtype, tuple(itertools.accumulate((1, *described.shape[:-1]), operator.mul)))


def _refuse(found: str, where: str, expected: str = "") -> NoReturn:
    raise BadHeader(where, f"header: {quoted(found)}", expected=expected, hint=SAVE_AGAIN)
