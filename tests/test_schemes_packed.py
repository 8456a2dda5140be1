"""Integers packed in words of 32 bits: every width, both layouts, all zero points, against the library and NumPy."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
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
from diffai_dist.dtypes import BITS
from diffai_dist.schemes.packed import find
from diffai_dist.schemes.stored import Declared, Stored, Undecodable
from diffai_dist.schemes.words import Packed, packed_words
from diffai_dist.storage import Source

Arrays = dict[str, np.ndarray]


def config_of(*weights: Mapping[str, Any], version: str = "0.20.0", targets: Sequence[Any] = ()) -> dict[str, Any]:
    named = [[target] for target in targets] or [["Linear"]] * len(weights)
    groups = {
        f"group_{i}": {"targets": names, "weights": {"type": "int", **one}}
        for i, (one, names) in enumerate(zip(weights, named, strict=True))
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "version": version,
        "config_groups": groups,
        "ignore": ["lm_head"],
    }


def group(bits: int = 4, size: int = 16, symmetric: bool = True, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "strategy": "group", "group_size": size, "symmetric": symmetric, **more}


def write(folder: Path, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None) -> Path:
    models.write(folder / "model.safetensors", arrays)
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


def pack(codes: np.ndarray, bits: int, dense: bool = True) -> np.ndarray:
    """Codes of the last axis as words, bit by bit: the lowest first, a stream or as many as a word holds whole."""
    places = codes[..., None] >> np.arange(bits) & 1
    if not dense:
        per = 32 // bits
        short = [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % per), (0, 0)]
        words = np.pad(places, short).reshape(*codes.shape[:-1], -1, per * bits)
        places = np.pad(words, [(0, 0)] * (words.ndim - 1) + [(0, 32 - per * bits)])
    stream = places.reshape(*codes.shape[:-1], -1)
    stream = np.pad(stream, [(0, 0)] * (stream.ndim - 1) + [(0, -stream.shape[-1] % 32)])
    return np.ascontiguousarray(np.packbits(stream.astype(np.uint8), axis=-1, bitorder="little")).view(np.int32)


def spread(blocks: np.ndarray, shape: Sequence[int], rows: int, columns: int) -> np.ndarray:
    grown = np.repeat(np.repeat(blocks, rows, axis=-2), columns, axis=-1)
    return grown[..., : shape[-2], : shape[-1]]


def module(
    shape: tuple[int, ...] = (12, 64),
    bits: int = 4,
    size: int = 16,
    dense: bool = True,
    zeros: bool = False,
    seed: int = 0,
    prefix: str = "m",
) -> tuple[Arrays, np.ndarray]:
    """The parts of a module's weight in groups, and its values."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 2**bits, shape)
    grid = (*shape[:-1], -(-shape[-1] // size))
    scales = generator.uniform(0.01, 1, grid).astype(np.float32)
    points = generator.integers(0, 2**bits, grid) if zeros else np.full(grid, 2 ** (bits - 1))
    arrays = {
        f"{prefix}.weight_packed": pack(codes, bits, dense),
        f"{prefix}.weight_scale": scales,
        f"{prefix}.weight_shape": np.array(shape, np.int64),
    }
    if zeros:
        arrays[f"{prefix}.weight_zero_point"] = pack(points.swapaxes(-1, -2), bits, dense).swapaxes(-1, -2)
    values = (codes - spread(points, shape, 1, size)).astype(np.float32) * spread(scales, shape, 1, size)
    return arrays, values


@functools.cache
def fixture(name: str) -> tuple[dict[str, str], Arrays]:
    with safe_open(FIXTURES / "packed" / f"{name}.safetensors", "np") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}


def cases(name: str) -> list[str]:
    return sorted(fixture(name)[0].keys() - {"version"})


@pytest.mark.parametrize(("writer", "case"), [(name, case) for name in ("dense", "before") for case in cases(name)])
def test_values_are_those_of_the_library(tmp_path: Path, writer: str, case: str) -> None:
    metadata, arrays = fixture(writer)
    parts = {key: value for key, value in arrays.items() if key.startswith(f"{case}.weight")}
    expected, fields = arrays[f"{case}.expected"], json.loads(metadata[case])
    write(tmp_path, parts, config_of(fields, version=metadata["version"]))
    checkpoint = opened(tmp_path)
    assert not checkpoint.warnings
    (tensor,) = checkpoint.tensors.values()
    assert (tensor.name, tensor.dtype) == (f"{case}.weight", f"int{fields['num_bits']}-{fields['strategy']}")
    assert tensor.scheme
    assert tensor.scheme.bits == fields["num_bits"]
    assert same_bits(values_of(tensor), expected)
    if tensor.scheme.whole:
        return
    for first, stop in cut(tensor.elements, 1):
        assert same_bits(run_of(tensor, first, stop), expected.reshape(-1)[first:stop])


def test_the_fixtures_hold_every_width_symmetric_and_not() -> None:
    assert {f"bits{bits}{kind}" for bits in range(1, 9) for kind in ("", "z")} <= set(cases("dense"))


@given(
    stack=st.lists(st.integers(1, 3), max_size=2),
    size=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    block=st.tuples(st.sampled_from([1, 1, 7]), st.integers(1, 70)),
    bits=st.integers(1, 8),
    dense=st.booleans(),
    zeros=st.sampled_from(["", "I8", "I32"]),
    ordered=st.booleans(),
    seed=st.integers(0, 99),
)
def test_runs_of_any_shape_and_block_are_codes_less_zeros_times_scales(
    tmp_path_factory: pytest.TempPathFactory,
    stack: list[int],
    size: tuple[int, int],
    block: tuple[int, int],
    bits: int,
    dense: bool,
    zeros: str,
    ordered: bool,
    seed: int,
) -> None:
    generator = np.random.default_rng(seed)
    ordered = ordered and not stack
    shape = (*stack, *size)
    rows, columns = min(block[0] if zeros != "I32" and not ordered else 1, size[0]), min(block[1], size[1])
    grid = (*stack, -(-size[0] // rows), -(-size[1] // columns))
    codes, points = generator.integers(0, 2**bits, shape), generator.integers(0, 2**bits, grid)
    scales = generator.standard_normal(grid).astype(ml_dtypes.bfloat16)
    parts = [pack(codes, bits, dense), scales]
    if zeros == "I8":
        parts.append((points - 2 ** (bits - 1)).astype(np.int8))
    elif zeros == "I32":
        parts.append(pack(points.swapaxes(-1, -2), bits, dense).swapaxes(-1, -2))
    else:
        points[...] = 2 ** (bits - 1)
    offsets, factors = (
        spread(points, shape, rows, columns),
        spread(scales.astype(np.float32), shape, rows, columns),
    )
    if ordered:
        order = generator.integers(0, grid[-1], size[1]).astype(np.int32)
        parts.append(order)
        offsets, factors = points[:, order], scales.astype(np.float32)[:, order]
    expected = ((codes - offsets).astype(np.float32) * factors).reshape(-1)
    path = tmp_path_factory.getbasetemp() / "packed"
    path.write_bytes(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))
    edges = np.cumsum([0, *(part.nbytes for part in parts)])
    source = Source(str(path), int(edges[-1]), "v")
    spans = tuple(Span(source, int(a), int(b)) for a, b in pairwise(edges))
    tensor = Tensor("w", "", shape, spans, Packed(bits, dense, "BF16", rows, columns, zeros, ordered))
    for first, stop in cut(tensor.elements, seed):
        assert same_bits(run_of(tensor, first, stop), expected[first:stop])


def test_a_run_reads_little_more_than_its_codes() -> None:
    """Rows of 4096 in groups of 128 with 4 bits: a quarter of a run is 1/8 byte of zero points an element at most."""
    shape, source = (1024, 4096), Source("/x", 10**8, "v")
    sizes = [1024 * 2048, 1024 * 32 * 2, 128 * 32 * 4]
    edges = np.cumsum([0, *sizes]).tolist()
    spans = tuple(Span(source, first, stop) for first, stop in pairwise(edges))
    tensor = Tensor("w", "", shape, spans, Packed(4, True, "BF16", 1, 128, "I32"))
    ranges = tensor.ranges(256 * 4096, 512 * 4096)
    assert [one.stop - one.start for one in ranges] == [size // 4 for size in sizes]
    assert [one.start - span.start for one, span in zip(ranges, spans, strict=True)] == [size // 4 for size in sizes]
    odd = tensor.ranges(5 * 4096 + 9, 5 * 4096 + 10)
    assert [one.stop - one.start for one in odd] == [4, 64, 128]


@pytest.mark.parametrize(
    ("words", "bits", "dense", "codes"),
    [
        ([0x76543210], 4, True, [0, 1, 2, 3, 4, 5, 6, 7]),
        ([0xD11F58D1, 0x0], 3, True, [1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]),
        ([0x111F58D1, 0x3], 3, False, [1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]),
    ],
)
def test_words_of_the_reference(tmp_path: Path, words: list[int], bits: int, dense: bool, codes: list[int]) -> None:
    arrays: Arrays = {
        "m.weight_packed": np.array([words], np.uint32).view(np.int32),
        "m.weight_scale": np.array([[0.5]], np.float32),
        "m.weight_shape": np.array([1, len(codes)], np.int64),
    }
    version = "0.17.0" if dense else "0.16.9"
    write(tmp_path, arrays, config_of({"num_bits": bits, "strategy": "channel"}, version=version))
    expected = (np.array([codes], np.float32) - 2 ** (bits - 1)) / 2
    assert same_bits(values_of(opened(tmp_path).tensors["m.weight"]), expected.astype(np.float32))


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
@pytest.mark.parametrize("dense", [True, False])
def test_the_number_of_words_tells_the_layout_whatever_the_version(tmp_path: Path, bits: int, dense: bool) -> None:
    arrays, values = module((2, 4096), bits, 128, dense)
    write(tmp_path, arrays, config_of(group(bits, 128), version="0.16.0" if dense else "0.17.0"))
    assert same_bits(values_of(opened(tmp_path).tensors["m.weight"]), values)


@pytest.mark.parametrize("version", [None, 17, "", "new", "0.x"])
def test_two_layouts_of_one_size_are_refused_without_a_version(tmp_path: Path, version: Any) -> None:
    arrays, _ = module((2, 70), 3, 70)
    write(tmp_path, arrays, config_of({"num_bits": 3, "strategy": "channel"}) | {"version": version})
    found = failure_of(tmp_path, "m.weight").found
    assert found == "more than one layout of a weight [2, 70] has weight_packed [2, 7], weight_scale [2, 1]"


@pytest.mark.parametrize("version", ["0.16.9", "0.17.0", "1.0.0.a2"])
def test_the_version_decides_between_layouts_of_one_size(tmp_path: Path, version: str) -> None:
    dense = version != "0.16.9"
    arrays, values = module((40, 70), 3, 70, dense, zeros=True)
    fields = {"num_bits": 3, "strategy": "channel", "symmetric": False}
    write(tmp_path, arrays, config_of(fields, version=version))
    assert same_bits(values_of(opened(tmp_path).tensors["m.weight"]), values)


def test_without_a_configuration_the_shapes_tell(tmp_path: Path) -> None:
    arrays, values = module((4, 256), size=64)
    checkpoint = opened(write(tmp_path, arrays))
    assert same_bits(values_of(checkpoint.tensors["m.weight"]), values)
    assert checkpoint.warnings == (
        "no group size is declared: the only power of two that fits the scales was taken ('m.weight')",
    )


@pytest.mark.parametrize(("bits", "size", "shape"), [(8, 64, (4, 256)), (4, 112, (4, 448)), (4, 24, (4, 96))])
def test_what_the_shapes_leave_open_is_not_guessed(
    tmp_path: Path, bits: int, size: int, shape: tuple[int, int]
) -> None:
    """8 bits, or 7 before 0.17; 4 groups of 112, or of 128 and a short one."""
    arrays, values = module(shape, bits, size)
    assert "layout of a weight" in failure_of(write(tmp_path / "open", arrays), "m.weight").found
    write(tmp_path / "told", arrays, config_of(group(bits, size)))
    assert same_bits(values_of(opened(tmp_path / "told").tensors["m.weight"]), values)


def test_of_several_groups_the_one_that_fits_is_taken(tmp_path: Path) -> None:
    four, first = module((4, 256), 4, 64, prefix="a")
    eight, second = module((4, 256), 8, 256, prefix="b")
    config = config_of(group(4, 64), {"num_bits": 8, "strategy": "channel"}, {"type": "float", "num_bits": 8})
    tensors = opened(write(tmp_path, four | eight, config)).tensors
    assert {name: one.dtype for name, one in tensors.items()} == {"a.weight": "int4-group", "b.weight": "int8-channel"}
    assert same_bits(values_of(tensors["a.weight"]), first)
    assert same_bits(values_of(tensors["b.weight"]), second)


def test_of_several_groups_that_fit_the_one_that_names_the_module_is_taken(tmp_path: Path) -> None:
    arrays, values = module((4, 8), 4, 8)
    both = {"num_bits": 3, "strategy": "channel"}, {"num_bits": 4, "strategy": "channel"}
    write(tmp_path / "told", arrays, config_of(*both, targets=["Linear", "re:.*m$"]))
    assert same_bits(values_of(opened(tmp_path / "told").tensors["m.weight"]), values)
    failure = failure_of(write(tmp_path / "open", arrays, config_of(*both)), "m.weight")
    assert failure.found.startswith("more than one layout of a weight [4, 8]")
    assert failure.expected == "3 bits in blocks of [1, 8] or 4 bits in blocks of [1, 8]"


def test_zero_points_that_are_there_are_applied_whatever_is_declared(tmp_path: Path) -> None:
    arrays, values = module(zeros=True)
    checkpoint = opened(write(tmp_path, arrays, config_of(group())))
    assert same_bits(values_of(checkpoint.tensors["m.weight"]), values)
    assert checkpoint.warnings == (
        "config.json declares weights as symmetric that have zero points, which are applied ('m.weight')",
    )


def test_modules_that_are_to_be_left_out_and_other_methods_are_remarked_on(tmp_path: Path) -> None:
    arrays, values = module(prefix="lm_head")
    checkpoint = opened(write(tmp_path / "a", arrays, config_of(group())))
    assert same_bits(values_of(checkpoint.tensors["lm_head.weight"]), values)
    assert "lists modules as not quantised that are int4-group" in checkpoint.warnings[0]
    checkpoint = opened(write(tmp_path / "b", arrays, {"quant_method": "gptq", "bits": 4}))
    assert "declares gptq, but what is stored is int4-group" in checkpoint.warnings[0]


def test_a_column_may_say_which_group_it_is_of(tmp_path: Path) -> None:
    arrays, plain = module((3, 48))
    codes, scales = plain / spread(arrays["m.weight_scale"], (3, 48), 1, 16), arrays["m.weight_scale"]
    order = np.random.default_rng(0).permutation(48).astype(np.int32) // 16
    config = config_of(group(actorder="group"))
    expected = np.rint(codes).astype(np.float32) * scales[:, order]
    tensor = opened(write(tmp_path / "a", arrays | {"m.weight_g_idx": order}, config)).tensors["m.weight"]
    assert tensor.scheme
    assert tensor.scheme.whole
    for first, stop in cut(tensor.elements, 0):
        assert same_bits(run_of(tensor, first, stop), expected.reshape(-1)[first:stop])
    order[5] = -1
    tensor = opened(write(tmp_path / "b", arrays | {"m.weight_g_idx": order}, config)).tensors["m.weight"]
    assert same_bits(values_of(tensor), plain)
    order[5], order[7] = 3, -2
    tensor = opened(write(tmp_path / "c", arrays | {"m.weight_g_idx": order}, config)).tensors["m.weight"]
    assert np.flatnonzero(np.isnan(values_of(tensor)).all(0)).tolist() == [5, 7]
    assert np.isnan(values_of(tensor)).sum() == 6


def without(name: str) -> Arrays:
    arrays, _ = module(zeros=True)
    del arrays[f"m.{name}"]
    return arrays


def replaced(**parts: np.ndarray) -> Arrays:
    return module()[0] | {f"m.{name}": value for name, value in parts.items()}


I32, I64 = np.int32, np.int64
ASYMMETRIC = config_of(group(symmetric=False))


@pytest.mark.parametrize(
    ("arrays", "config", "found"),
    [
        (without("weight_scale"), ASYMMETRIC, "its weight_scale is missing"),
        (without("weight_shape"), ASYMMETRIC, "its weight_shape is missing"),
        (without("weight_zero_point"), ASYMMETRIC, "its weight_zero_point is missing"),
        (
            replaced(),
            config_of(group(size=32)),
            "no layout of a weight [12, 64] has weight_packed [12, 8], weight_scale",
        ),
        (replaced(), config_of(group(bits=8)), "no layout"),
        (replaced(), config_of({"num_bits": 4, "strategy": "channel"}), "no layout"),
        (replaced(), config_of({"num_bits": 4, "strategy": "tensor"}), "no layout"),
        (replaced(), config_of(group(actorder="group")), "its weight_g_idx is missing"),
        (replaced(weight_g_idx=np.zeros(63, I32)), config_of(group()), "its weight_g_idx is I32 [63]"),
        (replaced(weight_g_idx=np.zeros(64, I64)), config_of(group()), "its weight_g_idx is I64 [64]"),
        (replaced(weight_scale=np.ones((12, 4), np.uint8)), config_of(group()), "its weight_scale is U8"),
        (replaced(weight_scale=np.ones((4, 12), np.float32)), config_of(group()), "no layout"),
        (replaced(weight_scale=np.ones((12, 0), np.float32)), None, "no layout"),
        (replaced(weight_scale=np.ones((), np.float32)), config_of(group()), "no layout"),
        (replaced(weight_shape=np.array([12, 72], I64)), config_of(group()), "no layout"),
        (replaced(weight_shape=np.array([12, 2**62], I64)), config_of(group()), "no layout"),
        (replaced(weight_shape=np.array([16, 64], I64)), config_of(group()), "its weight_shape is [16, 64]"),
        (replaced(weight_shape=np.array([-12, -64], I64)), config_of(group()), "its weight_shape is [-12, -64]"),
        (replaced(weight_shape=np.array([12, 0], I64)), config_of(group()), "its weight_shape is [12, 0]"),
        (replaced(weight_shape=np.array([12, 64, 1], I64)), config_of(group()), "its weight_shape is I64 [3]"),
        (replaced(weight_shape=np.zeros((0,), I64)), config_of(group()), "its weight_shape is I64 [0]"),
        (replaced(weight_shape=np.ones(2, np.float64)), config_of(group()), "its weight_shape is F64 [2]"),
        (replaced(weight_packed=np.zeros(8, I32)), config_of(group()), "its weight_shape is I64 [2]"),
        (replaced(weight_packed=np.zeros((12, 0), I32)), config_of(group()), "no layout"),
        (replaced(weight_packed=np.zeros((0, 8), I32)), config_of(group()), "its weight_shape is [12, 64]"),
        (replaced(weight_zero_point=np.zeros((12, 4), I32)), ASYMMETRIC, "no layout"),
        (replaced(weight_zero_point=np.zeros((2, 4), np.float32)), ASYMMETRIC, "no layout"),
        (replaced(weight_zero_point=np.zeros((12, 5), np.int8)), ASYMMETRIC, "no layout"),
        (replaced(scale_packed=np.zeros(4, I32), meta=np.zeros(4, np.int16)), None, "it is in the layout marlin-24"),
        (replaced(), config_of(group()) | {"transform_config": {"config_groups": {"a": 1}}}, "it is rotated"),
    ],
)
def test_parts_that_contradict_each_other_or_the_configuration_are_refused(
    tmp_path: Path, arrays: Arrays, config: dict[str, Any] | None, found: str
) -> None:
    assert failure_of(write(tmp_path, arrays, config), "m.weight").found.startswith(found)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_bits": "4"},
        {"num_bits": 10**30},
        {"num_bits": -4},
        {"num_bits": None},
        {"group_size": -16},
        {"group_size": 0},
        {"group_size": True},
        {"group_size": 1e9},
        {"strategy": ["group"]},
        {"strategy": "block", "block_structure": [0, 16]},
        {"strategy": "block", "block_structure": ["1", 16]},
        {"strategy": "block", "block_structure": [1, 16, 1]},
        {"strategy": "block", "block_structure": "1x16"},
        {"strategy": "token"},
    ],
)
def test_a_configuration_of_wrong_types_or_sizes_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    write(tmp_path, module()[0], config_of(group() | fields))
    assert failure_of(tmp_path, "m.weight").found.startswith("no layout")


NAMES = ["weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx"]


@given(
    shape=st.lists(st.sampled_from([1, 2, 5, 16, 40, 70]), min_size=2, max_size=3).map(tuple),
    fields=st.builds(group, st.integers(1, 8), st.sampled_from([1, 8, 16, 40, 10**20]), st.booleans()),
    dense=st.booleans(),
    changes=st.dictionaries(
        st.sampled_from(NAMES), st.lists(st.sampled_from([0, 1, 2, 3, 5, 16, 40]), max_size=3).map(tuple), max_size=1
    ),
    dtypes=st.dictionaries(st.sampled_from(NAMES[1:]), st.sampled_from(["I32", "I8", "F16", "F8_E4M3"]), max_size=1),
    axis=st.sampled_from([None] * 15 + [-1, 0, 3, 2**40, 2**63 - 1]),
    declared=st.booleans(),
)
def test_parts_of_any_shape_have_values_or_are_refused(
    shape: tuple[int, ...],
    fields: dict[str, Any],
    dense: bool,
    changes: dict[str, tuple[int, ...]],
    dtypes: dict[str, str],
    axis: int | None,
    declared: bool,
) -> None:
    bits, across = fields["num_bits"], -(-shape[-1] // fields["group_size"])
    zero = *shape[:-2], packed_words(shape[-2], bits, dense), across
    shapes = {
        "weight_packed": (*shape[:-1], packed_words(shape[-1], bits, dense)),
        "weight_scale": (*shape[:-1], across),
    }
    shapes |= ({} if fields["symmetric"] else {"weight_zero_point": zero}) | changes
    told = np.array((*shape[:-1], shape[-1] if axis is None else axis), np.int64)
    usual = dict(zip(NAMES, ["I32", "BF16", "I32", "I32"], strict=True)) | dtypes
    known = {name: (usual[name], one) for name, one in shapes.items()} | {"weight_shape": ("I64", told.shape)}
    tensors = {}
    for name, (dtype, one) in known.items():
        span = Span(Source("/x", 10**9, "v"), 7, 7 + math.prod(one) * BITS[dtype] // 8)
        tensors[f"m.{name}"] = Tensor(f"m.{name}", dtype, one, (span,))
    config = Declared("compressed-tensors", config_of(fields) if declared else {}, "config.json")
    try:
        found = find("m", tensors["m.weight_packed"], Stored(tensors, {}, {"m.weight_shape": told.tobytes()}, config))
    except Undecodable:
        return
    assert found
    tensor = found.tensor
    assert tensor.scheme
    assert tensor.shape == tuple(told)
    for first, stop in cut(tensor.elements, 0):
        ranges = tensor.ranges(first, stop)
        for part, span in zip(ranges, tensor.spans, strict=True):
            assert span.start <= part.start < part.stop <= span.stop
        parts = [np.zeros(part.stop - part.start, np.uint8) for part in ranges]
        tensor.scheme.decode(tensor, parts, first, stop, np.empty((stop - first) * 4, np.uint8))


@pytest.mark.parametrize("groups", [None, [], "a", {"a": None}, {"a": {"weights": 3}}, {"a": {"targets": 3}}])
def test_groups_that_declare_nothing_are_as_no_configuration(tmp_path: Path, groups: Any) -> None:
    arrays, values = module()
    write(tmp_path, arrays, config_of() | {"config_groups": groups})
    assert same_bits(values_of(opened(tmp_path).tensors["m.weight"]), values)


def test_huge_groups_and_blocks_are_one(tmp_path: Path) -> None:
    arrays, values = module(size=64)
    write(tmp_path, arrays, config_of(group(size=10**30)))
    tensor = opened(tmp_path).tensors["m.weight"]
    assert tensor.dtype == "int4-channel"
    assert same_bits(values_of(tensor), values)


def test_parts_lie_in_another_shard_or_in_one_that_is_missing(tmp_path: Path) -> None:
    arrays, values = module(zeros=True)
    models.write_sharded(tmp_path, arrays | {"n": np.ones(3, np.float32)}, 3)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": ASYMMETRIC}))
    tensor = opened(tmp_path).tensors["m.weight"]
    assert same_bits(values_of(tensor), values)
    assert len({span.source.url for span in tensor.spans}) == 2
    for lost in (2, 3):  # the scales; the shape
        (tmp_path / f"model-0000{lost}-of-00003.safetensors").rename(tmp_path / "lost")
        failure = failure_of(tmp_path, "m.weight")
        assert f"model-0000{lost}-of-00003.safetensors" in failure.sentence()
        (tmp_path / "lost").rename(tmp_path / f"model-0000{lost}-of-00003.safetensors")


@pytest.mark.parametrize("ordered", [False, True])
def test_a_packed_model_is_compared_by_its_values(tmp_path: Path, ordered: bool) -> None:
    arrays, values = module((300, 5120), 3, 128, zeros=True)
    config = config_of(group(3, 128, False))
    if ordered:
        arrays["m.weight_g_idx"] = np.full(5120, -1, np.int32)
    write(tmp_path / "packed", arrays | {"m.input_scale": np.ones(1, np.float32)}, config)
    write(tmp_path / "values", {"m.weight": values})
    noisy = values + np.random.default_rng(0).normal(0, 0.1, values.shape).astype(np.float32)
    write(tmp_path / "model", {"m.weight": noisy})
    same = compare(str(tmp_path / "values"), str(tmp_path / "packed"))
    assert same.coverage.tensors_compared == 1
    assert same.records[0]["change"]["max_abs"] == 0
    (found,) = compare(str(tmp_path / "model"), str(tmp_path / "packed")).records
    (wanted,) = compare(str(tmp_path / "model"), str(tmp_path / "values")).records
    assert found["candidate"]["dtype"] == "int3-group"
    assert found["change"] == wanted["change"]
    raw = compare(str(tmp_path / "packed"), str(tmp_path / "packed"), raw=True)
    assert raw.coverage.tensors_compared == len(arrays) + 1
