"""Units in threads of this process, on dask's threaded scheduler."""

from __future__ import annotations

import functools
import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from diffai_dist.cluster.units import window

T = TypeVar("T")
R = TypeVar("R")

GRAPH = 1024  # units in one graph of dask: a million units need no memory for graphs
STOP_SECONDS = 5  # how long units under way may take to end once nobody wants them
LOOK_SECONDS = 0.2  # how soon a thread that waits for room notices that nobody wants its outcome


def run_here(threads: int, work: Callable[[T], R], units: Iterable[T]) -> Generator[R, None, None]:
    """One graph after the other; outcomes leave through a short queue while the graph runs."""
    outcomes: queue.Queue[tuple[str, Any]] = queue.Queue(window(threads))
    stopped = threading.Event()
    feeder = threading.Thread(target=_feed, args=(threads, work, units, outcomes, stopped), daemon=True)
    feeder.start()
    try:
        while True:
            kind, value = outcomes.get()
            if kind == "outcome":
                yield value
            elif kind == "error":
                raise value
            else:
                return
    except GeneratorExit:  # nobody wants the rest: leave when the units under way are done
        stopped.set()
        feeder.join(STOP_SECONDS)
        raise
    finally:
        stopped.set()


def _feed(
    threads: int, work: Callable[[T], R], units: Iterable[T], outcomes: queue.Queue[Any], stopped: threading.Event
) -> None:
    import dask.threaded  # as a callable: its name would make dask look for a cluster, and import distributed

    def put(kind: str, value: Any) -> None:
        while not stopped.is_set():
            try:
                return outcomes.put((kind, value), timeout=LOOK_SECONDS)
            except queue.Full:
                pass

    def one(unit: T) -> None:
        if not stopped.is_set():
            put("outcome", work(unit))

    iterator = iter(units)
    try:
        with ThreadPoolExecutor(threads) as pool:
            while not stopped.is_set() and (batch := list(itertools.islice(iterator, GRAPH))):
                # The unit travels inside the callable: dask would walk through an argument in search of tasks.
                tasks = [
                    dask.delayed(functools.partial(one, unit), name=f"unit-{index}", pure=False, traverse=False)()
                    for index, unit in enumerate(batch)
                ]
                dask.compute(*tasks, scheduler=dask.threaded.get, pool=pool, optimize_graph=False)
        put("end", None)
    except BaseException as error:
        put("error", error)
