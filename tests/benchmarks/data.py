"""Checkpoints of any size for the benchmarks, written once and kept.

A process of its own writes them: the system counts what a parent holds into the peak memory of its children, so the
one that measures must stay small.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SERIES = 8


def write_pair(folder: Path, nbytes: int, tensors: int, dtype: str) -> list[Path]:
    """Two checkpoints of so many bytes each."""
    return _written(folder, nbytes, tensors, dtype, ("baseline", "candidate"))


def write_quantised(folder: Path, nbytes: int, tensors: int) -> list[Path]:
    """A BF16 checkpoint of so many bytes, and the same as FP8 with a scale for each tile of 128 x 128."""
    return _written(folder, nbytes, tensors, "FP8", ("baseline", "candidate"))


def write_series(folder: Path, nbytes: int, tensors: int, dtype: str) -> list[Path]:
    """Eight checkpoints of so many bytes each, one training step after the other."""
    return _written(folder, nbytes, tensors, dtype, [f"step-{step:04}" for step in range(SERIES)])


def _written(folder: Path, nbytes: int, tensors: int, dtype: str, names: Sequence[str]) -> list[Path]:
    paths = [folder / f"{name}.safetensors" for name in names]
    if not all(path.exists() for path in paths):
        command = [sys.executable, __file__, str(nbytes), str(tensors), dtype, *map(str, paths)]
        subprocess.run(command, check=True)
    return paths


def _write(nbytes: int, tensors: int, dtype: str, paths: Sequence[Path]) -> None:
    """Normal weights, and in each further file the same after one more small update."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    kind = np.dtype({"F32": np.float32, "BF16": ml_dtypes.bfloat16, "FP8": ml_dtypes.bfloat16}[dtype])
    width = min(4096, nbytes // tensors // kind.itemsize)
    rows = nbytes // tensors // kind.itemsize // width
    block = np.random.default_rng(0).standard_normal((min(rows, 1024), width), dtype=np.float32) * np.float32(0.02)
    for step, path in enumerate(paths):
        if step and dtype == "FP8":
            _write_fp8(block, rows, tensors, path)
            continue
        if step:
            update = np.random.default_rng(step).standard_normal(block.shape, dtype=np.float32)
            block = block + update * np.float32(0.001)
        whole = np.tile(block.astype(kind), (-(-rows // len(block)), 1))[:rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({f"model.layers.{index}.weight": whole for index in range(tensors)}, str(path))


def _write_fp8(block: np.ndarray, rows: int, tensors: int, path: Path) -> None:
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    tiles = block.reshape(-1, 128, block.shape[1] // 128, 128)
    scales = np.abs(tiles).max(axis=(1, 3)) / np.float32(448)
    codes = (tiles / scales[:, None, :, None]).reshape(block.shape).astype(ml_dtypes.float8_e4m3fn)
    times = -(-rows // len(block))
    weight, scale = np.tile(codes, (times, 1))[:rows], np.tile(scales, (times, 1))[: -(-rows // 128)]
    parts = {"weight": weight, "weight_scale_inv": scale}
    arrays = {f"model.layers.{index}.{name}": part for index in range(tensors) for name, part in parts.items()}
    save_file(arrays, str(path))


if __name__ == "__main__":
    _write(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], [Path(name) for name in sys.argv[4:]])
