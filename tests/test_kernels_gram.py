"""The anchored Gram against exact sums, and the laws it keeps."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from diffai_dist.dtypes import DTYPES, Family
from diffai_dist.kernels import measure, tables
from diffai_dist.partials import BLOCK, GRAM, MOMENTS, SHIFT, empty, empty_gram
from test_kernels import SPECIAL, encoded, integers, noise, placed, rows, weights

FLOATS = sorted(name for name, dtype in DTYPES.items() if dtype.family <= Family.DOUBLE)
OTHERS = [*sorted(set(DTYPES) - set(FLOATS)), "F6_E2M3"]
COUNT, DIFFER, AA, ALONG, NORM, DOT = range(len(GRAM))
SUMS = [COUNT, AA, ALONG, NORM, DOT]


def gram_of(members, anchor=0, **places) -> np.ndarray:
    """Planes [6, members, members] of members (dtype name, bytes; None: absent)."""
    grams = empty_gram(1, len(members))
    rows(members, (), anchor=anchor, grams=grams, **places)
    return grams[0]


def exact_gram(members, anchor=0):
    """The planes without `differ`, and the sums of the sizes of their terms, to which rounding is relative.

    Over what is finite in both members; the anchor is 0 where it is not finite itself.
    """
    xs = [[oracle.fixed(x) if math.isfinite(x) else None for x in oracle.values(*member)] if member else None
          for member in members]  # fmt: skip
    base = next(x for x in (xs[anchor], *xs) if x)
    planes, sizes = empty_gram(2, len(members))
    for (i, left), (j, right) in itertools.product(enumerate(xs), repeat=2):
        if left is None or right is None:
            continue
        aligned = zip((a or 0 for a in base), left, right, strict=True)
        shared = [(a, x - a, y - a) for a, x, y in aligned if None not in (x, y)]
        planes[COUNT, i, j] = len(shared)
        for plane, terms in (
            (AA, [a * a for a, _, _ in shared]),
            (ALONG, [a * d for a, d, _ in shared]),
            (NORM, [d * d for _, d, _ in shared]),
            (DOT, [d * e for _, d, e in shared]),
        ):
            planes[plane, i, j] = oracle.rounded(Fraction(sum(terms), oracle.SCALE**2))
            sizes[plane, i, j] = oracle.rounded(Fraction(sum(map(abs, terms)), oracle.SCALE**2))
    return planes, sizes


def check(members, anchor=0, **places):
    found = gram_of(members, anchor, **places)
    exact, sizes = exact_gram(members, anchor)
    assert (found[COUNT] == exact[COUNT]).all()
    assert (abs(found - exact)[SUMS] <= 1e-12 * sizes[SUMS] + 1e-300).all()
    return found


def spoil(data: np.ndarray, *places: int) -> np.ndarray:
    """A copy with NaN and infinities there."""
    data = data.copy()
    data[list(places)] = np.resize([math.nan, math.inf, -math.inf], len(places))
    return data


def steps(size: int, members: int, seed: int = 0) -> list[tuple[str, bytes]]:
    """F32 checkpoints of a training run: each one a small step from the one before."""
    walk = weights(size, seed) + np.cumsum([weights(size, seed + k) * 0.01 for k in range(1, members + 1)], axis=0)
    return [("F32", x.astype(np.float32).tobytes()) for x in walk]


def as_array(member: tuple[str, bytes]) -> np.ndarray:
    return np.frombuffer(member[1], np.float32)


def changed(member: tuple[str, bytes], *places: int) -> tuple[str, bytes]:
    return "F32", spoil(as_array(member), *places).tobytes()


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("size", [2, 34, 1024, 1500])
def test_all_codes_of_a_dtype_are_summed_as_the_oracle_does(name, size):
    check([(name, noise(name, size, seed)) for seed in range(3)], anchor=1)


@pytest.mark.parametrize("anchor", range(7))
def test_dtypes_mix_in_one_group(anchor):
    names = ["F32", "BF16", "F64", "I8", "F16", "U32", "F8_E4M3"]
    check([(name, noise(name, 700, 5)) for name in names], anchor)
    check([(name, encoded(name, [*SPECIAL, *range(-20, 20)])) for name in names], anchor)


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(st.sampled_from(FLOATS), min_size=1, max_size=5),
    values=st.lists(
        st.lists(st.sampled_from(SPECIAL) | st.floats(-1e5, 1e5, width=32), min_size=34, max_size=34),
        min_size=5,
        max_size=5,
    ),
    absent=st.sets(st.integers(0, 4)),
    anchor=st.integers(0, 4),
)
def test_special_values_and_absent_members_are_summed_as_the_oracle_does(names, values, absent, anchor):
    members = [(name, encoded(name, row)) for name, row in zip(names, values, strict=False)]
    kept = [None if index in absent else member for index, member in enumerate(members)]
    if any(kept):
        check(kept, anchor % len(kept))


def test_moves_far_smaller_than_the_weights_keep_their_digits():
    """x - a is exact for nearby float32 (Sterbenz): nothing of a change by 1e-7 is lost."""
    anchor = weights(3 * BLOCK + 77, 1)
    members = [("F32", (anchor * np.float32(1 + k * 2**-22)).tobytes()) for k in range(4)]
    found = gram_of(members)
    moves = [as_array(member).astype(np.float64) - anchor for member in members]
    for i, j in itertools.product(range(4), repeat=2):
        size = math.fsum(abs(moves[i] * moves[j]))
        assert abs(found[DOT, i, j] - math.fsum(moves[i] * moves[j])) <= 1e-13 * size
        assert abs(found[ALONG, i, j] - math.fsum(moves[i] * anchor)) <= 1e-13 * math.fsum(abs(moves[i] * anchor))


def test_subnormal_values_count():
    tiny = np.arange(1, 65, dtype=np.uint32).view(np.float32)
    check([("F32", tiny.tobytes()), ("F32", (tiny * 3).tobytes()), ("F32", tiny[::-1].tobytes())])


@pytest.mark.parametrize("spoiled", [(), (0,), (2,), (0, 2, 3)])
def test_cutting_into_pieces_changes_no_bit(spoiled):
    members = steps(3 * BLOCK + 18, 4)
    members = [
        changed(member, 5, BLOCK + index) if index in spoiled else member for index, member in enumerate(members)
    ]
    whole = gram_of(members)
    for cuts in ([BLOCK], [2 * BLOCK, 3 * BLOCK], [0, BLOCK, BLOCK]):
        assert gram_of(members, cuts=cuts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("anchor", [0, 3])
@pytest.mark.parametrize("spoiled", [(), (5,), (2, 3), (3,), (0, 5)])
def test_an_entry_has_the_same_bits_whoever_else_takes_part(anchor, spoiled):
    """Members 0, 3 and 6 alone, among eight with holes and twins, and with the others absent."""
    members = steps(BLOCK + 1500, 8)
    members[7], members[4] = members[6], members[anchor]
    for index in spoiled:
        members[index] = changed(members[index], index, 1100, BLOCK + 7)
    group, few = gram_of(members, anchor), [0, 3, 6]
    alone = gram_of([members[index] for index in few], few.index(anchor))
    assert group[:, few][:, :, few].tobytes() == alone.tobytes()
    sparse = gram_of([member if index in few else None for index, member in enumerate(members)], anchor)
    assert sparse[:, few][:, :, few].tobytes() == alone.tobytes()
    assert np.count_nonzero(sparse) == np.count_nonzero(alone)


@pytest.mark.parametrize("spoiled", [(), (3,), (0, 3)])
def test_permuting_members_permutes_the_planes(spoiled):
    members = [changed(x, 9, BLOCK + 9) if k in spoiled else x for k, x in enumerate(steps(BLOCK + 700, 6))]
    members[5] = members[2]
    order = [4, 2, 5, 0, 3, 1]
    moved = gram_of([members[index] for index in order], order.index(0))
    assert moved.tobytes() == gram_of(members)[:, order][:, :, order].tobytes()


def test_planes_are_symmetric_and_the_anchor_rests():
    members = [changed(x, 3 * k) if k % 2 else x for k, x in enumerate(steps(2000, 5))]
    gram = gram_of(members, anchor=1)
    for plane in (COUNT, DIFFER, AA, DOT):
        assert (gram[plane] == gram[plane].T).all()
    assert not gram[[ALONG, NORM, DOT], 1].any()
    assert not gram[DOT, :, 1].any()
    assert not gram[DIFFER].diagonal().any()


def test_one_spoiled_member_does_not_erase_the_others():
    members = steps(2 * BLOCK, 5)
    clean = gram_of(members)
    places = [*range(10), BLOCK + 1]
    members[3] = changed(members[3], *places)
    spoiled, others = check(members), [0, 1, 2, 4]
    assert spoiled[:, others][:, :, others].tobytes() == clean[:, others][:, :, others].tobytes()
    assert (spoiled[COUNT, 3] == 2 * BLOCK - len(places)).all()


def test_a_spoiled_anchor_takes_its_elements_from_its_own_pairs_alone():
    members = steps(500, 4)
    members[0] = changed(members[0], 1, 2, 3)
    members[2] = changed(members[2], 3, 4)
    gram = check(members)
    assert gram[COUNT].tolist() == [
        [497, 497, 496, 497],
        [497, 500, 498, 500],
        [496, 498, 498, 498],
        [497, 500, 498, 500],
    ]


def test_an_anchor_of_nothing_finite_leaves_the_others_as_they_are():
    members = steps(500, 3)
    members[0] = changed(members[0], *range(500))
    gram = check(members)
    assert gram[COUNT].tolist() == [[0, 0, 0], [0, 500, 500], [0, 500, 500]]
    moves = [as_array(member).astype(np.float64) for member in members[1:]]
    found = gram[NORM, 1, 2] + gram[NORM, 2, 1] - 2 * gram[DOT, 1, 2]
    assert found == pytest.approx(np.sum((moves[0] - moves[1]) ** 2), rel=1e-9)


def test_distances_that_overflow_spoil_no_count():
    huge = [("F64", np.full(20, x).tobytes()) for x in (-1.5e308, 1.5e308, 1.0, math.nan)]
    gram = gram_of(huge)
    assert (gram[COUNT, :3, :3] == 20).all()
    assert not gram[COUNT, 3].any()
    assert gram[NORM, 1, 1] == math.inf


def test_twins_have_the_bits_of_members_measured_alone():
    members = steps(BLOCK + 300, 3)
    alone = gram_of(members)
    twins = gram_of([*members, members[2], members[0]])
    order = [0, 1, 2, 2, 0]
    assert twins.tobytes() == alone[:, order][:, :, order].tobytes()


def test_equal_values_of_other_dtypes_have_the_bits_of_twins():
    """Nothing is known to be equal there, so all of it is computed."""
    short = [("BF16", noise("BF16", BLOCK + 300, seed)) for seed in range(3)]
    wide = [("F32", (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).tobytes()) for _, data in short]
    gram, order = gram_of(short), [0, 1, 2, 0, 1, 2]
    mixed = gram_of([*short, *wide])
    assert mixed[SUMS].tobytes() == gram[:, order][:, :, order][SUMS].tobytes()
    assert (mixed[DIFFER, :3, 3:] == 2).all()


def test_blocks_with_other_bytes_are_counted():
    members = steps(3 * BLOCK + 5, 3)
    one = as_array(members[0]).copy()
    one[BLOCK + 4] += 1
    two = one.copy()
    two[-1] = -two[-1]
    gram = gram_of([members[0], ("F32", one.tobytes()), ("F32", two.tobytes()), members[1], members[0]])
    assert gram[DIFFER].tolist() == [
        [0, 1, 2, 4, 0],
        [1, 0, 1, 4, 1],
        [2, 1, 0, 4, 2],
        [4, 4, 4, 0, 4],
        [0, 1, 2, 4, 0],
    ]


def test_zeros_of_other_signs_and_nans_of_other_payloads_differ_in_bits_alone():
    words = np.array([0, 1 << 31, 0x7FC00000, 0x7FC00001] * 8, np.uint32)
    one, two = words.copy(), words.copy()
    one[0], two[2] = 1 << 31, 0x7FC00001
    gram = gram_of([("F32", part.tobytes()) for part in (words, one, two)])
    assert (gram[DIFFER] == 1 - np.eye(3)).all()
    assert (gram[COUNT] == 16).all()
    assert not gram[[AA, ALONG, NORM, DOT]].any()


@pytest.mark.parametrize("name", OTHERS)
def test_dtypes_without_moves_only_tell_whether_they_differ(name):
    same, other = noise(name, 2 * BLOCK, 1), noise(name, 2 * BLOCK, 2)
    half = same[: len(same) // 2] + other[len(same) // 2 :]
    gram = gram_of([(name, same), (name, other), (name, half), (name, same)])
    assert not gram[SUMS].any()
    assert gram[DIFFER].tolist() == [[0, 2, 1, 0], [2, 0, 1, 2], [1, 1, 0, 1], [0, 2, 1, 0]]


def test_one_integer_of_64_bits_leaves_the_moves_of_its_piece_out():
    members = [*steps(BLOCK, 2), ("I64", noise("I64", BLOCK, 1))]
    gram = gram_of(members)
    assert not gram[SUMS].any()
    assert (gram[DIFFER] == 1 - np.eye(3)).all()


@pytest.mark.parametrize("odd", [(), (0,), (1,), (0, 1), (1, 2)])
def test_nibbles_in_the_middle_of_a_byte_are_found_equal(odd):
    """One run of F4 codes, laid out from a whole byte or from the middle of one, then others."""
    codes = np.random.default_rng(1).integers(0, 16, (2, 2 * BLOCK + 7), np.uint8)
    members, wide = [], []
    for index, row in enumerate(codes[[0, 0, 0, 1]]):
        laid = np.append(row[:1], row) if index in odd else np.append(row, row[-1:])
        members.append(("F4", (laid[::2] | laid[1::2] << 4).tobytes()))
        wide.append(("F32", tables.PATTERNS[DTYPES["F4"].code, row].tobytes()))
    gram = gram_of([*members, ("I8", bytes(codes.shape[1]))], odd=odd)[:, :4, :4]  # the fifth sets the size
    assert gram.tobytes() == gram_of(wide).tobytes()
    assert gram[DIFFER].tolist() == [[0, 0, 0, 3]] * 3 + [[3, 3, 3, 0]]


def test_moments_and_shifts_keep_their_bits():
    members = [*steps(BLOCK + 70, 3), ("F16", noise("F16", BLOCK + 70, 1))]
    members.append(members[1])
    pairs = list(itertools.combinations(range(5), 2))
    alone = rows(members, pairs)
    together = rows(members, pairs, anchor=2, grams=empty_gram(1, 5))
    assert [part.tobytes() for part in together] == [part.tobytes() for part in alone]


def test_pieces_add_to_the_row_of_their_slot():
    arena, _, counts, bits, codes = placed(steps(BLOCK, 3))
    grams, slots = empty_gram(3, 3), integers([2, 0, 2])
    part = (empty(MOMENTS, (3, 3)), empty(SHIFT, (3, 0)), 0, grams)
    triple = [np.repeat(one, 3, axis=0) for one in (counts, bits, codes)]
    measure(arena, slots, slots * 0, *triple, integers([]).reshape(0, 2), *part)
    once = gram_of(steps(BLOCK, 3))
    assert grams.tobytes() == np.stack([once, np.zeros_like(once), 2 * once]).tobytes()


def test_a_piece_without_members_adds_nothing():
    arena, starts, counts, bits, codes = placed(steps(100, 2))
    grams, none = empty_gram(1, 2), np.full_like(bits, -1)
    part = (empty(MOMENTS, (1, 2)), empty(SHIFT, (1, 0)), 0, grams)
    measure(arena, starts, starts, counts, none, codes, integers([]).reshape(0, 2), *part)
    assert not grams.any()


@pytest.mark.parametrize(("anchor", "shape"), [(2, (1, 2)), (0, (1, 3)), (0, (0, 2))])
def test_grams_that_do_not_fit_are_refused(anchor, shape):
    with pytest.raises(ValueError, match=r"do not hold|no row"):
        rows(steps(10, 2), (), anchor=anchor, grams=empty_gram(*shape))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(1, 3000), st.floats(1e-6, 1.0), st.integers(0, 10**6), st.booleans(), st.data())
def test_distances_agree_with_those_of_the_pairs(count, size, step, seed, holes, data):
    """norm + norm - 2 dot against the sum of squares of the pair, which never passed the anchor: to 1e-9 relative
    where the two are at least 1e-2 of the largest displacement apart."""
    generator = np.random.default_rng(seed)
    walk = np.cumsum(generator.standard_normal((count, size)) * step, axis=0) + generator.standard_normal(size)
    members = [("F32", x.astype(np.float32).tobytes()) for x in walk]
    anchor = data.draw(st.integers(0, count - 1))
    if holes:
        spoiled = data.draw(st.integers(0, count - 1))
        members[spoiled] = changed(members[spoiled], *generator.integers(0, size, 3))
    gram = gram_of(members, anchor)
    pairs = list(itertools.combinations(range(count), 2))
    shifts = rows(members, pairs)[1]
    largest = max(gram[NORM].max(), 0.0)
    for (i, j), shift in zip(pairs, shifts, strict=True):
        assert gram[COUNT, i, j] == shift["both"]
        if shift["d2"] >= 1e-4 * largest:
            found = gram[NORM, i, j] + gram[NORM, j, i] - 2 * gram[DOT, i, j]
            assert found == pytest.approx(shift["d2"], rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(1, 2000), st.floats(1e-7, 1e3), st.integers(0, 10**6))
def test_dots_of_whole_members_are_a_gram_matrix(count, size, step, seed):
    generator = np.random.default_rng(seed)
    members = [("F32", (generator.standard_normal(size) * step).astype(np.float32).tobytes()) for _ in range(count)]
    dots = gram_of(members, seed % count)[DOT]
    assert np.linalg.eigvalsh(dots).min() >= -1e-12 * np.trace(dots)
