"""Small real models: arrays with every awkwardness in them, written plain or as shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

Arrays = dict[str, np.ndarray]


def model(seed: int = 0) -> Arrays:
    """Tensors of several dtypes and sizes, one of more than two leaves, some with non-finite values."""
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32) * np.float32(0.02)

    arrays = {
        "embed.weight": normal(2100, 1024),
        "model.layers.0.self_attn.q_proj.weight": normal(256, 256),
        "model.layers.0.mlp.up_proj.weight": normal(300, 256).astype(ml_dtypes.bfloat16),
        "model.layers.1.self_attn.q_proj.weight": normal(256, 256).astype(np.float16),
        "model.layers.1.mlp.up_proj.weight": normal(77, 129).astype(np.float64),
        "model.layers.10.mlp.up_proj.weight": normal(65, 4097),
        "model.norm.weight": 1 + normal(256),
        "counts": generator.integers(-(2**62), 2**62, 500),
        "mask": generator.integers(0, 2, 1000).astype(bool),
        "scalar": np.array(generator.standard_normal(), np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }
    arrays["embed.weight"][5, 7] = np.nan
    arrays["embed.weight"][2000, 0] = np.inf
    return arrays


def perturbed(arrays: Mapping[str, np.ndarray], seed: int = 1) -> Arrays:
    """The same model a step later: most tensors moved, some frozen, one gone, one new, one reshaped."""
    generator = np.random.default_rng(seed)
    moved = {}
    for name, array in arrays.items():
        if array.dtype.kind in "fV" and "layers.0." not in name:
            update = generator.standard_normal(array.shape) * 1e-3 * (generator.random(array.shape) < 0.7)
            moved[name] = (array.astype(np.float64) + update).astype(array.dtype)
        else:
            moved[name] = array.copy()
    moved["counts"][3] += 1
    moved["new"] = generator.standard_normal(9).astype(np.float32)
    del moved["mask"]
    moved["model.norm.weight"] = moved["model.norm.weight"][:200]
    return moved


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    """One file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}, str(path), metadata
    )
    return path


def write_sharded(folder: Path, arrays: Mapping[str, np.ndarray], shards: int) -> Path:
    """A folder of shards with their index; tensors dealt out in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(arrays)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: arrays[name] for name in names[shard::shards]}
        write(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(array.nbytes for array in arrays.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
