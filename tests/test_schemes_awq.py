"""AWQ: the order of eight outputs in a word, groups and zero points, against AutoAWQ and against NumPy."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
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
from diffai_dist.schemes.awq import find
from diffai_dist.schemes.stored import Declared, Stored, Undecodable
from diffai_dist.storage import Source

Arrays = dict[str, np.ndarray]

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # of AutoAWQ's packer: which of eight outputs lies in the n-th lowest bits


def packed(codes: np.ndarray) -> np.ndarray:
    """int32 [rows, outputs / 8]."""
    words = np.zeros((len(codes), codes.shape[1] // 8), np.uint32)
    for place, output in enumerate(ORDER):
        words |= codes[:, output::8].astype(np.uint32) << np.uint32(4 * place)
    return words.view(np.int32)


class Layer:
    """A layer of random codes: what is stored of it, and its values."""

    def __init__(self, inputs: int, outputs: int, group: int = 32, dtype: Any = np.float16, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        groups = -(-inputs // group)
        self.codes = generator.integers(0, 16, (inputs, outputs))
        self.zeros = generator.integers(0, 16, (groups, outputs))
        self.scales = generator.uniform(-1, 1, (groups, outputs)).astype(dtype)
        self.order = np.arange(inputs) // group

    def arrays(self, name: str = "m") -> Arrays:
        parts = {"qweight": packed(self.codes), "qzeros": packed(self.zeros), "scales": self.scales}
        return {f"{name}.{part}": one for part, one in parts.items()}

    def values(self) -> np.ndarray:
        moved = (self.codes - self.zeros[self.order]).astype(np.float32)
        return np.ascontiguousarray((moved * self.scales.astype(np.float32)[self.order]).T)


def test_values_are_those_of_autoawq() -> None:
    checkpoint, (library, _) = opened(FIXTURES / "awq" / "gemm"), by_library("awq/gemm")
    tensor, expected = checkpoint.tensors["layer.weight"], library["layer.weight"]
    assert set(checkpoint.tensors) == {"layer.weight", "layer.bias"}
    assert (tensor.dtype, tensor.shape) == ("awq-4bit", expected.shape)
    assert same_bits(values_of(tensor), expected)
    for first, stop in cut(tensor.elements, 1):
        assert same_bits(run_of(tensor, first, stop), expected.reshape(-1)[first:stop])
    assert checkpoint.warnings == ()


@given(
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 20).map(lambda words: 8 * words),
    group=st.sampled_from([1, 16, 32, 100, 128, 1000]),
    dtype=st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32]),
    seed=st.integers(0, 99),
)
def test_runs_of_any_layer_are_codes_less_zero_points_times_scales(
    tmp_path_factory: pytest.TempPathFactory, inputs: int, outputs: int, group: int, dtype: Any, seed: int
) -> None:
    layer = Layer(inputs, outputs, group, dtype, seed)
    folder = write(tmp_path_factory.getbasetemp() / "any", layer.arrays(), AWQ | {"group_size": group})
    tensor = opened(folder).tensors["m.weight"]
    assert (tensor.dtype, tensor.shape) == ("awq-4bit", (outputs, inputs))
    expected = layer.values()
    for first, stop in [(0, tensor.elements), *cut(tensor.elements, seed)]:
        assert same_bits(run_of(tensor, first, stop), expected.reshape(-1)[first:stop])


def test_the_example_of_the_format(tmp_path: Path) -> None:
    """The nibbles 0 to 7 of a word are outputs 0 2 4 6 1 3 5 7; zero points are 8 without any addition."""
    arrays = {
        "m.qweight": np.full((8, 1), 0x76543210, np.int32),
        "m.qzeros": np.full((1, 1), 0x88888888 - 2**32, np.int32),
        "m.scales": np.full((1, 8), 0.5, np.float16),
    }
    tensor = opened(write(tmp_path, arrays, AWQ | {"group_size": -1})).tensors["m.weight"]
    assert values_of(tensor)[:, 0].tolist() == [-4, -2, -3.5, -1.5, -3, -1, -2.5, -0.5]


def test_all_codes_with_all_zero_points_at_all_places(tmp_path: Path) -> None:
    layer = Layer(16, 16 * 8, 16)
    layer.codes = np.tile(np.arange(16)[:, None], (1, 128))
    layer.zeros = np.arange(128)[None, :] // 8
    layer.scales = np.ones((1, 128), np.float16)
    tensor = opened(write(tmp_path, layer.arrays(), AWQ | {"group_size": 16})).tensors["m.weight"]
    expected = np.arange(16)[None, :] - np.arange(128)[:, None] // 8
    assert same_bits(values_of(tensor), expected.astype(np.float32))


@pytest.mark.parametrize(
    ("config", "remark"),
    [
        (AWQ, ""),
        (None, ""),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "version": "GEMM"}, ""),
        ({"quant_method": "hqq"}, "config.json declares hqq, but what is stored is awq-4bit, and read as that"),
        ({"quant_method": "gptq"}, "config.json declares gptq, but what is stored is awq-4bit, and read as that"),
        (AWQ | {"zero_point": False}, "config.json declares no zero points, but they are stored, and used"),
        (AWQ | {"bits": 8}, "config.json declares other bits than are stored, 4: read as stored"),
        (AWQ | {"group_size": 64}, "config.json declares another group size than is stored: read as stored"),
    ],
)  # fmt: skip
def test_tensors_are_followed_and_what_is_declared_otherwise_is_told(tmp_path: Path, config: Any, remark: str) -> None:
    layer = Layer(128, 32)
    checkpoint = opened(write(tmp_path, layer.arrays(), config))
    assert same_bits(values_of(checkpoint.tensors["m.weight"]), layer.values())
    assert checkpoint.warnings == ((f"{remark} ('m.weight')",) if remark else ())


@pytest.mark.parametrize("size", [-1, None, 128, 2**70])
def test_one_group_may_be_declared_in_several_ways(tmp_path: Path, size: int | None) -> None:
    layer = Layer(128, 32, 128)
    checkpoint = opened(write(tmp_path, layer.arrays(), AWQ | {"group_size": size}))
    assert same_bits(values_of(checkpoint.tensors["m.weight"]), layer.values())
    assert checkpoint.warnings == ()


def test_an_old_config_of_its_own_is_read(tmp_path: Path) -> None:
    layer = Layer(448, 32, 128)
    folder = write(tmp_path, layer.arrays())
    assert failure_of(folder, "m.weight").found.endswith("their size is 112 or 128")
    (folder / "quant_config.json").write_text(json.dumps({"w_bit": 4, "q_group_size": 128, "version": "GEMM"}))
    assert same_bits(values_of(opened(folder).tensors["m.weight"]), layer.values())


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"version": "GEMV"}, "AWQ's layout 'gemv'"),
        ({"version": "gemv_fast"}, "AWQ's layout 'gemv_fast'"),
        ({"version": "marlin"}, "AWQ's layout 'marlin'"),
        ({"version": "exllama"}, "AWQ's layout 'exllama'"),
        ({"version": "", "checkpoint_format": "llm-awq"}, "AWQ's layout 'llm-awq'"),
        ({"version": ["gemm"]}, "AWQ's layout 'unknown'"),
        ({"quant_method": "paroquant", "version": "gemm"}, "the layout of paroquant, whose weights are rotated"),
    ],
)
def test_other_layouts_are_refused_by_name(tmp_path: Path, config: dict[str, Any], found: str) -> None:
    assert failure_of(write(tmp_path, Layer(128, 32).arrays(), AWQ | config), "m.weight").found == found


def test_gemv_is_refused_in_its_own_shapes(tmp_path: Path) -> None:
    """[outputs, inputs / 8], with zero points and scales padded; gemv_fast has words of 16 bits."""
    shapes = {"qweight": ((32, 64), np.int32), "qzeros": ((32, 1), np.int32), "scales": ((32, 8), np.float16)}
    arrays = {f"m.{part}": np.ones(shape, dtype) for part, (shape, dtype) in shapes.items()}
    assert failure_of(write(tmp_path, arrays), "m.weight").found.startswith("shapes that do not fit each other")
    assert failure_of(write(tmp_path, arrays, AWQ | {"version": "gemv"}), "m.weight").found == "AWQ's layout 'gemv'"
    arrays["m.qweight"] = np.ones((8, 512), np.int16)
    found = "AWQ's layout 'gemv_fast', with words of 16 bits"
    assert failure_of(write(tmp_path, arrays, AWQ), "m.weight").found == found


@pytest.mark.parametrize(
    ("part", "array", "found"),
    [
        ("qzeros", None, "its qzeros is missing"),
        ("scales", None, "its scales is missing"),
        ("qzeros", np.ones((4, 5), np.int32), "shapes that do not fit each other"),
        ("qzeros", np.ones((3, 4), np.int32), "shapes that do not fit each other"),
        ("qzeros", np.ones((4, 4), np.float16), "its qzeros is F16 of shape [4, 4]"),
        ("scales", np.ones((4, 16), np.float16), "shapes that do not fit each other"),
        ("scales", np.ones((4, 32), np.int32), "its scales is I32 of shape [4, 32]"),
        ("scales", np.ones((5, 32), np.float16), "shapes that do not fit each other"),
        ("qweight", np.ones((0, 4), np.int32), "its qweight is I32 of shape [0, 4]"),
        ("qweight", np.ones((2, 128, 4), np.int32), "its qweight is I32 of shape [2, 128, 4]"),
        ("qweight", np.ones((128, 8), np.int32), "shapes that do not fit each other"),
        ("g_idx", np.ones(128, np.int32), "a g_idx beside codes packed as AWQ's"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, part: str, array: np.ndarray | None, found: str) -> None:
    arrays: dict[str, Any] = Layer(128, 32).arrays() | {f"m.{part}": array}
    stored = {name: one for name, one in arrays.items() if one is not None}
    assert failure_of(write(tmp_path, stored, AWQ), "m.weight").found.startswith(found)


def test_what_is_laid_out_as_gptq_is_not_taken_for_awq(tmp_path: Path) -> None:
    arrays = {
        "m.qweight": np.full((8, 32), 0x76543210, np.int32),
        "m.qzeros": np.full((2, 4), 0x77777777, np.int32),
        "m.scales": np.full((2, 32), 0.5, np.float16),
    }
    tensor = opened(write(tmp_path, arrays, AWQ)).tensors["m.weight"]
    assert (tensor.dtype, tensor.shape) == ("gptq-4bit", (32, 64))


SIZE = st.sampled_from([0, 1, 2, 4, 8, 16, 32, 2**31, 2**50])
PART = st.tuples(st.sampled_from(["I32", "I16", "F16", "F32", "X9"]), st.lists(SIZE, max_size=3))
VALUE = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.sampled_from(["gemm", "gemv"]) | st.just(["gemm"])


@given(
    parts=st.fixed_dictionaries({"qweight": PART}, optional={"qzeros": PART, "scales": PART, "g_idx": PART}),
    fields=st.dictionaries(
        st.sampled_from(["bits", "w_bit", "group_size", "q_group_size", "version", "format"]), VALUE
    ),
    method=st.sampled_from(["", "gptq", "awq", "paroquant"]),
)
def test_whatever_is_stored_and_declared_is_found_or_refused(
    parts: Mapping[str, tuple[str, list[int]]], fields: Mapping[str, Any], method: str
) -> None:
    tensors = {}
    for part, (dtype, shape) in parts.items():
        size = checkpoints.nbytes(dtype, tuple(shape))
        tensors[f"m.{part}"] = Tensor(f"m.{part}", dtype, tuple(shape), (Span(Source("/x", size, "v"), 0, size),))
    with contextlib.suppress(Undecodable):
        found = find("m", tensors["m.qweight"], Stored(tensors, {}, {}, Declared(method, fields, "config.json")))
        assert found is None or found.tensor.elements > 0


def test_a_shard_with_the_scales_that_is_missing_is_named(tmp_path: Path) -> None:
    arrays = Layer(128, 32).arrays()
    write(tmp_path / "q", {name: one for name, one in arrays.items() if not name.endswith(".scales")}, AWQ)
    (tmp_path / "q" / "model.safetensors").rename(tmp_path / "q" / "model-00001-of-00002.safetensors")
    shards = {name: f"model-0000{1 + name.endswith('.scales')}-of-00002.safetensors" for name in arrays}
    (tmp_path / "q" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    failure = failure_of(tmp_path / "q", "m.weight")
    assert "model-00002-of-00002.safetensors" in failure.sentence()


def test_a_quantised_checkpoint_is_compared_by_its_values(tmp_path: Path) -> None:
    layer = Layer(4096, 320, 128)  # two leaves
    values = layer.values()
    base = models.write(tmp_path / "base.safetensors", {"m.weight": values})
    moved = models.write(tmp_path / "moved.safetensors", {"m.weight": values + np.float32(0.125)})
    folder = write(tmp_path / "q", layer.arrays(), AWQ | {"group_size": 128})
    (same,) = compare(str(base), str(folder)).records
    assert same["candidate"]["dtype"] == "awq-4bit"
    assert same["change"]["rel_l2"] == 0
    (found,), (wanted,) = (compare(str(moved), str(one)).records for one in (folder, base))
    assert found["change"] == wanted["change"]
    raw = compare(str(folder), str(folder), raw=True)
    assert raw.coverage.tensors_compared == 3
