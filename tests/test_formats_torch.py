"""Files of torch.save, written by torch: their tensors are those that torch reads, and what is none is refused."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize

from checkpoints import write_sparse
from diffai_dist.api import compare, compare_group, planned
from diffai_dist.checkpoint import Checkpoint, Tensor
from diffai_dist.errors import BadHeader, CheckpointError, UnknownFormat
from diffai_dist.formats import open_checkpoint, torch_state, unpickling
from diffai_dist.formats.ranges import Ranges
from diffai_dist.formats.torch_state import TooMuch, state_of
from diffai_dist.formats.torch_views import View
from diffai_dist.formats.unpickling import BadPickle, Made, Pairs, unpickle
from diffai_dist.inspection import as_document, as_text
from diffai_dist.run import Settings
from diffai_dist.schemes.strided import Strided
from diffai_dist.storage import Profile, pin, traffic

TORCH = Path(__file__).parent / "fixtures" / "torch"
TWICE = TORCH / "sharded" / "pytorch_model-00001-of-00002.bin"


def opened(path: object) -> Checkpoint:
    return open_checkpoint(str(path), Profile(), raw=True)


def values(tensor: Tensor, first: int, stop: int) -> bytes:
    """The bytes of a run, read through the ranges that it asks for."""
    parts = [
        np.frombuffer(Path(span.source.url).read_bytes()[span.start : span.stop], np.uint8)
        for span in tensor.ranges(first, stop)
    ]
    if tensor.scheme is None:
        return parts[0].tobytes()
    out = np.empty((stop - first) * tensor.decoder.bits // 8, np.uint8)
    tensor.scheme.decode(tensor, parts, first, stop, out)
    return out.tobytes()


def told(name: str) -> dict[str, dict[str, Any]]:
    """What torch read from a file, by name: dtype, shape, bytes."""
    return dict(deserialize((TORCH / f"{name}.safetensors").read_bytes()))


def check_values(tensor: Tensor, expected: dict[str, Any]) -> None:
    assert (tensor.dtype, list(tensor.shape)) == (expected["dtype"], expected["shape"])
    random, size = Random(tensor.name), tensor.decoder.bits // 8
    for _ in range(20):
        first, stop = sorted(random.randrange(tensor.elements + 1) for _ in range(2))
        assert values(tensor, first, stop) == bytes(expected["data"])[first * size : stop * size]


@pytest.mark.parametrize("name", ["dtypes.pt", "views.pt", "trainer.pt", "module.pt", "alone.pt", "odd.pt"])
def test_every_run_of_every_tensor_is_what_torch_reads(name: str) -> None:
    checkpoint, expected = opened(TORCH / name), told(name)
    assert checkpoint.format == "torch"
    assert checkpoint.tensors.keys() - {"double"} == expected.keys()
    for key, one in expected.items():
        check_values(checkpoint.tensors[key], one)


def test_all_dtypes_of_torch_have_their_names() -> None:
    dtypes = [tensor.dtype for tensor in opened(TORCH / "dtypes.pt").tensors.values()]
    assert (
        dtypes
        == (
            "F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL U16 U32 U64 C64 F8_E4M3 F8_E5M2 F8_E4M3FNUZ F8_E5M2FNUZ F8_E8M0"
        ).split()
    )


def test_only_views_in_another_order_are_strided() -> None:
    tensors = opened(TORCH / "views.pt").tensors
    strided = {name: tensor.scheme.strides for name, tensor in tensors.items() if isinstance(tensor.scheme, Strided)}
    assert strided == {
        "transposed": (1, 6),
        "columns": (6, 1),
        "steps": (12, 3),
        "expanded": (0, 1),
        "image": (60, 1, 15, 3),
        "half": (1, 6),
    }


def test_shared_storages_are_the_same_bytes() -> None:
    tensors = opened(TORCH / "trainer.pt").tensors
    assert tensors["tied.0"].spans == tensors["tied.1"].spans == tensors["model.first.weight"].spans
    whole, rows = opened(TORCH / "views.pt").tensors["base"], opened(TORCH / "views.pt").tensors["rows"]
    assert rows.spans[0] == whole.spans[0].part(24, 72)


def test_bytes_that_tied_tensors_share_count_once_in_a_size() -> None:
    """A weight of 48 bytes has three names."""
    checkpoint = opened(TORCH / "trainer.pt")
    every = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    assert checkpoint.nbytes == every - 96 == 396
    *_, total = as_text(as_document(checkpoint))
    assert total == "30 tensors in 1 object, 396 B: F32 364 B, I64 32 B\n"
    path = str(TORCH / "trainer.pt")
    document = planned(compare_group(path, path, Settings()), Settings(), None)
    assert [one["bytes"] for one in document["members"]] == [396, 396]


def test_a_trainers_checkpoint_tells_its_numbers_and_what_is_not_compared() -> None:
    checkpoint = opened(TORCH / "trainer.pt")
    assert checkpoint.metadata == {"epoch": "3", "loss": "0.25", "name": "run7"}
    assert checkpoint.warnings == ("1 NumPy arrays are no tensors and are not compared: 'rng'",)


def test_classes_that_are_not_known_are_named_and_looked_into() -> None:
    checkpoint = opened(TORCH / "module.pt")
    (warning,) = checkpoint.warnings
    assert warning.startswith("objects of classes that are not loaded, only looked into for tensors: '__main__.Own', ")


def test_what_is_not_read_is_told_by_name_beside_what_is() -> None:
    checkpoint = opened(TORCH / "odd.pt")
    found = {name: failure.found for name, failure in checkpoint.unreadable.items()}
    assert found == {
        "quantised": "a tensor that 'torch._utils._rebuild_qtensor' makes, whose layout is not read",
        "sparse": "a tensor that 'torch._utils._rebuild_sparse_tensor' makes, whose layout is not read",
        "conjugate": "a view that is conjugated or negated when it is used: not the values that are stored",
    }
    assert (checkpoint.tensors["double"].dtype, checkpoint.tensors["double"].counted) == ("C128", 32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "legacy.pt",
            r"before torch 1.6.*import load, save; save\(load\(path, weights_only=True\), path\)",
        ),
        ("script.pt", r"a TorchScript module, which is code.*state_dict\(\)"),
        ("pieces/__0_0.distcp", "several zip archives.*name the folder"),
        ("pieces/.metadata", "a pickle"),
    ],
)
def test_what_is_no_archive_of_a_state_is_refused_by_its_name(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(TORCH / name)


def test_first_bytes_decide_and_not_the_name(tmp_path: Path) -> None:
    shutil.copy(TORCH / "alone.pt", tmp_path / "a.safetensors")
    write_sparse(tmp_path / "b.bin", {"w": ("F32", (2,))})
    assert opened(tmp_path / "a.safetensors").format == "torch"
    assert opened(tmp_path / "b.bin").format == "safetensors"
    (tmp_path / "c.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    with pytest.raises(UnknownFormat, match="a Git LFS pointer"):
        opened(tmp_path / "c.bin")


@pytest.mark.parametrize("name", ["", "pytorch_model.bin.index.json"], ids=["folder", "index"])
def test_an_index_of_torch_shards_works_like_any_other(name: str) -> None:
    checkpoint, expected = opened(TORCH / "sharded" / name), told("sharded")
    assert list(checkpoint.tensors) == ["a.weight", "b.weight", "c.weight"]
    assert (checkpoint.failures, checkpoint.warnings, dict(checkpoint.unreadable)) == ((), (), {})
    for key, one in expected.items():
        check_values(checkpoint.tensors[key], one)


def test_a_torch_shard_that_is_missing_costs_its_own_tensors(tmp_path: Path) -> None:
    shutil.copytree(TORCH / "sharded", tmp_path / "m")
    (tmp_path / "m" / "pytorch_model-00002-of-00002.bin").unlink()
    checkpoint = opened(tmp_path / "m")
    assert (list(checkpoint.tensors), list(checkpoint.unreadable)) == (["a.weight", "b.weight"], ["c.weight"])


def test_safetensors_win_over_torch_beside_them_and_that_is_said(tmp_path: Path) -> None:
    shutil.copytree(TORCH / "sharded", tmp_path / "m")
    write_sparse(tmp_path / "m" / "model.safetensors", {"w": ("F32", (2,))})
    checkpoint = opened(tmp_path / "m")
    assert list(checkpoint.tensors) == ["w"]
    (warning,) = checkpoint.warnings
    assert warning == (
        "read 'model.safetensors'; not read, although beside it, in another format: 'pytorch_model.bin.index.json'"
    )


# What is read


def large(path: Path, storages: int, size: int) -> Path:
    """A torch file as torch lays it out, of so many storages; sparse, so that reading data would show."""
    pickled = pickle_of([(f"w{key}", str(key), size // 4, 0, (size // 4,), (1,)) for key in range(storages)])
    members = [("data.pkl", pickled, len(pickled)), ("byteorder", b"little", 6)]
    members += [(f"data/{key}", b"", size) for key in range(storages)]
    central = b""
    with path.open("wb") as file:
        for member, data, length in members:
            name, at = f"archive/{member}".encode(), file.tell()
            padding = -(at + 30 + len(name) + 4) % 64
            file.write(struct.pack("<4s5H3I2H", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, len(name), padding + 4))
            file.write(name + struct.pack("<2sH", b"FB", padding) + b"Z" * padding + data)
            file.seek(length - len(data), io.SEEK_CUR)
            file.write(struct.pack("<4s3I", b"PK\7\x08", 0, length, length))
            fields = (0, 0, 0x808, 0, 0, 0, 0, length, length, len(name), 0, 0, 0, 0, 0, at)
            central += struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields) + name
        start = file.tell()
        file.write(
            central + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(members), len(members), len(central), start, 0)
        )
    return path


def pickle_of(tensors: list[tuple[str, str, int, int, tuple[int, ...], tuple[int, ...]]]) -> bytes:
    """The pickle of a dict of F32 tensors: name, key and size of the storage, offset, shape, strides."""
    body = b"\x80\x02}("
    for name, key, count, offset, shape, strides in tensors:
        body += pickle.dumps(name, 2)[2:-1] + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        body += pickle.dumps("storage", 2)[2:-1] + b"ctorch\nFloatStorage\n"
        body += b"".join(pickle.dumps(one, 2)[2:-1] for one in (key, "cpu", count)) + b"tQ"
        body += b"".join(pickle.dumps(one, 2)[2:-1] for one in (offset, shape, strides, False))
        body += b"ccollections\nOrderedDict\n)RtR"
    return body + b"u."


@pytest.mark.parametrize(("storages", "size"), [(1, 2**20), (40, 2**20)])
def test_opening_reads_the_directory_and_the_headers_and_no_data(tmp_path: Path, storages: int, size: int) -> None:
    path = large(tmp_path / "large.pt", storages, size)
    before = traffic()
    checkpoint = opened(path)
    asked = traffic().requests - before.requests, traffic().bytes - before.bytes
    assert len(checkpoint.tensors) == storages
    assert all(tensor.spans[0].start % 64 == 0 and tensor.nbytes == size for tensor in checkpoint.tensors.values())
    # The first 128 KiB hold the pickle and the first header, the last 64 KiB the directory.
    assert asked[0] == 2 + storages - 1
    assert asked[1] == 192 * 1024 + sum(30 + len(f"archive/data/{key}") for key in range(1, storages))


def test_a_small_file_is_one_request_and_equal_from_a_remote_place(tmp_path: Path) -> None:
    data = (TORCH / "trainer.pt").read_bytes()
    fsspec.filesystem("memory").pipe_file("/torch/trainer.pt", data)
    try:
        before = traffic()
        remote = opened("memory://torch/trainer.pt")
        assert traffic().bytes - before.bytes == len(data)
        local = opened(TORCH / "trainer.pt")
        places = [
            {name: [(span.start, span.stop) for span in tensor.spans] for name, tensor in one.tensors.items()}
            for one in (local, remote)
        ]
        assert places[0] == places[1]
    finally:
        fsspec.filesystem("memory").rm("/torch", recursive=True)


def test_a_torch_file_is_compared_with_safetensors_of_the_same_values() -> None:
    report = compare(str(TORCH / "views.pt"), str(TORCH / "views.pt.safetensors"))
    assert set(report.tensors["status"].to_pylist()) == {"identical"}
    assert (report.failures, report.coverage.tensors_compared) == ((), len(told("views.pt")))


# What is refused


def altered(path: Path, change: Callable[[str, bytes], bytes | None], **options: Any) -> Path:
    """A copy of a torch file, its members changed or, for None, left out."""
    with zipfile.ZipFile(TORCH / "views.pt") as old, zipfile.ZipFile(path, "w", **options) as new:
        for member in old.infolist():
            if (data := change(member.filename, old.read(member))) is not None:
                new.writestr(member.filename, data)
    return path


def test_a_file_of_other_byte_order_is_refused(tmp_path: Path) -> None:
    path = altered(tmp_path / "x.pt", lambda name, data: b"big" if name.endswith("byteorder") else data)
    with pytest.raises(UnknownFormat, match=r"byte order b'big', expected b'little'"):
        opened(path)


def test_a_compressed_file_is_refused(tmp_path: Path) -> None:
    path = altered(tmp_path / "x.pt", lambda name, data: data, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(BadHeader, match="is compressed, so that it has no byte ranges"):
        opened(path)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    data = bytearray((TORCH / "alone.pt").read_bytes())
    for magic, place in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        data[data.index(magic) + place] |= 1
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(BadHeader, match=r"'alone/data\.pkl' is encrypted"):
        opened(tmp_path / "x.pt")


def test_a_storage_that_is_missing_or_too_short_costs_its_own_tensors(tmp_path: Path) -> None:
    lost = opened(altered(tmp_path / "x.pt", lambda name, data: None if name.endswith("data/0") else data))
    assert lost.unreadable["base"].found == "its storage '0' is not there"
    short = opened(altered(tmp_path / "y.pt", lambda name, data: data[:-4] if name.endswith("data/0") else data))
    assert (
        short.unreadable["base"]
        .sentence()
        .endswith("its storage has 92 bytes in the archive, expected 96. Save the file again [E1202]")
    )
    assert set(lost.tensors) == set(short.tensors) == {"image", "expanded", "empty", "one_axis", "half"}


def with_pickle(path: Path, pickled: bytes) -> Path:
    return altered(path, lambda name, data: pickled if name.endswith("data.pkl") else data)


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "found"),
    [
        (23, (2,), (1,), "its elements end at byte 100 of its storage"),
        (0, (25,), (1,), "its elements end at byte 100 of its storage"),
        (0, (2, 2), (24, 1), "its elements end at byte 104 of its storage"),
        (-1, (2,), (1,), "an offset into its storage that is no number"),
        (True, (2,), (1,), "an offset into its storage that is no number"),
        (0, (-2,), (1,), "a shape or strides that are no list of counts"),
        (0, (2,), (-1,), "a shape or strides that are no list of counts"),
        (0, (2, 2), (1,), "a shape [2, 2] with strides [1]"),
        (0, (2**40, 2**40), (0, 0), "a shape [1099511627776, 1099511627776] with strides [0, 0]"),
        (2**63, (1,), (1,), "an offset into its storage that is no number"),
        (2**62, (1,), (1,), "its elements end at byte 18,446,744,073,709,551,620 of its storage"),
        (0, (2,) * 65, (0,) * 65, "a shape or strides that are no list of counts"),
        (0, (2**20, 2**20), (0, 0), "4,398,046,511,104 bytes that lie in another order than that of the shape"),
    ],
)
def test_elements_outside_of_the_storage_are_not_read(
    tmp_path: Path, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], found: str
) -> None:
    bad = ("bad", "0", 24, offset, shape, strides)
    checkpoint = opened(with_pickle(tmp_path / "x.pt", pickle_of([bad, ("fine", "0", 24, 1, (3,), (1,))])))
    assert list(checkpoint.tensors) == ["fine"]
    assert checkpoint.unreadable["bad"].found.startswith(found)


def test_the_kind_of_a_storage_says_how_many_bytes_it_has(tmp_path: Path) -> None:
    floats = pickle_of([("w", "0", 12, 0, (12,), (1,))])  # the storage has 96 bytes
    assert opened(with_pickle(tmp_path / "f.pt", floats)).unreadable["w"].expected == "48"
    doubles = opened(with_pickle(tmp_path / "d.pt", floats.replace(b"FloatStorage", b"DoubleStorage"))).tensors["w"]
    assert (doubles.dtype, doubles.nbytes) == ("F64", 96)


def test_two_values_in_a_byte_count_as_two(tmp_path: Path) -> None:
    pickled = pickle_of([("w", "0", 96, 0, (4, 24), (24, 1))]).replace(b"torch\nFloatStorage", b"torch\nUntypedStorage")
    pickled = pickled.replace(b"tensor_v2", b"tensor_v3").replace(b")RtR", b")Rctorch\nfloat4_e2m1fn_x2\ntR")
    tensor = opened(with_pickle(tmp_path / "x.pt", pickled)).tensors["w"]
    assert (tensor.dtype, tensor.shape, tensor.nbytes, tensor.scheme) == ("F4", (4, 48), 96, None)


@pytest.mark.parametrize(
    "payload",
    [
        b"cposix\nsystem\n(S'touch /tmp/never'\ntR.",
        b"cos\nsystem\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
        b"ctorch.storage\n_load_from_bytes\n(S'x'\ntR.",
        b"(S'x'\nisubprocess\nPopen\n.",
        b"c__builtin__\ngetattr\n.",
    ],
)
def test_a_pickle_that_runs_code_is_refused_and_says_what(tmp_path: Path, payload: bytes) -> None:
    with pytest.raises(BadHeader, match=r"asks whoever loads it to run '[\w.]+'. Do not load this file"):
        opened(with_pickle(tmp_path / "x.pt", payload))


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"", "without an end|cut short"),
        (b"\x80\x02}q", "cut short or broken"),
        (b"\x80\x02h\x05.", "not there"),
        (b"\x82\x01.", "not there"),
        (b"\x80\x02K\x01K\x02s.", "cut short or broken"),
        (b"\x80\x02K\x01K\x02b.", "gives a state to something else"),
        (b"p99999999999999\n.", "cut short or broken|memo"),
        (b"N" + b"p99999999999999\n.", "a memo of more than"),
        (b"I" + b"9" * 5000 + b"\n.", "cut short or broken"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", "cut short or broken"),
        (b"S'\\K'\n", "cut short or broken|without an end"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_broken_pickle_is_refused(tmp_path: Path, pickled: bytes, message: str) -> None:
    with pytest.raises(BadHeader, match=message):
        opened(with_pickle(tmp_path / "x.pt", pickled))


def test_a_memo_index_of_four_billion_takes_no_memory() -> None:
    assert unpickle(b"\x80\x02}r\xff\xff\xff\xff0j\xff\xff\xff\xff.")[0].pairs == []


def test_a_bomb_of_references_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_state, "MAX_WORK", 200_000)
    bomb: list[Any] = [Made(unpickling.Global("torch._utils._rebuild_tensor_v2"), ())]
    for _ in range(50):
        bomb = [bomb] * 10
    with pytest.raises(TooMuch, match="more names of tensors"):
        state_of(bomb)
    around: list[Any] = []
    around.append(around)
    with pytest.raises(TooMuch, match="nested more than 64 deep"):
        state_of(around)


def test_a_pickle_of_too_many_operations_ends() -> None:
    with pytest.raises(BadPickle, match="more than 100 operations"):
        unpickle(b"N0" * 100 + b"N.", most=100)


def test_names_that_are_there_twice_are_not_guessed_at() -> None:
    tensor = unpickle(pickle_of([("w", "0", 4, 0, (4,), (1,))]))[0].pairs[0][1]
    state = state_of(Pairs([("a.b", tensor), ("a", Pairs([("b", tensor), (3, tensor), ((1, 2), tensor)]))]))
    assert list(state.views) == ["a.3", "a.<tuple>"]
    assert str(state.unusable["a.b"]) == "several tensors have this name"
    assert state.views["a.3"] == View("F32", "0", 16, (4,), (1,), 0)


@pytest.mark.parametrize(
    ("magic", "place", "value", "message"),
    [
        (b"PK\1\2", 42, 2**20, "without a directory|overlaps|several zip archives"),  # where a member begins
        (b"PK\1\2", 24, 2**31, "has 2,147,483,648 bytes, expected at most"),  # its size
        (b"PK\3\4", 26, 5, "not where, or not what"),  # the length of its name
        (b"PK\3\4", 28, 60_000, "overlaps what follows"),  # of its padding
        (b"PK\6\6", 40, 2**31, "without a directory"),  # the size of the directory
    ],
)
def test_a_directory_that_lies_is_refused(tmp_path: Path, magic: bytes, place: int, value: int, message: str) -> None:
    data = bytearray((TORCH / "alone.pt").read_bytes())
    at = data.index(magic) + place
    struct.pack_into("<H" if magic == b"PK\3\4" else "<I", data, at, value)
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(BadHeader, match=message):
        opened(tmp_path / "x.pt")


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = altered(tmp_path / "x.pt", lambda name, data: data)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("views/data.pkl", b"N.")
    with pytest.raises(BadHeader, match=r"two members of a zip archive are called 'views/data\.pkl'"):
        opened(path)


def test_a_second_pickle_is_refused(tmp_path: Path) -> None:
    path = altered(tmp_path / "x.pt", lambda name, data: data)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", b"N.")
    with pytest.raises(BadHeader, match="several pickles in one torch file: 'views', 'other'"):
        opened(path)


@given(wanted=st.lists(st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 9000)), max_size=6), max_size=4))
def test_ranges_give_the_bytes_of_the_object_and_read_none_again(wanted: list) -> None:
    data = Random(0).randbytes(29_000)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/ranges", data)
    ranges = Ranges(pin("memory://ranges", Profile()), Profile(), data[:1000])
    for pairs in wanted:
        places = [(start, start + size) for start, size in pairs]
        ranges.load(places)
        before = traffic()
        assert [ranges.get(*place) for place in places] == [data[first:stop] for first, stop in places]
        assert traffic() == before


def test_other_zip_archives_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({}))
    with pytest.raises(UnknownFormat, match=r"a zip archive of 'config\.json', expected data\.pkl"):
        opened(tmp_path / "x.keras")
