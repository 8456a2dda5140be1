"""What is said of gradients, against float64 arithmetic on the arrays and against signals that were planted."""

from __future__ import annotations

import dataclasses
import doctest
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import transformer
from diffai_dist.analyses import SERIES, optimizer_state
from diffai_dist.analyses.gradient_analysis import GradientAnalysis
from diffai_dist.analyses.optimizer_state import told
from diffai_dist.analyses.series import Series
from diffai_dist.records import Finding
from trajectories import Weights, series_of

STEPS = (100, 200)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(optimizer_state).failed == 0


def adam(
    elements: int, noise_to_signal: float, steps: int, seed: int = 0, betas: tuple[float, float] = (0.9, 0.999)
) -> tuple[np.ndarray, np.ndarray]:
    """exp_avg and exp_avg_sq after gradients of one random mean each, and noise whose power is so many times its."""
    generator = np.random.default_rng(seed)
    mean = generator.normal(size=elements)
    first, second = np.zeros(elements), np.zeros(elements)
    for _ in range(steps):
        gradient = mean + math.sqrt(noise_to_signal) * generator.normal(size=elements)
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
    return first, second


def member(
    seed: int,
    parameters: Mapping[str, tuple[int, ...]] | None = None,
    step: int | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Weights:
    """Weights, and a state of some signal, of random numbers."""
    generator, found = np.random.default_rng(seed), {}
    for name, shape in (parameters or {"h.0.w": (6, 7), "h.1.w": (5, 8), "norm.weight": (9,)}).items():
        found[name] = generator.normal(size=shape).astype(np.float32)
        first, second = adam(math.prod(shape), generator.uniform(1, 9), 30, seed, betas)
        found[f"optimizer.state.{name}.exp_avg"] = first.reshape(shape).astype(np.float32)
        found[f"optimizer.state.{name}.exp_avg_sq"] = second.reshape(shape).astype(np.float32)
        if step is not None:
            found[f"optimizer.state.{name}.step"] = np.array(step, np.float32)
    return found


def oracle(states: Sequence[tuple[np.ndarray, np.ndarray]], t: int, betas: tuple[float, float]) -> dict[str, Any]:
    """The same numbers, element by element in float64."""
    first = np.concatenate([m.astype(np.float64).ravel() for m, _ in states]) / (1 - betas[0] ** t)
    second = np.concatenate([v.astype(np.float64).ravel() for _, v in states]) / (1 - betas[1] ** t)
    kept = (1 - betas[0]) * betas[0] ** np.arange(t)  # what each of t gradients weighs in the average
    rho = float((kept**2).sum() / kept.sum() ** 2)
    m, v = float((first**2).sum()), float(second.sum())
    noise = (v - m) / (m - rho * v)
    return {"snr": m / v, "noise_to_signal": noise, "zero_grad": float((second == 0).mean()), "elements": first.size}


def analyse(series: Series, **options: Any) -> dict[str, Any]:
    return dict(GradientAnalysis(**options)(series).result)


def findings(series: Series, **options: Any) -> list[tuple[Any, ...]]:
    found: Sequence[Finding] = GradientAnalysis(**options)(series).findings
    return [(one.rule, one.severity, one.tensor, one.value, one.candidate) for one in found]


# The numbers


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95)])
def test_every_number_is_that_of_the_elements(seed: int, betas: tuple[float, float]) -> None:
    states = [member(2 * seed, betas=betas), member(2 * seed + 1, betas=betas)]
    states[1]["optimizer.state.h.0.w.exp_avg_sq"][0, :3] = 0.0
    steps = (40 + seed, 70 + seed)
    options = {"beta1": betas[0], "beta2": betas[1], "batch_size": 64, "margin": 0.0}
    found = analyse(series_of(states, steps=steps), **options)
    of = {
        name: (states[1][f"optimizer.state.{name}.exp_avg"], states[1][f"optimizer.state.{name}.exp_avg_sq"])
        for name in ("h.0.w", "h.1.w", "norm.weight")
    }
    expected = oracle(list(of.values()), steps[1], betas)
    assert (found["mode"], found["step"], found["step_source"], found["parameters"]) == (
        "optimizer", steps[1], "name", 3,
    )  # fmt: skip
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-9)
    assert found["noise_scale"] == pytest.approx(64 * expected["noise_to_signal"], rel=1e-9)
    assert [row["block"] for row in found["layers"]] == ["h.0", "h.1", "norm"]
    power = sum(float(v.astype(np.float64).sum()) for _, v in of.values())
    for row, state in zip(found["layers"], of.values(), strict=True):
        own = oracle([state], steps[1], betas)
        assert {key: row[key] for key in ("snr", "zero_grad", "elements")} == pytest.approx(
            {key: own[key] for key in ("snr", "zero_grad", "elements")}, rel=1e-9
        )
        assert row["share"] == pytest.approx(float(state[1].astype(np.float64).sum()) / power, rel=1e-9)
    assert [row["checkpoint"] for row in found["members"]] == [f"step-{step:06}" for step in steps]


@pytest.mark.parametrize("seed", range(3))
def test_updates_are_those_of_the_weights_alone(seed: int) -> None:
    states = [member(10 + seed), member(20 + seed), member(30 + seed)]
    found = analyse(series_of(states, steps=(100, 150, 350)))
    for row, (before, after), steps in zip(
        found["updates"], [(states[0], states[1]), (states[1], states[2])], (50, 200), strict=True
    ):
        names = ("h.0.w", "h.1.w", "norm.weight")
        a, b = (np.concatenate([one[name].astype(np.float64).ravel() for name in names]) for one in (before, after))
        update = float(np.linalg.norm(b - a) / np.linalg.norm(a))
        assert row["update"] == pytest.approx(update, rel=1e-9)
        assert (row["steps"], row["ratio"]) == (steps, pytest.approx(update / steps, rel=1e-9))
    assert found["ratio"] == found["updates"][-1]["ratio"]


@pytest.mark.parametrize("true", [10.0, 100.0])
def test_the_noise_of_a_known_signal_is_found_to_ten_percent(true: float) -> None:
    first, second = adam(400_000, true, 60, seed=int(true))
    states = {"h.w": first.astype(np.float32), "h.w.exp_avg": first, "h.w.exp_avg_sq": second}
    found = analyse(series_of([states, states], steps=(59, 60)))
    assert found["noise_to_signal"] == pytest.approx(true, rel=0.1)
    assert found["elements"] == 400_000


def test_noise_without_a_signal_is_unidentifiable() -> None:
    generator = np.random.default_rng(0)
    first, second = np.zeros(2000), np.zeros(2000)
    for _ in range(200):
        gradient = generator.normal(size=2000)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
    states = {"h.w.exp_avg": first, "h.w.exp_avg_sq": second}
    found = analyse(series_of([states], steps=[200]))
    assert found["noise_to_signal"] is None
    assert "unidentifiable" in found["reason"]


@pytest.mark.parametrize(("factor", "known"), [(0.999, False), (1.001, True)])
def test_signal_counts_from_its_margin_on(factor: float, known: bool) -> None:
    elements, t, margin = 400, 10_000, 2.0
    rho = 0.1 / 1.9
    limit = rho * (1 + margin / math.sqrt(elements))
    states = {
        "h.w.exp_avg": np.full(elements, math.sqrt(limit * factor)),
        "h.w.exp_avg_sq": np.full(elements, 1.0 - 0.999**t),
    }
    found = analyse(series_of([states], steps=[t]), margin=margin)
    assert (found["noise_to_signal"] is not None) == known
    assert ("reason" in found) != known


def test_growing_gradients_are_said_to_be_not_stationary() -> None:
    states = {"h.w.exp_avg": np.full(100, 1.0), "h.w.exp_avg_sq": np.full(100, 0.5)}
    found = analyse(series_of([states], steps=[10_000]))
    assert found["snr"] > 1.0
    assert found["noise_to_signal"] is None
    assert "not stationary" in found["reason"]


def test_every_number_moves_with_its_input() -> None:
    one, other = (analyse(series_of([member(s), member(s + 1)], steps=STEPS), batch_size=8, margin=0) for s in (0, 5))
    for key in ("snr", "noise_to_signal", "noise_scale", "ratio"):
        assert one[key] is not None
        assert one[key] != other[key]


# Names


@pytest.mark.parametrize(
    ("first", "second", "step"),
    [
        ("h.0.w.exp_avg", "h.0.w.exp_avg_sq", "optimizer.h.0.w.step"),
        ("exp_avg.h.0.w", "exp_avg_sq.h.0.w", "optimizer.step"),
        ("optimizer.state.h.0.w.exp_avg", "optimizer.state.h.0.w.exp_avg_sq", "optimizer.state.h.0.w.step"),
        ("optimizer.state.exp_avg.h.0.w", "optimizer.state.exp_avg_sq.h.0.w", "optimizer.state.step"),
        ("state.0.exp_avg", "state.0.exp_avg_sq", "state.0.step"),
        (
            "optimizer_state_dict.base_optimizer_state.state.0.exp_avg",
            "optimizer_state_dict.base_optimizer_state.state.0.exp_avg_sq",
            "optimizer_state_dict.base_optimizer_state.state.0.step",
        ),
        ("module/h.0.w/exp_avg", "module/h.0.w/exp_avg_sq", "optimizer.state/step"),
    ],
)
def test_states_are_found_however_they_are_flattened(first: str, second: str, step: str) -> None:
    m, v = adam(50, 4.0, 20)
    states = {"h.0.w": m, first: m, second: v, step: np.array(20.0)}
    found = analyse(series_of([states], steps=[999]), margin=0)
    assert (found["mode"], found["step"], found["step_source"]) == ("optimizer", 20, "tensor")
    expected = oracle([(m, v)], 20, (0.9, 0.999))
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "name", ["h.0.step_embed.weight", "model.step", "gradient_norm.weight", "exp_avgs.w", "x" * 10**6]
)
def test_other_names_are_weights(name: str) -> None:
    assert told(name) == (None, name)


def test_the_step_is_taken_from_metadata_where_no_tensor_tells_it() -> None:
    m, v = adam(50, 4.0, 20)
    found = series_of([{"h.w.exp_avg": m, "h.w.exp_avg_sq": v}], steps=[999])
    comparison = found.measured.comparison
    told_by = dataclasses.replace(comparison.members[0], metadata={"global_step": "20", "step": "x"})
    measured = dataclasses.replace(found.measured, comparison=dataclasses.replace(comparison, members=(told_by,)))
    result = analyse(dataclasses.replace(found, measured=measured))
    assert (result["step"], result["step_source"]) == (20, "metadata")


def test_without_any_step_there_is_no_number() -> None:
    m, v = adam(50, 4.0, 20)
    found = series_of([{"h.w": m, "h.w.exp_avg": m, "h.w.exp_avg_sq": v}] * 2)
    unknown = tuple(dataclasses.replace(one, step=None) for one in found.members)
    result = analyse(dataclasses.replace(found, members=unknown))
    assert [result[key] for key in ("mode", "step", "snr", "noise_to_signal", "ratio")] == ["optimizer", *[None] * 4]
    assert "step" in result["reason"]


# Modes


def test_without_a_state_there_is_displacement_alone() -> None:
    states = [{"h.0.w": np.array([3.0, 4.0])}, {"h.0.w": np.array([3.0, 4.05])}]
    found = analyse(series_of(states, steps=(10, 20)))
    assert found["mode"] == "displacement"
    assert found["ratio"] == pytest.approx(0.001)
    assert not {"snr", "norm", "noise_scale"} & set(found)
    assert (found["parameters"], found["members"], found["layers"]) == (0, [], [])


@pytest.mark.parametrize("spelling", ["grads.{}", "{}.grad", "gradients/{}", "module.{}.main_grad"])
def test_saved_gradients_have_norms(spelling: str) -> None:
    generator = np.random.default_rng(1)
    parts = {"h.0.w": generator.normal(size=(4, 5)), "h.1.w": generator.normal(size=(3, 5))}
    parts["h.1.w"][0, :2] = 0.0
    weights = {name: generator.normal(size=array.shape) for name, array in parts.items()}
    states = weights | {spelling.format(name): array for name, array in parts.items()}
    found = analyse(series_of([states, states]), clip_norm=2.0)
    every = np.concatenate([array.ravel() for array in parts.values()])
    norm = float(np.linalg.norm(every))
    assert found["mode"] == "grads"
    assert found["norm"] == pytest.approx(norm)
    assert found["over_clip"] == pytest.approx(norm / 2)
    assert found["largest"] == pytest.approx(float(np.abs(every).max()))
    assert (found["zero_grad"], found["elements"]) == (pytest.approx(2 / 35), 35)
    for row, array in zip(found["layers"], parts.values(), strict=True):
        assert row["norm"] == pytest.approx(float(np.linalg.norm(array)))
        assert row["share"] == pytest.approx(float((array**2).sum()) / norm**2)


def test_tables_are_cut_to_the_latest_and_the_largest() -> None:
    parameters = {f"h.{layer}.w": (4, 4) for layer in range(30)}
    states = [member(seed, parameters) for seed in range(25)]
    states[-1] |= {f"optimizer.state.h.{layer}.w.exp_avg_sq": np.full((4, 4), 1e-30, np.float32) for layer in range(10)}
    found = analyse(series_of(states))
    assert [len(found[key]) for key in ("members", "layers", "updates")] == [20, 20, 20]
    assert [found[f"{key}_of"] for key in ("members", "layers", "updates")] == [25, 30, 24]
    assert [row["block"] for row in found["layers"]] == [f"h.{layer}" for layer in range(10, 30)]
    assert found["members"][-1]["checkpoint"] == found["checkpoint"] == "step-002500"


# Findings


def test_a_healthy_training_has_hints_at_most() -> None:
    states = [state.with_optimizer() for state in transformer.states(0)]
    series = series_of(states, steps=[state.step for state in transformer.states(0)])
    assert {severity for _, severity, *_ in findings(series)} <= {"info"}
    found = analyse(series)
    assert (found["step"], found["step_source"]) == (180, "tensor")
    assert found["noise_to_signal"] > 1.0
    assert found["zero_grad"] == pytest.approx(4 * 32 / found["elements"])  # rows of tokens that no text has


def test_non_finite_states_are_named_where_they_begin() -> None:
    states = [member(0), member(1), member(2)]
    for state in states[1:]:
        state["optimizer.state.h.0.w.exp_avg"][2, 3] = np.nan
    states[2]["optimizer.state.h.1.w.exp_avg_sq"][0, :2] = np.inf
    found = findings(series_of(states), per_step=1e9)
    assert found == [
        ("non-finite-state", "critical", "optimizer.state.h.0.w.exp_avg", 1, "step-000200"),
        ("non-finite-state", "critical", "optimizer.state.h.1.w.exp_avg_sq", 2, "step-000300"),
    ]
    result = analyse(series_of(states))
    assert result["elements"] == 9  # the two spoiled parameters are left out


@pytest.mark.parametrize(("spoiled", "rules"), [(3, ["non-finite-state"] * 3), (4, ["non-finite-states"])])
def test_many_non_finite_states_are_counted(spoiled: int, rules: list[str]) -> None:
    states = member(0, {f"h.{layer}.w": (2, 3) for layer in range(5)})
    for layer in range(spoiled):
        states[f"optimizer.state.h.{layer}.w.exp_avg"][0, 0] = np.inf
    assert [rule for rule, *_ in findings(series_of([states]), listed=3)] == rules


def test_an_average_of_squares_below_zero_is_named() -> None:
    states = member(0)
    states["optimizer.state.h.1.w.exp_avg_sq"][1, 1] = -0.25
    assert findings(series_of([states])) == [
        ("negative-square", "critical", "optimizer.state.h.1.w.exp_avg_sq", -0.25, "step-000100")
    ]


def test_parameters_without_a_gradient_are_hints() -> None:
    states = member(0)
    for part in ("exp_avg", "exp_avg_sq"):
        states[f"optimizer.state.norm.weight.{part}"][:] = 0.0
    assert findings(series_of([states])) == [("no-gradient", "info", "norm.weight", 9, "step-000100")]


@pytest.mark.parametrize(("length", "told_of"), [(0.999, []), (1.0, []), (1.001, ["large-update"])])
def test_an_update_is_large_above_its_limit(length: float, told_of: list[str]) -> None:
    states = [{"h.w": np.array([8.0, 0.0])}, {"h.w": np.array([8.0, length])}]
    assert [rule for rule, *_ in findings(series_of(states, steps=(10, 12)), per_step=0.0625)] == told_of


def test_the_largest_update_is_the_one_that_is_told() -> None:
    states = [{"h.w": np.array([1.0, moved])} for moved in (0.0, 0.1, 0.5, 0.6)]
    (found,) = GradientAnalysis()(series_of(states, steps=(1, 2, 3, 4))).findings
    assert (found.rule, found.severity, found.baseline, found.candidate) == (
        "large-update", "info", "step-000002", "step-000003",
    )  # fmt: skip
    assert found.value == pytest.approx(0.4 / math.hypot(1.0, 0.1))


def test_the_analysis_is_one_of_the_series() -> None:
    assert SERIES["gradient_analysis"] is GradientAnalysis
    described = set(GradientAnalysis.result)
    series = series_of([member(0, step=3), member(1, step=4)])
    assert set(analyse(series)) <= described
    assert {rule for rule, *_ in findings(series)} <= set(GradientAnalysis.rules)


def test_checkpoints_without_tensors_have_no_gradients() -> None:
    result = analyse(series_of([{}, {}]))
    assert (result["mode"], result["parameters"], result["ratio"]) == ("displacement", 0, None)
