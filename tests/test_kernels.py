"""The kernels against an exact oracle, and the laws their results keep."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import shutil
import subprocess
import sys
import types
from fractions import Fraction

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from diffai_dist.dtypes import DTYPES, Family, comparable, dtype_of
from diffai_dist.kernels import compiled, measure, merge_moments, merge_shifts, tables
from diffai_dist.kernels.compiled import entry
from diffai_dist.partials import BLOCK, MOMENTS, SHIFT, empty, empty_gram

NAMES = sorted(DTYPES)
COUNTS = ("count", "finite", "nans", "posinfs", "neginfs", "zeros", "subnormals", "absmax_index")
SUMS = ("d2", "d1", "a1", "b1", "aa", "bb")
SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    1.5,
    math.nan,
    math.inf,
    -math.inf,
    2.0**-149,
    -(2.0**-130),
    2.0**-20,
    448.0,
    1e30,
    1e6,
]


def integers(values) -> np.ndarray:
    return np.array(values, np.int64)


def placed(members, *, cuts=(), lead=3, odd=()):
    """Members (dtype name, bytes; None: absent) `lead` bytes into an arena: it, starts and counts of the pieces that
    they are cut into, bits and codes [pieces, members].

    F4 members listed in `odd` lose their first nibble: they start in the middle of a byte.
    """
    arena, begins, sizes = bytes(lead), [], []
    for index, member in enumerate(members):
        begins.append(8 * len(arena) + 4 * (index in odd))
        if member:
            sizes.append(len(oracle.codes(*member)) - (index in odd))
            arena += member[1] + bytes(3)
    edges = [0, *cuts, min(sizes)]
    starts, counts = integers(edges[:-1]), np.diff(edges).astype(np.int64)
    dtypes = [dtype_of(member[0]) if member else None for member in members]
    bits = integers(begins) + starts[:, None] * integers([dtype.bits if dtype else 0 for dtype in dtypes])
    bits[:, [dtype is None for dtype in dtypes]] = -1
    codes = np.tile(integers([dtype.code if dtype else -1 for dtype in dtypes]), (starts.size, 1))
    return np.frombuffer(arena, np.uint8).copy(), starts, counts, bits, codes


def rows(members, pairs=((0, 1),), *, base=0, anchor=-1, grams=None, **places):
    """Moments and shifts of members that are placed in an arena."""
    arena, starts, counts, bits, codes = placed(members, **places)
    moments, shifts = empty(MOMENTS, (1, len(members))), empty(SHIFT, (1, len(pairs)))
    pairs = integers(pairs).reshape(-1, 2)
    measure(arena, starts * 0, starts + base, counts, bits, codes, pairs, moments, shifts, anchor, grams)
    return moments[0], shifts[0]


def check_moments(row, name, data, base=0):
    expected = oracle.moments(name, data, base)
    for field in set(COUNTS) & set(expected):
        assert row[field] == expected[field], field
    if not expected.get("finite"):
        return
    for field in ("low", "high", "absmax"):
        found = oracle.number(name, int(row[field]), magnitude=field == "absmax")
        assert found == pytest.approx(expected[field], rel=1e-15 if name == "C64" and field == "absmax" else 0, abs=0)
    size, mean = expected["abs_sum"], abs(expected["mean"])
    assert row["abs_sum"] == pytest.approx(size, rel=1e-12, abs=1e-300)
    assert abs(row["mean"] - expected["mean"]) <= 1e-12 * size / expected["finite"]
    # The mean is known to 1e-16 of its size: spreads below 1e-8 of it lose digits, as in any float64 computation.
    assert row["m2"] == pytest.approx(expected["m2"], rel=1e-12, abs=expected["finite"] * (1e-15 * mean) ** 2 + 1e-300)


def check_shift(row, before, after, base=0):
    expected = oracle.shift(before, after, base)
    for field in set(SHIFT.names) & set(expected) - {*SUMS, "slope", "rest", "max_abs"}:
        assert row[field] == expected[field], field
    if not expected.get("both"):
        return
    same_integers = before[0] == after[0] and dtype_of(before[0]).family is Family.INTEGER
    found = int(row["max_abs"]) if same_integers else oracle.number("F64", int(row["max_abs"]), magnitude=True)
    mixed = before[0] != after[0] and Family.INTEGER in (dtype_of(before[0]).family, dtype_of(after[0]).family)
    assert found == pytest.approx(expected["max_abs"], rel=1e-15 if before[0] == "C64" or mixed else 0, abs=0)
    for field in SUMS:
        assert row[field] == pytest.approx(expected[field], rel=1e-12, abs=1e-300), field
    scale = math.sqrt(expected["d2"] / expected["aa"]) if expected["aa"] else 0.0
    assert abs(row["slope"] - expected["slope"]) <= 1e-12 * scale
    # What is orthogonal to the baseline, against what moved: |rest error| / |d| to 1e-12 squares.
    assert row["rest"] == pytest.approx(expected["rest"], rel=1e-11, abs=1e-14 * expected["d2"])


def check(before, after, base=8192, **options):
    moments, shifts = rows([before, after], base=base, **options)
    for row, member in zip(moments, (before, after), strict=True):
        check_moments(row, *member, base)
    if comparable(dtype_of(before[0]), dtype_of(after[0])):
        check_shift(shifts[0], before, after, base)
    else:
        assert shifts[0] == empty(SHIFT, ())


def encoded(name: str, values) -> bytes:
    """Floats as bytes of the dtype; integers wrap, F4 packs two elements to a byte."""
    with np.errstate(all="ignore"):
        if dtype_of(name).family is Family.COMPLEX:
            return np.array(values, np.float32).repeat(2).tobytes()
        if not name.startswith(("F", "BF")):
            whole = [int(x) % 2**62 if math.isfinite(x) else 7 for x in values]
            return np.array(whole, np.int64).astype(oracle.NUMPY[name]).tobytes()
        codes = np.array(values, np.float64).astype(oracle.NUMPY[name])
    if name != "F4":
        return codes.tobytes()
    nibbles = codes.view(np.uint8)[: len(codes) // 2 * 2]
    return (nibbles[::2] | nibbles[1::2] << 4).tobytes()


def noise(name: str, size: int, seed: int) -> bytes:
    """Random values without, and codes with, everything a dtype can hold; F64 stays where squares fit."""
    generator = np.random.default_rng(seed)
    if name == "F64":
        values = generator.standard_normal(size) * 10.0 ** generator.integers(-100, 100, size)
        values[generator.random(size) < 0.05] = math.nan
        values[generator.random(size) < 0.05] = -math.inf
        return values.tobytes()
    return generator.integers(0, 256, size * dtype_of(name).bits // 8, np.uint8).tobytes()


def weights(size: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * 0.02).astype(np.float32)


@pytest.mark.parametrize("name", [name for name in NAMES if DTYPES[name].bits <= 16])
def test_every_code_decodes_to_its_value(name):
    """Each code is a tensor of one element, whose smallest value shows what it was decoded to."""
    dtype = DTYPES[name]
    codes = np.arange(max(2**dtype.bits, 256)).astype(np.uint8 if dtype.bits <= 8 else np.uint16)
    count = codes.nbytes * 8 // dtype.bits
    one = np.ones((count, 1), np.int64)
    places, moments, shifts = np.arange(count), empty(MOMENTS, (count, 1)), empty(SHIFT, (count, 0))
    bits = places[:, None] * dtype.bits
    arena = codes.view(np.uint8)
    measure(arena, places, places, one[:, 0], bits, one * dtype.code, integers([]).reshape(0, 2), moments, shifts)
    for row, value in zip(moments[:, 0], oracle.values(name, codes.tobytes()), strict=True):
        assert row["nans"] == math.isnan(value)
        assert row["finite"] == math.isfinite(value)
        if math.isfinite(value):
            found = oracle.key_number(int(row["low"]))
            assert found == value
            assert math.copysign(1, found) == math.copysign(1, value)


@pytest.mark.parametrize("name", sorted(tables.SMALL_FLOATS))
def test_tables_give_every_code_a_pattern_of_its_own(name):
    codes = 16 if name == "F4" else 256
    assert len(set(tables.PATTERNS[DTYPES[name].code, :codes].tolist())) == codes


@pytest.mark.parametrize("name", [name for name in NAMES if DTYPES[name].bits <= 16])
def test_bits_differ_exactly_where_codes_differ(name):
    """Against the code shifted by one, so that NaNs of other payloads are told apart, too."""
    codes = np.arange(2 ** DTYPES[name].bits).astype(np.uint8 if DTYPES[name].bits <= 8 else np.uint16)
    if name == "F4":
        codes = np.arange(256, dtype=np.uint8)
    before, after = (name, codes.tobytes()), (name, np.roll(codes, 1).tobytes())
    assert rows([before, after])[1][0]["bits"] == oracle.shift(before, after)["bits"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [2, 16, 34, 4096, 5000])
def test_all_codes_of_a_dtype_are_measured_as_the_oracle_does(name, size):
    check((name, noise(name, size, 1)), (name, noise(name, size, 2)))


@pytest.mark.parametrize("name", NAMES)
def test_any_two_dtypes_are_compared_by_value(name):
    values = [*SPECIAL, *range(-20, 20)]
    for other in NAMES:
        check((name, encoded(name, values)), (other, encoded(other, values)))
        check((name, noise(name, 48, 3)), (other, noise(other, 48, 4)))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    values=st.lists(st.sampled_from(SPECIAL) | st.floats(-1e5, 1e5, width=32), min_size=2, max_size=80),
    moves=st.lists(st.sampled_from([0.0, 0.0, 1e-3, -2.0, math.nan]), min_size=80, max_size=80),
)
def test_special_values_are_measured_as_the_oracle_does(name, values, moves):
    values = values[: len(values) // 2 * 2]
    moved = [value + move for value, move in zip(values, moves, strict=False)]
    check((name, encoded(name, values)), (name, encoded(name, moved)))


@pytest.mark.parametrize(("centre", "spread"), [(1e6, 1e-6), (1e3, 1e-9), (-5.0, 0.0), (1.0, 1e-4), (0.0, 1.0)])
def test_a_small_spread_about_a_large_mean_survives(centre, spread):
    values = centre + spread * np.random.default_rng(1).standard_normal(3 * BLOCK + 77)
    row = rows([("F64", values.tobytes())], ())[0][0]
    expected = oracle.moments("F64", values.tobytes())
    assert row["m2"] == pytest.approx(expected["m2"], rel=1e-6, abs=1e-30 * centre**2 * values.size)


def test_values_beyond_the_range_of_squares_overflow_without_harm():
    row = rows([("F64", np.full(40, 1e300).tobytes())], ())[0][0]
    assert row["finite"] == 40
    assert row["mean"] == pytest.approx(1e300)


@pytest.mark.parametrize("name", ["I64", "U64"])
def test_extremes_of_64_bit_integers_are_exact(name):
    kind = oracle.NUMPY[name]
    edges = [np.iinfo(kind).min, np.iinfo(kind).max, np.iinfo(kind).max - 1, 0, 1, 2**53 + 1]
    before, after = np.array(edges, kind).tobytes(), np.array(edges[::-1], kind).tobytes()
    check((name, before), (name, after))


@pytest.mark.parametrize(
    ("name", "value", "other", "twin", "changed"),
    [
        ("I64", 2**53 + 1, "F64", 2.0**53, 1),
        ("I64", 2**53, "F64", 2.0**53, 0),
        ("U64", 2**64 - 1, "F64", 2.0**64, 1),
        ("U64", 2**63, "F64", 2.0**63, 0),
        ("I64", -1, "U64", 2**64 - 1, 1),
        ("U64", 7, "I64", 7, 0),
        ("I64", -(2**63), "F32", -(2.0**63), 0),
        ("U64", 0, "F32", -0.0, 0),
        ("I64", 0, "F64", math.nan, 1),
    ],
)
def test_64_bit_integers_against_other_dtypes_change_exactly(name, value, other, twin, changed):
    sides = [(name, oracle.NUMPY[name](value).tobytes()), (other, oracle.NUMPY[other](twin).tobytes())]
    for before, after in (sides, sides[::-1]):
        row = rows([before, after])[1][0]
        assert row["changed"] == changed
        if row["both"]:
            assert [row[field] > 0 for field in ("max_abs", "d1", "d2")] == [bool(changed)] * 3


NEAR = st.sampled_from([0, 1, 1024, 2**11, 2**24, 2**52, 2**53, 2**60, 2**62, 2**63, 2**64])
STEPS = st.integers(-4100, 4100)
WHOLE = st.builds(lambda near, sign, step: sign * near + step, NEAR, st.sampled_from([1, -1]), STEPS)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([("I64", "F64"), ("U64", "F64"), ("I64", "U64"), ("I64", "F32"), ("U64", "I32"), ("U64", "BF16")]),
    WHOLE | st.integers(-(2**63), 2**64 - 1),
    WHOLE | st.floats(allow_nan=False, allow_infinity=False) | st.floats(-5000, 5000),
    st.booleans(),
)
def test_the_difference_of_a_64_bit_integer_and_another_dtype_is_right(names, left, right, swap):
    """To 1e-15 of the difference itself, and 0 for equal values alone; against exact rationals."""
    sides = []
    for name, value in zip(names, (left, right), strict=True):
        with np.errstate(over="ignore"):
            limits = None if dtype_of(name).name in ("F64", "F32", "BF16") else np.iinfo(oracle.NUMPY[name])
            kept = float(value) if limits is None else min(max(int(value), limits.min), limits.max)
            sides.append((name, np.array([kept], oracle.NUMPY[name]).tobytes()))
    sides = sides[::-1] if swap else sides
    (before,), (after,) = (oracle.values(*one) for one in sides)
    if not math.isfinite(after) or not math.isfinite(before):
        return
    exact = abs(Fraction(after) - Fraction(before))
    row = rows(sides)[1][0]
    found = Fraction(oracle.number("F64", int(row["max_abs"]), magnitude=True))
    assert abs(found - exact) <= exact * Fraction(1, 10**15)
    assert (row["changed"], found > 0, row["d1"]) == (exact > 0, exact > 0, float(found))


def test_a_mixed_pair_with_holes_has_its_first_largest_difference_among_the_finite():
    whole = ("I64", np.array([5, 2**53 + 1, 7, 2**53 + 1], np.int64).tobytes())
    other = ("F64", np.array([math.nan, 2.0**53, 7.0, 2.0**53]).tobytes())
    for sides in ((whole, other), (other, whole)):
        check(*sides)
        row = rows(sides)[1][0]
        assert (row["both"], row["changed"], row["changed_nonfinite"], row["max_abs_index"]) == (3, 3, 1, 1)
        assert (row["d1"], row["d2"]) == (2.0, 2.0)


def test_bytes_without_a_decoder_are_only_counted():
    moments, shifts = rows([("F6_E2M3", bytes(range(200))), ("F6_E2M3", bytes(range(199)) + b"\0")])
    expected, change = empty(MOMENTS, (2,)), empty(SHIFT, (1,))
    expected["count"] = change["count"] = 200
    change["changed"] = change["bits"] = 1
    assert (moments == expected).all()
    assert (shifts == change).all()


@pytest.mark.parametrize("odd", [(0,), (1,), (0, 1)])
def test_a_tensor_may_start_in_the_middle_of_a_byte(odd):
    data = noise("F4", 5000, 5)
    whole = oracle.nibbles(data)
    moments, shifts = rows([("F4", data), ("F4", data)], odd=odd)
    for index in (0, 1):
        # An odd start drops a nibble; the oracle takes one byte per element here, as both share the table.
        kept = whole[1:] if index in odd else whole[:-1]
        values = np.array([tables.small_float(code, 2, 1, 1) for code in kept])
        assert moments[index]["count"] == 4999
        assert moments[index]["zeros"] == (values == 0).sum()
        assert moments[index]["abs_sum"] == np.abs(values).sum()
    if len(odd) == 2:
        assert shifts[0]["changed"] == 0
    else:
        assert shifts[0]["bits"] == sum(x != y for x, y in itertools.pairwise(whole))


@pytest.mark.parametrize("name", [*NAMES, "F6_E3M2"])
def test_cutting_into_pieces_changes_no_bit(name):
    members = [(name, noise(name, 5 * BLOCK + 18, seed)) for seed in (1, 2)]
    whole = rows(members)
    for cuts in ([BLOCK], [2 * BLOCK, 3 * BLOCK], [BLOCK * k for k in range(1, 6)], [0, 4 * BLOCK, 4 * BLOCK]):
        cut = rows(members, cuts=cuts)
        assert [part.tobytes() for part in cut] == [part.tobytes() for part in whole]


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_has_the_same_bits_alone_and_in_a_group(name):
    one, two, three = ((name, noise(name, 9000, seed)) for seed in (1, 2, 3))
    alone, shift = rows([one, three])
    group, shifts = rows([one, two, three], [(0, 1), (0, 2), (1, 2), (2, 0)])
    assert alone[1].tobytes() == group[2].tobytes()
    assert shift[0].tobytes() == shifts[1].tobytes()


@pytest.mark.parametrize("name", [*NAMES, "F6_E2M3"])
def test_equal_blocks_give_the_bits_of_the_full_path(name):
    """Between lone members nothing is known to be equal; the pair with itself is settled by its bytes."""
    data = (name, noise(name, 2 * BLOCK + 50, 7))
    lone = rows([data], ())[0][0]
    moments, shifts = rows([data, data, data], [(1, 2), (0, 2)])
    assert {row.tobytes() for row in moments} == {lone.tobytes()}
    assert shifts[0].tobytes() == shifts[1].tobytes()
    if name not in ("F6_E2M3", "C64"):
        check_shift(shifts[0], data, data)


def test_an_equal_pair_has_the_same_bits_when_its_bytes_cannot_tell():
    """F4 that starts in the middle of a byte goes the full way, the same elements on whole bytes do not."""
    data = noise("F4", 9000, 8)
    late = bytes((low >> 4) | (high & 15) << 4 for low, high in itertools.pairwise(b"\0" + data + b"\0"))
    settled = rows([("F4", data)] * 2)
    measured = rows([("F4", late), ("F4", late), ("F4", data)], odd=(0, 1))  # the third sets the size
    assert measured[0][0].tobytes() == measured[0][1].tobytes() == settled[0][0].tobytes()
    assert measured[1].tobytes() == settled[1].tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_parts_merge_to_the_row_of_the_whole(name):
    before, after = noise(name, 6 * BLOCK, 9), noise(name, 6 * BLOCK, 10)
    width = DTYPES[name].bits * BLOCK // 8
    parts = [
        rows([(name, side[k * width : (k + 1) * width]) for side in (before, after)], base=k * BLOCK) for k in range(6)
    ]
    while len(parts) > 1:
        for left, right in zip(parts[::2], parts[1::2], strict=False):
            merge_moments(left[0], right[0])
            merge_shifts(left[1], right[1])
        parts = parts[::2]
    whole = rows([(name, before), (name, after)])
    for merged, direct in zip(parts[0], whole, strict=True):
        for field in direct.dtype.names:
            if direct.dtype[field].kind == "f":
                scale = np.sqrt(direct["m2"] / direct["finite"]) if field == "mean" else 0.0
                np.testing.assert_allclose(merged[field], direct[field], rtol=1e-12, atol=1e-12 * np.max(scale))
            else:
                assert (merged[field] == direct[field]).all(), field


def test_empty_rows_are_neutral_on_both_sides():
    moments, shifts = rows([("F32", weights(300, 1).tobytes()), ("F32", weights(300, 2).tobytes())])
    for merge, full in ((merge_moments, moments), (merge_shifts, shifts)):
        left, right = empty(full.dtype, full.shape), full.copy()
        merge(left, full)
        merge(right, empty(full.dtype, full.shape))
        assert left.tobytes() == full.tobytes() == right.tobytes()


def test_rows_merge_in_place_in_any_layout():
    moments, _ = rows([("F32", weights(300, 1).tobytes()), ("F32", weights(300, 2).tobytes())])
    grid = np.repeat(moments, 6).reshape(2, 6)
    expected = grid.copy()
    merge_moments(expected, grid)
    strided = np.zeros((2, 12), MOMENTS)[:, ::2]
    strided[...] = grid
    merge_moments(strided, grid)
    assert strided.tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="cannot be merged"):
        merge_moments(grid, grid[:1])


def test_an_absent_member_adds_nothing():
    data = weights(64, 1).tobytes()
    moments, shifts = empty(MOMENTS, (2, 2)), empty(SHIFT, (2, 1))
    bits, codes, one = integers([[0, -1], [0, 0]]), integers([[0, 0], [0, 0]]), integers([64, 64])
    arena = np.frombuffer(data, np.uint8)
    measure(arena.copy(), integers([0, 1]), one * 0, one, bits, codes, integers([[0, 1]]), moments, shifts)
    assert moments["count"].tolist() == [[64, 0], [64, 64]]
    assert shifts["count"].tolist() == [[0], [64]]
    assert moments[0, 0] == moments[1, 1]


def test_a_piece_outside_the_arena_is_refused():
    one, rows_of = integers([0]), empty(MOMENTS, (1, 1))
    with pytest.raises(ValueError, match="outside the arena"):
        measure(
            np.zeros(63, np.uint8), one, one, integers([16]), integers([[0]]), integers([[0]]),
            np.zeros((0, 2), np.int64), rows_of, empty(SHIFT, (1, 0)),
        )  # fmt: skip


def test_a_multiple_of_the_baseline_has_no_angle():
    """d is half of a, exactly in float64 and nearly in float32: the rest is rounding noise, not a lost difference."""
    baseline = weights(50_000, 3)
    candidate = (baseline * np.float32(1.5)).astype(np.float32)
    before, after = ("F32", baseline.tobytes()), ("F32", candidate.tobytes())
    row = rows([before, after])[1][0]
    expected = oracle.shift(before, after)
    assert row["rest"] == pytest.approx(expected["rest"], rel=1e-9)
    assert row["rest"] / row["bb"] < 1e-14


FINGERPRINT = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import test_kernels
print(test_kernels.fingerprint())
"""


def fingerprint() -> str:
    """Digest of the rows of all dtypes, over whole and cut vectors, with and without non-finite values."""
    digest = hashlib.sha256()
    for name in NAMES:
        for part in rows([(name, noise(name, 2 * BLOCK + 38, seed)) for seed in (1, 2)]):
            digest.update(part.tobytes())
    plain = [("F32", weights(70_000, seed).tobytes()) for seed in (1, 2)]
    biased = [("F64", (weights(70_000, seed) + 1e3).astype(np.float64).tobytes()) for seed in (1, 2)]
    for part in (*rows(plain), *rows(biased), *rows([plain[0], biased[1]])):
        digest.update(part.tobytes())
    grams = empty_gram(1, 4)
    rows([*plain, *biased], anchor=0, grams=grams)
    rows([("F16", noise("F16", 5000, seed)) for seed in range(4)], anchor=1, grams=grams)
    digest.update(grams.tobytes())
    return digest.hexdigest()


def run(code: str, **environment: str) -> str:
    """The output of Python code in a process of its own."""
    tests = os.path.dirname(__file__)
    arguments = [sys.executable, "-W", "error", "-c", code, tests]
    process = subprocess.run(arguments, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


@pytest.mark.slow
def test_a_processor_without_wide_vectors_gives_the_same_bits(tmp_path):
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    assert run(FINGERPRINT, **environment) == fingerprint()


def twice(value):
    return 2 * value


def test_a_kernel_works_where_no_directory_can_be_written():
    """Numba finds no place for a function of no file, as it does for one in a folder it may not write to."""
    homeless = types.FunctionType(twice.__code__.replace(co_filename="<nowhere>"), {})
    assert entry(homeless)(21) == 42


def test_a_cache_that_disappears_does_not_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    kernel = entry(twice)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").touch()
    assert kernel(21) == 42


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", [b"", b"\x80", "half", "random"])
def test_a_damaged_cache_is_compiled_anew_and_replaced(tmp_path, monkeypatch, ending, damage):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert entry(twice)(21) == 42
    (path,) = tmp_path.rglob(f"*.{ending}")
    whole = path.read_bytes()
    bad = {"half": whole[: len(whole) // 2], "random": np.random.default_rng(1).bytes(len(whole))}
    path.write_bytes(damage if isinstance(damage, bytes) else bad[damage])
    assert entry(twice)(21) == 42
    healed = entry(twice)
    assert healed(21) == 42
    assert sum(healed.stats.cache_hits.values()) == 1


def test_another_source_makes_another_cache_key(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    for digest, hits in (("one", 0), ("one", 1), ("two", 0)):
        monkeypatch.setattr(compiled, "sources", lambda folder, digest=digest: digest)
        kernel = entry(twice)
        assert kernel(21) == 42
        assert sum(kernel.stats.cache_hits.values()) == hits


def test_importing_compiles_nothing():
    code = """
import sys, diffai_dist.kernels
assert "numba" not in sys.modules
import diffai_dist.kernels.blocks as blocks
print(len(blocks.measure_pieces.signatures))
"""
    assert run(code) == "0"
