"""Distances and angles out of the Gram: right to their bounds, and to 1e-9 where the two are far enough apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffai_dist import kernels
from diffai_dist.comparison import Pair
from diffai_dist.dtypes import DTYPES
from diffai_dist.gram import TOO_SHORT, gram_changes, squared_distances, update_products, whole
from diffai_dist.partials import GRAM, MOMENTS, SHIFT, empty, empty_gram
from diffai_dist.statistics import NO_FINITE, NO_SQUARES

NUMBERS = ("l2", "rel_l2", "cosine_distance")


def gram_of(*members: np.ndarray, anchor: int = 0) -> np.ndarray:
    """As the kernels measure members of one tensor, all float64."""
    number, size = len(members), members[0].size
    grams, one = empty_gram(1, number), np.zeros(1, np.int64)
    arena = np.concatenate([np.ascontiguousarray(member, np.float64) for member in members]).view(np.uint8)
    bits, codes = 64 * size * np.arange(number)[None], np.full((1, number), DTYPES["F64"].code)
    rows = empty(MOMENTS, (1, number)), empty(SHIFT, (1, 0))
    pairs = np.zeros((0, 2), np.int64)
    kernels.measure(arena, one, one, np.array([size], np.int64), bits, codes, pairs, *rows, anchor, grams)
    return grams


def exactly(number: Fraction) -> Decimal:
    return Decimal(number.numerator) / Decimal(number.denominator)


def truth(before: np.ndarray, after: np.ndarray) -> dict[str, Decimal]:
    """Exact sums, their roots and quotients to the digits of the context."""
    a, b = ([Fraction(float(value)) for value in side] for side in (before, after))
    moved = exactly(sum(((y - x) ** 2 for x, y in zip(a, b, strict=True)), Fraction()))
    norm, other = (exactly(sum((x * x for x in side), Fraction())) for side in (a, b))
    product = exactly(sum((x * y for x, y in zip(a, b, strict=True)), Fraction()))
    found = {"l2": moved.sqrt()}
    if norm and other:
        found |= {"rel_l2": (moved / norm).sqrt(), "cosine_distance": 1 - product / (norm * other).sqrt()}
    return found


def off(found: dict[str, Any], before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """By how much numbers miss the truth."""
    with localcontext() as context:
        context.prec = 400
        exact = truth(before, after)
        return {name: float(abs(Decimal(found[name]) - exact[name])) for name in exact if found[name] is not None}


def changes(*members: np.ndarray, pair: tuple[int, int] = (1, 2)) -> dict[str, Any]:
    return {name: column[0] for name, column in gram_changes(gram_of(*members), Pair(*pair)).items()}


HARD = [(far, near) for far in (1e-6, 1e-3, 1.0, 1e3) for near in (0.0, 1e-12, 1e-8, 1e-4, 1e-2, 1.0)]


@pytest.mark.parametrize(("far", "near"), HARD)
@pytest.mark.parametrize("seed", range(3))
def test_no_error_is_beyond_its_bound(far: float, near: float, seed: int) -> None:
    """Members `near` each other, relative to how `far` from the anchor they are, relative to its length."""
    noise = np.random.default_rng(seed)
    anchor = noise.normal(size=4700).astype(np.float32).astype(np.float64)
    first = anchor + far * noise.normal(size=4700)
    second = first + far * near * noise.normal(0.3 * seed, 1, size=4700)
    found = changes(anchor, first, second)
    missed = off(found, first, second)
    assert missed["l2"] <= found["l2_error"]
    assert missed["cosine_distance"] <= found["cosine_error"]


@pytest.mark.parametrize(("far", "near"), [(far, near) for far, near in HARD if near >= 1e-2])
def test_what_is_far_enough_apart_is_right_to_nine_digits(far: float, near: float) -> None:
    noise = np.random.default_rng(7)
    anchor = noise.normal(size=5000).astype(np.float32)
    first = (anchor + far * noise.normal(size=5000)).astype(np.float32)
    second = (first + far * near * noise.normal(size=5000)).astype(np.float32)
    members = [one.astype(np.float64) for one in (anchor, first, second)]
    found = changes(*members)
    missed = off(found, *members[1:])
    assert {name: missed[name] / found[name] <= 1e-9 for name in NUMBERS} == dict.fromkeys(NUMBERS, True)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 3), min_size=1, max_size=20),
    st.sampled_from([1.0, 1e-3, 1e150, 1e-150]),
)
def test_bounds_hold_for_any_numbers(rows: list[tuple[float, float, float]], scale: float) -> None:
    anchor, first, second = np.array(rows).T * scale
    found = changes(anchor, first, second)
    if found["l2"] is None:
        assert found["reason"] in (NO_SQUARES, TOO_SHORT)
        return
    missed = off(found, first, second)
    assert missed["l2"] <= found["l2_error"]
    if found["cosine_distance"] is not None:
        assert missed["cosine_distance"] <= found["cosine_error"]


def test_the_bound_is_of_use() -> None:
    """Far below the distance where that is a hundredth of the displacement, where it is no longer needed."""
    noise = np.random.default_rng(3)
    anchor, away = noise.normal(size=(2, 4000))
    found = changes(anchor, anchor + away, anchor + away + 0.01 * noise.normal(size=4000))
    assert found["l2_error"] < 1e-8 * found["l2"]
    assert found["cosine_error"] < 1e-6 * found["cosine_distance"]


def test_equal_bits_are_at_no_distance_for_sure() -> None:
    noise = np.random.default_rng(1)
    anchor, first = noise.normal(size=(2, 100))
    assert changes(anchor, first, first.copy()) == {
        "l2": 0.0, "l2_error": 0.0, "rel_l2": 0.0, "cosine_distance": 0.0, "cosine_error": 0.0, "reason": None,
    }  # fmt: skip
    assert changes(anchor, first, first, pair=(0, 0))["l2_error"] == 0.0


def test_what_is_not_defined_is_none_with_a_reason() -> None:
    one, zero = np.array([1.0, 2.0]), np.zeros(2)
    away = changes(one, zero, one)
    assert (away["l2"], away["rel_l2"], away["cosine_distance"]) == (pytest.approx(math.sqrt(5)), None, None)
    assert away["reason"] == TOO_SHORT
    lost = changes(one, one * 1e-17, one)  # 1 - 1 + 1e-17: the anchor hides it
    assert (lost["rel_l2"], lost["reason"]) == (None, TOO_SHORT)
    far = changes(one, one * 1e200, one)
    assert (far["l2"], far["reason"]) == (None, NO_SQUARES)
    empty = {name: column[0] for name, column in gram_changes(empty_gram(1, 2), Pair(0, 1)).items()}
    assert (empty["l2"], empty["rel_l2"], empty["cosine_distance"], empty["reason"]) == (None, None, None, NO_FINITE)


def test_opposite_and_orthogonal_members_are_at_their_angles() -> None:
    one, other = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert changes(one, one, -one)["cosine_distance"] == pytest.approx(2.0)
    assert changes(one, one, other)["cosine_distance"] == pytest.approx(1.0)
    assert changes(one, one, 3 * one)["cosine_distance"] == pytest.approx(0.0, abs=1e-12)


def test_the_direction_of_a_pair_changes_the_relative_distance_alone() -> None:
    noise = np.random.default_rng(2)
    members = noise.normal(size=(3, 64))
    members[2] *= 2.0
    there, back = changes(*members), changes(*members, pair=(2, 1))
    assert there["l2"] == back["l2"]
    assert there["cosine_distance"] == pytest.approx(back["cosine_distance"])
    assert there["rel_l2"] / back["rel_l2"] == pytest.approx(np.linalg.norm(members[2]) / np.linalg.norm(members[1]))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 99))
def test_the_whole_is_that_of_all_elements_in_one_vector(lengths: Sequence[int], seed: int) -> None:
    parts = [np.random.default_rng(seed).normal(size=(3, length)) for length in lengths]
    apart = whole(np.concatenate([gram_of(*part) for part in parts]))
    (found,), (exact,) = (gram_changes(grams, Pair(1, 2))["l2"] for grams in (apart, gram_of(*np.hstack(parts))))
    assert found == pytest.approx(exact, rel=1e-12)
    np.testing.assert_allclose(whole(np.concatenate([gram_of(*part) for part in parts[::-1]])), apart, rtol=1e-15)


def test_a_whole_keeps_what_single_additions_lose() -> None:
    grams = empty_gram(3, 1)
    grams[:, GRAM.index("dot"), 0, 0] = 1e100, 1.0, -1e100
    assert whole(grams)[0, GRAM.index("dot"), 0, 0] == 1.0


def test_a_whole_beyond_float64_is_not_a_number() -> None:
    grams = empty_gram(3, 1)
    grams[:, GRAM.index("norm")] = 1.5e308
    assert math.isnan(whole(grams)[0, GRAM.index("norm"), 0, 0])
    assert whole(empty_gram(0, 2)).shape == (1, len(GRAM), 2, 2)


def test_updates_and_distances_come_from_the_same_sums() -> None:
    members = np.random.default_rng(5).normal(size=(5, 40))
    grams = gram_of(*members, anchor=2)
    updates = np.diff(members, axis=0)
    np.testing.assert_allclose(update_products(grams)[0], updates @ updates.T, rtol=1e-12, atol=1e-12)
    gaps = ((members[:, None] - members[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(squared_distances(grams)[0], gaps, rtol=1e-12, atol=1e-12)
