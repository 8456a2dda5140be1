"""Distances and angles out of the Gram: right to their bounds, and to 1e-9 where the two are far enough apart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffai_dist import kernels
from diffai_dist.comparison import Pair
from diffai_dist.dtypes import DTYPES, Family
from diffai_dist.gram import (
    LOST,
    TOO_SHORT,
    gram_changes,
    squared_norms,
    whole,
)
from diffai_dist.judging import coverage, tensor_records
from diffai_dist.partials import GRAM, MOMENTS, SHIFT, empty, empty_gram
from diffai_dist.records import Change, ErrorBound, Measurements
from diffai_dist.statistics import NO_FINITE, NO_SQUARES, ZERO_BASELINE, ZERO_BOTH, ZERO_CANDIDATE
from diffai_dist.whole import whole_change
from trajectories import series_of

NUMBERS = ("l2", "rel_l2", "cosine_distance")


def measured(*members: np.ndarray, anchor: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """GRAM and MOMENTS as the kernels measure members of one tensor, all float64."""
    number, size = len(members), members[0].size
    grams, one = empty_gram(1, number), np.zeros(1, np.int64)
    arena = np.concatenate([np.ascontiguousarray(member, np.float64) for member in members]).view(np.uint8)
    bits, codes = 64 * size * np.arange(number)[None], np.full((1, number), DTYPES["F64"].code)
    moments, shifts = empty(MOMENTS, (1, number)), empty(SHIFT, (1, 0))
    pairs = np.zeros((0, 2), np.int64)
    kernels.measure(arena, one, one, np.array([size], np.int64), bits, codes, pairs, moments, shifts, anchor, grams)
    return grams, moments


def gram_of(*members: np.ndarray, anchor: int = 0) -> np.ndarray:
    return measured(*members, anchor=anchor)[0]


def exactly(number: Fraction) -> Decimal:
    return Decimal(number.numerator) / Decimal(number.denominator)


EXACT = Context(prec=400)


def truth(before: np.ndarray, after: np.ndarray) -> dict[str, Decimal]:
    """Exact sums over what is finite on both sides, their roots and quotients to 400 digits."""
    both = np.isfinite(before) & np.isfinite(after)
    a, b = ([Fraction(float(value)) for value in side[both]] for side in (before, after))
    with localcontext(EXACT):
        moved = exactly(sum(((y - x) ** 2 for x, y in zip(a, b, strict=True)), Fraction()))
        norm, other = (exactly(sum((x * x for x in side), Fraction())) for side in (a, b))
        product = exactly(sum((x * y for x, y in zip(a, b, strict=True)), Fraction()))
        found = {"l2": moved.sqrt()}
        if norm:
            found["rel_l2"] = (moved / norm).sqrt()
        if norm and other:
            found["cosine_distance"] = 1 - product / (norm * other).sqrt()
    return found


def off(found: dict[str, Any], exact: dict[str, Decimal]) -> dict[str, float]:
    """By how much numbers miss the truth."""
    known = [name for name in exact if found[name] is not None]
    return {name: float(abs(EXACT.subtract(Decimal(found[name]), exact[name]))) for name in known}


def changes(*members: np.ndarray, pair: tuple[int, int] = (1, 2), anchor: int = 0, told: bool = True) -> dict[str, Any]:
    """The numbers of a pair, `told` the norms of its sides or not."""
    grams, moments = measured(*members, anchor=anchor)
    norms = squared_norms(grams, moments, Pair(*pair)) if told else None
    return {name: column[0] for name, column in gram_changes(grams, Pair(*pair), norms).items()}


def beyond_bounds(found: dict[str, Any], exact: dict[str, Decimal]) -> dict[str, float]:
    """What misses the truth by more than the bound says, and by how much."""
    bounds = {"l2": "l2_error", "rel_l2": "rel_l2_error", "cosine_distance": "cosine_error"}
    return {name: miss for name, miss in off(found, exact).items() if miss > found[bounds[name]]}


HARD = [(far, near) for far in (1e-6, 1e-3, 1.0, 1e3) for near in (0.0, 1e-12, 1e-8, 1e-4, 1e-2, 1.0)]


@pytest.mark.parametrize(("far", "near"), HARD)
@pytest.mark.parametrize("seed", range(3))
def test_no_error_is_beyond_its_bound(far: float, near: float, seed: int) -> None:
    """Members `near` each other, relative to how `far` from the anchor they are, relative to its length."""
    noise = np.random.default_rng(seed)
    anchor = noise.normal(size=4700).astype(np.float32).astype(np.float64)
    first = anchor + far * noise.normal(size=4700)
    second = first + far * near * noise.normal(0.3 * seed, 1, size=4700)
    exact = truth(first, second)
    for told in (False, True):
        found = changes(anchor, first, second, told=told)
        assert None not in [found[name] for name in NUMBERS]
        assert not beyond_bounds(found, exact)


@pytest.mark.parametrize(("far", "near"), [(far, near) for far, near in HARD if near >= 1e-2])
def test_what_is_far_enough_apart_is_right_to_nine_digits(far: float, near: float) -> None:
    noise = np.random.default_rng(7)
    anchor = noise.normal(size=5000).astype(np.float32)
    first = (anchor + far * noise.normal(size=5000)).astype(np.float32)
    second = (first + far * near * noise.normal(size=5000)).astype(np.float32)
    members = [one.astype(np.float64) for one in (anchor, first, second)]
    found = changes(*members)
    missed = off(found, truth(*members[1:]))
    assert {name: missed[name] / found[name] <= 1e-9 for name in NUMBERS} == dict.fromkeys(NUMBERS, True)


values = st.floats(-1e3, 1e3) | st.sampled_from([0.0, -0.0, 1e-9, math.nan, math.inf, -math.inf])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(*[values] * 3), min_size=1, max_size=20),
    st.tuples(*[st.sampled_from([0.0, 1e-12, 1.0, 1e9, 1e30])] * 3),
    st.sampled_from([1.0, 1e-3, 1e145, 1e-150]),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
)
def test_bounds_hold_for_any_numbers(
    rows: list[tuple[float, float, float]],
    lengths: tuple[float, float, float],
    scale: float,
    anchor: int,
    twins: bool,
    told: bool,
) -> None:
    """Whatever is not finite, whichever member is the anchor, however far it is, equal bits or not."""
    with np.errstate(invalid="ignore"):
        members = list(np.array(rows).T * np.array(lengths)[:, None] * scale)
    members[2] = members[1].copy() if twins else members[2]
    found = changes(*members, anchor=anchor, told=told)
    shared = np.isfinite(members[1]) & np.isfinite(members[2])
    if not shared.any():
        assert (found["reason"], {found[name] for name in NUMBERS}) == (NO_FINITE, {None})
        return
    assert (found["reason"] is None) <= (None not in [found[name] for name in NUMBERS])
    assert not beyond_bounds(found, truth(members[1], members[2]))
    if twins:
        long = told and 1e-30 < np.abs(members[1][shared]).max() < 1e140
        assert {found[name] for name in NUMBERS} <= ({0.0} if long else {0.0, None})
        assert (found["l2"], found["l2_error"]) == (0.0, 0.0)


@pytest.mark.parametrize("away", [1.0, 1e4, 1e8])
@pytest.mark.parametrize("near", [1e-2, 1.0])
def test_norms_do_not_pass_a_far_anchor(away: float, near: float) -> None:
    """Both sides far smaller than the anchor, and a hundredth of the displacement apart."""
    noise = np.random.default_rng(11)
    anchor, first = noise.normal(size=(2, 4000))
    anchor *= away
    second = first + near * np.linalg.norm(anchor) / 60 * noise.normal(size=4000)
    for before, after in ((first, second), (second, first)):
        found = changes(anchor, before, after)
        exact = truth(before, after)
        missed = off(found, exact)
        assert missed["l2"] <= 1e-9 * found["l2"]
        assert missed["rel_l2"] <= 1e-9 * found["rel_l2"]
        assert not beyond_bounds(found, exact)


def test_the_relative_distance_has_its_own_bound_where_the_norm_passes_the_anchor() -> None:
    """A NaN in the candidate alone: MOMENTS of the baseline count an element that the pair does not."""
    noise = np.random.default_rng(4)
    anchor, first, second = noise.normal(size=(3, 500)) * [[1e5], [1.0], [1e4]]
    second[7] = math.nan
    found = changes(anchor, first, second)
    assert found["rel_l2_error"] / found["rel_l2"] > 10 * found["l2_error"] / found["l2"]
    assert not beyond_bounds(found, truth(first, second))


def test_a_spoiled_anchor_hides_no_difference_between_others() -> None:
    first = np.random.default_rng(6).normal(size=300)
    anchor, second = first.copy(), first.copy()
    anchor[4], second[4] = math.nan, 1e3
    found = changes(anchor, first, second)
    assert found["l2"] == pytest.approx(abs(1e3 - first[4]), rel=1e-12)
    assert not beyond_bounds(found, truth(first, second))
    assert changes(anchor, first, second, pair=(0, 2))["l2"] == 0.0
    nothing = changes(np.full(300, math.nan), first, second)
    assert not beyond_bounds(nothing, truth(first, second))
    assert nothing["l2"] == pytest.approx(found["l2"], rel=1e-12)


@pytest.mark.parametrize("absurd", [3e38, 1e200])
def test_what_an_absurd_anchor_swallows_says_so(absurd: float) -> None:
    anchor, first = np.random.default_rng(8).normal(size=(2, 100))
    anchor[3] = absurd
    found = changes(anchor, first, first + 0.1)
    assert (found["reason"], found["cosine_distance"]) == (LOST, None)
    assert found["l2"] is None or found["l2"] <= found["l2_error"]
    same = changes(anchor, first, first.copy())
    assert (same["reason"], *(same[name] for name in NUMBERS), same["l2_error"]) == (None, 0.0, 0.0, 0.0, 0.0)


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
        "l2": 0.0, "l2_error": 0.0, "rel_l2": 0.0, "rel_l2_error": 0.0,
        "cosine_distance": 0.0, "cosine_error": 0.0, "reason": None,
    }  # fmt: skip
    assert changes(anchor, first, first, pair=(0, 0))["l2_error"] == 0.0


def test_what_is_not_defined_is_none_with_a_reason() -> None:
    one, zero = np.array([1.0, 2.0]), np.zeros(2)
    away = changes(one, zero, one)
    assert (away["l2"], away["rel_l2"], away["cosine_distance"]) == (pytest.approx(math.sqrt(5)), None, None)
    assert away["reason"] == ZERO_BASELINE
    assert changes(one, zero, one, told=False)["reason"] == TOO_SHORT
    assert changes(one, one, zero)["reason"] == ZERO_CANDIDATE
    both = changes(one, zero, zero.copy())
    assert (both["l2"], both["rel_l2"], both["reason"]) == (0.0, None, ZERO_BOTH)
    tiny = one * 1e-17  # 1 - 1 + 1e-17: the anchor hides it
    hidden, known = (changes(one, tiny, one, told=told) for told in (False, True))
    assert (hidden["rel_l2"], hidden["reason"]) == (None, TOO_SHORT)
    assert (known["rel_l2"], known["reason"]) == (pytest.approx(1e17), LOST)
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


@settings(deadline=None)
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


def by_products(states: Sequence[dict[str, np.ndarray]], anchor: int = 0) -> tuple[Measurements, Measurements]:
    """All pairs as the Gram tells them, and as elements do."""
    exact = series_of(states, pairs="all", anchor=anchor).measured
    shifts = exact.shifts.copy()
    for tensor, one in enumerate(exact.comparison.aligned):
        if all(found.decoder.family <= Family.DOUBLE for found in one.tensors if found):
            shifts[tensor] = empty(SHIFT, (1,))
    comparison = dataclasses.replace(exact.comparison, elementwise=False)
    return dataclasses.replace(exact, comparison=comparison, shifts=shifts), exact


def states(members: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Three tensors and a counter, which has no place in the Gram."""
    walk = np.cumsum(np.random.default_rng(seed).normal(size=(members, 3, 40)), axis=0)
    return [
        {**{f"w.{k}": row.astype(np.float32) for k, row in enumerate(one)}, "step.count": np.array([7, index])}
        for index, one in enumerate(walk)
    ]


def spoilt(members: int, spoils: Sequence[tuple[int, int, int]]) -> list[dict[str, np.ndarray]]:
    """The same with NaN in (member, tensor, element)."""
    made = states(members)
    for member, tensor, element in spoils:
        made[member][f"w.{tensor}"][element] = math.nan
    return made


def agree(found: Change | None, bound: ErrorBound | None, exact: Change | None) -> bool:
    """Whether the same numbers are defined, each as near as its bound says and elements are exact."""
    for name in NUMBERS:
        here, there, error = (getattr(one, name, None) for one in (found, exact, bound))
        if None in (here, there, error):
            if (here, there, error) != (None, None, None):
                return False
        elif abs(here - there) > error + 1e-12 * abs(there):
            return False
    return True


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 39)), max_size=8),
    st.sampled_from([(), (0,), (1,), (0, 2)]),
    st.integers(0, 3),
)
def test_records_of_products_are_those_of_elements_within_their_bounds(
    spoils: list[tuple[int, int, int]], nothing: tuple[int, ...], anchor: int
) -> None:
    made = spoilt(4, [*spoils, *((member, 1, element) for member in nothing for element in range(40))])
    products, elements = by_products(made, anchor)
    for index, pair in enumerate(products.comparison.pairs):
        mine, exact = tensor_records(products, index), tensor_records(elements, index)
        assert coverage(products.comparison, pair, mine) == coverage(elements.comparison, pair, exact)
        for one, other in zip(mine, exact, strict=True):
            assert (one.name, one.status) == (other.name, other.status)
            assert (NO_FINITE in (one.reason or "")) == (NO_FINITE in (other.reason or ""))
            assert one.change == other.change or agree(one.change, one.error_bound, other.change)
        change, bound = whole_change(products, index, mine)
        assert agree(change, bound, whole_change(elements, index, exact)[0])


def test_a_whole_of_nothing_finite_has_no_numbers() -> None:
    """Neither out of the Gram nor, of complex numbers, element by element."""
    made = [
        {"w.0": np.full(5, value, np.float32), "c.0": np.full(5, 1j * value, np.complex64)} for value in (math.nan, 1)
    ]
    products, elements = by_products(made)
    mine, exact = tensor_records(products, 0), tensor_records(elements, 0)
    assert [one.status for one in mine] == [one.status for one in exact] == ["changed", "changed"]
    assert {one.reason for one in mine} == {NO_FINITE}
    assert whole_change(products, 0, mine) == (Change(*[None] * 10), None)


def test_the_norm_of_a_whole_does_not_pass_a_far_anchor() -> None:
    made = states(3)
    for tensor in ("w.0", "w.1", "w.2"):
        made[0][tensor] *= np.float32(1e5)
        made[2][tensor] *= np.float32(1e4)
    products, elements = by_products(made)
    change, bound = whole_change(products, 2, tensor_records(products, 2))
    exact, _ = whole_change(elements, 2, tensor_records(elements, 2))
    assert change is not None
    assert exact is not None
    assert bound is not None
    assert change.rel_l2 == pytest.approx(exact.rel_l2, rel=1e-9)
    assert agree(change, bound, exact)
    assert bound.rel_l2 is not None
    assert bound.rel_l2 < 1e-9 * exact.rel_l2


def test_a_whole_is_exact_only_where_nothing_moved() -> None:
    made = states(3)
    made[2] = {name: values.copy() for name, values in made[1].items()}
    products, _ = by_products(made)
    change, bound = whole_change(products, 2, tensor_records(products, 2))
    assert (change, bound) == (Change(0.0, 0.0, *[None] * 4, 0.0, *[None] * 3), ErrorBound(0.0, 0.0, 0.0))
    made[2]["step.count"] = np.array([7, 2])
    products, _ = by_products(made)
    change, bound = whole_change(products, 2, tensor_records(products, 2))
    assert change is not None
    assert bound is not None
    assert (change.l2, bound.l2 > 0.0) == (1.0, True)


def test_a_distance_lost_about_an_absurd_anchor_names_it() -> None:
    made = states(3)
    made[0]["w.1"][3] = 3e38
    products, _ = by_products(made)
    record = next(one for one in tensor_records(products, 2) if one.name == "w.1")
    assert record.reason == LOST.replace("the anchor", f"the anchor {products.comparison.members[0].url}")
