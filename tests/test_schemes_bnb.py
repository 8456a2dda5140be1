"""bitsandbytes: nf4 and fp4 with scales that may be nested, int8; against the library's own values and NumPy."""

from __future__ import annotations

import functools
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

import models
from decoding import FIXTURES, cut, failure_of, opened, run_of, same_bits, values_of
from diffai_dist import compare
from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.schemes.bnb4 import FourBit
from diffai_dist.schemes.bnb8 import EightBit
from diffai_dist.storage import Source

Arrays = dict[str, np.ndarray]

NF4 = np.array([
    -1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1,
], np.float32)  # fmt: skip
FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / 12


@functools.cache
def fixture() -> Arrays:
    with safe_open(FIXTURES / "bnb" / "weights.safetensors", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def state(kind: str = "nf4", **fields: Any) -> np.ndarray:
    text = json.dumps({"quant_type": kind, "blocksize": 64, "dtype": "bfloat16", **fields})
    return np.frombuffer(text.encode(), np.uint8)


def module(of: tuple[int, ...] = (6, 80), nested: bool = False, seed: int = 0, **fields: Any) -> Arrays:
    """The parts of a weight of 4 bits in blocks of 64."""
    generator = np.random.default_rng(seed)
    size = int(np.prod(of))
    blocks = -(-size // 64)
    arrays: Arrays = {
        "m.weight": generator.integers(0, 256, (-(-size // 2), 1)).astype(np.uint8),
        "m.weight.absmax": generator.uniform(0.1, 2, blocks).astype(np.float32),
        "m.weight.quant_map": NF4,
    }
    if nested:
        arrays["m.weight.absmax"] = generator.integers(0, 256, blocks).astype(np.uint8)
        arrays["m.weight.nested_absmax"] = generator.uniform(0.1, 2, -(-blocks // 256)).astype(np.float32)
        arrays["m.weight.nested_quant_map"] = np.linspace(-1, 1, 256, dtype=np.float32)
        fields = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 1.5} | fields
    arrays["m.weight.quant_state.bitsandbytes__nf4"] = state(**({"shape": list(of)} | fields))
    return arrays


def write(folder: Path, arrays: Arrays) -> Path:
    models.write(folder / "model.safetensors", arrays)
    return folder


def flat(codes: np.ndarray, table: np.ndarray, scales: np.ndarray, size: int, count: int) -> np.ndarray:
    """The definition: the high four bits of a byte come first, blocks are runs of the flat weight."""
    indices = np.stack([codes >> 4, codes & 15], -1).reshape(-1)[:count]
    values: np.ndarray = table[indices] * np.repeat(scales, size)[:count]
    return values


@pytest.mark.parametrize("name", sorted(key.removesuffix(".expected") for key in fixture() if key.endswith("expected")))
def test_values_are_those_of_the_library(tmp_path: Path, name: str) -> None:
    arrays, expected = fixture(), fixture()[f"{name}.expected"]
    parts = {key: value for key, value in arrays.items() if key.startswith(f"{name}.") and "expected" not in key}
    checkpoint = opened(write(tmp_path, parts))
    assert not checkpoint.warnings
    (tensor,) = checkpoint.tensors.values()
    kind = "int8" if "int8" in name else "fp4" if "fp4" in name or name == "stored_f32" else "nf4"
    assert (tensor.name, tensor.dtype) == (f"{name}.weight", f"bnb-{kind}")
    assert same_bits(values_of(tensor), expected)
    for first, stop in cut(tensor.elements, 1):
        assert same_bits(run_of(tensor, first, stop), expected.reshape(-1)[first:stop])


@pytest.mark.parametrize(("kind", "table"), [("nf4", NF4), ("fp4", np.concatenate([FP4, -FP4]))])
def test_all_codes_in_both_halves_of_a_byte_have_the_values_of_the_reference(kind: str, table: np.ndarray) -> None:
    tensor = opened(FIXTURES / "bnb" / "weights.safetensors").tensors[f"all_{kind}.weight"]
    codes, scales = np.arange(256, dtype=np.uint8), fixture()[f"all_{kind}.weight.absmax"]
    expected = flat(codes, table, scales, 64, 512)
    assert np.allclose(values_of(tensor).reshape(-1), expected, rtol=1e-6, atol=1e-8)
    assert same_bits(fixture()[f"all_{kind}.weight.quant_map"] * scales[0], table_of(tensor))


def table_of(tensor: Tensor) -> np.ndarray:
    """The values of codes 0 to 15, which are the low halves of the first bytes."""
    return values_of(tensor).reshape(-1)[1:32:2]


def test_bytes_of_the_reference(tmp_path: Path) -> None:
    arrays = module((1, 4)) | {
        "m.weight": np.array([[0x7F], [0x0F]], np.uint8),
        "m.weight.absmax": np.array([2], np.float32),
    }
    tensor = opened(write(tmp_path, arrays)).tensors["m.weight"]
    assert values_of(tensor).tolist() == [[0, 2, -2, 2]]


@given(
    count=st.integers(1, 3000),
    size=st.sampled_from([32, 64, 128]),
    nested=st.sampled_from([0, 32, 64]),
    seed=st.integers(0, 99),
)
def test_runs_of_any_length_and_block_are_codes_times_scales(
    tmp_path_factory: pytest.TempPathFactory, count: int, size: int, nested: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    blocks = -(-count // size)
    codes = generator.integers(0, 256, -(-count // 2)).astype(np.uint8)
    table = generator.standard_normal(16).astype(np.float32)
    scales: np.ndarray = generator.standard_normal(blocks).astype(np.float32)
    parts = [codes, scales, table]
    if nested:
        indices = generator.integers(0, 256, blocks).astype(np.uint8)
        outer = generator.standard_normal(-(-blocks // nested)).astype(np.float32)
        inner = generator.standard_normal(256).astype(np.float32)
        parts = [codes, indices, table, outer, inner]
        scales = inner[indices] * np.repeat(outer, nested)[:blocks] + np.float32(0.3)
    path = tmp_path_factory.getbasetemp() / "bnb4"
    path.write_bytes(b"".join(part.tobytes() for part in parts))
    edges = np.cumsum([0, *(part.nbytes for part in parts)])
    source = Source(str(path), int(edges[-1]), "v")
    spans = tuple(Span(source, int(a), int(b)) for a, b in pairwise(edges))
    scheme = FourBit(size, "U8" if nested else "F32", nested, 0.3)
    tensor = Tensor("w", "", (count,), spans, scheme)
    expected = flat(codes, table, scales, size, count)
    for first, stop in cut(count, seed):
        assert same_bits(run_of(tensor, first, stop), expected[first:stop])


def test_a_run_reads_little_more_than_its_codes() -> None:
    count, source = 2**24, Source("/x", 10**8, "v")
    sizes = [count // 2, count // 64, 64, count // 64 // 256 * 4, 1024]
    spans = tuple(Span(source, first, stop) for first, stop in pairwise(np.cumsum([0, *sizes]).tolist()))
    tensor = Tensor("w", "", (4096, 4096), spans, FourBit(64, "U8", 256))
    ranges = tensor.ranges(2**20, 2**21)
    assert [one.stop - one.start for one in ranges] == [2**19, 2**14, 64, 256, 1024]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_scales_that_were_cast_are_taken_as_float32(tmp_path: Path, dtype: Any) -> None:
    arrays = module()
    arrays["m.weight.absmax"] = arrays["m.weight.absmax"].astype(dtype)
    tensor = opened(write(tmp_path, arrays)).tensors["m.weight"]
    scales = arrays["m.weight.absmax"].astype(np.float32)
    expected = flat(arrays["m.weight"].reshape(-1), NF4, scales, 64, 480)
    assert same_bits(values_of(tensor).reshape(-1), expected)


def test_parameters_that_are_no_weight_of_a_module_are_found(tmp_path: Path) -> None:
    arrays = {name.replace("m.weight", "experts.gate_up_proj"): one for name, one in module((2, 3, 80)).items()}
    checkpoint = opened(write(tmp_path, arrays))
    assert {name: one.shape for name, one in checkpoint.tensors.items()} == {"experts.gate_up_proj": (2, 3, 80)}


def replaced(nested: bool = False, **parts: np.ndarray) -> Arrays:
    return module(nested=nested) | {f"m.weight.{name}": value for name, value in parts.items()}


def without(name: str, nested: bool = False) -> Arrays:
    arrays = module(nested=nested)
    del arrays[f"m.weight.{name}"]
    return arrays


def told(text: bytes) -> Arrays:
    return module() | {"m.weight.quant_state.bitsandbytes__nf4": np.frombuffer(text, np.uint8)}


F32 = np.float32


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        (without("absmax"), "its absmax is missing"),
        (without("quant_map"), "its quant_map is missing"),
        (without("nested_absmax", True), "its nested_absmax is missing"),
        (without("nested_quant_map", True), "its nested_quant_map is missing"),
        (without("quant_state.bitsandbytes__nf4"), "its bitsandbytes__nf4 or bitsandbytes__fp4 is missing"),
        (replaced(absmax=np.ones(9, F32)), "its absmax is F32 [9]"),
        (replaced(absmax=np.ones(8, np.uint8)), "its absmax is U8 [8]"),
        (replaced(nested=True, absmax=np.ones(8, F32)), "its absmax is F32 [8]"),
        (replaced(nested=True, nested_absmax=np.ones(2, F32)), "its nested_absmax is F32 [2]"),
        (replaced(nested=True, nested_quant_map=np.ones(16, F32)), "its nested_quant_map is F32 [16]"),
        (replaced(quant_map=np.ones(15, F32)), "its quant_map is F32 [15]"),
        (replaced(quant_map=np.ones(16, np.float64)), "its quant_map is F64 [16]"),
        (module() | {"m.weight": np.zeros((239, 1), np.uint8)}, "239 bytes of codes"),
        (module((6, 80)) | {"m.weight": np.zeros((480, 1), np.uint8)}, "480 bytes of codes"),
        (told(b"{"), "its quant_state is not a JSON object"),
        (told(b"[]"), "its quant_state is not a JSON object"),
        (told(b"\xff\xfe"), "its quant_state is not a JSON object"),
        (told(b"[" * 1024), "its quant_state is not a JSON object"),
        (told(b'{"shape": NaN}'), "its quant_state is not a JSON object"),
        (told(b'{"shape": [6, 80], "shape": [80, 6]}'), "its quant_state is not a JSON object"),
        (told(b"{}"), "quant_type of its quant_state is None"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(tmp_path: Path, arrays: Arrays, found: str) -> None:
    assert failure_of(write(tmp_path, arrays), "m.weight").found == found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quant_type", "fp4"),
        ("quant_type", ["nf4"]),
        ("blocksize", 0),
        ("blocksize", -64),
        ("blocksize", 60),
        ("blocksize", "64"),
        ("blocksize", True),
        ("blocksize", 64.0),
        ("shape", None),
        ("shape", []),
        ("shape", [6, 0]),
        ("shape", [-6, -80]),
        ("shape", [6.0, 80]),
        ("shape", [True, 480]),
        ("shape", "6x80"),
        ("nested_blocksize", 10**30),
        ("nested_blocksize", None),
        ("nested_offset", "1"),
        ("nested_offset", 1e300),
        ("nested_offset", True),
        ("nested_dtype", "float16"),
    ],
)
def test_a_hostile_quant_state_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    failure = failure_of(write(tmp_path, module(nested=True, **{field: value})), "m.weight")
    assert failure.found.startswith(f"{field} of its quant_state is ")


@pytest.mark.parametrize("shape", [[2**62, 2**62], [10**100], [6, 81]])
def test_a_shape_of_other_codes_is_refused(tmp_path: Path, shape: list[int]) -> None:
    arrays = module()
    arrays["m.weight.quant_state.bitsandbytes__nf4"] = state(shape=shape)
    assert failure_of(write(tmp_path, arrays), "m.weight").found == "240 bytes of codes"


def test_bytes_that_are_no_codes_stay_as_they_are(tmp_path: Path) -> None:
    tensors = opened(write(tmp_path, {"m.weight": np.zeros(4, np.uint8), "absmax": np.zeros(4, np.float32)})).tensors
    assert {name: one.scheme for name, one in tensors.items()} == {"m.weight": None, "absmax": None}


def test_what_is_called_as_the_module_is_no_part_of_its_weight(tmp_path: Path) -> None:
    arrays = without("quant_state.bitsandbytes__nf4") | {"m": np.ones(3, F32), "m.bias": np.ones(3, F32)}
    checkpoint = opened(write(tmp_path, arrays))
    assert (set(checkpoint.tensors), set(checkpoint.unreadable)) == ({"m", "m.bias"}, {"m.weight"})


def eight_bit(shape: tuple[int, int] = (5, 24), seed: int = 0) -> tuple[Arrays, np.ndarray]:
    generator = np.random.default_rng(seed)
    codes = generator.integers(-128, 128, shape).astype(np.int8)
    scales = generator.uniform(0.1, 2, shape[0]).astype(np.float32)
    values: np.ndarray = (codes.astype(np.float32) * scales[:, None]) * np.float32(1 / 127)
    return {"m.weight": codes, "m.SCB": scales, "m.weight_format": np.zeros((), np.uint8)}, values


@given(shape=st.tuples(st.integers(1, 30), st.integers(1, 90)), seed=st.integers(0, 99))
def test_runs_of_rows_are_codes_times_the_largest_of_the_row(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], seed: int
) -> None:
    arrays, values = eight_bit(shape, seed)
    path = tmp_path_factory.getbasetemp() / "bnb8"
    path.write_bytes(arrays["m.weight"].tobytes() + arrays["m.SCB"].tobytes())
    size, source = values.size, Source(str(path), path.stat().st_size, "v")
    spans = Span(source, 0, size), Span(source, size, source.size)
    tensor = Tensor("w", "", shape, spans, EightBit("F32", shape[1]))
    for first, stop in cut(size, seed):
        assert same_bits(run_of(tensor, first, stop), values.reshape(-1)[first:stop])


def test_127_is_the_scale(tmp_path: Path) -> None:
    """64 of a row with the magnitude 2.54 is 1.28."""
    arrays: Arrays = {"m.weight": np.full((1, 2), 64, np.int8), "m.SCB": np.array([2.54], np.float32)}
    values = values_of(opened(write(tmp_path, arrays)).tensors["m.weight"])
    assert np.allclose(values, 1.28, rtol=1e-6)


@pytest.mark.parametrize(
    ("parts", "found", "expected"),
    [
        ({"SCB": np.ones(4, F32)}, "its SCB is F32 [4]", "F32 [5]"),
        ({"SCB": np.ones(5, np.int32)}, "its SCB is I32 [5]", "F32 [5]"),
        ({"weight": np.ones((2, 5, 24), np.int8)}, "its codes have shape [2, 5, 24]", "rows and columns"),
        ({"weight": np.ones((5, 0), np.int8)}, "its codes have shape [5, 0]", "rows and columns"),
        ({"weight_format": np.uint8(1)}, "codes in the order col32, which is not read", "row"),
        ({"weight_format": np.uint8(2)}, "codes in the order col_turing, which is not read", "row"),
        ({"weight_format": np.uint8(3)}, "codes in the order col_ampere, which is not read", "row"),
        ({"weight_format": np.uint8(9)}, "codes in the order 9, which is not read", "row"),
        ({"weight_format": np.ones(2, np.uint8)}, "its weight_format is U8 [2]", "U8 []"),
        ({"weight_format": np.float32(0)}, "its weight_format is F32 []", "U8 []"),
    ],
)
def test_int8_in_another_order_or_shape_is_refused(
    tmp_path: Path, parts: dict[str, Any], found: str, expected: str
) -> None:
    arrays = eight_bit()[0] | {f"m.{name}": np.asarray(one) for name, one in parts.items()}
    failure = failure_of(write(tmp_path, arrays), "m.weight")
    assert (failure.found, failure.expected) == (found, expected)


def test_layers_of_gpt2_are_refused(tmp_path: Path) -> None:
    """Both kinds of codes are those of the transpose of what its Conv1D has."""
    layers = {"h.0.mlp.c_fc": module(), "h.0.mlp.c_proj": eight_bit()[0], "lm_head": module()}
    arrays = {name.replace("m.", f"{layer}.", 1): one for layer, parts in layers.items() for name, one in parts.items()}
    (write(tmp_path, arrays) / "config.json").write_text('{"model_type": "gpt2"}')
    checkpoint = opened(tmp_path)
    assert set(checkpoint.tensors) == {"lm_head.weight"}
    assert {name: one.found for name, one in checkpoint.unreadable.items()} == dict.fromkeys(
        ("h.0.mlp.c_fc.weight", "h.0.mlp.c_proj.weight"),
        "it is the transpose of what gpt2 has unquantised, which is not undone",
    )


def index(folder: Path, shards: list[Arrays]) -> Path:
    """Shards of which the last is missing."""
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, arrays in zip(names[:-1], shards, strict=False):
        models.write(folder / name, arrays)
    weight_map = {key: name for name, arrays in zip(names, shards, strict=True) for key in arrays}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("there", [1, 2, 3])
def test_parts_in_a_shard_that_is_missing_are_told(tmp_path: Path, there: int) -> None:
    names = ["m.weight", "m.weight.absmax", "m.weight.quant_state.bitsandbytes__nf4", "m.weight.quant_map"]
    arrays = module()
    shards = [{name: arrays[name] for name in part} for part in (names[:there], names[there:])]
    failure = failure_of(index(tmp_path, shards), "m.weight")
    assert "model-00002-of-00002.safetensors" in failure.sentence()


def test_codes_in_a_shard_that_is_missing_are_told(tmp_path: Path) -> None:
    arrays = module()
    codes = {"m.weight": arrays.pop("m.weight")}
    failure = failure_of(index(tmp_path / "4", [arrays, codes]), "m.weight")
    assert "model-00002-of-00002.safetensors" in failure.sentence()
    arrays, _ = eight_bit()
    scales = {"m.SCB": arrays.pop("m.SCB")}
    failure = failure_of(index(tmp_path / "8", [arrays, scales]), "m.weight")
    assert "model-00002-of-00002.safetensors" in failure.sentence()


def test_quantised_models_are_compared_by_their_values(tmp_path: Path) -> None:
    four = module((300, 5000), nested=True)
    eight, second = eight_bit((300, 5000))
    inner, outer = four["m.weight.nested_quant_map"], four["m.weight.nested_absmax"]
    scales = inner[four["m.weight.absmax"]] * np.repeat(outer, 256)[: four["m.weight.absmax"].size] + np.float32(1.5)
    first = flat(four["m.weight"].reshape(-1), NF4, scales, 64, 1_500_000).reshape(300, 5000)
    write(tmp_path / "bnb", four | {f"b{name}": one for name, one in eight.items()})
    write(tmp_path / "values", {"m.weight": first, "bm.weight": second})
    report = compare(str(tmp_path / "values"), str(tmp_path / "bnb"))
    assert {one["candidate"]["dtype"]: one["change"]["max_abs"] for one in report.records} == {
        "bnb-int8": 0,
        "bnb-nf4": 0,
    }
    raw = compare(str(tmp_path / "bnb"), str(tmp_path / "bnb"), raw=True)
    assert raw.coverage.tensors_compared == len(four) + len(eight)
