"""Derived numbers: right where they are defined, None with a reason where they are not."""

from __future__ import annotations

import decimal
import json
import math
from fractions import Fraction

import numpy as np
import pytest

from diffai_dist.dtypes import dtype_of
from diffai_dist.statistics import TOO_SHORT, change_columns, side_columns
from test_kernels import NAMES, noise, rows, weights


def columns(before, after):
    """Both sides' columns and the pair's, as one dict each."""
    moments, shifts = rows([before, after])
    dtypes = [dtype_of(name) for name, _ in (before, after)]
    sides = side_columns(moments, dtypes)
    return sides, {name: cells[0] for name, cells in change_columns(shifts, dtypes[:1], dtypes[1:]).items()}


def floats(values, name="F64"):
    return name, np.array(values, {"F64": np.float64, "F32": np.float32, "I64": np.int64}[name]).tobytes()


def test_statistics_agree_with_numpy():
    a, b = (weights(10_000, seed).astype(np.float64) for seed in (1, 2))
    sides, change = columns(floats(a), floats(b))
    for index, x in enumerate((a, b)):
        expected = {"mean": x.mean(), "std": x.std(), "min": x.min(), "max": x.max(), "absmax": abs(x).max()}
        expected |= {"l2": np.linalg.norm(x), "rms": np.sqrt((x * x).mean()), "absmax_index": abs(x).argmax()}
        for name, value in expected.items():
            assert sides[name][index] == pytest.approx(value, rel=1e-10), name
    d = b - a
    expected = {"l2": np.linalg.norm(d), "rel_l2": np.linalg.norm(d) / np.linalg.norm(a), "max_abs": abs(d).max()}
    expected |= {"rel_l1": abs(d).sum() / (abs(a).sum() + abs(b).sum()), "mean_abs": abs(d).mean()}
    expected |= {"cosine_distance": 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), "changed_fraction": 1.0}
    expected |= {"sign_flip_fraction": (a * b < 0).mean(), "max_abs_index": abs(d).argmax()}
    for name, value in expected.items():
        assert change[name] == pytest.approx(value, rel=1e-10), name


def test_moments_of_complex_tensors_are_of_parts_and_norms_of_moduli():
    values = (weights(5000, 1) + 1j * weights(5000, 2)).astype(np.complex64)
    parts = values.view(np.float32).astype(np.float64)
    sides, _ = columns(("C64", values.tobytes()), ("C64", values.tobytes()))
    assert sides["std"][0] == pytest.approx(parts.std())
    assert sides["l2"][0] == pytest.approx(np.linalg.norm(values.astype(complex)))
    assert sides["rms"][0] == pytest.approx(np.linalg.norm(values.astype(complex)) / math.sqrt(5000))


@pytest.mark.parametrize(("factor", "distance"), [(1.5, 0.0), (-1.0, 2.0), (1.0, 0.0), (-0.25, 2.0)])
def test_the_angle_to_a_multiple_is_known_to_rounding(factor, distance):
    a = weights(20_000, 5).astype(np.float64)
    _, change = columns(floats(a), floats(factor * a))
    assert change["cosine_distance"] == pytest.approx(distance, abs=1e-28 if distance == 0.0 else 1e-12)


def test_a_tiny_angle_keeps_its_digits():
    a = np.array([1.0, 0.0, 2.0])
    _, change = columns(floats(a), floats(a + np.array([0.0, 1e-9, 0.0])))
    assert change["cosine_distance"] == pytest.approx(1e-18 / 5 / 2, rel=1e-6)


def test_a_candidate_far_shorter_than_the_baseline_has_no_angle():
    _, change = columns(floats([1e12, 1.0]), floats([1.0, 1.0]))
    assert change["cosine_distance"] is None
    assert "no angle" in change["reason"]


def exact_distance(a, b):
    """1 - cos to 60 digits."""
    aa, bb, ab = (
        sum(Fraction(x) * Fraction(y) for x, y in zip(*pair, strict=True)) for pair in ((a, a), (b, b), (a, b))
    )
    square = ab * ab / (aa * bb)
    with decimal.localcontext(prec=60):
        cosine = (decimal.Decimal(square.numerator) / square.denominator).sqrt()
        return 1 - cosine if ab > 0 else 1 + cosine


@pytest.mark.parametrize("bits", range(0, 27, 2))
def test_a_cosine_distance_is_right_to_1e_9_or_not_given(bits):
    """Of random angles, near and opposite directions too, for baselines up to 2^26 times as long."""
    noise, given_at = np.random.default_rng(bits), 0
    for _ in range(150):
        a = noise.standard_normal(noise.integers(2, 12))
        b = noise.choice([-1, 1]) * a + 10.0 ** noise.uniform(-8, 1) * noise.standard_normal(a.size)
        _, change = columns(floats(a), floats(b * 2.0**-bits))
        found = change["cosine_distance"]
        if found is None:
            assert change["reason"] == TOO_SHORT
            continue
        given_at += 1
        expected = exact_distance(a.tolist(), (b * 2.0**-bits).tolist())
        assert abs(decimal.Decimal(found) - expected) <= max(
            expected * decimal.Decimal("1e-9"), decimal.Decimal("1e-18")
        )
    assert given_at == 150 if bits <= 4 else given_at > 20 if bits <= 16 else True


def test_sums_that_leave_float64_are_none_with_that_reason():
    sides, change = columns(floats([1e308] * 4), floats([-1e308, 1e308, 1e308, 1e308]))
    for cells in (change, {name: column[0] for name, column in sides.items()}):
        assert cells["reason"] == "sums of magnitudes leave float64"
    assert (sides["mean"][0], change["rel_l1"], change["mean_abs"], change["l2"]) == (None, None, None, None)
    assert (sides["max"][0], change["changed_fraction"], change["max_abs_index"]) == (1e308, 0.25, 0)


@pytest.mark.parametrize("name", ["I64", "U64", "I32", "U8"])
def test_integer_dtypes_give_integers(name):
    kind = {"I64": np.int64, "U64": np.uint64, "I32": np.int32, "U8": np.uint8}[name]
    low, high = int(np.iinfo(kind).min), int(np.iinfo(kind).max)
    sides, change = columns(
        (name, np.array([low, high], kind).tobytes()), (name, np.array([high, low], kind).tobytes())
    )
    assert (sides["min"][0], sides["max"][0], sides["absmax"][0]) == (low, high, max(-low, high))
    assert change["max_abs"] == high - low
    assert {type(cell) for cell in (*sides["min"], *sides["absmax"], change["max_abs"])} == {int}


@pytest.mark.parametrize(
    ("before", "after", "missing", "reason"),
    [
        ([math.nan], [1.0], {"l2", "rel_l2", "max_abs", "cosine_distance"}, "no finite values"),
        ([0.0], [1.0], {"rel_l2", "cosine_distance"}, "the baseline's norm is 0"),
        ([1.0], [0.0], {"cosine_distance"}, "the candidate's norm is 0"),
        ([0.0], [0.0], {"rel_l1", "rel_l2", "cosine_distance"}, "both norms are 0"),
        ([1e200], [1.0], {"l2", "rel_l2", "cosine_distance"}, "magnitudes beyond 2^±500, whose squares leave float64"),
        ([1e-200], [0.0], {"l2", "rel_l2", "cosine_distance"}, "magnitudes beyond 2^±500, whose squares leave float64"),
        ([], [], {"l2", "changed_fraction"}, "no elements"),
        ([1.0], [2.0], set(), None),
    ],
)
def test_what_is_not_defined_is_none_with_a_reason(before, after, missing, reason):
    _, change = columns(floats(before), floats(after))
    assert missing <= {name for name, cell in change.items() if cell is None}
    assert change["reason"] == reason


def test_a_dtype_without_decoder_has_no_statistics():
    sides, change = columns(("F6_E2M3", b"ab"), ("F6_E2M3", b"ac"))
    assert {cell for name, cells in sides.items() if name != "reason" for cell in cells} == {None}
    assert {cell for name, cell in change.items() if name != "reason"} == {None}
    assert "no decoder" in change["reason"]


@pytest.mark.parametrize("name", NAMES)
def test_every_column_is_json(name):
    sides, change = columns((name, noise(name, 200, 1)), (name, noise(name, 200, 2)))
    json.dumps([sides, change], allow_nan=False)
