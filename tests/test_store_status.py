"""Which runs there are, how far they are, and which one is meant."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import sweeps
from diffai_dist.errors import StoreError, UsageError
from diffai_dist.records import Sweep
from diffai_dist.storage import Profile
from diffai_dist.store import ReportStore
from test_store_units import rows


@pytest.fixture
def store(tmp_path: Path) -> ReportStore:
    return ReportStore(str(tmp_path), Profile())


def begin(store: ReportStore, run: str, day: int = 1, sweep: Sweep | None = None, units: int = 0) -> dict[str, Any]:
    plan = store.begin(sweeps.plan_of(sweep or sweeps.sweep(), run, f"2026-03-{day:02}T01:00:00+00:00"))
    with store.publisher(run) as publisher:
        for unit in range(units):
            publisher.add(f"unit {unit}", rows(unit))
    return plan


def finish(store: ReportStore, run: str, day: int = 1, sweep: Sweep | None = None, units: int = 8) -> dict[str, Any]:
    made = sweep or sweeps.sweep()
    return store.finish(begin(store, run, day, made, units), made, None, sweeps.SETTINGS, {})


def test_an_empty_store_has_no_runs(store: ReportStore) -> None:
    assert store.runs() == []
    with pytest.raises(UsageError, match=r"no run 'latest' .* The store holds 0 runs; diffai-dist status --store"):
        store.resolve("latest")


def test_every_state_is_told_from_the_store_alone(store: ReportStore) -> None:
    finish(store, "a1", 1)
    finish(store, "a2", 2, sweeps.sweep(4, failures=[sweeps.BROKEN]), units=5)
    begin(store, "a3", 4, units=3)
    begin(store, "a4", 3)
    found = [(one.run, one.state, one.units, one.units_total, one.pairs, one.exit_code) for one in store.runs()]
    assert found == [
        ("a3", "running", 3, 8, 2, None),
        ("a4", "planned", 0, 8, 2, None),
        ("a2", "incomplete", 5, 8, 3, 3),
        ("a1", "finished", 8, 8, 2, 0),
    ]
    states = {one.run: one for one in store.runs()}
    assert states["a2"].failures == 1
    assert (states["a1"].name, states["a1"].started) == ("nightly", datetime(2026, 3, 1, 1, tzinfo=UTC))
    assert states["a1"].members == tuple(member.url for member in sweeps.sweep().members)
    youngest = max(path.stat().st_mtime for path in Path(store.url).glob("runs/a3/**/*") if path.is_file())
    assert states["a3"].touched == youngest


def test_units_that_two_processes_kept_are_not_more_than_there_are(store: ReportStore) -> None:
    begin(store, "a1", units=6)
    with store.publisher("a1") as publisher:
        for unit in range(5):
            publisher.add(f"unit {unit}", rows(unit))
    (state,) = store.runs()
    assert (state.units, state.units_total) == (8, 8)


def test_a_run_that_cannot_be_read_does_not_hide_the_others(store: ReportStore) -> None:
    finish(store, "a1")
    begin(store, "a2")
    (Path(store.url) / "runs/a2/plan.json").write_text("{")
    (Path(store.url) / "runs/notes.txt").write_text("foreign")
    (Path(store.url) / "runs/foreign").mkdir()
    (Path(store.url) / "runs/foreign/file").write_text("foreign")
    first, second = store.runs()
    assert (first.run, first.state) == ("a1", "finished")
    assert (second.run, second.state) == ("a2", "unreadable")
    assert second.problem is not None
    assert "runs/a2/plan.json is damaged" in second.problem


def test_a_run_is_named_by_id_beginning_or_latest(store: ReportStore) -> None:
    for day, run in enumerate(("ab12", "ab34", "cd", "ab"), 1):
        begin(store, run, day)
    begin(store, "cd99", 3)
    assert [store.resolve(name) for name in ("ab", "ab1", "ab34", "cd", "cd9", "latest")] == [
        "ab", "ab12", "ab34", "cd", "cd99", "ab",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="3 runs begin with 'a'"):
        store.resolve("a")
    with pytest.raises(UsageError, match=r"no run 'ab13' in .*'ab12'.*; diffai-dist status --store"):
        store.resolve("ab13")
    for name in ("", "..", "../x", "a/b", "\x1b"):
        with pytest.raises(UsageError):
            store.resolve(name)


def test_one_run_in_detail(store: ReportStore) -> None:
    begin(store, "a1", units=2)
    planned = store.detail("a1")
    assert (planned.state.state, planned.marker, planned.failures, planned.nbytes) == ("running", None, (), 0)
    assert [one["name"] for one in planned.comparison["members"]] == ["step-000100", "step-000200", "step-000300"]
    marker = finish(store, "a2", 2, sweeps.sweep(failures=[sweeps.BROKEN]))
    found = store.detail("latest")
    assert (found.state.run, found.failures) == ("a2", (sweeps.BROKEN,))
    assert found.marker == marker
    assert found.nbytes == sum(part["size"] for part in marker["parts"])
    assert found.comparison["mode"] == planned.comparison["mode"]
    assert found.settings == planned.settings
    (Path(store.url) / marker["parts"][-1]["path"]).write_text("{}")
    with pytest.raises(StoreError, match=r"run-[0-9a-f]*\.json is damaged"):
        store.detail("a2")


def test_the_run_before_is_of_the_same_name_or_of_a_member_in_common(store: ReportStore) -> None:
    finish(store, "a1", 1)
    finish(store, "a2", 2, sweeps.sweep(failures=[sweeps.BROKEN]))
    finish(store, "a3", 3, sweeps.sweep(name="other", members=(sweeps.member(1, "s3://else"),) * 2))
    begin(store, "a4", 4, units=2)
    finish(store, "a9", 9)
    tonight = begin(store, "a5", 5)
    assert store.latest_before(tonight) == "a2"  # a marker is enough: one bad checkpoint does not end a history
    unnamed = begin(store, "a6", 3, sweeps.sweep(2, name=None))
    assert store.latest_before(unnamed) == "a2"
    stranger = begin(store, "a7", 9, sweeps.sweep(name=None, members=(sweeps.member(2, "s3://third"),) * 2))
    assert store.latest_before(stranger) is None
    assert store.latest_before(begin(store, "a8", 1)) is None
