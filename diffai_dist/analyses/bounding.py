"""Findings that stay readable: of a rule that thousands of tensors break, the first ones and a count of the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from diffai_dist.analyses.base import finding
from diffai_dist.records import SEVERITIES, Finding

MOST = 20


def bounded(findings: Iterable[Finding], most: int = MOST) -> Iterator[Finding]:
    """The first findings of each rule, then one that counts the others, as severe as the worst of them.

    >>> lows = [Finding("small", "low", name, 1, 0, "here") for name in ("a", "b", "c")]
    >>> [(one.tensor, one.value) for one in bounded(lows, 1)]
    [('a', 1), (None, 2)]
    """
    others: dict[str, list[Finding]] = {}
    told: dict[str, int] = {}
    for one in findings:
        told[one.rule] = told.get(one.rule, 0) + 1
        if told[one.rule] <= most:
            yield one
        else:
            others.setdefault(one.rule, []).append(one)
    for rule, rest in others.items():
        worst = min(rest, key=lambda one: SEVERITIES.index(one.severity)).severity
        yield Finding(rule, worst, None, len(rest), None, f"findings of this rule beyond the first {most}")


def gathered(analysis: Any, findings: Sequence[Finding]) -> Iterator[Finding]:
    """The findings rule by rule; of a rule with more than `listed` of the analysis, one that counts them all."""
    for rule in analysis.rules:
        found = [one for one in findings if one.rule == rule]
        if len(found) > analysis.listed:
            yield finding(analysis, rule, found[0].severity, None, len(found), "listed")
        else:
            yield from found
