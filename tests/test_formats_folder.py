"""Which files of a folder are the checkpoint: one, or an error that lists the candidates."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from checkpoints import write_sharded, write_sparse
from diffai_dist.errors import CheckpointError, MissingShard, UnknownFormat, Unreadable, UsageError
from diffai_dist.formats import open_checkpoint
from diffai_dist.formats.folder import Layout, choose
from diffai_dist.storage import Profile

SET = tuple(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))
BINS = tuple(f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2))
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("names", "layout", "not_read"),
    [
        (["model.safetensors", "config.json"], Layout(single="model.safetensors"), []),
        (["adapter_model.safetensors", "README.md"], Layout(single="adapter_model.safetensors"), []),
        (["model.safetensors", "optimizer.safetensors"], Layout(single="model.safetensors"), ["optimizer.safetensors"]),
        (["._model.safetensors", "model.safetensors"], Layout(single="model.safetensors"), []),
        ([INDEX, *SET], Layout(index=INDEX), []),
        (["diffusion.safetensors.index.json"], Layout(index="diffusion.safetensors.index.json"), []),
        (
            [INDEX, "model.fp16.safetensors.index.json"],
            Layout(index=INDEX),
            ["model.fp16.safetensors.index.json"],
        ),
        (["model.safetensors", INDEX], Layout(single="model.safetensors"), [INDEX]),
        (SET, Layout(shards=SET), []),
        (SET[1:], Layout(shards=SET), []),
        ([*SET, "optimizer.safetensors"], Layout(shards=SET), ["optimizer.safetensors"]),
        (["m_00001-of-00001.safetensors"], Layout(shards=("m_00001-of-00001.safetensors",)), []),
        (["m-00001-of-000001.safetensors"], Layout(shards=("m-00001-of-000001.safetensors",)), []),
        (["pytorch_model.bin", "training_args.bin", "optimizer.pt"], Layout(single="pytorch_model.bin"), []),
        (["a.pt", "pytorch_model.bin"], Layout(single="pytorch_model.bin"), ["a.pt"]),
        (["step-100.pt"], Layout(single="step-100.pt"), []),
        (["pytorch_model.bin.index.json", *BINS], Layout(index="pytorch_model.bin.index.json"), []),
        (BINS[:1], Layout(shards=BINS), []),
        ([".metadata", "__0_0.distcp", "common.pt"], Layout(metadata=".metadata"), ["common.pt"]),
        ([".metadata", "x.pt"], Layout(single="x.pt"), []),
        (["model.safetensors", "pytorch_model.bin"], Layout(single="model.safetensors"), ["pytorch_model.bin"]),
        (["model.safetensors", "optimizer.pt", "training_args.bin"], Layout(single="model.safetensors"), []),
        ([*SET, *BINS], Layout(shards=SET), BINS[:1]),
        (["x-00001-of-00002.gguf"], Layout(shards=("x-00001-of-00002.gguf", "x-00002-of-00002.gguf")), []),
        (["m-00003-of-00002.safetensors"], Layout(single="m-00003-of-00002.safetensors"), []),
        (["m-00001-of-99999.safetensors"], Layout(single="m-00001-of-99999.safetensors"), []),
    ],
)
def test_a_folder_has_one_checkpoint(names: list[str], layout: Layout, not_read: list[str]) -> None:
    found = choose(names, "/folder")
    assert dataclasses.replace(found, warnings=()) == layout
    assert len(found.warnings) == bool(not_read)
    for name in not_read:
        assert re.search(f"not read, although beside it.*: {name!r}", found.warnings[0])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.safetensors", "optimizer.safetensors"], "several safetensors files .*'a.safetensors', 'optimizer.safet"),
        (["a.safetensors.index.json", "b.safetensors.index.json"], "several indexes .*'a.safetensors.index.json', 'b"),
        ([*SET, "x-00001-of-00001.safetensors"], "several safetensors files .*'x-00001-of-00001.safetensors'"),
        (["a.pt", "b.pt"], "several torch files and no pytorch_model.bin or .*'a.pt', 'b.pt'"),
        (["optimizer.pt", "rng_state_0.pth", "training_args.bin"], "no weight file among the 3 files"),
        (["config.json"], "no weight file among the 1 files of this folder.*subfolder"),
        ([], "no weight file among the 0 files"),
    ],
)
def test_a_folder_without_one_checkpoint_lists_what_it_has(names: list[str], message: str) -> None:
    with pytest.raises(UnknownFormat, match=message):
        choose(names, "/folder")


def test_the_single_file_beside_an_index_is_read_and_that_is_said(tmp_path: Path) -> None:
    write_sharded(tmp_path, {SET[0]: {"new": ("F32", (2,))}})
    write_sparse(tmp_path / "model.safetensors", {"stale": ("F32", (2,))})
    checkpoint = open_checkpoint(str(tmp_path), Profile())
    assert list(checkpoint.tensors) == ["stale"]
    assert "read 'model.safetensors'; not read, although beside it" in checkpoint.warnings[0]
    assert INDEX in checkpoint.warnings[0]


def test_numbered_shards_need_no_index_but_must_be_complete(tmp_path: Path) -> None:
    for n, name in enumerate(SET):
        write_sparse(tmp_path / name, {f"layers.{n}": ("F32", (2,))})
    checkpoint = open_checkpoint(str(tmp_path), Profile())
    assert list(checkpoint.tensors) == ["layers.0", "layers.1", "layers.2"]
    assert not checkpoint.failures
    (tmp_path / SET[1]).unlink()
    checkpoint = open_checkpoint(str(tmp_path), Profile())
    assert list(checkpoint.tensors) == ["layers.0", "layers.2"]
    assert [(failure.code, failure.object) for failure in checkpoint.failures] == [
        (MissingShard.code, str(tmp_path / SET[1]))
    ]


def test_optimizer_state_beside_the_weights_is_never_merged_in(tmp_path: Path) -> None:
    write_sparse(tmp_path / "model.safetensors", {"w": ("F32", (2,))})
    write_sparse(tmp_path / "optimizer.safetensors", {"exp_avg": ("F32", (2,))})
    assert list(open_checkpoint(str(tmp_path), Profile()).tensors) == ["w"]


def test_a_cache_snapshot_of_links_is_a_checkpoint(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    write_sharded(blobs, {SET[0]: {"a": ("F32", (2,))}, SET[1]: {"b": ("F32", (2,))}})
    for number, file in enumerate(sorted(blobs.iterdir())):
        name = file.name
        file.rename(blobs / f"{number:064x}")
        (snapshot / name).symlink_to(f"../../blobs/{number:064x}")
    checkpoint = open_checkpoint(str(snapshot), Profile())
    assert (list(checkpoint.tensors), checkpoint.failures) == (["a", "b"], ())


def test_row25_what_is_no_regular_file_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "fifo", tmp_path / "loop", Path("/dev/null"), Path("/proc/version"), tmp_path / "absent"):
        with pytest.raises(Unreadable):
            open_checkpoint(str(path), Profile())


def test_row25_a_shard_that_is_a_fifo_costs_itself_only(tmp_path: Path) -> None:
    write_sharded(tmp_path, {SET[0]: {"a": ("F32", (2,))}, SET[1]: {"b": ("F32", (2,))}})
    (tmp_path / SET[1]).unlink()
    os.mkfifo(tmp_path / SET[1])
    checkpoint = open_checkpoint(str(tmp_path / INDEX), Profile())
    assert (list(checkpoint.tensors), list(checkpoint.unreadable)) == (["a"], ["b"])


def test_an_empty_folder_and_a_chained_url_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weight file"):
        open_checkpoint(str(tmp_path), Profile())
    with pytest.raises(UsageError, match="chained"):
        open_checkpoint("simplecache::s3://bucket/x", Profile())
