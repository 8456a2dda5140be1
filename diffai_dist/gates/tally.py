"""What a policy says of a run: the record that reports show as the analysis named policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from diffai_dist.config import Policy, Rule
from diffai_dist.gates.limits import Outcome, Pair, held, pair_text
from diffai_dist.gates.waivers import Holding, marked
from diffai_dist.records import AnalysisRecord, Finding, Sweep

LISTED = 20  # findings of a rule that are not waived, and as many that are; the others are counted


def policy_record(
    sweep: Sweep, policy: Policy, waivers: Sequence[Holding], expired: Sequence[Finding]
) -> AnalysisRecord:
    """Every rule held against every pair: each tensor that breaks one is a finding of its name.

    Waivers mark what they cover before the list is cut to its length. Two findings are about the policy itself:
    policy-unmatched, a rule without a tensor in some pair or, as severe as the rule, in any; and waiver-expired.
    """
    tallies = [_Tally(rule) for rule in policy.rules]
    for result in sweep.results if tallies else ():
        for tally in tallies:
            pair = (result.baseline, result.candidate) if sweep.mode else (None, None)
            if found := held(tally.rule, result, pair):
                tally.add(found, pair)
    alone = pair_text(sweep.pairs[0].baseline, sweep.pairs[0].candidate) if sweep.mode is None else ""
    told = [tally.told(waivers, alone) for tally in tallies]
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
    unmatched: list[Pair] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, found: Outcome, pair: Pair) -> None:
        """Of one pair more."""
        self.pairs += 1
        self.tensors += found.tensors
        self.broken += found.broken
        self.undefined += found.undefined
        if not found.tensors:
            self.unmatched.append(pair)
        self.findings += found.findings

    def told(self, waivers: Sequence[Holding], alone: str) -> tuple[list[Finding], int]:
        """Findings of the rule, waived ones last, and about it; and how many tensors are waived in all."""
        findings = [marked(one, waivers, alone) for one in self.findings]
        counting = [one for one in findings if one.waived is None]
        waived = [one for one in findings if one.waived is not None]
        rest = [_rest(counting)] if len(counting) > LISTED else []
        about = (marked(one, waivers, alone) for one in self._unmatched())
        return [*counting[:LISTED], *rest, *waived[:LISTED], *about], len(waived)

    def row(self, waived: int) -> dict[str, Any]:
        """The rule as a row of the result."""
        rule = asdict(self.rule)
        shown = {key: rule[key] for key in ("metric", "op", "threshold", "severity", "min_count")}
        counts = {key: getattr(self, key) for key in ("pairs", "tensors", "broken", "undefined")}
        return {"rule": self.rule.name, **shown, **counts, "waived": waived}

    def _unmatched(self) -> Iterator[Finding]:
        """A rule that is about nothing is as good as broken: a renamed layer must not switch a gate off."""
        severity = "low" if self.tensors else self.rule.severity
        if not self.pairs:
            source = f"policy: no pair is {self.rule.select.pair}"
            yield Finding("policy-unmatched", severity, None, self.rule.name, None, source)
        elif self.unmatched:
            source = f"policy: no tensor is selected in {len(self.unmatched):,} of {self.pairs:,} pairs"
            yield Finding("policy-unmatched", severity, None, self.rule.name, None, source, *self.unmatched[0])


def _rest(findings: Sequence[Finding]) -> Finding:
    """The findings that are not listed, as one."""
    first, number = findings[0], len(findings) - LISTED
    source = f"{first.source}: tensors beyond the first {LISTED}"
    return Finding(first.rule, first.severity, None, number, None, source)
