"""What a comparison reads of quantised weights: every byte about once, however the work is cut."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import decoding
from diffai_dist import storage
from diffai_dist.cluster import Place
from diffai_dist.comparison import Pair, compare_members
from diffai_dist.formats import open_checkpoint
from diffai_dist.partials import DETAILS
from diffai_dist.pipeline import run_plan
from diffai_dist.plan import make_plan
from diffai_dist.storage import Profile

ROWS, COLUMNS = 3000, 1024  # three leaves, the last one short
RANDOM = np.random.default_rng(4)


def words(*shape: int) -> np.ndarray:
    return RANDOM.integers(-(2**31), 2**31, shape).astype(np.int32)


def nibbles(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, np.uint8)


SCALES = RANDOM.uniform(0.5, 1, (ROWS, COLUMNS // 16))
STORED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fp8-block": (
        {
            "w.weight": RANDOM.standard_normal((ROWS, COLUMNS)).astype(ml_dtypes.float8_e4m3fn),
            "w.weight_scale_inv": SCALES[: -(-ROWS // 128), :8].astype(np.float32),
        },
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
    ),
    "nvfp4": (
        {
            "w.weight_packed": nibbles(ROWS, COLUMNS // 2),
            "w.weight_scale": SCALES.astype(ml_dtypes.float8_e4m3fn),
            "w.weight_global_scale": np.ones(1, np.float32),
        },
        {},
    ),
    "gptq-4bit": (
        {
            "w.qweight": words(COLUMNS // 8, ROWS),
            "w.qzeros": words(COLUMNS // 128, ROWS // 8),
            "w.scales": SCALES.T[: COLUMNS // 128].astype(np.float16),
        },
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "gptq"},
    ),
}


@pytest.mark.parametrize("unit_bytes", [None, 2**16])
@pytest.mark.parametrize("details", [(), DETAILS])
@pytest.mark.parametrize("kind", STORED)
def test_a_byte_is_read_once(tmp_path: Path, kind: str, details: tuple[str, ...], unit_bytes: int | None) -> None:
    arrays, declared = STORED[kind]
    members = [
        open_checkpoint(str(decoding.write(tmp_path / name, arrays, declared)), Profile()) for name in ("a", "b")
    ]
    (tensor,) = members[0].tensors.values()
    assert (tensor.name, tensor.dtype, tensor.shape) == ("w.weight", kind, (ROWS, COLUMNS))
    comparison = dataclasses.replace(compare_members(members, (Pair(0, 1),)), details=details)
    plan = make_plan(comparison, Profile(), unit_bytes)
    before = storage.traffic().bytes
    run_plan(plan, Place(threads=1))
    assert plan.nbytes <= storage.traffic().bytes - before <= 1.05 * plan.nbytes
    assert plan.nbytes == sum(one.nbytes for member in members for one in member.tensors.values())
