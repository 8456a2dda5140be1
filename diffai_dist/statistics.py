"""Derived numbers: rows of MOMENTS and SHIFT in, columns of Python numbers out; None where a number is not defined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffai_dist.dtypes import DType, Family

_SIGN = np.uint64(2**63)
_INTEGERS = frozenset({"I8", "U8", "BOOL", "I16", "U16", "I32", "U32", "I64", "U64"})
# Sums of squares are trusted inside these bounds: magnitudes of 2^±500, beyond which squares leave float64.
_LEAST, _MOST = 2.0**-1000, 2.0**1000
# What float64 takes from the candidate's direction, per length of the baseline: d = b - a and slope * a are rounded
# relative to a. Measured: 1.2 units of 2^-53; 8 leave room.
_ROUNDING = 2.0**-50
# A distance is given where it is known to this part of itself, or to that part of the whole range where it is tiny.
_RELATIVE, _ABSOLUTE = 1e-9, 1e-18

NO_DECODER = "the dtype has no decoder: compared as bytes"
NO_ELEMENTS = "no elements"
NO_FINITE = "no finite values"
NO_SUMS = "sums of magnitudes leave float64"
NO_SQUARES = "magnitudes beyond 2^±500, whose squares leave float64"
ZERO_BASELINE = "the baseline's norm is 0"
ZERO_CANDIDATE = "the candidate's norm is 0"
ZERO_BOTH = "both norms are 0"
TOO_SHORT = "the baseline is so much longer than the candidate that float64 leaves no angle to 1e-9"
OTHER_BITS = "bits of different dtypes are not compared"
NO_SIGN = "complex numbers have no sign"


def side_columns(moments: np.ndarray, dtypes: Sequence[DType]) -> dict[str, list[Any]]:
    """Statistics of one member per row; mean, std, min and max of complex tensors are those of their parts.

    std is the population's, l2 = sqrt(sum x^2), rms = l2 / sqrt(n), over finite values; `reason` says why one is None.
    """
    decoded = _family(dtypes) != Family.BYTES
    finite = moments["finite"]
    some = decoded & (finite > 0)
    parts = np.where(_family(dtypes) == Family.COMPLEX, 2.0, 1.0)
    with np.errstate(all="ignore"):
        mean, spread = moments["mean"], moments["m2"] / finite
        squares = parts * (moments["m2"] + finite * mean**2)
        trusted = some & sound(squares, moments["abs_sum"])
        std, l2 = np.sqrt(spread), np.sqrt(squares)
        rms = l2 / np.sqrt(finite)
    columns = {name: _column(moments[name], decoded) for name in _COUNTS}
    columns |= {"mean": _column(mean, some), "absmax_index": _column(moments["absmax_index"], some)}
    columns |= {name: _column(values, trusted) for name, values in (("std", std), ("l2", l2), ("rms", rms))}
    columns |= {
        "min": _numbers(moments["low"], dtypes, some, magnitude=False),
        "max": _numbers(moments["high"], dtypes, some, magnitude=False),
        "absmax": _numbers(moments["absmax"], dtypes, some, magnitude=True),
    }
    columns["reason"] = _reasons(
        [
            (~decoded, NO_DECODER),
            (moments["count"] == 0, NO_ELEMENTS),
            (~some, NO_FINITE),
            (~(np.isfinite(mean) & np.isfinite(moments["abs_sum"])), NO_SUMS),
            (~trusted, NO_SQUARES),
        ]
    )
    return columns


_COUNTS = ("count", "nans", "posinfs", "neginfs", "zeros", "subnormals")


def change_columns(shifts: np.ndarray, baseline: Sequence[DType], candidate: Sequence[DType]) -> dict[str, list[Any]]:
    """How far each candidate moved, one pair per row; norms over what is finite on both sides, fractions over all.

    rel_l2 = |d| / |a|, rel_l1 = sum |d| / (sum |a| + sum |b|); `reason` says why one is None.
    """
    families, others = _family(baseline), _family(candidate)
    decoded = (families != Family.BYTES) & (others != Family.BYTES)
    equal = np.array(
        [before is after or before == after for before, after in zip(baseline, candidate, strict=True)], bool
    )
    signed = (families != Family.COMPLEX) & (others != Family.COMPLEX)
    count, both, d1 = shifts["count"], shifts["both"], shifts["d1"]
    some, any_element = decoded & (both > 0), decoded & (count > 0)
    moved, before, after = (sound(shifts[two], shifts[one]) for two, one in (("d2", "d1"), ("aa", "a1"), ("bb", "b1")))
    distance, known = cosine_distances(shifts)
    from_zero, to_zero = shifts["a1"] == 0, shifts["b1"] == 0
    with np.errstate(all="ignore"):
        l2, norm, sizes = np.sqrt(shifts["d2"]), np.sqrt(shifts["aa"]), shifts["a1"] + shifts["b1"]
        summed = np.isfinite(sizes) & np.isfinite(d1)
        columns = {
            "l2": _column(l2, some & moved),
            "rel_l2": _column(l2 / norm, some & moved & before & ~from_zero),
            "rel_l1": _column(d1 / sizes, some & summed & ~(from_zero & to_zero)),
            "mean_abs": _column(d1 / both, some),
            "cosine_distance": _column(distance, some & known),
            "changed_fraction": _column(shifts["changed"] / count, any_element),
            "bits_changed_fraction": _column(shifts["bits"] / count, any_element & equal),
            "sign_flip_fraction": _column(shifts["flips"] / count, any_element & signed),
        }
    columns |= {
        "max_abs": _distances(shifts["max_abs"], baseline, candidate, some),
        "max_abs_index": _column(shifts["max_abs_index"], some),
    }
    columns["reason"] = _reasons(
        [
            (~decoded, NO_DECODER),
            (count == 0, NO_ELEMENTS),
            (~some, NO_FINITE),
            (~summed, NO_SUMS),
            (~(moved & before & after), NO_SQUARES),
            (from_zero & to_zero, ZERO_BOTH),
            (from_zero, ZERO_BASELINE),
            (to_zero, ZERO_CANDIDATE),
            (~known, TOO_SHORT),
            (~equal, OTHER_BITS),
            (~signed, NO_SIGN),
        ]
    )
    return columns


def cosine_distances(sums: Mapping[str, np.ndarray] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1 - cos of columns a1, b1, aa, bb, slope and rest as in SHIFT, and whether each is known.

    It comes from the part of the candidate that is orthogonal to the baseline, so that small angles keep their digits.
    That part is the smaller for the rounding of a long baseline: `blur` is the angle that is lost to it. Known is what
    is right to 1e-9 of itself, or to 1e-18.
    """
    with np.errstate(all="ignore"):
        norm, length = np.sqrt(sums["aa"]), np.sqrt(sums["bb"])
        cosine = np.clip((1.0 + sums["slope"]) * (norm / length), -1.0, 1.0)
        sine2 = np.minimum(sums["rest"] / sums["bb"], 1.0)
        distance: np.ndarray = np.where(cosine >= 0.0, sine2 / (1.0 + cosine), 1.0 - cosine)
        blur = _ROUNDING * (norm / length)
        sine = np.maximum(np.sqrt(sine2), blur)
        sharp = (blur <= _RELATIVE * np.where(cosine >= 0.0, sine, 1.0)) | (blur * sine <= _ABSOLUTE)
        known = sound(sums["aa"], sums["a1"]) & sound(sums["bb"], sums["b1"]) & (norm > 0.0) & (length > 0.0) & sharp
    return distance, known


def _family(dtypes: Sequence[DType]) -> np.ndarray:
    return np.array([dtype.family for dtype in dtypes], np.int64)


def sound(squares: Any, absolutes: Any) -> Any:
    """Whether a sum of squares can be trusted, given the sum of magnitudes: neither overflown nor lost."""
    return (absolutes == 0.0) | ((squares >= _LEAST) & (squares <= _MOST))


def _column(values: np.ndarray, defined: np.ndarray) -> list[Any]:
    """Python numbers; None where not defined or not finite."""
    if values.dtype.kind == "f":
        defined = defined & np.isfinite(values)
    cells = values.astype(object)
    cells[~defined] = None
    return list(cells.tolist())


def _reasons(causes: Sequence[tuple[np.ndarray, str]]) -> list[Any]:
    """Per row the first cause that holds."""
    return list(
        np.select(
            [holds for holds, _ in causes], [np.array(why, object) for _, why in causes], np.array(None, object)
        ).tolist()
    )


def _numbers(keys: np.ndarray, dtypes: Sequence[DType], defined: np.ndarray, *, magnitude: bool) -> list[Any]:
    """What keys of extremes, or magnitudes, stand for: integers of integer dtypes, floats else."""
    names = np.array([dtype.name for dtype in dtypes], object)
    words = keys if magnitude else np.where(keys & _SIGN, keys ^ _SIGN, ~keys)
    cells = _floats(words)
    small = defined & np.array([name in _INTEGERS for name in names], bool) & (_family(dtypes) != Family.INTEGER)
    cells[small] = _floats(words)[small].astype(np.float64).astype(np.int64).astype(object)
    for name, flip in (("I64", not magnitude), ("U64", False)):
        rows = names == name
        cells[rows] = ((keys ^ _SIGN).view(np.int64) if flip else keys)[rows].astype(object)
    return _only(cells, defined)


def _distances(
    keys: np.ndarray, baseline: Sequence[DType], candidate: Sequence[DType], defined: np.ndarray
) -> list[Any]:
    """Integers where both dtypes are integers and their difference is exact."""
    pairs = list(zip(baseline, candidate, strict=True))
    wide = np.array([Family.INTEGER in (a.family, b.family) for a, b in pairs], bool)
    exact = wide & np.array([a.name == b.name for a, b in pairs], bool)
    small = defined & ~wide & np.array([a.name in _INTEGERS and b.name in _INTEGERS for a, b in pairs], bool)
    cells = _floats(keys)
    cells[small] = cells[small].astype(np.float64).astype(np.int64).astype(object)
    cells[exact] = keys[exact].astype(object)
    return _only(cells, defined)


def _floats(words: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(words).view(np.float64).astype(object)


def _only(cells: np.ndarray, defined: np.ndarray) -> list[Any]:
    cells[~defined] = None
    return [None if cell in (np.inf, -np.inf) else cell for cell in cells.tolist()]
