"""What is numerically wrong with tensors: NaN and infinities over a series; dead, constant and exploding values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.expected import is_mask
from diffai_dist.records import SEVERITIES, AnalysisRecord, Finding

if TYPE_CHECKING:
    from diffai_dist.analyses.oddities import Oddity
    from diffai_dist.analyses.series import Series

_SOURCE = "counts of NaN and infinities"
_ROWS = 100  # of the table of odd tensors
_NAMES = 20


@dataclass(frozen=True)
class Episode:
    """From which member on a tensor holds non-finite values, and where it is finite again; members by index."""

    tensor: int
    first: int
    before: int | None  # the last member in which it was finite; None where it never was before
    until: int | None  # the first in which it is finite again
    counts: tuple[int, ...]  # in each member of the episode


@dataclass(frozen=True)
class Trouble:
    """One rule that one tensor breaks in some members: from the first of them on, judged by the worst."""

    worst: Oddity
    first: int
    before: int | None  # the last member before in which it was read and did not
    until: int | None  # the next in which it does not
    members: int


@dataclass(frozen=True)
class AnomalyDetection:
    """Where numbers go wrong: NaN, dead rows, constant tensors, exploding norms, layers out of line, near overflow.

    Each episode of NaN or infinities is told once, at its first member; so is any other rule that a tensor breaks, with
    the severity of the worst member. What is as bad in the baseline is told of the baseline alone. Where more tensors
    than `listed` break one rule first in one member, one finding counts them. A sweep looks for NaN and infinities
    always; `checks` says what was looked for. Names keep rules quiet about what they let one expect: zeros of biases
    and of the second half of an adapter, constant gains, masks, tables of positions, states of optimizers. Of
    integers and 4-bit codes, zeros alone are odd, where another member has none. That a row is dead says nothing of
    whether it is meant to be.
    """

    name: ClassVar[str] = "anomaly_detection"
    flag: ClassVar[str] = "--anomaly-detection"
    kind: ClassVar[Kind] = "N"
    partials: ClassVar[tuple[str, ...]] = ("rows", "columns")
    in_all: ClassVar[bool] = True
    always: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        "tensors": "tensors that were looked at",
        "unread": "tensors that could not be read in some member",
        "undecoded": "tensors whose dtype has no values that are known",
        "episodes": "of NaN and infinities: tensor, from which member on, finite_again in which (null: in none),"
        " members it lasted, first_count and largest_count of elements",
        "checks": "rules that were looked at; without the flag, NaN and infinities alone",
        "rows": "tensors whose rows were looked at, of 2 dimensions and 8 values a row; only there with the flag",
        "without_rows": "tensors whose rows were not looked at in some member: too many, or shorter than that; only"
        " there with the flag",
        "without_rows_first": f"the first {_NAMES} of them; only there with the flag",
        "columns": "likewise their columns; only there with the flag",
        "stacks": "matrices that 5 blocks or more have, which were compared between them; only there with the flag",
        "expected_zero": "tensors of zeros whose names let one expect them; only there with the flag",
        "odd": "tensor by tensor what other rules found: rule, severity, tensor, from which member on, until which"
        " (null: to the end), members, value of the worst, axis and index of the first or furthest, count of rows,"
        " columns or elements; the first 100; only there with the flag",
        "odd_of": "how many there are; only there with the flag",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "non-finite": "NaN or infinities from the first member on: critical; in masks, by name: info",
        "non-finite-appeared": "NaN or infinities in a tensor that was finite: critical; in masks info",
        "non-finite-tensors": "the same, counted where there are more than `listed` in one member: critical",
        "all-zero": "every value is 0: high; of one dimension low; none of biases, adapters, masks, states, by name;"
        " of integers only matrices, where another member has other values",
        "dead-rows": "rows of norm 0, or shorter than `dead_ratio` times the median row: medium; more than `dead_share`"
        " of them: high. Of embeddings and heads, tokens that no text has: low and medium. Of integers only rows of 0,"
        " where another member's are not",
        "dead-columns": "columns likewise: medium, high; or low",
        "constant": "one value throughout, and that is not 0: medium; of one dimension low; none of norms and scales",
        "exploding-norm": "a row longer than `row_factor` times the median row, and of a robust z above `outlier_z`:"
        " medium; of embeddings and heads low",
        "layer-outlier": "log RMS of a matrix against the same one of the other blocks: robust z above `outlier_z`, and"
        " a factor of `layer_least` from the median: low; of `layer_far`: medium",
        "near-overflow": "the largest magnitude is above `overflow_share` of the dtype's: high",
        "subnormal-share": "more than `subnormal_share` of the values of a 16- or 8-bit float are subnormal: low",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "robust z 0.6745 (x - median) / MAD and its limit 3.5: Iglewicz and Hoaglin 1993 (published)",
        "dead rows as units that no longer learn: Dohare et al., Nature 2024 (published mechanism); limits: judgement",
        "largest and smallest normal numbers: format (IEEE 754, bfloat16, OCP 8-bit formats, FNUZ)",
        "NaN and infinities: counted (derived); all other limits: judgement, overridable",
    )

    dead_ratio: float = threshold(1e-3, "of the median norm, below which a row or column is dead")
    dead_share: float = threshold(0.01, "of all rows or columns; more dead ones are serious")
    outlier_z: float = threshold(3.5, "robust z, above which rows and layers are outliers", "Iglewicz and Hoaglin 1993")
    row_factor: float = threshold(10.0, "times the median row norm, above which a row explodes")
    layer_least: float = threshold(2.0, "factor from the median RMS of the blocks, above which an outlier is told")
    layer_far: float = threshold(10.0, "factor from the median RMS of the blocks, above which an outlier is serious")
    overflow_share: float = threshold(0.5, "of the dtype's largest number, above which values are near overflow")
    subnormal_share: float = threshold(0.01, "of all values of a 16- or 8-bit float that may be subnormal")
    listed: int = threshold(20, "findings of one rule about one member, beyond which one counts them")
    named: int = threshold(100, "the same of tensors of zeros, each of which must be put right")

    def __call__(self, series: Series) -> AnalysisRecord:
        """A row and a finding per episode, in the order of the members; likewise for each rule a tensor breaks."""
        episodes = sorted(_episodes(series), key=lambda one: (one.first, one.tensor))
        result: dict[str, Any] = {
            "tensors": int((series.non_finite >= 0).any(axis=1).sum()),
            "unread": int(series.unread.any(axis=1).sum()),
            "undecoded": int((series.read & ~series.decoded).any(axis=1).sum()),
            "checks": ["non-finite"],
            "episodes": [_row(series, one) for one in episodes],
        }
        findings = list(self._findings(series, episodes))
        if set(self.partials) <= set(series.measured.comparison.details):
            found, troubles = self._all(series)
            result |= found
            findings += self._troubles(series, troubles)
        return AnalysisRecord(self.name, result, tuple(findings))

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

    def _all(self, series: Series) -> tuple[dict[str, Any], list[Trouble]]:
        """What else was looked at, and found."""
        from diffai_dist.analyses.oddities import Oddities  # brings NumPy, which --help does not need

        oddities = Oddities(series, self)
        troubles = sorted(_troubles(series, oddities.found()), key=lambda one: (one.first, one.worst.tensor))
        without = oddities.without_rows()
        return {
            "checks": list(self.rules),
            "rows": len({tensor for tensor, _ in oddities.judged["row"]}),
            "without_rows": len(without),
            "without_rows_first": [series.tensors[tensor] for tensor in without[:_NAMES]],
            "columns": len({tensor for tensor, _ in oddities.judged["column"]}),
            "stacks": len(oddities.stacks),
            "expected_zero": int(oddities.expected_zeros.any(axis=1).sum()),
            "odd": [_odd_row(series, one) for one in troubles[:_ROWS]],
            "odd_of": len(troubles),
        }, troubles

    def _troubles(self, series: Series, troubles: Sequence[Trouble]) -> Iterator[Finding]:
        """One each, or one that counts where there are many of one rule at one member."""
        groups: dict[tuple[int, str, str], list[Trouble]] = {}
        for one in troubles:
            groups.setdefault((one.first, one.worst.rule, one.worst.severity), []).append(one)
        for group in groups.values():
            option = "named" if group[0].worst.rule == "all-zero" else "listed"
            if len(group) <= getattr(self, option):
                yield from (self._trouble(series, one) for one in group)
                continue
            worst, sides = group[0].worst, _sides(series, group[0])
            counted = finding(self, worst.rule, worst.severity, None, len(group), option, *sides)
            first = ", ".join(series.tensors[one.worst.tensor] for one in group[:3])
            yield replace(counted, source=f"tensors, the first {first}; {counted.source}")

    def _trouble(self, series: Series, one: Trouble) -> Finding:
        worst, sides = one.worst, _sides(series, one)
        value, note = worst.value, worst.note
        if one.members > 1:
            note += f"; in {one.members} members"
        if one.until is not None:
            note += f", no more in {series.names[one.until]}"
        tensor = series.tensors[worst.tensor]
        if worst.option is None:
            return Finding(worst.rule, worst.severity, tensor, value, None, note, *sides)
        told = finding(self, worst.rule, worst.severity, tensor, value, worst.option, *sides)
        return replace(told, source=f"{note}; {told.source}")


def _sides(series: Series, one: Trouble) -> tuple[str | None, str]:
    return None if one.before is None else series.names[one.before], series.names[one.first]


def _troubles(series: Series, oddities: Iterable[Oddity]) -> Iterator[Trouble]:
    """Oddities of one rule and tensor together. Members in which it was not read tell nothing."""
    groups: dict[tuple[str, int], dict[int, Oddity]] = {}
    for one in oddities:
        groups.setdefault((one.rule, one.tensor), {})[one.member] = one
    for (_, tensor), members in groups.items():
        first = min(members)
        known = series.decoded[tensor].nonzero()[0].tolist()
        before = max((member for member in known if member < first), default=None)
        until = min((member for member in known if member > first and member not in members), default=None)
        worst = min(members.values(), key=lambda one: (SEVERITIES.index(one.severity), -one.count, -one.value))
        yield Trouble(worst, first, before, until, len(members))


def _odd_row(series: Series, one: Trouble) -> dict[str, Any]:
    worst = one.worst
    return {
        "rule": worst.rule,
        "severity": worst.severity,
        "tensor": series.tensors[worst.tensor],
        "from": series.names[one.first],
        "until": None if one.until is None else series.names[one.until],
        "members": one.members,
        "value": worst.value,
        "axis": worst.axis,
        "index": worst.index,
        "count": worst.count,
    }


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
