"""Stored parts become logical tensors, in one file or in several; what is lost is named as what it stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import models
from diffai_dist.checkpoint import Checkpoint
from diffai_dist.formats import open_checkpoint
from diffai_dist.formats.quantised import MOST_TOLD
from diffai_dist.storage import Profile

CODES = np.full((8, 16), 1, ml_dtypes.float8_e4m3fn)
SCALE = np.full((8, 1), 0.5, np.float32)
PACKED = {
    "m.weight_packed": np.full((8, 2), 0x76543210, np.int32),
    "m.weight_scale": np.full((8, 1), 0.5, np.float32),
    "m.weight_shape": np.array([8, 16]),
}


def opened(path: Path, raw: bool = False) -> Checkpoint:
    return open_checkpoint(str(path), Profile(), raw=raw)


def sharded(folder: Path, *shards: dict[str, Any], missing: int) -> Path:
    """Shards with an index; one of them is not there."""
    folder.mkdir()
    names = {}
    for number, arrays in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        if number != missing:
            models.write(folder / file, arrays)
        names |= dict.fromkeys(arrays, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def test_parts_in_two_shards_are_one_tensor(tmp_path: Path) -> None:
    path = sharded(tmp_path / "a", {"m.weight": CODES}, {"m.weight_scale": SCALE, "n": SCALE}, missing=-1)
    found = opened(path).tensors
    assert {name: (one.dtype, one.shape, len(one.spans)) for name, one in found.items()} == {
        "m.weight": ("fp8-channel", (8, 16), 2),
        "n": ("F32", (8, 1), 1),
    }
    assert set(opened(path, raw=True).tensors) == {"m.weight", "m.weight_scale", "n"}


@pytest.mark.parametrize(
    ("codes", "beside"),
    [
        ({"m.weight": CODES}, {"m.weight_scale": SCALE}),
        ({"m.weight_packed": PACKED["m.weight_packed"]}, {k: v for k, v in PACKED.items() if k != "m.weight_packed"}),
    ],
)
@pytest.mark.parametrize("missing", [0, 1])
def test_what_is_lost_with_a_shard_is_the_weight(
    tmp_path: Path, codes: dict[str, Any], beside: dict[str, Any], missing: int
) -> None:
    path = sharded(tmp_path / "a", {**codes, "k": SCALE}, {**beside, "n": SCALE}, missing=missing)
    found = opened(path)
    assert set(found.tensors) == ({"k"} if missing else {"n"})
    assert set(found.unreadable) == {"m.weight", "n" if missing else "k"}
    failure = found.unreadable["m.weight"]
    assert failure.tensor == "m.weight"
    assert failure.object.endswith(f"model-0000{missing + 1}-of-00002.safetensors")
    assert "missing" in failure.found


@pytest.mark.parametrize("declared", [True, False])
def test_a_lost_parameter_takes_what_is_called_as_its_scale_only_where_codes_are_declared(
    tmp_path: Path, declared: bool
) -> None:
    """`logit_scale` beside a lost `logit` is a parameter of its own in models that nobody calls quantised."""
    path = sharded(tmp_path / "a", {"logit": CODES}, {"logit_scale": SCALE, "n": SCALE}, missing=0)
    if declared:
        (path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    found = opened(path)
    assert set(found.unreadable) == {"logit"}
    assert set(found.tensors) == ({"n"} if declared else {"logit_scale", "n"})


@pytest.mark.parametrize("prefix", ["", "m."])
@pytest.mark.parametrize(
    ("parts", "dtype"),
    [
        ({"weight": CODES, "weight_scale": SCALE, "input_scale": SCALE}, "fp8-channel"),
        ({"weight": CODES, "scale": SCALE}, "fp8-channel"),
        (
            {"weight": CODES.view(np.int8), "weight_scale": SCALE, "weight_zero_point": CODES.view(np.int8)[:, :1]},
            "int8",
        ),
        (
            {
                "weight_packed": np.full((8, 8), 0x76543210, np.int32),
                "weight_scale": SCALE,
                "weight_shape": np.array([8, 64]),
            },
            "int4-channel",
        ),
        ({"weight": CODES.view(np.int8), "SCB": SCALE[:, 0], "weight_format": np.array(0, np.uint8)}, "bnb-int8"),
        (
            {
                "qweight": np.zeros((4, 32), np.int32),
                "qzeros": np.full((1, 4), 0x77777777, np.int32),
                "scales": np.ones((1, 32), np.float16),
            },
            "gptq-4bit",
        ),
    ],
)
def test_a_module_may_have_no_name(tmp_path: Path, prefix: str, parts: dict[str, Any], dtype: str) -> None:
    """A file of one layer: its tensors are called as those of a module, without a module."""
    found = opened(models.write(tmp_path / "a.safetensors", {prefix + name: part for name, part in parts.items()}))
    assert not found.unreadable
    (tensor,) = found.tensors.values()
    assert (tensor.name, list(found.tensors)) == (f"{prefix}weight", [f"{prefix}weight"])
    assert tensor.dtype.startswith(dtype)


@pytest.mark.parametrize("prefix", ["", "m."])
def test_what_is_refused_is_so_without_a_name_too(tmp_path: Path, prefix: str) -> None:
    mlx = {"weight": np.zeros((8, 4), np.uint32), "scales": SCALE, "biases": SCALE}
    found = opened(models.write(tmp_path / "a.safetensors", {prefix + name: part for name, part in mlx.items()}))
    assert not found.tensors
    assert list(found.unreadable) == [f"{prefix}weight"]


def test_a_weight_that_is_stored_twice_is_refused(tmp_path: Path) -> None:
    both = {**PACKED, "m.weight": np.ones((8, 16), np.float32)}
    found = opened(models.write(tmp_path / "a.safetensors", both))
    assert not found.tensors
    assert "stored twice" in found.unreadable["m.weight"].found
    assert "--raw" in found.unreadable["m.weight"].hint


def test_a_part_that_is_told_and_large_spoils_its_own_weight(tmp_path: Path) -> None:
    large = {**PACKED, "m.weight_shape": np.ones(MOST_TOLD, np.int64), "n": SCALE}
    found = opened(models.write(tmp_path / "a.safetensors", large))
    assert set(found.tensors) == {"n"}
    assert set(found.unreadable) == {"m.weight"}


def test_plain_checkpoints_cost_no_request_more(tmp_path: Path) -> None:
    path = models.write(tmp_path / "a.safetensors", {"m.weight": SCALE})
    (tmp_path / "config.json").write_text("[")  # would be told of, were it read
    found = opened(path)
    assert found.warnings == ()
    assert found.config is None
