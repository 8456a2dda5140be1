"""GPTQ: every width, both kinds of zero points, any order of inputs, against GPTQModel and against NumPy."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import checkpoints
import models
from decoding import FIXTURES, by_library, cut, failure_of, opened, run_of, same_bits, values_of, write
from diffai_dist import compare
from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.formats import quantised
from diffai_dist.formats.quantised import HEAD_BYTES, MOST_HEADS
from diffai_dist.schemes.gptq import find
from diffai_dist.schemes.grouped import V1, V1_WORDS, V2
from diffai_dist.schemes.stored import Declared, Stored, Undecodable
from diffai_dist.storage import Profile, Read, Source, fill, traffic

Arrays = dict[str, np.ndarray]

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "checkpoint_format": "gptq"}
GPTQ_V2 = GPTQ | {"checkpoint_format": "gptq_v2"}


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """int32 words down the first axis, from the bits of the codes one after the other, the last word filled with 0."""
    stream = codes[:, None, :].astype(np.int64) >> np.arange(bits)[None, :, None] & 1
    stream = stream.reshape(-1, codes.shape[1]).astype(np.uint8)
    filled = np.pad(stream, [(0, -len(stream) % 32), (0, 0)])
    octets = np.packbits(filled, axis=0, bitorder="little")
    return np.ascontiguousarray(np.ascontiguousarray(octets.T).view(np.int32).T)


class Layer:
    """A layer of random codes: what is stored of it, and its values."""

    def __init__(
        self, inputs: int, outputs: int, bits: int = 4, group: int = 32, v1: bool = True, symmetric: bool = False,
        dtype: Any = np.float16, seed: int = 0, ordered: bool = True, shuffled: bool = False,
    ) -> None:  # fmt: skip
        generator = np.random.default_rng(seed)
        groups = -(-inputs // group)
        self.bits, self.v1 = bits, v1
        self.codes = generator.integers(0, 2**bits, (inputs, outputs))
        self.zeros = generator.integers(0, 2**bits, (groups, outputs))
        if symmetric:
            self.zeros[:] = 2 ** (bits - 1)
        self.scales = generator.uniform(-1, 1, (groups, outputs)).astype(dtype)
        self.order = (np.arange(inputs) // group).astype(np.int32)
        if shuffled:
            generator.shuffle(self.order)
        self.ordered = ordered or shuffled

    def arrays(self, name: str = "m") -> Arrays:
        stored = (self.zeros - self.v1) % 2**self.bits
        arrays = {
            f"{name}.qweight": packed(self.codes, self.bits),
            f"{name}.qzeros": np.ascontiguousarray(packed(stored.T, self.bits).T),
            f"{name}.scales": self.scales,
        }
        return arrays | ({f"{name}.g_idx": self.order} if self.ordered else {})

    def values(self, zeros: np.ndarray | None = None) -> np.ndarray:
        moved = self.codes - (self.zeros if zeros is None else zeros)[self.order]
        return np.ascontiguousarray((moved.astype(np.float32) * self.scales.astype(np.float32)[self.order]).T)


@pytest.mark.parametrize(
    ("case", "versions"),
    [("v1", {V1_WORDS, V1}), ("v2", {V2}), ("v1-zeros", {V1_WORDS, V1})],
)
def test_values_are_those_of_gptqmodel(case: str, versions: set[str]) -> None:
    checkpoint, (library, _) = opened(FIXTURES / "gptq" / case), by_library(f"gptq/{case}")
    assert {name for name, one in checkpoint.tensors.items() if one.scheme} == set(library)
    assert checkpoint.warnings == ()
    assert not checkpoint.unreadable
    for name, expected in library.items():
        tensor, bits = checkpoint.tensors[name], name[4:5] if name.startswith("bits") else "4"
        assert (tensor.dtype, tensor.shape) == (f"gptq-{bits}bit", expected.shape)
        assert same_bits(values_of(tensor), expected)
        for first, stop in cut(tensor.elements, 1):
            assert same_bits(run_of(tensor, first, stop), expected.reshape(-1)[first:stop])
    assert {one.scheme.zeros for one in checkpoint.tensors.values() if one.scheme} == versions


@given(
    inputs=st.integers(1, 20).map(lambda words: 32 * words),
    outputs=st.integers(1, 10).map(lambda words: 32 * words),
    bits=st.sampled_from([2, 3, 4, 8]),
    group=st.sampled_from([16, 32, 48, 64, 1000]),
    dtype=st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32]),
    v1=st.booleans(),
    order=st.sampled_from(["", "stored", "shuffled"]),
    seed=st.integers(0, 99),
)
def test_runs_of_any_layer_are_codes_less_zero_points_times_scales(
    tmp_path_factory: pytest.TempPathFactory,
    inputs: int,
    outputs: int,
    bits: int,
    group: int,
    dtype: Any,
    v1: bool,
    order: str,
    seed: int,
) -> None:
    layer = Layer(inputs, outputs, bits, group, v1, False, dtype, seed, bool(order), order == "shuffled")
    config = GPTQ | {"checkpoint_format": "gptq" if v1 else "gptq_v2", "group_size": group, "bits": bits}
    tensor = opened(write(tmp_path_factory.getbasetemp() / "any", layer.arrays(), config)).tensors["m.weight"]
    assert (tensor.dtype, tensor.shape) == (f"gptq-{bits}bit", (outputs, inputs))
    expected = layer.values()
    for first, stop in [(0, tensor.elements), *cut(tensor.elements, seed)]:
        assert same_bits(run_of(tensor, first, stop), expected.reshape(-1)[first:stop])


EMBEDDED = "embeddings by their names: read as [tokens, features], as GPTQModel packs those"


def test_embeddings_lie_as_gptqmodel_stores_them(tmp_path: Path) -> None:
    """Tokens are the inputs: what is decoded has a row for each, as the unquantised weight has, and no transpose."""
    checkpoint, (library, _) = opened(FIXTURES / "gptq/embeddings"), by_library("gptq/embeddings")
    assert {name: one.shape for name, one in checkpoint.tensors.items()} == {
        "model.embed_tokens.weight": (104, 32),
        "transformer.wte.weight": (100, 32),
    }
    assert checkpoint.warnings == (f"{EMBEDDED} ('model.embed_tokens.weight', 'transformer.wte.weight')",)
    for name, expected in library.items():
        tensor = checkpoint.tensors[name]
        assert same_bits(values_of(tensor), expected)
        for first, stop in cut(tensor.elements, 1):
            assert same_bits(run_of(tensor, first, stop), expected.reshape(-1)[first:stop])


@given(
    tokens=st.integers(1, 300),
    features=st.integers(1, 5).map(lambda words: 32 * words),
    bits=st.sampled_from([2, 3, 4, 8]),
    group=st.sampled_from([16, 48, 1000]),
    dtype=st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32]),
    v1=st.booleans(),
    shuffled=st.booleans(),
    seed=st.integers(0, 99),
)
def test_runs_of_any_embedding(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: int,
    features: int,
    bits: int,
    group: int,
    dtype: Any,
    v1: bool,
    shuffled: bool,
    seed: int,
) -> None:
    layer = Layer(tokens, features, bits, group, v1, False, dtype, seed, True, shuffled)
    config = GPTQ | {"checkpoint_format": "gptq" if v1 else "gptq_v2", "group_size": group, "bits": bits}
    folder = write(tmp_path_factory.getbasetemp() / "embedding", layer.arrays("model.embed_tokens"), config)
    tensor = opened(folder).tensors["model.embed_tokens.weight"]
    expected = layer.values().T
    for first, stop in [(0, tensor.elements), *cut(tensor.elements, seed)]:
        assert same_bits(run_of(tensor, first, stop), expected.reshape(-1)[first:stop])


@pytest.mark.parametrize("size", [-1, 128])
def test_one_group_of_all_tokens_is_as_declared(tmp_path: Path, size: int) -> None:
    layer = Layer(96, 64, group=96, ordered=False)
    checkpoint = opened(write(tmp_path, layer.arrays("transformer.wte"), GPTQ | {"group_size": size}))
    assert checkpoint.warnings == (f"{EMBEDDED} ('transformer.wte.weight')",)


def test_a_square_embedding_equals_the_one_it_was_made_of(tmp_path: Path) -> None:
    """As many tokens as features: a transpose would go unseen by its shape."""
    layer = Layer(64, 64)
    write(tmp_path / "quantised", layer.arrays("model.embed_tokens"), GPTQ)
    write(tmp_path / "plain", {"model.embed_tokens.weight": np.ascontiguousarray(layer.values().T)})
    (record,) = compare(str(tmp_path / "plain"), str(tmp_path / "quantised")).records
    assert record["change"]["max_abs"] == 0


@pytest.mark.parametrize("config", ["config.json", "quantize_config.json"])
def test_layers_of_gpt2_are_not_turned(tmp_path: Path, config: str) -> None:
    """Its Conv1D has [inputs, outputs] unquantised, GPTQ takes the transpose: a square one would go unseen."""
    layer, head = Layer(64, 64), Layer(64, 64, seed=1)
    write(tmp_path, layer.arrays("h.0.attn.c_proj") | head.arrays("lm_head"))
    texts = {"config.json": {"model_type": "gpt2"}}
    texts[config] = texts.get(config, {}) | ({"quantization_config": GPTQ} if config == "config.json" else GPTQ)
    for name, text in texts.items():
        (tmp_path / name).write_text(json.dumps(text))
    checkpoint = opened(tmp_path)
    assert same_bits(values_of(checkpoint.tensors["h.0.attn.c_proj.weight"]), layer.values().T)
    assert same_bits(values_of(checkpoint.tensors["lm_head.weight"]), head.values())
    told = "read as [inputs, outputs], as the layers of gpt2 are unquantised ('h.0.attn.c_proj.weight')"
    assert checkpoint.warnings == (told,)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_bigcode", "quantization_config": GPTQ}))
    assert same_bits(values_of(opened(tmp_path).tensors["h.0.attn.c_proj.weight"]), layer.values())


def test_the_example_of_the_format(tmp_path: Path) -> None:
    """Codes 0 to 7 in a word, zero points 8 as v1 stores them, scale 0.5."""
    arrays = {
        "m.qweight": np.full((1, 8), 0x76543210, np.int32),
        "m.qzeros": np.full((1, 1), 0x77777777, np.int32),
        "m.scales": np.full((1, 8), 0.5, np.float16),
        "m.g_idx": np.zeros(8, np.int32),
    }
    tensor = opened(write(tmp_path, arrays, GPTQ | {"group_size": -1})).tensors["m.weight"]
    assert values_of(tensor).tolist() == [[-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5]] * 8


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("v1", [True, False])
def test_all_codes_with_all_zero_points(tmp_path: Path, bits: int, v1: bool) -> None:
    """Every code down the inputs, every zero point across the outputs: of v1, 0 wraps to the largest."""
    count = max(2**bits, 32)
    layer = Layer(count, count, bits, count, v1)
    layer.codes = np.tile(np.arange(count)[:, None] % 2**bits, (1, count))
    layer.zeros = np.arange(count)[None, :] % 2**bits
    layer.scales = np.ones((1, count), np.float16)
    config = GPTQ | {"checkpoint_format": "gptq" if v1 else "gptq_v2", "group_size": -1, "bits": bits}
    tensor = opened(write(tmp_path, layer.arrays(), config)).tensors["m.weight"]
    expected = np.arange(count)[None, :] % 2**bits - np.arange(count)[:, None] % 2**bits
    assert same_bits(values_of(tensor), expected.astype(np.float32))


@pytest.mark.parametrize(
    ("quantizer", "carried"),
    [
        (["gptqmodel:7.7.0"], True),
        (["optimum:1.24.0", "gptqmodel:1.6.0"], True),
        ("gptqmodel:2.0", True),
        (["autogptq:0.7.1"], False),
        ([["gptqmodel"]], False),
        ({"gptqmodel": 1}, False),
        (None, False),
    ],
)
def test_zero_points_of_0_are_read_as_who_wrote_them_does(tmp_path: Path, quantizer: Any, carried: bool) -> None:
    """GPTQModel takes 1 from each word's zero points at once, so that a 0 borrows from the next; others wrap each."""
    layer = Layer(32, 32, symmetric=True)
    layer.zeros[0, 8] = 0
    arrays = layer.arrays()
    words = arrays["m.qzeros"].view(np.uint32)
    assert words[0, 1] == 0x7777777F
    if carried:
        words[0, 1] = np.uint32(0x88888880) - np.uint32(0x11111111)
    tensor = opened(write(tmp_path, arrays, GPTQ | {"meta": {"quantizer": quantizer}})).tensors["m.weight"]
    assert same_bits(values_of(tensor), layer.values())
    assert "v1-words" in repr(tensor.scheme) or not carried


def test_bias_stays_a_tensor_of_its_own_and_parts_do_not(tmp_path: Path) -> None:
    arrays = Layer(64, 32).arrays() | {"m.bias": np.ones(32, np.float16), "norm.weight": np.ones(64, np.float16)}
    checkpoint = opened(write(tmp_path, arrays, GPTQ))
    assert {name: one.dtype for name, one in checkpoint.tensors.items()} == {
        "m.weight": "gptq-4bit",
        "m.bias": "F16",
        "norm.weight": "F16",
    }
    assert checkpoint.warnings == ()


@pytest.mark.parametrize(
    ("inputs", "group", "ordered", "declared", "warned"),
    [
        (128, 32, True, 32, False),
        (128, 32, False, 32, False),
        (128, 128, False, -1, False),
        (128, 128, False, None, False),
        (128, 128, False, 2**70, False),
        (448, 128, False, 128, False),  # the last group is short
        (448, 112, False, 112, False),
        (128, 32, False, None, False),
        (128, 32, True, 64, True),
        (128, 32, False, 64, True),
        (96, 48, False, 48, False),
        (192, 128, True, None, False),
    ],
)
def test_groups_are_those_of_the_tensors(
    tmp_path: Path, inputs: int, group: int, ordered: bool, declared: int | None, warned: bool
) -> None:
    layer = Layer(inputs, 32, group=group, ordered=ordered)
    fields = {name: one for name, one in GPTQ.items() if name != "group_size"}
    config = fields if declared is None else fields | {"group_size": declared}
    checkpoint = opened(write(tmp_path, layer.arrays(), config))
    assert same_bits(values_of(checkpoint.tensors["m.weight"]), layer.values())
    remark = "config.json declares another group size than is stored: read as stored ('m.weight')"
    assert checkpoint.warnings == ((remark,) if warned else ())
    dynamic = opened(write(tmp_path, layer.arrays(), config | {"dynamic": {"m": {"group_size": group}}}))
    assert dynamic.warnings == ()


@pytest.mark.parametrize(("size", "found"), [(None, "112 or 128"), (64, "112 or 128"), ("128", "112 or 128")])
def test_a_group_size_that_could_be_two_is_not_guessed(tmp_path: Path, size: Any, found: str) -> None:
    layer = Layer(448, 32, group=128, ordered=False)
    write(tmp_path, layer.arrays(), GPTQ | {"group_size": size})
    failure = failure_of(tmp_path, "m.weight")
    assert failure.found == f"4 groups of 448 inputs are declared nowhere: their size is {found}"
    assert "group_size" in failure.hint


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("ordered", [True, False])
def test_bits_are_those_of_the_tensors(tmp_path: Path, bits: int, ordered: bool) -> None:
    layer = Layer(64, 32, bits, ordered=ordered)
    other = 8 if bits == 4 else 4
    checkpoint = opened(write(tmp_path, layer.arrays(), GPTQ | {"bits": other}))
    assert same_bits(values_of(checkpoint.tensors["m.weight"]), layer.values())
    remark = f"config.json declares other bits than are stored, {bits}: read as stored ('m.weight')"
    assert checkpoint.warnings == (remark,)
    dynamic = GPTQ | {"bits": other, "dynamic": {"m": {"bits": bits}}}
    assert opened(write(tmp_path, layer.arrays(), dynamic)).warnings == ()


def test_bits_that_could_be_two_are_those_declared_or_refused(tmp_path: Path) -> None:
    layer = Layer(8, 8, 4, 8)
    config = {name: one for name, one in GPTQ.items() if name not in ("bits", "group_size")}
    tensor = opened(write(tmp_path, layer.arrays(), config | {"bits": 4})).tensors["m.weight"]
    assert same_bits(values_of(tensor), layer.values())
    write(tmp_path, layer.arrays(), config)
    assert failure_of(tmp_path, "m.weight").found == "2 or 3 or 4 bits fit the shapes"


def test_inputs_and_outputs_may_leave_words_unfilled(tmp_path: Path) -> None:
    for bits in (2, 3, 4, 8):
        layer = Layer(101, 43, bits, 32, shuffled=True)
        tensor = opened(write(tmp_path, layer.arrays(), GPTQ | {"bits": bits})).tensors["m.weight"]
        assert tensor.shape == (43, 101)
        assert same_bits(values_of(tensor), layer.values())


@pytest.mark.parametrize("v1", [True, False])
def test_words_of_the_other_version_are_told_and_read_as_declared(tmp_path: Path, v1: bool) -> None:
    """The story of 0x88888888: all values are one step off, which an analysis can see, and the reader must not hide."""
    layer = Layer(64, 256, v1=not v1, symmetric=True)
    checkpoint = opened(write(tmp_path, layer.arrays(), GPTQ if v1 else GPTQ_V2))
    word, other, step = ("0x88888888", "gptq_v2", "higher") if v1 else ("0x77777777", "gptq", "lower")
    assert checkpoint.warnings == (
        f"config.json declares {'gptq' if v1 else 'gptq_v2'}, but zero points begin with words of {word}, those of "
        f"symmetric {other}: read as declared, each is one {step} than that ('m.weight')",
    )
    assert same_bits(values_of(checkpoint.tensors["m.weight"]), layer.values(layer.zeros + (1 if v1 else -1)))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("v1", [True, False])
def test_without_a_config_symmetric_words_tell_the_version(tmp_path: Path, bits: int, v1: bool) -> None:
    layer = Layer(64, 96, bits, v1=v1, symmetric=True)
    checkpoint = opened(write(tmp_path, layer.arrays()))
    assert same_bits(values_of(checkpoint.tensors["m.weight"]), layer.values())
    name = "gptq" if v1 else "gptq_v2"
    remark = f"no config declares it GPTQ: its zero points are read as those of symmetric {name} ('m.weight')"
    assert checkpoint.warnings == (remark,)


def test_without_a_config_and_such_words_nothing_is_guessed(tmp_path: Path) -> None:
    layer = Layer(64, 32)
    failure = failure_of(write(tmp_path, layer.arrays()), "m.weight")
    assert failure.found.startswith("nothing declares whether zero points are stored as they are (gptq_v2) or one less")
    assert failure.expected == "a quantize_config.json with checkpoint_format"
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32}))
    assert same_bits(values_of(opened(tmp_path).tensors["m.weight"]), layer.values())
    (tmp_path / "quantize_config.json").write_text(json.dumps({"checkpoint_format": "gptq_v2"}))
    assert same_bits(values_of(opened(tmp_path).tensors["m.weight"]), layer.values((layer.zeros - 1) % 16))


def test_both_versions_in_one_checkpoint_are_not_guessed(tmp_path: Path) -> None:
    arrays = Layer(64, 32, symmetric=True).arrays("a") | Layer(64, 32, v1=False, symmetric=True).arrays("b")
    assert set(opened(write(tmp_path, arrays)).unreadable) == {"a.weight", "b.weight"}


def test_a_few_heads_tell_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(reads: Sequence[Read], profile: Profile) -> None:
        sizes.extend(read.wanted for read in reads)
        fill(reads, profile)

    monkeypatch.setattr(quantised, "fill", counted)
    arrays: Arrays = {}
    for index in range(MOST_HEADS + 3):
        arrays |= Layer(64, 256, symmetric=index != 1).arrays(f"m{index:02}")
    checkpoint = opened(write(tmp_path, arrays))
    assert sizes == [HEAD_BYTES] * MOST_HEADS
    assert len(checkpoint.tensors) == MOST_HEADS + 3
    assert {one.dtype for one in checkpoint.tensors.values()} == {"gptq-4bit"}


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"is_marlin_format": True}, "the layout of marlin"),
        ({"checkpoint_format": "marlin"}, "the layout that its checkpoint_format calls 'marlin'"),
        ({"checkpoint_format": "BitBLAS"}, "the layout that its checkpoint_format calls 'bitblas'"),
        ({"checkpoint_format": "qqq"}, "the layout that its checkpoint_format calls 'qqq'"),
        ({"checkpoint_format": "gptq_p"}, "the layout that its checkpoint_format calls 'gptq_p'"),
        ({"checkpoint_format": "exllama"}, "the layout that its checkpoint_format calls 'exllama'"),
        ({"checkpoint_format": ["gptq"]}, "the layout that its checkpoint_format calls ''"),
        ({"pack_dtype": "int64"}, "words of another size than I32 are declared (pack_dtype)"),
        ({"quant_method": "marlin"}, "the layout of marlin"),
        ({"quant_method": "paroquant"}, "the layout of paroquant"),
    ],
)
def test_layouts_of_kernels_are_refused_by_name(tmp_path: Path, config: dict[str, Any], found: str) -> None:
    arrays = Layer(64, 32, symmetric=True).arrays()
    assert failure_of(write(tmp_path, arrays, GPTQ | config), "m.weight").found == found


@pytest.mark.parametrize("dtype", [np.int16, np.int8])
def test_words_of_another_size_are_refused(tmp_path: Path, dtype: Any) -> None:
    arrays = Layer(64, 32).arrays()
    arrays["m.qweight"] = arrays["m.qweight"].view(dtype)
    name = "I16" if dtype == np.int16 else "I8"
    expected = f"codes packed in words of {name} (pack_dtype)"
    assert failure_of(write(tmp_path, arrays, GPTQ), "m.weight").found == expected


@pytest.mark.parametrize("config", [GPTQ, None])
@pytest.mark.parametrize("part", ["qzeros", "scales"])
def test_a_part_that_is_missing_is_named(tmp_path: Path, part: str, config: Any) -> None:
    arrays = Layer(64, 32, symmetric=True).arrays()
    del arrays[f"m.{part}"]
    assert failure_of(write(tmp_path, arrays, config), "m.weight").found == f"its {part} is missing"


def test_words_that_nothing_calls_gptq_stay_as_they_are(tmp_path: Path) -> None:
    checkpoint = opened(write(tmp_path, {"m.qweight": np.ones((4, 4), np.int32)}))
    assert {name: one.dtype for name, one in checkpoint.tensors.items()} == {"m.qweight": "I32"}


@pytest.mark.parametrize(
    ("part", "array", "found"),
    [
        ("scales", np.ones((2, 31), np.float16), "shapes that do not fit each other"),
        ("scales", np.ones((3, 32), np.float16), "shapes that do not fit each other"),
        ("scales", np.ones((32, 2), np.float16), "shapes that do not fit each other"),
        ("scales", np.ones((2, 32), np.int32), "its scales is I32 of shape [2, 32]"),
        ("scales", np.ones((0, 32), np.float16), "its scales is F16 of shape [0, 32]"),
        ("scales", np.ones(32, np.float16), "its scales is F16 of shape [32]"),
        ("qzeros", np.ones((2, 5), np.int32), "shapes that do not fit each other"),
        ("qzeros", np.ones((2, 4), np.float32), "its qzeros is F32 of shape [2, 4]"),
        ("qzeros", np.ones((0, 4), np.int32), "its qzeros is I32 of shape [0, 4]"),
        ("qweight", np.ones((8, 33), np.int32), "shapes that do not fit each other"),
        ("qweight", np.ones((9, 32), np.int32), "shapes that do not fit each other"),
        ("qweight", np.ones((1, 8, 32), np.int32), "its qweight is I32 of shape [1, 8, 32]"),
        ("g_idx", np.ones(63, np.int16), "its g_idx is I16 of shape [63]"),
        ("g_idx", np.ones((64, 1), np.int32), "its g_idx is I32 of shape [64, 1]"),
        ("g_idx", np.ones(0, np.int32), "shapes that do not fit each other"),
        ("g_idx", np.ones(80, np.int32), "shapes that do not fit each other"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(tmp_path: Path, part: str, array: np.ndarray, found: str) -> None:
    arrays = Layer(64, 32, symmetric=True).arrays() | {f"m.{part}": array}
    assert failure_of(write(tmp_path, arrays, GPTQ), "m.weight").found.startswith(found)


SIZE = st.sampled_from([0, 1, 2, 3, 4, 8, 12, 16, 32, 96, 2**31, 2**50])
PART = st.tuples(st.sampled_from(["I32", "I16", "F16", "F32", "X9"]), st.lists(SIZE, max_size=3))
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.sampled_from(["gptq", "gptq_v2", "int32", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["quantizer", "m"]), inner, max_size=2),
)
FIELDS = ["bits", "group_size", "checkpoint_format", "format", "pack_dtype", "meta", "dynamic", "is_marlin_format"]


@given(
    parts=st.fixed_dictionaries({"qweight": PART}, optional={"qzeros": PART, "scales": PART, "g_idx": PART}),
    fields=st.dictionaries(st.sampled_from(FIELDS), VALUE),
    method=st.sampled_from(["", "gptq", "awq", "marlin"]),
    head=st.sampled_from([b"", b"\x77" * 64, b"\x88" * 64]),
)
def test_whatever_is_stored_and_declared_is_found_or_refused(
    parts: Mapping[str, tuple[str, list[int]]], fields: Mapping[str, Any], method: str, head: bytes
) -> None:
    tensors = {}
    for part, (dtype, shape) in parts.items():
        size = checkpoints.nbytes(dtype, tuple(shape))
        tensors[f"m.{part}"] = Tensor(f"m.{part}", dtype, tuple(shape), (Span(Source("/x", size, "v"), 0, size),))
    stored = Stored(tensors, {}, {"m.qzeros": head}, Declared(method, fields, "config.json"))
    with contextlib.suppress(Undecodable):
        found = find("m", tensors["m.qweight"], stored)
        assert found is None or found.tensor.elements > 0


@pytest.mark.parametrize("group", [-1, 2, 2**31 - 1, -(2**31)])
def test_a_group_that_does_not_exist_spoils_its_tensor_only(tmp_path: Path, group: int) -> None:
    broken, whole = Layer(64, 32, shuffled=True), Layer(64, 32)
    broken.order[7] = group % 2**32 - 2**32 * (group % 2**32 >= 2**31)
    base = models.write(tmp_path / "base.safetensors", {"a.weight": whole.values(), "b.weight": whole.values()})
    folder = write(tmp_path / "q", broken.arrays("a") | whole.arrays("b"), GPTQ)
    report = compare(str(base), str(folder))
    assert [failure.tensor for failure in report.failures] == ["a.weight"]
    assert f"a g_idx that names group {group}".replace(",", "") in report.failures[0].found.replace(",", "")
    measured = [one for one in report.records if one["kind"] == "tensor"]
    assert [(one["name"], one["change"]["rel_l2"]) for one in measured] == [("b.weight", 0)]


def sharded(folder: Path, arrays: Arrays, where: Mapping[str, int]) -> Path:
    """A folder with an index, each tensor in the shard of its number, those without one in the first."""
    shards = {name: f"model-0000{where.get(name, 1)}-of-00002.safetensors" for name in arrays}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        part = write(folder / str(number), {one: array for one, array in arrays.items() if shards[one] == name})
        (part / "model.safetensors").rename(folder / name)
        part.rmdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (folder / "config.json").write_text(json.dumps({"quantization_config": GPTQ}))
    return folder


def test_scales_lie_in_another_shard_or_in_one_that_is_missing(tmp_path: Path) -> None:
    layer = Layer(64, 32)
    folder = sharded(tmp_path / "q", layer.arrays() | {"n": np.ones(3, np.float32)}, {"m.scales": 2, "n": 2})
    tensor = opened(folder).tensors["m.weight"]
    assert same_bits(values_of(tensor), layer.values())
    assert len({span.source.url for span in tensor.spans}) == 2
    (folder / "model-00002-of-00002.safetensors").unlink()
    checkpoint = opened(folder)
    assert set(checkpoint.unreadable) == {"m.weight", "n"}
    assert not checkpoint.tensors
    assert "model-00002-of-00002.safetensors" in checkpoint.unreadable["m.weight"].sentence()


def test_a_quantised_checkpoint_is_compared_by_its_values(tmp_path: Path) -> None:
    layer = Layer(4096, 320, group=128, shuffled=True)  # two leaves, neither of whole tiles
    values = layer.values()
    base = models.write(tmp_path / "base.safetensors", {"m.weight": values})
    moved = models.write(tmp_path / "moved.safetensors", {"m.weight": values + np.float32(0.125)})
    folder = write(tmp_path / "q", layer.arrays(), GPTQ | {"group_size": 128})
    before = traffic().bytes
    (same,) = compare(str(base), str(folder)).records
    stored = base.stat().st_size + (folder / "model.safetensors").stat().st_size
    assert traffic().bytes - before <= 1.05 * stored + 2 * 2**17  # the codes once, for five pieces; and two headers
    assert same["candidate"]["dtype"] == "gptq-4bit"
    assert same["change"]["rel_l2"] == 0
    (found,), (wanted,) = (compare(str(moved), str(one)).records for one in (folder, base))
    assert found["change"] == wanted["change"]
    raw = compare(str(folder), str(folder), raw=True)
    assert raw.coverage.tensors_compared == 4
