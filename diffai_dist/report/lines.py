"""Lines of the text output: a tensor, a finding, a row of an analysis, each broken between its entries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from diffai_dist.records import AnalysisRecord, Finding, TensorRecord
from diffai_dist.report.columns import SHORTEST_NAME, grid, note
from diffai_dist.report.tables import named, plain, square, tables, title, worst_first
from diffai_dist.report.view import View
from diffai_dist.report.wording import entries
from diffai_dist.terminal import cells, escape, paint

SIGNS = {"changed": "~", "added": "+", "removed": "-", "incomparable": "!", "identical": "=", "failed": "x"}
STYLES = {"changed": "yellow", "added": "green", "removed": "red", "incomparable": "magenta", "identical": "dim"}

INDENT = " " * 8
ROWS = 100  # of a table of an analysis; what is longer is for programs, or --verbose

_NON_FINITE = re.compile(r"(?<= )(?:nans|infs)=[0-9>-]+")


def tensor_lines(record: TensorRecord, view: View, further: Sequence[str] = ()) -> str:
    """One line per tensor; on a narrow terminal its first entries, and the rest on indented lines."""
    found = [*entries(record, view.verbose), *further]
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


def analysis_lines(analysis: AnalysisRecord, view: View, findings: bool = True) -> Iterator[str]:
    """Headings, and under them `name: key=value, key=value`: the plain values, then a line per row of each table."""
    found = tables(analysis.result, view.verbose)
    told = worst_first(analysis.findings) if findings else []
    if found or findings:
        yield "\n"
    for table, rows in found:
        yield f"{paint(title(analysis.name, table), 'bold', view.colour)}\n"
        if matrix := square(rows):
            shown, dropped = grid(matrix.labels, matrix.names, matrix.columns, matrix.rows, view.width)
            yield from (f"{line}\n" for line in (*shown, *note(dropped, "column")))
            continue
        kept = rows if view.verbose else rows[:ROWS]
        for row in kept:
            yield _analysis_line(analysis, ["=".join(named(key, value)) for key, value in row.items()], view)
        yield from (f"{line}\n" for line in note(len(rows) - len(kept), "row"))
    if told:
        yield f"{paint(title(analysis.name, 'findings'), 'bold', view.colour)}\n"
    for finding in told:
        yield _analysis_line(analysis, _finding(finding), view)


def _analysis_line(analysis: AnalysisRecord, found: Sequence[str], view: View) -> str:
    return "\n".join(fill(f"{escape(analysis.name)}:", found, view.width)) + "\n"


def _finding(finding: Finding) -> list[str]:
    return [f"finding={escape(finding.rule)}", f"severity={finding.severity}", *finding_entries(finding)]


def finding_entries(finding: Finding) -> list[str]:
    """What it is about, its value against its threshold, where that comes from, and why it is waived."""
    keys = ("tensor", "baseline", "candidate", "value", "threshold")
    found = [f"{key}={plain(value)}" for key in keys if (value := getattr(finding, key)) is not None]
    waived = [] if finding.waived is None else [f"waived={escape(finding.waived)}"]
    return [*found, f"source={escape(finding.source)}", *waived]
