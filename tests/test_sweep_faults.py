"""A sweep on storage that fails: the right numbers or failures that say so, after requests in bounded number."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chaos
import models
from diffai_dist import api, storage
from diffai_dist.api import Report
from diffai_dist.errors import StoreError
from diffai_dist.records import Result
from diffai_dist.storage import retry, s3_connection
from diffai_dist.store import units
from servers.faultproxy import FaultProxy
from servers.s3server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.timeout(120)]

MEMBERS, TENSORS = 4, 12
FAULTS = ("slowdown", "e500", "e503", "html503", "rst", "trunc", "short", "badrange", "stall", "stallbody")
PAIRS = ("consecutive", "all")


def series() -> Iterator[models.Arrays]:
    """Some small tensors and one of two leaves."""
    generator = np.random.default_rng(11)
    arrays = {f"h.{i}": generator.standard_normal((3 + i, 65)).astype(np.float32) for i in range(TENSORS - 1)}
    arrays["wte"] = generator.standard_normal((1300, 1024), np.float32)
    for _ in range(MEMBERS):
        yield arrays
        arrays = {
            name: array + np.float32(0.01) * generator.standard_normal(array.shape, np.float32)
            for name, array in arrays.items()
        }


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(retry, "LONGEST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(s3_connection, "SILENT_SECONDS", 0.5)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("steps")
    return [models.write(folder / f"step-{i}" / "model.safetensors", arrays) for i, arrays in enumerate(series())]


@pytest.fixture
def proxy(
    moto: S3Server, use: Callable[..., Any], fault_proxy: Callable[..., FaultProxy], steps: list[Path]
) -> FaultProxy:
    """A proxy that the environment leads to, with the steps in a bucket behind it."""
    for path in steps:
        moto.put(f"faults/{path.parent.name}/{path.name}", path.read_bytes())
    return use(fault_proxy(moto, stall_seconds=2.0))  # type: ignore[no-any-return]


Clean = dict[str, list[Result]]


@pytest.fixture(scope="module")
def clean(steps: list[Path]) -> Clean:
    """The right results, from local files."""
    pattern = str(steps[0].parent.parent / "step-*")
    return {pairs: list(api.sweep(checkpoints=pattern, pairs=pairs).sweep.results) for pairs in PAIRS}


def swept(pairs: str, unit_size: str | None = "1", **settings: Any) -> Report:
    """The sweep through the proxy: a tensor a unit, or all in one."""
    place = {"cluster.unit_size": unit_size, "cluster.threads": 2}
    return api.sweep(checkpoints="s3://faults/step-*", pairs=pairs, **place, **settings)


def check(report: Report, right: list[Result]) -> None:
    """Nothing is wrong: a record is the right one or failed, and a pair without failures is right as a whole."""
    for mine, other in zip(report.sweep.results, right, strict=True):
        expected = {record.name: record for record in other.tensors}
        failed = {record.name for record in mine.tensors if record.status == "failed"}
        for record in mine.tensors:
            assert record.name in failed or record == expected[record.name]
        assert mine.failures or mine == other
        assert failed <= {failure.tensor for failure in mine.failures}
    assert report.exit_code() == (3 if report.failures else 0)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("mode", FAULTS)
def test_row_40_42_43_a_burst_of_faults_costs_the_requests_it_spoils(
    proxy: FaultProxy, clean: Clean, mode: str, pairs: str
) -> None:
    proxy.set(mode, 5, skip=MEMBERS + 6)
    report = swept(pairs)
    assert not report.failures
    check(report, clean[pairs])
    served = [(request.target, request.range) for request in proxy.log() if request.mode == "ok"]
    assert len(served) == len(set(served)) == len(proxy.log()) - 5


@pytest.mark.parametrize("pairs", PAIRS)
def test_row_42_many_faults_of_all_kinds_cost_at_most_as_many_requests_again(
    proxy: FaultProxy, clean: Clean, pairs: str
) -> None:
    for seed in range(3):
        proxy.scatter(FAULTS, 0.3, seed)
        report = swept(pairs)
        check(report, clean[pairs])
        log = proxy.log()
        assert any(request.mode != "ok" for request in log)
        assert len(log) <= 2 * len({(request.target, request.range) for request in log})


def most_requests() -> int:
    """Where nothing is answered any more: all at once, then tensor by tensor, a member less each time."""
    return retry.REQUESTS * (TENSORS + 1) * MEMBERS * (MEMBERS + 1) // 2 + MEMBERS


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("unit_size", ["1", "1GB"])
@pytest.mark.parametrize("mode", ["slowdown", "rst", "short", "stall", "e403"])
def test_row_42_43_44_a_fault_that_stays_leaves_what_was_read_before(
    proxy: FaultProxy, clean: Clean, monkeypatch: pytest.MonkeyPatch, mode: str, unit_size: str, pairs: str
) -> None:
    monkeypatch.setattr(retry, "REQUESTS", 2)
    if mode == "stall":  # only there: on a busy machine an answer that is merely late would count as none
        monkeypatch.setattr(s3_connection, "SILENT_SECONDS", 0.05)
    before = 5 * MEMBERS if unit_size == "1" else MEMBERS + 1  # the headers, and four units or a part of one
    proxy.set(mode, skip=before)
    report = swept(pairs, unit_size)
    assert report.exit_code() == 3
    check(report, clean[pairs])
    assert len(proxy.log()) <= before + most_requests()
    if unit_size == "1" and mode != "stall":
        told = [record for result in report.sweep.results for record in result.tensors if record.status != "failed"]
        assert len(told) >= 2 * len(report.sweep.results)  # two threads had begun two units beside two finished ones
    assert all("step-" in failure.object for failure in report.failures)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("unit_size", ["1", "1GB"])
@pytest.mark.parametrize("member", [0, 1, 3])
def test_44_a_member_that_cannot_be_read_any_more_spoils_its_own_pairs_only(
    proxy: FaultProxy, clean: Clean, member: int, unit_size: str, pairs: str
) -> None:
    proxy.set("e403", skip=3 if unit_size == "1" else 1, only=f"step-{member}/")
    report = swept(pairs, unit_size)
    assert report.exit_code() == 3
    check(report, clean[pairs])
    url = f"s3://faults/step-{member}/model.safetensors"
    assert {failure.object for failure in report.failures} == {url}
    for result in report.sweep.results:
        reasons = [str(record.reason) for record in result.tensors if record.status == "failed"]
        concerned = f"step-{member}" in (result.baseline, result.candidate)
        assert bool(result.failures) >= concerned
        # Products are taken around the first member, so that all pairs need it.
        assert bool(reasons) == (concerned or (pairs == "all" and member == 0))
        assert all(reason.startswith(url) for reason in reasons)


@pytest.mark.parametrize("pairs", PAIRS)
def test_44_what_could_not_be_read_is_read_by_the_next_run_and_nothing_else(
    proxy: FaultProxy, clean: Clean, monkeypatch: pytest.MonkeyPatch, pairs: str
) -> None:
    monkeypatch.setattr(units, "BATCH", 1)
    store = f"s3://faults/healed-{pairs}"
    proxy.set("e403", skip=4, only="step-1/")
    first = swept(pairs, store=store)
    read = {(request.target, request.range) for request in proxy.log()}
    assert first.exit_code() == 3
    proxy.set()
    again = swept(pairs, store=store)
    assert again.id == first.id
    assert not again.failures
    check(again, clean[pairs])
    whole = 3  # units of which all members were read, header aside
    served = [(request.target, request.range) for request in proxy.log()]
    assert len(served) == len(set(served)) == len(read) - whole * MEMBERS
    sound = swept(pairs, store=f"{store}-sound")
    assert chaos.parts(store, again.id) == chaos.parts(f"{store}-sound", sound.id)


def test_44_the_series_is_judged_without_what_could_not_be_read(proxy: FaultProxy, clean: Clean) -> None:
    proxy.set("e403", skip=3, only="step-0/")
    report = swept("all", analyses=("similarity_matrix", "convergence_analysis"))
    check(report, clean["all"])
    assert {one.name for one in report.sweep.analyses} >= {"similarity_matrix", "convergence_analysis"}


@pytest.mark.parametrize("pairs", PAIRS)
def test_row_42_43_a_store_on_a_server_that_fails_now_and_then(proxy: FaultProxy, clean: Clean, pairs: str) -> None:
    """Reads, writes and listings alike, of checkpoints and of the store; answers to writes are lost, too."""
    sound = swept(pairs, store=f"s3://faults/sound-{pairs}")
    faults = ("slowdown", "e500", "html503", "rst", "lost", "stall", "trunc")
    for seed in range(2):
        store = f"s3://faults/flaky-{pairs}-{seed}"
        proxy.scatter(faults, 0.2, seed, every=True)
        report = swept(pairs, store=store)
        assert {request.mode for request in proxy.requests() if request.method == "PUT"} > {"ok"}
        proxy.set()
        check(report, clean[pairs])
        assert chaos.parts(store, report.id) == chaos.parts(f"s3://faults/sound-{pairs}", sound.id)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("after", [0, 1, 4, 12])
def test_row_48_a_store_that_takes_no_more_ends_the_run_which_then_goes_on(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, after: int, pairs: str
) -> None:
    monkeypatch.setattr(retry, "REQUESTS", 2)
    monkeypatch.setattr(units, "BATCH", 3)
    store = f"s3://faults/full-{pairs}-{after}"
    proxy.set("e500", skip=after, every=True, only="PUT ")
    with pytest.raises(StoreError):
        swept(pairs, store=store)
    assert len([request for request in proxy.requests() if request.mode == "e500"]) <= 2 * 16  # as many at once
    proxy.set()
    report = swept(pairs, store=store)
    sound = swept(pairs, store=f"{store}-sound")
    assert chaos.parts(store, report.id) == chaos.parts(f"{store}-sound", sound.id)


# The n-th call of the store, for every n.


class Died(BaseException):
    """The process is gone: nothing that comes after has an effect."""


@dataclass
class Calls:
    """Calls of the store; the n-th fails, before or after it is carried out, or ends the process there."""

    fails: int
    kind: str
    count: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, counted."""

        @functools.wraps(call)
        def counted(*arguments: Any, **named: Any) -> Any:
            with self.lock:
                self.count += 1
                mine = self.count == self.fails
                gone = self.kind.startswith("death") and self.count > self.fails
            if gone:
                raise Died
            if not mine:
                return call(*arguments, **named)
            if self.kind.endswith("after"):
                call(*arguments, **named)
            raise Died if self.kind.startswith("death") else StoreError("the call failed")

        return counted


@pytest.mark.parametrize(
    ("kind", "pairs"),
    [("error before", "all"), ("error after", "consecutive"), ("death before", "consecutive"), ("death after", "all")],
)
def test_48_whichever_call_of_the_store_fails_the_next_run_ends_as_if_it_had_not(
    steps: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, pairs: str
) -> None:
    monkeypatch.setattr(units, "BATCH", 3)

    def run(store: Path) -> str:
        place = {"cluster.unit_size": "1", "cluster.threads": 1}
        return api.sweep(checkpoints=str(steps[0].parent.parent / "step-*"), pairs=pairs, store=str(store), **place).id

    identity = run(tmp_path / "sound")
    sound = chaos.parts(str(tmp_path / "sound"), identity)
    for n in itertools.count(1):
        store, calls = tmp_path / str(n), Calls(n, kind)
        with monkeypatch.context() as patch, contextlib.suppress(StoreError, Died):
            for name in ("publish", "fetch", "listing", "remove"):
                patch.setattr(storage, name, calls.wrap(getattr(storage, name)))
            run(store)
        if calls.count < n:
            break
        assert run(store) == identity
        assert chaos.parts(str(store), identity) == sound
    assert n > 25  # plan, units, measurements, tables, marker
