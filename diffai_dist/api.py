"""What Python programs call. A command of the command line is one of these calls."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from diffai_dist import storage
from diffai_dist.analyses import EVERY
from diffai_dist.cluster import Place
from diffai_dist.comparison import Pair, Selection
from diffai_dist.config import FailOn, SweepConfig, checked_thresholds, load, load_policy, merged
from diffai_dist.errors import CheckpointError, Failure, GateBroken, SourceChanged, UsageError
from diffai_dist.gates import Gate, judge
from diffai_dist.inspection import plan_document
from diffai_dist.matching import Matching
from diffai_dist.opening import Group, Opened, open_group, pair_of
from diffai_dist.pipeline import StartProgress, compared, fit_place, run_group
from diffai_dist.plan import make_plan
from diffai_dist.records import Coverage, Finding, Member, Result
from diffai_dist.report import as_records, total_coverage
from diffai_dist.request import (
    analyses_of,
    details_of,
    expectations,
    group_of,
    matching_of,
    partials_of,
    settings_of,
)
from diffai_dist.reuse import Reuse, find_reuse, saved_bytes
from diffai_dist.run import Run, Settings, comparison_document, run_id
from diffai_dist.storage import Profile
from diffai_dist.store import ReportStore

if TYPE_CHECKING:
    import pandas
    import pyarrow


class Report(Run):
    """A finished run: rows and columns of what was found."""

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of `--output json`: changes, failures, analyses."""
        return list(as_records(self.sweep))

    @property
    def result(self) -> Result:
        """The comparison of the first pair; the only one of `compare`."""
        return self.sweep.results[0]

    @property
    def coverage(self) -> Coverage:
        """What was compared, and what was not and why; a tensor counts in each pair that has it."""
        return total_coverage(self.sweep)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings of all analyses: of the series first, then pair by pair."""
        analyses = [*self.sweep.analyses, *(one for result in self.sweep.results for one in result.analyses)]
        return tuple(finding for analysis in analyses for finding in analysis.findings)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What could not be read."""
        return self.sweep.failures

    @property
    def tensors(self) -> pyarrow.Table:
        """All tensors of all pairs, identical ones too, as an Arrow table: a row each, a column per statistic."""
        from diffai_dist.store import all_tensors

        return all_tensors(self.sweep.results, self.id)

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

    def raise_for_policy(self, policy: str, fail_on: FailOn | Sequence[FailOn] = ()) -> Report:
        """The report itself, or GateBroken with the worst that the policy file, or `fail_on`, does not let pass."""
        conditions = (fail_on,) if isinstance(fail_on, str) else tuple(fail_on)
        verdict = judge(self.sweep, Gate(conditions, load_policy(policy)), datetime.now(UTC).date())
        if verdict.met:
            raise GateBroken("; ".join(verdict.lines()))
        return self

    def raise_for_store(self) -> None:
        """The error that kept the run from being kept, if there was one."""
        if self.store_error is not None:
            raise self.store_error

    def to_dict(self) -> dict[str, Any]:
        """The run document: comparison, coverage, failures, settings, schema version, exit code."""
        from diffai_dist.store import run_document

        return run_document(self.id, self.sweep, self.settings.digest_part())


def run(
    group: Group, settings: Settings, store: str | None = None, start_progress: StartProgress | None = None
) -> Report:
    """Compare the members of a group; with a store, keep every step there and take up what is there.

    A result that could not be kept is returned all the same: `raise_for_store` tells.
    """
    kept = open_store(store, settings.profile) if store else None
    done = run_group(group, settings, kept, start_progress)
    return Report(done.id, done.sweep, done.settings, done.plan, done.measurements, done.reading, done.store_error)


def open_store(url: str, profile: Profile) -> ReportStore:
    """The report store at a URL or in a folder."""
    return ReportStore(storage.check_url(url), profile)


def compare_group(baseline: str, candidate: str, settings: Settings) -> Group:
    """A comparison of two, with what its analyses ask for; the only products of two follow from their pair."""
    return replace(
        pair_of(baseline, candidate),
        details=details_of(settings.analyses, settings.expect),
        with_config="config" in partials_of(settings.analyses),
        raw=settings.raw,
    )


def compare(
    baseline: str,
    candidate: str,
    *,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    ignore_keys_regex: str | None = None,
    map: str | None = None,
    raw: bool = False,
    epsilon: float | None = None,
    analyses: Sequence[str] = (),
    thresholds: Mapping[str, Mapping[str, Any]] | None = None,
    expect_frozen: str | Sequence[str] = (),
    expect_changed: str | Sequence[str] = (),
    expect_cast: str | None = None,
    store: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    threads: int | None = None,
    memory_limit: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    unit_bytes: int | None = None,
) -> Report:
    """Compare two checkpoints and return the report; the same as `diffai-dist compare`.

    With `raw`, codes of quantised weights are compared, not their values. `analyses` are names, or "all"; `thresholds`
    as in `{"anomaly_detection": {"dead_row_share": 0.02}}`. `storage_options` takes `endpoint_url`, `anon` and
    `profile`; secrets come from the environment. Workers are processes: a script that asks for them does so under
    `if __name__ == "__main__":`.
    Raises UsageError, ClusterError or StoreError; what could not be read is in `failures` of the report.
    """
    asked = analyses_of(analyses, series=False)
    settings = Settings(
        Selection(_globs(include), _globs(exclude), ignore_keys_regex),
        epsilon,
        asked,
        checked_thresholds(thresholds or {}),
        _profile(storage_options or {}),
        Place(workers, scheduler, threads, memory_limit),
        unit_bytes,
        expect=expectations(_globs(expect_frozen), _globs(expect_changed), expect_cast),
        matching=matching_of(asked, map),
        raw=raw,
    )
    report = run(compare_group(baseline, candidate, settings), settings, store)
    report.raise_for_store()
    return report


def sweep(config: str | None = None, **settings: Any) -> Report:
    """Compare many checkpoints and return the report; the same as `diffai-dist sweep`.

    `config` is the path of a configuration. Settings are named as in one, and go before it:
    `sweep(checkpoints="s3://bucket/run7/step-*", pairs="consecutive", store="s3://bucket/reports")`.
    What decides the exit code of the command, `fail_on` and `policy`, a program asks for: `raise_for_policy`.
    Raises UsageError, ClusterError or StoreError; what could not be read is in `failures` of the report.
    """
    asked = merged(load(config, os.environ, EVERY) if config else SweepConfig(checkpoints=()), settings)
    chosen = settings_of(asked)
    report = run(group_of(asked, datetime.now(UTC)), chosen, asked.store)
    report.raise_for_store()
    return report


def resumed(run: str, store: str, profile: Profile, place: Place) -> tuple[Group, Settings]:
    """The question of an interrupted run, as its plan has it; only where it runs, and what the profile says, is new.

    Raises SourceChanged where a checkpoint is no longer what the plan pinned: that run cannot be finished.
    """
    plan = open_store(store, profile).plan(run)
    comparison, chosen, reached = plan["comparison"], plan["settings"], plan["storage"]
    expect = expectations(**chosen.get("expect", {}))
    group = Group(
        tuple(Member(one["name"], one["url"], one["step"], one["date"]) for one in comparison["members"]),
        tuple(one["url"] for one in comparison["members"]),
        tuple(Pair(*pair) for pair in comparison["pairs"]),
        comparison["mode"],
        comparison["name"],
        comparison["anchor"],
        comparison["elementwise"],
        details_of(chosen["analyses"], expect),
        "config" in partials_of(chosen["analyses"]),
        chosen["raw"],
    )
    settings = Settings(
        Selection(tuple(chosen["include"]), tuple(chosen["exclude"]), chosen["ignore_keys_regex"]),
        chosen["epsilon"],
        tuple(chosen["analyses"]),
        chosen["thresholds"],
        Profile(
            profile.endpoint_url or reached["endpoint_url"],
            profile.anon or reached["anon"],
            profile.name or reached["profile"],
        ),
        place,
        plan["unit_bytes"],
        expect=expect,
        matching=Matching.of(chosen["matching"]),
        raw=chosen["raw"],
    )
    _check_unchanged(plan, open_group(group, settings.profile), settings)
    return group, settings


def _check_unchanged(plan: Mapping[str, Any], opened: Opened, settings: Settings) -> None:
    now = comparison_document(opened)
    if run_id(now, settings) == plan["run"]:
        return
    hint = "The run cannot be finished; sweep again: what is unchanged is taken from the store"
    for before, after in zip(plan["comparison"]["members"], now["members"], strict=True):
        if before["objects"] != after["objects"]:
            raise SourceChanged(before["url"], "other objects than the plan pinned, or none", hint=hint)
        if before.get("problems", []) != after["problems"]:
            raise SourceChanged(before["url"], "its index is not what it was", hint=hint)
        if before.get("config") != after.get("config"):
            raise SourceChanged(before["url"], "its config.json is not what it was", hint=hint)
        if before.get("coded") != after.get("coded"):
            raise SourceChanged(before["url"], "what is declared of its quantisation is not what it was", hint=hint)
    raise UsageError(f"run {plan['run']} was planned by another version of diffai-dist. {hint}")


def planned(group: Group, settings: Settings, store: str | None) -> dict[str, Any]:
    """What a run would read, what the store has of it already, what it would need, and what is wrong; no weights."""
    opened = open_group(group, settings.profile)
    comparison = compared(opened, settings)
    if comparison is None:
        return plan_document(opened)
    kept = open_store(store, settings.profile) if store else None
    reuse = find_reuse(comparison, settings, kept) if kept else Reuse()
    plan = make_plan(reuse.remaining(comparison), settings.profile, settings.unit_bytes)
    finished = kept.units(run_id(comparison_document(opened), settings)) if kept else {}
    there = [unit.nbytes for unit in plan.units() if unit.key in finished] if finished else []
    stored = {"pairs": len(reuse.pairs), "bytes": saved_bytes(comparison, reuse), "units": len(there)}
    return plan_document(opened, comparison, plan, fit_place(plan, settings.place), stored, sum(there))


def _globs(globs: str | Sequence[str]) -> tuple[str, ...]:
    return (globs,) if isinstance(globs, str) else tuple(globs)


def _profile(options: Mapping[str, Any]) -> Profile:
    names = {"endpoint_url": "endpoint_url", "anon": "anon", "profile": "name"}
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise UsageError(f"storage_options takes {', '.join(names)}, and no secrets; not {', '.join(unknown)}")
    return Profile(**{names[key]: value for key, value in options.items()})
