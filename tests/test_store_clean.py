"""Cleaning removes what nothing needs, and never what a marker names."""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sweeps
from diffai_dist import storage
from diffai_dist.errors import StoreError
from diffai_dist.storage import Profile
from diffai_dist.storage.s3_connection import Connection
from diffai_dist.store import ReportStore
from diffai_dist.store.clean import removable
from servers.s3server import S3Server
from test_store import RUN, dies_after, files, finish, measured
from test_store_units import rows

NOW = timedelta(0)
WEEK = timedelta(days=7)


@pytest.fixture
def store(tmp_path: Path) -> ReportStore:
    return ReportStore(str(tmp_path), Profile())


def keep_units(store: ReportStore, run: str = RUN) -> None:
    with store.publisher(run) as publisher:
        publisher.add("a", rows())


def age(store: ReportStore, **by: float) -> None:
    """Make everything in the store older."""
    then = time.time() - timedelta(**by).total_seconds()
    for path in Path(store.url).rglob("*"):
        os.utime(path, (then, then))


def test_a_finished_run_loses_its_unit_records_alone(store: ReportStore) -> None:
    keep_units(store)
    before = set(files(Path(store.url)))
    finish(store, sweeps.sweep())
    (units,) = before
    age(store, days=8)
    size = (Path(store.url) / units).stat().st_size
    assert store.clean(dry_run=True) == [(units, size)]
    assert (Path(store.url) / units).exists()
    assert store.clean() == [(units, size)]
    assert store.clean() == []
    assert not (Path(store.url) / units).exists()
    assert list(store.load(RUN).results)
    assert store.runs()[0].state == "finished"


def test_nothing_young_is_removed(store: ReportStore) -> None:
    keep_units(store)
    finish(store, sweeps.sweep())
    age(store, days=6.9)
    assert store.clean() == []
    assert len(store.clean(timedelta(days=6))) == 1


def test_a_run_that_is_alive_keeps_its_oldest_units(store: ReportStore) -> None:
    store.begin(sweeps.plan_of(sweeps.sweep()))
    keep_units(store)
    age(store, days=30)
    with store.publisher(RUN) as publisher:
        publisher.add("b", rows(1))
    assert store.clean() == []
    age(store, days=30)
    assert len(store.clean()) == 3
    assert files(Path(store.url)) == {}


def test_what_a_dead_attempt_left_goes_and_the_attempt_that_counts_stays(
    store: ReportStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(store, sweeps.sweep(failures=[sweeps.BROKEN]))
    kept = files(Path(store.url))
    with dies_after(8, monkeypatch), pytest.raises(KeyboardInterrupt):
        finish(store, dataclasses.replace(sweeps.sweep(), warnings=("other",)))
    left = set(files(Path(store.url))) - set(kept)
    assert left
    age(store, days=8)
    assert {path for path, _ in store.clean()} == left
    assert files(Path(store.url)) == kept


def test_an_incomplete_run_keeps_its_units_while_it_may_be_resumed(store: ReportStore) -> None:
    keep_units(store)
    marker = finish(store, sweeps.sweep(failures=[sweeps.BROKEN]))
    age(store, days=8)
    path = Path(store.url) / f"runs/{RUN}/_SUCCESS.json"
    os.utime(path)
    assert store.clean() == []
    age(store, days=8)
    ((path_removed, _),) = store.clean()
    assert "/units/" in path_removed
    assert store.marker(RUN) == marker
    assert store.plan(RUN)


def test_orphans_and_temporary_files_go_and_foreign_files_stay(store: ReportStore) -> None:
    finish(store, sweeps.sweep())
    orphans = [
        f"measurements/{'0' * 32}.parquet",
        f"tables/tensors/date=2026-03-04/{RUN}-{'0' * 16}.parquet",
        f"runs/{RUN}/run-{'0' * 16}.json",
        f"runs/{RUN}/.{'0' * 16}.tmp",
        f"tables/runs/date=2026-03-04/.{'0' * 16}.tmp",
        f".{'0' * 16}.tmp",
    ]
    foreign = ["README", "measurements/notes.parquet", "tables/mine.parquet", "runs/README", f"runs/{RUN}/notes"]
    for path in (*orphans, *foreign):
        (Path(store.url) / path).write_text("x")
    age(store, days=8)
    assert {path for path, _ in store.clean()} == set(orphans)
    assert all((Path(store.url) / path).exists() for path in foreign)
    assert list(store.load(RUN).results)


def test_measurements_that_another_run_names_stay(store: ReportStore) -> None:
    finish(store, sweeps.sweep())
    second = sweeps.plan_of(sweeps.sweep(4), run="00000000000000b2")
    store.finish(store.begin(second), sweeps.sweep(4), measured(), sweeps.SETTINGS, {})
    for path in (Path(store.url) / f"runs/{RUN}").iterdir():  # a run that somebody removed
        path.unlink()
    age(store, days=8)
    removed = {path.split("/")[0] for path, _ in store.clean()}
    assert removed == {"tables"}
    assert list(store.load("00000000000000b2").results)


def test_nothing_is_removed_while_nobody_knows_what_a_marker_names(store: ReportStore) -> None:
    keep_units(store)
    finish(store, sweeps.sweep())
    path = Path(store.url) / f"runs/{RUN}/_SUCCESS.json"
    for text in ("{", path.read_text().replace('"schema_version": "1', '"schema_version": "9')):
        path.write_text(text)
        age(store, days=8)
        before = files(Path(store.url))
        with pytest.raises(StoreError, match=r"_SUCCESS\.json"):
            store.clean()
        assert files(Path(store.url)) == before


def test_a_marker_that_comes_after_the_listing_is_seen(store: ReportStore, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = store.begin(sweeps.plan_of(sweeps.sweep()))
    listing, calls = storage.listing, []

    def finished_meanwhile(url: str, profile: Profile) -> dict[str, tuple[int, float | None]]:
        found = listing(url, profile)
        calls.append(url)
        if len(calls) == 1:
            store.finish(frozen, sweeps.sweep(), measured(), sweeps.SETTINGS, {})
        return found

    with dies_after(8, monkeypatch), pytest.raises(KeyboardInterrupt):
        store.finish(frozen, sweeps.sweep(), measured(), sweeps.SETTINGS, {})
    age(store, days=8)
    monkeypatch.setattr(storage, "listing", finished_meanwhile)
    store.clean()
    assert list(store.load(RUN).results)


paths = st.sampled_from(
    [
        *(
            f"runs/{run}/{name}"
            for run in ("a", "b")
            for name in ("plan.json", "_SUCCESS.json", "run-0a.json", "notes")
        ),
        *(f"runs/{run}/units/{'0' * 16}-{n}.jsonl" for run in ("a", "b") for n in (1, 2)),
        *(f"measurements/{n}.parquet" for n in ("aa", "bb", "cc")),
        *(f"tables/{table}/date=2026-01-01/{n}.parquet" for table in ("runs", "pairs") for n in ("a-0", "b-0")),
        f"runs/a/.{'0' * 16}.tmp",
    ]
)
about = st.tuples(st.just(1), st.none() | st.floats(0, 100))


@given(
    objects=st.dictionaries(paths, about),
    named=st.dictionaries(st.sampled_from(["a", "b"]), st.tuples(st.booleans(), st.lists(paths, unique=True))),
    before=st.floats(0, 100),
)
def test_cleaning_spares_what_is_named_young_or_alive(
    objects: dict[str, tuple[int, float | None]], named: dict[str, tuple[bool, list[str]]], before: float
) -> None:
    markers = {
        run: {"complete": complete, "parts": [{"path": path, "size": 1, "blake2b": ""} for path in parts]}
        for run, (complete, parts) in named.items()
    }
    doomed = set(removable(objects, markers, before))
    parts = {path for _, paths in named.values() for path in paths if "/units/" not in path and "plan" not in path}
    assert not doomed & parts
    for path in doomed:
        changed = objects[path][1]
        assert changed is not None
        assert changed < before
        assert not path.endswith(("_SUCCESS.json", "notes"))
    for run in ("a", "b"):
        own = {path for path in objects if path.startswith(f"runs/{run}/")}
        alive = any(changed is None or changed >= before for changed in (objects[path][1] for path in own))
        resumable = {path for path in own if "/units/" in path or path.endswith("plan.json")}
        if alive and not (run in named and named[run][0]):
            assert not doomed & resumable
        if run in named:
            assert f"runs/{run}/plan.json" not in doomed


# Listings


@pytest.fixture(params=["local", "memory", *(pytest.param(name, marks=pytest.mark.s3) for name in ("moto", "swift"))])
def folder(request: pytest.FixtureRequest, tmp_path: Path, use: Callable[[S3Server], S3Server]) -> str:
    if request.param == "local":
        return str(tmp_path)
    name = f"listing-{secrets.token_hex(8)}"
    if request.param == "memory":
        return f"memory://{name}"
    return f"s3://{use(request.getfixturevalue(request.param)).bucket(name)}/some"


def test_a_listing_holds_everything_below_with_size_and_time(folder: str) -> None:
    names = {"a": 1, "b/c+ ☃": 22, "b/d/e=f.x": 333, "b/.hidden": 0}
    assert storage.listing(folder, Profile()) == {}
    began = time.time()
    for name, size in names.items():
        storage.publish(storage.join(folder, name), bytes(size), Profile())
    found = storage.listing(folder, Profile())
    assert {name: size for name, (size, _) in found.items()} == names
    for _, changed in found.values():
        assert changed is not None
        assert began - 2 <= changed <= time.time() + 2  # S3 counts whole seconds
    assert set(storage.listing(storage.join(folder, "b"), Profile())) == {"c+ ☃", "d/e=f.x", ".hidden"}


@pytest.mark.s3
def test_a_listing_goes_on_to_the_last_page(s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Connection.call

    async def short_pages(link: Connection, operation: str, **parameters: Any) -> dict[str, Any]:
        return await call(link, operation, **parameters | ({"MaxKeys": 2} if operation == "list_objects_v2" else {}))

    monkeypatch.setattr(Connection, "call", short_pages)
    names = {f"{n % 2}/{n}" for n in range(7)}
    for name in names:
        s3.put(f"{bucket}/many/{name}", b"x")
    assert set(storage.listing(f"s3://{bucket}/many", Profile())) == names
    assert storage.folders(f"s3://{bucket}/many", Profile()) == ["0", "1"]
    assert len(storage.entries(f"s3://{bucket}/many/0", Profile())) == 4


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inside").mkdir()
    scandir = os.scandir

    def forbidden(path: str) -> Any:
        if str(path).endswith("inside"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(StoreError, match="inside: permission denied"):
        storage.listing(str(tmp_path), Profile())


@pytest.mark.s3
def test_a_store_in_a_bucket_is_cleaned(s3: Any, bucket: str) -> None:
    store = ReportStore(f"s3://{bucket}/reports", Profile())
    keep_units(store)
    finish(store, sweeps.sweep())
    storage.publish(f"{store.url}/measurements/00.parquet", b"", Profile())
    assert store.clean() == []
    time.sleep(1.1)  # S3 counts whole seconds
    removed = [path for path, _ in store.clean(NOW)]
    assert [path.split("/")[0] for path in removed] == ["measurements", "runs"]
    assert dataclasses.replace(store.load(RUN), results=()) == dataclasses.replace(sweeps.sweep(), results=())
