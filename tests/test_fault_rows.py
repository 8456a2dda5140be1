"""Inputs that are legal and awkward, end to end: each test carries the number of its row in the list of faults.

Rows 1-23 and 25-29 are tested where they belong, in test_formats_*, test_storage* and test_report.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import models
from diffai_dist.api import Report, compare
from diffai_dist.records import TensorRecord

F32 = np.float32
NAN, INF = F32(np.nan), F32(np.inf)


def compared(folder: Path, a: models.Arrays, b: models.Arrays) -> Report:
    return compare(str(models.write(folder / "a.safetensors", a)), str(models.write(folder / "b.safetensors", b)))


def by_name(report: Report) -> dict[str, TensorRecord]:
    return {record.name: record for record in report.result.tensors}


def test_row35_renamed_tied_transposed_reshaped_and_retyped_tensors_are_never_skipped(tmp_path: Path) -> None:
    w = np.arange(12, dtype=F32).reshape(3, 4)
    a = {"old": w, "tied": w, "wide": w, "typed": w, "square": np.eye(3, dtype=F32)}
    b = {"new": w, "wide": w.T.copy(), "typed": w.astype(np.float16), "square": np.eye(3, dtype=F32).T.copy()}
    report = compared(tmp_path, a, b)
    assert {name: record.status for name, record in by_name(report).items()} == {
        "new": "added",
        "old": "removed",
        "square": "identical",
        "tied": "removed",
        "typed": "changed",
        "wide": "incomparable",
    }
    typed = by_name(report)["typed"]
    assert typed.change is not None
    assert (typed.change.l2, typed.change.changed_fraction, typed.change.bits_changed_fraction) == (0.0, 0.0, None)
    assert sum(report.coverage.not_compared.values()) == 4
    assert report.exit_code() == 0


# One element on each side; what the pair says of it.
TABLE = [
    ("nan-nan", NAN, NAN, {"changed_fraction": 0.0, "bits_changed_fraction": 0.0, "l2": None, "max_abs": None}),
    ("nan-payload", NAN, np.uint32(0x7FC00001).view(F32), {"changed_fraction": 0.0, "bits_changed_fraction": 1.0}),
    ("number-nan", F32(1), NAN, {"changed_fraction": 1.0, "l2": None}),
    ("inf-inf", INF, INF, {"changed_fraction": 0.0, "l2": None}),
    ("inf-minus-inf", INF, -INF, {"changed_fraction": 1.0, "sign_flip_fraction": 1.0, "l2": None}),
    ("zero-minus-zero", F32(0), F32(-0.0), {"changed_fraction": 0.0, "bits_changed_fraction": 1.0, "l2": 0.0}),
    ("zero-zero", F32(0), F32(0), {"changed_fraction": 0.0, "rel_l2": None, "cosine_distance": None, "l2": 0.0}),
    ("zero-one", F32(0), F32(1), {"rel_l2": None, "rel_l1": 1.0, "l2": 1.0, "cosine_distance": None}),
    ("denormal", F32(0), F32(2.0**-149), {"changed_fraction": 1.0, "max_abs": 2.0**-149}),
    ("one-minus-one", F32(1), F32(-1), {"cosine_distance": 2.0, "sign_flip_fraction": 1.0, "rel_l2": 2.0}),
]


@pytest.mark.parametrize(("before", "after", "expected"), [r[1:] for r in TABLE], ids=["row36-" + r[0] for r in TABLE])
def test_special_values_follow_a_table(tmp_path: Path, before: F32, after: F32, expected: dict[str, float]) -> None:
    record = by_name(compared(tmp_path, {"w": np.array([before])}, {"w": np.array([after])}))["w"]
    assert record.change is not None
    assert {key: getattr(record.change, key) for key in expected} == expected
    assert record.reason is not None or None not in expected.values()
    assert record.baseline is not None
    finite = math.isfinite(before)
    assert (record.baseline.mean, record.baseline.nans) == (float(before) if finite else None, int(np.isnan(before)))


@pytest.mark.parametrize(
    ("dtype", "before", "after", "largest"),
    [
        (np.uint8, 0, 255, 255),
        (np.uint8, 255, 0, 255),
        (np.int8, -128, 127, 255),
        (np.int64, -(2**63), 2**63 - 1, 2**64 - 1),
        (np.uint64, 2**64 - 1, 0, 2**64 - 1),
        (np.bool_, False, True, 1),
    ],
    ids="row36-{}".format,
)
def test_differences_of_integers_do_not_overflow(
    tmp_path: Path, dtype: type, before: int, after: int, largest: int
) -> None:
    record = by_name(compared(tmp_path, {"w": np.array([before], dtype)}, {"w": np.array([after], dtype)}))["w"]
    assert record.change is not None
    assert record.change.max_abs == largest


def test_row36_values_whose_squares_leave_float64_give_null_and_not_a_wrong_number(tmp_path: Path) -> None:
    for scale in (1e200, 1e-200):
        record = by_name(compared(tmp_path, {"w": np.array([scale])}, {"w": np.array([2 * scale])}))["w"]
        assert record.change is not None
        assert record.baseline is not None
        assert (record.change.l2, record.baseline.l2, record.change.max_abs) == (None, None, scale)
        assert record.reason is not None
        assert "squares" in record.reason


def test_row37_a_member_against_itself_or_its_copy_is_identical(tmp_path: Path) -> None:
    arrays = models.model()
    a = models.write(tmp_path / "a.safetensors", arrays)
    copy = models.write(tmp_path / "copy.safetensors", arrays)
    link = tmp_path / "link.safetensors"
    link.symlink_to(a)
    for other in (a, copy, link):
        report = compare(str(a), str(other))
        assert {record.status for record in report.result.tensors} == {"identical"}
        assert report.exit_code(differences_count=True) == 0


def test_row37_checkpoints_without_tensors_compare_to_nothing(tmp_path: Path) -> None:
    report = compared(tmp_path, {}, {})
    assert report.records == []
    assert report.coverage.tensors == 0
    assert report.exit_code() == 0
