"""Units cover every leaf of every tensor once; their cut depends on nothing but the plan."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffai_dist.checkpoint import Checkpoint, Span, Tensor
from diffai_dist.comparison import Comparison, Pair, Selection, compare_members, natural
from diffai_dist.errors import MissingShard, UsageError
from diffai_dist.grid import leaf_elements
from diffai_dist.plan import SUBTREES_PER_UNIT, make_plan
from diffai_dist.storage import Profile, Source

BYTES = {"F32": 4, "BF16": 2, "F64": 8}


def checkpoint(url: str, **tensors: tuple[str, tuple[int, ...]]) -> Checkpoint:
    """A checkpoint that exists on paper only: planning reads nothing."""
    place, made, source = 0, {}, Source(url, 2**50, "etag:1")
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * BYTES[dtype]
        made[name] = Tensor(name, dtype, shape, (Span(source, place, place + size),))
        place += size
    return Checkpoint(url, "safetensors", (source,), made)


def pair_of(a: Checkpoint, b: Checkpoint) -> Comparison:
    return compare_members([a, b], [Pair(0, 1)])


shapes = st.lists(
    st.one_of(st.tuples(st.integers(0, 50)), st.tuples(st.integers(1, 5000), st.integers(1, 5000))), max_size=8
)


@settings(deadline=None)
@given(shapes, st.sampled_from([2**16, 2**24, 2**28]))
def test_units_cover_every_element_once(shapes: list[tuple[int, ...]], unit_bytes: int) -> None:
    tensors = {f"t{index}": ("F32", shape) for index, shape in enumerate(shapes)}
    plan = make_plan(pair_of(checkpoint("/a", **tensors), checkpoint("/b", **tensors)), Profile(), unit_bytes)
    covered: dict[int, list[tuple[int, int]]] = {}
    for unit in plan.units():
        assert len(unit.subtrees) <= SUBTREES_PER_UNIT
        for subtree in unit.subtrees:
            assert subtree.first % subtree.leaf == 0
            covered.setdefault(subtree.lane, []).append((subtree.first, subtree.stop))
    for index, lane in enumerate(plan.lanes):
        ranges = covered.get(index, [])
        assert len(ranges) == lane.nodes
        edges = [0, *(stop for _, stop in ranges)]
        assert [first for first, _ in ranges] == edges[:-1]
        assert edges[-1] == math.prod(lane.shape)
    assert sum(unit.nbytes for unit in plan.units()) == plan.nbytes == 2 * 4 * sum(map(math.prod, shapes))


def test_a_unit_exceeds_its_size_by_one_leaf_at_most() -> None:
    tensors = {"huge": ("F32", (100_000, 4096)), **{f"small{i}": ("F32", (100,)) for i in range(1000)}}
    plan = make_plan(pair_of(checkpoint("/a", **tensors), checkpoint("/b", **tensors)), Profile(), 2**26)
    assert max(unit.nbytes for unit in plan.units()) <= 2**26
    tiny = make_plan(plan.comparison, Profile(), 1)
    assert max(unit.nbytes for unit in tiny.units()) <= 2 * 4 * leaf_elements((100_000, 4096))


def test_a_unit_names_no_tensors_and_no_secrets() -> None:
    tensors = {"secret-layer-name": ("F32", (4, 4))}
    plan = make_plan(pair_of(checkpoint("/a", **tensors), checkpoint("/b", **tensors)), Profile())
    (unit,) = plan.units()
    assert b"secret-layer-name" not in pickle.dumps(unit)
    assert pickle.loads(pickle.dumps(unit)) == unit


def test_the_key_of_a_unit_depends_on_what_was_pinned() -> None:
    tensors = {"w": ("F32", (4, 4))}
    plans = [
        make_plan(pair_of(checkpoint("/a", **tensors), checkpoint(other, **tensors)), Profile()) for other in "bcb"
    ]
    keys = [next(plan.units()).key for plan in plans]
    assert keys[0] == keys[2] != keys[1]


def test_tensors_of_other_shapes_are_measured_apart() -> None:
    a, b = checkpoint("/a", w=("F32", (4, 4))), checkpoint("/b", w=("F32", (4, 5)))
    plan = make_plan(pair_of(a, b), Profile())
    assert [[bool(tensor) for tensor in lane.tensors] for lane in plan.lanes] == [[True, False], [False, True]]
    assert plan.comparison.aligned[0].incomparable(Pair(0, 1)) == "shapes differ: [4, 4] and [4, 5]"


def test_an_unreadable_side_leaves_nothing_to_read() -> None:
    a = checkpoint("/a", w=("F32", (4, 4)))
    failure = MissingShard("/b/2", "missing").failure
    b = Checkpoint("/b", "safetensors", (), {}, unreadable={"w": failure})
    plan = make_plan(pair_of(a, b), Profile())
    assert plan.lanes == ()
    assert plan.comparison.aligned[0].unreadable == (None, failure)


def test_names_sort_by_number() -> None:
    names = ["h.10.w", "h.9.w", "h.9", "h", "", "10", "9", "h.9.w.x", "H.9"]
    assert sorted(names, key=natural) == ["", "9", "10", "H.9", "h", "h.9", "h.9.w", "h.9.w.x", "h.10.w"]


@given(st.lists(st.text(), unique=True))
def test_the_order_of_names_is_total(names: list[str]) -> None:
    assert sorted(names, key=natural) == sorted(reversed(names), key=natural)


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (Selection(include=("*.weight",)), ["a.weight", "b.weight"]),
        (Selection(exclude=("a.*",)), ["b.bias", "b.weight"]),
        (Selection(include=("*.weight", "*.bias"), exclude=("b.*",)), ["a.bias", "a.weight"]),
        (Selection(ignore="bias$"), ["a.weight", "b.weight"]),
    ],
)
def test_the_selection_counts_what_it_leaves_out(selection: Selection, left: list[str]) -> None:
    names = {name: ("F32", (1,)) for name in ("a.weight", "a.bias", "b.weight", "b.bias")}
    comparison = compare_members([checkpoint("/a", **names), checkpoint("/b", **names)], [Pair(0, 1)], selection)
    assert [one.name for one in comparison.aligned] == left
    assert comparison.left_out == 2


def test_a_bad_pattern_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="not a regular expression"):
        Selection(ignore="(").predicate()


def test_a_million_units_are_made_one_by_one() -> None:
    """2**40 elements a tensor: the plan is arithmetic, nothing is held."""
    tensors = {"w": ("F32", (2**20, 2**20))}
    plan = make_plan(pair_of(checkpoint("/a", **tensors), checkpoint("/b", **tensors)), Profile(), 2**23)
    units = plan.units()
    assert plan.lanes[0].nodes == 2**20
    assert next(units).subtrees[0].stop == 2**20
