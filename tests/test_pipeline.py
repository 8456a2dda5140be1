"""The whole path: the same bits wherever and however it runs, and nothing lost when a source goes bad."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from diffai_dist import storage
from diffai_dist.api import Report, compare, run
from diffai_dist.checkpoint import Checkpoint, Span, Tensor
from diffai_dist.cluster import Place
from diffai_dist.collect import Collector
from diffai_dist.comparison import Pair, compare_members
from diffai_dist.errors import CheckpointError, UsageError
from diffai_dist.execute import Outcome, measure
from diffai_dist.formats import open_checkpoint
from diffai_dist.judging import tensor_records
from diffai_dist.opening import pair_of
from diffai_dist.partials import BLOCK, DETAILS
from diffai_dist.plan import Plan, Unit, make_plan
from diffai_dist.records import Measurements
from diffai_dist.report import RENDERERS, View
from diffai_dist.run import Settings
from diffai_dist.storage import Profile
from diffai_dist.store import tensor_table


def everything(report: Report) -> tuple[str, Any]:
    """The JSON output and the table, run id and URLs left out."""
    text = "".join(RENDERERS["json"](report.sweep, View(show_identical=True)))
    table = tensor_table(report.result, "run").drop_columns(["baseline", "candidate"])
    return text, table.to_pydict()


def collected(plan: Plan) -> Measurements:
    """All units of a plan, one after another in this thread."""
    collector = Collector(plan)
    for unit in plan.units():
        outcome = measure(unit)
        collector.add(unit, outcome.rows, outcome.failures)
    return collector.measurements()


@pytest.fixture(scope="module")
def reference(pair: tuple[Path, Path]) -> tuple[str, Any]:
    return everything(compare(*map(str, pair), threads=1))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("unit_bytes", [1, 3_000_000, 2**30])
def test_threads_and_unit_sizes_change_no_bit(
    pair: tuple[Path, Path], reference: tuple[str, Any], threads: int, unit_bytes: int
) -> None:
    assert everything(compare(*map(str, pair), threads=threads, unit_bytes=unit_bytes)) == reference


@pytest.mark.parametrize("workers", [1, 3])
def test_a_cluster_changes_no_bit(pair: tuple[Path, Path], reference: tuple[str, Any], workers: int) -> None:
    assert everything(compare(*map(str, pair), workers=workers, unit_bytes=2_000_000)) == reference


@pytest.mark.parametrize("shards", [(1, 3), (4, 2)])
def test_sharding_changes_no_bit(
    tmp_path: Path, pair: tuple[Path, Path], reference: tuple[str, Any], shards: tuple[int, int]
) -> None:
    arrays = models.model()
    a = models.write_sharded(tmp_path / "a", arrays, shards[0])
    b = models.write_sharded(tmp_path / "b", models.perturbed(arrays), shards[1])
    assert everything(compare(str(a), str(b))) == reference


def test_the_size_of_the_buffer_changes_no_bit(
    pair: tuple[Path, Path], reference: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffai_dist.plan.LOCAL_ARENA", 200_000)
    assert everything(compare(*map(str, pair))) == reference


def test_another_processor_changes_no_bit(pair: tuple[Path, Path], reference: tuple[str, Any], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "diffai_dist", "compare", *map(str, pair), "-o", "json", "--show-identical"]
    generic = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | generic, check=True)
    assert done.stdout == reference[0]


def test_a_pair_inside_a_group_has_the_bits_of_the_pair_alone(pair: tuple[Path, Path], tmp_path: Path) -> None:
    third = models.write(tmp_path / "c.safetensors", models.perturbed(models.model(), 9))
    members = [open_checkpoint(str(path), Profile()) for path in (third, *pair)]

    def measured(chosen: list[Any], pairs: list[Pair]) -> Any:
        return collected(make_plan(compare_members(chosen, pairs), Profile()))

    group = measured(members, [Pair(0, 1), Pair(1, 2)])
    alone = measured(members[1:], [Pair(0, 1)])
    assert tensor_records(group, 1) == tensor_records(alone, 0)


def test_each_byte_is_read_once(pair: tuple[Path, Path]) -> None:
    opened = [open_checkpoint(str(path), Profile()) for path in pair]
    plan = make_plan(compare_members(opened, [Pair(0, 1)]), Profile(), 1_000_000)
    before = storage.traffic().bytes
    for unit in plan.units():
        measure(unit)
    total = sum(tensor.nbytes for member in opened for tensor in member.tensors.values())
    assert storage.traffic().bytes - before == total == plan.nbytes


def test_a_member_against_itself_is_read_once(pair: tuple[Path, Path]) -> None:
    member = open_checkpoint(str(pair[0]), Profile())
    plan = make_plan(compare_members([member, member], [Pair(0, 1)]), Profile())
    before = storage.traffic().bytes
    measured = collected(plan)
    nbytes = sum(tensor.nbytes for tensor in member.tensors.values())
    assert storage.traffic().bytes - before == nbytes == plan.nbytes == plan.shared_bytes
    assert {record.status for record in tensor_records(measured, 0)} == {"identical"}


def with_ties(member: Checkpoint) -> Checkpoint:
    """The checkpoint with each tensor under a second name, as where a file of torch.save has tied weights."""
    again = {f"tied.{name}": dataclasses.replace(one, name=f"tied.{name}") for name, one in member.tensors.items()}
    return dataclasses.replace(member, tensors={**member.tensors, **again})


@pytest.mark.parametrize("unit_bytes", [300_000, 2**30])
def test_tied_tensors_are_read_once_and_measured_alike(pair: tuple[Path, Path], unit_bytes: int) -> None:
    members = [with_ties(open_checkpoint(str(path), Profile())) for path in pair]
    comparison = dataclasses.replace(compare_members(members, [Pair(0, 1)]), anchor=0, elementwise=True)
    comparison = dataclasses.replace(comparison, details=DETAILS)
    plan = make_plan(comparison, Profile(), unit_bytes)
    before = storage.traffic().bytes
    measured = collected(plan)
    once = sum(tensor.nbytes for member in members for tensor in member.tensors.values()) // 2
    assert storage.traffic().bytes - before == once == plan.nbytes == plan.shared_bytes
    place = {one.name: index for index, one in enumerate(comparison.aligned)}
    ties = [(place[name], place[f"tied.{name}"]) for name in place if f"tied.{name}" in place]
    assert len(ties) * 2 == len(place)
    found = measured.details
    for name in ("moments", "shifts", "grams"):
        table = getattr(measured, name)
        assert all(table[one].tobytes() == table[other].tobytes() for one, other in ties), name
    assert found.content is not None
    assert all(found.content[one].tobytes() == found.content[other].tobytes() for one, other in ties)
    for tables in (found.rows, found.row_shifts, found.columns, found.column_shifts, found.histograms):
        assert len(tables) % 2 == 0 < len(tables)
        for tensor, column in tables:
            other = next(b if tensor == a else a for a, b in ties if tensor in (a, b))
            assert tables[tensor, column].tobytes() == tables[other, column].tobytes()
    records = {record.name: record for record in tensor_records(measured, 0)}
    alone = tensor_records(collected(make_plan(compare_members(map(untied, members), [Pair(0, 1)]), Profile())), 0)
    for record in alone:
        assert dataclasses.replace(records[f"tied.{record.name}"], name=record.name) == records[record.name] == record


def untied(member: Checkpoint) -> Checkpoint:
    tensors = {name: one for name, one in member.tensors.items() if not name.startswith("tied.")}
    return dataclasses.replace(member, tensors=tensors)


def test_an_object_that_is_gone_fails_all_ties(pair: tuple[Path, Path], tmp_path: Path) -> None:
    paths = [models.write(tmp_path / f"{side}.safetensors", models.model()) for side in "ab"]
    members = [with_ties(open_checkpoint(str(path), Profile())) for path in paths]
    paths[1].unlink()
    measured = collected(make_plan(compare_members(members, [Pair(0, 1)]), Profile()))
    records = {record.name: record for record in tensor_records(measured, 0)}
    for name in models.model():
        failed = records[name].status == "failed"
        assert failed == (records[f"tied.{name}"].status == "failed") == (members[0].tensors[name].elements > 0)


def test_small_tensors_share_requests(tmp_path: Path) -> None:
    arrays = {f"t{i}": np.full(256, i, np.float32) for i in range(2000)}
    paths = [models.write(tmp_path / f"{side}.safetensors", arrays) for side in "ab"]
    opened = [open_checkpoint(str(path), Profile()) for path in paths]
    plan = make_plan(compare_members(opened, [Pair(0, 1)]), Profile())
    before = storage.traffic().requests
    units = list(plan.units())
    for unit in units:
        measure(unit)
    assert len(units) == 1
    assert storage.traffic().requests - before <= 8


def test_self_comparison_and_symmetry(pair: tuple[Path, Path]) -> None:
    a, b = map(str, pair)
    forward, backward = compare(a, b).result, compare(b, a).result
    for one, other in zip(forward.tensors, backward.tensors, strict=True):
        assert one.baseline == other.candidate
        if one.change and other.change:
            for key in (
                "l2",
                "max_abs",
                "max_abs_index",
                "mean_abs",
                "changed_fraction",
                "rel_l1",
                "sign_flip_fraction",
            ):
                assert getattr(one.change, key) == getattr(other.change, key), (one.name, key)
    assert not compare(a, a).result.differs


def test_statuses_are_told_apart(pair: tuple[Path, Path]) -> None:
    statuses = {record.name: record.status for record in compare(*map(str, pair)).result.tensors}
    assert statuses == {
        "counts": "changed",
        "embed.weight": "changed",
        "empty": "identical",
        "mask": "removed",
        "model.layers.0.mlp.up_proj.weight": "identical",
        "model.layers.0.self_attn.q_proj.weight": "identical",
        "model.layers.1.mlp.up_proj.weight": "changed",
        "model.layers.1.self_attn.q_proj.weight": "changed",
        "model.layers.10.mlp.up_proj.weight": "changed",
        "model.norm.weight": "incomparable",
        "new": "added",
        "scalar": statuses["scalar"],
    }


def test_incomparable_tensors_still_have_both_sides_statistics(pair: tuple[Path, Path]) -> None:
    record = next(one for one in compare(*map(str, pair)).result.tensors if one.status == "incomparable")
    assert record.baseline is not None
    assert record.candidate is not None
    assert (record.baseline.count, record.candidate.count) == (256, 200)
    assert record.baseline.mean == pytest.approx(models.model()["model.norm.weight"].mean(dtype=np.float64))
    assert record.reason == "shapes differ: [256] and [200]"


# A source that goes bad under way.


def overwrite(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes()[:-8] + bytes(8))
    other.replace(path)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def spoil_before(monkeypatch: pytest.MonkeyPatch, unit: int, act: Callable[[], object]) -> None:
    """Act after the plan was made, right before the unit of that number is measured."""

    def measured(one: Unit) -> Outcome:
        if one.index == unit:
            act()
        return measure(one)

    monkeypatch.setattr("diffai_dist.pipeline.measure", measured)


@pytest.mark.parametrize("spoil", [overwrite, replace, truncate, Path.unlink], ids=lambda f: f.__name__)
@pytest.mark.parametrize("after", [0, 3])
def test_a_file_that_changes_under_way_is_reported_and_never_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], after: int
) -> None:
    arrays = models.model()
    a = models.write(tmp_path / "a.safetensors", arrays)
    b = models.write(tmp_path / "b.safetensors", models.perturbed(arrays))
    expected = {record.name: record for record in compare(str(a), str(b)).result.tensors}
    spoil_before(monkeypatch, after, lambda: spoil(b))
    report = run(pair_of(str(a), str(b)), Settings(place=Place(threads=1), unit_bytes=1))
    assert report.exit_code() == 3
    assert report.exit_code(differences_count=True) in (1, 3)
    failed = {record.name for record in report.result.tensors if record.status == "failed"}
    assert failed
    for record in report.result.tensors:
        assert record.status == "failed" or record == expected[record.name]
    assert {failure.tensor for failure in report.failures} == failed
    assert all(failure.object.endswith("b.safetensors") for failure in report.failures)
    assert report.result.coverage.not_compared["could not be read"] == len(failed)


def test_a_missing_shard_spoils_its_own_tensors_only(tmp_path: Path) -> None:
    arrays = models.model()
    a = models.write_sharded(tmp_path / "a", arrays, 3)
    b = models.write_sharded(tmp_path / "b", arrays, 3)
    (b / "model-00002-of-00003.safetensors").unlink()
    report = compare(str(a), str(b))
    statuses = [record.status for record in report.result.tensors]
    assert report.exit_code() == 3
    assert statuses.count("failed") == len(sorted(arrays)[1::3])
    assert statuses.count("identical") == len(arrays) - statuses.count("failed")
    assert "removed" not in statuses


def test_a_checkpoint_that_cannot_be_opened_is_a_failure_record(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    report = compare(str(pair[0]), str(tmp_path / "nothing.safetensors"))
    assert report.exit_code() == 3
    (record,) = report.records
    assert record["kind"] == "failure"
    assert record["object"].endswith("nothing.safetensors")
    assert json.dumps(report.to_dict())


def test_one_nan_changes_no_other_statistic(tmp_path: Path) -> None:
    arrays = {"w": np.random.default_rng(0).standard_normal((300, 4096)).astype(np.float32)}
    spoiled = {"w": arrays["w"].copy()}
    spoiled["w"][100, 7] = np.nan
    kept = np.delete(arrays["w"].ravel().astype(np.float64), 100 * 4096 + 7)
    a = models.write(tmp_path / "a.safetensors", arrays)
    b = models.write(tmp_path / "b.safetensors", spoiled)
    (record,) = compare(str(a), str(b)).result.tensors
    assert record.candidate is not None
    assert record.change is not None
    assert (record.candidate.nans, record.candidate.count) == (1, 300 * 4096)
    assert record.candidate.mean == pytest.approx(kept.mean(), rel=1e-9, abs=1e-12)
    assert record.candidate.std == pytest.approx(kept.std(), rel=1e-12)
    assert (record.change.l2, record.change.max_abs) == (0.0, 0.0)
    assert record.change.changed_fraction == 1 / (300 * 4096)


def test_epsilon_counts_small_differences_as_none_and_says_so(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 100, dtype=np.float32)
    a = models.write(tmp_path / "a.safetensors", {"w": values, "n": values})
    b = models.write(
        tmp_path / "b.safetensors", {"w": values + np.float32(1e-4), "n": np.where(values > 0.5, np.nan, values)}
    )
    with_epsilon = {record.name: record for record in compare(str(a), str(b), epsilon=1e-3).result.tensors}
    assert (with_epsilon["w"].status, with_epsilon["w"].within_epsilon) == ("identical", 1e-3)
    assert with_epsilon["n"].status == "changed"  # a NaN is no small difference
    without = {record.name: record.status for record in compare(str(a), str(b), epsilon=1e-9).result.tensors}
    assert without == {"w": "changed", "n": "changed"}


# What cannot be meant is refused before anything is read.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": float("nan")}, "epsilon"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": float("inf")}, "epsilon"),
        ({"workers": 0}, "workers is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"unit_bytes": 0}, "unit"),
        ({"workers": 1, "scheduler": "env"}, "one of them"),
        ({"include": "model.layers.0"}, "leaves none of"),
        ({"storage_options": {"key": "x", "secret": "y"}}, "no secrets; not key, secret"),
        ({"analyses": ["reasoning"]}, "unknown analysis"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_make_no_sense_are_refused(pair: tuple[Path, Path], options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compare(*map(str, pair), **options)


def test_one_glob_needs_no_list(pair: tuple[Path, Path]) -> None:
    report = compare(*map(str, pair), include="model.layers.1.*")
    assert {record.name for record in report.result.tensors} == {
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
    }


def test_failures_can_be_raised(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert compare(*map(str, pair)).raise_for_failures()
    with pytest.raises(CheckpointError, match="nothing"):
        compare(str(pair[0]), str(tmp_path / "nothing")).raise_for_failures()


def test_what_may_lie_in_a_missing_shard_is_neither_removed_nor_added(tmp_path: Path) -> None:
    """Numbered shards without an index: nobody knows which tensors the missing one holds."""
    arrays = models.model()
    whole = models.write(tmp_path / "whole.safetensors", arrays)
    folder = models.write_sharded(tmp_path / "shards", arrays, 3)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00003-of-00003.safetensors").unlink()
    for urls in ((whole, folder), (folder, whole)):
        report = compare(*map(str, urls))
        statuses = {record.status for record in report.result.tensors}
        assert statuses == {"identical", "failed"}
        assert report.exit_code() == 3


def test_no_element_is_lost_however_many_members_share_the_buffer() -> None:
    """More members than blocks of theirs fit an ordinary buffer."""
    source = storage.Source("memory://many", 0, "none")
    tensor = Tensor("w", "F64", (10_000,), (Span(source, 0, 80_000),))
    member = Checkpoint("memory://many", "safetensors", (source,), {"w": tensor})
    comparison = compare_members([member] * 300, [Pair(0, 1)])
    plan = make_plan(comparison, Profile())
    (unit,) = plan.units()
    assert unit.arena // unit.members >= 8 * BLOCK + 1
    collector = Collector(plan)
    with pytest.raises(AssertionError, match="0 of 10000 elements"):
        collector.measurements()


def test_a_path_that_is_no_utf8_can_be_stored(tmp_path: Path) -> None:
    path = models.write(tmp_path / "x.safetensors", {"w": np.zeros(3, np.float32)})
    odd = path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/x\xff.safetensors"))
    report = compare(str(odd), str(odd), store=str(tmp_path / "store"))
    assert report.tensors.num_rows == 1
