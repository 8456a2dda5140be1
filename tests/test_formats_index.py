"""Sharded checkpoints: headers are the truth, the index must agree, and it never chooses a file elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import head, write_head, write_sharded, write_sparse
from diffai_dist import formats
from diffai_dist.checkpoint import Checkpoint
from diffai_dist.errors import BadHeader, BadIndex, CheckpointError, MissingShard, Unreadable
from diffai_dist.formats import open_checkpoint
from diffai_dist.formats.index import MAX_INDEX_BYTES, MAX_SHARDS, parse_index
from diffai_dist.formats.names import is_plain_file_name
from diffai_dist.storage import Profile, Source, local

INDEX = "model.safetensors.index.json"
ONE, TWO, THREE = (f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))
SHARDS = {
    ONE: {"embed": ("F32", (4, 2)), "layers.0": ("BF16", (3,))},
    TWO: {"layers.1": ("BF16", (5,))},
    THREE: {"head": ("F32", (2, 4))},
}


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(str(path), Profile())


def recorded(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The files that are pinned from now on; nothing can be read that was not pinned."""
    asked, pin = set(), local.pin

    def record(url: str, profile: Profile) -> Source:
        asked.add(url)
        return pin(url, profile)

    monkeypatch.setattr(local, "pin", record)
    return asked


def codes(checkpoint: Checkpoint) -> list[str]:
    return [failure.code for failure in checkpoint.failures]


@pytest.mark.parametrize("name", ["", INDEX], ids=["folder", "index"])
def test_shards_become_one_checkpoint_in_order(tmp_path: Path, name: str) -> None:
    write_sharded(tmp_path, SHARDS)
    checkpoint = opened(tmp_path / name)
    assert list(checkpoint.tensors) == ["embed", "layers.0", "layers.1", "head"]
    assert [Path(source.url).name for source in checkpoint.sources] == [ONE, TWO, THREE]
    assert checkpoint.metadata == {"format": "pt"}
    assert (checkpoint.failures, checkpoint.warnings, dict(checkpoint.unreadable)) == ((), (), {})


def test_row27_a_missing_shard_costs_its_own_tensors_only(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    (tmp_path / TWO).unlink()
    checkpoint = opened(tmp_path)
    assert list(checkpoint.tensors) == ["embed", "layers.0", "head"]
    assert codes(checkpoint) == [MissingShard.code]
    assert checkpoint.failures[0].object == str(tmp_path / TWO)
    lost = checkpoint.unreadable["layers.1"]
    assert (lost.code, lost.tensor, lost.object) == (MissingShard.code, "layers.1", str(tmp_path / TWO))


def test_row27_a_dangling_link_is_a_missing_shard(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    (tmp_path / TWO).unlink()
    (tmp_path / TWO).symlink_to("nowhere")
    checkpoint = opened(tmp_path / INDEX)
    assert (codes(checkpoint), list(checkpoint.unreadable)) == ([MissingShard.code], ["layers.1"])


def test_row27_a_broken_shard_header_costs_its_own_tensors_only(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    write_head(tmp_path / THREE, head(b"{"))
    checkpoint = opened(tmp_path)
    assert codes(checkpoint) == [BadHeader.code]
    assert checkpoint.unreadable["head"].code == BadHeader.code
    assert list(checkpoint.tensors) == ["embed", "layers.0", "layers.1"]


def test_row27_a_tensor_of_a_broken_shard_is_not_taken_from_another(tmp_path: Path) -> None:
    shards = SHARDS | {ONE: SHARDS[ONE] | {"layers.1": ("BF16", (5,))}}
    weight_map = {name: shard for shard, tensors in SHARDS.items() for name in tensors}
    write_sharded(tmp_path, shards, weight_map=weight_map)
    (tmp_path / TWO).unlink()
    checkpoint = opened(tmp_path)
    assert "layers.1" not in checkpoint.tensors
    assert checkpoint.unreadable["layers.1"].code == MissingShard.code


def test_row27_a_checkpoint_without_any_shard_is_an_error(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    for shard in SHARDS:
        (tmp_path / shard).unlink()
    with pytest.raises(MissingShard, match=r"none of its 3 shards can be read.*00001-of-00003"):
        opened(tmp_path)


def test_row27_a_tensor_in_two_shards_is_unreadable_and_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS | {TWO: {"layers.1": ("BF16", (5,)), "embed": ("F32", (4, 2))}})
    checkpoint = opened(tmp_path)
    assert "embed" not in checkpoint.tensors
    assert checkpoint.unreadable["embed"].code == BadIndex.code
    assert ONE in checkpoint.unreadable["embed"].found
    assert TWO in checkpoint.unreadable["embed"].found
    assert codes(checkpoint) == [BadIndex.code]
    assert "1 tensors lie in more than one shard: 'embed'" in checkpoint.failures[0].found


def test_row27_a_tensor_mapped_to_the_wrong_shard_is_read_and_the_checkpoint_incomplete(tmp_path: Path) -> None:
    weight_map = {name: shard for shard, tensors in SHARDS.items() for name in tensors} | {"embed": THREE}
    checkpoint = opened(write_sharded(tmp_path, SHARDS, weight_map=weight_map))
    assert checkpoint.tensors["embed"].spans[0].source.url == str(tmp_path / ONE)
    assert not checkpoint.unreadable
    assert "in another shard than the index says: 'embed'" in checkpoint.failures[0].found


def test_row27_a_mapped_tensor_that_no_shard_has_is_unreadable(tmp_path: Path) -> None:
    weight_map = {name: shard for shard, tensors in SHARDS.items() for name in tensors} | {"ghost": TWO}
    checkpoint = opened(write_sharded(tmp_path, SHARDS, weight_map=weight_map))
    assert checkpoint.unreadable["ghost"].code == MissingShard.code
    assert TWO in checkpoint.unreadable["ghost"].found
    assert "1 tensors of the index are in no shard: 'ghost'" in checkpoint.failures[0].found


def test_row27_what_the_index_does_not_know_is_a_warning_only(tmp_path: Path) -> None:
    weight_map = {name: shard for shard, tensors in SHARDS.items() for name in tensors if name != "layers.0"}
    write_sharded(tmp_path, SHARDS, weight_map=weight_map)
    write_sparse(tmp_path / "model-00004-of-00004.safetensors", {"left.over": ("F32", (1,))})
    checkpoint = opened(tmp_path)
    assert not checkpoint.failures
    assert "layers.0" in checkpoint.tensors
    assert "left.over" not in checkpoint.tensors
    assert len(checkpoint.warnings) == 2
    assert "'model-00004-of-00004.safetensors'" in checkpoint.warnings[0]
    assert "not in the index: 'layers.0'" in checkpoint.warnings[1]


@pytest.mark.parametrize(
    ("total", "warned"), [(80.0, 0), (80, 0), (1, 1), (1e300, 1), ("81", 0), (None, 0), (10**4000, 1)]
)
def test_a_wrong_total_size_is_a_warning(tmp_path: Path, total: object, warned: int) -> None:
    checkpoint = opened(write_sharded(tmp_path, SHARDS, metadata={"total_size": total}))
    assert sum("total_size" in warning for warning in checkpoint.warnings) == warned
    assert not checkpoint.failures


def test_shards_with_different_metadata_keep_the_first_and_say_so(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    write_sparse(tmp_path / TWO, SHARDS[TWO], {"format": "mlx", "step": "7"})
    checkpoint = opened(tmp_path)
    assert checkpoint.metadata == {"format": "pt", "step": "7"}
    assert "metadata differ" in checkpoint.warnings[0]


LEAVES = [
    "../x", "..", ".", "/etc/passwd", "C:\\x", "C:x", "s3://other/x", "file:///x", "http://169.254.169.254/latest/",
    "a::b", "%2e%2e/", "%2e%2e%2fx", "x\0.safetensors", "sub/x.safetensors", "sub\\x.safetensors", "", " x", "~x",
    "x?versionId=1", "x#y", "*.safetensors", "[a].safetensors", "x\ny", "\x1b[2J", "\u202ex", "\u200bx", "\ud800",
    "..safetensors", "n" * 300, "\uff0e\uff0e/x",
]  # fmt: skip


@pytest.mark.parametrize("name", LEAVES, ids=[f"row26-{ascii(name)[:20]}" for name in LEAVES])
def test_an_index_that_leaves_its_folder_opens_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sharded(tmp_path, SHARDS, weight_map={"good": ONE, "evil": name})
    asked = recorded(monkeypatch)
    with pytest.raises(BadIndex, match=r"leaves the checkpoint|lone surrogate") as caught:
        opened(tmp_path)
    assert asked == {str(tmp_path / INDEX)}
    assert str(caught.value).isprintable()


FRAGMENTS = [
    ONE, ONE, ONE, TWO, THREE, "secret.safetensors", "sub", "sub/", "..", "../", "/", "//", "\\", ".", "%2e", "%2f",
    "%00", ":", "::", "file://", "s3://b/", "~", "?", "#", "*", "\0", "\n", " ", "\u2215", "\uff0f", "\u202e", "e",
    INDEX,
]  # fmt: skip


@given(st.text(max_size=30) | st.from_regex(r"(\.|/|%2e|%2f|\\|:|s3|model|\x00){1,8}", fullmatch=True))
def test_row26_an_accepted_shard_name_stays_in_its_folder_on_every_system(name: str) -> None:
    if is_plain_file_name(name):
        assert os.path.dirname(os.path.normpath(f"/folder/{name}")) == "/folder"
        assert name not in (".", "..")
        assert not set(name) & set("/\\:%?#*[]\0\n\r\x1b")


@pytest.mark.parametrize("seed", range(4), ids="row26-{}".format)
def test_no_mutated_index_asks_for_anything_outside_its_folder(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside and above the folder lie files that a way out would find; 4 x 1,000 indexes look for one."""
    random = Random(seed)
    folder = write_sharded(tmp_path / "in", SHARDS)
    for secret in (tmp_path / ONE, tmp_path / "secret.safetensors", folder / "sub" / ONE):
        secret.parent.mkdir(exist_ok=True)
        write_sparse(secret, {"secret": ("F32", (1,))})
    asked = recorded(monkeypatch)
    opened_some = 0
    for _ in range(1000):
        names = [
            "".join(random.choices(FRAGMENTS, k=random.choice([1, 1, 1, 2, 3, 4])))
            for _ in range(random.choice([1, 1, 2]))
        ]
        text = json.dumps({"weight_map": {f"t{n}": name for n, name in enumerate(names)}}).encode()
        (folder / INDEX).write_bytes(text.replace(b"e", random.choice([b"e", b"e", b"\\u0065"])))
        try:
            checkpoint = opened(folder / INDEX)
        except CheckpointError:
            continue
        opened_some += 1
        assert "secret" not in checkpoint.tensors
    assert opened_some > 50
    assert {os.path.dirname(url) for url in asked} == {str(folder)}
    assert {os.path.basename(url) for url in asked} <= {INDEX, *SHARDS}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(b"[]", "not an index", id="row28-list"),
        pytest.param(b'"x"', "not an index", id="row28-string"),
        pytest.param(b"{}", "not an index", id="row28-no-weight-map"),
        pytest.param(b'{"weight_map":[]}', "not an index", id="row28-weight-map-list"),
        pytest.param(b'{"weight_map":{"a":1}}', "something else than a file name", id="row28-number"),
        pytest.param(b'{"weight_map":{"a":["x"]}}', "something else than a file name", id="row28-list-value"),
        pytest.param(b'{"weight_map":{"a":"x","a":"y"}}', "duplicate key 'a'", id="row28-duplicate"),
        pytest.param(b'{"weight_map":{},"weight_map":{}}', "duplicate key 'weight_map'", id="row28-duplicate-map"),
        pytest.param(b'{"weight_map":{}} {"weight_map":{}}', "after the end.*column 19", id="row28-two-documents"),
        pytest.param(b'{"weight_map":{"a":NaN}}', "NaN is not JSON", id="row28-nan"),
        pytest.param(b"[" * 100_000, "nested too deeply", id="row28-depth"),
        pytest.param(b'{"a":' + b"9" * 5000 + b"}", "thousands of digits", id="row28-digits"),
        pytest.param(b'{"a":[' + b"{}," * 1000 + b"{}]}", "more than 1,000 entries", id="row28-objects"),
        pytest.param(b"[" * 2_000_001, "more than 2,000,000 fields", id="row28-fields"),
        pytest.param(b"\xff", "invalid UTF-8 at byte 0", id="row28-utf8"),
        pytest.param(b"", "line 1 column 1", id="row28-empty"),
        pytest.param(
            json.dumps({"weight_map": {str(i): f"s{i}" for i in range(MAX_SHARDS + 1)}}).encode(),
            "10,001 shards",
            id="row28-shards",
        ),
    ],
)
def test_an_index_that_is_none_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(BadIndex, match=message):
        parse_index(text, "/x.safetensors.index.json")


def test_row28_an_index_beyond_the_cap_is_not_read(tmp_path: Path) -> None:
    index = write_head(tmp_path / INDEX, b"{", MAX_INDEX_BYTES)
    with pytest.raises(BadIndex, match="268,435,457 bytes, expected at most 268,435,456"):
        opened(index)


def test_an_index_of_broken_archives_says_so(tmp_path: Path) -> None:
    write_head(tmp_path / "pytorch_model-00001-of-00002.bin", b"PK\x03\x04\x14\0\0\0\0\0")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}))
    with pytest.raises(BadHeader, match="a zip archive without a directory"):
        opened(index)


def test_an_index_is_read_where_listing_is_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(url: str, profile: Profile) -> dict[str, int | None]:
        raise Unreadable(url, "forbidden")

    write_sharded(tmp_path, SHARDS)
    (tmp_path / TWO).unlink()
    monkeypatch.setattr(formats, "entries", forbidden)
    checkpoint = opened(tmp_path / INDEX)
    assert list(checkpoint.tensors) == ["embed", "layers.0", "head"]
    assert codes(checkpoint) == [MissingShard.code]


def test_shards_of_a_remote_folder_are_opened_side_by_side_in_order() -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    files = MemoryFileSystem()
    names = [f"model-{n:05}-of-00020.safetensors" for n in range(1, 21)]
    for n, name in enumerate(names):
        header = {f"layers.{n}": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}
        files.pipe_file(f"/side-by-side/{name}", head(header) + b"data")
    weight_map = {f"layers.{n}": name for n, name in enumerate(names)} | {"lost": "model-00021-of-00020.safetensors"}
    files.pipe_file(f"/side-by-side/{INDEX}", json.dumps({"weight_map": weight_map}).encode())
    checkpoint = open_checkpoint("memory://side-by-side", Profile())
    assert list(checkpoint.tensors) == [f"layers.{n}" for n in range(20)]
    assert list(checkpoint.unreadable) == ["lost"]


SHARED = Path(os.environ.get("DIFFAI_DIST_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "real-indexes"
REAL = sorted(SHARED.glob("*/model.safetensors.index.json"))


@pytest.mark.skipif(not REAL, reason="published index files are not at hand")
@pytest.mark.parametrize("path", REAL, ids=[path.parent.name for path in REAL])
def test_published_indexes_open_and_the_broken_one_is_refused(path: Path, tmp_path: Path) -> None:
    text = path.read_bytes()
    if path.parent.name == "bloom-176b":
        with pytest.raises(
            BadIndex, match=r"text after the end of the JSON value, at line 2 column 1\. An index is one"
        ):
            opened(path.parent)
        return
    index = parse_index(text, str(path))
    shards = {shard: {} for shard in index.shards}
    for name, shard in index.weight_map.items():
        shards[shard][name] = ("BF16", (2, 2))
    checkpoint = opened(write_sharded(tmp_path, shards))
    assert checkpoint.tensors.keys() == index.weight_map.keys()
    assert not checkpoint.failures
    assert not checkpoint.warnings
