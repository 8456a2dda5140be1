"""Healthy checkpoints raise no alarm: no analysis has a finding of medium or above about them.

Real ones: MiniLM, and a tiny transformer at twelve steps, of ten seeds. Of its plain trainings, seeds 0 and 1 were
looked at while thresholds were chosen (`transformer.TUNING`), the other eight were not, and raised nothing when first
seen. The variants and fine-tunes of seeds 1, 6 and 7 did: rules were mended after them, so they are no such proof.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import models
import transformer
from stories import ask, write_pair, write_run
from test_against_numpy import minilm
from transformer import BATCH, LENGTH, SEEDS, Model, Weights

ALL = ("--all", "--fail-on", "medium")


def check_silent(*arguments: object) -> None:
    told = ask(*arguments, *ALL)
    assert told.summary == []
    assert told.code == 0, told.err


# The network is what it is said to be


@pytest.mark.parametrize(
    "model",
    [Model(), Model(tied=True), Model(biases=True), Model(experts=4)],
    ids=["plain", "tied", "biases", "experts"],
)
def test_gradients_are_those_of_finite_differences(model: Model) -> None:
    generator = np.random.default_rng(0)
    weights = {name: generator.normal(0, 0.3, (2, *shape)) for name, shape in model.shapes().items()}
    tokens = generator.integers(0, model.vocab, (2, BATCH, LENGTH + 1))
    found = transformer.gradients(model, weights, tokens)[1]
    for name, array in weights.items():
        direction = generator.normal(size=array.shape)
        ends = [
            transformer.gradients(model, weights | {name: array + step * direction}, tokens)[0]
            for step in (1e-6, -1e-6)
        ]
        slope = (found[name] * direction).reshape(2, -1).sum(axis=1)
        np.testing.assert_allclose((ends[0] - ends[1]) / 2e-6, slope, rtol=1e-5, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_training_is_what_it_would_be_alone(seed: int) -> None:
    ((*_, alone),) = transformer._trained((seed,), Model(), 0.0)
    together = transformer.states(seed)[-1]
    for name, array in together.weights.items():
        np.testing.assert_allclose(array, alone.weights[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_network_learns(seed: int) -> None:
    tables = transformer._language(np.random.default_rng([seed, 1]), Model())[None]
    tokens = transformer.texts([np.random.default_rng(99)], tables)
    states = transformer.states(seed)
    losses = [
        float(transformer.gradients(Model(), {k: v[None] for k, v in one.weights.items()}, tokens)[0][0])
        for one in (states[0], states[5], states[11])
    ]
    assert losses[0] > losses[1] + 1.0
    assert losses[1] > losses[2]
    assert losses[2] < 1.7  # that of the language itself is 1.0


# Trainings


@pytest.mark.parametrize("seed", SEEDS)
def test_a_training_raises_no_alarm(tmp_path: Path, seed: int) -> None:
    check_silent("sweep", write_run(tmp_path, transformer.training(seed)))


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("seed", [2, 3])
def test_nor_does_one_that_is_stored_in_half_precision(tmp_path: Path, seed: int, dtype: str) -> None:
    check_silent("sweep", write_run(tmp_path, transformer.training(seed, dtype)))


VARIANTS: dict[str, dict[str, Any]] = {
    "decayed": {"decay": 0.1},
    "experts": {"model": Model(experts=4)},
    "tied": {"model": Model(tied=True)},
    "biases": {"model": Model(biases=True)},
    "deeper": {"model": Model(layers=4, hidden=48, heads=6, kv_heads=3)},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", [4, 5])
def test_nor_do_other_models_and_recipes(tmp_path: Path, seed: int, variant: str) -> None:
    check_silent("sweep", write_run(tmp_path, transformer.training(seed, **VARIANTS[variant])))


@pytest.mark.parametrize("seed", [6, 7])
def test_nor_does_the_state_of_the_optimizer(tmp_path: Path, seed: int) -> None:
    check_silent("sweep", write_run(tmp_path, [state.with_optimizer() for state in transformer.states(seed)]))


@pytest.mark.parametrize("pairs", ["vs-first", "all"])
def test_nor_do_other_choices_of_pairs(tmp_path: Path, pairs: str) -> None:
    more = ("--elementwise",) if pairs == "all" else ()
    check_silent("sweep", write_run(tmp_path, transformer.training(8)), "--pairs", pairs, *more)


def test_nor_does_a_tie_that_is_stored_twice(tmp_path: Path) -> None:
    states = transformer.training(9, model=Model(tied=True))
    for state in states:
        state["lm_head.weight"] = state["model.embed_tokens.weight"].copy()
    check_silent("sweep", write_run(tmp_path, states))


# Pairs


@pytest.mark.parametrize("seed", SEEDS)
def test_one_step_of_a_training_raises_no_alarm(tmp_path: Path, seed: int) -> None:
    before, after = transformer.training(seed)[-2:]
    check_silent("compare", *write_pair(tmp_path, before, after))


@pytest.mark.parametrize("seed", SEEDS)
def test_nor_does_the_whole_of_a_training(tmp_path: Path, seed: int) -> None:
    members = transformer.training(seed)
    check_silent("compare", *write_pair(tmp_path, members[0], members[-1]))


@pytest.mark.parametrize("how", ["full", "head", "lora", "grown"])
@pytest.mark.parametrize("seed", [1, 6])
def test_nor_does_fine_tuning(tmp_path: Path, seed: int, how: str) -> None:
    check_silent("compare", *write_pair(tmp_path, *transformer.tuned(how, seed)))


def test_nor_does_fine_tuning_stored_in_half_precision(tmp_path: Path) -> None:
    base, tuned = (transformer.stored(one, "BF16") for one in transformer.tuned("full", 2))
    check_silent("compare", *write_pair(tmp_path, base, tuned))


def test_nor_does_fine_tuning_of_experts(tmp_path: Path) -> None:
    check_silent("compare", *write_pair(tmp_path, *transformer.tuned("full", 3, Model(experts=4))))


# MiniLM


@pytest.fixture(scope="module")
def real() -> Weights:
    """all-MiniLM-L6-v2 as it is published."""
    return dict(load_file(str(minilm())))


def test_a_real_model_against_itself_raises_no_alarm() -> None:
    check_silent("compare", minilm(), minilm())


@pytest.mark.parametrize("relative", [1e-5, 1e-3, 1e-2])
def test_nor_does_it_against_a_perturbed_copy(tmp_path: Path, real: Weights, relative: float) -> None:
    generator = np.random.default_rng(5)
    moved = {name: _moved(array, relative, generator) for name, array in real.items()}
    check_silent("compare", minilm(), models.write(tmp_path / "b.safetensors", moved))


def test_nor_does_a_real_model_in_half_precision(tmp_path: Path, real: Weights) -> None:
    generator = np.random.default_rng(6)
    moved = {name: _moved(array, 3e-3, generator) for name, array in real.items()}
    check_silent("compare", *write_pair(tmp_path, _halved(real), _halved(moved)))


def _moved(array: np.ndarray, relative: float, generator: np.random.Generator) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    return (array + generator.normal(0, relative * float(array.std()), array.shape)).astype(array.dtype)


def _halved(weights: Weights) -> Weights:
    return {
        name: array.astype(ml_dtypes.bfloat16) if array.dtype.kind == "f" else array for name, array in weights.items()
    }
