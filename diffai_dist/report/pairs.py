"""What text and Markdown both say of all pairs of a sweep: their table, the total and the coverage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from diffai_dist.records import Coverage, PairSummary, Sweep
from diffai_dist.report.overview import Overview
from diffai_dist.report.wording import angle, covered_lines, findings_part, relative
from diffai_dist.terminal import count

FROM_GRAM = "± and method=gram: numbers from the Gram; --elementwise measures the rest"

_STATUSES = ("changed", "added", "removed", "incomparable", "failed", "identical")
_USUAL = ("changed", "identical")  # have a column even where there are none


def pair_table(seen: Overview) -> tuple[list[str], list[list[str]]]:
    """Headings, and for each pair its cells under them; a column that would be empty is left out."""
    pairs = seen.sweep.pairs
    columns: dict[str, Sequence[str]] = {
        "rel_l2": [_cell(pair, relative) for pair in pairs],
        "1-cos": [_cell(pair, angle) for pair in pairs],
    }
    if any(seen.spoiled):
        columns["non-finite"] = [f"{number:,}" for number in seen.spoiled]
    for status in _STATUSES:
        numbers = [pair.statuses.get(status, 0) for pair in pairs]
        if status in _USUAL or any(numbers):
            columns[status] = [f"{number:,}" for number in numbers]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _cell(pair: PairSummary, text: Callable[..., str]) -> str:
    return text(pair.whole, pair.error_bound) if pair.whole else "-"


def from_gram(sweep: Sweep) -> list[str]:
    """What is to be said of pairs whose distances come from the Gram; nothing where none does."""
    return [FROM_GRAM] if any(pair.error_bound for pair in sweep.pairs) else []


def sweep_total_line(seen: Overview) -> str:
    """How many pairs differ, how many tensors of all pairs ended how, and what was found."""
    sweep = seen.sweep
    counts = Counter[str]()
    for pair in sweep.pairs:
        counts.update(pair.statuses)
    differ = sum(bool(set(pair.statuses) - {"identical", "failed"}) for pair in sweep.pairs)
    quiet = f" ({seen.within_epsilon:,} within epsilon)" if seen.within_epsilon else ""
    usual = _USUAL if differ else ("identical",)
    shown = [status for status in _STATUSES if counts[status] or status in usual]
    parts = [", ".join(f"{counts[status]:,} {status}" for status in shown) + quiet]
    parts += findings_part([one.finding for one in seen.findings])
    if sweep.failures:
        parts.append(f"incomplete: {count(len(sweep.failures), 'failure')}")
    return " · ".join((_verdict(sweep, differ, sum(counts.values())), *parts))


def _verdict(sweep: Sweep, differ: int, tensors: int) -> str:
    if differ:
        return f"{differ:,} of {count(len(sweep.pairs), 'pair')} differ{'s' if len(sweep.pairs) == 1 else ''}"
    if not tensors and sweep.failures:
        return "nothing was compared"
    scope = f"{count(len(sweep.pairs), 'pair')}" if sweep.complete else "what could be read"
    return f"no differences in {scope}"


def total_coverage(sweep: Sweep) -> Coverage:
    """The sum over all pairs; a tensor counts in each pair that has it."""
    reasons: Counter[str] = Counter()
    for pair in sweep.pairs:
        reasons.update(pair.coverage.not_compared)
    covered = [pair.coverage for pair in sweep.pairs]
    return Coverage(
        sum(one.tensors for one in covered),
        sum(one.tensors_compared for one in covered),
        sum(one.elements for one in covered),
        sum(one.elements_compared for one in covered),
        sum(one.bytes for one in covered),
        sum(one.bytes_compared for one in covered),
        sum(one.byte_by_byte for one in covered),
        dict(sorted(reasons.items())),
    )


def sweep_coverage_lines(sweep: Sweep) -> list[str]:
    """What was compared out of what there is in all pairs, and what was not, by reason."""
    first, *rest = covered_lines(total_coverage(sweep))
    return [f"{count(len(sweep.pairs), 'pair')}: {first}", *rest]
