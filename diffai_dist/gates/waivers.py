"""Findings that do not count for a while: each with its reason, and until when."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date

from diffai_dist.config import Policy, Waiver
from diffai_dist.config.policy import day
from diffai_dist.gates.limits import pair_text
from diffai_dist.records import AnalysisRecord, Finding

Matches = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Holding:
    """A waiver that holds, ready for many findings."""

    rule: Matches
    tensor: Matches | None  # None for any, and for findings that name none
    pair: Matches
    told: str

    def covers(self, finding: Finding, pair: str) -> bool:
        """Whether the finding does not count; `pair` is what it is about unless it names members itself."""
        about = pair_text(finding.baseline, finding.candidate) or pair
        if self.tensor is not None and (finding.tensor is None or not self.tensor(finding.tensor)):
            return False
        return bool(self.rule(finding.rule) and self.pair(about))


def waivers_of(policy: Policy) -> tuple[Waiver, ...]:
    """Those of the policy, and of its rules that may be broken for a while."""
    rules = (
        # Names of rules are no globs.
        Waiver(rule=re.sub(r"([*?[])", r"[\1]", rule.name), reason=rule.reason, expires=rule.expires)
        for rule in policy.rules
        if rule.reason is not None and rule.expires is not None
    )
    return (*policy.waivers, *rules)


def holding(waivers: Iterable[Waiver], today: date) -> tuple[Holding, ...]:
    """The waivers that hold on that day: their last one is included."""
    return tuple(
        Holding(
            _glob(one.rule),
            None if one.tensor is None else _glob(one.tensor),
            _glob(one.pair),
            f"{one.reason} (until {one.expires})",
        )
        for one in waivers
        if day(one.expires) >= today
    )


def expired(waivers: Iterable[Waiver], today: date) -> Iterator[Finding]:
    """A finding for each waiver that does not hold any more: it goes, or it is renewed."""
    for one in waivers:
        if day(one.expires) < today:
            about = one.rule if one.tensor is None else f"{one.rule} of {one.tensor}"
            yield Finding("waiver-expired", "low", None, one.expires, None, f"policy: waiver of {about}: {one.reason}")


def all_marked(
    analyses: Iterable[AnalysisRecord], waivers: Sequence[Holding], pair: str = ""
) -> tuple[AnalysisRecord, ...]:
    """The analyses with the reason on each of their findings that is waived."""
    return tuple(
        replace(one, findings=tuple(marked(finding, waivers, pair) for finding in one.findings)) for one in analyses
    )


def marked(finding: Finding, waivers: Sequence[Holding], pair: str) -> Finding:
    """The finding, with the reason if it is waived; `pair` is what it is about unless it names members itself."""
    told = next((one.told for one in waivers if one.covers(finding, pair)), None)
    return finding if told is None else replace(finding, waived=told)


def _glob(glob: str) -> Matches:
    return re.compile(fnmatch.translate(glob)).match
