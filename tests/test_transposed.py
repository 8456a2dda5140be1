"""A matrix stored the other way round, compared as its transpose: the same numbers, its bytes read once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import models
from diffai_dist.checkpoint import Checkpoint
from diffai_dist.cluster import Place
from diffai_dist.comparison import Comparison, Pair, compare_members
from diffai_dist.formats import open_checkpoint
from diffai_dist.partials import DETAILS
from diffai_dist.pipeline import run_plan
from diffai_dist.plan import make_plan
from diffai_dist.records import Measurements
from diffai_dist.schemes.strided import Strided, transposed
from diffai_dist.storage import Profile


def opened(path: Path, *, turn: bool = False) -> Checkpoint:
    checkpoint = open_checkpoint(str(path), Profile())
    if not turn:
        return checkpoint
    tensors = {name: transposed(one) or one for name, one in checkpoint.tensors.items()}
    return dataclasses.replace(checkpoint, tensors=tensors)


def compared(baseline: Checkpoint, candidate: Checkpoint) -> Comparison:
    return dataclasses.replace(compare_members((baseline, candidate), (Pair(0, 1),)), details=DETAILS)


def measured(comparison: Comparison, unit_bytes: int | None = None, arena: int = 2**22) -> tuple[Measurements, int]:
    plan = dataclasses.replace(make_plan(comparison, Profile(), unit_bytes), arena=arena)
    found, reading = run_plan(plan, Place(threads=1))
    return found, reading.nbytes


@pytest.fixture
def matrices() -> models.Arrays:
    generator = np.random.default_rng(5)
    return {
        "wide.weight": generator.standard_normal((300, 4097)).astype(np.float32),  # two leaves
        "half.weight": generator.standard_normal((65, 33)).astype(ml_dtypes.bfloat16),
        "square.weight": generator.standard_normal((64, 64)).astype(np.float64),
        "column.weight": generator.standard_normal((5000, 1)).astype(np.float16),
        "bias": generator.standard_normal(7).astype(np.float32),
    }


@pytest.mark.parametrize("unit_bytes", [1, None])
@pytest.mark.parametrize("arena", [2 * 16 * 4096 + 64, 2**22])
def test_all_numbers_are_those_of_the_transpose(
    tmp_path: Path, matrices: models.Arrays, unit_bytes: int | None, arena: int
) -> None:
    moved = {name: (array + array * np.float32(0.01)).astype(array.dtype) for name, array in matrices.items()}
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "turned.safetensors")]
    turned = {name: array.T if array.ndim == 2 else array for name, array in moved.items()}
    for path, arrays in zip(paths, (matrices, moved, turned), strict=True):
        models.write(path, arrays)
    plain, nbytes = measured(compared(opened(paths[0]), opened(paths[1])))
    found, read = measured(compared(opened(paths[0]), opened(paths[2], turn=True)), unit_bytes, arena)
    assert read == nbytes
    assert found.moments.tobytes() == plain.moments.tobytes()
    assert found.shifts.tobytes() == plain.shifts.tobytes()
    assert found.details.row_shifts.keys() == plain.details.row_shifts.keys()
    for key, rows in plain.details.row_shifts.items():
        assert found.details.row_shifts[key].tobytes() == rows.tobytes()


def test_its_bytes_are_read_once_and_what_is_gone_fails_alone(tmp_path: Path, matrices: models.Arrays) -> None:
    paths = models.write(tmp_path / "a.safetensors", matrices), tmp_path / "turned.safetensors"
    models.write(paths[1], {name: array.T if array.ndim == 2 else array for name, array in matrices.items()})
    comparison = compared(opened(paths[0]), opened(paths[1], turn=True))
    with open(paths[1], "r+b") as file:
        file.truncate(paths[1].stat().st_size - 100)
    found, _ = measured(comparison)
    failed = {comparison.aligned[tensor].name for tensor, member in found.failures if member == 1}
    assert failed == set(matrices)  # the object is no longer what was pinned
    assert (found.shifts["count"] == 0).all()


def test_plain_neighbours_keep_clear_of_what_is_decoded_between_them(tmp_path: Path) -> None:
    generator = np.random.default_rng(6)
    first = {name: generator.standard_normal((16, 16)).astype(np.float32) for name in "abc"}
    baseline = opened(models.write(tmp_path / "a.safetensors", first))
    # In the candidate's file c follows a at once; measured in the order of the baseline, the turned b comes between.
    stored = {"a": first["a"], "c": first["c"], "z": first["b"]}
    candidate = opened(models.write(tmp_path / "b.safetensors", stored)).tensors
    turned = transposed(candidate["z"])
    assert turned is not None
    tensors = {"a": candidate["a"], "b": turned, "c": candidate["c"]}
    found, _ = measured(compared(baseline, dataclasses.replace(baseline, tensors=tensors)))
    assert [one.name for one in found.comparison.aligned] == ["a", "b", "c"]
    assert [count > 0 for count in found.shifts["changed"][:, 0]] == [False, True, False]


def test_what_cannot_be_turned() -> None:
    from diffai_dist.checkpoint import Span, Tensor
    from diffai_dist.storage import Source

    def tensor(shape: tuple[int, ...], dtype: str = "F32", scheme: Strided | None = None, nbytes: int = 24) -> Tensor:
        return Tensor("w", dtype, shape, (Span(Source("/a", 2**40, "v"), 0, nbytes),), scheme)

    turned = Strided("F32", (1, 3))
    assert transposed(tensor((2, 3))) == tensor((3, 2), scheme=turned)
    for other in (
        tensor((6,)),
        tensor((1, 2, 3)),
        tensor((4, 4), "F4"),
        tensor((2, 3), scheme=turned),
        tensor((2**14, 2**14), nbytes=2**30 + 1),
    ):
        assert transposed(other) is None


def test_a_plan_knows_that_it_is_in_memory_as_a_whole(tmp_path: Path, matrices: models.Arrays) -> None:
    path = models.write(tmp_path / "a.safetensors", matrices)
    plain = make_plan(compared(opened(path), opened(path)), Profile())
    turned = make_plan(compared(opened(path), opened(path, turn=True)), Profile())
    more = turned.peak_memory(1) - plain.peak_memory(1)
    assert more >= matrices["wide.weight"].nbytes - 2**21  # of columns there are others
