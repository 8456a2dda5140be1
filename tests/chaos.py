"""Runs that are killed under way: a series in a bucket, the command as a process, and what must not be done again.

A round is one run with a kill in it, then `resume`. The moment comes from the log: `-v` tells how many units are
published, and a seed says at how many the kill comes. The proxy tells what was asked for before and after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import ml_dtypes
import numpy as np
import pyarrow.parquet
import pytest

import models
from diffai_dist.api import open_store, resumed
from diffai_dist.cluster import Place
from diffai_dist.opening import open_group
from diffai_dist.pipeline import compared
from diffai_dist.plan import Unit, make_plan
from diffai_dist.storage import Profile
from servers.faultproxy import FaultProxy, Request
from servers.s3server import S3Server

SMALL = 150  # tensors, each a unit of its own
UNITS = SMALL + 3
BATCH = 4  # units an object, so that a few hundred units make moments enough
PATIENCE = 120  # seconds: a guard against hangs on a busy machine, no measure

# The size of a batch is no setting: that it is 64 concerns the number of objects alone.
PROGRAM = "from diffai_dist.store import units; units.BATCH = {batch}; from diffai_dist.__main__ import main; main()"


@dataclass(frozen=True)
class Moment:
    """When a round's kill comes: at which fraction of the units published."""

    number: int
    fraction: float

    @property
    def units(self) -> int:
        """How many that are."""
        return round(self.fraction * UNITS)


def moments(count: int) -> list[Moment]:
    """One in each equal part of 5 to 95 %, seeded. The last ends earlier: the log lags a batch or two behind."""
    draw = random.Random(count)
    return [Moment(part, 0.06 + 0.82 * (part + draw.random()) / count) for part in range(count)]


def rounds(few: int = 3, many: int = 20) -> pytest.MarkDecorator:
    """`moment` of every round: a few by default, many with `-m soak`."""
    soak = [pytest.param(one, marks=pytest.mark.soak, id=f"soak-{one.number}") for one in moments(many)]
    return pytest.mark.parametrize("moment", [*(pytest.param(one, id=str(one.number)) for one in moments(few)), *soak])


def series(count: int = 3) -> Iterator[dict[str, np.ndarray]]:
    """Checkpoints of many small tensors, and one of three leaves, which units share among them."""
    generator = np.random.default_rng(7)
    arrays = {f"h.{i}.weight": generator.standard_normal((4 + i % 5, 33)).astype(np.float32) for i in range(SMALL)}
    arrays["wte"] = generator.standard_normal((2600, 1024), np.float32).astype(ml_dtypes.bfloat16)
    for _ in range(count):
        yield arrays
        arrays = {
            name: (array.astype(np.float32) * np.float32(1 + generator.standard_normal() / 64)).astype(array.dtype)
            for name, array in arrays.items()
        }


def upload(server: S3Server, bucket: str, folder: Path) -> str:
    """Put the series into a bucket; the glob of its steps."""
    for step, arrays in enumerate(series()):
        path = models.write(folder / f"step-{step}.safetensors", arrays)
        server.put(f"{bucket}/run/step-{step}/model.safetensors", path.read_bytes())
    return f"s3://{bucket}/run/step-*"


class Command:
    """`diffai-dist` as a process, and its log as it comes."""

    def __init__(self, *arguments: str, environment: Mapping[str, str], batch: int = BATCH) -> None:
        command = [sys.executable, "-c", PROGRAM.format(batch=batch), *arguments, "--no-progress"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | environment
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as log:
            for line in log:
                self.lines.append(line)

    def found(self, pattern: str) -> list[re.Match[str]]:
        """Lines of the log so far that hold the pattern."""
        return [found for line in self.lines.copy() if (found := re.search(pattern, line))]

    @property
    def published(self) -> int:
        """Units published, as the log has it."""
        told = self.found(r"published (\d+) units")
        return int(told[-1][1]) if told else 0

    def wait_for(self, count: int, pattern: str = "") -> None:
        """Return when so many units are published, or so many lines hold the pattern."""
        limit = time.monotonic() + PATIENCE
        while (len(self.found(pattern)) if pattern else self.published) < count:
            assert self.process.poll() is None, f"ended too early:\n{self.log}"
            assert time.monotonic() < limit, self.log
            time.sleep(0.002)

    def end(self, seconds: float = PATIENCE) -> int:
        """The exit code; a process that does not end in time is killed, and fails the test."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds} s:\n{self.log}")
        finally:
            self.stop()

    def stop(self) -> None:
        """Leave nothing running, whatever became of it."""
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)

    @property
    def log(self) -> str:
        """All of it, for messages."""
        return "".join(self.lines)


@dataclass(frozen=True)
class Sweep:
    """A series in a bucket, and the store that a round fills; both reached through the proxy by the processes."""

    server: S3Server
    proxy: FaultProxy
    pattern: str
    store: str
    pairs: str
    commands: list[Command] = field(default_factory=list)

    def start(self, *place: str, batch: int = BATCH) -> Command:
        """Begin."""
        about = "--pairs", self.pairs, "--unit-size", "1"
        return self._command("sweep", self.pattern, *about, *place, batch=batch)

    def resume(self, *place: str) -> Command:
        """Go on."""
        return self._command("resume", self.run, *place)

    def _command(self, *arguments: str, batch: int = BATCH) -> Command:
        command = Command(*arguments, "--store", self.store, "-v", environment=self.environment, batch=batch)
        self.commands.append(command)
        return command

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process reach storage through the proxy."""
        return self.server.at(self.proxy.endpoint).storage_environment

    @property
    def run(self) -> str:
        """The id of the only run in the store."""
        (one,) = open_store(self.store, Profile()).runs()
        return one.run

    def units(self) -> list[Unit]:
        """All units of the run, made again from its frozen plan."""
        group, settings = resumed(self.run, self.store, Profile(), Place())
        comparison = compared(open_group(group, Profile()), settings)
        assert comparison is not None
        return list(make_plan(comparison, Profile(), settings.unit_bytes).units())

    def published(self) -> set[str]:
        """The keys of the units whose records are in the store."""
        return set(open_store(self.store, Profile()).units(self.run))

    def parts(self) -> dict[str, Any]:
        """Digests of all that the marker names, verified; of the table of runs its rows without the time."""
        return parts(self.store, self.run)


def parts(store: str, run: str) -> dict[str, Any]:
    """As `Sweep.parts`, of any store."""
    kept = open_store(store, Profile())
    marker = kept.marker(run)
    assert marker is not None, "the run is not finished"
    kept.load(run)  # verifies every part
    found: dict[str, Any] = {}
    for part in marker["parts"]:
        path = re.sub(r"date=[^/]*/", "", part["path"])
        if path.startswith("tables/runs/"):
            data = kept.fetch(part["path"])
            assert data is not None
            rows = pyarrow.parquet.read_table(pyarrow.BufferReader(data)).drop_columns(["started"])
            found["tables/runs"] = rows.to_pylist()
        else:
            found[path] = part["blake2b"]
    return found


Ranges = dict[str, list[tuple[int, int]]]  # by object, as "/bucket/key"


def ranges(units: Iterable[Unit]) -> Ranges:
    """What the units read."""
    found: Ranges = {}
    for unit in units:
        for subtree in unit.subtrees:
            for tensor in filter(None, subtree.tensors):
                for span in tensor.ranges(subtree.first, subtree.stop):
                    path = span.source.url.removeprefix("s3:/")
                    found.setdefault(path, []).append((span.start, span.stop))
    return found


def read_again(requests: Sequence[Request], published: Ranges) -> list[Request]:
    """Requests for bytes that were published; those of headers begin at 0, and no tensor does."""
    again = []
    for request in requests:
        begin, end = request.bytes or (0, 0)
        mine = published.get(unquote(request.target.split("?")[0]), [])
        if begin > 0 and any(begin < stop and start < end for start, stop in mine):
            again.append(request)
    return again


def covered(requests: Sequence[Request], wanted: Ranges) -> bool:
    """Whether all of these bytes were asked for: without it, no request at all would look like nothing read again."""
    asked = {(unquote(one.target.split("?")[0]), one.bytes) for one in requests}
    return all((path, one) in asked for path, all_of_it in wanted.items() for one in all_of_it)


class Cluster:
    """A scheduler and two workers as processes of their own; a scheduler can be killed alone."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        folder.mkdir()
        self.file, self.log = folder / "scheduler.json", folder / "log"
        self.environment = os.environ | environment
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        self.processes = [self.scheduler]
        workers = ("worker", "--host", "127.0.0.1", "--no-nanny", "--nthreads", "1")
        self.processes += [self._start(*workers) for _ in range(2)]

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-W", "ignore", "-m", "dask", *arguments, "--scheduler-file", str(self.file)]
        with self.log.open("ab") as log:
            return subprocess.Popen([*command, "--no-dashboard"], stdout=log, stderr=log, env=self.environment)

    @property
    def address(self) -> str:
        """Where the scheduler listens, once it does."""
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            with contextlib.suppress(OSError, ValueError):
                return str(json.loads(self.file.read_text())["address"])
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
