"""What a sweep asks for and leaves behind, counted: bytes, requests, tasks, objects."""

from __future__ import annotations

import gc
import itertools
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from diffai_dist import storage, sweep
from diffai_dist.cluster import Place
from diffai_dist.cluster.units import window
from diffai_dist.comparison import Pair, Selection
from diffai_dist.formats.safetensors import FIRST_READ
from diffai_dist.opening import Group, open_group
from diffai_dist.pipeline import run_plan
from diffai_dist.plan import Unit, make_plan
from diffai_dist.records import Member
from diffai_dist.storage import Profile
from diffai_dist.store import ReportStore, units

MODES: list[dict[str, Any]] = [
    {"pairs": "consecutive"},
    {"pairs": "vs-first"},
    {"pairs": "all"},
    {"pairs": "all", "elementwise": True},
]


def of_mode(settings: dict[str, Any]) -> str:
    return "-".join(map(str, settings.values()))


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Members of plain dtypes with tensors of every size, some of them in some members only."""
    folder = tmp_path_factory.mktemp("steps")
    arrays = [models.model(), *(models.perturbed(models.model(), step) for step in range(1, 4))]
    return [models.write(folder / f"step-{step}.safetensors", one) for step, one in enumerate(arrays)]


def begin(path: Path) -> int:
    """Where the header ends and the first tensor begins."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


@pytest.mark.parametrize("mode", MODES, ids=of_mode)
def test_the_bytes_read_are_those_of_the_tensors_and_headers(steps: list[Path], mode: dict[str, Any]) -> None:
    before = storage.traffic().bytes
    report = sweep(checkpoints=str(steps[0].parent / "step-*"), **mode)
    tensors = sum(path.stat().st_size - begin(path) for path in steps)
    assert report.reading.nbytes == tensors
    assert storage.traffic().bytes - before == tensors + len(steps) * FIRST_READ


@pytest.mark.s3
@pytest.mark.parametrize("mode", MODES[::2], ids=of_mode)
def test_a_bucket_is_asked_for_each_byte_once(
    s3: Any, use: Any, bucket: str, steps: list[Path], fault_proxy: Any, mode: dict[str, Any]
) -> None:
    for path in steps:
        s3.put(f"{bucket}/{path.name}", path.read_bytes())
    proxy = fault_proxy(s3)
    use(s3.at(proxy.endpoint))
    before = storage.traffic()
    report = sweep(checkpoints=f"s3://{bucket}/step-*", **mode)
    traffic = storage.traffic()
    asked: dict[str, list[tuple[int, int]]] = {path.name: [] for path in steps}
    for request in proxy.log():
        asked[request.target.split("?")[0].rsplit("/", 1)[-1]].append(request.bytes)
    for path in steps:
        asked[path.name].remove((0, FIRST_READ))
        assert _joined(asked[path.name]) == [(begin(path), path.stat().st_size)]
    weights = sum(map(len, asked.values()))
    assert report.plan is not None
    assert weights <= report.plan.requests
    # A page of names to expand the pattern; then of each member what it is, its identity and its header.
    assert len(proxy.requests()) == traffic.requests - before.requests <= weights + 1 + 4 * len(steps)
    assert traffic.retries == before.retries


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges in order, neighbours made one; ranges that overlap stay apart."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], stop
        else:
            found.append((start, stop))
    return found


TENSORS = 47 * units.BATCH  # 3,008


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("many")
    return [
        str(models.write(folder / f"{step}.safetensors", {f"h.{i}": np.full(8, i + step) for i in range(TENSORS)}))
        for step in range(3)
    ]


class Watch:
    """As progress of a run: the most units, and tasks of the scheduler in this process, that were there at once."""

    def __init__(self) -> None:
        self.settled = self.units = self.tasks = 0

    def __call__(self, nbytes: int, tensors: int, failed: int, retries: int, reused: bool = False) -> None:
        from distributed.scheduler import TaskState

        self.settled += 1
        if self.settled % 500 == 1:
            gc.collect()
            kinds = Counter(type(one) for one in gc.get_objects())
            self.units, self.tasks = max(self.units, kinds[Unit]), max(self.tasks, kinds[TaskState])


@pytest.mark.slow
def test_thousands_of_units_are_as_many_tasks_a_few_at_a_time_and_few_objects(
    many: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask
    from distributed import Client

    submit, submitted = Client.submit, Counter[str]()

    def counted(client: Client, *arguments: Any, key: str, **options: Any) -> Any:
        submitted[key] += 1
        return submit(client, *arguments, key=key, **options)

    monkeypatch.setattr(Client, "submit", counted)
    monkeypatch.setattr(units, "BATCH_SECONDS", 1e9)
    pairs = tuple(Pair(*pair) for pair in itertools.pairwise(range(3)))
    group = Group(tuple(Member(url, url) for url in many), tuple(many), pairs, "list")
    comparison = open_group(group, Profile()).comparison(Selection())
    assert comparison is not None
    plan = make_plan(comparison, Profile(), unit_bytes=1)
    store, watch = ReportStore(str(tmp_path), Profile()), Watch()
    no_log = dask.config.set({"distributed.admin.low-level-log-length": 1})  # it holds the last thousand messages
    with no_log, warnings.catch_warnings(), store.publisher("0" * 16) as publisher:
        warnings.simplefilter("error")  # a large graph is one
        run_plan(plan, Place(workers=2), watch, publisher=publisher)
    assert len(submitted) == submitted.total() == watch.settled == TENSORS
    assert 0 < watch.units <= 3 * window(2)  # the client and the scheduler have one each
    assert 0 < watch.tasks <= 2 * window(2)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == TENSORS // units.BATCH
    assert len(store.units("0" * 16)) == TENSORS
