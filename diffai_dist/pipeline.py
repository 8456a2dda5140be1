"""The main path: open, align, plan, measure, judge, keep. A command is a call of one of these functions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

from diffai_dist import storage
from diffai_dist.checkpoint import Checkpoint
from diffai_dist.cluster import Place, engine, memory_bytes
from diffai_dist.collect import Collector
from diffai_dist.comparison import Comparison
from diffai_dist.conclusions import conclude, of_series
from diffai_dist.errors import ClusterError, StoreError, UsageError
from diffai_dist.execute import Outcome, lost, measure
from diffai_dist.layers import layer_comparison, layer_similarity
from diffai_dist.opening import Group, Opened, open_group
from diffai_dist.plan import Plan, Unit, make_plan
from diffai_dist.records import AnalysisRecord, Measurements
from diffai_dist.reuse import Reuse, find_reuse, saved_bytes
from diffai_dist.rows import Rows
from diffai_dist.run import Reading, Run, Settings, comparison_document, plan_document, run_id

if TYPE_CHECKING:
    from diffai_dist.store import Publisher, ReportStore

log = logging.getLogger(__name__)


class OnProgress(Protocol):
    """Called when a unit is settled."""

    def __call__(self, nbytes: int, tensors: int, failed: int, retries: int, reused: bool = False) -> None:
        """What the unit settled, the requests repeated so far, and whether it was settled by an earlier attempt."""


StartProgress = Callable[[Plan], OnProgress | None]


@dataclass(slots=True)
class _Total:
    """What all processes have asked of storage: each tells its sum so far with every outcome."""

    traffic: dict[str, storage.Traffic]
    nbytes: int = 0

    def add(self, outcome: Outcome) -> None:
        self.traffic[outcome.process] = outcome.traffic
        self.nbytes += outcome.nbytes

    def sum(self, name: str) -> int:
        return sum(getattr(one, name) for one in self.traffic.values())


def run_plan(
    plan: Plan,
    place: Place,
    on_progress: OnProgress | None = None,
    finished: Mapping[str, Rows] | None = None,
    publisher: Publisher | None = None,
) -> tuple[Measurements, Reading]:
    """Measure every unit of a plan that is not `finished`, at a place; the same bits wherever that is.

    What is measured without a failure goes to the publisher, so that it need not be read again.
    """
    collector, total = Collector(plan), _Total({})
    taken = _take_finished(plan, collector, finished or {}, on_progress)
    under_way: dict[int, Unit] = {}
    with engine(place, lost) as run:
        for outcome in run(measure, _left(plan, taken, under_way)):
            unit = under_way.pop(outcome.unit)
            done = collector.add(unit, outcome.rows, outcome.failures)
            if publisher is not None and not outcome.failures:
                publisher.add(unit.key, outcome.rows)
            total.add(outcome)
            if on_progress:
                on_progress(outcome.nbytes, done, len(outcome.failures), total.sum("retries"))
    reading = Reading(total.nbytes, requests=total.sum("requests"), retries=total.sum("retries"))
    log.info("requests %d, bytes read %d; headers included", reading.requests, total.sum("bytes"))
    return collector.measurements(), reading


def _take_finished(
    plan: Plan, collector: Collector, finished: Mapping[str, Rows], on_progress: OnProgress | None
) -> set[int]:
    """Add what is there already; which units that were."""
    taken: set[int] = set()
    for unit in plan.units() if finished else ():
        rows = finished.get(unit.key)
        if rows is not None:
            taken.add(unit.index)
            done = collector.add(unit, rows)
            if on_progress:
                on_progress(unit.nbytes, done, 0, 0, reused=True)
    return taken


def _left(plan: Plan, taken: Set[int], under_way: dict[int, Unit]) -> Iterator[Unit]:
    """The other units, noted as long as they are under way: a million units are never in memory together."""
    for unit in plan.units():
        if unit.index not in taken:
            under_way[unit.index] = unit
            yield unit


def fit_place(plan: Plan, place: Place) -> Place:
    """As many threads as --memory-limit allows in this process; a worker gets those asked for or the run is refused."""
    limit = memory_bytes(place.memory_limit)
    if limit is None or place.scheduler is not None:
        return place
    fewest = place.threads_each if place.workers else 1
    if plan.peak_memory(fewest) > limit:
        needed = f"{plan.peak_memory(fewest):,} bytes that a process with {fewest} threads needs"
        raise UsageError(f"--memory-limit {place.memory_limit} is less than the {needed}")
    fitting = (threads for threads in range(place.threads_each, 0, -1) if plan.peak_memory(threads) <= limit)
    return replace(place, threads=next(fitting))


def compared(opened: Opened, settings: Settings) -> Comparison | None:
    """The aligned tensors of all members that could be opened; a selection that leaves nothing is an error."""
    comparison = opened.comparison(settings.selection, settings.matching)
    if comparison is not None and comparison.left_out and not comparison.aligned:
        found = f"the selection leaves none of {comparison.left_out:,} tensors; globs match whole names"
        coded = any(tensor.quantised for member in comparison.members for tensor in member.tensors.values())
        parts = ", and scales or zero points are no tensors of their own but with --raw" if coded else ""
        raise UsageError(found + parts)
    return comparison


def run_group(
    group: Group, settings: Settings, store: ReportStore | None = None, start_progress: StartProgress | None = None
) -> Run:
    """Compare the members of a group, and keep the run in the store if there is one."""
    opened = open_group(group, settings.profile)
    comparison = compared(opened, settings)
    if store is not None:
        return _run_stored(opened, comparison, settings, store, start_progress)
    plan, measured, reading = None, None, Reading()
    if comparison is not None:
        plan = make_plan(comparison, settings.profile, settings.unit_bytes)
        place = fit_place(plan, settings.place)
        measured, reading = run_plan(plan, place, start_progress(plan) if start_progress else None)
        reading = replace(reading, shared_bytes=plan.shared_bytes)
    identity = run_id(comparison_document(opened), settings)
    sweep = conclude(opened, measured, settings, _of_a_pair(opened, measured, settings))
    return Run(identity, sweep, settings, plan, measured, reading)


def _of_a_pair(opened: Opened, measured: Measurements | None, settings: Settings) -> tuple[AnalysisRecord, ...]:
    """Analyses of a series, where there are only two: the layers of each are a series, too."""
    if opened.group.mode is not None:
        return ()
    layers = "similarity_matrix" in settings.analyses and measured is not None
    return (
        *(_layers_of(one, settings) for one in opened.checkpoints if one is not None and layers),
        *of_series(opened, measured, settings, apart=("similarity_matrix",)),
    )


def _layers_of(checkpoint: Checkpoint, settings: Settings) -> AnalysisRecord:
    comparison = layer_comparison(checkpoint, settings.selection)
    plan = make_plan(comparison, settings.profile, settings.unit_bytes) if comparison else None
    layers = run_plan(plan, fit_place(plan, settings.place))[0] if plan else None
    return layer_similarity(checkpoint, layers)


def _run_stored(
    opened: Opened,
    comparison: Comparison | None,
    settings: Settings,
    store: ReportStore,
    start_progress: StartProgress | None,
) -> Run:
    """The same with its plan frozen first, and every step kept: killed at any moment, it goes on where it was."""
    reuse = find_reuse(comparison, settings, store) if comparison else Reuse()
    plan = _plan_rest(comparison, reuse, settings, settings.unit_bytes)
    now = datetime.now(UTC).isoformat(timespec="milliseconds")  # two runs of a second have an order
    frozen = store.begin(plan_document(opened, settings, plan, now) | {"reused": reuse.document()})
    run = frozen["run"]
    kept = store.finished(run) if opened.group.mode is not None else None
    if kept is not None:
        return Run(run, kept, settings, reading=Reading(notes=(f"run {run} is finished: nothing was read",)))
    if frozen["reused"] != reuse.document() or (plan and frozen["unit_bytes"] != plan.unit_bytes):
        reuse = reuse.only(frozen["reused"])  # so that the units are those that an earlier attempt has kept
        plan = _plan_rest(comparison, reuse, settings, frozen["unit_bytes"])
    measured, reading = None, Reading()
    if comparison is not None and plan is not None:
        measured, reading = _measure_kept(frozen, plan, settings, store, start_progress)
        measured = reuse.combined(comparison, measured)
        reading = _told(reading, comparison, reuse, plan)
    sweep = conclude(opened, measured, settings, _of_a_pair(opened, measured, settings))
    done = Run(run, sweep, settings, plan, measured, reading)
    try:
        store.finish(frozen, sweep, measured, settings, environment(reading))
    except StoreError as error:
        return replace(done, store_error=error)
    return done


def _plan_rest(comparison: Comparison | None, reuse: Reuse, settings: Settings, unit_bytes: int | None) -> Plan | None:
    if comparison is None:
        return None
    return make_plan(reuse.remaining(comparison), settings.profile, unit_bytes)


def _measure_kept(
    frozen: Mapping[str, Any], plan: Plan, settings: Settings, store: ReportStore, start_progress: StartProgress | None
) -> tuple[Measurements, Reading]:
    """Measure what no kept unit tells, and keep each new one."""
    run = frozen["run"]
    finished = store.units(run)
    place = fit_place(plan, settings.place)
    try:
        with store.publisher(run) as publisher:
            return run_plan(plan, place, start_progress(plan) if start_progress else None, finished, publisher)
    except ClusterError as error:
        url = storage.redact(store.url)
        raise ClusterError(f"{error}. What was measured is kept: diffai-dist resume {run} --store {url}") from error


def _told(reading: Reading, comparison: Comparison, reuse: Reuse, plan: Plan) -> Reading:
    notes = []
    if reuse.pairs:
        notes.append(f"{len(reuse.pairs):,} of {len(comparison.pairs):,} pairs were measured by earlier runs")
    return replace(
        reading,
        shared_bytes=plan.shared_bytes,
        stored_bytes=saved_bytes(comparison, reuse),
        notes=tuple(notes),
    )


def environment(reading: Reading) -> dict[str, Any]:
    """What may differ between runs of equal results: versions, and what was read."""
    versions = {name: version(name) for name in ("diffai-dist", "numpy", "numba")}
    return {"versions": versions, "reading": asdict(reading)}
