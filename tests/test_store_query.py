"""SQL over the history: exactly what markers name, and nothing else of the machine."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sweeps
from diffai_dist.errors import StoreError, UsageError
from diffai_dist.storage import Profile
from diffai_dist.store import TABLES, ReportStore
from diffai_dist.store.tables import schema
from servers.s3server import S3Server
from test_store_status import begin, finish


@pytest.fixture(params=["local", pytest.param("moto", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path, use: Callable[[S3Server], S3Server]) -> ReportStore:
    if request.param == "local":
        return ReportStore(str(tmp_path / "a [store]*'"), Profile())
    bucket = use(request.getfixturevalue(request.param)).bucket(f"query-{secrets.token_hex(8)}")
    return ReportStore(f"s3://{bucket}/reports", Profile())


@pytest.fixture
def local(tmp_path: Path) -> ReportStore:
    return ReportStore(str(tmp_path), Profile())


def answer(store: ReportStore, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in store.query(sql).to_pylist()]


def test_the_tables_of_all_finished_runs_are_views(store: ReportStore) -> None:
    finish(store, "a1", 1)
    finish(store, "a2", 2, sweeps.sweep(4, failures=[sweeps.BROKEN]))
    begin(store, "a3", 3, units=1)
    assert answer(store, "select run, pairs, exit_code from runs order by started") == [("a1", 2, 0), ("a2", 3, 3)]
    assert answer(store, "select count(*), count(distinct run) from TENSORS where status = 'changed'") == [(10, 2)]
    joined = "select r.name, p.rel_l2 from pairs p join runs r using (run) order by r.started desc limit 1"
    assert answer(store, joined) == [("nightly", 0.25)]
    assert answer(store, "select count(*) from members where failure is not null") == [(1,)]
    assert answer(store, "select distinct rule from findings order by 1") == [
        ("dominant-block",),
        ("small",),
        ("stale",),
    ]


def test_orphans_are_in_no_view(store: ReportStore) -> None:
    finish(store, "a1", 1)
    marker = finish(store, "a2", 2)
    (orphan,) = (part["path"] for part in marker["parts"] if "/tensors/" in part["path"])
    store.put(orphan.replace("a2-", "a9-"), store.fetch(orphan) or b"")
    store.remove("runs/a2/_SUCCESS.json")
    assert answer(store, "select distinct run from tensors") == [("a1",)]


def test_an_empty_store_has_all_views_with_their_columns(local: ReportStore) -> None:
    for table in TABLES:
        found = local.query(f"select * from {table}")
        assert (found.num_rows, found.column_names) == (0, schema(table).names)
    assert answer(local, "select count(*) from information_schema.tables") == [(len(TABLES),)]
    assert answer(local, "select 1 + 1") == [(2,)]


def test_only_the_tables_that_the_query_names_are_fetched(local: ReportStore, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(local, "a1")
    fetched: list[str] = []
    fetch = ReportStore.fetch
    monkeypatch.setattr(ReportStore, "fetch", lambda self, path: fetched.append(path) or fetch(self, path))  # type: ignore[func-returns-value]
    answer(local, "select run from runs")
    assert [path.split("/")[1] for path in fetched if path.startswith("tables/")] == ["runs"]


def test_a_damaged_part_is_an_error_and_a_damaged_marker_is_left_out(
    local: ReportStore, caplog: pytest.LogCaptureFixture
) -> None:
    finish(local, "a1", 1)
    marker = finish(local, "a2", 2)
    path = next(Path(local.url) / part["path"] for part in marker["parts"] if "/pairs/" in part["path"])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"tables/pairs/.* is damaged"):
        local.query("select * from pairs")
    (Path(local.url) / "runs/a2/_SUCCESS.json").write_text("{")
    assert answer(local, "select distinct run from pairs") == [("a1",)]
    assert "left out of the query: " in caplog.text


@pytest.mark.parametrize(
    "sql",
    [
        "selec 1",
        "select * from nothing",
        "select no_column from runs",
        "",
        "-- nothing",
        "select * from read_csv('/etc/passwd')",
        "select * from read_parquet('tables/*/*/*.parquet')",
        "select * from '/etc/passwd'",
        "select * from 'http://127.0.0.1:9/x.parquet'",
        "copy (select 1) to 'out.csv'",
        "attach 'x.db'",
        "install httpfs",
        "set enable_external_access = true",
        "select '\ud800'",
        "select '\x1b[31m' + nothing",
    ],
)
def test_sql_that_cannot_be_run_is_told_in_one_line(
    local: ReportStore, sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(local, "a1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        local.query(sql)
    text = str(raised.value)
    assert text.startswith("the SQL ")
    assert text.isprintable()
    assert not (tmp_path / "out.csv").exists()


def test_the_variables_of_this_program_are_no_tables(local: ReportStore) -> None:
    with pytest.raises(UsageError, match="rows"):
        local.query("select * from rows")


def test_without_duckdb_the_remedy_is_named(local: ReportStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UsageError, match=r"pip install 'diffai-dist\[sql\]'"):
        local.query("select 1")
