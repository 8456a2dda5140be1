"""When tensors stop being numbers: NaN and infinities over a series."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from diffai_dist.analyses.base import Kind
from diffai_dist.records import AnalysisRecord, Finding

if TYPE_CHECKING:
    from diffai_dist.analyses.series import Series

# Buffers that hold -inf, or a NaN, on purpose: causal masks and biases of attention scores.
_MASKS = re.compile(
    r"(?:^|[._/])(?:masks?|(?:causal|attn|attention|tril|future|bias|alibi)_?mask|masked_bias|alibi)(?:$|[._/])"
)
_SOURCE = "counts of NaN and infinities"


@dataclass(frozen=True)
class Episode:
    """From which member on a tensor holds non-finite values, and where it is finite again; members by index."""

    tensor: int
    first: int
    before: int | None  # the last member in which it was finite; None where it never was before
    until: int | None  # the first in which it is finite again
    counts: tuple[int, ...]  # in each member of the episode


@dataclass(frozen=True)
class AnomalyDetection:
    """Where NaN and infinities first appear in a series, and until when they stay.

    Each episode of a tensor is told once, at its first member; where more than `listed` tensors turn non-finite in one
    member, one finding counts them, and the result still names each.
    """

    name: ClassVar[str] = "anomaly_detection"
    flag: ClassVar[str] = "--anomaly-detection"
    kind: ClassVar[Kind] = "N"
    partials: ClassVar[tuple[str, ...]] = ()
    in_all: ClassVar[bool] = True
    always: ClassVar[bool] = True

    listed: int = 20  # findings of one rule about one member; judgement

    def __call__(self, series: Series) -> AnalysisRecord:
        """A row and a finding per episode, in the order of the members."""
        episodes = sorted(_episodes(series), key=lambda one: (one.first, one.tensor))
        result: dict[str, Any] = {
            "tensors": int((series.non_finite >= 0).any(axis=1).sum()),
            "unread": int(series.unread.any(axis=1).sum()),
            "undecoded": int((series.read & ~series.decoded).any(axis=1).sum()),
            "episodes": [_row(series, one) for one in episodes],
        }
        return AnalysisRecord(self.name, result, tuple(self._findings(series, episodes)))

    def _findings(self, series: Series, episodes: Sequence[Episode]) -> Iterator[Finding]:
        serious = [one for one in episodes if not is_mask(series.tensors[one.tensor])]
        begun = Counter(one.first for one in serious)
        for member, number in begun.items():
            if number > self.listed:
                source = f"tensors with NaN or infinities; more than listed={self.listed}: judgement"
                baseline = series.names[member - 1] if member else None
                yield Finding("non-finite-tensors", "critical", None, number, 0, source, baseline, series.names[member])
        for one in episodes:
            if one not in serious or begun[one.first] <= self.listed:
                yield _finding(series, one, "critical" if one in serious else "info")


def is_mask(name: str) -> bool:
    """Whether a tensor's name is that of a mask, which may hold infinities on purpose.

    >>> is_mask("h.0.attn.masked_bias"), is_mask("model.causal_mask"), is_mask("h.0.attn.masking.weight")
    (True, True, False)
    """
    return bool(_MASKS.search(name.lower()[-1024:]))


def _episodes(series: Series) -> Iterator[Episode]:
    """Members in which a tensor is missing or was not read neither begin nor end one."""
    for tensor, row in enumerate(series.non_finite.tolist()):
        known = [member for member, count in enumerate(row) if count >= 0]
        for place, member in enumerate(known):
            before = known[place - 1] if place else None
            if row[member] and (before is None or not row[before]):
                until = next((one for one in known[place:] if not row[one]), None)
                counts = tuple(row[one] for one in known[place:] if until is None or one < until)
                yield Episode(tensor, member, before, until, counts)


def _row(series: Series, one: Episode) -> dict[str, Any]:
    return {
        "tensor": series.tensors[one.tensor],
        "from": series.names[one.first],
        "finite_again": None if one.until is None else series.names[one.until],
        "members": len(one.counts),
        "first_count": one.counts[0],
        "largest_count": max(one.counts),
    }


def _finding(series: Series, one: Episode, severity: Literal["critical", "info"]) -> Finding:
    rule = "non-finite" if one.before is None else "non-finite-appeared"
    source = _SOURCE if one.until is None else f"{_SOURCE}; finite again in {series.names[one.until]}"
    before = None if one.before is None else series.names[one.before]
    names = series.tensors[one.tensor], series.names[one.first]
    return Finding(rule, severity, names[0], one.counts[0], 0, source, before, names[1])
