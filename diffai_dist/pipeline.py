"""The main path: open, align, plan, measure, analyse. A command is a call of one of these functions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from diffai_dist import storage
from diffai_dist.analyses import ANALYSES
from diffai_dist.analyses.sums import whole_rel_l2
from diffai_dist.checkpoint import Checkpoint
from diffai_dist.cluster import Place, engine, memory_bytes
from diffai_dist.comparison import Comparison, Pair, Selection, compare_members
from diffai_dist.errors import CheckpointError, Failure, UsageError
from diffai_dist.execute import Collector, lost, measure
from diffai_dist.formats import open_checkpoint
from diffai_dist.judging import coverage, tensor_records
from diffai_dist.plan import Plan, make_plan
from diffai_dist.records import Coverage, Finding, Measurements, Result
from diffai_dist.report import as_records
from diffai_dist.run import Run, Settings
from diffai_dist.storage import Profile

if TYPE_CHECKING:
    import pandas
    import pyarrow

log = logging.getLogger(__name__)

# Called with the bytes, the tensors and the failures that a unit settled, and the requests repeated so far.
OnProgress = Callable[[int, int, int, int], None]


@dataclass(frozen=True, slots=True)
class Opened:
    """The members as far as they could be opened, and why the others could not."""

    urls: tuple[str, ...]  # redacted
    members: tuple[Checkpoint | None, ...]
    failures: tuple[Failure, ...]

    def comparison(self, selection: Selection) -> Comparison | None:
        """The pair to compare; None where a side is missing altogether."""
        members = [member for member in self.members if member is not None]
        if len(members) < len(self.members):
            return None
        return compare_members(members, [Pair(0, 1)], selection)


def open_members(urls: Sequence[str], profile: Profile) -> Opened:
    """Read the headers of all members, side by side; a bad one does not hide what is wrong with the others."""
    checked = [storage.check_url(url) for url in urls]

    def attempt(url: str) -> Checkpoint | CheckpointError:
        try:
            return open_checkpoint(url, profile)
        except CheckpointError as error:
            return error

    pool = ThreadPoolExecutor(len(checked))
    try:
        found = list(pool.map(attempt, checked))
    finally:  # a signal does not wait for a server that does not answer
        pool.shutdown(wait=False, cancel_futures=True)
    failures = [
        failure for one in found for failure in ([one.failure] if isinstance(one, CheckpointError) else one.failures)
    ]
    members = tuple(None if isinstance(one, CheckpointError) else one for one in found)
    return Opened(tuple(map(storage.redact, checked)), members, tuple(failures))


def run_plan(plan: Plan, place: Place, on_progress: OnProgress | None = None) -> Measurements:
    """Measure every unit of a plan at a place. The same bits wherever that is."""
    collector = Collector(plan)
    traffic: dict[str, storage.Traffic] = {}
    with engine(place, lost) as run:
        for outcome in run(measure, plan.units()):
            done = collector.add(outcome)
            traffic[outcome.process] = outcome.traffic
            if on_progress:
                retries = sum(one.retries for one in traffic.values())
                on_progress(outcome.nbytes, done, len(outcome.failures), retries)
    requests, read = (sum(getattr(one, name) for one in traffic.values()) for name in ("requests", "bytes"))
    log.info("requests %d, bytes read %d, processes %d; headers included", requests, read, len(traffic))
    return collector.measurements()


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


def judge(opened: Opened, measured: Measurements | None, settings: Settings) -> Result:
    """What the measurements say about the pair: records, coverage, analyses."""
    baseline, candidate = opened.urls
    warnings = tuple(warning for member in opened.members if member for warning in member.warnings)
    if measured is None:
        closed = sum(member is None for member in opened.members)
        nothing = Coverage(0, 0, 0, 0, 0, 0, 0, {"could not be opened": closed})
        return Result(baseline, candidate, (), opened.failures, (), nothing, warnings)
    records = tensor_records(measured, 0, settings.epsilon)
    failed = [replace(failure, tensor=measured.comparison.aligned[i].name) for i, failure in measured.failures.items()]
    unreadable = [failure for one in measured.comparison.aligned for failure in one.unreadable if failure]
    failures = tuple(dict.fromkeys((*opened.failures, *unreadable, *failed)))
    analyses = tuple(ANALYSES[name]()(measured, 0, records) for name in settings.analyses)
    covered = coverage(measured.comparison, measured.comparison.pairs[0], records)
    whole = whole_rel_l2(measured, 0, records)
    return Result(baseline, candidate, records, failures, analyses, covered, warnings, whole)


class Report(Run):
    """A finished comparison: rows and columns of what was found."""

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of `--output json`: changes, failures, analyses."""
        return list(as_records(self.result))

    @property
    def coverage(self) -> Coverage:
        """What was compared, and what was not and why."""
        return self.result.coverage

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings of all analyses that were asked for."""
        return tuple(finding for analysis in self.result.analyses for finding in analysis.findings)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What could not be read."""
        return self.result.failures

    @property
    def tensors(self) -> pyarrow.Table:
        """All tensors, identical ones too, as an Arrow table: one row each, one column per statistic."""
        from diffai_dist.store import tensor_table

        return tensor_table(self.result, self.id)

    def to_arrow(self) -> pyarrow.Table:
        """The same as `tensors`."""
        return self.tensors

    def to_pandas(self) -> pandas.DataFrame:
        """All tensors as a DataFrame; needs pandas."""
        try:
            return self.tensors.to_pandas()
        except ModuleNotFoundError as error:
            raise UsageError("to_pandas needs pandas: pip install 'diffai-dist[pandas]'") from error

    def raise_for_failures(self) -> Report:
        """The report itself, or the error of the first thing that could not be read."""
        for failure in self.failures:
            raise CheckpointError(
                failure.object, failure.found, expected=failure.expected, hint=failure.hint, tensor=failure.tensor
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """The run document: comparison, coverage, failures, settings, schema version, exit code."""
        from diffai_dist.store import run_document

        return run_document(self)


def run_comparison(
    urls: Sequence[str], settings: Settings, start_progress: Callable[[Plan], OnProgress | None] | None = None
) -> Report:
    """Compare two checkpoints; `start_progress` is called once the plan is known."""
    opened = open_members(urls, settings.profile)
    comparison = opened.comparison(settings.selection)
    if comparison is None:
        return Report(judge(opened, None, settings), None, None, settings)
    if comparison.left_out and not comparison.aligned:
        raise UsageError(f"the selection leaves none of {comparison.left_out:,} tensors; globs match whole names")
    plan = make_plan(comparison, settings.profile, settings.unit_bytes)
    place = fit_place(plan, settings.place)
    measured = run_plan(plan, place, start_progress(plan) if start_progress else None)
    return Report(judge(opened, measured, settings), plan, measured, settings)


def compare(
    baseline: str,
    candidate: str,
    *,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    ignore_keys_regex: str | None = None,
    epsilon: float | None = None,
    analyses: Sequence[str] = (),
    store: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    threads: int | None = None,
    memory_limit: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    unit_bytes: int | None = None,
) -> Report:
    """Compare two checkpoints and return the report; the same as `diffai-dist compare`.

    `storage_options` takes `endpoint_url`, `anon` and `profile`; secrets come from the environment. Workers are
    processes: a script that asks for them does so under `if __name__ == "__main__":`.
    Raises UsageError, ClusterError or StoreError; what could not be read is in `failures` of the report.
    """
    unknown = [name for name in analyses if name not in ANALYSES]
    if unknown:
        raise UsageError(f"unknown analysis {unknown[0]!r}; there are {', '.join(ANALYSES)}")
    settings = Settings(
        Selection(_globs(include), _globs(exclude), ignore_keys_regex),
        epsilon,
        tuple(analyses),
        _profile(storage_options or {}),
        Place(workers, scheduler, threads, memory_limit),
        unit_bytes,
    )
    report = run_comparison([baseline, candidate], settings)
    if store:
        save(report, store)
    return report


def _globs(globs: str | Sequence[str]) -> tuple[str, ...]:
    return (globs,) if isinstance(globs, str) else tuple(globs)


def _profile(options: Mapping[str, Any]) -> Profile:
    names = {"endpoint_url": "endpoint_url", "anon": "anon", "profile": "name"}
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise UsageError(f"storage_options takes {', '.join(names)}, and no secrets; not {', '.join(unknown)}")
    return Profile(**{names[key]: value for key, value in options.items()})


def save(report: Report, store: str) -> str:
    """Keep the report in the store at that URL; returns the run's identity."""
    from diffai_dist.store import ReportStore

    return ReportStore(storage.check_url(store), report.settings.profile).save(report)
