"""The kernel of details against NumPy, and the laws its results keep."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import details_oracle
from diffai_dist import kernels
from diffai_dist.dtypes import DTYPES, Family, dtype_of
from diffai_dist.partials import (
    BITWISE,
    BLOCK,
    COLUMN,
    COLUMN_SHIFT,
    CONTENT,
    HISTOGRAM,
    MOMENTS,
    ROW,
    ROW_SHIFT,
    SHIFT,
    empty,
    empty_gram,
)
from oracle import NUMPY

NAMES = sorted(name for name in DTYPES if name not in ("C64", "BOOL"))
EXACT = [field for field in CONTENT.names if field != "digest"]
SIZES = [2, 16, 34, 4096, 5000, 12345]


def integers(*values) -> np.ndarray:
    return np.array(values, np.int64)


def raw(array: np.ndarray) -> bytes:
    """The array as it lies in a file."""
    if array.dtype != NUMPY["F4"]:
        return array.tobytes()
    nibbles = array.view(np.uint8) & 15
    nibbles = np.append(nibbles, np.zeros(nibbles.size % 2, np.uint8))
    return (nibbles[::2] | nibbles[1::2] << 4).tobytes()


def noise(name: str, size: int, seed: int) -> np.ndarray:
    """Random codes, with everything that a dtype can hold; F64 and integers stay where float64 is exact."""
    generator = np.random.default_rng(seed)
    kind = np.dtype(NUMPY[name])
    if name == "F64":
        values = generator.standard_normal(size) * 10.0 ** generator.integers(-60, 60, size)
        values[generator.random(size) < 0.02] = math.nan
        values[generator.random(size) < 0.02] = -math.inf
        return values
    if name == "F4":
        return generator.integers(0, 16, size, np.uint8).view(kind)
    if dtype_of(name).family is Family.INTEGER:
        return generator.integers(0, 2**50, size).astype(kind)
    return np.frombuffer(generator.bytes(size * kind.itemsize), kind)


def tame(array: np.ndarray) -> np.ndarray:
    """F64 whose squares stay in float64: large ones become -inf."""
    return np.where(abs(array) > 1e100, -math.inf, array) if array.dtype == np.float64 else array


def step(array: np.ndarray, seed: int) -> np.ndarray:
    """The array with some of its codes moved, by a little or by one bit."""
    generator = np.random.default_rng(seed)
    codes = array.view(f"u{array.dtype.itemsize}").copy()
    kinds = generator.integers(0, 6, array.size)
    shift = generator.integers(0, dtype_of(details_oracle.name_of(array)).bits, array.size).astype(codes.dtype)
    bits = np.ones(1, codes.dtype) << shift
    with np.errstate(over="ignore"):
        codes = np.where(kinds == 0, codes + 1, np.where(kinds == 1, codes ^ bits.astype(codes.dtype), codes))
    if array.dtype == NUMPY["F4"]:
        codes &= 15
    return tame(codes.astype(f"u{array.dtype.itemsize}").view(array.dtype))


def tables(slots: int, members: int, pairs: int) -> tuple[np.ndarray, np.ndarray, int, None]:
    """What `measure` fills, without a Gram."""
    return empty(MOMENTS, (slots, members)), empty(SHIFT, (slots, pairs)), -1, None


def measured(members, pairs=((0, 1),), *, width=0, cuts=(), base=0, lead=3, columns=True) -> kernels.DetailRows:
    """Details of flat arrays (None: absent) that lie `lead` bytes into an arena, cut into pieces."""
    arena, begins, count = bytes(lead), [], max(one.size for one in members if one is not None)
    for member in members:
        begins.append(-1 if member is None else 8 * len(arena))
        arena += b"" if member is None else raw(member) + bytes(5)
    dtypes = [None if one is None else dtype_of(details_oracle.name_of(one)) for one in members]
    edges = [0, *cuts, count]
    starts, counts = integers(*edges[:-1]), np.diff(edges)
    bits = integers(*begins) + starts[:, None] * integers(*(0 if one is None else one.bits for one in dtypes))
    codes = np.tile(integers(*(0 if one is None else one.code for one in dtypes)), (starts.size, 1))
    height = (base % width + count - 1) // width + 1 if width else 0
    taken = width if columns else 0
    out = kernels.DetailRows(
        empty(CONTENT, (1, len(members))),
        empty(BITWISE, (1, len(pairs))),
        empty(ROW, (height, len(members))),
        empty(ROW_SHIFT, (height, len(pairs))),
        np.zeros((taken, len(members)), COLUMN, order="F"),
        np.zeros((taken, len(pairs)), COLUMN_SHIFT, order="F"),
    )
    rows_at = (base % width + starts) // width if width else starts * 0
    kernels.measure_details(
        np.frombuffer(arena, np.uint8).copy(), starts * 0, starts + base, counts, bits, codes,
        integers(*pairs).reshape(-1, 2), *tables(1, len(members), len(pairs)), rows_at, starts * 0 + width,
        starts * 0 - (not taken), out,
    )  # fmt: skip
    return out


def same_row(found: np.void, expected: np.void, sums: tuple[str, ...] = ()) -> None:
    for field in expected.dtype.names:
        if field in sums:
            assert found[field] == pytest.approx(expected[field], rel=1e-12, abs=1e-300), field
        else:
            assert found[field] == expected[field], field


def same_table(found: np.ndarray, expected: np.ndarray) -> None:
    """Counts exactly; sums to what rounding in another order may do, relative to the sum of magnitudes."""
    for field in expected.dtype.names:
        if expected[field].dtype.kind == "i" or field == "absmax":
            assert (found[field] == expected[field]).all(), field
    for field, size in (("squares", "squares"), ("d2", "d2")):
        if field in expected.dtype.names:
            np.testing.assert_allclose(found[field], expected[size], rtol=1e-12, atol=1e-300)


def check(before: np.ndarray, after: np.ndarray, width: int = 0, **places) -> None:
    found = measured([before, after], width=width, **places)
    for member, array in enumerate((before, after)):
        for field in EXACT:
            assert found.content[0, member][field] == details_oracle.content(array)[field], field
    same_row(found.bitwise[0, 0], details_oracle.bitwise(before, after))
    if not width:
        return
    for member, array in enumerate((before, after)):
        expected = details_oracle.rows(array, width)
        same_table(found.rows[:, member], expected)
        sizes = np.sqrt(expected["squares"] * width)
        assert (abs(found.rows[:, member]["sum"] - expected["sum"]) <= 1e-12 * sizes).all()
        same_table(found.columns[:, member], details_oracle.columns(array, width))
    expected = details_oracle.row_shifts(before, after, width)
    same_table(found.row_shifts[:, 0], expected)
    sizes = np.sqrt(expected["d2"]) * np.sqrt(details_oracle.rows(before, width)["squares"])
    assert (abs(found.row_shifts[:, 0]["along"] - expected["along"]) <= 1e-12 * sizes).all()
    same_table(found.column_shifts[:, 0], details_oracle.column_shifts(before, after, width))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_all_codes_of_a_dtype_are_measured_as_numpy_does(name, size):
    array = noise(name, size, 1)
    check(array, noise(name, size, 2))
    check(array, step(array, 3))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(5000, 1), (700, 7), (313, 16), (97, 50), (5, 4096), (3, 9001)])
def test_rows_and_columns_are_those_of_numpy(name, shape):
    array = noise(name, math.prod(shape), 4)
    check(array, step(array, 5), width=shape[1])


@pytest.mark.parametrize("name", NAMES)
def test_any_two_dtypes_are_compared_by_value(name):
    for other in NAMES:
        check(noise(name, 4160, 6), noise(other, 4160, 7), width=130)


def ties(dtype: np.dtype) -> np.ndarray:
    """Every finite value of a dtype of 16 bits at most, the middle between neighbours, and what lies beside it."""
    codes = np.arange(2 ** (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}").view(dtype)
    with np.errstate(invalid="ignore"):
        values = np.unique(codes.astype(np.float32))
    values = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
        beyond = values[-1] * np.float32([1.0, 1.01, 1.04, 1.07, 1.1, 1.5, 3.0])
    beside = [np.nextafter(middles, np.float32(way)) for way in (-math.inf, math.inf)]
    special = np.float32([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, -1e-45, 3.4e38])
    return np.concatenate([values, middles, *beside, beyond, -beyond, special])


@pytest.mark.parametrize("source", ["F32", "F64"])
@pytest.mark.parametrize("name", ["F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_what_ml_dtypes_casts_is_no_miscast(name, source):
    """Over all values of the target and all ties; and each cast that is one code off is found."""
    before = ties(np.dtype(NUMPY[name])).astype(NUMPY[source])
    with np.errstate(all="ignore"):
        after = before.astype(np.float32).astype(NUMPY[name])
    row = measured([before, after]).bitwise[0, 0]
    assert (row["cast"], row["miscast"], row["miscast_index"]) == (before.size, 0, -1)
    check(before, after)
    check(before, step(after, 8))


def test_a_cast_that_saturates_is_one_where_there_is_no_infinity():
    before = np.float32([500.0, -1e9, math.inf, math.nan, 464.0, 465.0])
    after = np.array([448.0, -448.0, 448.0, math.nan, 448.0, 448.0], NUMPY["F8_E4M3"])
    row = measured([before, after]).bitwise[0, 0]
    assert (row["miscast"], row["overflowed"]) == (0, 0)
    wide = np.float32([1e38, -70000.0, 65519.9])
    row = measured([wide, np.array([65504, -65504, 65504], np.float16)]).bitwise[0, 0]
    assert (row["miscast"], row["miscast_index"]) == (2, 0)


def test_f64_may_come_by_way_of_f32():
    """1 + 2^-8 + 2^-40 lies above the tie of BF16; rounded to F32 first it lies on it."""
    before = np.array([1 + 2.0**-8 + 2.0**-40])
    for value, miscast in ((1.0, 0), (1 + 2.0**-7, 0), (1 + 2.0**-6, 1)):
        row = measured([before, np.array([value], ml_dtypes.bfloat16)]).bitwise[0, 0]
        assert row["miscast"] == miscast


def test_zeros_of_both_signs_are_one_number_and_other_bits():
    row = measured([np.float32([0.0, -0.0, 1.0]), np.float32([-0.0, -0.0, 1.0])]).bitwise[0, 0]
    assert (row["first"], row["ulps1"], row["furthest"], row["visible"]) == (0, 0, 0, 0)
    smallest = np.float32(1e-45)
    row = measured([np.float32([smallest]), np.float32([-smallest])]).bitwise[0, 0]
    assert (row["ulps2"], row["ulps4"], row["furthest"]) == (1, 0, 2)


@pytest.mark.parametrize("name", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ"])
def test_each_bit_of_the_exponent_is_found_when_it_flips(name):
    array = np.linspace(-3, 3, 9000).astype(NUMPY[name])
    bits, mantissa = dtype_of(name).bits, details_oracle.MANTISSA[name]
    for bit in range(bits):
        flipped = array.copy()
        flipped.view(f"u{array.dtype.itemsize}")[7001] ^= np.uint64(1 << bit).astype(f"u{array.dtype.itemsize}")
        row = measured([array, flipped]).bitwise[0, 0]
        exponent = mantissa <= bit < bits - 1
        assert (row["flips"], row["flip_index"]) == ((1, 7001) if exponent else (0, -1))
        assert row["first"] == 7001
        check(array, flipped)


@pytest.mark.parametrize("name", ["BF16", "F32", "F16", "F8_E4M3", "I64", "F64"])
@pytest.mark.parametrize("width", [0, 1, 50, 96, 5000])
def test_cutting_into_pieces_changes_no_bit(name, width):
    size = 4 * BLOCK + 616
    before = noise(name, size, 9)
    members = [before, step(before, 10), before.copy()]
    members[2][: 2 * BLOCK] = noise(name, 2 * BLOCK, 11)
    pairs, base = ((0, 1), (1, 2), (0, 2)), 3 * 5000 * 96
    whole = measured(members, pairs, width=width, base=base)
    for cuts in ((BLOCK,), (BLOCK, 3 * BLOCK), (2 * BLOCK,), (BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK)):
        parts = measured(members, pairs, width=width, base=base, cuts=cuts)
        for one, other in zip(whole, parts, strict=True):
            assert one.tobytes() == other.tobytes()


def test_a_pair_has_the_same_bits_alone_and_in_a_group():
    first = noise("F32", 9000, 12)
    members = [first, step(first, 13), first.copy(), None, step(first, 14)]
    group = measured(members, ((0, 1), (0, 2), (0, 3), (0, 4)), width=90)
    for pair, member in enumerate((1, 2, 4)):
        alone = measured([first, members[member]], width=90)
        place = (0, 1, 3)[pair]
        for table in ("bitwise", "row_shifts", "column_shifts"):
            found = np.ascontiguousarray(getattr(group, table)[:, place])
            assert found.tobytes() == np.ascontiguousarray(getattr(alone, table)[:, 0]).tobytes()
        for table in ("content", "rows", "columns"):
            found = np.ascontiguousarray(getattr(group, table)[:, [0, member]])
            assert found.tobytes() == np.ascontiguousarray(getattr(alone, table)).tobytes()
    assert (group.bitwise[0, 2], group.content[0, 3]) == (empty(BITWISE, ()), empty(CONTENT, ()))
    assert not group.rows["finite"][:, 3].any()


@pytest.mark.parametrize("anchor", [-1, 1])
def test_what_is_measured_with_details_is_what_is_measured_without(anchor):
    """A twin, other dtypes, and an absent member among them."""
    members = [noise("BF16", 9000, 21), noise("F32", 9000, 22), None, noise("I64", 9000, 23)]
    members += [members[0].copy(), step(members[1], 24)]
    begins, arena = [], b""
    for one in members:
        begins.append(-1 if one is None else 8 * len(arena))
        arena += b"" if one is None else one.tobytes()
    bits = integers(*begins)[None]
    codes = integers(*(0 if one is None else dtype_of(details_oracle.name_of(one)).code for one in members))[None]
    one, pairs = integers(0), integers(0, 1, 0, 4, 1, 5, 1, 3, 1, 2).reshape(-1, 2)
    place = np.frombuffer(arena, np.uint8).copy(), one, one, one + 9000, bits, codes, pairs
    found = []
    for entry in (kernels.measure, kernels.measure_details):
        grams = None if anchor < 0 else empty_gram(1, 6)
        kept = empty(MOMENTS, (1, 6)), empty(SHIFT, (1, 5)), anchor, grams
        out = kernels.DetailRows(empty(CONTENT, (1, 6)), empty(BITWISE, (1, 5)))
        entry(*place, *kept, *(() if entry is kernels.measure else (one, one, one - 1, out)))
        found.append([table.tobytes() for table in kept if isinstance(table, np.ndarray)])
    assert found[0] == found[1]


def test_rows_do_not_depend_on_columns_being_asked_for():
    array = noise("BF16", 8000, 15)
    members = [array, step(array, 16)]
    both, rows = measured(members, width=40), measured(members, width=40, columns=False)
    assert both.rows.tobytes() == rows.rows.tobytes()
    assert both.row_shifts.tobytes() == rows.row_shifts.tobytes()


@pytest.mark.parametrize("name", ["C64", "F4", "BF16", "F32", "U8", "I64"])
def test_equal_bits_have_one_digest_and_others_another(name):
    array = np.frombuffer(np.random.default_rng(17).bytes(9000 * 8), NUMPY[name] if name != "F4" else np.uint8)[:9000]
    array = (array & 15).view(NUMPY["F4"]) if name == "F4" else array
    found = {int(measured([array], ()).content[0, 0]["digest"])}
    assert found == {int(measured([array], (), lead=8, cuts=(BLOCK,)).content[0, 0]["digest"])}
    for place in (0, 1, 4095, 4096, 8999):
        other = array.copy()
        other.view(np.uint8)[place * array.dtype.itemsize] ^= 1
        found.add(int(measured([other], ()).content[0, 0]["digest"]))
    swapped = np.concatenate([array[BLOCK : 2 * BLOCK], array[:BLOCK], array[2 * BLOCK :]])
    found |= {int(measured([one], ()).content[0, 0]["digest"]) for one in (swapped, array[:-1], array[::-1].copy())}
    assert len(found) == 9


def test_sign_bits_that_flip_in_two_places_change_the_digest():
    """Their products with any two odd keys are the same: the top bit of a word must reach the lower half."""
    array = np.zeros(64)
    digests = set()
    for place in range(0, 64, 2):
        array[[place, place + 1]] = -0.0
        digests.add(int(measured([array], ()).content[0, 0]["digest"]))
        array[[place, place + 1]] = 0.0
    assert len(digests) == 32


def test_complex_numbers_and_bytes_have_a_digest_and_a_count_alone():
    array = np.arange(10, dtype=np.complex64)
    found = measured([array, array + 1])
    for member in range(2):
        expected = empty(CONTENT, ())
        expected["count"], expected["digest"] = 10, found.content[0, member]["digest"]
        assert found.content[0, member] == expected
    assert found.bitwise[0, 0] == empty(BITWISE, ())
    assert found.content[0, 0]["digest"] != found.content[0, 1]["digest"]


def test_nibbles_that_lie_across_bytes_are_the_same_elements():
    nibbles = np.random.default_rng(18).integers(0, 16, 4999, np.uint8)
    even, odd = (np.concatenate(parts).view(NUMPY["F4"]) for parts in ((nibbles, nibbles[:1]), (nibbles[:1], nibbles)))
    arena = np.frombuffer(raw(even) + raw(odd), np.uint8).copy()
    out = kernels.DetailRows(empty(CONTENT, (1, 2)), empty(BITWISE, (1, 1)))
    codes, one = np.full((1, 2), dtype_of("F4").code), integers(0)
    place = one, one, integers(4999), integers(0, 8 * 2500 + 4).reshape(1, 2), codes, integers(0, 1).reshape(1, 2)
    kernels.measure_details(arena, *place, *tables(1, 2, 1), one, one, one - 1, out)
    assert out.content[0, 0] == out.content[0, 1]
    assert (out.bitwise[0, 0]["count"], out.bitwise[0, 0]["first"], out.bitwise[0, 0]["ulps1"]) == (4999, -1, 0)


RUNS = st.lists(st.tuples(st.integers(0, 1), st.sampled_from([1, 2, 7, 100, 4095, 4096, 5000])), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(RUNS)
def test_runs_of_zeros_are_found_wherever_they_lie(runs):
    array = np.concatenate([np.full(length, value, np.float32) for value, length in runs])
    row, expected = measured([array], ()).content[0, 0], details_oracle.content(array)
    assert [row[field] for field in EXACT] == [expected[field] for field in EXACT]


@settings(max_examples=100, deadline=None)
@given(RUNS, RUNS, RUNS)
def test_merging_content_is_measuring_the_whole(first, second, third):
    parts = (first, second, third)
    arrays = [np.concatenate([np.full(size, value, np.int8) for value, size in runs]) for runs in parts]
    left, middle, right = (np.array([details_oracle.content(array)]) for array in arrays)
    whole = details_oracle.content(np.concatenate(arrays))
    one, other = left.copy(), middle.copy()
    kernels.merge_content(one, middle)
    kernels.merge_content(one, right)
    kernels.merge_content(other, right)
    kernels.merge_content(left, other)
    nothing = empty(CONTENT, (1,))
    kernels.merge_content(nothing, one)
    kernels.merge_content(one, empty(CONTENT, (1,)))
    assert one == left == nothing == whole


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([("BF16", "BF16"), ("F32", "F32"), ("F32", "BF16"), ("I8", "I8")]),
    st.lists(st.integers(0, 60), min_size=2, max_size=2).map(sorted),
    st.integers(0, 2**32),
)
def test_merging_bits_is_measuring_the_whole(names, cuts, seed):
    before = noise(names[0], 60, seed)
    after = step(before, seed + 1) if names[0] == names[1] else noise(names[1], 60, seed + 1)
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, 60], strict=True):
        row = details_oracle.bitwise(before[start:stop], after[start:stop])
        for field in ("first", "flip_index", "miscast_index"):
            row[field] += start if row[field] >= 0 else 0
        parts.append(np.array([row]))
    left, middle, right = parts
    other = middle.copy()
    kernels.merge_bitwise(other, right)
    together = left.copy()
    kernels.merge_bitwise(together, other)
    kernels.merge_bitwise(left, middle)
    kernels.merge_bitwise(left, right)
    assert left == together == details_oracle.bitwise(before, after)


@pytest.mark.parametrize("name", NAMES)
def test_bins_hold_every_finite_value_once(name):
    members = [noise(name, 9001, 19), noise(name, 9001, 20)]
    into = np.zeros((2, 2**16), np.int64)
    data = [raw(one) for one in members]
    arena, dtype = np.frombuffer(b"".join(data), np.uint8).copy(), dtype_of(name)
    bits, codes = integers(0, 8 * len(data[0])), integers(dtype.code, dtype.code)
    kernels.count_bins(arena, 2 * BLOCK, bits, codes, into)
    kernels.count_bins(arena, 9001 - 2 * BLOCK, bits + 2 * BLOCK * dtype.bits, codes, into)
    for bins, member in zip(into, members, strict=True):
        expected = details_oracle.histogram(member)
        found = np.zeros(np.count_nonzero(bins), HISTOGRAM)
        found["bin"], found["count"] = np.flatnonzero(bins), bins[bins > 0]
        assert (found == expected).all()


def test_a_value_beyond_f32_is_counted_as_its_largest():
    array = np.array([1e300, -1e300, math.inf, math.nan])
    into = np.zeros((1, 2**16), np.int64)
    kernels.count_bins(array.view(np.uint8), 4, integers(0), integers(DTYPES["F64"].code), into)
    assert np.flatnonzero(into[0]).tolist() == [0x7F7F, 0xFF7F]


@pytest.mark.parametrize(
    "wrong",
    [{"columns": np.zeros((8, 2), COLUMN)}, {"rows": empty(ROW, (1, 1))}, {"bitwise": empty(CONTENT, (1, 0))}, {}],
)
def test_what_does_not_fit_is_refused(wrong):
    one, none, array = integers(0), integers().reshape(0, 2), np.zeros(256, np.uint8)
    place = one, one, one + 64, one[None], one[None], none, *tables(1, 1, 0), one, one + 8, one - 1
    with pytest.raises(ValueError, match=r"do not fit|beyond the last"):
        kernels.measure_details(array, *place, kernels.DetailRows(**wrong))


def test_columns_in_the_order_of_rows_are_refused():
    one, none = integers(0), integers().reshape(0, 2)
    place = one, one, one + 8, integers(0, 64)[None], integers(0, 0)[None], none, *tables(1, 2, 0), one, one + 4, one
    rows = empty(ROW, (2, 2)), empty(ROW_SHIFT, (2, 0)), np.zeros((4, 2), COLUMN), np.zeros((4, 0), COLUMN_SHIFT)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.measure_details(np.zeros(64, np.uint8), *place, kernels.DetailRows(None, None, *rows))
