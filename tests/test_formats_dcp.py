"""Folders of torch.distributed.checkpoint, written by torch: pieces are put together as torch does, or refused."""

from __future__ import annotations

import math
import pickle
import shutil
from itertools import pairwise
from pathlib import Path
from random import Random

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from diffai_dist.api import compare
from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.errors import BadHeader, MissingShard, UnknownFormat
from diffai_dist.formats import open_checkpoint
from diffai_dist.formats.dcp import parse_metadata
from diffai_dist.schemes.chunked import Chunk, Chunked, matrix_of
from diffai_dist.storage import Profile, Source, traffic
from test_formats_torch import TORCH, check_values, opened, told

PIECES = TORCH / "pieces"


def test_every_run_of_every_tensor_in_pieces_is_what_torch_saved() -> None:
    checkpoint, expected = opened(PIECES), told("pieces")
    assert checkpoint.format == "dcp"
    assert set(checkpoint.tensors) == set(expected) - {"cubes"}
    for name, tensor in checkpoint.tensors.items():
        check_values(tensor, expected[name])
    assert checkpoint.unreadable["cubes"].found == (
        "its pieces leave something out, overlap, or are cut along more axes than two"
    )
    assert [Path(source.url).name for source in checkpoint.sources] == ["__0_0.distcp", "__1_0.distcp"]


def test_a_tensor_in_one_piece_is_a_plain_one() -> None:
    tensors, expected = opened(TORCH / "dcp").tensors, told("dcp")
    assert [tensor.scheme for tensor in tensors.values()] == [None, None]
    for name, tensor in tensors.items():
        check_values(tensor, expected[name])


def test_rows_are_ranges_and_other_chunks_are_not_asked() -> None:
    tensor = opened(PIECES).tensors["rows"]  # 3 rows of 4, then 4
    first, second = tensor.spans
    assert tensor.ranges(2, 5) == (first.part(8, 20), second.part(0, 0))
    assert tensor.ranges(10, 14) == (first.part(40, 48), second.part(0, 8))


def test_pieces_are_compared_with_the_whole(tmp_path: Path) -> None:
    statuses = compare(str(PIECES), str(TORCH / "pieces.safetensors")).tensors
    assert sorted(zip(statuses["name"].to_pylist(), statuses["status"].to_pylist(), strict=True)) == [
        *((name, "failed" if name == "cubes" else "identical") for name in sorted(told("pieces")))
    ]
    changed = {
        name: np.frombuffer(one["data"], np.float32).reshape(one["shape"]) for name, one in told("pieces").items()
    }
    changed["grid"] = changed["grid"].copy()
    changed["grid"][4, 2, 3] += 1
    save_file(changed, tmp_path / "changed.safetensors")
    records = compare(str(PIECES), str(tmp_path / "changed.safetensors")).records
    (record,) = (one for one in records if one["kind"] == "tensor")
    assert (record["name"], record["change"]["max_abs_index"]) == ("grid", 4 * 20 + 2 * 4 + 3)


def test_opening_asks_once_for_the_ends_of_neighbouring_pieces() -> None:
    files = {path.name: path.read_bytes() for path in PIECES.iterdir()}
    memory = fsspec.filesystem("memory")
    for name, data in files.items():
        memory.pipe_file(f"/pieces/{name}", data)
    try:
        before = traffic()
        remote = opened("memory://pieces")
        asked = traffic().bytes - before.bytes
    finally:
        memory.rm("/pieces", recursive=True)
    assert set(remote.tensors) == set(opened(PIECES).tensors)
    # Pieces are smaller than their ends here, so all is read, but no byte of it twice.
    assert asked <= sum(map(len, files.values()))


def test_a_missing_file_costs_the_tensors_that_have_a_piece_in_it(tmp_path: Path) -> None:
    shutil.copytree(PIECES, tmp_path / "m")
    (tmp_path / "m" / "__1_0.distcp").unlink()
    checkpoint = opened(tmp_path / "m")
    assert list(checkpoint.tensors) == ["whole"]
    assert [(failure.code, failure.found) for failure in checkpoint.failures] == [
        (MissingShard.code, "this file is missing")
    ]
    assert set(checkpoint.unreadable) == {"rows", "columns", "grid", "middle", "line", "cubes"}
    assert checkpoint.unreadable["rows"].tensor == "rows"


def test_a_file_that_was_cut_short_costs_the_pieces_behind(tmp_path: Path) -> None:
    shutil.copytree(PIECES, tmp_path / "m")
    file = tmp_path / "m" / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:3000])
    checkpoint = opened(tmp_path / "m")
    assert list(checkpoint.tensors) == ["rows"]
    assert "a piece ends at byte" in checkpoint.unreadable["whole"].found


def metadata(**changes: object) -> bytes:
    """The metadata of one tensor `w` in one piece, with other values for some attributes."""
    values = {
        "size": (4,), "offsets": (0,), "sizes": (4,), "fqn": "w", "offset": (0,), "relative_path": "__0_0.distcp",
        "start": 0, "length": 100, "transform_descriptors": None,
    } | changes  # fmt: skip
    about = "torch.distributed.checkpoint.metadata"

    def made(name: str, fields: dict[str, object]) -> bytes:
        module = "torch.distributed.checkpoint.filesystem" if name.startswith("_") else about
        body = f"c{module}\n{name}\n)\x81}}(".encode("latin-1")
        for key, value in fields.items():
            body += pickle.dumps(key, 2)[2:-1]
            body += value if isinstance(value, bytes) else pickle.dumps(value, 2)[2:-1]
        return body + b"ub"

    chunk = made("ChunkStorageMetadata", {"offsets": values["offsets"], "sizes": values["sizes"]})
    tensor = made("TensorStorageMetadata", {"size": values["size"], "chunks": b"](" + chunk + b"e"})
    index = made("MetadataIndex", {"fqn": values["fqn"], "offset": values["offset"], "index": 0})
    info = {"relative_path": values["relative_path"], "offset": values["start"], "length": values["length"]}
    place = made("_StorageInfo", info | {"transform_descriptors": values["transform_descriptors"]})
    described = b"}(" + pickle.dumps("w", 2)[2:-1] + tensor + b"u"
    root = made("Metadata", {"state_dict_metadata": described, "storage_data": b"}(" + index + place + b"u"})
    return b"\x80\x02" + root + b"."


def test_metadata_tell_pieces_and_where_they_lie() -> None:
    shape, (piece,) = parse_metadata(metadata(start=7), "/m").tensors["w"]
    assert (shape, piece.file, piece.start, piece.stop) == ((4,), "__0_0.distcp", 7, 107)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"relative_path": "../x.distcp"}, "a piece lies in '../x.distcp', which is no plain name of a file"),
        ({"relative_path": "s3://other/x"}, "a piece lies in 's3://other/x', which is no plain name"),
        ({"relative_path": 5}, "a piece lies in no name"),
        ({"transform_descriptors": ("zstd",)}, "its pieces are compressed or otherwise transformed"),
        ({"offset": (1,)}, r"its piece at \[0\] is in no file"),
        ({"fqn": "v"}, r"its piece at \[0\] is in no file"),
        ({"length": -1}, "a shape or strides that are no list of counts"),
        ({"size": (2**64,)}, "a shape or strides that are no list of counts"),
        ({"sizes": "x"}, "a shape or strides that are no list of counts"),
    ],
)
def test_metadata_that_lie_cost_the_tensor(changes: dict[str, object], found: str) -> None:
    contents = parse_metadata(metadata(**changes), "/m")
    assert not contents.tensors
    assert contents.unusable["w"].found.startswith(found.replace("\\", ""))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02}.", "no metadata of torch.distributed.checkpoint"),
        (b"cposix\nsystem\n.", "asks whoever loads it to run 'posix.system'"),
        (b"\x80\x04", "without an end|cut short"),
    ],
)
def test_what_is_no_metadata_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / ".metadata").write_bytes(data)
    (tmp_path / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(BadHeader, match=message):
        opened(tmp_path)


def test_pieces_without_metadata_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(UnknownFormat, match="no weight file among the 1 files"):
        open_checkpoint(str(tmp_path), Profile())


@pytest.mark.parametrize(
    ("shape", "places"),
    [
        ((4,), [((0,), (2,)), ((1,), (3,))]),  # twice
        ((4,), [((0,), (2,)), ((3,), (1,))]),  # a hole
        ((4,), [((0,), (2,)), ((2,), (3,))]),  # beyond the end
        ((2, 2), [((0, 0), (2, 1)), ((0, 0), (2, 1))]),
        ((2, 2), [((0, 0), (1, 2)), ((0, 1), (1, 1)), ((1, 0), (1, 1))]),
        ((2, 2, 2), [((0, a, b), (2, 1, 1)) for a in (0, 1) for b in (0, 1)]),  # each in several runs of rows
    ],
)
def test_pieces_that_do_not_tile_the_tensor_are_refused(shape: tuple[int, ...], places: list) -> None:
    assert matrix_of(shape, places) is None


@st.composite
def cuts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """A shape, cut along one axis, or along the first and another."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    axes = {draw(st.integers(0, len(shape) - 1))} | ({0} if draw(st.booleans()) else set())
    edges = [
        sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=3))}) if axis in axes else [0, size]
        for axis, size in enumerate(shape)
    ]
    places = [((), ())]
    for edge in edges:
        places = [((*offsets, low), (*sizes, high - low)) for offsets, sizes in places for low, high in pairwise(edge)]
    return shape, draw(st.permutations(places))


@given(cut=cuts(), seed=st.integers(0, 2**32))
def test_any_run_of_any_cut_is_that_run_of_the_whole(cut: tuple, seed: int) -> None:
    shape, places = cut
    random, whole = Random(seed), np.arange(math.prod(shape), dtype=np.uint16).reshape(shape)
    data = [
        whole[tuple(slice(first, first + size) for first, size in zip(*place, strict=True))].tobytes()
        for place in places
    ]
    found = matrix_of(shape, places)
    assert found is not None
    scheme = Chunked("U16", found.width, found.chunks)
    spans = tuple(Span(Source(f"/{n}", len(one), "v"), 0, len(one)) for n, one in enumerate(data))
    tensor = Tensor("t", "U16", shape, spans, scheme)
    first, stop = sorted(random.randrange(whole.size + 1) for _ in range(2))
    asked = tensor.ranges(first, stop)
    parts = [np.frombuffer(one[span.start : span.stop], np.uint8) for one, span in zip(data, asked, strict=True)]
    out = np.empty((stop - first) * 2, np.uint8)
    scheme.decode(tensor, parts, first, stop, out)
    assert out.tobytes() == whole.reshape(-1)[first:stop].tobytes()
    # Nothing beyond the rows that the run touches; of a run in one row, nothing beyond the run.
    rows = (stop - 1) // scheme.width - first // scheme.width + 1 if stop > first else 0
    assert sum(part.size for part in parts) <= 2 * (rows * scheme.width if rows > 1 else stop - first)


def test_pieces_of_whole_rows_are_ranges_of_the_run_alone() -> None:
    found = matrix_of((7, 4), [((0, 0), (3, 4)), ((3, 0), (4, 4))])
    assert found == Chunked("", 28, (Chunk(0, 1, 0, 12), Chunk(0, 1, 12, 16)))
