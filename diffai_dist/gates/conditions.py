"""What --fail-on names: severities of findings, and states of a run that count whether or not an analysis was asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from diffai_dist.analyses.expectations import Expectations
from diffai_dist.gates.limits import pair_text
from diffai_dist.records import CLOSED, SEVERITIES, AnalysisRecord, Finding, Number, PairSummary, Severity, Sweep

# Worst first: what was not measured, or is no number, may hide anything.
ORDER = ("critical", "unreadable", "nan", "high", "missing", "medium", "changed", "low", "info")

_DECLARED = ("policy", Expectations.name)  # whoever writes these down means them


@dataclass(frozen=True, slots=True)
class Met:
    """Something that a gate does not let pass. Names are as they came: escape them."""

    condition: str  # out of ORDER
    what: str
    where: tuple[str, ...] = ()  # pair and tensor, as far as it has them


def states(sweep: Sweep, condition: str) -> Iterator[Met]:
    """What meets a condition that is no severity."""
    yield from _STATES[condition](sweep)


def declared(sweep: Sweep) -> bool:
    """Whether anything was expected: every pair that was opened answers to it, so the first one tells."""
    opened = (index for index, pair in enumerate(sweep.pairs) if CLOSED not in pair.coverage.not_compared)
    first = next(opened, None)
    return first is not None and any(one.name == Expectations.name for one in sweep.results[first].analyses)


def severe(sweep: Sweep, least: Severity | None, least_declared: Severity) -> Iterator[Met]:
    """Findings at least so severe that are not waived, of the series and of each pair; None for none.

    What breaks a policy or an expectation has a limit of its own.
    """
    for analysis in sweep.analyses:
        yield from _findings(analysis, least_declared if analysis.name in _DECLARED else least, None)
    for result in sweep.results:
        about = None if sweep.mode is None else pair_text(result.baseline, result.candidate)
        for analysis in result.analyses:
            yield from _findings(analysis, least_declared if analysis.name in _DECLARED else least, about)


def _findings(analysis: AnalysisRecord, least: Severity | None, pair: str | None) -> Iterator[Met]:
    counting = SEVERITIES[: SEVERITIES.index(least) + 1] if least else ()
    for one in analysis.findings:
        if one.severity in counting and one.waived is None:
            places = pair_text(one.baseline, one.candidate) or pair, one.tensor
            told = ", ".join((one.rule, *_sides(one), f"analysis={analysis.name}"))
            yield Met(one.severity, told, tuple(place for place in places if place is not None))


def _sides(one: Finding) -> Iterator[str]:
    """The value and its threshold; of two numbers which is larger: some limits are floors, others ceilings."""
    if _is_number(one.value) and _is_number(one.threshold) and one.value != one.threshold:
        yield f"value={one.value} {'>' if one.value > one.threshold else '<'} threshold={one.threshold}"
    else:
        values = (("value", one.value), ("threshold", one.threshold))
        yield from (f"{name}={value}" for name, value in values if value is not None)


def _is_number(value: Number | str | None) -> TypeGuard[float]:
    """Not a truth value, which is larger than nothing."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _changed(sweep: Sweep) -> Iterator[Met]:
    for pair in sweep.pairs:
        counts = {status: number for status, number in pair.statuses.items() if status not in ("identical", "failed")}
        if any(counts.values()):
            yield Met("changed", ", ".join(f"{number} {status}" for status, number in counts.items()), _where(pair))


def unproven(sweep: Sweep) -> Iterator[Met]:
    """Pairs that were read and have no tensor that could be compared: no finding of theirs says anything."""
    for pair in sweep.pairs:
        if pair.coverage.tensors and not pair.coverage.tensors_compared and not pair.failures:
            counts = ", ".join(f"{number} {status}" for status, number in pair.statuses.items())
            yield Met("missing", f"nothing was compared: {counts}", _where(pair))


def _missing(sweep: Sweep) -> Iterator[Met]:
    for pair in sweep.pairs:
        told = pair.coverage.tensors_compared or pair.failures  # else `unproven` counts them
        if told and (removed := pair.statuses.get("removed")):
            yield Met("missing", f"{removed} of the baseline", _where(pair))


def _nan(sweep: Sweep) -> Iterator[Met]:
    for pair, result in zip(sweep.pairs, sweep.results, strict=True):
        for record in result.tensors:
            if record.candidate and record.candidate.nans:
                yield Met("nan", f"{record.candidate.nans} in the candidate", (*_where(pair), record.name))


def _unreadable(sweep: Sweep) -> Iterator[Met]:
    for failure in sweep.failures:
        yield Met("unreadable", failure.sentence())


def _where(pair: PairSummary) -> tuple[str, ...]:
    return (pair_text(pair.baseline, pair.candidate),)


_STATES: Mapping[str, Callable[[Sweep], Iterator[Met]]] = {
    "changed": _changed,
    "missing": _missing,
    "nan": _nan,
    "unreadable": _unreadable,
}
