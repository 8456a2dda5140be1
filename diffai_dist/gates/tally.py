"""What a policy says of a run: the record that reports show as the analysis named policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from diffai_dist.config import Policy, Rule
from diffai_dist.gates.limits import Outcome, held
from diffai_dist.gates.waivers import Holding, marked
from diffai_dist.records import AnalysisRecord, Finding, Sweep

LISTED = 20  # findings of a rule that are not waived, and as many that are; the others are counted


def policy_record(
    sweep: Sweep, policy: Policy, waivers: Sequence[Holding], expired: Sequence[Finding]
) -> AnalysisRecord:
    """Every rule held against every pair: each tensor that breaks one is a finding of its name.

    Waivers mark what they cover before the list is cut to its length. Two findings are about the policy itself:
    policy-unmatched, a rule without a tensor in some pair, and waiver-expired.
    """
    tallies = [_Tally(rule) for rule in policy.rules]
    for result in sweep.results if tallies else ():
        for tally in tallies:
            if found := held(tally.rule, result):
                tally.add(found, (result.baseline, result.candidate) if sweep.mode else (None, None))
    told = [tally.told(waivers) for tally in tallies]
    rows = [tally.row(waived) for tally, (_, waived) in zip(tallies, told, strict=True)]
    return AnalysisRecord("policy", {"rules": rows}, (*(one for findings, _ in told for one in findings), *expired))


@dataclass(slots=True)
class _Tally:
    """What a rule found in all pairs; a comparison of two names none."""

    rule: Rule
    pairs: int = 0
    tensors: int = 0
    broken: int = 0
    undefined: int = 0
    unmatched: list[tuple[str | None, str | None]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, found: Outcome, pair: tuple[str | None, str | None]) -> None:
        """Of one pair more."""
        self.pairs += 1
        self.tensors += found.tensors
        self.broken += found.broken
        self.undefined += found.undefined
        if not found.tensors:
            self.unmatched.append(pair)
        self.findings += (replace(one, baseline=pair[0], candidate=pair[1]) for one in found.findings)

    def told(self, waivers: Sequence[Holding]) -> tuple[list[Finding], int]:
        """Findings of the rule and about it, waived ones last, and how many are waived in all."""
        own = AnalysisRecord("policy", {}, (*self.findings, *self._unmatched()))
        (record,) = marked([own], waivers)
        counting = [one for one in record.findings if one.waived is None]
        waived = [one for one in record.findings if one.waived is not None]
        rest = [
            replace(
                one,
                tensor=None,
                value=len(counting) - LISTED,
                source=f"{one.source}: tensors beyond the first {LISTED}",
                baseline=None,
                candidate=None,
            )
            for one in counting[:1]
            if len(counting) > LISTED
        ]
        return [*counting[:LISTED], *rest, *waived[:LISTED]], len(waived)

    def row(self, waived: int) -> dict[str, Any]:
        """The rule as a row of the result."""
        rule = asdict(self.rule)
        shown = {key: rule[key] for key in ("metric", "op", "threshold", "severity", "min_count")}
        counts = {key: getattr(self, key) for key in ("pairs", "tensors", "broken", "undefined")}
        return {"rule": self.rule.name, **shown, **counts, "waived": waived}

    def _unmatched(self) -> Iterator[Finding]:
        """A rule that is about nothing is worth knowing: a renamed layer must not switch a gate off."""
        if not self.pairs:
            source = f"policy: no pair is {self.rule.select.pair}"
            yield Finding("policy-unmatched", "low", None, self.rule.name, None, source)
        elif self.unmatched:
            source = f"policy: no tensor is selected in {len(self.unmatched):,} of {self.pairs:,} pairs"
            yield Finding("policy-unmatched", "low", None, self.rule.name, None, source, *self.unmatched[0])
