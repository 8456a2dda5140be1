"""A network of three layers, and a training of it: seconds of gradient descent that leave real checkpoints."""

from __future__ import annotations

import itertools

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
