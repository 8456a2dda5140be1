"""Two identical sweeps at the same time leave one valid result, on servers with and without conditional writes."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import chaos
import models
from diffai_dist import api, pipeline
from diffai_dist.demo import night
from diffai_dist.report import RENDERERS, View
from diffai_dist.storage import Profile
from diffai_dist.store import TABLES, units
from diffai_dist.store.parts import Part

pytestmark = pytest.mark.s3

MEMBERS = 3


@pytest.fixture
def pattern(s3: Any, bucket: str, tmp_path: Path) -> str:
    for step, weights in zip(night.STEPS[:MEMBERS], night.trained(), strict=False):
        path = models.write(tmp_path / f"{step}.safetensors", weights)
        s3.put(f"{bucket}/run/{night.folder_of(step)}/model.safetensors", path.read_bytes())
    return f"s3://{bucket}/run/step-*"


def rendered(store: str, run: str) -> str:
    """The run as JSON, from the store alone."""
    sweep = api.open_store(store, Profile()).load(run)
    return "".join(RENDERERS["json"](sweep, View(show_identical=True)))


def in_threads(pattern: str, store: str, pairs: str, late: float) -> None:
    def sweep(seconds: float) -> str:
        time.sleep(seconds)
        place = {"cluster.unit_size": "1", "cluster.threads": 2}
        return api.sweep(checkpoints=pattern, pairs=pairs, store=store, **place).id

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(sweep, (0, late))
        assert one == other


def in_processes(pattern: str, store: str, pairs: str, late: float) -> None:
    about = "--pairs", pairs, "--store", store, "--unit-size", "1", "--threads", "2", "--no-progress"
    command = [sys.executable, "-m", "diffai_dist", "sweep", pattern, *about, "-o", "json"]
    both = []
    for seconds in (0, late):
        time.sleep(seconds)
        both.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    told = [process.communicate(timeout=chaos.PATIENCE) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert json.loads(told[0][0]) == json.loads(told[1][0])


def check_one_result(store: str, alone: str) -> None:
    """One marker; all that it names is there; what it says is what a run alone says; no row is there twice."""
    kept = api.open_store(store, Profile())
    (marker,) = [path for path in kept.listing() if path.endswith("_SUCCESS.json")]
    run = marker.split("/")[1]
    named = kept.marker(run)
    assert named is not None
    parts = [Part(**part) for part in named["parts"]]
    assert len({part.path for part in parts}) == len(parts)
    assert [part for part, _ in kept.read_each(parts)] == parts  # each verified against its digest
    assert rendered(store, run) == rendered(alone, run)
    for table, key in (("runs", "run"), ("members", "member"), ("pairs", "baseline || candidate")):
        (row,) = kept.query(f"SELECT count(*) AS rows, count(DISTINCT {key}) AS apart FROM {table}").to_pylist()
        assert row["rows"] == row["apart"] > 0, table
    for table in set(TABLES) - {"runs"}:
        mine, other = (
            one.query(f"SELECT count(*) AS n FROM {table}") for one in (kept, api.open_store(alone, Profile()))
        )
        assert mine == other
    assert chaos.parts(store, run) == chaos.parts(alone, run)
    assert api.resumed(run, store, Profile(), api.Place())  # the plan is whole, too


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run begins on a day of its own, and publishes each unit alone: more that two of them could mix up."""
    days = itertools.count()

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(next(days))

    monkeypatch.setattr(pipeline, "datetime", Clock)
    monkeypatch.setattr(units, "BATCH", 1)


def rounds(few: int = 3, many: int = 20) -> pytest.MarkDecorator:
    """`number` of every round: a few by default, many with `-m soak`."""
    soak = [pytest.param(number, marks=pytest.mark.soak, id=f"soak-{number}") for number in range(many)]
    return pytest.mark.parametrize("number", [*range(few), *soak])


@rounds()
@pytest.mark.usefixtures("apart")
def test_54_two_identical_sweeps_at_once_leave_one_result(bucket: str, pattern: str, number: int) -> None:
    """Every fifth round in processes; the second one begins at any moment of the first one's life."""
    pairs = ("consecutive", "all")[number % 2]
    alone, store = f"s3://{bucket}/alone", f"s3://{bucket}/both"
    begin = time.monotonic()
    api.sweep(checkpoints=pattern, pairs=pairs, store=alone)
    late = random.Random(number).uniform(0, time.monotonic() - begin) if number % 3 else 0.0
    (in_threads if number % 5 else in_processes)(pattern, store, pairs, late)
    check_one_result(store, alone)
    in_threads(pattern, store, pairs, 0.0)  # late duplicates change nothing
    check_one_result(store, alone)
