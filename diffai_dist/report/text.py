"""The result as lines for people and for grep: tensors, failures, analyses, then the total and the coverage."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from diffai_dist.records import AnalysisRecord, Finding, Result, TensorRecord
from diffai_dist.report.tables import named, plain, tables, title, worst_first
from diffai_dist.report.view import View, shown
from diffai_dist.report.wording import coverage_lines, entries, failure_entries, total_line
from diffai_dist.terminal import cells, escape, paint

SIGNS = {"changed": "~", "added": "+", "removed": "-", "incomparable": "!", "identical": "=", "failed": "x"}
STYLES = {"changed": "yellow", "added": "green", "removed": "red", "incomparable": "magenta", "identical": "dim"}

SHORTEST_NAME = 12  # columns that a name keeps on the narrowest screen
INDENT = " " * 8

_NON_FINITE = re.compile(r"(?<= )(?:nans|infs)=[0-9>-]+")


def render(result: Result, view: View) -> Iterator[str]:
    """The lines in the order they are read: what differs first, the verdict last, where a terminal stops scrolling."""
    for record in shown(result, view):
        yield tensor_lines(record, view)
    for entry in failure_entries(result.failures, view.verbose):
        yield f"  {paint('x', 'bold red', view.colour)} {entry}\n"
    for analysis in result.analyses:
        yield from analysis_lines(analysis, view)
    if result.analyses:
        yield "\n"
    yield f"{paint(total_line(result), 'bold', view.colour)}\n"
    yield from (f"{line}\n" for line in coverage_lines(result))


def tensor_lines(record: TensorRecord, view: View) -> str:
    """One line per tensor; on a narrow terminal its first entries, and the rest on indented lines."""
    found = entries(record, view.verbose)
    # A name that leaves no room for the first two entries has a line of its own: cut names look alike.
    limit = min(256, max(SHORTEST_NAME, view.width - len("  ~ :"))) if view.width else None
    start = f"  {SIGNS[record.status]} {escape(record.name, limit)}:"
    lines = fill(start, found, view.width)
    if not view.colour:
        return "\n".join(lines) + "\n"
    painted = [_paint_non_finite(line) for line in lines]
    painted[0] = paint(start, STYLES[record.status], True) + _paint_non_finite(lines[0][len(start) :])
    return "\n".join(painted) + "\n"


def _paint_non_finite(text: str) -> str:
    return _NON_FINITE.sub(lambda entry: paint(entry[0], "bold red", True), text)


def fill(start: str, found: Sequence[str], width: int | None) -> list[str]:
    """`start entry, entry, ...`, broken between entries so that no line exceeds the width unless one entry does."""
    if width is None:
        return [f"{start} {', '.join(found)}"]
    lines, used = [start], cells(start)
    if used + 2 + cells(", ".join(found[:2])) > width:
        used = width
    for i, entry in enumerate(found):
        entry += "," if i < len(found) - 1 else ""
        size = 1 + cells(entry)
        if used + size > width:
            lines.append(INDENT[1:])
            used = len(INDENT) - 1
        lines[-1] += f" {entry}"
        used += size
    return lines


def analysis_lines(analysis: AnalysisRecord, view: View) -> Iterator[str]:
    """Headings, and under them `name: key=value, key=value`: the plain values, then a line per row of each table."""
    yield "\n"
    for table, rows in tables(analysis.result, view.verbose):
        yield f"{paint(title(analysis.name, table), 'bold', view.colour)}\n"
        for row in rows:
            yield _analysis_line(analysis, ["=".join(named(key, value)) for key, value in row.items()], view)
    if analysis.findings:
        yield f"{paint(title(analysis.name, 'findings'), 'bold', view.colour)}\n"
    for finding in worst_first(analysis.findings):
        yield _analysis_line(analysis, _finding(finding), view)


def _analysis_line(analysis: AnalysisRecord, found: Sequence[str], view: View) -> str:
    return "\n".join(fill(f"{escape(analysis.name)}:", found, view.width)) + "\n"


def _finding(finding: Finding) -> list[str]:
    found = [f"finding={escape(finding.rule)}", f"severity={finding.severity}"]
    for key in ("tensor", "value", "threshold"):
        value = getattr(finding, key)
        if value is not None:
            found.append(f"{key}={plain(value)}")
    return [*found, f"source={escape(finding.source)}"]
