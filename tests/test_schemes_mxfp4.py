"""MXFP4 of compressed-tensors, of DeepSeek-V4's experts, and of gpt-oss, whose matrices are compared transposed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from decoding import check_library, cut, failure_of, opened, run_of, same_bits, values_of, write
from diffai_dist import compare

CODES = np.random.default_rng(0).integers(0, 256, (10, 64), np.uint8)
POWERS = np.random.default_rng(1).integers(100, 150, (10, 4), np.uint8)
PACKED = {"m.weight_packed": CODES, "m.weight_scale": POWERS}
GPT_OSS = {"quant_method": "mxfp4"}


def decoded(codes: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """Both nibbles of each byte, the low one first, times a power of two for 32 of them."""
    nibbles = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1).astype(np.uint8)
    factors = np.repeat(powers.view(ml_dtypes.float8_e8m0fnu).astype(np.float32), 32, axis=-1)
    return nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float32) * factors[..., : nibbles.shape[-1]]


def stacked(experts: int, rows: int, groups: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 256, (experts, rows, groups, 16), np.uint8)
    return codes, generator.integers(100, 150, (experts, rows, groups), np.uint8)


def of_stack(codes: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """[experts, rows, columns]"""
    return decoded(codes.reshape(*codes.shape[:2], -1), powers)


@pytest.mark.parametrize("case", ["compressed", "experts", "gpt-oss"])
def test_values_are_those_of_the_library(case: str) -> None:
    check_library(f"mxfp4/{case}", "mxfp4")


def test_the_low_nibble_comes_first_and_128_is_two(tmp_path: Path) -> None:
    codes, powers = np.full((1, 16), 0xA3, np.uint8), np.array([[128]], np.uint8)
    write(tmp_path, {"m.weight_packed": codes, "m.weight_scale": powers})
    assert values_of(opened(tmp_path).tensors["m.weight"]).tolist() == [[3.0, -2.0] * 16]


def test_all_powers_and_all_bytes(tmp_path: Path) -> None:
    """0 is 2^-127, which is subnormal; 254 makes infinities of large codes; 255 is NaN."""
    codes = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    powers = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 16, axis=1)
    write(tmp_path, {"m.weight_packed": codes, "m.weight_scale": powers})
    with np.errstate(all="ignore"):
        assert same_bits(values_of(opened(tmp_path).tensors["m.weight"]), decoded(codes, powers))


@pytest.mark.parametrize("dtype", [np.uint8, ml_dtypes.float8_e8m0fnu])
@given(seed=st.integers(0, 10**6))
def test_runs_begin_and_end_anywhere(tmp_path_factory: pytest.TempPathFactory, dtype: Any, seed: int) -> None:
    folder = tmp_path_factory.getbasetemp() / f"mxfp4-{np.dtype(dtype).name}"
    if not folder.exists():
        write(folder, PACKED | {"m.weight_scale": POWERS.view(dtype)})
    tensor, whole = opened(folder).tensors["m.weight"], decoded(CODES, POWERS).reshape(-1)
    for first, stop in cut(tensor.elements, seed):
        assert same_bits(run_of(tensor, first, stop), whole[first:stop])


@pytest.mark.parametrize("ending", ["scale", "weight_scale_inv"])
def test_experts_of_deepseek_are_codes_in_bytes_declared_as_i8(tmp_path: Path, ending: str) -> None:
    powers = POWERS.view(ml_dtypes.float8_e8m0fnu)
    write(tmp_path, {"m.weight": CODES.view(np.int8), f"m.{ending}": powers}, {"quant_method": "fp8"})
    checkpoint = opened(tmp_path)
    assert {name: one.shape for name, one in checkpoint.tensors.items()} == {"m.weight": (10, 128)}
    assert same_bits(values_of(checkpoint.tensors["m.weight"]), decoded(CODES, POWERS))


@given(
    experts=st.integers(1, 3), rows=st.integers(1, 150), groups=st.integers(1, 3), seed=st.integers(0, 99)
)  # tiles are 64 rows and 32 columns
def test_stacked_experts_are_transposed_at_any_run(
    tmp_path_factory: pytest.TempPathFactory, experts: int, rows: int, groups: int, seed: int
) -> None:
    codes, powers = stacked(experts, rows, groups, seed)
    folder = tmp_path_factory.getbasetemp() / "stacked"
    write(folder, {"mlp.experts.down_proj_blocks": codes, "mlp.experts.down_proj_scales": powers}, GPT_OSS)
    tensor = opened(folder).tensors["mlp.experts.down_proj"]
    whole = of_stack(codes, powers).swapaxes(1, 2)
    assert tensor.shape == whole.shape == (experts, groups * 32, rows)
    for first, stop in cut(tensor.elements, seed):
        assert same_bits(run_of(tensor, first, stop), whole.reshape(-1)[first:stop])


def test_the_original_folder_of_gpt_oss_is_not_transposed(tmp_path: Path) -> None:
    codes, powers = stacked(2, 6, 3)
    arrays = {"block.0.mlp.mlp1_weight.blocks": codes, "block.0.mlp.mlp1_weight.scales": powers}
    bias = {"block.0.mlp.mlp1_bias": np.ones((2, 6), np.float32)}
    checkpoint = opened(write(tmp_path, arrays | bias))
    assert set(checkpoint.tensors) == {"block.0.mlp.mlp1_weight", "block.0.mlp.mlp1_bias"}
    tensor = checkpoint.tensors["block.0.mlp.mlp1_weight"]
    assert same_bits(values_of(tensor), of_stack(codes, powers))


BLOCKS, SCALES = stacked(2, 6, 3)


@pytest.mark.parametrize(
    ("arrays", "config", "found"),
    [
        ({"m.weight_packed": CODES}, None, "its weight_scale is missing"),
        (PACKED | {"m.weight_scale": POWERS[:, :3]}, None, "its scales are U8 [10, 3]"),
        (PACKED | {"m.weight_scale": POWERS[:5]}, None, "its scales are U8 [5, 4]"),
        (PACKED | {"m.weight_scale": POWERS.reshape(-1)}, None, "its scales are U8 [40]"),
        (PACKED | {"m.weight_packed": CODES.reshape(-1)}, None, "its scales are U8 [10, 4]"),
        (
            {"m.weight_packed": np.zeros((10, 48), np.uint8), "m.weight_scale": POWERS[:, :2]},
            None,
            "MXFP6, which is not decoded",
        ),
        (PACKED, {"transform_config": {"a": 1}}, "it is rotated (transform_config)"),
        ({"m.weight_blocks": BLOCKS, "m.weight_scales": SCALES[:, :, :2]}, None, "its scales are U8 [2, 6, 2]"),
        ({"m.weight_blocks": BLOCKS, "m.weight_scales": np.ones((2, 6, 3))}, None, "its scales are F64 [2, 6, 3]"),
        ({"m.weight_blocks": BLOCKS}, GPT_OSS, "its weight_scales is missing"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], config: dict[str, Any] | None, found: str
) -> None:
    assert failure_of(write(tmp_path, arrays, config), "m.weight").found.startswith(found)


def test_blocks_of_something_else_stay_what_they_are(tmp_path: Path) -> None:
    arrays = {"a_blocks": BLOCKS, "b_blocks": BLOCKS[0], "b_scales": SCALES, "c.blocks": BLOCKS.reshape(2, 6, 2, 24)}
    tensors = opened(write(tmp_path, arrays)).tensors
    assert set(tensors) == set(arrays)
    assert not any(tensor.scheme for tensor in tensors.values())


def test_experts_are_compared_with_the_unquantised_ones(tmp_path: Path) -> None:
    codes, powers = stacked(3, 700, 12)  # 806,400 elements: runs cross experts, and are shorter than them
    weight = of_stack(codes, powers).swapaxes(1, 2)
    changed = np.ascontiguousarray(weight)
    changed[2, 40, 8] += 1
    models.write(tmp_path / "base" / "model.safetensors", {"mlp.experts.gate_up_proj": changed})
    arrays = {"mlp.experts.gate_up_proj_blocks": codes, "mlp.experts.gate_up_proj_scales": powers}
    write(tmp_path / "mxfp4", arrays, GPT_OSS)
    (record,) = compare(str(tmp_path / "base"), str(tmp_path / "mxfp4")).records
    assert record["change"]["max_abs_index"] == np.ravel_multi_index((2, 40, 8), weight.shape)
    assert record["change"]["changed_fraction"] == 1 / weight.size
