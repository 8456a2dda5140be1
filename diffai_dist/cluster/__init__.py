"""Where units run: this process, a LocalCluster, a running scheduler, SLURM jobs. The only home of dask.

Every place has the contract of the built-in `map`, except that outcomes come in any order. What ends a run is a
ClusterError; what a single unit does to its workers is that unit's outcome.

    place     the places as values
    here      threads of this process
    client    a client of a LocalCluster or of a running scheduler; TLS
    slurm     a client of workers in SLURM jobs
    fit       who may compute
    pulse     who lives
    units     units through a client
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from diffai_dist.cluster import pulse
from diffai_dist.cluster.client import local_client, scheduler_client
from diffai_dist.cluster.fit import check_fit, run_if_fit, versions
from diffai_dist.cluster.here import run_here
from diffai_dist.cluster.place import Place, Slurm, Tls, memory_bytes
from diffai_dist.cluster.slurm import slurm_client
from diffai_dist.cluster.units import run_on
from diffai_dist.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Place", "RunUnits", "Slurm", "Tls", "engine", "memory_bytes", "versions"]

T = TypeVar("T")
R = TypeVar("R")
RunUnits = Callable[[Callable[[T], R], Iterable[T]], Generator[R, None, None]]  # close it to leave early


@contextmanager
def engine(place: Place, on_lost: Callable[[Any, str], Any]) -> Iterator[RunUnits[Any, Any]]:
    """A `map` over units at that place; a unit that no worker survives becomes `on_lost(unit, reason)`."""
    if place.is_here:
        yield _whole(functools.partial(run_here, place.threads_each))
        return
    with _client(place) as (client, new_pulse):
        new_pulse().wait_for_workers()
        check_fit(client)

        def run(work: Callable[[Any], Any], units: Iterable[Any]) -> Generator[Any, None, None]:
            work = functools.partial(_logged, work) if place.verbose else work
            work = functools.partial(run_if_fit, versions(), work)
            return run_on(client, new_pulse(), on_lost, work, units)

        yield _whole(run)


@contextmanager
def _client(place: Place) -> Iterator[tuple[Client, Callable[[], pulse.Pulse]]]:
    """A client, and how to watch its cluster."""
    if place.slurm is not None:
        patience = place.slurm.wait_seconds
        with slurm_client(place.slurm, place.tls) as (client, renew):
            yield client, lambda: pulse.Pulse(client, patience, renew)
        return
    connect = scheduler_client(place.scheduler, place.tls) if place.scheduler else local_client(place)
    with connect as client:
        yield client, lambda: pulse.Pulse(client, pulse.NO_WORKERS_SECONDS)


def _whole(run: RunUnits[T, R]) -> RunUnits[T, R]:
    """The same, except that outcomes that end before every unit has one are an error."""

    def counted(work: Callable[[T], R], units: Iterable[T]) -> Generator[R, None, None]:
        given = came = 0

        def give() -> Iterator[T]:
            nonlocal given
            for unit in units:
                given += 1
                yield unit

        with contextlib.closing(run(work, give())) as outcomes:
            for outcome in outcomes:
                came += 1
                yield outcome
        if came != given:
            raise ClusterError(f"only {came:,} of {given:,} units came back: the rest was lost on the way")

    return counted


def _logged(work: Callable[[T], R], unit: T) -> R:
    """Run a unit in a process that may not have been told to log."""
    logger = logging.getLogger("diffai_dist")
    if not logger.handlers and not logging.getLogger().handlers:
        logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.DEBUG)
    return work(unit)
