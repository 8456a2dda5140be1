"""INT8 weights: symmetric and with zero points, every kind of scale, against compressed-tensors and against NumPy."""

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
from diffai_dist.checkpoint import Tensor
from diffai_dist.schemes.scales import power_of_two

CODES = np.arange(-128, 128).astype(np.int8).reshape(8, 32)
SCALES = np.linspace(0.1, 0.9, 8, dtype=np.float32)[:, None]


def declared(**settings: Any) -> dict[str, Any]:
    weights = {"type": "int", "num_bits": 8, "symmetric": True} | settings
    return {"quant_method": "compressed-tensors", "config_groups": {"0": {"targets": ["Linear"], "weights": weights}}}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("tensor", "int8-tensor"),
        ("channel", "int8-channel"),
        ("asymmetric", "int8-channel"),
        ("group", "int8-group"),
        ("block", "int8-block"),
        ("four-bits", "int4-group"),
    ],
)
def test_values_are_those_of_the_library(case: str, dtype: str) -> None:
    check_library(f"int8/{case}", dtype)


@pytest.mark.parametrize("zero_dtype", [np.int8, np.int32])
def test_every_code_minus_every_zero_point(tmp_path: Path, zero_dtype: Any) -> None:
    codes = np.repeat(np.arange(-128, 128).astype(np.int8)[None], 256, axis=0)
    zeros = np.arange(-128, 128).astype(zero_dtype)[:, None]
    scales = np.linspace(0.01, 3, 256, dtype=np.float32)[:, None]
    write(tmp_path, {"m.weight": codes, "m.weight_scale": scales, "m.weight_zero_point": zeros})
    expected = (codes.astype(np.float32) - zeros.astype(np.float32)) * scales
    tensor = opened(tmp_path).tensors["m.weight"]
    assert same_bits(values_of(tensor), expected)
    for first, stop in cut(tensor.elements, 2):
        assert same_bits(run_of(tensor, first, stop), expected.reshape(-1)[first:stop])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    "names", [("m.weight", "m.weight_scale"), ("m.weight", "m.scale"), ("experts", "experts_scale")]
)
def test_plain_scaled_int8_needs_no_configuration(tmp_path: Path, dtype: Any, names: tuple[str, str]) -> None:
    scales = SCALES.astype(dtype)
    checkpoint = opened(write(tmp_path, dict(zip(names, (CODES, scales), strict=True))))
    assert set(checkpoint.tensors) == {names[0]}
    expected = CODES.astype(np.float32) * scales.astype(np.float32)
    assert same_bits(values_of(checkpoint.tensors[names[0]]), expected)


@given(width=st.integers(1, 3000), exponent=st.integers(0, 12))
def test_a_group_that_is_a_power_of_two_is_known_from_the_scales(width: int, exponent: int) -> None:
    size = 2**exponent
    block = power_of_two((3, width), Tensor("s", "F32", (3, -(-width // size)), ()))
    assert block is not None
    assert block[0] == 1
    assert block[1] == size or size >= width <= block[1]


def test_no_power_of_two_fits() -> None:
    assert power_of_two((3, 60), Tensor("s", "F32", (3, 7), ())) is None
    assert power_of_two((3, 60), Tensor("s", "F32", (2, 4), ())) is None
    assert power_of_two((3, 60), Tensor("s", "F32", (3, 0), ())) is None


def test_a_group_size_that_is_not_declared_is_told(tmp_path: Path) -> None:
    scales = np.random.default_rng(0).uniform(0.1, 1, (8, 4)).astype(np.float32)
    arrays = {"m.weight": CODES, "m.weight_scale": scales}
    expected = CODES.astype(np.float32) * np.repeat(scales, 8, axis=1)
    guessed = opened(write(tmp_path / "none", arrays))
    said = opened(write(tmp_path / "said", arrays, declared(group_size=8, strategy="group")))
    for checkpoint in (guessed, said):
        assert checkpoint.tensors["m.weight"].dtype == "int8-group"
        assert same_bits(values_of(checkpoint.tensors["m.weight"]), expected)
    (remark,) = guessed.warnings
    assert remark == "no group size is declared: the only power of two that fits the scales was taken ('m.weight')"
    assert not said.warnings


def test_a_declared_group_size_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    scales = np.ones((8, 4), np.float32)
    write(tmp_path, {"m.weight": CODES, "m.weight_scale": scales}, declared(group_size=16, strategy="group"))
    failure = failure_of(tmp_path, "m.weight")
    assert (failure.found, failure.expected) == (
        "its scales have shape [8, 4]",
        "[8, 1] or [8, 2], as 1x16 is declared",
    )


@pytest.mark.parametrize(
    ("arrays", "config", "found"),
    [
        (
            {"m.weight": CODES},
            declared(),
            "its weight_scale or weight_scale_inv or scale is missing, and config.json declares it as quantised",
        ),
        (
            {"m.weight": CODES, "m.weight_scale": SCALES},
            declared(symmetric=False),
            "its weight_zero_point is missing, and config.json declares it as asymmetric",
        ),
        (
            {"m.weight": CODES, "m.weight_scale": SCALES, "m.weight_zero_point": np.zeros((4, 1), np.int8)},
            None,
            "its zero points are I8 [4, 1]",
        ),
        (
            {"m.weight": CODES, "m.weight_scale": SCALES, "m.weight_zero_point": np.zeros((8, 1), np.float32)},
            None,
            "its zero points are F32 [8, 1]",
        ),
        ({"m.weight": CODES, "m.weight_scale": np.ones((8, 1), np.uint8)}, None, "its scales are U8"),
        ({"m.weight": CODES, "m.weight_scale": np.ones((3, 5), np.float32)}, None, "its scales have shape [3, 5]"),
        (
            {"m.weight": CODES, "m.weight_scale": SCALES, "m.weight_g_idx": np.zeros(32, np.int32)},
            None,
            "its columns lie in the order of weight_g_idx, which is not undone",
        ),
    ],
)
def test_what_is_missing_or_does_not_fit_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], config: dict[str, Any] | None, found: str
) -> None:
    assert failure_of(write(tmp_path, arrays, config), "m.weight").found == found


def test_zero_points_of_symmetric_weights_are_applied_and_told(tmp_path: Path) -> None:
    zeros = np.full((8, 1), 3, np.int8)
    arrays = {"m.weight": CODES, "m.weight_scale": SCALES, "m.weight_zero_point": zeros}
    checkpoint = opened(write(tmp_path, arrays, declared()))
    assert "declares weights as symmetric that have zero points" in checkpoint.warnings[0]
    assert same_bits(values_of(checkpoint.tensors["m.weight"]), (CODES.astype(np.float32) - 3) * SCALES)


def test_scalars_are_scaled_and_empty_weights_are_weights(tmp_path: Path) -> None:
    one = np.full(1, 0.5, np.float32)
    arrays = {"m.weight": np.zeros((0, 8), np.int8), "m.weight_scale": one, "s": np.array(-3, np.int8), "s_scale": one}
    tensors = opened(write(tmp_path, arrays)).tensors
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()} == {
        "m.weight": ("int8-tensor", (0, 8)),
        "s": ("int8-tensor", ()),
    }
    assert values_of(tensors["s"]) == -1.5


def test_a_scale_of_the_module_is_a_parameter_where_the_weight_has_its_own(tmp_path: Path) -> None:
    """A learnable scale of the layer: it may differ, and is compared."""
    arrays = {"m.weight": CODES, "m.weight_scale": SCALES, "m.scale": np.ones(8, np.float32)}
    tensors = opened(write(tmp_path, arrays)).tensors
    assert {name: one.dtype for name, one in tensors.items()} == {"m.weight": "int8-channel", "m.scale": "F32"}


def test_integers_that_nothing_scales_stay_integers(tmp_path: Path) -> None:
    tensors = opened(write(tmp_path, {"m.weight": CODES, "other.weight_scale": SCALES})).tensors
    assert {name: one.scheme for name, one in tensors.items()} == {"m.weight": None, "other.weight_scale": None}


@pytest.mark.parametrize("bits", [True, 0, -4, 2**70, "4", 9])
def test_absurd_bits_are_eight(tmp_path: Path, bits: object) -> None:
    write(tmp_path, {"m.weight": CODES, "m.weight_scale": SCALES}, declared(num_bits=bits))
    assert opened(tmp_path).tensors["m.weight"].dtype == "int8-channel"


def test_a_quantised_checkpoint_is_compared_by_its_values(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    scales = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    codes = np.rint(weight / scales).astype(np.int8)
    models.write(tmp_path / "base" / "model.safetensors", {"m.weight": weight})
    write(tmp_path / "int8", {"m.weight": codes, "m.weight_scale": scales})
    (record,) = compare(str(tmp_path / "base"), str(tmp_path / "int8")).records
    difference = codes * scales.astype(np.float64) - weight
    assert record["change"]["rel_l2"] == pytest.approx(np.linalg.norm(difference) / np.linalg.norm(weight), rel=1e-6)
    assert record["candidate"]["dtype"] == "int8-channel"
