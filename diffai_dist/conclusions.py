"""From measurements to what a run says: a result per pair, their summaries, and the series as a whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import overload

import numpy as np

from diffai_dist.analyses import ANALYSES, SERIES
from diffai_dist.analyses.series import Series
from diffai_dist.comparison import Pair, compare_members
from diffai_dist.errors import Failure
from diffai_dist.gram import grams_of_two
from diffai_dist.judging import coverage, tensor_records
from diffai_dist.opening import Opened
from diffai_dist.partials import MOMENTS, SHIFT, empty
from diffai_dist.records import CLOSED, AnalysisRecord, Coverage, Measurements, PairSummary, Result, Sweep, TensorRecord
from diffai_dist.run import Settings
from diffai_dist.whole import whole_change

# What an analysis of a pair leaves to one of the series where both are asked for: its switch, and that other one.
LEFT_TO = {
    "change_summary": ("non_finite", "anomaly_detection"),
    "quantization_analysis": ("declared", "integrity_check"),
}
KEPT_RECORDS = 200_000  # tensor records kept in memory, some 2 kB each; beyond it a pair's are made when asked for


class Results(Sequence[Result]):
    """One result per pair, made when asked for: forty fine-tunes have 780 pairs of some hundred tensors."""

    def __init__(self, count: int, make: Callable[[int], Result], kept: int | None = None) -> None:
        self._count = count
        self._make = functools.lru_cache(kept)(make)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Result]: ...
    def __getitem__(self, index: int | slice) -> Result | Sequence[Result]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._make(index % self._count)


def conclude(
    opened: Opened, measured: Measurements | None, settings: Settings, further: tuple[AnalysisRecord, ...] = ()
) -> Sweep:
    """Judge every pair, then the series. `further` are analyses of a pair that were measured apart."""
    group = opened.group
    aligned = len(measured.comparison.aligned) if measured else 0
    kept = None if len(group.pairs) * aligned <= KEPT_RECORDS else 2
    results = Results(len(group.pairs), functools.partial(_result, opened, measured, settings, further), kept)
    return Sweep(
        group.name,
        group.mode,
        opened.members,
        tuple(map(summary, results)),
        results,
        _series(opened, measured, settings),
        tuple(dict.fromkeys((*opened.all_failures, *_failures(measured, range(len(opened.present)))))),
        tuple(dict.fromkeys(warning for one in opened.checkpoints if one for warning in one.warnings)),
    )


def summary(result: Result) -> PairSummary:
    """The result in a line."""
    return PairSummary(
        result.baseline,
        result.candidate,
        result.statuses,
        result.coverage,
        len(result.failures),
        result.whole,
        result.error_bound,
    )


def _result(
    opened: Opened,
    measured: Measurements | None,
    settings: Settings,
    further: tuple[AnalysisRecord, ...],
    index: int,
) -> Result:
    pair = opened.group.pairs[index]
    sides = (pair.baseline, pair.candidate)
    names = [opened.group.members[member].name for member in sides]
    own = [failure for member in sides for failure in opened.failures[member]]
    closed = sum(opened.checkpoints[member] is None for member in sides)
    checkpoints = [one for member in sides if (one := opened.checkpoints[member])]
    warnings = tuple(warning for one in checkpoints for warning in one.warnings)
    if measured is None or closed:
        nothing = Coverage(0, 0, 0, 0, 0, 0, 0, {CLOSED: closed})
        return Result(names[0], names[1], (), tuple(own), further, nothing, warnings)
    place = {member: i for i, member in enumerate(opened.present)}
    at = _pair_index(opened, index)
    records = tensor_records(measured, at, settings.epsilon)
    failures = (*own, *_failures(measured, [place[member] for member in sides]), *_of_anchor(measured, records))
    return Result(
        names[0],
        names[1],
        records,
        tuple(dict.fromkeys(failures)),
        (*_of_pair(opened, measured, at, records, settings), *further),
        coverage(measured.comparison, measured.comparison.pairs[at], records),
        warnings,
        *whole_change(measured, at, records),
    )


def _of_pair(
    opened: Opened, measured: Measurements, at: int, records: Sequence[TensorRecord], settings: Settings
) -> Iterator[AnalysisRecord]:
    for name in ANALYSES:
        if name in settings.analyses:
            switch, other = LEFT_TO.get(name, ("", ""))
            once = {switch: False} if other and _is_asked(other, opened, measured, settings) else {}
            yield settings.analysis(name)(measured, at, records, **once)
    if settings.expect:
        yield settings.expect(measured, at, records)


def _pair_index(opened: Opened, index: int) -> int:
    """Where a pair of the group is among those whose members could be opened."""
    present = set(opened.present)
    return sum(pair.baseline in present and pair.candidate in present for pair in opened.group.pairs[:index])


def _failures(measured: Measurements | None, members: Sequence[int]) -> Iterator[Failure]:
    """What of these members could not be read, tensor by tensor; of a shard that is missing as a whole, too."""
    if measured is None:
        return
    for one in measured.comparison.aligned:
        yield from (failure for member in members if (failure := one.unreadable[member]))
    for (tensor, member), failure in sorted(measured.failures.items(), key=lambda item: item[0]):
        if member in members:
            yield replace(failure, tensor=measured.comparison.aligned[tensor].name)


def _of_anchor(measured: Measurements, records: Sequence[TensorRecord]) -> Iterator[Failure]:
    """What of the anchor could not be read, and so failed between two others."""
    if (anchor := measured.comparison.anchor) is not None:
        failed = {record.name for record in records if record.status == "failed"}
        yield from (failure for failure in _failures(measured, [anchor]) if failure.tensor in failed)


def _series(opened: Opened, measured: Measurements | None, settings: Settings) -> tuple[AnalysisRecord, ...]:
    """Of a series of checkpoints; where no pair of them could be measured, what their headers tell."""
    if opened.group.mode is None:
        return ()
    return tuple(of_series(opened, measured, settings, ()))


def of_series(
    opened: Opened, measured: Measurements | None, settings: Settings, apart: Collection[str]
) -> Iterator[AnalysisRecord]:
    """The analyses of a series that were asked for, but for those that are made apart."""
    series = series_of(opened, measured, settings)
    for name in SERIES:
        if name not in apart and _is_asked(name, opened, measured, settings):
            yield settings.analysis(name)(series)


def _is_asked(name: str, opened: Opened, measured: Measurements | None, settings: Settings) -> bool:
    """Whether an analysis of a series answers: it was asked for, or a sweep does so always."""
    if measured is None:
        return name in settings.analyses and SERIES[name].kind == "H"
    return name in settings.analyses or (opened.group.mode is not None and SERIES[name].always)


def series_of(opened: Opened, measured: Measurements | None, settings: Settings) -> Series:
    """The members that could be opened, as the analyses of a series see them."""
    described, names = opened.members, [member.name for member in opened.group.members]
    closed = {names[i]: opened.failures[i] for i, one in enumerate(opened.checkpoints) if one is None}
    if measured is None:
        checkpoints = [one for one in opened.checkpoints if one is not None]
        comparison = compare_members(checkpoints, (), settings.selection)
        shape = len(comparison.aligned), len(checkpoints)
        measured = Measurements(comparison, empty(MOMENTS, shape), empty(SHIFT, (shape[0], 0)), {})
    if measured.grams is None and len(opened.present) == 2 == 2 * len(measured.comparison.pairs):
        measured = _with_gram(measured)
    return Series(measured, tuple(described[member] for member in opened.present), closed)


def _with_gram(measured: Measurements) -> Measurements:
    """The measurements of two with the Gram that their only pair makes: no product of it need be measured."""
    comparison, shifts = measured.comparison, measured.shifts[:, 0]
    if comparison.pairs[0] != Pair(0, 1):
        return measured
    with np.errstate(all="ignore"):
        sums = {name: shifts[name] for name in ("both", "max_abs", "aa", "d2")}
        grams = grams_of_two(sums | {"along": shifts["slope"] * shifts["aa"]})
    return replace(measured, comparison=replace(comparison, anchor=0), grams=grams)
