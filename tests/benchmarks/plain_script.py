"""What people write by hand: whole tensors through safetensors and NumPy, the statistics that `compare` gives."""

from __future__ import annotations

import sys

import ml_dtypes  # noqa: F401  (registers bfloat16)
import numpy as np
from safetensors import safe_open


def side(x: np.ndarray) -> tuple[object, ...]:
    finite = np.isfinite(x)
    kept = x if finite.all() else x[finite]
    wide = kept.astype(np.float64)
    magnitude = np.abs(kept)
    squares = float(np.dot(wide.ravel(), wide.ravel()))
    tiny = np.finfo(np.float32).tiny
    return (
        wide.mean(), wide.std(), kept.min(), kept.max(), magnitude.max(), int(magnitude.argmax()),
        (squares / max(kept.size, 1)) ** 0.5, squares**0.5, int((x == 0).sum()),
        int(((magnitude < tiny) & (magnitude > 0)).sum()),
        int(np.isnan(x).sum()), int(np.isposinf(x).sum()), int(np.isneginf(x).sum()),
    )  # fmt: skip


def change(a: np.ndarray, b: np.ndarray) -> tuple[object, ...]:
    wide_a, wide_b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    d = wide_b - wide_a
    norm_a, norm_b, norm_d = (float(np.dot(v, v)) ** 0.5 for v in (wide_a, wide_b, d))
    magnitude = np.abs(d)
    summed = float(np.abs(wide_a).sum() + np.abs(wide_b).sum())
    bits = (a.view(np.uint8) != b.view(np.uint8)).reshape(a.size, -1).any(axis=1)
    return (
        norm_d, norm_d / norm_a, magnitude.sum() / summed, magnitude.max(), int(magnitude.argmax()), magnitude.mean(),
        1 - float(np.dot(wide_a, wide_b)) / (norm_a * norm_b), float((a != b).mean()),
        float(bits.mean()), float(((wide_a * wide_b) < 0).mean()),
    )  # fmt: skip


def main(baseline: str, candidate: str) -> None:
    with safe_open(baseline, "np") as first, safe_open(candidate, "np") as second:
        for name in first.keys():
            a, b = first.get_tensor(name), second.get_tensor(name)
            a32, b32 = (x if x.dtype == np.float32 else x.astype(np.float32) for x in (a, b))
            if not np.array_equal(a, b):
                print(name, *side(a32), *side(b32), *change(a32, b32))


if __name__ == "__main__":
    main(*sys.argv[1:])
