"""What only some analyses need, through the whole path: as NumPy has it, and the same bits however it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from details_oracle import measured
from diffai_dist import storage
from diffai_dist.api import Report, sweep
from diffai_dist.cluster import Place
from diffai_dist.collect import Collector
from diffai_dist.errors import Failure
from diffai_dist.execute import measure
from diffai_dist.opening import open_group, pair_of
from diffai_dist.partials import DETAILS
from diffai_dist.pipeline import run_plan
from diffai_dist.plan import Plan, make_plan
from diffai_dist.records import Details, Measurements
from diffai_dist.rows import DTYPES, Rows, split
from diffai_dist.run import Settings
from diffai_dist.storage import Profile
from diffai_dist.store.units import decode, encode

EXACT = ("finite", "zeros", "absmax", "both", "changed", "bin", "count")


def planned(members: tuple[Path, Path], details: tuple[str, ...] = DETAILS, unit_bytes: int | None = None) -> Plan:
    group = dataclasses.replace(pair_of(*map(str, members)), details=details)
    comparison = open_group(group, Profile()).comparison(Settings().selection)
    assert comparison is not None
    return make_plan(comparison, Profile(), unit_bytes)


def details_of(plan: Plan) -> Details:
    return run_plan(plan, Place(threads=1))[0].details


def same(some: Details, others: Details) -> None:
    """To the bit."""
    for field in dataclasses.fields(Details):
        left, right = getattr(some, field.name), getattr(others, field.name)
        if isinstance(left, Mapping):
            assert left.keys() == right.keys()
            assert all(left[key].tobytes() == right[key].tobytes() for key in left), field.name
        else:
            assert (left is None) == (right is None)
            assert left is None or left.tobytes() == right.tobytes(), field.name


@pytest.fixture(scope="module")
def whole(pair: tuple[Path, Path]) -> Details:
    return details_of(planned(pair))


def test_they_are_what_numpy_computes(pair: tuple[Path, Path], whole: Details) -> None:
    plan = planned(pair)
    before, after = models.model(), models.perturbed(models.model())
    oracle: Measurements = measured([before, after], ((0, 1),))
    names = [one.name for one in plan.comparison.aligned]
    assert names == [one.name for one in oracle.comparison.aligned]
    for table in ("rows", "row_shifts", "columns", "column_shifts", "histograms"):
        found = getattr(whole, table)
        expected = {key: rows for key, rows in getattr(oracle.details, table).items() if len(rows)}
        assert found.keys() == expected.keys(), table
        for key in found:
            for field in found[key].dtype.names:
                kind = {"rtol": 0, "atol": 0} if field in EXACT else {"rtol": 1e-12, "atol": 1e-9}
                np.testing.assert_allclose(found[key][field], expected[key][field], err_msg=f"{table} {key}", **kind)
    assert whole.content is not None
    assert whole.bitwise is not None
    assert oracle.details.content is not None
    assert oracle.details.bitwise is not None
    for field in set(whole.content.dtype.names or ()) - {"digest"}:
        np.testing.assert_array_equal(whole.content[field], oracle.details.content[field], err_msg=field)
    for field in whole.bitwise.dtype.names or ():
        np.testing.assert_array_equal(whole.bitwise[field], oracle.details.bitwise[field], err_msg=field)


@pytest.mark.parametrize("unit_bytes", [1, 3_000_000, 2**30])
def test_the_cut_into_units_changes_no_bit(pair: tuple[Path, Path], whole: Details, unit_bytes: int) -> None:
    same(details_of(planned(pair, unit_bytes=unit_bytes)), whole)


def test_neither_do_shards_nor_processes(tmp_path: Path, whole: Details) -> None:
    folders = tmp_path / "a", tmp_path / "b"
    for folder, arrays in zip(folders, (models.model(), models.perturbed(models.model())), strict=True):
        models.write_sharded(folder, arrays, 3)
    same(run_plan(planned(folders, unit_bytes=2_000_000), Place(workers=2))[0].details, whole)


def test_a_small_arena_changes_no_bit(pair: tuple[Path, Path], whole: Details) -> None:
    """Pieces of a block or two, begun inside rows."""
    same(details_of(dataclasses.replace(planned(pair), arena=2 * 16 * 4096 + 64)), whole)


def test_what_is_not_asked_for_is_not_there(pair: tuple[Path, Path], whole: Details) -> None:
    assert details_of(planned(pair, ())) == Details()
    only = details_of(planned(pair, ("content", "rows")))
    assert only.bitwise is None
    assert not only.columns
    assert not only.histograms
    assert only.rows.keys() == whole.rows.keys()


def test_codes_are_the_bins_of_tensors_of_8_bits(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    arrays = {"int": generator.integers(-128, 128, (40, 50)).astype(np.int8), "float": np.ones((4, 4), np.float32)}
    member = models.write(tmp_path / "a.safetensors", arrays)
    found = details_of(planned((member, member), ("codes",))).histograms
    assert {key[0] for key in found} == {1}  # natural order: float, int
    values, counts = np.unique(arrays["int"], return_counts=True)
    patterns = {
        int(value.astype(np.float32).view(np.uint32) >> 16): count for value, count in zip(values, counts, strict=True)
    }
    assert {int(one["bin"]): int(one["count"]) for one in found[1, 0]} == patterns


def test_many_small_tensors_share_the_arrays_of_their_unit(tmp_path: Path) -> None:
    noise = np.random.default_rng(5)
    states = [{f"h.{i}.w": noise.normal(size=(3, 16)).astype(np.float32) for i in range(300)} for _ in range(2)]
    plan = planned(tuple(models.write(tmp_path / f"{i}.safetensors", one) for i, one in enumerate(states)))
    found = details_of(plan)
    for name, columns in (("rows", 2), ("row_shifts", 1), ("columns", 2), ("column_shifts", 1)):
        tables = getattr(found, name)
        assert len(tables) == len(list(tables)) == 300 * columns
        holders = [one.base for one in tables.values()]
        assert len({id(one) for one in holders}) <= columns * len(list(plan.units())), name
        assert all(one is not None for one in holders)
    for (i, member), rows in found.rows.items():
        weights = states[member][plan.comparison.aligned[i].name].astype(np.float64)
        np.testing.assert_allclose(rows["squares"], (weights**2).sum(axis=1), rtol=1e-12)


def test_unit_records_hold_them(pair: tuple[Path, Path]) -> None:
    for unit in planned(pair, unit_bytes=1_000_000).units():
        rows = measure(unit).rows
        key, _, again = decode(encode(unit.key, rows))
        assert key == unit.key
        assert again.grams is None
        for name in DTYPES.keys() - {"grams"}:
            one, other = getattr(rows, name), getattr(again, name)
            assert (one.tobytes(), one.shape) == (other.tobytes(), other.shape), name


def test_some_subtrees_of_a_unit(pair: tuple[Path, Path]) -> None:
    (unit,) = planned(pair, unit_bytes=2**30).units()
    rows = measure(unit).rows
    order = list(range(len(unit.subtrees)))[::-2]
    for place, subtree in enumerate(order):
        one, some = rows[[subtree]], rows[order]
        assert [part.tobytes() for part in split(one, 0)] == [part.tobytes() for part in split(some, place)]
    assert rows[order].heights is not None
    assert isinstance(rows[[]], Rows)


def test_what_failed_tells_nothing(pair: tuple[Path, Path], tmp_path: Path, whole: Details) -> None:
    """Cut off behind the plan: what lay in the part that is gone has no details, all else what it had."""
    copies = tuple(models.write(tmp_path / f"{side}.safetensors", arrays) for side, arrays in enumerate(
        (models.model(), models.perturbed(models.model()))))  # fmt: skip
    plan = planned(copies, unit_bytes=1_000_000)
    collector = Collector(plan)
    failed: set[tuple[int, int]] = set()
    for index, unit in enumerate(plan.units()):
        outcome = measure(unit)
        problems = tuple((0, 1, failure()) for _ in range(index == 1))
        failed |= {(place, 1) for place in plan.lanes[unit.subtrees[0].lane].places for _ in problems}
        collector.add(unit, outcome.rows, problems)
    found = collector.measurements().details
    ((tensor, member),) = failed
    for table in ("rows", "columns", "histograms"):
        assert getattr(found, table).keys() == getattr(whole, table).keys() - {(tensor, member)}
    for table in ("row_shifts", "column_shifts"):
        assert getattr(found, table).keys() == getattr(whole, table).keys() - {(tensor, 0)}
    assert found.content is not None
    assert found.bitwise is not None
    assert found.content["count"][tensor, member] == 0
    assert found.bitwise["count"][tensor, 0] == 0


def failure() -> Failure:
    return Failure("E1103", "x.safetensors", None, "4096 bytes", "none", "Try again")


def test_the_plan_says_what_they_take(pair: tuple[Path, Path]) -> None:
    """Rows of 96 bytes and columns of 24 of two members and a pair, twice while they are put together."""
    small, large = planned(pair, ()).peak_memory(1), planned(pair, ("columns",)).peak_memory(1)
    plan = planned(pair, ("columns",))
    heights, widths = sum(lane.height for lane in plan.lanes), sum(lane.width for lane in plan.lanes)
    assert heights > 2000
    assert large - small >= 2 * (88 * heights + 24 * widths)
    assert large - small < 2**24


def test_storage_is_asked_no_more_for_them(pair: tuple[Path, Path]) -> None:
    """One pass: the same bytes in the same requests."""
    bare = run_plan(planned(pair, ()), Place(threads=1))[1]
    full = run_plan(planned(pair), Place(threads=1))[1]
    assert (full.nbytes, storage.traffic().retries) == (bare.nbytes, 0)


NEEDING = ["anomaly_detection", "experiment_reproducibility", "duplicate_detection"]


def steps(folder: Path, number: int) -> list[str]:
    paths, arrays = [], models.model()
    for step in range(number):
        paths.append(str(models.write(folder / f"step-{step}.safetensors", arrays)))
        arrays = models.perturbed(arrays, seed=step) | {name: arrays[name] for name in ("mask", "model.norm.weight")}
    return paths


def told(report: Report) -> list[dict[str, Any]]:
    return [record for record in report.records if record["kind"] == "analysis"]


def test_the_next_night_measures_only_what_is_new(tmp_path: Path) -> None:
    """Details are kept beside measurements, and are the same from there."""
    paths, asked = steps(tmp_path / "run", 4), {"analyses": NEEDING, "pairs": "consecutive"}
    store = str(tmp_path / "store")
    sweep(checkpoints=paths[:3], store=store, **asked)
    night = sweep(checkpoints=paths, store=store, **asked)
    fresh = sweep(checkpoints=paths, **asked)
    assert told(night) == told(fresh)
    assert len(told(fresh)) >= 5
    assert night.reading.nbytes < 0.55 * fresh.reading.nbytes  # two of four members
    assert night.measurements is not None
    assert fresh.measurements is not None
    same(night.measurements.details, fresh.measurements.details)


def test_details_that_were_not_kept_are_measured(tmp_path: Path) -> None:
    """What an earlier night did not ask for is not taken from it; damaged files are measured again."""
    paths, store = steps(tmp_path / "run", 2), tmp_path / "store"
    sweep(checkpoints=paths, store=str(store), pairs="consecutive")
    before = set(store.glob("measurements/*"))
    first = sweep(checkpoints=paths, store=str(store), pairs="consecutive", analyses=NEEDING)
    assert first.reading.nbytes > 0
    made = set(store.glob("measurements/*")) - before
    assert len(made) == 3  # details of two members and a pair
    for path in made:
        path.write_bytes(path.read_bytes()[:-9])
    again = sweep(checkpoints=paths, store=str(store), pairs="consecutive", analyses=[*NEEDING, "change_summary"])
    assert again.reading.nbytes == first.reading.nbytes
    last = sweep(checkpoints=paths, store=str(store), pairs="consecutive", analyses=[*NEEDING, "layer_impact"])
    assert last.reading.nbytes == 0
    assert [one for one in told(last) if one["name"] in NEEDING] == [
        one for one in told(first) if one["name"] in NEEDING
    ]
