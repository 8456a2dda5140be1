"""Where units run: this process, a LocalCluster, or a running scheduler. The only module that knows dask.

Every place has the contract of the built-in `map`, except that outcomes come in any order.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import queue
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from diffai_dist.errors import ClusterError, UsageError

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
R = TypeVar("R")
RunUnits = Callable[[Callable[[T], R], Iterable[T]], Iterator[R]]

log = logging.getLogger(__name__)

# dask holds one graph of at most this many units at a time, so that a million units need no memory for graphs.
WINDOW = 1024
STOP_SECONDS = 5  # how long units under way may take to end once nobody wants them
CONNECT_TIMEOUT = 15  # seconds in which a scheduler answers
WORKER_TIMEOUT = 60  # seconds to wait for the first worker


@dataclass(frozen=True, slots=True)
class Place:
    """Where to run: neither workers nor scheduler means threads of this process."""

    workers: int | None = None
    scheduler: str | None = None  # an address, `env` for DASK_SCHEDULER_ADDRESS, or a scheduler file
    threads: int | None = None  # per process
    memory_limit: str | None = None  # of this process, or of each worker of a LocalCluster
    verbose: bool = False  # workers log their units to their own stderr

    def __post_init__(self) -> None:
        if self.workers is not None and self.scheduler is not None:
            raise UsageError("workers starts a cluster, scheduler joins one: give one of them")
        for name, number in (("workers", self.workers), ("threads", self.threads)):
            if number is not None and number < 1:
                raise UsageError(f"{name} is {number}: give at least 1")

    @property
    def threads_each(self) -> int:
        """Threads of a process: those asked for, else one of a worker, and of this process one per processor."""
        if self.workers is not None or self.scheduler is not None:
            return self.threads or 1
        return self.threads or len(os.sched_getaffinity(0))


def memory_bytes(text: str | None, option: str = "--memory-limit") -> int | None:
    """A size such as `4GB` or `512MiB` in bytes; None for none and for `auto`."""
    if text is None or text == "auto":
        return None
    from dask.utils import parse_bytes

    try:
        return int(parse_bytes(text))
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is not a size such as 4GB") from error


@contextmanager
def engine(place: Place, on_lost: Callable[[Any, str], Any]) -> Iterator[RunUnits[Any, Any]]:
    """A `map` over units at that place; a unit that no worker survives becomes `on_lost(unit, reason)`."""
    if place.workers is None and place.scheduler is None:
        yield functools.partial(_run_here, place.threads_each)
        return
    with _client(place) as client:
        run = functools.partial(_run_on, client, on_lost)
        yield (lambda work, units: run(functools.partial(_logged, work), units)) if place.verbose else run


def _run_here(threads: int, work: Callable[[T], R], units: Iterable[T]) -> Iterator[R]:
    """dask's threaded scheduler, one graph per window; outcomes leave through a queue while the graph runs."""
    outcomes: queue.Queue[tuple[str, Any]] = queue.Queue()
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

    def one(unit: T) -> None:
        if not stopped.is_set():
            outcomes.put(("outcome", work(unit)))

    iterator = iter(units)
    try:
        with ThreadPoolExecutor(threads) as pool:
            while (batch := list(itertools.islice(iterator, WINDOW))) and not stopped.is_set():
                # The unit travels inside the callable: dask would walk through an argument in search of tasks.
                tasks = [
                    dask.delayed(functools.partial(one, unit), name=f"unit-{index}", pure=False, traverse=False)()
                    for index, unit in enumerate(batch)
                ]
                dask.compute(*tasks, scheduler=dask.threaded.get, pool=pool, optimize_graph=False)
        outcomes.put(("end", None))
    except BaseException as error:
        outcomes.put(("error", error))


@contextmanager
def _client(place: Place) -> Iterator[Client]:
    """A client of a new LocalCluster, or of the scheduler that was named; fit for this version."""
    from distributed import Client, LocalCluster

    if place.scheduler is None:
        try:
            cluster = LocalCluster(
                n_workers=place.workers,
                threads_per_worker=place.threads_each,
                processes=True,
                memory_limit=place.memory_limit or "auto",
                dashboard_address="127.0.0.1:0",  # any free port: the default one may be taken by another cluster
                silence_logs=logging.ERROR,
            )
        except (RuntimeError, OSError) as error:
            hint = 'A script that starts workers must do so under `if __name__ == "__main__":`'
            raise ClusterError(f"{place.workers} worker processes could not be started: {error}. {hint}") from error
        with cluster, Client(cluster) as client:
            yield client
        return
    address = _address(place.scheduler)
    try:
        client = Client(**address, timeout=CONNECT_TIMEOUT, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(f"no scheduler answers at {place.scheduler}: {error}") from error
    with client:
        _check_workers(client)
        yield client


def _address(scheduler: str) -> dict[str, str]:
    if scheduler == "env":
        address = os.environ.get("DASK_SCHEDULER_ADDRESS")
        if not address:
            raise UsageError("--scheduler env needs the environment variable DASK_SCHEDULER_ADDRESS")
        return {"address": address}
    scheme, separator, _ = scheduler.partition("://")
    if separator and scheme not in SCHEMES:
        raise UsageError(f"--scheduler {scheduler!r}: the protocol is none of {', '.join(SCHEMES)}")
    if not separator and not os.path.isfile(scheduler):
        raise ClusterError(f"--scheduler {scheduler!r}: there is no such scheduler file, and it is no tcp:// address")
    return {"address": scheduler} if separator else {"scheduler_file": scheduler}


SCHEMES = ("tcp", "tls", "ws", "wss")


def versions() -> dict[str, str]:
    """Versions that decide the bits of a result, or whether a task can be read at all."""
    from importlib.metadata import version

    return {name: version(name) for name in ("diffai-dist", "numpy", "numba")}


def _check_workers(client: Client) -> None:
    try:
        client.wait_for_workers(1, timeout=WORKER_TIMEOUT)
        found = client.run(versions)
    except TimeoutError as error:
        raise ClusterError(f"the scheduler has no workers after {WORKER_TIMEOUT} s: {error}") from error
    except Exception as error:
        raise ClusterError(f"the workers cannot run diffai-dist: {error}. Install the same version there") from error
    for worker, theirs in found.items():
        if theirs != versions():
            raise ClusterError(f"worker {worker} runs {theirs}, this client {versions()}. Install the same versions")


def _run_on(
    client: Client, on_lost: Callable[[Any, str], Any], work: Callable[[Any], Any], units: Iterable[Any]
) -> Iterator[Any]:
    """At most a window of futures at a time; results in order of arrival, each released at once."""
    doubtful: list[Any] = []
    window = max(4 * sum(client.nthreads().values()), 64)
    # dask gives one result to all who submit a key, and an outcome holds places of its own plan only: two runs of
    # equal units on one scheduler must not share keys. Nor must a second attempt, or it gets the first one's error.
    attempt = uuid.uuid4().hex[:12]
    yield from _window(client, work, enumerate(units), window, attempt, doubtful.append)
    # dask blames all units of a lost worker: those lost beside a deadly one get a second chance, one at a time.
    for unit in doubtful:
        deadly: list[Any] = []
        yield from _window(client, work, iter([(0, unit)]), 1, f"{attempt}-again", deadly.append)
        yield from (on_lost(unit, "every worker that ran it was lost") for unit in deadly)


def _window(
    client: Client,
    work: Callable[[Any], Any],
    todo: Iterator[tuple[int, Any]],
    window: int,
    attempt: str,
    on_killed: Callable[[Any], None],
) -> Iterator[Any]:
    from distributed import KilledWorker, as_completed
    from distributed.client import FutureCancelledError

    under_way: dict[str, Any] = {}
    running = as_completed(loop=client.loop, with_results=True, raise_errors=False)

    def feed(count: int) -> None:
        for index, unit in itertools.islice(todo, count):
            future = client.submit(work, unit, key=f"unit-{unit.key}-{attempt}", priority=-index, pure=False)
            under_way[future.key] = unit
            running.add(future)

    feed(window)
    for batch in running.batches():
        for future, result in batch:
            unit = under_way.pop(future.key)
            match _error(result):
                case None:
                    yield result
                case KilledWorker():
                    on_killed(unit)
                case FutureCancelledError() as error:
                    raise ClusterError(f"the scheduler was lost: {error}") from error
                case error:
                    raise error
            future.release()
        feed(len(batch))


def _logged(work: Callable[[T], R], unit: T) -> R:
    """Run a unit in a process that may not have been told to log."""
    logger = logging.getLogger("diffai_dist")
    if not logger.handlers and not logging.getLogger().handlers:
        logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.DEBUG)
    return work(unit)


def _error(result: Any) -> BaseException | None:
    """Why a future failed, None if it did not: as_completed gives an exception, or (type, exception, traceback).

    The future's own status says less: its worker may have died after the result was fetched.
    """
    error = result[1] if isinstance(result, tuple) and len(result) == 3 else result
    return error if isinstance(error, BaseException) else None
