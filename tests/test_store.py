"""What a run leaves behind is readable without our code, and whole or not trusted."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings

import sweeps
from diffai_dist import storage
from diffai_dist.errors import StoreError
from diffai_dist.records import SCHEMA_VERSION, Measurements, Sweep
from diffai_dist.report import RENDERERS, View
from diffai_dist.storage import Profile
from diffai_dist.store import TABLES, ReportStore, all_tensors, tensor_table
from diffai_dist.store.finishing import compose
from results import change, side, tensor

# Smaller sweeps are no easier to read, and a shrinking takes minutes.
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
RUN = "00000000000000a1"


def measured() -> Measurements:
    tensors = {"w": ("F32", (3, 4)), "empty": ("F32", (0, 2))}
    return sweeps.measured(sweeps.checkpoint(1, tensors), sweeps.checkpoint(2, tensors))


def finish(store: ReportStore, sweep: Sweep, **plan: Any) -> dict[str, Any]:
    frozen = store.begin(sweeps.plan_of(sweep, **plan))
    return store.finish(frozen, sweep, measured(), sweeps.SETTINGS, {"reading": {"nbytes": 1}})


@pytest.fixture
def store(tmp_path: Path) -> ReportStore:
    return ReportStore(str(tmp_path), Profile())


def rendered(sweep: Sweep) -> list[str]:
    view = View(show_identical=True, verbose=True)
    return ["".join(render(sweep, view)) for render in RENDERERS.values()]


def same(one: Sweep, other: Sweep) -> bool:
    """Equal to the type of every number and the sign of every zero."""
    return repr(replace(one, results=tuple(one.results))) == repr(replace(other, results=tuple(other.results)))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The layout


def test_a_run_lands_in_the_layout_of_the_store(tmp_path: Path, store: ReportStore) -> None:
    marker = finish(store, sweeps.sweep())
    assert json.loads((tmp_path / f"runs/{RUN}/_SUCCESS.json").read_text()) == marker
    fixed = {f"runs/{RUN}/_SUCCESS.json", f"runs/{RUN}/plan.json"}
    assert set(files(tmp_path)) == {part["path"] for part in marker["parts"]} | fixed
    for part in marker["parts"]:
        data = (tmp_path / part["path"]).read_bytes()
        digest = hashlib.blake2b(data, digest_size=32).hexdigest()
        assert (len(data), digest) == (part["size"], part["blake2b"])
        assert digest[:16] in part["path"] or part["path"].startswith("measurements/")
    days = {part["path"].rpartition("/")[0] for part in marker["parts"] if part["path"].startswith("tables/")}
    assert days == {f"tables/{table}/date=2026-03-04" for table in TABLES}
    assert (marker["complete"], marker["exit_code"], marker["reading"]) == (True, 0, {"nbytes": 1})


def test_the_day_of_the_tables_is_the_one_the_run_began_on_in_utc(store: ReportStore) -> None:
    marker = finish(store, sweeps.sweep(), started="2026-03-04T23:30:00-02:00")
    assert sum("/date=2026-03-05/" in part["path"] for part in marker["parts"]) == len(TABLES)


def test_the_tables_have_the_documented_columns_and_are_read_by_others(tmp_path: Path, store: ReportStore) -> None:
    finish(store, sweeps.sweep())
    for table, columns in TABLES.items():
        (path,) = tmp_path.glob(f"tables/{table}/date=*/*.parquet")
        assert pq.read_schema(path).names == list(columns)
        assert set(pd.read_parquet(path)["run"]) == {RUN}
    (path,) = tmp_path.glob("tables/tensors/date=*/*.parquet")
    assert pq.read_table(path, partitioning=None).equals(all_tensors(sweeps.sweep().results, RUN))
    largest = duckdb.sql(
        f"select baseline, name, rel_l2, l2_error, method from read_parquet('{tmp_path}/tables/tensors/*/*.parquet') "
        "where status = 'changed' order by rel_l2 desc, baseline limit 1"
    ).fetchall()
    assert largest == [("step-000100", "h.1", 0.5, 1e-12, "gram")]
    (run,) = pd.read_parquet(next(tmp_path.glob("tables/runs/*/*.parquet"))).to_dict("records")
    assert run["started"] == datetime(2026, 3, 4, 23, 30, tzinfo=UTC)
    assert (run["name"], run["members"], run["pairs"], run["schema_version"]) == ("nightly", 3, 2, SCHEMA_VERSION)
    member = pq.read_table(next(tmp_path.glob("tables/members/*/*.parquet")), partitioning=None).to_pylist()[1]
    assert (member["member"], member["position"], member["step"]) == ("step-000200", 1, 200)
    assert member["objects"] == [
        {"url": "s3://bucket/run7/step-000200/model.safetensors", "size": 64, "version": "etag:200"}
    ]
    pair = pd.read_parquet(next(tmp_path.glob("tables/pairs/*/*.parquet"))).iloc[1]
    assert (pair["baseline"], pair["candidate"], pair["rel_l2"]) == ("step-000200", "step-000300", 0.25)
    assert (pair["tensors"], pair["tensors_changed"], pair["tensors_added"]) == (3, 2, 1)
    findings = pd.read_parquet(next(tmp_path.glob("tables/findings/*/*.parquet")))
    assert list(findings["rule"]) == ["stale", *["small", "dominant-block"] * 2]
    assert list(findings["candidate"]) == ["step-000200", *["step-000200"] * 2, *["step-000300"] * 2]


def test_what_a_column_cannot_hold_is_whole_in_exact() -> None:
    integers = side(dtype="I64", min=-(2**63), max=2**63 - 1, absmax=2**63, mean=-0.0)
    records = tensor("\ud800", baseline=integers, change=change(max_abs=2**64 - 1)), tensor("plain")
    rows = tensor_table(replace(sweeps.sweep().results[0], tensors=records), RUN).to_pylist()
    assert [(row["name"], row["baseline_max"]) for row in rows] == [("\\ud800", 2.0**63), ("plain", 0.09)]
    whole = {"name": "\ud800", "baseline_min": -(2**63), "baseline_max": 2**63 - 1, "baseline_absmax": 2**63}
    assert [row["exact"] and json.loads(row["exact"]) for row in rows] == [whole | {"max_abs": 2**64 - 1}, None]


def test_what_could_not_be_read_is_with_its_member(tmp_path: Path, store: ReportStore) -> None:
    marker = finish(store, sweeps.sweep(failures=[sweeps.BROKEN]))
    assert (marker["complete"], marker["exit_code"], marker["failures"]) == (False, 3, 1)
    document = json.loads((tmp_path / marker["parts"][-1]["path"]).read_text())
    assert [one["tensor"] for one in document["failures"]] == ["h.9"]
    assert [pair["failures"] for pair in document["pairs"]] == [[0], [0]]  # however many pairs: told once
    members = pd.read_parquet(next(tmp_path.glob("tables/members/*/*.parquet")))
    assert list(members["failure"].notna()) == [False, True, False]
    assert sweeps.BROKEN.sentence() in set(members["failure"])


def test_the_tables_of_one_sweep_have_the_same_bytes(tmp_path: Path) -> None:
    made = [ReportStore(str(tmp_path / name), Profile()) for name in ("a", "b")]
    for one in made:
        finish(one, sweeps.sweep(), units=len(one.url))
    first, second = (files(Path(one.url)) for one in made)
    fixed = {f"runs/{RUN}/_SUCCESS.json", f"runs/{RUN}/plan.json"}
    assert {path: data for path, data in first.items() if path not in fixed} == {
        path: data for path, data in second.items() if path not in fixed
    }


def test_results_are_made_one_at_a_time(tmp_path: Path, store: ReportStore) -> None:
    sweep, alive = sweeps.sweep(6), []

    class Counting(tuple):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Any]:
            for index in range(len(self)):
                alive.append(index)
                yield self[index]

    compose(sweeps.plan_of(sweep), replace(sweep, results=Counting(sweep.results)))
    assert alive == [0, 1, 2, 3, 4]


# Plans


def test_the_first_plan_counts(store: ReportStore) -> None:
    first = store.begin(sweeps.plan_of(sweeps.sweep()))
    again = store.begin(sweeps.plan_of(sweeps.sweep(), started="2026-03-05T00:00:00+00:00", units=9))
    assert again == first == store.plan(RUN)


@pytest.mark.parametrize("key", ["comparison", "settings"])
def test_another_plan_of_the_same_id_is_an_error(store: ReportStore, key: str) -> None:
    plan = store.begin(sweeps.plan_of(sweeps.sweep()))
    with pytest.raises(StoreError, match=f"has other {key} than this run"):
        store.begin(plan | {key: {**plan[key], "epsilon": 1.0}})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 2}', "[" * 100_000, "\udc80"])
def test_a_damaged_plan_or_marker_is_named(tmp_path: Path, store: ReportStore, text: str) -> None:
    finish(store, sweeps.sweep())
    for name, read in (("plan.json", store.plan), ("_SUCCESS.json", store.marker)):
        (tmp_path / f"runs/{RUN}/{name}").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(StoreError, match=f"runs/{RUN}/{name} is damaged"):
            read(RUN)


def test_a_newer_schema_is_refused_and_says_what_is_needed(tmp_path: Path, store: ReportStore) -> None:
    marker = finish(store, sweeps.sweep())
    path = tmp_path / f"runs/{RUN}/_SUCCESS.json"
    path.write_text(json.dumps(marker | {"schema_version": "2.0", "version": "3.1.0"}))
    with pytest.raises(StoreError, match=r"schema 2\.0, .* needs version 3\.1\.0 or later"):
        store.load(RUN)
    path.write_text(json.dumps(marker | {"schema_version": "1.99", "later": "field"}))
    assert same(store.load(RUN), sweeps.sweep())


def test_a_marker_of_the_first_version_is_read(tmp_path: Path, store: ReportStore) -> None:
    path = tmp_path / "runs/0123456789abcdef/_SUCCESS.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"schema_version": "1.0", "run": path.parent.name, "complete": True, "parts": []}))
    (state,) = store.runs()
    assert (state.run, state.state, state.started) == (path.parent.name, "finished", None)
    with pytest.raises(StoreError, match="compare again"):
        store.load(path.parent.name)


# Reading back


@settings(max_examples=25, deadline=None, phases=NO_SHRINKING)
@given(sweep=sweeps.sweeps())
def test_what_was_kept_is_read_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, sweep: Sweep) -> None:
    store = ReportStore(str(tmp_path_factory.mktemp("store")), Profile())
    store.finish(store.begin(sweeps.plan_of(sweep)), sweep, None, sweeps.SETTINGS, {})
    loaded = store.load(RUN)
    assert same(loaded, sweep)
    assert rendered(loaded) == rendered(sweep)


def test_pairs_are_found_in_whatever_row_group_they_are(store: ReportStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffai_dist.store.finishing.GROUP_ROWS", 7)
    sweep = sweeps.sweep(12)
    empty = replace(sweep.results[4], tensors=())
    sweep = replace(sweep, results=[*sweep.results[:4], empty, *sweep.results[5:]])
    marker = finish(store, sweep)
    (part,) = (part for part in marker["parts"] if "/tensors/" in part["path"])
    assert pq.ParquetFile(Path(store.url) / part["path"]).num_row_groups > 2
    loaded = store.load(RUN)
    assert [repr(loaded.results[index]) for index in reversed(range(11))] == [*map(repr, reversed(sweep.results))]


def test_each_damaged_part_is_named(tmp_path: Path, store: ReportStore) -> None:
    marker = finish(store, sweeps.sweep())
    for part in marker["parts"]:
        path = tmp_path / part["path"]
        kept = path.read_bytes()
        for damaged in (
            kept[:-1],
            kept[: len(kept) // 2] + bytes([kept[len(kept) // 2] ^ 1]) + kept[len(kept) // 2 + 1 :],
        ):
            path.write_bytes(damaged)
            with pytest.raises(StoreError, match=f"{part['path']} is damaged"):
                store.load(RUN)
        path.unlink()
        with pytest.raises(StoreError, match=f"{part['path']} is missing"):
            store.load(RUN)
        path.write_bytes(kept)
    assert same(store.load(RUN), sweeps.sweep())


def test_a_run_that_is_not_finished_is_not_loaded(store: ReportStore) -> None:
    store.begin(sweeps.plan_of(sweeps.sweep()))
    assert store.marker(RUN) is None
    with pytest.raises(StoreError, match=f"not finished: diffai-dist resume {RUN}"):
        store.load(RUN)


# Attempts


def test_a_complete_run_is_left_as_it_is(tmp_path: Path, store: ReportStore) -> None:
    first = finish(store, sweeps.sweep())
    before = files(tmp_path)
    assert finish(store, sweeps.sweep(failures=[sweeps.BROKEN])) == finish(store, sweeps.sweep()) == first
    assert files(tmp_path) == before


def test_an_attempt_that_read_more_takes_the_place_of_one_that_read_less(store: ReportStore) -> None:
    other = replace(sweeps.BROKEN, tensor="h.10")
    worst = finish(store, sweeps.sweep(failures=[sweeps.BROKEN, other]))
    better = finish(store, sweeps.sweep(failures=[sweeps.BROKEN]))
    assert finish(store, sweeps.sweep(failures=[sweeps.BROKEN, other])) == better != worst
    assert same(store.load(RUN), sweeps.sweep(failures=[sweeps.BROKEN]))
    complete = finish(store, sweeps.sweep())
    assert store.marker(RUN) == complete
    assert same(store.load(RUN), sweeps.sweep())


@contextmanager
def dies_after(writes: int, monkeypatch: pytest.MonkeyPatch, *, then: bool = False) -> Iterator[None]:
    """The process ends in the write after that many, before it or, `then`, when it is done."""
    publish, left = storage.publish, [writes]
    lock = threading.Lock()

    def dying(url: str, data: bytes, profile: Profile, *, exclusive: bool = False) -> bool:
        with lock:
            left[0] -= 1
            over = left[0] < 0
        if over and then and left[0] == -1:
            publish(url, data, profile, exclusive=exclusive)
        if over:
            raise KeyboardInterrupt
        return publish(url, data, profile, exclusive=exclusive)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "publish", dying)
        yield


@pytest.mark.parametrize("then", [False, True])
def test_a_run_that_dies_between_any_two_writes_is_not_there_and_is_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: bool
) -> None:
    undisturbed = ReportStore(str(tmp_path / "undisturbed"), Profile())
    parts = finish(undisturbed, sweeps.sweep())["parts"]
    writes = 1 + len(parts) + 1  # the plan, the parts, the marker
    for n in range(writes):
        store = ReportStore(str(tmp_path / str(n)), Profile())
        with dies_after(n, monkeypatch, then=then), pytest.raises(KeyboardInterrupt):
            finish(store, sweeps.sweep())
        there = store.marker(RUN)
        assert (there is not None) == (then and n == writes - 1)
        assert [state.state for state in store.runs()] == (
            ["finished"] if there else ["planned"] if n > 0 or then else []
        )
        assert finish(store, sweeps.sweep())["parts"] == parts
        assert same(store.load(RUN), sweeps.sweep())


def side_by_side(*works: Callable[[], object]) -> list[BaseException]:
    """Run all at once; what they raised."""
    raised: list[BaseException] = []
    gate = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        gate.wait()
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def race(url: str) -> None:
    """Two identical runs at once, in a store that is not there yet."""
    stores = [ReportStore(f"{url}/store", Profile()) for _ in range(2)]
    assert side_by_side(*(lambda store=one: finish(store, sweeps.sweep()) for one in stores)) == []  # type: ignore[misc]
    assert same(stores[0].load(RUN), sweeps.sweep())
    marker = stores[0].marker(RUN)
    assert marker is not None
    named = {part["path"] for part in marker["parts"]}
    assert set(stores[0].listing()) == named | {f"runs/{RUN}/plan.json", f"runs/{RUN}/_SUCCESS.json"}


def test_two_identical_runs_at_once_leave_one_valid_result(tmp_path: Path) -> None:
    for n in range(10):
        race(str(tmp_path / str(n)))


@pytest.mark.s3
def test_two_identical_runs_at_once_leave_one_valid_result_in_a_bucket(s3: Any, bucket: str) -> None:
    for n in range(3):
        race(f"s3://{bucket}/{n}")


@pytest.mark.s3
def test_a_store_in_a_bucket_holds_the_same_files(s3: Any, bucket: str, tmp_path: Path) -> None:
    here, there = (ReportStore(url, Profile()) for url in (str(tmp_path), f"s3://{bucket}/reports"))
    assert finish(here, sweeps.sweep())["parts"] == finish(there, sweeps.sweep())["parts"]
    assert same(there.load(RUN), sweeps.sweep())
