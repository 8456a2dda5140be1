"""Units through a dask client: a bounded window of futures, outcomes as they come."""

from __future__ import annotations

import itertools
import queue
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future as Answer
from typing import TYPE_CHECKING, Any

from diffai_dist.cluster.fit import check_fit
from diffai_dist.cluster.pulse import BEAT, Pulse, ask, lost
from diffai_dist.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client, Future

# Each unit that a second chance confirms as deadly costs 4 workers, twice (dask's allowed-failures is 3): beyond so
# many it is the workers that are too small, or somebody kills them.
MOST_DEADLY = 16


def window(threads: int) -> int:
    """How many units to have under way, and so how many outcomes wait at most."""
    return max(4 * threads, 64)


def run_on(
    client: Client, pulse: Pulse, on_lost: Callable[[Any, str], Any], work: Callable[[Any], Any], units: Iterable[Any]
) -> Generator[Any, None, None]:
    """Outcomes in order of arrival. ClusterError where the scheduler, all workers or too many of them are lost."""
    doubtful: list[Any] = []
    # dask gives one result to all who submit a key, and an outcome holds places of its own plan only: two runs of
    # equal units on one scheduler must not share keys. Nor must a second attempt, or it gets the first one's error.
    attempt = uuid.uuid4().hex[:12]

    def doubt(unit: Any) -> None:
        doubtful.append(unit)
        if len(doubtful) > MOST_DEADLY:
            raise ClusterError(
                f"{len(doubtful)} units lost every worker that ran them: "
                "the workers run out of memory or are being killed. Give them more memory or fewer threads"
            )

    yield from _Window(client, pulse, work, attempt).run(units, doubt)
    # dask blames all units of a lost worker: those lost beside a deadly one get a second chance, one at a time.
    for unit in doubtful:
        deadly: list[Any] = []
        yield from _Window(client, pulse, work, f"{attempt}-again").run([unit], deadly.append)
        yield from (on_lost(one, "every worker that ran it was lost") for one in deadly)


class _Window:
    """The futures under way."""

    def __init__(self, client: Client, pulse: Pulse, work: Callable[[Any], Any], attempt: str) -> None:
        self.client, self.pulse, self.work, self.attempt = client, pulse, work, attempt
        self.under_way: dict[Answer[Any], tuple[Any, Future]] = {}
        self.arrived: queue.SimpleQueue[Answer[Any]] = queue.SimpleQueue()

    def run(self, units: Iterable[Any], on_killed: Callable[[Any], None]) -> Iterator[Any]:
        """The outcome of every unit, or `on_killed(unit)`."""
        todo = enumerate(units)
        try:
            self.feed(todo)
            while self.under_way:
                for answer in self.arrivals():
                    unit, future = self.under_way.pop(answer)
                    if self.is_killed(answer, future):
                        on_killed(unit)
                    else:
                        yield answer.result()
                    future.release()
                self.feed(todo)
        finally:
            self.release()

    def feed(self, todo: Iterator[tuple[int, Any]]) -> None:
        """Submit as many units as the window, which follows the number of threads, has room for."""
        for index, unit in itertools.islice(todo, max(0, window(self.pulse.threads) - len(self.under_way))):
            future = self.submit(index, unit)
            answer = ask(self.client, future.result)
            self.under_way[answer] = unit, future
            answer.add_done_callback(self.arrived.put)

    def submit(self, index: int, unit: Any) -> Future:
        key = f"unit-{unit.key}-{self.attempt}"
        try:
            return self.client.submit(self.work, unit, key=key, priority=-index, pure=False)
        except Exception as error:
            if self.client.status != "running":
                raise lost(error) from error
            raise

    def arrivals(self) -> list[Answer[Any]]:
        """Answers that are here, after a moment's wait if there are none."""
        try:
            found = [self.arrived.get(timeout=BEAT)]
        except queue.Empty:
            self.pulse.beat(BEAT)
            return []
        while not self.arrived.empty():
            found.append(self.arrived.get())
        self.pulse.beat()
        return found

    def is_killed(self, answer: Answer[Any], future: Future) -> bool:
        """Whether the unit lost its workers too often; any other error than that is raised."""
        from distributed import KilledWorker
        from distributed.scheduler import NoValidWorkerError, NoWorkerError

        error = answer.exception()
        match error:
            case None | KilledWorker():
                return error is not None
            case ClusterError():
                raise error
            case NoValidWorkerError() | NoWorkerError():
                raise ClusterError(f"the scheduler has no workers: {error}") from error
        if future.status != "error":  # the unit is not to blame: its outcome could not be fetched
            raise lost(getattr(error, "reason", error)) from error
        check_fit(self.client)  # a worker of another version fails in any way
        raise error

    def release(self) -> None:
        """What nobody waits for any more need not be computed."""
        for _, future in self.under_way.values():
            future.release()
        self.under_way.clear()
