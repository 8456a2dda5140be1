"""Arrays of NumPy: .npy and .npz against numpy.load, and what is refused of them."""

from __future__ import annotations

import io
import struct
import zipfile
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffai_dist.api import compare
from diffai_dist.checkpoint import Checkpoint, Tensor
from diffai_dist.errors import BadHeader, CheckpointError, UnknownFormat
from diffai_dist.formats import open_checkpoint
from diffai_dist.formats.heads import Head
from diffai_dist.formats.npy import NAME, read_npy
from diffai_dist.storage import Profile, Source, read, traffic

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U64": "<u8",
    "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1", "C64": "<c8",
}  # fmt: skip


def opened(path: Path, **options: bool) -> Checkpoint:
    return open_checkpoint(str(path), Profile(), **options)


def saved(array: np.ndarray, **options: Any) -> bytes:
    """The array as NumPy saves it."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True, **options)
    return stream.getvalue()


def text(header: str, version: tuple[int, int] = (1, 0), data: bytes = b"") -> bytes:
    """A file with any text as its header."""
    form = "<H" if version == (1, 0) else "<I"
    return b"\x93NUMPY" + bytes(version) + struct.pack(form, len(header)) + header.encode() + data


def described(data: bytes) -> Tensor:
    """The tensor of a file that is only in memory."""
    return read_npy(Head(Source("/a.npy", len(data), "v"), data[: 128 * 1024]), Profile()).tensors[NAME]


def values(tensor: Tensor, data: bytes | None = None) -> bytes:
    """The bytes of all values in the order of the shape."""
    (span,) = tensor.ranges(0, tensor.elements)
    part = read(span.source, span.start, span.stop, Profile()) if data is None else data[span.start : span.stop]
    if tensor.scheme is None:
        return part
    out = np.empty(len(part), np.uint8)
    tensor.scheme.decode(tensor, [np.frombuffer(part, np.uint8)], 0, tensor.elements, out)
    return out.tobytes()


@given(
    array=st.sampled_from(sorted(DTYPES.values())).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    ),
    order=st.sampled_from("CF"),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0)]),
)
def test_values_and_shapes_are_those_of_numpy(array: np.ndarray, order: str, version: tuple[int, int]) -> None:
    data = saved(np.asarray(array, order=order), version=version)
    tensor = described(data)
    assert (DTYPES[tensor.dtype], tensor.shape) == (array.dtype.str, array.shape)
    if array.size:
        assert values(tensor, data) == np.ascontiguousarray(array).tobytes()


def test_two_files_are_compared_whatever_they_are_called(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((300, 70)).astype(np.float32)
    np.save(tmp_path / "before.npy", array)
    np.save(tmp_path / "after.npy", np.asfortranarray(array))
    report = compare(str(tmp_path / "before.npy"), str(tmp_path / "after.npy")).raise_for_failures()
    assert report.result.statuses == {"identical": 1}
    array[3, 4] += 1
    np.save(tmp_path / "after.npy", array)
    (record,) = compare(str(tmp_path / "before.npy"), str(tmp_path / "after.npy")).result.tensors
    assert (record.name, record.status, record.change.max_abs_index) == (NAME, "changed", 3 * 70 + 4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "complex128", "longdouble"])
def test_types_without_a_name_or_a_decoder_are_compared_as_bytes_and_it_is_told(tmp_path: Path, dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    np.save(tmp_path / "a.npy", np.ones((4, 3)).astype(kind))
    checkpoint = opened(tmp_path / "a.npy")
    tensor = checkpoint.tensors[NAME]
    assert (tensor.decoder.name, tensor.shape, tensor.nbytes) == ("bytes", (4, 3), 12 * kind.itemsize)
    assert any("compared as bytes" in one for one in checkpoint.warnings)
    np.save(tmp_path / "b.npy", np.arange(12).reshape(4, 3).astype(kind))
    report = compare(str(tmp_path / "a.npy"), str(tmp_path / "b.npy")).raise_for_failures()
    assert report.result.statuses == {"changed": 1}


def test_the_type_that_has_a_name_of_its_own(tmp_path: Path) -> None:
    array = np.array([0.5, -2, 57344], ml_dtypes.float8_e5m2)
    assert described(saved(array)).dtype == "F8_E5M2"


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.array([{}, None]), "pickled objects"),
        (np.zeros(3, [("a", "<f4"), ("b", "<i4")]), "records of several"),
        (np.array(["a", "b"]), "no numbers"),
        (np.array([b"a"]), "no numbers"),
        (np.zeros(3, "M8[s]"), "no numbers"),
        (np.zeros(3, ">f4"), "big-endian"),
        (np.zeros((3, 3), ml_dtypes.bfloat16, order="F"), "in Fortran order"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_by_name(tmp_path: Path, array: np.ndarray, found: str) -> None:
    (tmp_path / "a.npy").write_bytes(saved(array))
    with pytest.raises(UnknownFormat, match=found):
        opened(tmp_path / "a.npy")


def test_a_large_array_in_fortran_order_would_be_in_memory_as_a_whole(tmp_path: Path) -> None:
    for elements, usable in ((2**28, True), (2**28 + 2, False)):
        header = f"{{'descr': '<f4', 'fortran_order': True, 'shape': (2, {elements // 2})}}"
        with (tmp_path / "a.npy").open("wb") as file:
            file.write(text(header))
            file.truncate(len(text(header)) + 4 * elements)
        if usable:
            assert opened(tmp_path / "a.npy").tensors[NAME].scheme.whole
        else:
            with pytest.raises(UnknownFormat, match=r"Fortran order.*ascontiguousarray"):
                opened(tmp_path / "a.npy")


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"


@pytest.mark.parametrize(
    "header",
    [
        GOOD,
        GOOD.replace("'", '"'),
        "{'shape':(2,3),'descr':'<f4','fortran_order':False}",
        "{'shape': ( 2 , 3 , ), 'fortran_order': False, 'descr': '=f4'}  \n",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }",  # of Python 2
    ],
)
def test_headers_that_other_writers_make(header: str) -> None:
    assert described(text(header, data=bytes(24))).shape == (2, 3)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{}",
        "[]",
        "{'descr': '<f4', 'fortran_order': False}",
        GOOD.replace("}", "'x': 1}"),
        GOOD.replace("}", "'descr': '<f8'}"),
        GOOD + "}",
        GOOD.replace("(2, 3)", "(2 3)"),
        GOOD.replace("(2, 3)", "(6)"),
        GOOD.replace("(2, 3)", "(,)"),
        GOOD.replace("(2, 3)", "(2,,3)"),
        GOOD.replace("(2, 3)", "(-2, 3)"),
        GOOD.replace("(2, 3)", "(02, 3)"),
        GOOD.replace("(2, 3)", "(2.0, 3)"),
        GOOD.replace("(2, 3)", "6"),
        GOOD.replace("(2, 3)", f"({2**40}, {2**40})"),
        GOOD.replace("(2, 3)", f"({'1, ' * 65})"),
        GOOD.replace("(2, 3)", f"({'9' * 5000}, 1)"),
        GOOD.replace("False", "None"),
        GOOD.replace("False", "__import__('os')"),
        GOOD.replace("'<f4'", "__import__('os').getcwd()"),
        GOOD.replace("'<f4'", "'<f4' * 2"),
        GOOD.replace("<f4", "<f3"),
        GOOD.replace("<f4", "<c4"),
        GOOD.replace("<f4", '"f4'),
        GOOD.replace("'<f4'", "[" * 5000 + "]" * 5000),
        " " * 20_000 + GOOD,
    ],
)
def test_headers_that_are_none(header: str) -> None:
    with pytest.raises((BadHeader, UnknownFormat)):
        described(text(header, (2, 0), bytes(24)))


@pytest.mark.parametrize("cut", range(0, 152, 3))
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    data = saved(np.zeros((2, 3), np.float32))
    (tmp_path / "a.npy").write_bytes(data[:cut])
    with pytest.raises(CheckpointError):
        opened(tmp_path / "a.npy")


def test_what_follows_the_array_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(saved(np.zeros(4)) * 2)
    checkpoint = opened(tmp_path / "a.npy")
    assert checkpoint.tensors[NAME].shape == (4,)
    assert any("160 bytes behind the array" in one for one in checkpoint.warnings)


@settings(max_examples=300)
@given(data=st.data())
def test_mutated_files_are_refused_or_read_as_numpy_does(data: st.DataObject) -> None:
    file = bytearray(saved(np.arange(6, dtype="<f4").reshape(2, 3)))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(file) - 1))
        file[place] = data.draw(st.sampled_from(b"\0\xff'\"{}(),: 0123456789TFVfiuc<>|L"))
    try:
        tensor = described(bytes(file))
    except CheckpointError:
        return
    if tensor.dtype == "F8_E5M2":  # <f1: ml_dtypes writes it, and numpy.load does not know it
        return
    array = np.load(io.BytesIO(file), allow_pickle=False)
    assert tensor.shape == array.shape
    if array.size:
        assert values(tensor, bytes(file)) == np.ascontiguousarray(array).tobytes()


def test_an_archive_is_read_by_range(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    arrays = {f"layer{number}.weight": generator.standard_normal((64, 1000)).astype(np.float32) for number in range(5)}
    arrays["turned"] = np.asfortranarray(arrays["layer0.weight"])
    arrays["scalar"] = np.float64(3)
    np.savez(tmp_path / "a.npz", **arrays)
    before = traffic().bytes
    checkpoint = opened(tmp_path / "a.npz")
    assert traffic().bytes - before < 256 * 1024
    assert checkpoint.format == "npz"
    assert checkpoint.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        tensor = checkpoint.tensors[name]
        assert tensor.shape == array.shape
        assert values(tensor) == np.ascontiguousarray(array).tobytes()
    moved = arrays | {"layer3.weight": arrays["layer3.weight"] + 1}
    np.savez(tmp_path / "b.npz", **moved)
    report = compare(str(tmp_path / "a.npz"), str(tmp_path / "b.npz")).raise_for_failures()
    assert report.result.statuses == {"changed": 1, "identical": 6}


def test_compressed_arrays_are_refused_with_what_to_do(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(1000), b=np.ones(3))
    with pytest.raises(UnknownFormat, match=r"2 compressed arrays.*numpy\.savez"):
        opened(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("a.npy", saved(np.arange(3)))
        archive.writestr("b.npy", saved(np.zeros(1000)), zipfile.ZIP_DEFLATED)
        archive.writestr("c.npy", saved(np.array([None])))
        archive.writestr("d.npy", saved(np.arange(3))[:-1])
        archive.writestr("readme.txt", "arrays")
    checkpoint = opened(tmp_path / "b.npz")
    assert list(checkpoint.tensors) == ["a"]
    assert {name: one.tensor for name, one in checkpoint.unreadable.items()} == {name: name for name in "bcd"}
    assert "numpy.savez" in checkpoint.unreadable["b"].hint
    assert any("1 members of the archive are no arrays: 'readme.txt'" in one for one in checkpoint.warnings)


def test_mutated_archives_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(6.0), b=np.asfortranarray(np.ones((2, 3), np.float32)))
    data, verdicts = path.read_bytes(), Counter[str]()
    for number in range(1000):
        random = Random(f"npz-{number}")
        file = bytearray(data)
        for _ in range(random.choice([1, 1, 2, 8])):
            file[random.randrange(len(file))] = random.choice([0, 1, 255, random.randrange(256)])
        path.write_bytes(file[: random.choice([len(file), len(file), random.randrange(len(file))])])
        try:
            tensors = opened(path).tensors.values()
        except CheckpointError:
            verdicts["refused"] += 1
            continue
        verdicts["read"] += 1
        assert all(0 <= span.start <= span.stop <= len(data) for one in tensors for span in one.spans)
        assert all(len(values(one)) == one.nbytes for one in tensors)
    assert min(verdicts.values()) > 200
