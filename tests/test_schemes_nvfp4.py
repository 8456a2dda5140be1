"""NVFP4 of compressed-tensors, which divides, and of ModelOpt, which multiplies; both nibbles, every code."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from decoding import check_library, cut, failure_of, opened, run_of, same_bits, values_of, write
from diffai_dist import compare
from diffai_dist.schemes.loops import table

E4M3 = ml_dtypes.float8_e4m3fn
ROWS, HALF = 16, 40
CODES = np.random.default_rng(0).integers(0, 256, (ROWS, HALF), np.uint8)
SCALES = np.random.default_rng(1).integers(1, 0x7E, (ROWS, 5), np.uint8).view(E4M3)
COMMON = np.array([0.37], np.float32)
PACKED = {"m.weight_packed": CODES, "m.weight_scale": SCALES, "m.weight_global_scale": COMMON}
MODELOPT = {"m.weight": CODES, "m.weight_scale": SCALES, "m.weight_scale_2": COMMON.reshape(())}


def elements(codes: np.ndarray) -> np.ndarray:
    """The values of both nibbles of each byte, the low one first."""
    nibbles = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)
    return nibbles.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)


def expected(factor: np.ndarray) -> np.ndarray:
    return elements(CODES) * np.repeat(factor, 16, axis=1)


def test_all_16_codes_have_the_values_of_the_format() -> None:
    codes = np.arange(16, dtype=np.uint8)
    assert same_bits(table("F4")[:16], codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32))


def test_values_are_those_of_compressed_tensors() -> None:
    check_library("nvfp4/compressed", "nvfp4")


def test_values_are_those_of_modelopt() -> None:
    """But for -0: its table has 0 for code 8, which is -0 in the format."""
    check_library("nvfp4/modelopt", "nvfp4", signed_zeros=False)


def test_the_global_scale_divides_and_the_second_one_multiplies(tmp_path: Path) -> None:
    """Byte 0x72 is codes 2 and 7; with scale 2 and 4, or 1/4, they are 0.5 and 3."""
    codes, scales = np.full((1, 8), 0x72, np.uint8), np.full((1, 1), 0x40, np.uint8).view(E4M3)
    four, quarter = np.array([4], np.float32), np.array(0.25, np.float32)
    write(tmp_path / "ct", {"m.weight_packed": codes, "m.weight_scale": scales, "m.weight_global_scale": four})
    write(tmp_path / "mo", {"m.weight": codes, "m.weight_scale": scales, "m.weight_scale_2": quarter})
    for folder in ("ct", "mo"):
        tensor = opened(tmp_path / folder).tensors["m.weight"]
        assert tensor.shape == (1, 16)
        assert values_of(tensor).tolist() == [[0.5, 3.0] * 8]


def test_each_in_float32_with_the_scales_first(tmp_path: Path) -> None:
    packed = opened(write(tmp_path / "ct", PACKED)).tensors
    modelopt = opened(write(tmp_path / "mo", MODELOPT)).tensors
    assert set(packed) == set(modelopt) == {"m.weight"}
    assert same_bits(values_of(packed["m.weight"]), expected(SCALES.astype(np.float32) / COMMON))
    assert same_bits(values_of(modelopt["m.weight"]), expected(SCALES.astype(np.float32) * COMMON))


@given(seed=st.integers(0, 10**6))
def test_runs_begin_and_end_inside_bytes_and_groups(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "nvfp4"
    tensor = opened(folder if folder.exists() else write(folder, PACKED)).tensors["m.weight"]
    whole = expected(SCALES.astype(np.float32) / COMMON).reshape(-1)
    for first, stop in cut(tensor.elements, seed):
        assert same_bits(run_of(tensor, first, stop), whole[first:stop])


def test_a_stack_of_experts_and_a_short_last_group(tmp_path: Path) -> None:
    codes = np.random.default_rng(2).integers(0, 256, (3, 5, 12), np.uint8)
    scales = np.random.default_rng(3).integers(1, 0x7E, (3, 5, 2), np.uint8).view(E4M3)
    write(tmp_path, {"m.weight_packed": codes, "m.weight_scale": scales, "m.weight_global_scale": COMMON})
    tensor = opened(tmp_path).tensors["m.weight"]
    factors = np.repeat(scales.astype(np.float32) / COMMON, 16, axis=-1)[..., :24]
    assert same_bits(values_of(tensor), elements(codes) * factors)
    for first, stop in cut(tensor.elements, 4):
        assert same_bits(run_of(tensor, first, stop), values_of(tensor).reshape(-1)[first:stop])


@pytest.mark.parametrize("common", [0, np.inf, np.nan, 1e-42])
def test_a_global_scale_that_is_no_use_gives_what_it_gives(tmp_path: Path, common: float) -> None:
    write(tmp_path, PACKED | {"m.weight_global_scale": np.array([common], np.float32)})
    with np.errstate(all="ignore"):
        wanted = expected(SCALES.astype(np.float32) / np.float32(common))
    assert same_bits(values_of(opened(tmp_path).tensors["m.weight"]), wanted)


def without(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {one: array for one, array in arrays.items() if one != name}


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        (without(PACKED, "m.weight_scale"), "its weight_scale is missing"),
        (without(PACKED, "m.weight_global_scale"), "its weight_global_scale is missing"),
        (without(MODELOPT, "m.weight_scale_2"), "its weight_scale_2 is missing"),
        (without(MODELOPT, "m.weight_scale"), "its weight_scale is missing"),
        (PACKED | {"m.weight_scale": SCALES[:, :4]}, "its scales are F8_E4M3 [16, 4]"),
        (PACKED | {"m.weight_scale": SCALES.T.copy()}, "its scales are F8_E4M3 [5, 16]"),
        (PACKED | {"m.weight_scale": SCALES.astype(np.float32)}, "its scales are F32 [16, 5]"),
        (PACKED | {"m.weight_global_scale": np.ones(2, np.float32)}, "its weight_global_scale is F32 [2]"),
        (PACKED | {"m.weight_global_scale": np.ones(1, np.int32)}, "its weight_global_scale is I32 [1]"),
        (PACKED | {"m.weight_packed": CODES.reshape(-1)}, "its codes have shape [640]"),
        (
            PACKED | {"m.weight_zero_point": np.zeros((16, 5), np.int8)},
            "its weight_zero_point belongs to no layout of NVFP4 that is known",
        ),
    ],
)
def test_what_is_missing_or_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], found: str) -> None:
    assert failure_of(write(tmp_path, arrays), "m.weight").found == found


def test_bytes_that_nothing_scales_stay_bytes(tmp_path: Path) -> None:
    assert opened(write(tmp_path, {"m.weight": CODES})).tensors["m.weight"].scheme is None


def test_a_transform_is_refused(tmp_path: Path) -> None:
    config = {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": {"type": "hadamard"}}}}
    assert "transform_config" in failure_of(write(tmp_path, PACKED, config), "m.weight").found


def test_modelopt_declares_it_in_a_file_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, MODELOPT)
    quantised = {"quantization": {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["m"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(quantised))
    (remark,) = opened(tmp_path).warnings
    assert remark.startswith("hf_quant_config.json lists modules as not quantised that are nvfp4")


def test_a_quantised_checkpoint_is_compared_by_its_values(tmp_path: Path) -> None:
    baseline = expected(SCALES.astype(np.float32) * COMMON)
    models.write(tmp_path / "base" / "model.safetensors", {"m.weight": baseline})
    write(tmp_path / "right", MODELOPT)
    write(tmp_path / "half", MODELOPT | {"m.weight_scale_2": COMMON.reshape(()) / 2})
    assert compare(str(tmp_path / "base"), str(tmp_path / "right")).records[0]["change"]["rel_l2"] == 0
    assert compare(str(tmp_path / "base"), str(tmp_path / "half")).records[0]["change"]["rel_l2"] == 0.5
