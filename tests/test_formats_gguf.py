"""GGUF files: what is read of them, as which model they appear, what is refused; real ones by the library's writer."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import (
    MODEL_ARCH_NAMES,
    MODEL_TENSORS,
    TENSOR_NAMES,
    GGMLQuantizationType,
    GGUFReader,
    get_tensor_name_map,
    quants,
)

import ggufs
import models
from diffai_dist.api import compare
from diffai_dist.checkpoint import Checkpoint
from diffai_dist.cluster import Place
from diffai_dist.comparison import Pair, compare_members
from diffai_dist.errors import BadHeader, CheckpointError, UnknownFormat
from diffai_dist.formats import gguf_header, open_checkpoint
from diffai_dist.formats.gguf import TYPES, parts_of
from diffai_dist.formats.gguf_names import FAMILIES, logical_name
from diffai_dist.pipeline import run_plan
from diffai_dist.plan import make_plan
from diffai_dist.schemes.ggml import Ggml
from diffai_dist.storage import Profile, read

HEADS = {"attention__head_count": 8, "attention__head_count_kv": 4, "block_count": 2}


def opened(path: Path, **options: bool) -> Checkpoint:
    return open_checkpoint(str(path), Profile(), **options)


def mapped(architecture: str, arrays: dict[str, np.ndarray], kinds: dict[str, str]) -> dict[str, Any]:
    """The model as the library would name and store it; kinds by the last part of the GGUF name, else F32."""
    arch = next(one for one, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, 4)
    found = {}
    for name, array in arrays.items():
        stored = names.get_name(name, (".weight", ".bias"))
        found[stored] = array, kinds.get(stored.split(".")[-2], "F32")
    return found


def written(path: Path, arrays: dict[str, np.ndarray], kinds: dict[str, str], split: int = 0) -> Path:
    """A file as the converter makes it of a llama."""
    tensors = mapped("llama", arrays, kinds)
    for name, (array, kind) in tensors.items():
        if "attn_q" in name or "attn_k" in name:
            tensors[name] = ggufs.permuted(array, 8 if "attn_q" in name else 4), kind
    return ggufs.write(path, "llama", tensors, split, **HEADS)


@pytest.fixture
def model() -> dict[str, np.ndarray]:
    return ggufs.llama()


def statuses(baseline: Path, candidate: Path, **options: Any) -> dict[str, int]:
    """How many tensors have each status, where everything could be read."""
    return compare(str(baseline), str(candidate), **options).raise_for_failures().result.statuses


def dequantised(array: np.ndarray, kind: str) -> np.ndarray:
    """What the library makes of the values that it stores."""
    constant = GGMLQuantizationType[kind]
    return quants.dequantize(quants.quantize(array, constant), constant)


def test_a_llama_is_the_model_it_was_converted_from(tmp_path: Path, model: dict[str, np.ndarray]) -> None:
    baseline = models.write(tmp_path / "model.safetensors", model)
    assert statuses(baseline, written(tmp_path / "m.gguf", model, {})) == {"identical": len(model)}


def test_quantised_values_are_those_of_the_library(tmp_path: Path, model: dict[str, np.ndarray]) -> None:
    kinds = {"attn_q": "Q8_0", "attn_k": "Q4_0", "attn_v": "BF16", "ffn_up": "Q5_1", "ffn_down": "MXFP4"}
    parts = {"q_proj": "Q8_0", "k_proj": "Q4_0", "v_proj": "BF16", "up_proj": "Q5_1", "down_proj": "MXFP4"}
    expected = {
        name: dequantised(array, kind) if (kind := parts.get(name.split(".")[-2])) else array
        for name, array in model.items()
    }
    baseline, file = models.write(tmp_path / "model.safetensors", expected), written(tmp_path / "m.gguf", model, kinds)
    assert compare(str(baseline), str(file)).raise_for_failures().result.whole.max_abs == 0
    tensors = opened(file).tensors
    query, value = (tensors[f"model.layers.1.self_attn.{one}_proj.weight"] for one in "qv")
    assert (query.dtype, query.shape, query.scheme) == ("Q8_0", (256, 256), Ggml("Q8_0", 8))
    assert (value.dtype, value.scheme) == ("BF16", None)


def test_raw_is_what_the_file_stores(tmp_path: Path, model: dict[str, np.ndarray]) -> None:
    file = written(tmp_path / "m.gguf", model, {"attn_q": "Q8_0"})
    stored = opened(file, raw=True).tensors
    assert {one.scheme for one in stored.values()} == {None}
    reader = {one.name: one for one in GGUFReader(file).tensors}
    assert stored.keys() == reader.keys()
    for name, one in stored.items():
        (span,) = one.spans
        assert read(span.source, span.start, span.stop, Profile()) == reader[name].data.tobytes()
        assert one.shape == tuple(reversed(reader[name].shape.tolist()))
    other = written(tmp_path / "n.gguf", model | {"lm_head.weight": model["lm_head.weight"] + 1}, {"attn_q": "Q8_0"})
    assert statuses(file, other, raw=True) == {"changed": 1, "identical": len(model) - 1}


def test_permuted_rows_are_read_once(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    model = {"model.layers.0.self_attn.q_proj.weight": generator.standard_normal((600, 5120)).astype(np.float32)}
    stored = {"blk.0.attn_q.weight": (ggufs.permuted(*model.values(), 3), "F16")}
    file = ggufs.write(tmp_path / "m.gguf", "llama", stored, attention__head_count=3)
    half = {name: array.astype(np.float16) for name, array in model.items()}
    members = opened(models.write(tmp_path / "a.safetensors", half)), opened(file)
    plan = dataclasses.replace(make_plan(compare_members(members, (Pair(0, 1),)), Profile()), arena=2**20)
    found, reading = run_plan(plan, Place(threads=1))
    assert (found.shifts["changed"] == 0).all()
    assert (found.shifts["count"] == 600 * 5120).all()
    assert reading.nbytes == 2 * 600 * 5120 * 2


@pytest.mark.parametrize("architecture", FAMILIES)
def test_names_are_those_of_the_library(architecture: str) -> None:
    arch = next(one for one, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, 4)
    stored = [TENSOR_NAMES[one].format(bid=3) for one in MODEL_TENSORS[arch]]
    for name in {name + ".weight" for name in stored}:
        found = logical_name(name, FAMILIES[architecture])
        if found == name:  # what the library knows and no model has: rotary factors, and stacks of experts
            assert (
                "rope" in name or "attn_rot" in name or "_exps" in name or "attn_qkv" in name or architecture == "phi3"
            )
        else:
            assert names.get_name(found, (".weight",)) == name
    for stem, name in FAMILIES[architecture].experts.items():
        merged = f"model.layers.3.{name.replace('.{}', '')}".replace("block_sparse_moe", "mlp")
        assert names.get_name(merged) in (f"blk.3.{stem}", None)


@pytest.mark.parametrize(
    ("architecture", "pattern"),
    [
        ("llama", "model.layers.1.block_sparse_moe.experts.{}.w{}.weight"),
        ("qwen3moe", "model.layers.1.mlp.experts.{}.{}_proj.weight"),
    ],
)
def test_stacked_experts_become_one_tensor_each(tmp_path: Path, architecture: str, pattern: str) -> None:
    generator = np.random.default_rng(5)
    parts = {"1": "gate", "2": "down", "3": "up"}
    arrays = {
        pattern.format(expert, number if architecture == "llama" else part): generator.standard_normal(
            (32, 64) if part == "down" else (64, 32)
        ).astype(np.float32)
        for expert in range(3)
        for number, part in parts.items()
    }
    stacks = {
        f"blk.1.ffn_{part}_exps.weight": (
            np.stack(
                [arrays[pattern.format(expert, number if architecture == "llama" else part)] for expert in range(3)]
            ),
            kind,
        )
        for (number, part), kind in zip(parts.items(), ("F32", "Q8_0", "Q4_0"), strict=True)
    }
    file = ggufs.write(tmp_path / "m.gguf", architecture, stacks)
    expected = {
        name: dequantised(
            array, "Q8_0" if array.shape[0] == 32 else "Q4_0" if name.split(".")[-2] in ("w3", "up_proj") else "F32"
        )
        for name, array in arrays.items()
    }
    tensors = opened(file).tensors
    assert {name: one.shape for name, one in tensors.items()} == {name: one.shape for name, one in arrays.items()}
    baseline = models.write(tmp_path / "model.safetensors", expected)
    assert compare(str(baseline), str(file)).raise_for_failures().result.whole.max_abs == 0
    assert sum(one.nbytes for one in tensors.values()) == sum(
        one.nbytes for one in opened(file, raw=True).tensors.values()
    )


def test_stacks_of_nothing_are_not_cut_without_end(tmp_path: Path) -> None:
    fields = [ggufs.field("general.architecture", 8, ggufs.string("llama"))]
    entries = [ggufs.entry(f"blk.{layer}.ffn_up_exps.weight", [0, 1, 2**40], 0, 0) for layer in range(100)]
    file = tmp_path / "m.gguf"
    file.write_bytes(ggufs.header(fields, entries))
    with pytest.raises(BadHeader, match="stacks of 109,951,162,777,600 experts"):
        opened(file)
    assert len(opened(file, raw=True).tensors) == 100


def test_norms_of_gemma_have_1_taken_off_and_it_is_told(tmp_path: Path) -> None:
    norms = {
        "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
        "model.layers.0.pre_feedforward_layernorm.weight": "blk.0.ffn_norm.weight",
        "model.layers.0.post_feedforward_layernorm.weight": "blk.0.post_ffw_norm.weight",
        "model.norm.weight": "output_norm.weight",
    }
    weights = np.arange(-16, 16, dtype=np.float32) / 8
    stored = {name: (weights + 1, "F32") for name in norms.values()} | {"token_embd.weight": (weights[None], "F32")}
    file = ggufs.write(tmp_path / "m.gguf", "gemma2", stored)
    arrays = dict.fromkeys(norms, weights) | {"model.embed_tokens.weight": weights[None]}
    assert statuses(models.write(tmp_path / "a.safetensors", arrays), file) == {"identical": 5}
    assert [text for text in opened(file).warnings if "1 was taken off norms" in text]
    half = ggufs.write(tmp_path / "h.gguf", "gemma2", {"output_norm.weight": (weights, "F16")})
    assert "a norm of F16" in opened(half).unreadable["model.norm.weight"].found


def test_another_architecture_keeps_the_names_of_the_file_and_says_so(tmp_path: Path) -> None:
    tensors = {"blk.0.attn_q.weight": (np.ones((64, 32), np.float32), "Q8_0")}
    checkpoint = opened(ggufs.write(tmp_path / "m.gguf", "falcon", tensors))
    assert checkpoint.tensors["blk.0.attn_q.weight"].scheme == Ggml("Q8_0")
    assert any("'falcon' is none of the architectures that are undone" in text for text in checkpoint.warnings)
    bare = tmp_path / "bare.gguf"
    bare.write_bytes(ggufs.header([], [ggufs.entry("a.b", [2, 3], 0, 0)]) + bytes(32))
    assert any("a file without an architecture" in text for text in opened(bare).warnings)
    assert opened(bare).tensors["a.b"].shape == (3, 2)


@pytest.mark.parametrize(
    "fields",
    [{}, {"attention__head_count": 3}, {"attention__head_count": 0}, {"attention__head_count": 2**32 - 1}],
)
def test_rows_whose_order_cannot_be_told_are_not_guessed(tmp_path: Path, fields: dict[str, int]) -> None:
    tensors = {
        "blk.0.attn_q.weight": (np.ones((64, 32), np.float32), "Q8_0"),
        "blk.0.attn_v.weight": (np.ones((64, 32), np.float32), "Q8_0"),
    }
    file = ggufs.write(tmp_path / "m.gguf", "llama", tensors, **fields)
    checkpoint = opened(file)
    assert list(checkpoint.tensors) == ["model.layers.0.self_attn.v_proj.weight"]
    (failure,) = checkpoint.unreadable.values()
    assert failure.tensor == "model.layers.0.self_attn.q_proj.weight"
    assert "llama.attention.head_count" in failure.found
    assert "--raw" in failure.hint
    assert len(opened(file, raw=True).tensors) == 2


def test_permuted_rows_would_be_in_memory_as_a_whole(tmp_path: Path) -> None:
    heads = ggufs.field("llama.attention.head_count", 4, struct.pack("<I", 8))
    fields = [ggufs.field("general.architecture", 8, ggufs.string("llama")), heads]
    for rows, usable in ((2**14, True), (2**14 + 16, False)):
        head = ggufs.header(fields, [ggufs.entry("blk.0.attn_q.weight", [2**14, rows], 0, 0)])
        with (tmp_path / "m.gguf").open("wb") as file:
            file.write(head)
            file.truncate(len(head) + 4 * rows * 2**14)
        assert ("model.layers.0.self_attn.q_proj.weight" in opened(tmp_path / "m.gguf").tensors) == usable


def test_two_names_for_one_tensor_keep_the_names_of_the_file(tmp_path: Path) -> None:
    one = (np.ones(32, np.float32), "F32")
    file = ggufs.write(tmp_path / "m.gguf", "qwen2", {"output.weight": one, "lm_head.weight": one})
    checkpoint = opened(file)
    assert set(checkpoint.tensors) == {"output.weight", "lm_head.weight"}
    assert any("have the same name in the model" in text for text in checkpoint.warnings)


def test_a_file_is_known_by_its_first_bytes(tmp_path: Path, model: dict[str, np.ndarray]) -> None:
    file = written(tmp_path / "m.gguf", model, {}).rename(tmp_path / "model.safetensors")
    assert opened(file).tensors.keys() == model.keys()


def test_metadata_and_configuration(tmp_path: Path, model: dict[str, np.ndarray]) -> None:
    file = written(tmp_path / "m.gguf", model, {})
    checkpoint = opened(file, with_config=True)
    assert checkpoint.metadata["general.architecture"] == "llama"
    assert checkpoint.metadata["llama.attention.head_count"] == "8"
    assert checkpoint.metadata["llama.attention.layer_norm_rms_epsilon"] == "1e-05"
    assert checkpoint.metadata["tokenizer.ggml.add_bos_token"] == "True"
    assert checkpoint.metadata["tokenizer.ggml.tokens"] == "[3 strings]"
    assert checkpoint.config == {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4}
    assert opened(file).config is None
    assert checkpoint.format == "gguf"


@pytest.mark.parametrize("whole", ["m.gguf", "folder"])
def test_all_parts_of_a_split_file_are_one_checkpoint(tmp_path: Path, model: dict[str, np.ndarray], whole: str) -> None:
    folder = tmp_path / "split"
    folder.mkdir()
    written(folder / "m.gguf", model, {"attn_q": "Q8_0"}, split=5)
    parts = sorted(folder.iterdir())
    assert [path.name for path in parts] == list(parts_of("m-00003-of-00005.gguf"))
    single = written(tmp_path / "m.gguf", model, {"attn_q": "Q8_0"})
    name = folder if whole == "folder" else parts[2]
    assert statuses(single, name) == {"identical": len(model)}
    assert not [text for text in opened(name).warnings if "metadata" in text]
    parts[1].unlink()
    lost = opened(name)
    assert lost.unknown is not None
    assert parts[1].name in lost.failures[0].object
    assert 0 < len(lost.tensors) < len(model)


def test_the_header_of_a_model_with_a_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = b"".join(ggufs.string(f"token {number}") for number in range(400_000))
    tokens = ggufs.field("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 400_000) + words)
    scores = ggufs.field("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 400_000) + bytes(1_600_000))
    file = tmp_path / "m.gguf"
    file.write_bytes(ggufs.header([tokens, scores], [ggufs.entry("w", [32], 0, 0)]) + bytes(128))
    asked: list[int] = []

    def counted(source: Any, start: int, stop: int, profile: Profile) -> bytes:
        asked.append(stop - start)
        return read(source, start, stop, profile)

    monkeypatch.setattr(gguf_header, "read", counted)
    assert opened(file).metadata["tokenizer.ggml.tokens"] == "[400,000 strings]"
    assert len(asked) == 3  # to 1 MB, 4 MB, 16 MB or the end
    assert sum(asked) + 128 * 1024 == file.stat().st_size


def scalar(kind: int, data: bytes) -> bytes:
    return ggufs.header([ggufs.field("k", kind, data)], [])


ENTRY = ggufs.entry("w", [32], 0, 0)
LONG = struct.pack("<Q", 2**63)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"GGUF", "the header ends behind the file"),
        (ggufs.header([], [ENTRY], version=1), "this is GGUF version 1"),
        (ggufs.header([], [ENTRY], version=4), "this is GGUF version 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 1, 1), "this is big-endian GGUF"),
        (ggufs.header([], [ENTRY], tensor_count=2**62), "tensors and 0 keys"),
        (ggufs.header([], [ENTRY], key_count=2**62), "keys"),
        (ggufs.header([], [ENTRY], tensor_count=3), "the header ends behind the file"),
        (ggufs.header([LONG + b"key"], []), "a name of 9,223,372,036,854,775,808 bytes"),
        (scalar(8, LONG + b"text"), "the header ends behind the file"),
        (scalar(9, struct.pack("<IQ", 8, 2**63) + b"text"), "the header ends behind the file"),
        (scalar(9, struct.pack("<IQ", 0, 2**63) + b"text"), "the header ends behind the file"),
        (scalar(9, struct.pack("<IQ", 8, 1) + LONG), "the header ends behind the file"),
        (scalar(9, struct.pack("<IQIQ", 9, 1, 0, 0)), "an array of arrays"),
        (scalar(9, struct.pack("<IQ", 13, 0)), "an array of the unknown type 13"),
        (scalar(13, b""), "a value of the unknown type 13"),
        (ggufs.header([ggufs.field("a", 7, b"\0")] * 2, []), "the key 'a' twice"),
        (ggufs.header([ggufs.field("general.alignment", 4, b"\3\0\0\0")], []), "an alignment of '3'"),
        (ggufs.header([ggufs.field("general.alignment", 4, bytes(4))], []), "an alignment of '0'"),
        (ggufs.header([ggufs.field("general.alignment", 10, LONG)], []), "an alignment of"),
        (ggufs.header([], [ggufs.entry(b"\xff", [], 0, 0)]), "a name that is not UTF-8"),
        (ggufs.header([], [ENTRY, ENTRY]), "two tensors of the same name"),
        (ggufs.header([], [ggufs.entry("w", [1] * 5, 0, 0)]), "tensor 'w' of 5 dimensions"),
        (ggufs.header([], [ggufs.entry("w", [2**40, 2**40], 0, 0)]), "overflows"),
        (ggufs.header([], [ggufs.entry("w", [2**63, 0], 0, 0)]), "overflows"),
        (ggufs.header([], [ggufs.entry("w", [33], 2, 0)]), "rows of 33 elements are no whole Q4_0 blocks"),
        (ggufs.header([], [ggufs.entry("w", [], 12, 0)]), "rows of 1 elements are no whole Q4_K blocks"),
        (ggufs.header([], [ggufs.entry("w", [8], 0, 16)]), "begins at byte 16 of the data"),
        (ggufs.header([], [ggufs.entry("w", [2**30], 0, 0)]), "needs"),
        (ggufs.header([], [ggufs.entry("w", [1], 0, 2**63)]), "needs"),
        (ggufs.header([], [ggufs.entry("a", [16], 0, 0), ggufs.entry("b", [16], 0, 32)]), "'a' and 'b' overlap"),
    ],
)  # fmt: skip
def test_impossible_headers_are_refused_with_what_is_wrong(tmp_path: Path, data: bytes, found: str) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(data + bytes(256 if b"overlap" in found.encode() or "behind" not in found else 0))
    with pytest.raises((BadHeader, UnknownFormat)) as caught:
        opened(file)
    assert found in str(caught.value)


def test_a_header_that_does_not_end_is_not_read_on_and_on(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    with file.open("wb") as stream:
        stream.write(scalar(8, struct.pack("<Q", 2**30)))
        stream.truncate(2**31)
    with pytest.raises(BadHeader, match="a header of more than 67,108,864 bytes"):
        opened(file)


def test_types_that_are_not_known_spoil_their_tensors_only(tmp_path: Path) -> None:
    entries = [ggufs.entry("old", [32], 4, 0), ggufs.entry("new", [32], 99, 0), ggufs.entry("w", [32], 8, 0)]
    file = tmp_path / "m.gguf"
    file.write_bytes(ggufs.header([], entries) + bytes(64))
    checkpoint = opened(file)
    assert list(checkpoint.tensors) == ["w"]
    assert "Q4_2" in checkpoint.unreadable["old"].found
    assert "the unknown type 99" in checkpoint.unreadable["new"].found


def test_the_numbers_of_types_are_those_of_the_library() -> None:
    known = {one.value: one.name for one in GGMLQuantizationType}
    assert known.items() - TYPES.items() == {(9, "Q8_1"), (15, "Q8_K")}
    assert TYPES.items() <= known.items()


@pytest.mark.parametrize("name", ["m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m-1-of-2.gguf", "m.gguf", "x"])
def test_names_that_are_no_parts(name: str) -> None:
    assert parts_of(name) == (name,)


def test_a_part_that_is_alone_says_which_are_missing(tmp_path: Path) -> None:
    file = tmp_path / "m-00002-of-00002.gguf"
    file.write_bytes(ggufs.header([], [ggufs.entry("w", [8], 0, 0)]) + bytes(32))
    assert opened(file).failures[0].object.endswith("m-00001-of-00002.gguf")
    file.write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="the header ends behind the file"):
        opened(file)
