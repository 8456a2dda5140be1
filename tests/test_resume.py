"""Driver, worker or scheduler killed at any moment: the same tables in the end, and nothing published is read again."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import chaos
from chaos import UNITS, Cluster, Command, Moment, Sweep
from diffai_dist import api
from servers.s3server import S3Server

pytestmark = pytest.mark.s3

MODES = ("consecutive", "all")


@pytest.fixture(scope="module")
def pattern(moto: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    return chaos.upload(moto, "killed", tmp_path_factory.mktemp("series"))


@pytest.fixture(scope="module")
def undisturbed(moto: S3Server, pattern: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run leaves that nothing happens to, by the way its pairs are chosen."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in moto.storage_environment.items():
            patch.setenv(name, value)
        for pairs in MODES:
            store = str(tmp_path_factory.mktemp(pairs))
            found[pairs] = chaos.parts(store, api.sweep(checkpoints=pattern, pairs=pairs, store=store).id)
    return found


@pytest.fixture
def new_sweep(
    moto: S3Server, use: Callable[[S3Server], S3Server], fault_proxy: Any, pattern: str, request: Any
) -> Iterator[Callable[[int], Sweep]]:
    """A sweep with a store of its own; every other one by the Gram."""
    sweeps: list[Sweep] = []

    def new(number: int = 0) -> Sweep:
        name = request.node.name.translate({ord("["): "-", ord("]"): None})
        store = f"s3://{moto.bucket('killed-reports')}/{name}"
        sweeps.append(Sweep(use(moto), fault_proxy(moto), pattern, store, MODES[number % len(MODES)]))
        return sweeps[-1]

    yield new
    for sweep in sweeps:
        for command in sweep.commands:
            command.stop()


def check_kill(command: Command, published: int, kind: str) -> None:
    """The log says that the kill came under way."""
    print(f"{kind} killed when {published} of {UNITS} units were published")
    assert 0.05 * UNITS <= published <= 0.95 * UNITS, command.log


def check_resumed(sweep: Sweep, undisturbed: dict[str, Any], *place: str) -> None:
    """`resume` reads what was not published, and that alone; then all is as if nothing had happened."""
    units, published = sweep.units(), sweep.published()
    assert len(units) == UNITS
    before = len(sweep.proxy.log())
    sweep.proxy.set()
    command = sweep.resume(*place)
    assert command.end() == 0, command.log
    requests = sweep.proxy.log()
    again = chaos.read_again(requests, chaos.ranges(unit for unit in units if unit.key in published))
    print(f"{len(again)} requests for units in the store; {before} and {len(requests)} requests of ranges in all")
    assert again == []
    assert chaos.covered(requests, chaos.ranges(unit for unit in units if unit.key not in published))
    assert command.published == UNITS - len(published)
    assert sweep.parts() == undisturbed[sweep.pairs]


@chaos.rounds()
def test_a_killed_driver_is_resumed(
    new_sweep: Callable[[int], Sweep], moment: Moment, undisturbed: dict[str, Any]
) -> None:
    sweep = new_sweep(moment.number)
    command = sweep.start("--threads", "2")
    command.wait_for(moment.units)
    command.process.kill()
    assert command.end() == -signal.SIGKILL
    check_kill(command, command.published, "driver")
    assert len(sweep.published()) >= command.published
    check_resumed(sweep, undisturbed, "--threads", "2")


@chaos.rounds()
def test_a_killed_worker_costs_what_it_had_under_way(
    new_sweep: Callable[[int], Sweep], moment: Moment, undisturbed: dict[str, Any]
) -> None:
    sweep = new_sweep(moment.number)
    command = sweep.start("--workers", "2", "-v")
    command.wait_for(moment.units)
    command.process.send_signal(signal.SIGSTOP)  # so that what is published does not change while it is looked at
    workers = sorted({int(found[1]) for found in command.found(r"unit \d+ starts in process (\d+)")})
    published = sweep.published()
    sweep.proxy.set()
    at = command.published
    os.kill(random.Random(moment.number).choice(workers), signal.SIGKILL)
    command.process.send_signal(signal.SIGCONT)
    assert command.end() == 0, command.log
    check_kill(command, at, "worker")
    units = sweep.units()
    requests = sweep.proxy.log()
    again = chaos.read_again(requests, chaos.ranges(unit for unit in units if unit.key in published))
    print(f"{len(again)} requests for units in the store; {len(requests)} requests of ranges after the kill")
    assert again == []
    assert sweep.parts() == undisturbed[sweep.pairs]


@chaos.rounds()
def test_a_killed_scheduler_ends_the_driver_which_is_resumed(
    new_sweep: Callable[[int], Sweep], moment: Moment, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    sweep = new_sweep(moment.number)
    with Cluster(tmp_path / "first", sweep.environment) as cluster:
        command = sweep.start("--scheduler", cluster.address)
        command.wait_for(moment.units)
        at = command.published
        cluster.scheduler.kill()
        assert command.end() == 4, command.log
    check_kill(command, at, "scheduler")
    assert f"diffai-dist resume {sweep.run} --store {sweep.store}" in command.log
    assert command.published == len(sweep.published())
    if moment.number % 3:
        check_resumed(sweep, undisturbed, "--threads", "2")
        return
    with Cluster(tmp_path / "second", sweep.environment) as cluster:
        check_resumed(sweep, undisturbed, "--scheduler", cluster.address)


@pytest.mark.parametrize(
    "silence", [{}, {"mode": "stall"}, {"mode": "stall", "every": True}], ids=["none", "checkpoints", "store"]
)
def test_53_a_terminated_driver_keeps_what_it_has_and_waits_for_nobody(
    new_sweep: Callable[..., Sweep], undisturbed: dict[str, Any], silence: dict[str, Any]
) -> None:
    sweep = new_sweep()
    command = sweep.start("--threads", "2", "-v", batch=10**6)
    command.wait_for(UNITS // 4, r"unit \d+ done")
    assert command.published == 0
    sweep.proxy.set(**silence)
    command.process.terminate()
    begin = time.monotonic()
    assert command.end() == 143, command.log
    assert time.monotonic() - begin < 10  # what batch systems and pods grant at least
    assert command.published == len(sweep.published())
    assert bool(command.published) == ("every" not in silence)
    check_resumed(sweep, undisturbed, "--threads", "2")
