"""Trends, laws and clusters against what others compute, and against what was put in."""

from __future__ import annotations

import doctest
import itertools
import math
from types import ModuleType

import numpy as np
import pymannkendall
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from diffai_dist.analyses import clustering, fits, robust, trend
from diffai_dist.analyses.clustering import average_linkage, order
from diffai_dist.analyses.fits import Fit, best, distance_fits, update_fits
from diffai_dist.analyses.robust import robust_z, spread
from diffai_dist.analyses.trend import exact_p, mann_kendall, sen_slope


@pytest.mark.parametrize("module", [clustering, fits, robust, trend])
def test_the_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("points", range(1, 8))
def test_short_series_are_judged_by_all_orders_that_there_are(points: int) -> None:
    orders = list(itertools.permutations(range(points)))
    scores = [sum((b > a) - (b < a) for a, b in itertools.combinations(one, 2)) for one in orders]
    for s in set(scores):
        assert exact_p(s, points) == pytest.approx(sum(abs(one) >= abs(s) for one in scores) / len(orders))


# Of an odd number of pairs Sen's slope is that of one, whose two points then lie level but for rounding: no fair rank.
EVEN_PAIRS = [points for points in range(10, 41) if points * (points - 1) // 2 % 2 == 0]


@given(st.sampled_from(EVEN_PAIRS), st.floats(-0.95, 0.95), st.floats(-0.2, 0.2), st.integers(0, 10**6))
def test_longer_ones_agree_with_pymannkendall_or_are_more_careful(
    points: int, memory: float, rise: float, seed: int
) -> None:
    """Where memory seems to make the test sharper, ours stays with the plain one."""
    values = rise * np.arange(points) + np.random.default_rng(seed).normal(size=points)
    for i in range(1, points):
        values[i] += memory * values[i - 1]
    found = mann_kendall(values, np.arange(points, dtype=np.float64))
    with np.errstate(all="ignore"):
        plain, modified = pymannkendall.original_test(values), pymannkendall.hamed_rao_modification_test(values)
    assert (found.s, found.slope) == (plain.s, pytest.approx(plain.slope))
    expected = modified if modified.var_s > plain.var_s else plain
    assert found.p == pytest.approx(expected.p, abs=1e-12)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=9).filter(lambda numbers: len(set(numbers)) < len(numbers)))
def test_ties_narrow_the_distribution(numbers: list[int]) -> None:
    values, times = np.array(numbers, np.float64), np.arange(len(numbers), dtype=np.float64)
    found, plain = mann_kendall(values, times), pymannkendall.original_test(values)
    assert (found.s, found.slope) == (plain.s, plain.slope)
    assert found.p == pytest.approx(plain.p if plain.s else 1.0, abs=1e-12)


def test_memory_makes_the_same_trend_less_certain() -> None:
    noise = np.random.default_rng(0)
    values = np.convolve(noise.normal(size=64), np.ones(5), "valid") + 0.05 * np.arange(60)
    modified = pymannkendall.hamed_rao_modification_test(values)
    found = mann_kendall(values, np.arange(60.0))
    assert found.p > 10 * pymannkendall.original_test(values).p
    assert found.p == pytest.approx(modified.p, abs=1e-12)


def test_a_rise_is_a_rise_and_its_mirror_a_fall() -> None:
    values, times = np.exp(0.1 * np.arange(8)), 100.0 * np.arange(8)
    up, down = mann_kendall(np.log(values), times), mann_kendall(-np.log(values), times)
    assert (up.s, down.s, up.points) == (28, -28, 8)
    assert up.p == down.p == 2 / math.factorial(8)
    assert up.slope == pytest.approx(0.001)
    assert sen_slope(np.array([5.0]), np.array([1.0])) == 0.0


def test_uneven_times_count_as_they_are() -> None:
    times = np.array([0.0, 1.0, 10.0, 100.0])
    assert sen_slope(3.0 * times + 2.0, times) == pytest.approx(3.0)


def by_law(found: list[Fit]) -> dict[str, Fit]:
    return {fit.law: fit for fit in found}


@given(st.floats(0.1, 10.0), st.floats(0.2, 1.5))
def test_a_power_law_is_found_again(c: float, p: float) -> None:
    times = np.arange(1.0, 13.0)
    found = distance_fits(c * times**p, times)
    parameters = by_law(found)["D = c t^p"].parameters
    assert parameters == pytest.approx({"c": c, "p": p})
    assert best(found) == "D = c t^p"


@given(st.floats(0.5, 20.0), st.floats(0.1, 10.0))
def test_a_logarithm_is_found_again(a: float, b: float) -> None:
    times = np.arange(1.0, 13.0)
    found = distance_fits(a + b * np.log(times), times)
    assert by_law(found)["D = a + b log t"].parameters == pytest.approx({"a": a, "b": b}, rel=1e-3)
    assert best(found) == "D = a + b log t"


@given(st.floats(0.1, 10.0), st.floats(1.0, 8.0), st.floats(0.05, 0.5))
def test_a_decay_is_found_again(u0: float, tau: float, floor: float) -> None:
    times = np.arange(12.0)
    found = update_fits(u0 * np.exp(-times / tau) + floor * u0, times)
    law = "u = u0 exp(-t/tau) + u_inf"
    expected = {"u0": u0, "tau": tau, "u_inf": floor * u0}
    assert by_law(found)[law].parameters == pytest.approx(expected, rel=1e-2)
    assert best(found) == law


def test_what_does_not_decay_is_not_called_a_decay() -> None:
    noise = np.random.default_rng(4)
    chosen = [best(update_fits(np.exp(noise.normal(0, 0.1, 12)), np.arange(12.0))) for _ in range(20)]
    assert chosen.count("u = u_mean") >= 16


def test_a_parameter_beyond_float64_is_none() -> None:
    fit = by_law(distance_fits(np.array([2.0, 1.0]), np.array([1e6, 1e6 + 100])))["D = c t^p"]
    assert fit.parameters == {"c": None, "p": pytest.approx(-6931, rel=1e-3)}


def test_no_law_is_fitted_to_rounding() -> None:
    times, noise = np.arange(1.0, 13.0), np.random.default_rng(0).normal(size=12)
    level = 3000.0 * (1.0 + 1e-14 * noise)
    assert distance_fits(level, times, 1e-13) == []
    assert len(distance_fits(level, times, 1e-16)) == 2
    found = update_fits(level * np.exp(1e-14 * times), times, 1e-13)
    assert best(found) == "u = u_mean"
    assert by_law(found)["u = u_mean"].aicc == pytest.approx(12 * math.log(1e-26) + 4 + 12 / 9)


def test_a_law_is_chosen_only_where_there_are_points_enough_for_all() -> None:
    times = np.arange(1.0, 5.0)
    assert best(distance_fits(times, times)) is None
    assert [fit.aicc for fit in distance_fits(times, times)] == [None, None]
    assert distance_fits(times[:1], times[:1]) == update_fits(times[:1], times[:1]) == []
    assert best([]) is None


@given(st.integers(2, 12), st.integers(0, 999))
def test_clusters_are_those_of_scipy(leaves: int, seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(leaves, 3))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    merges = average_linkage(distances)
    expected = linkage(squareform(distances), "average")
    np.testing.assert_allclose([merge.distance for merge in merges], expected[:, 2], rtol=1e-12)
    sets = [frozenset([leaf]) for leaf in range(leaves)]
    for left, right, *_ in expected:
        sets.append(sets[int(left)] | sets[int(right)])
    assert {frozenset(merge.left + merge.right) for merge in merges} == set(sets[leaves:])
    assert sorted(order(merges, leaves)) == list(range(leaves))


def test_clusters_stand_together_in_the_order() -> None:
    places = np.array([0.0, 10.0, 0.1, 10.1, 0.2])
    distances = np.abs(places[:, None] - places[None])
    assert order(average_linkage(distances), 5) == [0, 2, 4, 1, 3]
    assert order([], 1) == [0]


def test_outliers_do_not_widen_the_spread_they_are_judged_by() -> None:
    values = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 50.0])
    assert spread(values) < 0.2
    assert robust_z(values)[-1] > 100
    assert robust_z(values, least=49.0)[-1] == pytest.approx(1.0, abs=0.01)
    assert robust_z(np.ones(4)).tolist() == [0.0] * 4
    assert robust_z(np.array([])).size == 0 == spread(np.array([]))
