"""The result as lines for people and for grep: what matters most first, the total and the coverage last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diffai_dist.errors import Failure
from diffai_dist.records import Result, Sweep
from diffai_dist.report.columns import grid, joined, note
from diffai_dist.report.lines import analysis_lines, fill, finding_entries, tensor_lines
from diffai_dist.report.night import night_lines
from diffai_dist.report.overview import Overview, Told, overview
from diffai_dist.report.pairs import from_gram, pair_table, sweep_coverage_lines, sweep_total_line
from diffai_dist.report.view import View, shown
from diffai_dist.report.wording import arrow, coverage_lines, failure_entries, total_line
from diffai_dist.terminal import escape, paint

SEVERITY_STYLES = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "dim", "info": "dim"}


def render(sweep: Sweep, view: View) -> Iterator[str]:
    """A comparison of two, tensor by tensor; or the first screen of a sweep, its tables and what moved most."""
    if sweep.mode is None:
        yield from _comparison(sweep.results[0], view)
    else:
        yield from _sweep(sweep, view)


def _comparison(result: Result, view: View) -> Iterator[str]:
    """The lines in the order they are read: what differs first, the verdict last, where a terminal stops scrolling."""
    for record in shown(result, view):
        yield tensor_lines(record, view)
    yield from _failures(result.failures, view)
    for analysis in result.analyses:
        yield from analysis_lines(analysis, view)
    if result.analyses:
        yield "\n"
    yield f"{paint(total_line(result), 'bold', view.colour)}\n"
    yield from (f"{line}\n" for line in coverage_lines(result))


def _failures(failures: Sequence[Failure], view: View) -> Iterator[str]:
    for entry in failure_entries(failures, view.verbose):
        yield f"  {paint('x', 'bold red', view.colour)} {entry}\n"


def _sweep(sweep: Sweep, view: View) -> Iterator[str]:
    seen = overview(sweep)
    first, *more = night_lines(seen, overview(view.previous) if view.previous else None, view.notes, view.width)
    yield f"{paint(first, 'bold', view.colour)}\n"
    yield from (f"{line}\n" for line in more)
    yield from _pairs(seen, view)
    if seen.findings:
        yield _heading("Findings", view)
        yield from (_finding(one, view) for one in seen.findings)
    if sweep.failures:
        yield _heading("Failures", view)
        yield from _failures(sweep.failures, view)
    for analysis in sweep.analyses:
        yield from analysis_lines(analysis, view, findings=False)
    yield from _movers(seen, view)
    if view.verbose or view.show_tensors or seen.pairs_analysed:
        for result in sweep.results:
            yield from _pair(result, view)
    yield f"\n{paint(sweep_total_line(seen), 'bold', view.colour)}\n"
    yield from (f"{line}\n" for line in sweep_coverage_lines(sweep))


def _heading(text: str, view: View) -> str:
    return f"\n{paint(text, 'bold', view.colour)}\n"


def _pairs(seen: Overview, view: View) -> Iterator[str]:
    if not seen.sweep.pairs:
        return
    head, rows = pair_table(seen)
    names = [(pair.baseline, pair.candidate) for pair in seen.sweep.pairs]
    lines, dropped = grid("pair", names, head, rows, view.width)
    yield _heading("Pairs", view)
    yield from (f"{line}\n" for line in (*lines, *note(dropped, "column")))
    yield from (f"  {line}\n" for line in from_gram(seen.sweep))


def _finding(one: Told, view: View) -> str:
    severity, rule = one.finding.severity, escape(one.finding.rule)
    found = [*finding_entries(one.finding), f"analysis={escape(one.analysis)}"]
    start, *rest = fill(f"  {severity} {rule}:", found, view.width)
    start = f"  {paint(severity, SEVERITY_STYLES[severity], view.colour)}{start[2 + len(severity) :]}"
    return "\n".join((start, *rest)) + "\n"


def _movers(seen: Overview, view: View) -> Iterator[str]:
    """Unless all tensors are listed anyway."""
    if view.verbose or view.show_tensors or not seen.movers:
        return
    yield _heading("Largest movers", view)
    for mover in seen.movers:
        yield tensor_lines(mover.record, view, [f"pair={arrow(escape(mover.baseline), escape(mover.candidate))}"])


def _pair(result: Result, view: View) -> Iterator[str]:
    """Its tensors if they are to be shown, and its own analyses, whose findings are told above."""
    records = shown(result, view) if view.verbose or view.show_tensors else ()
    tables = [line for analysis in result.analyses for line in analysis_lines(analysis, view, findings=False)]
    if records or tables:
        yield _heading(joined((result.baseline, result.candidate)), view)
    for record in records:
        yield tensor_lines(record, view)
    yield from tables
