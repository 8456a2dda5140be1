"""Headers of safetensors files: what is accepted means one thing, what is refused is named. Rows: the fault list."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from checkpoints import entries, head, write_data, write_head, write_sparse
from diffai_dist.dtypes import BITS
from diffai_dist.errors import BadHeader, UnknownFormat
from diffai_dist.formats import open_checkpoint
from diffai_dist.formats.safetensors import FIRST_READ, MAX_DIMENSIONS, MAX_METADATA_CHARACTERS, parse_header
from diffai_dist.storage import Profile, Source, traffic

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}


def parse(header: object, buffer: int = 0, *, length: int | None = None):
    first = head(header, length=length)
    size = len(first) + buffer
    return parse_header(first, size, Source("/x.safetensors", size, "v"))


def a(**fields: object) -> dict[str, object]:
    return {"a": A | fields}


def text(fields: str) -> bytes:
    """A tensor `a` of two F32 whose fields are written as text."""
    return f'{{"a":{{{fields}}}}}'.encode()


REFUSED = [
    # row, header, bytes of data, part of the message
    ("5-length-0", b"", 0, "its length is 0"),
    ("5-not-a-brace", b"[]", 0, r"invalid header start: b'\['"),
    ("5-leading-space", b" {}", 0, "invalid header start: b' '"),
    ("6-invalid-utf8", b'{"\xff":{}}', 0, "invalid UTF-8 at byte 2"),
    ("6-bom", b"\xef\xbb\xbf{}", 0, "invalid header start"),
    ("6-utf16", '{"a":1}'.encode("utf-16-le"), 0, "line 1 column 2"),
    ("7-truncated", b'{"a":{"dtype"', 0, "line 1 column 14"),
    ("7-trailing-garbage", b"{}x", 0, "text after the end of the JSON value, at line 1 column 3"),
    ("7-trailing-nul", b"{}\0", 0, "text after the end"),
    ("7-comment", b'{/* a */"a":1}', 0, "line 1 column 2"),
    ("7-nan", b'{"a NaN":\n{"dtype":NaN}}', 0, "NaN is not JSON, at line 2 column 10"),
    ("7-infinity", b'{"a":[-Infinity]}', 0, "-Infinity is not JSON, at line 1 column 7"),
    ("8-tensor-twice", b'{"a":{},"b":{},"a":{}}', 0, "duplicate key 'a'"),
    ("8-tensor-twice-escaped", b'{"a":{},"\\u0061":{}}', 0, "duplicate key 'a'"),
    ("8-field-twice", text('"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]'), 8, "duplicate key 'shape'"),
    ("8-metadata-twice", b'{"__metadata__":{},"__metadata__":{}}', 0, "duplicate key '__metadata__'"),
    ("8-metadata-key-twice", b'{"__metadata__":{"k":"1","k":"2"}}', 0, "duplicate key 'k'"),
    ("9-depth", b'{"a":' + b"[" * 100_000, 0, "nested too deeply"),
    ("9-depth-closed", b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", 0, "wrong fields|nested too deeply"),
    ("9-digits", text('"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,8]'), 8, "thousands of digits"),
    ("9-digits-below-the-limit-of-python", a(shape=[10**4000, 2]), 8, r"the shape \[1000.*overflows"),
    ("10-entries", b"{" + b'"a":{},' * 1_000_003 + b'"b":{}}', 0, "more than 1,000,002 entries"),
    ("10-fields", b"{" + b'"a":0,' * 5_000_000 + b'"b":0}', 0, "more than 5,000,000 fields"),
    ("11-same-range", {"a": A, "b": A}, 8, "tensors 'a' and 'b' overlap"),
    ("11-overlap", {"first": A, "second": B | {"data_offsets": [4, 8]}}, 8, "tensors 'first' and 'second' overlap"),
    ("11-empty-tensor-inside", {"a": A, "b": {"dtype": "U8", "shape": [0], "data_offsets": [4, 4]}}, 8, "overlap"),
    ("12-hole", {"a": A, "b": B | {"data_offsets": [9, 13]}}, 13, "a hole of 1 bytes before tensor 'b'"),
    ("12-hole-at-the-start", a(data_offsets=[4, 12]), 12, "a hole of 4 bytes before tensor 'a'"),
    ("12-trailing-bytes", {"a": A}, 11, "3 bytes after the last tensor"),
    ("12-trailing-bytes-no-tensor", {}, 1, "1 bytes after the last tensor"),
    ("13-begin-after-end", a(data_offsets=[8, 0]), 8, "begins at byte 8 and ends before, at 0"),
    ("13-negative", a(data_offsets=[-8, 0]), 8, r"wrong type of data_offsets: \[-8, 0\]"),
    ("13-float", a(data_offsets=[0, 8.0]), 8, r"wrong type of data_offsets: \[0, 8.0\]"),
    ("13-exponent", text('"dtype":"F32","shape":[2],"data_offsets":[0,8e0]'), 8, "wrong type of data_offsets"),
    ("13-true", a(shape=[True, 2]), 8, r"wrong type of shape: \[true, 2\]"),
    ("13-string", a(data_offsets=["0", "8"]), 8, "wrong type of data_offsets"),
    ("13-text-of-length-2", a(data_offsets="08"), 8, "wrong type of data_offsets"),
    ("13-three-offsets", a(data_offsets=[0, 8, 8]), 8, "wrong type of data_offsets"),
    ("13-offset-beyond-2^63", a(dtype="F3", data_offsets=[0, 2**63]), 8, "wrong type of data_offsets"),
    ("13-minus-zero", text('"dtype":"F32","shape":[2],"data_offsets":[-0,8]'), 8, "the number -0"),
    ("13-dtype-number", a(dtype=32), 8, "wrong type of dtype: 32"),
    ("13-dtype-list", a(dtype=["F32"]), 8, "wrong type of dtype"),
    ("13-shape-string", a(shape="2"), 8, 'wrong type of shape: "2"'),
    ("13-shape-object", a(shape={}), 8, "wrong type of shape: {...}"),
    ("13-entry-as-array", {"a": ["F32", [2], [0, 8]]}, 8, "wrong fields"),
    ("13-entry-as-number", {"a": 1}, 0, "wrong fields: 1"),
    ("13-no-fields", {"a": {}}, 0, "wrong fields: none"),
    ("13-missing-field", {"a": {"dtype": "F32", "shape": [2]}}, 8, "wrong fields: 'dtype', 'shape'"),
    ("13-further-field", a(strides=[1]), 8, "wrong fields: 'data_offsets', 'dtype', 'shape', 'strides'"),
    ("14-cut-short", {"a": A}, 5, "the file is 3 bytes short.*Incomplete upload"),
    ("15-product", a(shape=[2**40, 2**40]), 8, r"the shape \[1099511627776, 1099511627776\] overflows"),
    ("15-product-with-a-zero", a(shape=[2**40, 2**40, 0], data_offsets=[0, 0]), 0, "overflows"),
    ("15-negative-dimension", a(shape=[-1]), 8, r"wrong type of shape: \[-1\]"),
    ("15-dimensions", a(shape=[1] * 10_000), 8, f"10,000 dimensions, expected at most {MAX_DIMENSIONS}"),
    ("15-dimensions-of-4000-digits", a(shape=[10**4000] * 1000), 8, "1,000 dimensions"),
    ("16-too-few-bytes", a(shape=[3]), 8, r"shape \[3\] of F32 needs 12 bytes, data_offsets give 8"),
    ("16-scalar", a(shape=[]), 8, "needs 4 bytes, data_offsets give 8"),
    ("19-f4", a(dtype="F4", shape=[3], data_offsets=[0, 2]), 2, "misaligned: 3 elements of F4 are 12 bits"),
    ("19-f6", a(dtype="F6_E2M3", shape=[3], data_offsets=[0, 3]), 3, "misaligned: 3 elements of F6_E2M3 are 18 bits"),
    ("21-metadata-size", {"__metadata__": {"k": " " * MAX_METADATA_CHARACTERS}}, 0, "__metadata__ of 33,554,433"),
    ("21-metadata-number", {"__metadata__": {"k": 1}}, 0, "not a map of strings to strings"),
    ("21-metadata-list", {"__metadata__": []}, 0, "not a map of strings to strings"),
    ("21-metadata-null-value", {"__metadata__": {"k": None}}, 0, "not a map of strings to strings"),
    ("29-lone-surrogate", b'{"\\ud800":' + json.dumps(A).encode() + b"}", 8, "a lone surrogate"),
    ("29-lone-surrogate-in-metadata", b'{"__metadata__":{"k":"\\uDfff"}}', 0, "a lone surrogate"),
    ("29-raw-control-character", b'{"\x1b":{}}', 0, "Invalid control character"),
]


@pytest.mark.parametrize(("header", "buffer", "message"), [r[1:] for r in REFUSED], ids=["row" + r[0] for r in REFUSED])
def test_a_header_that_breaks_the_format_is_refused_by_name(header: object, buffer: int, message: str) -> None:
    with pytest.raises(BadHeader, match=message) as caught:
        parse(header, buffer)
    failure = caught.value.failure
    assert failure.object == "/x.safetensors"
    assert failure.hint
    assert len(failure.sentence()) < 1200
    assert failure.sentence().isprintable()


@pytest.mark.parametrize("size", range(8), ids="row1-{}".format)
def test_a_file_too_small_for_a_header_is_refused(tmp_path: Path, size: int) -> None:
    path = write_head(tmp_path / "m.safetensors", b"\0" * size)
    with pytest.raises(BadHeader, match=f"{size} bytes are too small for a header"):
        open_checkpoint(str(path), Profile())


@pytest.mark.parametrize(
    ("length", "message"),
    [
        pytest.param(100, r"ends at byte 108, the file at 10: it is 98 bytes short", id="row2"),
        pytest.param(3, r"it is 1 bytes short", id="row2-by-one"),
        pytest.param(2**63, "9,223,372,036,854,775,808 bytes, expected at most 100,000,000", id="row3-2^63"),
        pytest.param(2**64 - 1, "18,446,744,073,709,551,615 bytes, expected at most", id="row3-2^64-1"),
        pytest.param(100_000_001, "100,000,001 bytes, expected at most 100,000,000", id="row4"),
    ],
)
def test_nothing_is_asked_for_beyond_the_first_read_of_an_impossible_length(
    tmp_path: Path, length: int, message: str
) -> None:
    path = write_head(tmp_path / "m.safetensors", head(b"{}", length=length))
    before = traffic()
    with pytest.raises(BadHeader, match=message):
        open_checkpoint(str(path), Profile())
    assert traffic().requests - before.requests == 1
    assert traffic().bytes - before.bytes == 10


def test_row4_a_header_above_the_limit_is_refused_although_the_file_has_it(tmp_path: Path) -> None:
    path = write_head(tmp_path / "m.safetensors", head(b"{}", length=100_000_001), 200_000_000)
    with pytest.raises(BadHeader, match="100,000,001"):
        open_checkpoint(str(path), Profile())


@pytest.mark.parametrize("depth", range(1, sys.getrecursionlimit() + 60, 60), ids="row9-{}".format)
def test_no_depth_of_nesting_lets_another_error_escape(depth: int) -> None:
    with pytest.raises(BadHeader):
        parse(b'{"\\u0061":' + b"[" * depth + b"]" * depth + b"}")


ACCEPTED = [
    # row, header, bytes of data, shapes by name in order
    ("17-empty-tensor", {"a": A, "z": {"dtype": "F16", "shape": [0, 7], "data_offsets": [8, 8]}}, 8, ["a", "z"]),
    ("17-empty-tensor-first", {"a": A, "z": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}, 8, ["z", "a"]),
    ("17-scalar", {"s": {"dtype": "F64", "shape": [], "data_offsets": [0, 8]}}, 8, ["s"]),
    ("17-no-tensors", {}, 0, []),
    ("18-unknown-dtype", {"u": {"dtype": "F3", "shape": [5], "data_offsets": [0, 2]}}, 2, ["u"]),
    ("19-f4", {"q": {"dtype": "F4", "shape": [3, 2], "data_offsets": [0, 3]}}, 3, ["q"]),
    ("19-f6", {"q": {"dtype": "F6_E3M2", "shape": [4], "data_offsets": [0, 3]}}, 3, ["q"]),
    ("21-metadata-empty", {"__metadata__": {}, "a": A}, 8, ["a"]),
    ("21-metadata-null", {"__metadata__": None, "a": A}, 8, ["a"]),
    ("22-unaligned", b'{"a":' + json.dumps(A).encode() + b"} ", 8, ["a"]),
    ("order-of-bytes-not-of-names", {"b": B, "a": A}, 12, ["a", "b"]),
    ("padding", b"{}" + b" " * 6, 0, []),
    ("29-empty-name", {"": A}, 8, [""]),
    ("29-long-name", {"n" * 1_000_000: A}, 8, ["n" * 1_000_000]),
    ("29-nul-and-escapes", {"\0\x1b]0;\x07\x9b\u202e\u200b\n": A}, 8, ["\0\x1b]0;\x07\x9b\u202e\u200b\n"]),
    ("29-surrogate-pair", b'{"\\ud83d\\ude00":' + json.dumps(A).encode() + b"}", 8, ["\U0001f600"]),
]


@pytest.mark.parametrize(("header", "buffer", "names"), [r[1:] for r in ACCEPTED], ids=["row" + r[0] for r in ACCEPTED])
def test_a_sound_header_gives_tensors_in_order_of_their_bytes(header: object, buffer: int, names: list[str]) -> None:
    tensors, _ = parse(header, buffer)
    assert list(tensors) == names
    assert [tensor.name for tensor in tensors.values()] == names
    reached = len(head(header))
    for tensor in tensors.values():
        (span,) = tensor.spans
        assert span.start == reached
        reached = span.stop
    assert reached == len(head(header)) + buffer


@pytest.mark.parametrize("dtype", sorted(BITS), ids="row20-{}".format)
def test_every_dtype_of_the_format_is_checked_against_its_size(dtype: str) -> None:
    tensors, _ = parse(entries({"t": (dtype, (4, 2))}), BITS[dtype])
    assert (tensors["t"].dtype, tensors["t"].shape, tensors["t"].nbytes) == (dtype, (4, 2), BITS[dtype])
    with pytest.raises(BadHeader, match="needs"):
        parse({"t": {"dtype": dtype, "shape": [8, 2], "data_offsets": [0, BITS[dtype]]}}, BITS[dtype])


def test_a_file_keeps_its_metadata_and_its_pinned_source(tmp_path: Path) -> None:
    path = write_data(tmp_path / "any.name", {"a": ("U8", (3,), b"abc")}, {"format": "pt"})
    checkpoint = open_checkpoint(str(path), Profile())
    (source,) = checkpoint.sources
    (span,) = checkpoint.tensors["a"].spans
    assert (source.url, source.size, span.source) == (str(path), path.stat().st_size, source)
    assert path.read_bytes()[span.start : span.stop] == b"abc"
    assert (checkpoint.url, checkpoint.metadata) == (str(path), {"format": "pt"})
    assert (checkpoint.failures, checkpoint.warnings, dict(checkpoint.unreadable)) == ((), (), {})


@pytest.mark.parametrize("tensors", [200, 1000, 2000])
def test_a_header_is_one_request_and_a_large_one_two(tmp_path: Path, tensors: int) -> None:
    path = write_sparse(tmp_path / "m.safetensors", {f"layer.{i}": ("F32", (256,)) for i in range(tensors)})
    length = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert (length > FIRST_READ) == (tensors == 2000)
    before = traffic()
    assert len(open_checkpoint(str(path), Profile()).tensors) == tensors
    assert traffic().requests - before.requests == (1 if length <= FIRST_READ else 2)
    assert traffic().bytes - before.bytes == max(length, FIRST_READ)


STRANGERS = [
    # row, first bytes, what it is said to be
    ("23-pickle-protocol-2", b"\x80\x02}q\x00X\x01\0\0\0aq\x01", "a pickle.*may run code"),
    ("23-pickle-protocol-4", b"\x80\x04\x95\x0b\0\0\0\0\0\0\0}\x94", "a pickle"),
    ("23-html", b"\n<!DOCTYPE html><html>", "an HTML page"),
    ("23-xml", b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "an XML text.*error message"),
    ("23-lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer.*git lfs pull"),
    ("23-hdf5", b"\x89HDF\r\n\x1a\n" + b"\0" * 90, "an HDF5 file"),
    ("23-json", b'{"weight_map": {}}', "a JSON text.*index.json"),
    ("24-gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + b"\0" * 90, "gzip data.*Decompress"),
    ("24-zstd", b"\x28\xb5\x2f\xfd" + b"\0" * 90, "zstd data.*Decompress"),
    ("24-bzip2", b"BZh91AY&SY" + b"\0" * 90, "bzip2 data"),
    ("24-xz", b"\xfd7zXZ\0\0\x04" + b"\0" * 90, "xz data"),
]


@pytest.mark.parametrize(("first", "message"), [r[1:] for r in STRANGERS], ids=["row" + r[0] for r in STRANGERS])
def test_a_file_of_another_format_is_called_by_its_name(tmp_path: Path, first: bytes, message: str) -> None:
    path = write_head(tmp_path / "model.safetensors", first)
    with pytest.raises(UnknownFormat, match=message):
        open_checkpoint(str(path), Profile())


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    first = head(b"{}" + b" " * (0x280 - 2))
    assert first.startswith(b"\x80\x02")
    assert not open_checkpoint(str(write_head(tmp_path / "m.safetensors", first)), Profile()).tensors
