"""What makes a run fail: conditions, and a policy of rules and waivers, on what was measured and found.

    limits       rules of a policy, tensor by tensor
    waivers      findings that do not count, and until when
    tally        what a policy says of a run
    conditions   what --fail-on names

A gate changes no number, and is no part of a run's identity. The store keeps what was measured and found; it is held
against a policy whenever it is shown, since policies change and waivers end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from typing import get_args

from diffai_dist.conclusions import Results
from diffai_dist.config import FailOn, Policy
from diffai_dist.errors import UsageError
from diffai_dist.gates.conditions import ORDER, Met, declared, severe, states, unproven
from diffai_dist.gates.limits import pair_text
from diffai_dist.gates.tally import policy_record
from diffai_dist.gates.waivers import all_marked, expired, holding, waivers_of
from diffai_dist.records import SEVERITIES, Result, Severity, Sweep
from diffai_dist.terminal import escape

__all__ = ["Gate", "Met", "Verdict", "judge"]

CONDITIONS: tuple[FailOn, ...] = get_args(FailOn)
DECLARED: Severity = "medium"  # from here on what breaks a policy or an expectation counts by itself; judgement
SHOWN = 10


@dataclass(frozen=True, slots=True)
class Gate:
    """What a run is held to; without anything, all passes but what breaks a declared expectation."""

    conditions: tuple[FailOn, ...] = ()
    policy: Policy | None = None

    def __post_init__(self) -> None:
        for one in self.conditions:
            if one not in CONDITIONS:
                raise UsageError(f"fail_on wants one of {', '.join(CONDITIONS)}, found {escape(str(one), 60)!r}")

    @property
    def severity(self) -> Severity | None:
        """The least severity that was asked for."""
        asked = [severity for severity in SEVERITIES if severity in self.conditions]
        return asked[-1] if asked else None

    def met(self, sweep: Sweep) -> Iterator[Met]:
        """What of a run that was held against the policy this does not let pass."""
        if "never" in self.conditions:
            return
        for condition in dict.fromkeys(self.conditions):
            if condition not in SEVERITIES:
                yield from states(sweep, condition)
        if self.severity or self.policy or "missing" in self.conditions or declared(sweep):
            yield from unproven(sweep)
        if self.severity or self.policy or declared(sweep):
            yield from severe(sweep, self.severity, self.severity or DECLARED)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A run as a policy sees it, and what does not pass, worst first."""

    sweep: Sweep
    met: tuple[Met, ...]

    def lines(self) -> Iterator[str]:
        """What does not pass in words, ten at most and the number of the rest; harmless."""
        for one in self.met[:SHOWN]:
            yield ": ".join((one.condition, *(escape(text, 400) for text in (*one.where, one.what))))
        if len(self.met) > SHOWN:
            yield f"and {len(self.met) - SHOWN:,} more"


def judge(sweep: Sweep, gate: Gate, today: date) -> Verdict:
    """The run with what the policy says of it, and what of it the gate does not let pass."""
    judged = _held(sweep, gate.policy, today) if gate.policy else sweep
    return Verdict(judged, tuple(sorted(gate.met(judged), key=lambda one: ORDER.index(one.condition))))


def _held(sweep: Sweep, policy: Policy, today: date) -> Sweep:
    """The run with its waived findings marked, and the record of the policy: of the series, or of the only pair."""
    waivers = waivers_of(policy)
    holds = holding(waivers, today)
    record = policy_record(sweep, policy, holds, tuple(expired(waivers, today)))
    alone = (record,) if sweep.mode is None else ()

    def result(index: int) -> Result:
        found = sweep.results[index]
        pair = pair_text(found.baseline, found.candidate)
        return replace(found, analyses=(*all_marked(found.analyses, holds, pair), *alone))

    series = (*all_marked(sweep.analyses, holds), *(() if alone else (record,)))
    return replace(sweep, results=Results(len(sweep.results), result, kept=2), analyses=series)
