"""Train a tiny network, write its checkpoints with planted faults, compare them, say what to try next."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Weights = dict[str, np.ndarray]

SIZES = (16, 128, 128, 4)
SAMPLES = 2048


def train(weights: Weights, steps: int, frozen: str = "", rate: float = 0.05) -> Weights:
    """Gradient descent on a fixed task (four spirals in 16 dimensions); layers named `frozen` keep their weights."""
    inputs, targets = _task()
    weights = {name: values.copy() for name, values in weights.items()}
    for _ in range(steps):
        gradients = _gradients(weights, inputs, targets)
        for name, gradient in gradients.items():
            if not frozen or not name.startswith(frozen):
                weights[name] -= np.float32(rate) * gradient
    return weights


def _task() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(7)
    label = generator.integers(0, SIZES[-1], SAMPLES)
    radius = generator.uniform(0.2, 2.0, SAMPLES)
    angle = radius * 2.5 + label * (2 * np.pi / SIZES[-1])
    plane = generator.normal(size=(2, SIZES[0]))
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1) @ plane
    return points.astype(np.float32), np.eye(SIZES[-1], dtype=np.float32)[label]


def initial() -> Weights:
    """Weights before training: He initialisation, a fixed seed."""
    generator = np.random.default_rng(1)
    weights: Weights = {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(SIZES), start=1):
        weights[f"fc{layer}.weight"] = generator.normal(0, np.sqrt(2 / fan_in), (fan_out, fan_in)).astype(np.float32)
        weights[f"fc{layer}.bias"] = np.zeros(fan_out, np.float32)
    return weights


def _gradients(weights: Weights, inputs: np.ndarray, targets: np.ndarray) -> Weights:
    """Gradients of the cross entropy by back-propagation through ReLU layers."""
    layers = range(1, len(SIZES))
    values = [inputs]
    for layer in layers:
        hidden = values[-1] @ weights[f"fc{layer}.weight"].T + weights[f"fc{layer}.bias"]
        values.append(np.maximum(hidden, 0) if layer < len(SIZES) - 1 else hidden)
    odds = np.exp(values[-1] - values[-1].max(axis=1, keepdims=True))
    back = (odds / odds.sum(axis=1, keepdims=True) - targets) / len(inputs)
    gradients: Weights = {}
    for layer in reversed(layers):
        gradients[f"fc{layer}.weight"] = back.T @ values[layer - 1]
        gradients[f"fc{layer}.bias"] = back.sum(axis=0)
        back = (back @ weights[f"fc{layer}.weight"]) * (values[layer - 1] > 0)
    return gradients


def write_checkpoints(folder: Path) -> list[Path]:
    """Four checkpoints of one training: two steps, one with fc1 frozen, one with a NaN planted in it."""
    from safetensors.numpy import save_file

    first = train(initial(), 60)
    second = train(first, 60)
    frozen = train(second, 60, frozen="fc1.")
    broken = {name: values.copy() for name, values in frozen.items()}
    broken["fc2.weight"][3, 5] = np.nan
    steps = {"step-060": first, "step-120": second, "step-180-fc1-frozen": frozen, "step-180-nan": broken}
    paths = []
    for name, weights in steps.items():
        path = folder / f"{name}.safetensors"
        save_file(weights, str(path), {"step": name[5:8].lstrip("0")})
        paths.append(path)
    return paths


def run_demo(directory: str | None = None) -> Iterator[str]:
    """The demo's output, piece by piece."""
    from diffai_dist.pipeline import compare
    from diffai_dist.report import RENDERERS, View

    folder = Path(directory) if directory else Path(tempfile.mkdtemp(prefix="diffai-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    yield "Training a network of three layers on four spirals ... (the first run here also compiles the kernels)\n"
    first, second, frozen, broken = write_checkpoints(folder)
    yield f"Checkpoints in {folder}: {', '.join(path.name for path in (first, second, frozen, broken))}\n"
    shown = (
        (first, second, "1. Two steps of training: every layer moved, the later ones relatively more or less."),
        (second, frozen, "2. Then fc1 was frozen: it is not listed, because not one bit of it changed."),
        (frozen, broken, "3. One NaN was planted. It is counted, and every other statistic still holds."),
    )
    for baseline, candidate, title in shown:
        yield f"\n{title}\n$ diffai-dist compare {baseline.name} {candidate.name}\n"
        yield from RENDERERS["text"](compare(str(baseline), str(candidate)).result, View())
    yield (
        f"\nTry next, in {folder}:\n"
        f"  diffai-dist compare {first.name} {frozen.name} --sort-by-change-magnitude --show-layer-impact\n"
        f"  diffai-dist compare {first.name} {frozen.name} --output json\n"
        f"  diffai-dist compare {frozen.name} {broken.name} --exit-code; echo $?\n"
        f"  diffai-dist inspect {first.name}\n"
        f"  diffai-dist plan {first.name} {frozen.name}\n"
    )
