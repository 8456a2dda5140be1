"""Quantised checkpoints for tests: written from arrays, opened, decoded at any run; and those of the libraries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

import checkpoints
from diffai_dist.checkpoint import Checkpoint, Tensor
from diffai_dist.errors import Failure
from diffai_dist.formats import open_checkpoint
from diffai_dist.storage import Profile

FIXTURES = Path(__file__).parent / "fixtures"
DTYPES = {
    "float32": "F32", "float16": "F16", "float64": "F64", "bfloat16": "BF16", "int8": "I8", "uint8": "U8",
    "int16": "I16", "int32": "I32", "float8_e4m3fn": "F8_E4M3", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip


def write(folder: Path, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None) -> Path:
    """A folder with one file, and what a config.json declares of quantisation."""
    folder.mkdir(exist_ok=True, parents=True)
    data = {name: (DTYPES[one.dtype.name], one.shape, one.tobytes()) for name, one in arrays.items()}
    checkpoints.write_data(folder / "model.safetensors", data)
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder), Profile())


def failure_of(folder: Path, name: str) -> Failure:
    """Why a tensor of a checkpoint has no values; the tensor and its parts are not there in any other way."""
    checkpoint = opened(folder)
    assert not [one for one in checkpoint.tensors if one.startswith(name)]
    return checkpoint.unreadable[name]


def run_of(tensor: Tensor, first: int, stop: int) -> np.ndarray:
    """Elements [first, stop) as float32, decoded out of exactly the bytes that their ranges are."""
    assert tensor.scheme
    parts = []
    for span, of in zip(tensor.ranges(first, stop), tensor.spans, strict=True):
        assert of.start <= span.start <= span.stop <= of.stop
        part = np.fromfile(span.source.url, np.uint8, span.stop - span.start, offset=span.start)
        assert part.size == span.stop - span.start
        parts.append(part)
    out = np.empty(4 * (stop - first), np.uint8)
    tensor.scheme.decode(tensor, parts, first, stop, out)
    return out.view(np.float32)


def values_of(tensor: Tensor) -> np.ndarray:
    return run_of(tensor, 0, tensor.elements).reshape(tensor.shape)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether all are the same numbers, zeros with their sign, or NaN in both."""
    nan = np.isnan(a) & np.isnan(b)
    return a.shape == b.shape and bool(np.all((a.view(np.uint32) == b.view(np.uint32)) | nan))


def cut(size: int, seed: int) -> list[tuple[int, int]]:
    """Runs that cover so many elements, cut anywhere, and some others."""
    generator = np.random.default_rng(seed)
    edges = sorted({0, size, *generator.integers(0, size + 1, 12).tolist()})
    others = np.sort(generator.integers(0, size + 1, (12, 2)), axis=1).tolist()
    return [*pairwise(edges), *((first, stop) for first, stop in others if first < stop)]


def codes_of(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Codes of F8_E4M3 at random, all but NaN."""
    codes = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return np.where(codes & 0x7F == 0x7F, 1, codes).astype(np.uint8).view(ml_dtypes.float8_e4m3fn)


def scales_of(shape: Sequence[int], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.001, 3, shape).astype(np.float32)


def spread(scales: np.ndarray, shape: Sequence[int], rows: int, columns: int) -> np.ndarray:
    """Each scale at all elements of its block."""
    grown = np.repeat(np.repeat(scales, rows, axis=-2), columns, axis=-1)
    return grown[..., : shape[-2], : shape[-1]]


def by_library(case: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The values that the library makes of a fixture: those in float32, and those in bfloat16 where it has such."""
    path = FIXTURES / f"{case}.values.safetensors"
    with safe_open(path, "np") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}
    single = {name: one for name, one in found.items() if one.dtype == np.float32}
    return single, {name.removesuffix(".bf16"): one for name, one in found.items() if one.dtype == ml_dtypes.bfloat16}


def check_library(case: str, dtype: str, signed_zeros: bool = True) -> None:
    """Open a fixture, and compare all values bit for bit with the library's, as a whole and in runs."""
    checkpoint = opened(FIXTURES / case)
    single, half = by_library(case)
    assert set(checkpoint.tensors) == set(single)
    assert not checkpoint.unreadable
    assert not checkpoint.warnings
    for name, expected in single.items():
        tensor = checkpoint.tensors[name]
        assert (tensor.dtype, tensor.shape) == (dtype, expected.shape)
        found = values_of(tensor)
        assert same_bits(found if signed_zeros else found + 0, expected), name
        for first, stop in cut(tensor.elements, 1):
            assert same_bits(run_of(tensor, first, stop), found.reshape(-1)[first:stop])
    for name, rounded in half.items():
        # What the library computes in bfloat16 alone rounds the product once more than we do.
        ours = values_of(checkpoint.tensors[name]).astype(ml_dtypes.bfloat16)
        assert np.all(np.abs(ours.view(np.int16).astype(int) - rounded.view(np.int16).astype(int)) <= 1), name
