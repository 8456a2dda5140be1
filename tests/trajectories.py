"""Series of small checkpoints, trained or made up, measured in memory as a run would measure them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from diffai_dist import kernels
from diffai_dist.analyses.series import Series
from diffai_dist.checkpoint import Checkpoint, Span, Tensor
from diffai_dist.comparison import Pair, compare_members
from diffai_dist.demo.network import gradients
from diffai_dist.dtypes import Family, dtype_of
from diffai_dist.errors import Failure
from diffai_dist.partials import MOMENTS, SHIFT, empty, empty_gram
from diffai_dist.records import Measurements, Member
from diffai_dist.storage import Source

Weights = dict[str, np.ndarray]

# F3 is no dtype that has a decoder.
DTYPES = {"float32": "F32", "float64": "F64", "int64": "I64", "uint8": "U8", "complex64": "C64", "int8": "F3"}
SIZES = (16, 32, 32, 32, 32, 32, 4)
LAYERS = [f"layers.{layer}" for layer in range(len(SIZES) - 1)]


@cache
def _trained(seed: int, schedule: str, members: int) -> tuple[Weights, ...]:
    """A small network trained by Adam on random labels of a fixed task, 40 steps from member to member."""
    generator = np.random.default_rng(seed)
    weights: Weights = {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(SIZES)):
        weights[f"layers.{layer}.weight"] = generator.normal(0, math.sqrt(2 / fan_in), (fan_out, fan_in))
        weights[f"layers.{layer}.bias"] = np.zeros(fan_out)
    inputs = generator.normal(size=(512, SIZES[0]))
    targets = np.eye(SIZES[-1])[np.tanh(inputs @ generator.normal(size=(SIZES[0], SIZES[-1]))).argmax(axis=1)]
    first = {name: np.zeros_like(values) for name, values in weights.items()}
    second = {name: np.zeros_like(values) for name, values in weights.items()}
    states = []
    for step in range(1, 40 * members + 1):
        chosen = generator.integers(0, len(inputs), 64)
        part = step / (40 * members)
        rate = (
            3e-3
            * {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * part)), "drop": 0.1 ** (part > 0.6)}[schedule]
        )
        for name, gradient in gradients(weights, LAYERS, inputs[chosen], targets[chosen]).items():
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.99 * second[name] + 0.01 * gradient**2
            scale = np.sqrt(second[name] / (1 - 0.99**step)) + 1e-8
            weights[name] = weights[name] - rate * first[name] / (1 - 0.9**step) / scale
        if step % 40 == 0:
            states.append({name: values.astype(np.float32) for name, values in weights.items()})
    return tuple(states)


def trained(seed: int = 0, schedule: str = "constant", members: int = 12) -> list[Weights]:
    """Checkpoints of a training whose arrays may be changed."""
    return [{name: values.copy() for name, values in one.items()} for one in _trained(seed, schedule, members)]


def shard_of(name: str, shards: int) -> int:
    """The shard of a layer: its number, dealt out in turn; of anything else the first."""
    number = name.split(".")[1]
    return int(number) % shards if number.isdigit() else 0


def checkpoint(step: int, weights: Weights, shards: int = 1) -> Checkpoint:
    """A checkpoint of these arrays, its tensors dealt out to shards by name."""
    urls = [f"s3://b/run/step-{step:06}/model-{shard}.safetensors" for shard in range(shards)]
    held = {name: urls[shard_of(name, shards)] for name in weights}
    sizes = {url: sum(weights[name].nbytes for name in weights if held[name] == url) for url in urls}
    sources = {url: Source(url, sizes[url], f"etag:{step}") for url in urls if sizes[url]}
    tensors = {}
    for name, array in weights.items():
        span = (
            Span(sources[held[name]], 8, 8 + array.nbytes) if array.nbytes else Span(next(iter(sources.values())), 8, 8)
        )
        tensors[name] = Tensor(name, DTYPES[array.dtype.name], array.shape, (span,))
    return Checkpoint(urls[0], "safetensors", tuple(sources.values()), tensors)


def series_of(
    states: Sequence[Weights],
    *,
    steps: Sequence[int] | None = None,
    pairs: str = "consecutive",
    anchor: int | None = None,
    shards: int = 1,
    failures: Mapping[tuple[str, int], Failure] | None = None,
) -> Series:
    """A series of small checkpoints as the kernels measure them."""
    numbers = list(steps or range(100, 100 * len(states) + 100, 100))
    members = [checkpoint(step, weights, shards) for step, weights in zip(numbers, states, strict=True)]
    chosen = {
        "consecutive": list(itertools.pairwise(range(len(states)))),
        "all": list(itertools.combinations(range(len(states)), 2)),
        "first": [(0, i) for i in range(1, len(states))],
    }[pairs]
    comparison = compare_members(members, [Pair(*pair) for pair in chosen])
    comparison = dataclasses.replace(comparison, anchor=anchor)
    names = [aligned.name for aligned in comparison.aligned]
    moments, shifts = empty(MOMENTS, (len(names), len(states))), empty(SHIFT, (len(names), len(chosen)))
    grams = empty_gram(len(names), len(states)) if anchor is not None else None
    for row, name in enumerate(names):
        for shape in {weights[name].shape for weights in states if name in weights}:
            arrays = [weights[name] if name in weights and weights[name].shape == shape else None for weights in states]
            _measure(row, arrays, chosen, moments, shifts, grams, anchor)
    lost = {(names.index(name), member): failure for (name, member), failure in (failures or {}).items()}
    measured = Measurements(comparison, moments, shifts, lost, grams)
    described = [
        Member(f"step-{step:06}", one.url, step, objects=one.sources)
        for step, one in zip(numbers, members, strict=True)
    ]
    return Series(measured, tuple(described))


def _measure(
    row: int,
    arrays: Sequence[np.ndarray | None],
    pairs: Sequence[tuple[int, int]],
    moments: np.ndarray,
    shifts: np.ndarray,
    grams: np.ndarray | None,
    anchor: int | None,
) -> None:
    present = [array for array in arrays if array is not None]
    data = [b"" if array is None else np.ascontiguousarray(array).tobytes() for array in arrays]
    begins = [0, *itertools.accumulate(map(len, data))]
    decoders = [None if array is None else dtype_of(DTYPES[array.dtype.name]) for array in arrays]
    bits = [[-1 if one is None else 8 * start for one, start in zip(decoders, begins, strict=False)]]
    codes = [[0 if one is None else one.code for one in decoders]]
    one = np.zeros(1, np.int64)
    own = empty(MOMENTS, (1, len(arrays))), empty(SHIFT, (1, len(pairs)))
    about = anchor if anchor is not None and all(one is None or one.family <= Family.DOUBLE for one in decoders) else -1
    kernels.measure(
        np.frombuffer(b"".join(data), np.uint8), one, one, np.array([present[0].size], np.int64),
        np.array(bits, np.int64), np.array(codes, np.int64), np.array(pairs, np.int64).reshape(-1, 2), *own,
        about, None if grams is None else grams[row : row + 1],
    )  # fmt: skip
    for table, rows in ((moments, own[0]), (shifts, own[1])):
        counted = rows[0]["count"] > 0
        table[row, counted] = rows[0, counted]
