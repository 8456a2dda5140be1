"""The result as GitHub-flavoured Markdown for step summaries and comments."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from diffai_dist.records import AnalysisRecord, Result, TensorRecord
from diffai_dist.report.tables import Row, named, tables, title, worst_first
from diffai_dist.report.view import View, shown
from diffai_dist.report.wording import coverage_lines, entries, failure_entry, total_line
from diffai_dist.terminal import escape

LIMIT = 900_000  # bytes; GitHub refuses a step summary above 1 MiB as a whole
SHARE = 100_000  # bytes for each table but the tensors'
ANALYSES_SHARE = 500_000  # bytes for the tables of all analyses together

_ENDS = {ord("|"): r"\x7c", ord("`"): r"\x60"}

COLUMNS = ("status", "tensor", "mean", "std", "rel_l2", "max_abs", "changed", "further")


def render(result: Result, view: View) -> Iterator[str]:
    """The verdict first; then the tensors, in as many whole rows as fit beside everything else."""
    facts = [f"baseline: {code(escape(result.baseline, 1024))}", f"candidate: {code(escape(result.candidate, 1024))}"]
    facts += map(code, coverage_lines(result))
    head = f"## Comparison\n\n**{total_line(result)}**\n\n" + "".join(f"- {fact}\n" for fact in facts)
    notes = [(failure_entry(failure),) for failure in result.failures]
    warnings = [(escape(warning, 1024),) for warning in result.warnings]
    tail = section("Failures", ("failure",), notes, SHARE) + section("Warnings", ("warning",), warnings, SHARE)
    for analysis in result.analyses:
        tail += _analysis(analysis, ANALYSES_SHARE // len(result.analyses), view)
    yield head
    rows = (_row(record, view) for record in shown(result, view))
    yield section("Tensors", COLUMNS, rows, LIMIT - len(head.encode()) - len(tail.encode()))
    yield tail


def section(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], room: int) -> str:
    """A heading and a table of at most `room` bytes, cut by whole rows and saying by how many; "" without rows."""
    lines = [f"\n### {title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n"]
    left = room - len(lines[0].encode()) - len("\n1,000,000,000 more\n")
    dropped = 0
    for row in rows:
        line = "| " + " | ".join(code(cell) if cell else " " for cell in row) + " |\n"
        left -= len(line.encode())
        if left < 0:
            dropped += 1
        else:
            lines.append(line)
    if dropped:
        lines.append(f"\n{dropped:,} more\n")
    return "".join(lines) if len(lines) > 1 else ""


def code(text: str) -> str:
    """A code span around escaped text: nothing in it is Markdown, HTML, a mention or the end of a table cell.

    >>> print(code("a|b <details> @all"))
    `a\\x7cb <details> @all`
    """
    return f"`{text.translate(_ENDS)}`"


def _row(record: TensorRecord, view: View) -> tuple[str, ...]:
    """The entries of the text line, those that have a column of their own in it and the others in the last one."""
    found: dict[str, str] = {}
    further: list[str] = []
    for entry in entries(record, view.verbose):
        key, _, value = entry.partition("=")
        if key in COLUMNS:
            found[key] = value
        else:
            further.append(entry)
    own = (found.get(column, "") for column in COLUMNS[2:-1])
    return record.status, escape(record.name), *own, ", ".join(further)


def _analysis(analysis: AnalysisRecord, room: int, view: View) -> str:
    """Its plain values on one line, then a table for each table of the result and for the findings."""
    parts = tables(analysis.result, view.verbose)
    if analysis.findings:
        parts.append(("findings", [dataclasses.asdict(one) for one in worst_first(analysis.findings)]))
    return "".join(
        _table(title(analysis.name, key), rows, room // len(parts)) if key else _facts(title(analysis.name), rows[0])
        for key, rows in parts
    )


def _table(heading: str, rows: Sequence[Row], room: int) -> str:
    columns = list(dict.fromkeys(named(key, None)[0] for row in rows for key in row))
    cells = (dict(named(key, value) for key, value in row.items()) for row in rows)
    return section(heading, list(map(code, columns)), ([row.get(key, "") for key in columns] for row in cells), room)


def _facts(heading: str, row: Row) -> str:
    lines = (code("=".join(named(key, value))) for key, value in row.items())
    return f"\n### {heading}\n\n" + "".join(f"- {line}\n" for line in lines)
