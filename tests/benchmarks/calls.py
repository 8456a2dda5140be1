"""Calls inside this process, timed: what the start of a process or a cluster would drown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from diffai_dist import execute
from diffai_dist.cluster import RunUnits
from diffai_dist.plan import Unit


def measure_all(run: RunUnits[Any, Any], units: Iterable[Unit]) -> None:
    """Read and measure units at a place; a unit that could not be read ends the benchmark."""
    for outcome in run(execute.measure, units):
        for _, _, failure in outcome.failures:
            raise SystemExit(failure.sentence())


def in_turn(runs: int, *actions: Callable[[], None]) -> list[list[float]]:
    """Seconds of each action, round by round, after a warm-up of each."""
    return [[_seconds(action) for action in actions] for _ in range(runs + 1)][1:]


def _seconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
