"""What becomes of a checkpoint before it is served: a cast to F16, INT8 codes, and codes with a wrong scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffai_dist.demo.network import Weights

WRONG_SCALE = "fc2.weight_scale"  # half of what it should be


def quantised(weights: Weights) -> Weights:
    """Matrices as INT8 codes with a scale per output channel, rounded to nearest; vectors as they are."""
    found: Weights = {}
    for name, values in weights.items():
        found[name] = values
        if values.ndim == 2:
            scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
            found[name] = np.rint(values / scale).astype(np.int8)
            found[f"{name}_scale"] = scale
    return found


def write_conversions(folder: Path, name: str, weights: Weights) -> list[Path]:
    """Files NAME-f16, NAME-int8 and NAME-int8-wrong-scale."""
    from safetensors.numpy import save_file

    codes = quantised(weights)
    versions = {
        "f16": {name: values.astype(np.float16) for name, values in weights.items()},
        "int8": codes,
        "int8-wrong-scale": codes | {WRONG_SCALE: codes[WRONG_SCALE] / 2},
    }
    paths = [folder / f"{name}-{version}.safetensors" for version in versions]
    for path, arrays in zip(paths, versions.values(), strict=True):
        save_file(arrays, str(path))
    return paths
