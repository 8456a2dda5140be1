"""What a sweep's outputs must know before they write their first line, gathered in one pass over its pairs."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

from diffai_dist.analyses.sort_by_change import magnitude
from diffai_dist.records import AnalysisRecord, Finding, PairSummary, Result, Side, Sweep, TensorRecord
from diffai_dist.report.tables import gravity
from diffai_dist.report.wording import non_finite

TOP = 10  # tensors among those that moved most


@dataclass(frozen=True, slots=True)
class Told:
    """A finding, which names its pair, and the analysis that made it."""

    analysis: str
    finding: Finding


@dataclass(frozen=True, slots=True)
class Mover:
    """A tensor that changed, and between which members."""

    baseline: str
    candidate: str
    record: TensorRecord


@dataclass(frozen=True, slots=True)
class Overview:
    """A sweep, and what its results add up to; it holds none of them."""

    sweep: Sweep
    findings: tuple[Told, ...]  # worst first, what is waived last
    movers: tuple[Mover, ...]  # those of all pairs that moved most, largest first
    spoiled: tuple[int, ...]  # by pair: tensors in which non-finite values appeared
    within_epsilon: int
    asked: frozenset[str]  # names of the analyses that were made
    pairs_analysed: bool  # whether any pair has analyses of its own
    newest: PairSummary | None
    newest_mover: TensorRecord | None


def overview(sweep: Sweep) -> Overview:
    """Look at each result once: a sequence of results may make them anew each time it is asked."""
    told = list(_told(sweep.analyses))
    asked = {analysis.name for analysis in sweep.analyses}
    movers: list[tuple[float, int, Mover]] = []
    spoiled, quiet, order, newest = [], 0, count(), _newest(sweep)
    analysed, newest_mover = False, None
    for index, result in enumerate(sweep.results):
        told += _told(result.analyses, result)
        asked |= {analysis.name for analysis in result.analyses}
        analysed = analysed or bool(result.analyses)
        own = _movers(result)
        movers = heapq.nsmallest(TOP, [*movers, *((-magnitude(one.record), next(order), one) for one in own)])
        spoiled.append(sum(_appeared(record) for record in result.tensors))
        quiet += sum(record.within_epsilon is not None for record in result.tensors)
        if index == newest and own:
            newest_mover = own[0].record
    return Overview(
        sweep,
        tuple(sorted(told, key=lambda one: gravity(one.finding))),
        tuple(mover for _, _, mover in movers),
        tuple(spoiled),
        quiet,
        frozenset(asked),
        analysed,
        None if newest is None else sweep.pairs[newest],
        newest_mover,
    )


def _told(analyses: Sequence[AnalysisRecord], result: Result | None = None) -> Iterator[Told]:
    for analysis in analyses:
        for finding in analysis.findings:
            if result is not None and finding.baseline is finding.candidate is None:
                finding = replace(finding, baseline=result.baseline, candidate=result.candidate)
            yield Told(analysis.name, finding)


def _movers(result: Result) -> list[Mover]:
    changed = (record for record in result.tensors if record.status == "changed")
    found = heapq.nsmallest(TOP, changed, key=lambda record: -magnitude(record))
    return [Mover(result.baseline, result.candidate, record) for record in found]


def _appeared(record: TensorRecord) -> bool:
    """Whether the candidate has more non-finite values than the baseline."""
    return _spoiled(record.candidate) > _spoiled(record.baseline)


def _spoiled(side: Side | None) -> int:
    return sum(non_finite(side).values()) if side else 0


def _newest(sweep: Sweep) -> int | None:
    """The pair that reaches the latest member from the latest before it, of those that could be opened."""
    places = {member.name: place for place, member in enumerate(sweep.members)}

    def age(index: int) -> list[int]:
        pair = sweep.pairs[index]
        return sorted((places.get(pair.baseline, -1), places.get(pair.candidate, -1)), reverse=True)

    pairs = range(len(sweep.pairs))
    return max([i for i in pairs if sweep.pairs[i].coverage.tensors] or pairs, key=age, default=None)
