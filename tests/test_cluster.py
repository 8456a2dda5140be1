"""Places to run: every one gives all outcomes once, and a lost worker or scheduler loses nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from diffai_dist.cluster import Place, engine, memory_bytes
from diffai_dist.errors import ClusterError, UsageError


@dataclass(frozen=True)
class Job:
    index: int

    @property
    def key(self) -> str:
        return f"job-{self.index}"


def jobs(count: int) -> Iterator[Job]:
    return (Job(index) for index in range(count))


def number(job: Job) -> int:
    return job.index


def deadly(job: Job) -> int:
    if job.index == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return job.index


def broken(job: Job) -> int:
    if job.index == 5:
        raise KeyError("a bug")
    return job.index


def lost(job: Job, reason: str) -> tuple[str, int]:
    return "lost", job.index


def test_every_outcome_comes_once_across_windows() -> None:
    with engine(Place(threads=3), lost) as run:
        assert sorted(run(number, jobs(2500))) == list(range(2500))


def test_a_bug_in_a_unit_is_raised() -> None:
    with engine(Place(threads=2), lost) as run, pytest.raises(KeyError, match="a bug"):
        list(run(broken, jobs(50)))


def test_stopping_early_leaves_nothing_running() -> None:
    done = []

    def slow(job: Job) -> int:
        done.append(job.index)
        return job.index

    with engine(Place(threads=1), lost) as run:
        outcomes = run(slow, jobs(100_000))
        next(outcomes)
        outcomes.close()  # type: ignore[attr-defined]
    assert len(done) < 100_000


def test_a_unit_that_kills_its_workers_is_lost_and_no_other() -> None:
    with engine(Place(workers=2), lost) as run:
        outcomes = list(run(deadly, jobs(30)))
    assert [one for one in outcomes if not isinstance(one, int)] == [("lost", 5)]
    assert sorted(one for one in outcomes if isinstance(one, int)) == [*range(5), *range(6, 30)]


def test_units_are_submitted_in_a_window() -> None:
    """A plan of a million units is neither one graph nor a flood: what is out is bounded, whatever the number."""
    made = done = furthest = 0

    def counted() -> Iterator[Job]:
        nonlocal made
        for job in jobs(1500):
            made += 1
            yield job

    with engine(Place(workers=2), lost) as run:
        for _ in run(number, counted()):
            done += 1
            furthest = max(furthest, made - done)
    assert done == 1500
    assert furthest <= 2 * 64


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Path, list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers as processes of their own; the scheduler file tells where."""
    place = tmp_path / "scheduler.json"
    log = (tmp_path / "log").open("wb")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-W", "ignore", "-m", "dask", *arguments, "--scheduler-file", str(place)]
        return subprocess.Popen([*command, "--no-dashboard"], stdout=log, stderr=log, env=environment)

    processes = [start("scheduler", "--host", "127.0.0.1", "--port", "0")]
    processes += [start("worker", "--nthreads", "1") for _ in range(2)]
    while not place.exists():
        time.sleep(0.05)
    yield place, processes
    for process in reversed(processes):
        process.terminate()
    for process in processes:
        process.wait(30)
    log.close()


def test_a_running_scheduler_is_joined_by_file_address_or_environment(
    running: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = running[0]
    address = json.loads(place.read_text())["address"]
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", address)
    for scheduler in (str(place), address, "env"):
        with engine(Place(scheduler=scheduler), lost) as run:
            assert sorted(run(number, jobs(20))) == list(range(20))


@dataclass(frozen=True)
class Salted(Job):
    """A job of the same key as another's, and of another place in another plan."""

    salt: str


def salt(job: Salted) -> str:
    time.sleep(0.05)
    return job.salt


def test_two_runs_on_one_scheduler_do_not_get_each_others_outcomes(running: tuple[Path, list[Any]]) -> None:
    place = Place(scheduler=str(running[0]))
    with engine(place, lost) as run, engine(place, lost) as run_too:
        ours = run(salt, (Salted(index, "ours") for index in range(20)))
        first = next(ours)  # all are submitted by now
        theirs = list(run_too(salt, (Salted(index, "theirs") for index in range(20))))
        assert set(theirs) == {"theirs"}
        assert {first, *ours} == {"ours"}


def test_a_lost_scheduler_is_a_cluster_error(running: tuple[Path, list[Any]]) -> None:
    with engine(Place(scheduler=str(running[0])), lost) as run:
        outcomes = run(number, jobs(100_000))
        next(outcomes)
        running[1][0].kill()
        with pytest.raises(ClusterError, match="scheduler"):
            list(outcomes)


def test_no_scheduler_address_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    with pytest.raises(UsageError, match="DASK_SCHEDULER_ADDRESS"), engine(Place(scheduler="env"), lost):
        pass


@pytest.mark.parametrize(("text", "size"), [(None, None), ("auto", None), ("4GB", 4 * 10**9), ("512MiB", 2**29)])
def test_sizes_are_read_as_people_write_them(text: str | None, size: int | None) -> None:
    assert memory_bytes(text) == size


def test_a_size_that_is_none_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="4GB"):
        memory_bytes("much")
