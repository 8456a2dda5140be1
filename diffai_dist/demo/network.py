"""A network of three layers, and a training of it: seconds of gradient descent that leave real checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

Weights = dict[str, np.ndarray]

SIZES = (16, 128, 128, 4)
LAYERS = tuple(f"fc{number}" for number in range(1, len(SIZES)))
SAMPLES = 2048


def train(weights: Weights, steps: int, frozen: str = "", rate: float = 0.05) -> Weights:
    """Gradient descent on a fixed task (four spirals in 16 dimensions); layers named `frozen` keep their weights."""
    inputs, targets = _task()
    weights = {name: values.copy() for name, values in weights.items()}
    for _ in range(steps):
        for name, gradient in gradients(weights, LAYERS, inputs, targets).items():
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
    for layer, (fan_in, fan_out) in zip(LAYERS, itertools.pairwise(SIZES), strict=True):
        weights[f"{layer}.weight"] = generator.normal(0, np.sqrt(2 / fan_in), (fan_out, fan_in)).astype(np.float32)
        weights[f"{layer}.bias"] = np.zeros(fan_out, np.float32)
    return weights


def gradients(weights: Weights, layers: Sequence[str], inputs: np.ndarray, targets: np.ndarray) -> Weights:
    """Gradients of the cross entropy by back-propagation through ReLU layers, named in their order.

    Inputs are [samples, fan_in of the first], targets [samples, fan_out of the last], one 1 in each row.
    """
    values = [inputs]
    for layer in layers:
        hidden = values[-1] @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
        values.append(hidden if layer == layers[-1] else np.maximum(hidden, 0))
    odds = np.exp(values[-1] - values[-1].max(axis=1, keepdims=True))
    back = (odds / odds.sum(axis=1, keepdims=True) - targets) / len(inputs)
    found: Weights = {}
    for layer, value in reversed(list(zip(layers, values, strict=False))):
        found[f"{layer}.weight"] = back.T @ value
        found[f"{layer}.bias"] = back.sum(axis=0)
        back = (back @ weights[f"{layer}.weight"]) * (value > 0)
    return found
