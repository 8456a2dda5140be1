"""FP8 weights and their scales: every code, every kind of scale, against the libraries and against NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import models
from decoding import (
    check_library,
    codes_of,
    cut,
    failure_of,
    opened,
    run_of,
    same_bits,
    scales_of,
    spread,
    values_of,
    write,
)
from diffai_dist import compare
from diffai_dist.schemes.loops import table

E4M3 = ml_dtypes.float8_e4m3fn
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz),
        ("F8_E5M2", ml_dtypes.float8_e5m2),
        ("F8_E8M0", ml_dtypes.float8_e8m0fnu),
        ("I8", np.int8),
    ],
)
def test_all_256_codes_have_the_values_of_the_format(dtype: str, kind: Any) -> None:
    assert same_bits(table(dtype), np.arange(256, dtype=np.uint8).view(kind).astype(np.float32))


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("codes", "fp8-tensor"),
        ("tensor", "fp8-tensor"),
        ("channel", "fp8-channel"),
        ("block", "fp8-block"),
        ("group", "fp8-group"),
        ("mx", "mxfp8"),
        ("transformers", "fp8-block"),
        ("ue8m0", "fp8-block"),
    ],
)
def test_values_are_those_of_the_library(case: str, dtype: str) -> None:
    check_library(f"fp8/{case}", dtype)


def test_tiles_are_not_derived_by_division(tmp_path: Path) -> None:
    """448 rows over 4 scales are 3.5 tiles of 128, not 4 of 112."""
    codes, scales = codes_of((448, 300)), scales_of((4, 3))
    write(tmp_path, {"m.weight": codes, "m.weight_scale_inv": scales})
    expected = codes.astype(np.float32) * spread(scales, codes.shape, 128, 128)
    assert same_bits(values_of(opened(tmp_path).tensors["m.weight"]), expected)


@pytest.mark.parametrize(
    ("shape", "grid", "kind"),
    [
        ((6, 8), (), "tensor"),
        ((6, 8), (1,), "tensor"),
        ((6, 8), (1, 1), "tensor"),
        ((6, 8), (6,), "channel"),
        ((6, 8), (6, 1), "channel"),
        ((3, 6, 8), (), "tensor"),
        ((3, 6, 8), (3,), "tensor"),
        ((3, 6, 8), (3, 1, 1), "tensor"),
        ((3, 6, 8), (3, 6), "channel"),
        ((3, 6, 8), (3, 6, 1), "channel"),
        ((3, 130, 8), (3, 2, 1), "block"),
        ((8,), (1,), "tensor"),
    ],
)
def test_a_scale_is_for_what_its_shape_says(
    tmp_path: Path, shape: tuple[int, ...], grid: tuple[int, ...], kind: str
) -> None:
    codes, scales = codes_of(shape), scales_of(grid)
    write(tmp_path, {"m.weight": codes, "m.weight_scale": scales})
    tensor = opened(tmp_path).tensors["m.weight"]
    full = scales.reshape(*grid, *(1,) * (len(shape) - len(grid)))
    if kind == "block":
        full = spread(scales, shape, 128, 128)
    assert tensor.dtype == f"fp8-{kind}"
    assert same_bits(values_of(tensor), codes.astype(np.float32) * full)
    for first, stop in cut(tensor.elements, 3):
        assert same_bits(run_of(tensor, first, stop), values_of(tensor).reshape(-1)[first:stop])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e8m0fnu])
def test_scales_of_any_float_are_taken_as_float32(tmp_path: Path, dtype: Any) -> None:
    codes, scales = codes_of((4, 8)), scales_of((4, 1)).astype(dtype)
    write(tmp_path, {"m.weight": codes, "m.weight_scale": scales})
    expected = codes.astype(np.float32) * scales.astype(np.float32)
    assert same_bits(values_of(opened(tmp_path).tensors["m.weight"]), expected)


@pytest.mark.parametrize("ending", ["_scale", "_scale_inv"])
def test_stacked_experts_are_parameters_without_a_module(tmp_path: Path, ending: str) -> None:
    codes, scales = codes_of((2, 256, 200)), scales_of((2, 2, 2))
    write(tmp_path, {"experts.gate_up_proj": codes, f"experts.gate_up_proj{ending}": scales}, FP8)
    checkpoint = opened(tmp_path)
    assert set(checkpoint.tensors) == {"experts.gate_up_proj"}
    expected = codes.astype(np.float32) * spread(scales, codes.shape, 128, 128)
    assert same_bits(values_of(checkpoint.tensors["experts.gate_up_proj"]), expected)


@pytest.mark.parametrize("ending", ["weight_scale", "weight_scale_inv", "scale", "scale_weight"])
def test_scales_multiply_whatever_they_are_called(tmp_path: Path, ending: str) -> None:
    codes, scale = codes_of((4, 8)), np.array(0.25, np.float32)
    checkpoint = opened(write(tmp_path, {"m.weight": codes, f"m.{ending}": scale}))
    assert set(checkpoint.tensors) == {"m.weight"}
    assert same_bits(values_of(checkpoint.tensors["m.weight"]), codes.astype(np.float32) * scale)


def test_what_belongs_to_activations_is_not_compared_for_itself(tmp_path: Path) -> None:
    one = np.ones((), np.float32)
    arrays = {"m.weight": codes_of((4, 8)), "m.weight_scale": one, "m.input_scale": one, "m.k_scale": one, "n": one}
    assert set(opened(write(tmp_path, arrays)).tensors) == {"m.weight", "n"}


def test_a_cast_that_nothing_scales_stays_a_plain_tensor(tmp_path: Path) -> None:
    write(tmp_path, {"m.weight": codes_of((4, 8)), "norm.weight": codes_of((8,))})
    tensors = opened(tmp_path).tensors
    assert {name: (one.dtype, one.scheme) for name, one in tensors.items()} == {
        "m.weight": ("F8_E4M3", None),
        "norm.weight": ("F8_E4M3", None),
    }


COMPRESSED = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"type": "float", "num_bits": 8}}},
    "ignore": ["re:.*lm_head", "visual.merger"],
}


@pytest.mark.parametrize(
    ("config", "name", "missing"),
    [
        (FP8, "layers.0.up_proj", True),
        (FP8, "embed_tokens", False),
        (FP8, "lm_head", False),
        (FP8 | {"modules_to_not_convert": ["layers.0"]}, "layers.0.up_proj", False),
        (FP8 | {"modules_to_not_convert": ["layers.1"]}, "layers.0.up_proj", True),
        (FP8 | {"modules_to_not_convert": ["re:(a+)+$"]}, "layers.0.up_proj", False),
        (COMPRESSED, "layers.0.up_proj", True),
        (COMPRESSED, "model.lm_head", False),
        (COMPRESSED, "visual.merger.0", False),
        ({"quant_method": "compressed-tensors"}, "layers.0.up_proj", False),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["*router*"]}, "layers.0.up_proj", True),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["*router*"]}, "layers.0.router.w", False),
        ({"quant_method": "gptq", "bits": 4}, "layers.0.up_proj", False),
    ],
)
def test_a_scale_that_is_declared_and_missing_is_told(
    tmp_path: Path, config: dict[str, Any], name: str, missing: bool
) -> None:
    write(tmp_path, {f"{name}.weight": codes_of((4, 8)), "norm.weight": codes_of((8,))}, config)
    checkpoint = opened(tmp_path)
    assert set(checkpoint.unreadable) == ({f"{name}.weight"} if missing else set())
    assert (f"{name}.weight" in checkpoint.tensors) != missing
    if missing:
        assert checkpoint.unreadable[f"{name}.weight"].found.startswith(
            "its weight_scale or weight_scale_inv or scale_weight or scale is missing, and config.json declares it"
        )
    assert "norm.weight" in checkpoint.tensors


@pytest.mark.parametrize(
    ("scales", "config", "found"),
    [
        (scales_of((3, 1)), None, "its scales have shape [3, 1]"),
        (scales_of((1, 8)), None, "its scales have shape [1, 8]"),
        (scales_of((4, 2)), None, "its scales have shape [4, 2]"),
        (scales_of((2, 2)), {"weight_block_size": [3, 4]}, ""),
        (scales_of((2, 3)), {"weight_block_size": [128, 128]}, "its scales have shape [2, 3]"),
        (scales_of((2, 3)), {"weight_block_size": [0, -4]}, "its scales have shape [2, 3]"),
        (scales_of((4, 1)), {"transform_config": {"config_groups": {"R1": {}}}}, "it is rotated (transform_config)"),
        (np.ones((4, 1), np.int32), None, "its scales are I32"),
        (scales_of((0, 1)), None, "its scales have shape [0, 1]"),
    ],
)
def test_scales_that_fit_nothing_are_refused(
    tmp_path: Path, scales: np.ndarray, config: dict[str, Any] | None, found: str
) -> None:
    write(tmp_path, {"m.weight": codes_of((4, 8)), "m.weight_scale": scales}, config)
    if found:
        assert failure_of(tmp_path, "m.weight").found.startswith(found)
    else:
        assert opened(tmp_path).tensors["m.weight"].dtype == "fp8-block"


def test_of_two_declared_blocks_the_shape_must_choose(tmp_path: Path) -> None:
    groups = {str(size): {"weights": {"type": "float", "group_size": size}} for size in (3, 4, 8)}
    config = {"quant_method": "compressed-tensors", "config_groups": groups}
    arrays = {"m.weight": codes_of((2, 10)), "m.weight_scale": scales_of((2, 4))}
    assert opened(write(tmp_path / "one", arrays, config)).tensors["m.weight"].dtype == "fp8-group"
    arrays = {"m.weight": codes_of((2, 9)), "m.weight_scale": scales_of((2, 3))}
    failure = failure_of(write(tmp_path / "two", arrays, config), "m.weight")
    assert failure.found == "its scales fit blocks of 1x3 and 1x4, which are both declared"


def test_columns_in_another_order_are_refused(tmp_path: Path) -> None:
    order = np.arange(8, dtype=np.int32)
    write(tmp_path, {"m.weight": codes_of((4, 8)), "m.weight_scale": scales_of((4, 1)), "m.weight_g_idx": order})
    assert "weight_g_idx" in failure_of(tmp_path, "m.weight").found


@pytest.mark.parametrize(
    ("config", "remark"),
    [
        ({"quant_method": "gptq"}, "declares gptq, but what is stored is fp8-channel"),
        (FP8 | {"modules_to_not_convert": ["m"]}, "lists modules as not quantised that are fp8-channel"),
    ],
)
def test_tensors_are_followed_where_the_configuration_says_otherwise(
    tmp_path: Path, config: dict[str, Any], remark: str
) -> None:
    write(tmp_path, {"m.weight": codes_of((4, 8)), "m.weight_scale": scales_of((4, 1))}, config)
    checkpoint = opened(tmp_path)
    assert checkpoint.warnings == (f"config.json {remark}, and read as that ('m.weight')",)
    assert checkpoint.tensors["m.weight"].dtype == "fp8-channel"


def test_scales_lie_in_another_shard_or_in_one_that_is_missing(tmp_path: Path) -> None:
    codes, scales = codes_of((4, 8)), scales_of((4, 1))
    write(tmp_path / "1", {"m.weight": codes})
    write(tmp_path / "2", {"m.weight_scale": scales, "n": scales})
    for shard in "12":
        (tmp_path / shard / "model.safetensors").rename(tmp_path / f"model-0000{shard}-of-00002.safetensors")
    names = {"m.weight": 1, "m.weight_scale": 2, "n": 2}
    index = {"weight_map": {name: f"model-0000{shard}-of-00002.safetensors" for name, shard in names.items()}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    tensor = opened(tmp_path).tensors["m.weight"]
    assert same_bits(values_of(tensor), codes.astype(np.float32) * scales)
    assert len({span.source.url for span in tensor.spans}) == 2
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    checkpoint = opened(tmp_path)
    assert set(checkpoint.unreadable) == {"m.weight", "n"}
    assert not checkpoint.tensors
    assert "model-00002-of-00002.safetensors" in checkpoint.unreadable["m.weight"].sentence()


def test_scalars_are_scaled_and_empty_weights_are_weights(tmp_path: Path) -> None:
    """What has no elements, or no axis, is known by its parts as all else: its scales are no tensors of their own."""
    one = np.full((), 0.5, np.float32)
    scaled = {"m": (codes_of((0, 8)), one), "k": (codes_of((0, 8)), scales_of((0, 1))), "e": (codes_of((3, 0)), one)}
    arrays = {f"{name}.weight": codes for name, (codes, _) in scaled.items()}
    arrays |= {f"{name}.weight_scale": scale for name, (_, scale) in scaled.items()}
    arrays |= {"s": codes_of(()), "s_scale": one, "t.weight": codes_of(()), "t.weight_scale": one.reshape(1)}
    checkpoint = opened(write(tmp_path / "fp8", arrays))
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in checkpoint.tensors.items()} == {
        "m.weight": ("fp8-tensor", (0, 8)),
        "k.weight": ("fp8-tensor", (0, 8)),
        "e.weight": ("fp8-tensor", (3, 0)),
        "s": ("fp8-tensor", ()),
        "t.weight": ("fp8-tensor", ()),
    }
    plain = {name: arrays[name].astype(np.float32) * np.float32(0.5) for name in checkpoint.tensors}
    assert all(same_bits(values_of(tensor), plain[name]) for name, tensor in checkpoint.tensors.items())
    models.write(tmp_path / "plain" / "model.safetensors", plain)
    report = compare(str(tmp_path / "plain"), str(tmp_path / "fp8"))
    assert not report.failures
    assert report.coverage.tensors_compared == 5
    assert not [one for one in report.records if one["change"]["max_abs"]]


def test_a_parameter_with_two_scales_has_no_values(tmp_path: Path) -> None:
    one = np.full((), 0.5, np.float32)
    write(tmp_path, {"x": codes_of((4, 8)), "x_scale_inv": one, "x_scale": one})
    assert failure_of(tmp_path, "x").found == "_scale_inv and _scale lie beside it"


def test_a_scale_of_the_module_is_a_parameter_where_the_weight_has_its_own(tmp_path: Path) -> None:
    layer = np.ones(4, np.float32)
    arrays = {"m.weight": codes_of((4, 8)), "m.weight_scale": scales_of((4, 1)), "m.scale": layer}
    tensors = opened(write(tmp_path, arrays)).tensors
    assert {name: one.dtype for name, one in tensors.items()} == {"m.weight": "fp8-channel", "m.scale": "F32"}


def test_of_two_scales_none_is_taken(tmp_path: Path) -> None:
    arrays = {
        "m.weight": codes_of((4, 8)),
        "m.weight_scale": scales_of((4, 1)),
        "m.weight_scale_inv": scales_of((4, 1)),
    }
    assert failure_of(write(tmp_path, arrays), "m.weight").found == ".weight_scale_inv lie beside its weight_scale"


def test_a_quantised_checkpoint_is_compared_by_its_values(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    weight = generator.standard_normal((300, 5000)).astype(np.float32)  # two leaves, and tiles cut by both
    scales = np.abs(spread_maximum(weight, 128)) / 448
    codes = (weight / spread(scales, weight.shape, 128, 128)).astype(E4M3)
    baseline = models.write(tmp_path / "base" / "model.safetensors", {"m.weight": weight})
    write(tmp_path / "fp8", {"m.weight": codes, "m.weight_scale_inv": scales}, FP8)
    decoded = codes.astype(np.float32) * spread(scales, weight.shape, 128, 128)
    models.write(tmp_path / "values" / "model.safetensors", {"m.weight": decoded})
    report = compare(str(baseline.parent), str(tmp_path / "fp8"))
    expected = compare(str(baseline.parent), str(tmp_path / "values"))
    (found,), (wanted,) = report.records, expected.records
    assert found["candidate"]["dtype"] == "fp8-block"
    assert found["change"] == wanted["change"]
    assert {**found["candidate"], "dtype": ""} == {**wanted["candidate"], "dtype": ""}
    assert 0.001 < found["change"]["rel_l2"] < 0.05
    same = compare(str(tmp_path / "values"), str(tmp_path / "fp8"))
    assert same.records[0]["change"]["rel_l2"] == 0
    raw = compare(str(tmp_path / "fp8"), str(tmp_path / "fp8"), raw=True)
    assert raw.coverage.tensors_compared == 2


def spread_maximum(weight: np.ndarray, tile: int) -> np.ndarray:
    """The largest magnitude of each tile."""
    height, width = weight.shape
    padded = np.zeros((-(-height // tile) * tile, -(-width // tile) * tile), np.float32)
    padded[:height, :width] = np.abs(weight)
    return padded.reshape(padded.shape[0] // tile, tile, -1, tile).max(axis=(1, 3))
