"""Twelve checkpoints of one training, a shard per layer and an index, and what can go wrong with them."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffai_dist.demo.network import Weights, initial, train

STEPS = tuple(range(100, 1300, 100))


@dataclass(frozen=True)
class Plants:
    """What is wrong with the night, and where."""

    nan_step: int = 500
    nan_tensor: str = "fc2.weight"
    stale_step: int = 800
    stale_shard: str = "model-00002-of-00003.safetensors"  # left over from the step before
    twin_step: int = 1100  # a copy of the step before it


def folder_of(step: int) -> str:
    """The name of a step's folder."""
    return f"step-{step:06}"


@functools.cache
def trained(between: int = 20) -> tuple[Weights, ...]:
    """Weights at each of STEPS, `between` steps of gradient descent apart."""
    weights, found = train(initial(), 100), []
    for _ in STEPS:
        weights = train(weights, between)
        found.append(weights)
    return tuple(found)


def write_night(folder: Path) -> list[Path]:
    """A folder per step, as the training wrote it."""
    return [write_step(folder / folder_of(step), weights) for step, weights in zip(STEPS, trained(), strict=True)]


def write_step(folder: Path, weights: Weights) -> Path:
    """One checkpoint: a shard per layer, and the index."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    layers = sorted({name.partition(".")[0] for name in weights})
    weight_map: dict[str, str] = {}
    for number, layer in enumerate(layers, 1):
        shard = f"model-{number:05}-of-{len(layers):05}.safetensors"
        tensors = {name: values for name, values in weights.items() if name.startswith(f"{layer}.")}
        save_file(tensors, str(folder / shard))
        weight_map |= dict.fromkeys(tensors, shard)
    index = {"metadata": {"total_size": sum(one.nbytes for one in weights.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return folder


def plant(folder: Path) -> Plants:
    """Spoil a written night: a NaN in one element, a shard of the step before, a step written twice."""
    plants = Plants()
    broken = {name: values.copy() for name, values in trained()[STEPS.index(plants.nan_step)].items()}
    broken[plants.nan_tensor][3, 5] = np.nan
    write_step(folder / folder_of(plants.nan_step), broken)
    before = folder / folder_of(plants.stale_step - 100) / plants.stale_shard
    shutil.copyfile(before, folder / folder_of(plants.stale_step) / plants.stale_shard)
    twin = folder / folder_of(plants.twin_step)
    shutil.rmtree(twin)
    shutil.copytree(folder / folder_of(plants.twin_step - 100), twin)
    return plants
